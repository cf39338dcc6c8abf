"""The figure of a sweep: shares of the error against the swept axis, small multiples by kind of SAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkmatter.plots import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

Ends = tuple[float, float, float]

MAX_ROWS = 6
"""Most values of the second axis that get a row of panels each."""

_SEEDS = ("seed", "sae-seed")
_LABELS = {"latents": "latents of the SAE", "k": "active latents per token", "kind": "", "seed": "seed"}
_NAMES = {
    "fvu": "FVU, measured",
    "fvu_nonlinear": "nonlinear share, measured",
    "introduced": "introduced by the SAE, truth",
    "truth": "truth of the measured",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One cell of a sweep, as it is drawn.

    Attributes:
        kind: Architecture, or kind of introduced error.
        axes: Its value on every axis, as text.
        measured: (value, low, high) of "fvu" and "fvu_nonlinear", shares of Var x.
        truth: The same of "fvu", "nonlinear" and "introduced", where the truth is known.
    """

    kind: str
    axes: Mapping[str, str]
    measured: Mapping[str, Ends]
    truth: Mapping[str, Ends]


def save_sweep_figure(path: Path, points: Sequence[Point], axes: Mapping[str, Sequence[str]]) -> None:
    """Draw every cell with its interval and, where it is known, the truth.

    Args:
        path: The file to write (.png, .pdf or .svg), atomically.
        points: The cells; at least one.
        axes: Values by axis. The first numeric one that varies (seeds come last) is drawn along x, the next in rows.
    """
    across, down = _layout(axes)
    kinds = [""] if across == "kind" else list(dict.fromkeys(point.kind for point in points))
    levels = [""] if down is None else list(axes[down])
    labels = len({point.kind for point in points}) if across == "kind" else len(axes[across])
    width = max(5.2, 0.9 + len(kinds) * max(3.1, 0.55 * labels))
    figure = new_figure(width, 1.4 + 2.5 * len(levels))
    grid = figure.subplots(len(levels), len(kinds), sharex=across != "kind", sharey=True, squeeze=False)
    for row, level in enumerate(levels):
        for column, kind in enumerate(kinds):
            panel: Axes = grid[row][column]
            chosen = [
                point for point in points if kind in {"", point.kind} and (down is None or point.axes[down] == level)
            ]
            _panel(panel, chosen, across, axes.get(across, [""]))
            title = ", ".join(filter(None, [kind, f"{down} {level}" if down else ""]))
            panel.set_title(title, fontsize=10)
            if row == len(levels) - 1:
                panel.set_xlabel(_LABELS.get(across, across))
            if column == 0:
                panel.set_ylabel("share of the variance of x")
    grid[0][0].set_ylim(bottom=0)
    handles: dict[str, Artist] = {}
    for panel in figure.axes:
        found, names = panel.get_legend_handles_labels()
        handles.update(zip(names, found, strict=True))
    shown = [name for name in _NAMES.values() if name in handles]
    columns = len(shown) if width > 9 else 2
    figure.legend(
        [handles[name] for name in shown], shown, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    save_figure(figure, path)


def _layout(axes: Mapping[str, Sequence[str]]) -> tuple[str, str | None]:
    """The axis along x, and the one in rows."""
    varied = [name for name, values in axes.items() if len(values) > 1 and name not in _SEEDS]
    others = [name for name in varied if name not in {"kind", "architecture", "introduced"}]
    numeric = [name for name in others if all(_number(value) is not None for value in axes[name])]
    seeds = [name for name in axes if name in _SEEDS and len(axes[name]) > 1]
    across = next(iter([*numeric, *others, *varied, *seeds, *axes]))
    if across in {"architecture", "introduced"}:
        across = "kind"
    rest = [name for name in others if name != across and len(axes[name]) <= MAX_ROWS]
    return across, next(iter(rest), None)


def _panel(panel: Axes, points: Sequence[Point], across: str, values: Sequence[str]) -> None:
    named = across == "kind"
    labels = list(dict.fromkeys(point.kind for point in points)) if named else list(values)
    numbers = [number for label in labels if (number := _number(label)) is not None]
    scaled = not named and len(numbers) == len(labels)
    spots = dict(zip(labels, numbers if scaled else range(len(labels)), strict=True))
    log = scaled and min(numbers) > 0 and max(numbers) / min(numbers) >= 4
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.kind if named else point.axes[across], []).append(point)
    placed = [
        (spots[label], x, point)
        for label, group in groups.items()
        for x, point in zip(_dodged(spots[label], len(group), list(spots.values()), log=log), group, strict=True)
    ]
    for quantity, colour, marker in (("fvu", "dense", "o"), ("fvu_nonlinear", "nonlinear", "s")):
        found = [(spot, x, point.measured[quantity]) for spot, x, point in placed]
        _estimates(panel, found, label=_NAMES[quantity], colour=colour, marker=marker, joined=scaled)
    true = [(spot, x, point.truth) for spot, x, point in placed if point.truth]
    if true:
        found = [(spot, x, truth["introduced"]) for spot, x, truth in true]
        _estimates(panel, found, label=_NAMES["introduced"], colour="introduced", marker="D", joined=scaled, style=":")
        for quantity in ("fvu", "nonlinear"):
            heights = [truth[quantity][0] for _, _, truth in true]
            at = [x for _, x, _ in true]
            panel.plot(
                at, heights, ls="none", marker="_", ms=9, mew=1.2, color="black", label=_NAMES["truth"], zorder=3
            )
    if log:
        panel.set_xscale("log")
    panel.set_xticks(list(spots.values()), labels)
    if not scaled and len(labels) > 3:
        for text in panel.get_xticklabels():
            text.set(rotation=35, ha="right", rotation_mode="anchor")
    panel.minorticks_off()
    panel.margins(x=0.12)
    panel.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", lw=0.4, alpha=0.5)


def _estimates(
    panel: Axes,
    found: Sequence[tuple[float, float, Ends]],
    *,
    label: str,
    colour: str,
    marker: str,
    joined: bool,
    style: str = "-",
) -> None:
    """Draw estimates with their intervals and, where the axis is a scale, a line through the means at every place."""
    at, ends = [x for _, x, _ in found], [estimate for _, _, estimate in found]
    values = [value for value, _, _ in ends]
    # rounding may put a value just outside an interval without width
    arms = [[max(0.0, value - low) for value, low, _ in ends], [max(0.0, high - value) for value, _, high in ends]]
    look: dict[str, Any] = {"fmt": marker, "ms": 4.5, "capsize": 2.5, "lw": 1.1, "color": COLOURS[colour]}
    panel.errorbar(at, values, yerr=arms, label=label, **look)
    if joined:
        spots = sorted({spot for spot, _, _ in found})
        here = [[value for spot, _, (value, _, _) in found if spot == place] for place in spots]
        means = [sum(group) / len(group) for group in here]
        panel.plot(spots, means, color=COLOURS[colour], ls=style, lw=1.0, alpha=0.7)


def _dodged(spot: float, count: int, spots: Sequence[float], *, log: bool) -> list[float]:
    """Put cells of one place side by side, so that each shows its own interval and truth."""
    low, high = min(spots), max(spots)
    shifts = [(i - (count - 1) / 2) * min(0.022, 0.1 / count) for i in range(count)]
    if log:
        return [spot * (high / low) ** shift for shift in shifts]
    return [spot + shift * ((high - low) or 1.0) for shift in shifts]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
