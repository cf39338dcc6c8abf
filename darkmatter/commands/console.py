"""What a person sees: progress on stderr, tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from darkmatter.inference import Estimate
from darkmatter.report import THEOREMS, percent, percent_interval, verdict
from darkmatter.results import Decomposition


class _Rate(ProgressColumn):
    """Tokens per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} tok/s", style="cyan")


class Steps:
    """Progress bars of a command's stages, one at a time."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Stage]:
        """Show a bar for one stage.

        Args:
            title: What is being done.
            total: Tokens it will take, if known.

        Yields:
            The bar.
        """
        task = self._progress.add_task(title, total=total)
        try:
            yield Stage(self._progress, task)
        finally:
            self._progress.update(task, total=self._progress.tasks[task].completed or 1)
            self._progress.stop_task(task)


class Stage:
    """One progress bar; call it with a number of tokens."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def __call__(self, tokens: int) -> None:
        """Advance."""
        self._progress.advance(self._task, tokens)

    def loss(self, tokens: int, fvu: float) -> None:
        """Set the tokens done so far and show the FVU behind the bar."""
        self._progress.update(self._task, completed=tokens, note=f"FVU {fvu:.3f}")


@contextmanager
def steps() -> Iterator[Steps]:
    """Progress bars with a rate and a time to go, on stderr; quiet where stderr is not a terminal.

    Yields:
        The stages' maker.
    """
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with _NotedProgress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Steps(progress)


class _NotedProgress(Progress):
    """rich asks for every field a column names; ours starts empty."""

    def add_task(self, *args: Any, **fields: Any) -> Any:
        return super().add_task(*args, **{"note": "", **fields})


def say(text: str) -> None:
    """Tell a person something, on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def put(text: str) -> None:
    """Write a result to stdout as it is."""
    sys.stdout.write(text + "\n")


def show_results(results: Mapping[str, Decomposition], truth: Mapping[str, Any] | None = None) -> None:
    """Print every decomposition as a table, then its warnings and its sentence."""
    console = Console(highlight=False)
    for name, result in results.items():
        console.print(_table(result, (truth or {}).get(name)))
        for warning in result.warnings:
            console.print(f"Warning: {warning}", style="yellow", markup=False)
        console.print(verdict(result), style="bold", markup=False)
    if len(results) > 1:
        console.print(_pairs(results))


def _table(result: Decomposition, truth: Any | None) -> Table:
    table = Table(title=f"{result.name}: shares of the variance of x", title_justify="left", header_style="bold")
    table.add_column("quantity", no_wrap=True)
    table.add_column("estimate [95 %]", justify="right")
    if truth is not None:
        table.add_column("truth", justify="right")
    table.add_column("see", style="dim", no_wrap=True)

    def row(label: str, shown: str, true: str, theorem: str) -> None:
        table.add_row(label, shown, *([] if truth is None else [true]), theorem)

    def known(name: str) -> str:
        return "" if truth is None else percent_interval_or_value(getattr(truth, name))

    linear = "" if truth is None else percent(truth.fvu.value - truth.nonlinear.value)
    row("error (FVU)", percent_interval(result.fvu), known("fvu"), THEOREMS["fvu"])
    row("  linear in x", percent_interval(result.linear_share), linear, THEOREMS["linear_share"])
    row("  nonlinear", percent_interval(result.fvu_nonlinear), known("nonlinear"), THEOREMS["fvu_nonlinear"])
    bounds = f"in [{percent(result.introduced.low)[:-2]}, {percent(result.introduced.high)[:-2]}] %"
    row("    introduced (s ≥ 0)", bounds, known("introduced"), THEOREMS["introduced"])
    row("    interference", "the rest", known("interference"), "T3")
    row("rescaling removes", percent_interval(result.shrinkage), "", THEOREMS["shrinkage"])
    table.add_section()
    row("R² of e on x", f"{result.r2_error:.3f}", "", THEOREMS["r2_error"])
    row("best gain", f"{result.gain:.3f}", "", THEOREMS["gain"])
    row("R² of |e|² on x", f"{result.r2_norm:.3f}", "", THEOREMS["r2_norm"])
    if truth is not None:
        table.add_section()
        row("missed: dense", "", known("dense"), "T3")
        row("missed: absent", "", known("absent"), "T3")
        row("distorted: learned", "", known("linear"), "T3")
    about_truth = "" if truth is None else f"; truth: {truth.method}, {truth.n_learned} features learned"
    table.caption = (
        f"{result.n_tokens:,} tokens, {result.n_groups:,} documents, {result.n_folds} folds; "
        f"rank {result.rank} of {result.d_model}, condition {result.condition:.1e}{about_truth}"
    )
    table.caption_justify = "left"
    return table


def percent_interval_or_value(estimate: Estimate) -> str:
    """A share with its interval, or alone where it has no sampling error."""
    return percent(estimate.value) if estimate.low == estimate.high else percent_interval(estimate)


def _pairs(results: Mapping[str, Decomposition]) -> Table:
    table = Table(title="replicates (T8): nonlinear error of pairs", title_justify="left", header_style="bold")
    for column in ("pair", "unshared [95 %]", "shared [95 %]", "introduced, if T8 holds"):
        table.add_column(column, justify="left" if column == "pair" else "right")
    table.caption = "T8 needs equal interference and errors that are not opposed: cleanest for two seeds of one recipe"
    table.caption_justify = "left"
    names = list(results)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            pair = results[first].replicates[second]
            top = max(results[name].fvu_nonlinear.high for name in (first, second))
            table.add_row(
                f"{first} | {second}",
                percent_interval(pair.unshared),
                percent_interval(pair.shared),
                f"in [{percent(pair.unshared.low)[:-2]}, {percent(top)[:-2]}] %",
            )
    return table
