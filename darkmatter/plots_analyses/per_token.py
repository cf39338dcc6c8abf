"""The figure of `darkmatter per-token`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from darkmatter.analyses.controls import is_control
from darkmatter.analyses.per_token import Breakdown, Pair, PerToken
from darkmatter.inference import Estimate
from darkmatter.plots import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY = "#8c8c8c"
_LINES = (COLOURS["dense"], COLOURS["introduced"], COLOURS["absent"], COLOURS["interference"], COLOURS["nonlinear"])


def save_per_token_figure(path: Path, result: PerToken) -> None:
    """Draw the prediction, the nonlinear share by position, and the parts of the error by frequency and class.

    Args:
        path: The file to write (.png, .pdf or .svg), atomically.
        result: What was found.
    """
    first = next(iter(result.saes))
    panels: list[str] = []
    if result.pair is not None:
        panels.append("pair")
    known = ("by_position", "by_frequency", "by_class")
    panels += [name for name in known if getattr(result.saes[first], name) is not None]
    panels = panels or ["none"]
    figure = new_figure(5.4 * min(2, len(panels)), 3.9 * math.ceil(len(panels) / 2))
    grid = figure.subplots(math.ceil(len(panels) / 2), min(2, len(panels)), squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        if panel == "pair" and result.pair is not None:
            _prediction(axes, result.pair)
        elif panel == "by_position":
            _positions(axes, result)
        elif panel == "none":
            axes.text(0.5, 0.5, "no positions, token ids or second SAE", ha="center")
        else:
            _classes(axes, first, getattr(result.saes[first], panel), tenths=panel == "by_frequency")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(f"Errors token by token ({result.n_tokens:,} tokens, 95 % intervals)", fontsize=12)
    save_figure(figure, path)


def _prediction(axes: Axes, pair: Pair) -> None:
    names = list(pair.norm.r2)
    for offset, (label, found, colour) in zip(
        (-0.2, 0.2),
        (("norm", pair.norm, COLOURS["dense"]), ("squared norm", pair.square, COLOURS["linear"])),
        strict=True,
    ):
        for i, name in enumerate(names):
            estimate = found.r2[name]
            if not math.isnan(estimate.value):
                axes.barh(-i - offset, max(0.0, estimate.value), 0.36, color=colour, label=label if not i else None)
                _whisker(axes, estimate, -i - offset)
    axes.set_yticks([-i for i in range(len(names))], [name.replace(" + ", " +\n", 1) for name in names], fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("R², out of fold")
    axes.set_title(f"Error of {pair.large} from norms of {pair.small}", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _positions(axes: Axes, result: PerToken) -> None:
    colours, grey = iter(_LINES * len(result.saes)), iter(("--", ":", "-.") * len(result.saes))
    labels: Sequence[str] = ()
    for name, found in result.saes.items():
        if found.by_position is None:
            continue
        shares = [share for share in found.by_position.shares if not math.isnan(share.nonlinear_share.value)]
        labels = max(labels, [share.name for share in shares], key=len)
        colour, line = (_GREY, next(grey)) if is_control(name) else (next(colours), "-")
        x, values = range(len(shares)), [share.nonlinear_share.value for share in shares]
        axes.plot(x, values, line, marker="o", ms=3.5, lw=1.3, color=colour, label=name)
        low, high = ([getattr(share.nonlinear_share, end) for share in shares] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
    axes.set_ylim(0, 1.2 * max(1.0, axes.get_ylim()[1]))
    axes.set_xlabel("position in the document")
    axes.set_ylabel("nonlinear error / error")
    axes.set_title("Nonlinear share by position", fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")


def _classes(axes: Axes, name: str, breakdown: Breakdown, *, tenths: bool) -> None:
    for i, share in enumerate(breakdown.shares):
        if math.isnan(share.fvu.value):
            continue
        linear, nonlinear = share.linear.value, share.nonlinear.value
        axes.bar(i, nonlinear, 0.7, color=COLOURS["nonlinear"], label="nonlinear in x" if not i else None)
        axes.bar(i, linear, 0.7, bottom=nonlinear, color=COLOURS["linear"], label="linear in x" if not i else None)
        for estimate, shift in ((share.nonlinear, -0.12), (share.fvu, 0.12)):
            arms = [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
            axes.errorbar(i + shift, estimate.value, yerr=arms, fmt="none", color="black", capsize=2, lw=1)
    names = [share.name for share in breakdown.shares]
    if tenths:
        names = [label.split(":")[0] for label in names]
        axes.set_xlabel("tenths of the tokens, from rare to frequent ids")
    axes.set_ylim(top=1.2 * axes.get_ylim()[1])  # room for the legend
    angle = 0 if tenths else 30
    axes.set_xticks(range(len(names)), names, rotation=angle, ha="center" if tenths else "right", fontsize=8)
    axes.set_ylabel("error / variance of x")
    axes.set_title(f"{name}: error by {'frequency of the token' if tenths else 'kind of token'}", fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")


def _whisker(axes: Axes, estimate: Estimate, y: float) -> None:
    arms = [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
    axes.errorbar(estimate.value, y, xerr=arms, fmt="none", color="black", capsize=2, lw=1)
