"""`darkmatter prove`: attack every theorem of proofs/ and say what stood."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hypothesis.configuration import set_hypothesis_home_dir
from rich.console import Console
from rich.table import Table
from rich.text import Text

from darkmatter.claims import AnyClaim, all_claims, attack, twin_is_caught
from darkmatter.commands.console import put, steps
from darkmatter.errors import InputError

Plain = dict[str, Any]

MOST_EXAMPLES = 1_000_000
TWIN_EXAMPLES = 300
"""Cases in which a wrong twin must be caught, at most."""

_STYLES = {"holds": "green", "FAILS": "bold red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProveRun:
    """What to attack and how.

    Attributes:
        names: Theorems ("T5b"), claims or pages ("08"); empty for all.
        examples: Cases per claim.
        seed: Seed of the search.
        twins: Also run the deliberately wrong twins, which must be caught.
        jobs: Processes.
        list_only: List the claims and run nothing.
        as_json: Print JSON only.
    """

    names: tuple[str, ...]
    examples: int
    seed: int
    twins: bool
    jobs: int | None
    list_only: bool
    as_json: bool


def run_prove(run: ProveRun) -> bool:
    """Attack the chosen claims and print what came of it.

    Args:
        run: What to do.

    Returns:
        Whether every verdict is the expected one.

    Raises:
        InputError: An unknown name, or a number out of range.
    """
    for name, value, most in (("--examples", run.examples, MOST_EXAMPLES), ("--jobs", run.jobs, 1024)):
        if value is not None and not 1 <= value <= most:
            raise InputError(f"{name} is {value}, expected 1 to {most:,}")
    if not 0 <= run.seed < 2**64:
        raise InputError(f"--seed is {run.seed}, expected a whole number from 0 to 2^64 - 1")
    claims = select(all_claims(), run.names)
    if run.list_only:
        _list(claims, as_json=run.as_json)
        return True
    found: dict[str, Plain] = {}
    with (
        TemporaryDirectory() as home,
        steps() as bars,
        bars.stage("proving", len(claims) * run.examples, unit="cases") as done,
    ):
        for result in _outcomes(claims, run, home, done):
            found[result["claim"]] = result
    results = [found[claim.name] for claim in claims]
    if run.as_json:
        put(json.dumps(results, indent=2, allow_nan=False))
    else:
        _show(results)
    return all(result["verdict"] != "FAILS" for result in results)


def select(claims: Sequence[AnyClaim], names: Sequence[str]) -> list[AnyClaim]:
    """The claims that a theorem, a claim's name or a page asks for, in the order of the pages.

    Args:
        claims: All claims.
        names: What was asked for; nothing means all.

    Returns:
        The chosen ones.

    Raises:
        InputError: A name that fits nothing.
    """
    wanted = [name.strip().lower().removeprefix("proofs/").removesuffix(".md") for name in names]
    for name in wanted:
        if not any(_fits(claim, name) for claim in claims):
            theorems = ", ".join(dict.fromkeys(claim.theorem for claim in claims))
            raise InputError(
                f"{name!r} is no theorem, claim or page, expected one of {theorems}, a page such as "
                f"{claims[0].page[:2]}, or a claim's name: see `darkmatter prove --list`"
            )
    return [claim for claim in claims if not wanted or any(_fits(claim, name) for name in wanted)]


def _fits(claim: AnyClaim, name: str) -> bool:
    return name in (claim.theorem.lower(), claim.name, claim.page, claim.page[:2])


def _outcomes(claims: Sequence[AnyClaim], run: ProveRun, home: str, done: Callable[[int], None]) -> Iterator[Plain]:
    jobs = min(len(claims), run.jobs or os.cpu_count() or 1)
    # a fresh interpreter per process: torch's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_prepare, initargs=(home,)) as pool:
        tasks = [pool.submit(_prove_by_name, claim.name, run.examples, run.seed, run.twins) for claim in claims]
        try:
            for task in as_completed(tasks):
                yield task.result()
                done(run.examples)
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare(home: str) -> None:
    torch.set_num_threads(1)  # many small products, and one process per core already
    set_hypothesis_home_dir(home)  # or it leaves a folder where the user stands


def _prove_by_name(name: str, examples: int, seed: int, twins: bool) -> Plain:
    claim = next(claim for claim in all_claims() if claim.name == name)
    result = attack(claim, examples=examples, seed=seed).to_dict()
    if twins:
        caught = {twin: twin_is_caught(claim, twin, examples=TWIN_EXAMPLES, seed=seed) for twin in claim.twins}
        result["twins_caught"] = caught
        if not all(caught.values()):
            result["verdict"] = "FAILS"
    return result


def _list(claims: Sequence[AnyClaim], *, as_json: bool) -> None:
    if as_json:
        keys = ("theorem", "name", "page", "statement", "assumptions", "false")
        put(json.dumps([{key: getattr(claim, key) for key in keys} for claim in claims], indent=2))
        return
    table = Table(header_style="bold")
    for column in ("theorem", "claim", "statement", "page"):
        table.add_column(column, no_wrap=column == "theorem")
    for claim in claims:
        false = " (false as stated)" if claim.false else ""
        table.add_row(claim.theorem, claim.name, claim.statement + false, f"proofs/{claim.page}.md")
    Console(highlight=False).print(table)


def _show(results: Sequence[Plain]) -> None:
    twins = "twins_caught" in results[0]
    table = Table(header_style="bold", show_lines=True)
    table.add_column("theorem", no_wrap=True)
    table.add_column("claim and assumptions", ratio=1, overflow="fold")
    table.add_column("examples", justify="right", no_wrap=True)
    table.add_column("least slack", justify="right", no_wrap=True)
    if twins:
        table.add_column("twins\ncaught", justify="right", no_wrap=True)
    table.add_column("verdict", max_width=16)
    for result in results:
        caught = result.get("twins_caught", {})
        claim = Text.assemble(
            (result["claim"] + "\n", "bold"), result["statement"], ("\nassumes: " + result["assumptions"], "dim")
        )
        verdict = Text(result["verdict"], style=_STYLES.get(result["verdict"], "yellow"))
        shown = (f"{sum(caught.values())} of {len(caught)}",) if twins else ()
        table.add_row(result["theorem"], claim, f"{result['examples']:,}", _slack(result), *shown, verdict)
    table.caption = (
        "slack: relative distance to the claim's limit, negative beyond it; ≈ 0: an identity, or a limit that is "
        "reached, to rounding; ~: a comparison of random draws, as a share of the standard errors allowed"
    )
    table.caption_justify = "left"
    console = Console(highlight=False)
    console.print(table)
    for result in results:
        if result["counterexample"]:
            console.print(f"\n{result['theorem']} {result['claim']}: {result['verdict']}", style="bold", markup=False)
            console.print(f"  claimed: {result['statement']}", markup=False)
            console.print(f"  {result['found_by']}: {result['counterexample']}", markup=False)
            console.print(f"  see {result['page']}", style="dim", markup=False)
    failed = sum(result["verdict"] == "FAILS" for result in results)
    tried = sum(result["examples"] for result in results)
    console.print(
        f"\n{len(results)} claims, {tried:,} cases: "
        + (f"{failed} FAIL" if failed else "every verdict is the one that its page states"),
        style="bold red" if failed else "bold green",
    )


def _slack(result: Plain) -> str:
    slack, allowed = result["slack"], result["rounding_allowed"]
    if slack is None:
        return "undefined"
    if abs(slack) <= max(allowed, 1e-12) and slack >= -allowed:
        return "≈ 0"
    return ("~ " if result["false_alarm_rate"] else "") + f"{slack:.2g}"
