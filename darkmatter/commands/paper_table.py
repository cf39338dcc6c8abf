"""The authors' numbers beside ours, where their protocol was asked for."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from darkmatter.adapters.paper_sums import PaperResult
from darkmatter.report import percent


def show_paper(results: Mapping[str, PaperResult]) -> None:
    """Print the paper's numbers by the authors' definitions.

    Args:
        results: The numbers by SAE.
    """
    table = Table(title="by the authors' definitions (--protocol paper)", title_justify="left", header_style="bold")
    for column in ("SAE", "FVU", "R² (mean over coordinates)", "nonlinear FVU", "tokens fitted", "tested"):
        table.add_column(column, justify="left" if column == "SAE" else "right")
    for name, found in results.items():
        table.add_row(
            name,
            percent(found.fvu),
            f"{found.r2_mean_over_coordinates:.3f}",
            percent(found.fvu_nonlinear),
            f"{found.n_train:,}",
            f"{found.n_test:,}",
        )
    table.caption = "no intercept, documents on both sides of the split: not comparable with the shares above"
    table.caption_justify = "left"
    Console(highlight=False).print(table)
