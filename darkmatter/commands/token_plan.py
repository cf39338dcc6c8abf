"""`darkmatter tokens`: how many tokens a wanted interval needs, foretold from a pilot run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from darkmatter.commands.console import put
from darkmatter.errors import FileFormatError, InputError
from darkmatter.files import read_json
from darkmatter.report import FORMAT, FORMAT_VERSION
from darkmatter.results import Decomposition
from darkmatter.token_plan import TokenPlan, plan_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedWidth:
    """What `darkmatter tokens` is asked for.

    Attributes:
        quantity: The number planned for, one of `darkmatter.token_plan.QUANTITIES`.
        half_width: Half of the interval's length: ``1%`` is relative to the pilot's value, ``0.002`` is absolute.
        saes: SAEs to plan for, by name; empty for all.
        folds: Folds of the planned run; None for the pilot's.
    """

    quantity: str = "fvu_nonlinear"
    half_width: str = "1%"
    saes: Sequence[str] = ()
    folds: int | None = None


def run_tokens(pilot: Path | Mapping[str, Decomposition], wanted: WantedWidth, *, as_json: bool = False) -> None:
    """Print the tokens that every SAE of a pilot needs.

    Args:
        pilot: The report.json of a finished run, its folder, or the results of a pilot pass.
        wanted: The wanted width.
        as_json: Print JSON instead of a table.
    """
    results = read_results(pilot) if isinstance(pilot, Path) else pilot
    plans = plan_all(results, wanted)
    if as_json:
        put(json.dumps({name: plan.to_dict() for name, plan in plans.items()}, indent=2, allow_nan=False))
        return
    console = Console(highlight=False)
    console.print(_table(plans))
    for warning in dict.fromkeys(warning for plan in plans.values() for warning in plan.warnings):
        console.print(f"Warning: {warning}", style="yellow", markup=False)
    console.print(summary(plans), style="bold", markup=False)


def read_results(path: Path) -> dict[str, Decomposition]:
    """Read the decompositions of a report.

    Args:
        path: A report.json, or the folder that holds it.

    Returns:
        Decompositions by SAE name.

    Raises:
        FileFormatError: Not a report, or a damaged one.
    """
    path = path / "report.json" if path.is_dir() else path
    report = read_json(path, "the report.json of `darkmatter decompose`")
    found, saes = (report.get("format"), report.get("version")), report.get("saes")
    if found != (FORMAT, FORMAT_VERSION) or not isinstance(saes, dict) or not saes:
        raise FileFormatError(
            f"{path} has format {found[0]!r} version {found[1]!r}, expected {FORMAT!r} version {FORMAT_VERSION} with "
            "at least one SAE: pass the report.json of `darkmatter decompose`",
            path,
        )
    try:
        return {name: Decomposition.from_dict(value) for name, value in saes.items()}
    except (InputError, AttributeError) as error:
        raise FileFormatError(f"{path} is damaged ({error}): run the pilot again", path) from None


def plan_all(results: Mapping[str, Decomposition], wanted: WantedWidth) -> dict[str, TokenPlan]:
    """Plan for every SAE that is wanted.

    Args:
        results: The pilot.
        wanted: The wanted width.

    Returns:
        Plans by SAE name.

    Raises:
        InputError: An SAE that the pilot does not hold, or a width or quantity that cannot be.
    """
    unknown = [name for name in wanted.saes if name not in results]
    if unknown:
        raise InputError(f"the pilot has no SAE {unknown[0]!r}, expected one of {', '.join(results)}")
    half_width, relative = parse_half_width(wanted.half_width)
    return {
        name: plan_tokens(
            results[name], quantity=wanted.quantity, half_width=half_width, relative=relative, folds=wanted.folds
        )
        for name in wanted.saes or results
    }


def parse_half_width(text: str) -> tuple[float, bool]:
    """Read ``1%`` as (0.01, relative) and ``0.002`` as (0.002, absolute).

    Args:
        text: The option's value.

    Returns:
        The number, and whether it is relative to the estimate.

    Raises:
        InputError: Neither form, or not positive.
    """
    bare = text.strip()
    relative = bare.endswith("%")
    try:
        value = float(bare.removesuffix("%")) / (100 if relative else 1)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"half-width is {text!r}, expected a share of the estimate such as 1%, or a number as 0.002")
    return value, relative


def summary(plans: Mapping[str, TokenPlan]) -> str:
    """Say in one sentence what to run: the largest number of tokens that any of the SAEs needs."""
    plan = max(plans.values(), key=lambda plan: plan.advised)
    if plan.advised > plan.tokens:
        return (
            f"{words(plan.floor)} tokens: {plan.quantity} {_width(plan)} needs about {words(plan.tokens)}, but "
            f"{plan.rank} directions and {plan.folds} folds of documents need that many to be trusted."
        )
    return (
        f"About {words(plan.tokens)} tokens ({words(plan.tokens_low)} to {words(plan.tokens_high)}; "
        f"{plan.documents:,} documents) for {plan.quantity} {_width(plan)}."
    )


def words(tokens: int) -> str:
    """Write a number of tokens to two digits, or three where it starts with 1: 870, 12,000, 1.27 million."""
    if tokens < 1000:
        return str(tokens)
    digits = 3 if str(tokens).startswith("1") else 2
    rounded = float(f"{tokens:.{digits - 1}e}")
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if rounded >= size:
            return f"{rounded / size:,.6g} {name}"
    return f"{rounded:,.0f}"


def _width(plan: TokenPlan) -> str:
    return f"± {100 * plan.relative:.3g} % of its value" if plan.is_relative else f"± {plan.half_width:.3g}"


def _table(plans: Mapping[str, TokenPlan]) -> Table:
    first = next(iter(plans.values()))
    table = Table(title=f"tokens for {first.quantity} {_width(first)}", title_justify="left", header_style="bold")
    table.add_column("SAE")
    for column in ("pilot ± 95 %", "tokens", "95 %", "documents", "at least"):
        table.add_column(column, justify="right")
    for name, plan in plans.items():
        table.add_row(
            name,
            f"{plan.pilot.value:.3g} ± {(plan.pilot.high - plan.pilot.low) / 2:.2g}",
            words(plan.tokens),
            f"{words(plan.tokens_low)} to {words(plan.tokens_high)}",
            f"{plan.documents:,}",
            words(plan.floor),
        )
    table.caption = (
        f"pilot: {first.pilot_tokens:,} tokens, {first.pilot_folds} folds, {first.tokens_per_document:.1f} tokens per "
        f"document; planned: {first.folds} folds, documents of the same length"
    )
    table.caption_justify = "left"
    return table
