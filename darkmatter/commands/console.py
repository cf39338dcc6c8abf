"""What a person sees: progress on stderr, tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
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

from darkmatter.commands.many_table import FEW, pairs_table, show_many
from darkmatter.inference import Estimate
from darkmatter.report import THEOREMS, percent, percent_interval, verdict
from darkmatter.results import Decomposition
from darkmatter.theory import SyntheticTest

RECOVERY_ROWS = (
    ("mcc", "mean |cosine| (MCC)", "matched one to one"),
    ("recovered_share", "features found", "|cosine| at least 0.8"),
    ("precision", "precision", "of the latents' activity"),
    ("recall", "recall", "of the features' activity"),
    ("shrinkage", "shrinkage", "of found features"),
    ("absorption", "absorbed activity", "taken over by near latents"),
    ("matched_share", "latents for a feature", ""),
    ("duplicate_share", "  duplicates", ""),
    ("false_share", "  for no feature", ""),
    ("dead_share", "  dead", "on these tokens"),
    ("l0", "latents per token (L0)", ""),
)
"""Rows of the table of a recovery: name, label, note."""


_MOST_PAIRS = 15


class _Rate(ProgressColumn):
    """Tokens or cases per second, or cells per minute."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        unit = task.fields["unit"]
        if unit == "cells":
            return Text(f"{60 * speed:.3g} cells/min", style="cyan")
        return Text(f"{speed:,.0f} {'tok' if unit == 'tokens' else unit}/s", style="cyan")


class Steps:
    """Progress bars of a command's stages, one at a time."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def say(self, text: str) -> None:
        """Tell a person something above the bars."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, title: str, total: int | None, *, unit: str = "tokens") -> Iterator[Stage]:
        """Show a bar for one stage.

        Args:
            title: What is being done.
            total: How many tokens, or other units, it will take, if known.
            unit: What is counted.

        Yields:
            The bar.
        """
        task = self._progress.add_task(title, total=total, unit=unit)
        try:
            yield Stage(self._progress, task)
        finally:
            self._progress.update(task, total=_completed(self._progress, task) or 1)
            self._progress.stop_task(task)

    @contextmanager
    def cells(self, total: int) -> Iterator[Callable[[], None]]:
        """Show a bar for a sweep's cells, above the stages of the current one.

        Args:
            total: Cells to do.

        Yields:
            To be called after every cell; removes the bars of its stages.
        """
        task = self._progress.add_task("sweep", total=total, unit="cells")

        def done() -> None:
            self._progress.advance(task)
            for other in self._progress.task_ids:
                if other != task:
                    self._progress.remove_task(other)

        yield done


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
        return super().add_task(*args, **{"note": "", "unit": "tokens", **fields})


def _completed(progress: Progress, task: Any) -> float:
    return next(known.completed for known in progress.tasks if known.id == task)


def say(text: str) -> None:
    """Tell a person something, on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def put(text: str) -> None:
    """Write a result to stdout as it is."""
    sys.stdout.write(text + "\n")


def show_results(results: Mapping[str, Decomposition], truth: Mapping[str, Any] | None = None) -> None:
    """Print every decomposition as a table, then its warnings and its sentence."""
    console = Console(highlight=False)
    if len(results) > FEW and not truth:
        show_many(results)
    for name, result in results.items() if len(results) <= FEW or truth else ():
        console.print(_table(result, (truth or {}).get(name)))
        for warning in result.warnings:
            console.print(f"Warning: {warning}", style="yellow", markup=False)
        console.print(verdict(result), style="bold", markup=False)
    pairs = sum(len(result.replicates) for result in results.values()) // 2
    if 0 < pairs <= _MOST_PAIRS:
        console.print(pairs_table(results))
    elif pairs:
        console.print(f"{pairs:,} pairs of SAEs are compared (T8) in report.json.", markup=False)


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
        f"rank {result.rank} of {result.d_model}, condition {result.condition:.1e}{about_truth}; "
        "see: derived in proofs/, run by `darkmatter prove T3`"
    )
    table.caption_justify = "left"
    return table


def percent_interval_or_value(estimate: Estimate) -> str:
    """A share with its interval, or alone where it has no sampling error."""
    return percent(estimate.value) if estimate.low == estimate.high else percent_interval(estimate)


def show_recovery(summary: Mapping[str, Any]) -> None:
    """Print how well the latents of a trained SAE are the true features."""
    table = Table(title="latents against true features", title_justify="left", header_style="bold")
    table.add_column("quantity", no_wrap=True)
    table.add_column("value [95 %]", justify="right")
    table.add_column("see", style="dim")
    for name, label, note in RECOVERY_ROWS:
        value, low, high = (summary.get(name + end) for end in ("", "_low", "_high"))
        if value is None:
            shown = "–"
        elif name == "l0":
            shown = f"{value:.2f} [{low:.2f}, {high:.2f}]"
        elif name == "mcc":
            shown = f"{value:.3f}"
        else:
            shown = percent(value) if low is None or high is None else percent_interval(Estimate(value, low, high))
        table.add_row(label, shown, note)
    table.caption = f"{summary['n_features']:,} features, {summary['d_sae']:,} latents, {summary['n_tokens']:,} tokens"
    table.caption_justify = "left"
    Console(highlight=False).print(table)


def show_theory(result: Decomposition, theory: SyntheticTest) -> None:
    """Print the paper's synthetic test: what it reports in the population, what was measured, and what is true."""
    table = Table(title="the paper's synthetic test", title_justify="left", header_style="bold")
    table.add_column("quantity", no_wrap=True)
    table.add_column("measured [95 %]", justify="right")
    table.add_column("closed form (T7)", justify="right")
    table.add_column("taken for", justify="right")
    linear, nonlinear = result.linear_share, result.fvu_nonlinear
    table.add_row("error (FVU)", percent_interval(result.fvu), percent(theory.fvu), "")
    taken = f"noise: {percent(theory.noise)}"
    table.add_row("  linear in x", percent_interval(linear), percent(theory.linear), taken)
    taken = f"introduced: {percent(theory.introduced)}"
    table.add_row("  nonlinear", percent_interval(nonlinear), percent(theory.nonlinear), taken)
    table.caption = f"{percent(theory.recovered)} of the activation noise is called linear"
    table.caption_justify = "left"
    Console(highlight=False).print(table)


def show_cells(cells: Iterable[tuple[str, Mapping[str, str], str]]) -> None:
    """Print the cells of a sweep: identity, values on the axes, state."""
    table = Table(header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("cell", no_wrap=True)
    for number, (identity, axes, state) in enumerate(cells, start=1):
        if number == 1:
            for name in [*axes, "state"]:
                table.add_column(name)
        table.add_row(str(number), identity, *axes.values(), state)
    Console(highlight=False).print(table)
