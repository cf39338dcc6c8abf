"""The figure of a scaling analysis: laws over width, stacked bands, and the surface over width and L0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from darkmatter.analyses.scaling import Law, Level, ScalingLaw, Surface
from darkmatter.inference import Estimate
from darkmatter.plots import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_T = TypeVar("_T", int, float)
_MOST_LEVELS = 3
_INK = {"fvu": "#333333", "nonlinear": COLOURS["nonlinear"]}
_STYLES = {"shuffled": ":", "noise": "-.", "random": (0, (6, 2))}
_LABEL = {"fvu": "FVU", "nonlinear": "nonlinear part, FVU$_{nl}$"}


def save_scaling_figure(path: Path, result: ScalingLaw, dense: float | None = None) -> None:
    """Draw laws, bands and the surface; null controls in grey, the dense part of a world as a line of dashes.

    Args:
        path: The file to write, atomically.
        result: The analysis.
        dense: Share of Var x in a world's dense part, where there is one.
    """
    levels = _some(result.levels)
    contours = result.surface is not None and result.surface_nonlinear is not None
    columns = len(levels) + contours
    figure = new_figure(1.2 + 3.9 * columns, 7.4)
    grid = figure.subplots(2, columns, squeeze=False)
    for i, level in enumerate(levels):
        _laws(grid[0, i], level, result, dense)
        _bands(grid[1, i], level)
        grid[0, i].set_title(f"L0 = {level.l0:.3g}", fontsize=11)
        for axes in grid[:, i]:
            _width_axis(axes, [w.width for w in level.widths])
    grid[0, 0].set_ylabel("share of the variance of x")
    grid[1, 0].set_ylabel("share of the variance of x")
    top = max(axes.get_ylim()[1] for axes in grid[0, : len(levels)])
    for axes in grid[0, : len(levels)]:
        axes.set_ylim(0, 1.25 * top)
    if contours:
        _contour(grid[0, -1], result, result.surface, "fvu")
        _contour(grid[1, -1], result, result.surface_nonlinear, "nonlinear")
    for row, place in ((0, "upper right"), (1, "upper right")):
        grid[row, 0].legend(loc=place, fontsize=7.5, framealpha=0.85)
    figure.suptitle(f"Error over width ({result.n_tokens:,} tokens, 95 % intervals)", fontsize=12)
    save_figure(figure, path)


def _some(levels: Sequence[Level]) -> list[Level]:
    """The first, the last and one between, of many."""
    if len(levels) <= _MOST_LEVELS:
        return list(levels)
    return [levels[i] for i in (0, len(levels) // 2, len(levels) - 1)]


def _width_axis(axes: Axes, widths: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [f"{w:,}" if w < 10_000 else f"{w / 1000:.0f}k" for w in widths], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("width (latents, log scale)")
    axes.spines[["top", "right"]].set_visible(False)


def _laws(axes: Axes, level: Level, result: ScalingLaw, dense: float | None) -> None:
    widths = [w.width for w in level.widths]
    for kind, law in (("fvu", level.law), ("nonlinear", level.law_nonlinear)):
        points = [w.fvu if kind == "fvu" else w.nonlinear for w in level.widths]
        if law is not None:
            _law(axes, law, kind, max(widths))
        arms = np.array([[p.value - p.low, p.high - p.value] for p in points]).T
        axes.errorbar(
            widths,
            [p.value for p in points],
            yerr=np.maximum(arms, 0),
            fmt="o",
            color=_INK[kind],
            ms=4.5,
            capsize=3,
            label=_LABEL[kind],
            zorder=3,
        )
    for name, control in result.controls.items():
        kind = name.rpartition("~")[2]
        style = _STYLES.get(kind, "-")
        axes.axhline(
            control.nonlinear.value, color="#aaaaaa", lw=1.2, ls=style, zorder=0, label=f"control {kind}: nonlinear"
        )
    if dense is not None:
        axes.axhline(dense, color=COLOURS["dense"], lw=1.2, ls="--", label="dense part of the world")


def _law(axes: Axes, law: Law, kind: str, widest: int) -> None:
    w, low, best, high = np.array(law.curve).T
    near = w <= 4.2 * widest
    axes.fill_between(w[near], low[near], high[near], color=_INK[kind], alpha=0.13, lw=0)
    axes.plot(w[near], best[near], color=_INK[kind], lw=1.4)
    c = law.asymptote
    if kind == "fvu":
        axes.axhspan(c.low, c.high, color=COLOURS["introduced"], alpha=0.12, lw=0)
        axes.axhline(c.value, color=COLOURS["introduced"], lw=1.1, ls=":", label="asymptote c of FVU, with interval")


def _bands(axes: Axes, level: Level) -> None:
    """Nonlinear and linear as measured; what of the linear is absent features by the law, hatched: extrapolated."""
    widths = np.array([w.width for w in level.widths], dtype=float)
    nonlinear = np.array([w.nonlinear.value for w in level.widths])
    fvu = np.array([w.fvu.value for w in level.widths])
    axes.fill_between(widths, 0, nonlinear, color=COLOURS["nonlinear"], alpha=0.85, lw=0, label="nonlinear")
    axes.fill_between(widths, nonlinear, fvu, color=COLOURS["linear"], alpha=0.85, lw=0, label="linear")
    if level.law is not None:
        c = level.law.asymptote
        axes.fill_between(
            widths,
            np.minimum(np.full_like(fvu, c.value), fvu),
            fvu,
            facecolor="none",
            edgecolor=COLOURS["absent"],
            hatch="////",
            lw=0,
            label="above the asymptote: absent\nfeatures, if the law holds",
        )
        axes.axhline(c.value, color=COLOURS["introduced"], lw=1.3, ls=":")
        axes.axhspan(c.low, min(c.high, float(fvu.max())), color=COLOURS["introduced"], alpha=0.12, lw=0)
    for w in level.widths:
        for shift, estimate in ((0.98, w.nonlinear), (1.02, w.fvu)):
            _whisker(axes, w.width * shift, estimate)
    axes.set_ylim(0, 1.35 * float(fvu.max()))


def _whisker(axes: Axes, x: float, estimate: Estimate) -> None:
    axes.plot([x, x], [estimate.low, estimate.high], color="black", lw=1.2, solid_capstyle="butt")


def _contour(axes: Axes, result: ScalingLaw, surface: Surface | None, kind: str) -> None:
    assert surface is not None
    saes = list(result.saes.values())
    widths, l0s = [s.width for s in saes], [s.l0 for s in saes]
    w = np.geomspace(min(widths), max(widths), 60)
    k = np.geomspace(min(l0s), max(l0s), 60)
    z = np.array([[surface.at(float(a), float(b)) for a in w] for b in k])
    filled = axes.contourf(w, k, z, levels=10, cmap="Greys" if kind == "fvu" else "RdPu", alpha=0.75)
    lines = axes.contour(w, k, z, levels=filled.levels, colors="#444444", linewidths=0.6)
    axes.clabel(lines, fontsize=7, fmt="%.3g")
    axes.plot(widths, l0s, "o", color="white", mec="black", ms=5, clip_on=False, zorder=5)
    axes.set_yscale("log")
    ticks = _few(sorted({round(value, 1) for value in l0s if math.isfinite(value)}))
    axes.set_yticks(ticks, [f"{value:g}" for value in ticks], fontsize=8)
    _width_axis(axes, _few(sorted(set(widths))))
    axes.set_ylabel("L0 (log scale)")
    axes.set_title(f"surface of {_LABEL[kind]}", fontsize=10)


def _few(values: list[_T]) -> list[_T]:
    """At most six of many, for ticks."""
    return values[:: max(1, math.ceil(len(values) / 6))]
