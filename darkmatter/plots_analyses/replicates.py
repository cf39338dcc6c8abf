"""The figure of a comparison of replicates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from darkmatter.analyses.replicates import ReplicateBracket
from darkmatter.plots import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY = "#9A9A9A"
_SHADES = ("#0072B2", "#009E73", "#E69F00", "#56B4E9", "#D55E00", "#000000")
_ANNOTATED = 12
"""SAEs up to which every cell of the matrix is annotated."""


def save_replicates_figure(
    path: Path, result: ReplicateBracket, truth: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Draw the brackets, the matrix of shared nonlinear error, and how both depend on what cannot be known.

    Args:
        path: The file to write, atomically.
        result: The comparison.
        truth: True shares by SAE, where known.
    """
    order = _order(result)
    side = min(5.4, 2.6 + 0.5 * len(order))
    figure = new_figure(8.2 + side, max(4.4, 1.6 + 0.5 * len(order)))
    grid = figure.add_gridspec(2, 3, width_ratios=[4.6, side, 3.6])
    _brackets(figure.add_subplot(grid[:, 0]), result, order, truth or {})
    _matrix(figure.add_subplot(grid[:, 1]), result, order)
    if result.sets:
        _similarity(figure.add_subplot(grid[0, 2]), result)
        _sensitivity(figure.add_subplot(grid[1, 2]), result)
    else:
        _sensitivity(figure.add_subplot(grid[:, 2]), result)
    figure.suptitle(
        f"What {sum(not s.control for s in result.saes.values())} SAEs on the same tokens share "
        f"({result.n_tokens:,} tokens, 95 % intervals)",
        fontsize=11,
    )
    save_figure(figure, path)


def _order(result: ReplicateBracket) -> list[str]:
    """Recipes together, controls last."""
    grouped = [name for found in result.sets for name in found.saes]
    rest = [name for name in result.saes if name not in grouped]
    return [*grouped, *(n for n in rest if not result.saes[n].control), *(n for n in rest if result.saes[n].control)]


def _brackets(axes: Axes, result: ReplicateBracket, order: list[str], truth: Mapping[str, Mapping[str, Any]]) -> None:
    for row, name in enumerate(order):
        sae = result.saes[name]
        colour = _GREY if sae.control else COLOURS["nonlinear"]
        low = 0.0 if sae.lower_from == "none" else max(0.0, sae.lower_end.value)
        top = sae.upper_end.value
        axes.barh(row, top - low, 0.5, left=low, color=colour, alpha=0.45 if sae.lower_from == "none" else 0.9)
        for end, estimate in ((low, sae.lower_end), (top, sae.upper_end)):
            if estimate.value == estimate.value:
                arms = [[max(0.0, end - max(0.0, estimate.low))], [max(0.0, estimate.high - end)]]
                axes.errorbar(end, row, xerr=arms, color="black", capsize=3, lw=1.1, fmt="none")
        if name in truth:
            axes.plot(
                truth[name]["introduced"].value, row, "D", color=COLOURS["introduced"], ms=7, mec="white", label="truth"
            )
        axes.plot(sae.one_sae.value, row, "|", color="black", ms=13, label="one SAE alone: lower end (T5b)")
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.set_xlabel("share of the variance of x")
    axes.set_title("bracket of introduced error (pale: no lower end)", fontsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    axes.legend(
        unique.values(), unique.keys(), fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14)
    )


def _matrix(axes: Axes, result: ReplicateBracket, order: list[str]) -> None:
    size = len(order)
    values = np.eye(size)
    covariances = np.zeros((size, size))
    for i, first in enumerate(order):
        covariances[i, i] = result.saes[first].upper_end.value
        for j, second in enumerate(order[:i]):
            pair = result.pair(first, second)
            values[i, j] = values[j, i] = pair.correlation.value
            covariances[i, j] = covariances[j, i] = pair.shared.value
    axes.imshow(values, cmap="RdPu", vmin=0, vmax=1)
    if size <= _ANNOTATED:
        for i in range(size):
            for j in range(size):
                text = f"{100 * covariances[i, j]:.2f} %" if i == j else f"{values[i, j]:.2f}"
                if i < j:
                    text = f"{100 * covariances[i, j]:.2f} %"
                dark = values[i, j] > 0.55
                axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color="white" if dark else "black")
    axes.set_xticks(range(size), order, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(size), order, fontsize=8)
    edge = 0
    for found in result.sets:
        axes.add_patch(_frame(edge, len(found.saes)))
        edge += len(found.saes)
    axes.set_title("shared nonlinear error: correlation below,\nCov(r, r′) on and above the diagonal", fontsize=9.5)


def _frame(start: int, size: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((start - 0.5, start - 0.5), size, size, fill=False, ec="black", lw=1.6)


def _similarity(axes: Axes, result: ReplicateBracket) -> None:
    for number, found in enumerate(result.sets):
        points = np.array(found.by_similarity)
        label = f"{len(found.saes)} × {found.recipe}"
        axes.plot(points[:, 0], points[:, 1], "-o", ms=3, color=_SHADES[number % len(_SHADES)], label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlim(right=1)
    _finish(axes, "κ: share of interference in common", "lower end of a recipe", "if interferences differ (T8)")


def _sensitivity(axes: Axes, result: ReplicateBracket) -> None:
    for number, (name, sae) in enumerate((n, s) for n, s in result.saes.items() if not s.control):
        points = np.array(sae.sensitivity)
        axes.plot(points[:, 0], points[:, 1], lw=1.4, color=_SHADES[number % len(_SHADES)], label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    _finish(axes, "s: mean shrinkage of learned features", "introduced error", "from one SAE alone (T5b)")


def _finish(axes: Axes, x: str, y: str, title: str) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.set_xlabel(x, fontsize=8.5)
    axes.set_ylabel(y, fontsize=8.5)
    axes.set_title(title, fontsize=9.5)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if 0 < len(axes.lines) <= 8:
        axes.legend(fontsize=7, frameon=False, loc="best")
