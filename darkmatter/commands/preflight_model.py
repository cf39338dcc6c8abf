"""A few batches of a real model before a long run: a table, then go or stop with the likely cause."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from darkmatter.adapters import ModelSitesSource, ModelSource
from darkmatter.adapters.preflight import Check, Preflight, preflight
from darkmatter.commands.console import say
from darkmatter.errors import InputError

_STYLE = {"ok": "green", "warn": "yellow", "stop": "bold red"}


def run_preflight(source: ModelSource | ModelSitesSource, *, force: bool, batches: int = 4) -> dict[str, Any]:
    """Check model, text, sites and SAEs on the first batches, and print what was found on stderr.

    Args:
        source: What the run would read.
        force: Go on even where a check says stop.
        batches: Batches to read.

    Returns:
        `Preflight.to_dict`, for report.json; of several sites, with their checks one after the other.

    Raises:
        InputError: A check says stop, and `force` is off.
    """
    found = _merged([_one(source, site, batches) for site in source.activations.sites])
    Console(stderr=True, highlight=False).print(_table(found))
    for check in found.warnings:
        say(f"Warning: {check.sentence()}.")
    stops = [f"preflight: {check.sentence()}" for check in found.stops]
    if stops and not force:
        for other in stops[1:]:
            say(f"Stop: {other}.")
        raise InputError(f"{stops[0]} (--force goes on all the same)")
    for forced in stops:
        say(f"Warning: {forced}; going on, as asked.")
    return {**found.to_dict(), "forced": bool(stops)}


def _one(source: ModelSource | ModelSitesSource, site: Any, batches: int) -> Preflight:
    saes: Any = source.saes
    notes: Any = source.notes
    if isinstance(source, ModelSitesSource):
        saes, notes = saes[str(site)], notes.get(str(site), {})
    return preflight(source.activations, saes, site=site, notes=notes, batches=batches)


def _merged(found: list[Preflight]) -> Preflight:
    """One list of checks: what is the same at every site, such as BOS, is said once."""
    checks: Mapping[Check, None] = dict.fromkeys(check for one in found for check in one.checks)
    return Preflight(checks=tuple(checks), n_documents=found[0].n_documents, n_tokens=found[0].n_tokens)


def _table(found: Preflight) -> Table:
    title = f"preflight: {found.n_documents:,} documents, {found.n_tokens:,} tokens"
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in ("of", "check", "measured", "expected", ""):
        table.add_column(column, overflow="fold")
    previous = ""
    for check in found.checks:
        shown = "" if check.subject == previous else check.subject
        if shown and previous:
            table.add_section()
        style = _STYLE[check.status]
        plain = map(escape, (shown, check.name, check.measured, check.expected))
        table.add_row(*plain, f"[{style}]{check.status}[/{style}]")
        previous = check.subject
    return table
