"""The figure of a predictor ladder: rungs as bars, and what affine maps explain by rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkmatter.analyses.controls import is_control
from darkmatter.analyses.ladder import Ladder, RankCurve, SaeLadder
from darkmatter.inference import Estimate
from darkmatter.plots import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RUNGS = {
    "gain": "gain of\nSae(x)",
    "coordinate_gain": "gain per\ncoordinate",
    "latent_gain": "gain per\nlatent",
    "linear": "affine\nmap of x",
    "network": "wide ReLU\nnetwork",
    "mlp": "small\nMLP",
    "x_gain": "gain\nof x",
    "x_coordinate_gain": "gain of x per\ncoordinate",
}
"""What the rungs are called."""

_ORDER = ("dense", "introduced", "absent", "nonlinear", "interference", "linear")
_GREYS = ("#8c8c8c", "#b5b5b5", "#d4d4d4")
_GAP = 0.6


def save_ladder_figure(path: Path, result: Ladder, truth: Mapping[str, Mapping[str, float]] | None = None) -> None:
    """Draw the rungs of every SAE, and the curve by rank; null controls in grey, truth as diamonds.

    Args:
        path: The file to write, atomically.
        result: The ladders.
        truth: Population values by SAE and rung, where they are known.
    """
    truth = truth or {}
    first = next(iter(result.saes.values()))
    rungs = [rung.name for rung in first.rungs if any(_defined(s[rung.name].r2) for s in result.saes.values())]
    names = [*rungs, *(rung.name for rung in first.in_x)]
    figure = new_figure(5.6 + 0.78 * len(names), 4.6)
    bars, curve = figure.subplots(1, 2, width_ratios=(0.78 * len(names), 4.0))
    places = {name: i + (_GAP if i >= len(rungs) else 0.0) for i, name in enumerate(names)}
    colours = _colours(list(result.saes))
    for i, (name, ladder) in enumerate(result.saes.items()):
        _bars(bars, ladder, places, i, len(result.saes), colours[name], truth.get(name, {}))
        _curve(curve, ladder, colours[name], truth.get(name, {}))
    bars.axvline(len(rungs) - 0.5 + _GAP / 2, color="#999999", lw=0.8, ls=":")
    bars.set_xticks(list(places.values()), [RUNGS.get(name, name.replace("_", " ")) for name in names], fontsize=8)
    bars.axhline(0, color="black", lw=0.8)
    bars.set_ylabel("share of Var e explained, out of fold")
    bars.set_title("Predictors of the error e = x − Sae(x)", fontsize=10.5)
    curve.set_title("affine maps of x by rank", fontsize=10.5)
    curve.set_xscale("log")
    curve.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    curve.set_xlabel("rank")
    curve.set_ylim(bars.get_ylim())
    for axes in (bars, curve):
        axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, list(result.saes), colours, first, marks=bool(truth))
    save_figure(figure, path)


def _colours(names: list[str]) -> dict[str, str]:
    own, grey = 0, 0
    found = {}
    for name in names:
        if is_control(name):
            found[name] = _GREYS[grey % len(_GREYS)]
            grey += 1
        else:
            found[name] = COLOURS[_ORDER[own % len(_ORDER)]]
            own += 1
    return found


def _defined(estimate: Estimate) -> bool:
    return math.isfinite(estimate.value)


def _bars(
    axes: Axes,
    ladder: SaeLadder,
    places: Mapping[str, float],
    i: int,
    many: int,
    colour: str,
    truth: Mapping[str, float],
) -> None:
    width = 0.8 / many
    for rung in (*ladder.rungs, *ladder.in_x):
        if not _defined(rung.r2):
            continue
        at = places[rung.name] - 0.4 + width * (i + 0.5)
        style: dict[str, Any] = {"hatch": "////", "edgecolor": "white"} if rung.heldout_only else {}
        axes.bar(at, rung.r2.value, width * 0.94, color=colour, lw=0, **style)
        arms = [[max(0.0, rung.r2.value - rung.r2.low)], [max(0.0, rung.r2.high - rung.r2.value)]]
        axes.errorbar(at, rung.r2.value, yerr=arms, color="black", capsize=min(3.0, 14 * width), lw=1.0, fmt="none")
        if rung.name in truth:
            axes.plot(at + 0.27 * width, truth[rung.name], "D", ms=4.5, mfc="white", mec="black", mew=1.0, zorder=5)


def _curve(axes: Axes, ladder: SaeLadder, colour: str, truth: Mapping[str, float]) -> None:
    curve: RankCurve = ladder.curve
    axes.plot(curve.ranks, [r2.value for r2 in curve.r2], color=colour, lw=1.8)
    axes.fill_between(
        curve.ranks, [r2.low for r2 in curve.r2], [r2.high for r2 in curve.r2], color=colour, alpha=0.25, lw=0
    )
    if is_control(ladder.name) or not _defined(curve.r90):
        return
    height = 0.9 * ladder["linear"].r2.value
    arms = [[curve.r90.value - curve.r90.low], [curve.r90.high - curve.r90.value]]
    axes.errorbar(curve.r90.value, height, xerr=arms, fmt="o", ms=5, color=colour, mec="black", capsize=3, zorder=4)
    axes.annotate(
        f"90 %: {curve.r90.value:.0f}",
        (curve.r90.high, height),
        xytext=(6, -12),
        textcoords="offset points",
        fontsize=8.5,
        color=colour,
    )
    for name, value in truth.items():
        if name.startswith("rank_"):
            axes.plot(int(name.removeprefix("rank_")), value, "D", ms=4.5, mfc="white", mec="black", zorder=5)


def _legend(figure: Any, names: list[str], colours: Mapping[str, str], first: SaeLadder, *, marks: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=colours[name], label=name) for name in names]
    if any(rung.heldout_only for rung in first.rungs):
        handles.append(Patch(facecolor="#666666", hatch="////", edgecolor="white", label="trained: lower bound"))
    if marks:
        handles.append(Line2D([], [], ls="", marker="D", mfc="white", mec="black", ms=5, label="truth, closed form"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), frameon=False, fontsize=9)
