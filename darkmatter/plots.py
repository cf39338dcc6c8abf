"""Figures; matplotlib is imported only when one is drawn, and never through its global state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkmatter.files import replacing
from darkmatter.inference import Estimate
from darkmatter.report import percent
from darkmatter.results import Decomposition

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# colours that stay apart in the common forms of colour blindness (Okabe and Ito)
COLOURS = {
    "linear": "#56B4E9",
    "nonlinear": "#CC79A7",
    "dense": "#0072B2",
    "absent": "#009E73",
    "distorted": "#F0E442",
    "interference": "#E69F00",
    "introduced": "#D55E00",
}

# no date, no version and no random ids: equal runs write equal bytes
_UNDATED = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure that no global state knows of; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure (.png, .pdf or .svg) atomically; equal figures give equal bytes."""
    from matplotlib import rc_context

    with replacing(path) as temporary, rc_context({"svg.hashsalt": "darkmatter"}):
        figure.savefig(temporary, dpi=160, metadata=_UNDATED.get(path.suffix))


def save_decomposition_figure(
    path: Path, results: Mapping[str, Decomposition], truth: Mapping[str, Mapping[str, Estimate]] | None = None
) -> None:
    """Draw every SAE's error as one stacked bar of shares of Var x, with the ground truth below where it is known.

    Args:
        path: The file to write (.png, .pdf or .svg), atomically.
        results: Decompositions by name.
        truth: True shares by SAE name.
    """
    truth = truth or {}
    rows = len(results) + 2 * len(truth)
    figure = new_figure(8.6, 1.7 + 0.78 * rows)
    axes = figure.add_subplot()
    labels: list[str] = []
    for name, result in results.items():
        _estimated(axes, -len(labels), result)
        labels.append(f"{name}\nmeasured")
        if name in truth:
            _stack(axes, -len(labels), _sources(truth[name]))
            labels.append("truth: what is missed")
            _stack(axes, -len(labels), _seen(truth[name]))
            labels.append("truth: how a linear\nprobe sees it")
    axes.set_yticks([-i for i in range(len(labels))], labels)
    axes.set_ylim(-len(labels) + 0.4, 0.6)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.set_xlabel("share of the variance of x")
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    n_tokens = next(iter(results.values())).n_tokens
    axes.set_title(f"Where the reconstruction error comes from ({n_tokens:,} tokens, 95 % intervals)", fontsize=11)
    save_figure(figure, path)


def _estimated(axes: Axes, y: float, result: Decomposition) -> None:
    linear, nonlinear = result.linear_share.value, result.fvu_nonlinear.value
    _stack(axes, y, [("linear in x", "linear", linear), ("nonlinear in x (T1)", "nonlinear", nonlinear)])
    whisker: dict[str, Any] = {"color": "black", "capsize": 3, "lw": 1.2, "fmt": "none"}
    for end, estimate, shift in ((linear, result.linear_share, 0.2), (linear + nonlinear, result.fvu, -0.2)):
        # rounding may put the end of a bar just outside an interval without width
        arms = [[max(0.0, end - estimate.low)], [max(0.0, estimate.high - end)]]
        axes.errorbar(end, y + shift, xerr=arms, **whisker)


def _stack(axes: Axes, y: float, parts: list[tuple[str, str, float]]) -> None:
    left, whole = 0.0, sum(max(0.0, value) for _, _, value in parts)
    for label, colour, value in parts:
        axes.barh(y, value, 0.62, left=left, color=COLOURS[colour], label=label)
        if value > 0.07 * whole:
            axes.text(left + value / 2, y, percent(value), ha="center", va="center", fontsize=8.5)
        left += value


def _sources(true: Mapping[str, Estimate]) -> list[tuple[str, str, float]]:
    return [
        ("dense part", "dense", true["dense"].value),
        ("absent features", "absent", true["absent"].value),
        ("learned features distorted", "distorted", true["linear"].value),
        ("introduced by the SAE", "introduced", true["introduced"].value),
    ]


def _seen(true: Mapping[str, Estimate]) -> list[tuple[str, str, float]]:
    return [
        ("linear in x", "linear", true["fvu"].value - true["nonlinear"].value),
        ("interference (superposition)", "interference", true["interference"].value),
        ("introduced by the SAE", "introduced", true["introduced"].value),
    ]
