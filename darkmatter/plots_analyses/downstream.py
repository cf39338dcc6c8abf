"""The figure of a downstream analysis."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkmatter.analyses.controls import is_control
from darkmatter.analyses.downstream import OF_SAE, DownstreamLosses, SaeLosses
from darkmatter.inference import Estimate
from darkmatter.plots import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "identity": "x, put back",
    "mean": "the mean of x",
    "zero": "0",
    "sae": "Sae(x)",
    "nonlinear-left": "x − nonlinear error",
    "linear-left": "x − linear error",
    "random": "x − random, as long as e",
    "random-nonlinear": "x − random, as nonlinear",
    "random-linear": "x − random, as linear",
    "shuffled": "x − e of another document",
}
"""What every variant replaces x by."""

_MOST = 6
_GREY = "#9A9A9A"
_COLOURS = {"sae": "black", "nonlinear-left": COLOURS["nonlinear"], "linear-left": COLOURS["linear"]}
_MARKERS = "osD^vP"
_TRUTH: dict[str, Any] = {
    "marker": "|",
    "ls": "none",
    "color": COLOURS["introduced"],
    "ms": 15,
    "mew": 1.8,
    "zorder": 1,
}


def save_downstream_figure(
    path: Path, result: DownstreamLosses, truth: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Draw the increase of the loss by variant, and shares of the loss against shares of the squared error.

    Args:
        path: The file to write, atomically.
        result: The losses; of more than six SAEs the first six are drawn.
        truth: `ReadoutTruth.to_dict` by SAE.
    """
    truth = truth or {}
    saes = dict(islice(result.saes.items(), _MOST))
    rows = sum(1 + len(sae.variants) for sae in saes.values())
    figure = new_figure(12.4, max(4.4, 1.5 + 0.27 * rows))
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _increases(left, result, saes, truth)
    _shares(right, saes, truth)
    more = f"; the first {_MOST} of {len(result.saes)} SAEs" if len(result.saes) > _MOST else ""
    figure.suptitle(
        f"What the error costs: {result.n_losses:,} losses of {result.n_documents:,} documents, 95 % intervals{more}",
        fontsize=11,
    )
    save_figure(figure, path)


def _increases(
    axes: Axes, result: DownstreamLosses, saes: Mapping[str, SaeLosses], truth: Mapping[str, Mapping[str, Any]]
) -> None:
    y, ticks, labels = 0, [], []
    for name, sae in saes.items():
        place = axes.get_yaxis_transform()
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        axes.text(0.02, y, name, transform=place, va="center", fontsize=9, weight="bold", bbox=behind)
        y -= 1
        for variant in (variant for variant in OF_SAE if variant in sae.variants):
            increase = sae.variants[variant].increase
            colour = _GREY if is_control(name) else _COLOURS.get(variant, _GREY)
            _bar(axes, increase.value, y, increase, colour, vertical=False)
            if name in truth:
                true = truth[name]["increases"][variant]
                axes.plot(true, y, **_TRUTH)
            ticks.append(y)
            labels.append(LABELS[variant])
            y -= 1
    axes.set_yticks(ticks, labels, fontsize=8.5)
    axes.set_ylim(y + 0.4, 0.6)
    axes.axvline(0.0, color=_GREY, lw=0.8, zorder=0)
    axes.set_xlabel("increase of the loss, nats per token")
    notes = [f"clean loss {result.clean.value:.3f}"]
    if "mean" in result.variants:
        notes.append(f"by the mean of x {result.variants['mean'].increase.value:+.3f}")
    if "zero" in result.variants:
        notes.append(f"by 0 {result.variants['zero'].increase.value:+.3f}")
    axes.set_title("x replaced by …  (" + ", ".join(notes) + ")", fontsize=9.5, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if truth:
        axes.plot([], [], **_TRUTH, label="truth")
        axes.legend(frameon=False, fontsize=8.5, loc="upper right")


def _shares(axes: Axes, saes: Mapping[str, SaeLosses], truth: Mapping[str, Mapping[str, Any]]) -> None:
    axes.plot([0, 1], [0, 1], color=_GREY, lw=1, ls="--", zorder=0, label="as its size says")
    for marker, (name, sae) in zip(_MARKERS, saes.items(), strict=False):
        for part in ("linear", "nonlinear"):
            found = getattr(sae, part)
            colour = _GREY if is_control(name) else COLOURS[part]
            x = found.error_share
            for estimate, face in ((found.recovered, colour), (found.alone, "white")):
                if estimate.value == estimate.value:
                    _point(axes, x, estimate, colour, face, marker)
            if name in truth and part in truth[name]:
                known = truth[name][part]
                axes.plot(known["error_share"], known["recovered"], **_TRUTH | {"marker": "+"})
        axes.plot([], [], marker=marker, ls="none", color="black", mfc="none", label=name)
    handles: dict[str, dict[str, Any]] = {
        "linear error": {"color": COLOURS["linear"], "marker": "s"},
        "nonlinear error": {"color": COLOURS["nonlinear"], "marker": "s"},
        "filled: undone by adding it back": {"color": "black", "marker": "o"},
        "open: when it alone is left": {"color": "black", "marker": "o", "mfc": "white"},
    }
    for label, style in handles.items():
        axes.plot([], [], ls="none", label=label, **style)
    axes.set_xlabel("share of the squared error")
    axes.set_ylabel("share of the increase of the loss")
    axes.set_title("Does a part matter as much as its size says?", fontsize=9.5, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _point(axes: Axes, x: Estimate, y: Estimate, colour: str, face: str, marker: str) -> None:
    _bar(axes, x.value, y.value, x, colour, vertical=False, marker="none")
    _bar(axes, x.value, y.value, y, colour, vertical=True, marker="none")
    axes.plot(x.value, y.value, marker=marker, ls="none", color=colour, mfc=face, ms=6, zorder=4)


def _bar(axes: Axes, x: float, y: float, estimate: Estimate, colour: str, *, vertical: bool, marker: str = "o") -> None:
    """A point with the arms of an estimate along one axis."""
    arms = [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
    style: dict[str, Any] = {"yerr" if vertical else "xerr": arms}
    style |= {"color": colour, "marker": marker, "ms": 5, "capsize": 2.5, "lw": 1.3}
    axes.errorbar(x, y, **style)
