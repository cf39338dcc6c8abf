"""`darkmatter scale`: scaling laws of many SAEs of one site, their tables and their figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from darkmatter.analyses.controls import is_control
from darkmatter.analyses.scaling import (
    CountingSource,
    Law,
    Level,
    Points,
    ScalingLaw,
    Slope,
    SomeSaes,
    Surface,
    points_of,
    scaling_law,
)
from darkmatter.cli_data import DataOptions
from darkmatter.commands.analyses.data import Data, kind_of, open_data
from darkmatter.commands.analyses.finish import finish
from darkmatter.commands.analyses.scale_grid import GridOptions, train_grid
from darkmatter.commands.console import Steps, say, steps
from darkmatter.commands.decompose import memory_bytes
from darkmatter.commands.preflight import check_run
from darkmatter.errors import InputError
from darkmatter.groups import plan_groups
from darkmatter.inference import Estimate
from darkmatter.plots_analyses.scale import save_scaling_figure
from darkmatter.report import percent, percent_interval
from darkmatter.stream import accumulate

_KINDS = ("world", "model", "cache")


def run_scale(
    options: DataOptions, grid: GridOptions, *, at_l0: str | None, margin: float, draws: int, memory: str | None
) -> None:
    """Run the analysis.

    Args:
        options: The shared options.
        grid: SAEs to train on a world.
        at_l0: L0s to compare widths at, with commas.
        margin: Slope below which nonlinear error counts as constant in width.
        draws: Bootstrap draws.
        memory: What the sums of one pass may take.

    Raises:
        InputError: Anything wrong with the options or the data.
    """
    levels, budget = _levels(at_l0), memory_bytes(memory)
    if not margin > 0 or draws < 1:
        raise InputError(f"--margin is {margin:g} and --draws {draws}, expected both above 0")
    with steps() as bars:
        data = open_data(_with_grid(options, grid, bars), bars, known=_KINDS, weights=True)
        widths = {name: sae.d_sae for name, sae in data.saes.items()}
        different = len({width for name, width in widths.items() if not is_control(name)})
        if different < 3:
            raise InputError(
                f"the SAEs have {different} different width(s), expected at least 3 for a slope and 4 for an "
                "asymptote: give more --sae or --sae-glob, or --widths on a world"
            )
        points, l0s = _measure(data, budget, bars)
        result = scaling_law(points, widths, l0s, at_l0=levels, margin=margin, draws=draws, seed=data.seed)
    dense = None if data.world is None else data.world.dense_variance / data.world.variance
    finish(
        "scale",
        result,
        data,
        draw=lambda path: save_scaling_figure(path, result, dense),
        show=lambda: _show(result, dense),
        more=None if dense is None else {"truth": {"dense_share": dense}},
    )


def _levels(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--at-l0 is {text!r}, expected numbers with commas, such as 32,64") from None


def _with_grid(options: DataOptions, grid: GridOptions, bars: Steps) -> DataOptions:
    """Train the grid, if one is asked for, and name its SAEs as if they had been given.

    Raises:
        InputError: A grid beside SAEs that are there, or without a world.
    """
    if not grid.asked:
        return options
    if kind_of(options, _KINDS) != "world":
        raise InputError("--widths trains SAEs on a --world: on a model train them with `darkmatter train-sae`")
    if options["sae"] or options["sae_glob"]:
        raise InputError("--sae and --widths are both given, expected SAEs that there are or SAEs to train")
    check_run(folds=options["folds"], out=options["out"], device="cpu")
    saes = train_grid(grid, world=options["world"], out=options["out"], bars=bars)
    return replace(options, values={**options.values, "sae": saes})


def _measure(data: Data, budget: int | None, bars: Steps) -> tuple[Points, dict[str, float]]:
    """One pass, or one for each group of SAEs whose sums fit."""
    source = CountingSource(data.source, data.saes)
    if budget is None:
        groups: tuple[tuple[str, ...], ...] = (source.names,)
    else:
        groups = plan_groups(source.d_model, source.names, data.folds, budget)
    found = []
    for number, names in enumerate(groups, start=1):
        title = "moments" if len(groups) == 1 else f"moments {number}/{len(groups)}"
        with bars.stage(title, data.n_tokens) as stage:
            moments = accumulate(
                SomeSaes(source, names),
                folds=data.folds,
                device=data.device,
                checkpoint=data.checkpoint if len(groups) == 1 else data.checkpoint.part(str(number)),
                progress=stage,
            )
        found.append(points_of(moments))
        del moments  # before the sums of the next group
    return Points.join(found), source.l0s


def _show(result: ScalingLaw, dense: float | None) -> None:
    console = Console(highlight=False)
    for level in result.levels:
        console.print(_shares(level, result))
        console.print(_laws(level, dense))
    for name, surface in (("FVU", result.surface), ("FVU nonlinear", result.surface_nonlinear)):
        if surface is not None:
            console.print(_surface(name, surface), markup=False)
    for name, control in result.controls.items():
        console.print(
            f"Control {name}: FVU {percent_interval(control.fvu)}, nonlinear {percent_interval(control.nonlinear)}",
            style="dim",
            markup=False,
        )
    for warning in result.warnings:
        say(f"Warning: {warning}")


def _shares(level: Level, result: ScalingLaw) -> Table:
    title = f"L0 {level.l0:.3g}: shares of the variance of x by width [95 %]"
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in ("latents", "FVU", "nonlinear", "linear", "absent*", "lasting\nlinear*"):
        table.add_column(heading, justify="right")
    for w in level.widths:
        parts = (w.fvu, w.nonlinear, w.linear, w.absent, w.lasting_linear)
        table.add_row(f"{w.width:,}", *map(_share, parts), end_section=True)
    table.caption = (
        f"{result.n_tokens:,} tokens, {result.n_groups:,} documents, {result.n_folds} folds. "
        "* by the law's asymptote, an extrapolation"
    )
    table.caption_justify = "left"
    return table


def _laws(level: Level, dense: float | None) -> Table:
    table = Table(title=f"L0 {level.l0:.3g}: over width", title_justify="left", header_style="bold")
    table.add_column("quantity", no_wrap=True)
    for heading in ("FVU", "FVU nonlinear"):
        table.add_column(heading, justify="right")
    laws, slopes = (level.law, level.law_nonlinear), (level.fvu_slope, level.nonlinear_slope)

    def row(label: str, of: Any, items: tuple[Law | None, Law | None] | tuple[Slope | None, Slope | None]) -> None:
        if any(item is not None for item in items):
            table.add_row(label, *("–" if item is None else of(item) for item in items))

    row("asymptote c", lambda law: _share(law.asymptote), laws)
    row("  bootstrap, these SAEs", lambda law: _share(law.bootstrap_asymptote), laws)
    row("exponent m", lambda law: _number(law.exponent), laws)
    row("scatter about the law", lambda law: _share(law.runs_deviation), laws)
    if any(law is not None and not math.isnan(law.p_fit) for law in laws):
        row("  p: as among runs", lambda law: f"{law.p_fit:.2g}", laws)
    table.add_section()
    row("slope over log width", lambda slope: _number(slope.slope), slopes)
    row("  p: constant", lambda slope: f"{slope.p_constant:.2g}", slopes)
    row("  p: beyond the margin", lambda slope: f"{slope.p_equivalent:.2g} (±{slope.margin:g})", slopes)
    row("  so it", lambda slope: slope.verdict, slopes)
    notes = [f"no law: {level.reason}"] if level.reason else []
    if dense is not None:
        notes.append(f"the world's dense part, which no feature holds, is {percent(dense)} of Var x")
    table.caption, table.caption_justify = "; ".join(notes), "left"
    return table


def _surface(name: str, surface: Surface) -> str:
    parts: Mapping[str, Estimate | None] = {
        "width": surface.width_slope,
        "L0": surface.l0_slope,
        "interaction": surface.interaction,
    }
    told = ", ".join(f"{key} {value:.3f}" for key, value in parts.items() if value is not None)
    return f"Surface of log {name}, elasticities in the middle of the grid: {told}"


def _share(estimate: Estimate) -> str:
    """A share with its interval; a dash where it does not exist."""
    return "–" if math.isnan(estimate.value) else percent_interval(estimate).replace(" [", "\n[")


def _number(estimate: Estimate) -> str:
    """A number with its interval, which may be open above."""
    high = f"{estimate.high:.3f}]" if math.isfinite(estimate.high) else "∞)"
    return f"{estimate.value:.3f}\n[{estimate.low:.3f}, {high}"
