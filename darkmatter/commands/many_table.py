"""Many SAEs at once: one row each."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from darkmatter.report import THEOREMS, percent, percent_interval
from darkmatter.results import Decomposition

FEW = 3
"""Up to so many SAEs get a table of their own."""


def show_many(results: Mapping[str, Decomposition]) -> None:
    """Print one row per SAE, and every warning once.

    Args:
        results: Decompositions by SAE.
    """
    table = Table(title="shares of the variance of x [95 %]", title_justify="left", header_style="bold")
    table.add_column("SAE", overflow="fold")
    columns = {"FVU": "fvu", "linear in x": "linear_share", "nonlinear": "fvu_nonlinear", "introduced": "introduced"}
    for column, quantity in {**columns, "R² of e": "r2_error"}.items():
        table.add_column(f"{column}\n({THEOREMS[quantity]})", justify="right")
    for name, result in results.items():
        table.add_row(
            name if result.degenerate is None else f"{name} ({result.degenerate})",
            percent_interval(result.fvu),
            percent_interval(result.linear_share),
            percent_interval(result.fvu_nonlinear),
            f"{percent(result.introduced.low)[:-2]} to {percent(result.introduced.high)}",
            f"{result.r2_error.value:.3f}",
        )
    first = next(iter(results.values()))
    table.caption = (
        f"{first.n_tokens:,} tokens, {first.n_groups:,} documents, {first.n_folds} folds; all else in report.json"
    )
    table.caption_justify = "left"
    console = Console(highlight=False)
    console.print(table)
    for warning in dict.fromkeys(warning for result in results.values() for warning in result.warnings):
        console.print(f"Warning: {warning}", style="yellow", markup=False)


def pairs_table(results: Mapping[str, Decomposition]) -> Table:
    """One row per pair of SAEs: what they share, and what that allows for introduced error (T8)."""
    table = Table(title="replicates (T8): nonlinear error of pairs", title_justify="left", header_style="bold")
    for column in ("pair", "unshared [95 %]", "shared [95 %]", "introduced, one recipe", "nested"):
        table.add_column(column, justify="left" if column == "pair" else "right")
    table.caption = (
        "introduced error, mean of the pair, if errors are not opposed (T8): for two seeds of one recipe; "
        "nested, for a pair of which one SAE has learned all that the other has"
    )
    table.caption_justify = "left"
    names = list(results)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            pair = results[first].replicates.get(second)
            if pair is None:  # at another site, or in another group
                continue
            top = max(results[name].fvu_nonlinear.high for name in (first, second))
            table.add_row(
                f"{first} | {second}",
                percent_interval(pair.unshared),
                percent_interval(pair.shared),
                f"in [{percent(pair.unshared.low)[:-2]}, {percent(top)[:-2]}] %",
                f"at least {percent(pair.corrected.low)}",
            )
    return table
