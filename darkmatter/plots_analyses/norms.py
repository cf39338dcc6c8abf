"""The figure of `darkmatter norms`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkmatter.analyses.controls import is_control
from darkmatter.analyses.norms import LABELS, BothProbes, NormProbe, NormProbes
from darkmatter.plots import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKS = {
    "activation_norm": ("s", COLOURS["absent"], "on |x|, |x|²"),
    "token": ("^", COLOURS["interference"], "on the token"),
    "loss": ("P", COLOURS["introduced"], "on the model's loss"),
    "l0": ("X", COLOURS["linear"], "on L0"),
    "position": ("v", COLOURS["nonlinear"], "on position"),
}
_GREY = "#8c8c8c"

Truth = Mapping[str, Mapping[str, Mapping[str, float]]]


def save_norms_figure(path: Path, result: NormProbes, truth: Truth | None = None) -> None:
    """Draw R² of every squared norm with its interval, about 0 and about the mean, beside theory and baselines.

    Args:
        path: The file to write (.png, .pdf or .svg), atomically.
        result: The probes.
        truth: Population values by SAE ("" for x), vector and "uncentred" or "centred".
    """
    rows: list[tuple[str, str, BothProbes]] = [("", "x", result.x)]
    rows += [(name, kind, both) for name, probes in result.saes.items() for kind, both in probes.items()]
    figure = new_figure(10.5, 1.9 + 0.34 * len(rows))
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
    several = len(result.saes) > 1
    for axes, about in zip(panels, ("uncentred", "centred"), strict=True):
        for i, (name, kind, both) in enumerate(rows):
            known = (truth or {}).get(name, {}).get(kind, {}).get(about, math.nan)
            _row(axes, -i, getattr(both, about), known, grey=is_control(name))
        axes.set_title("squared norm |v|²" if about == "uncentred" else "about the mean, |v − v̄|²", fontsize=11)
        axes.set_xlabel("R², share of the squared norm's variance explained")
        axes.axvline(0, color="#cccccc", lw=0.8, zorder=0)
        axes.grid(axis="x", color="#eeeeee", zorder=0)
        axes.set_xlim(-0.06, 1.04)
        axes.spines[["top", "right"]].set_visible(False)
    labels = [f"{name}: {LABELS[kind]}" if several and name else LABELS[kind] for name, kind, _ in rows]
    panels[0].set_yticks([-i for i in range(len(rows))], labels, fontsize=9)
    panels[0].set_ylim(-len(rows) + 0.4, 0.6)
    found: dict[str, Any] = {}
    for axes in panels:
        handles, names = axes.get_legend_handles_labels()
        for label, handle in zip(names, handles, strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.suptitle(f"How well squared norms are predicted ({result.n_tokens:,} tokens, 95 % intervals)", fontsize=12)
    save_figure(figure, path)


def _row(axes: Axes, y: float, probe: NormProbe, truth: float, *, grey: bool) -> None:
    if math.isnan(probe.r2.value):
        axes.text(0.02, y, "no R²: constant, or noise of the fit", va="center", fontsize=8, color=_GREY)
        return
    for name, (mark, colour, label) in _MARKS.items():
        if name in probe.baselines:
            axes.plot(
                max(-0.05, probe.baselines[name].value),
                y + 0.2,
                mark,
                color=_GREY if grey else colour,
                ms=5,
                alpha=0.85,
                label=None if grey else label,
            )
    axes.plot(
        probe.gaussian.value, y - 0.2, "|", color=_GREY if grey else "black", ms=9, mew=1.8, label="Gaussian data"
    )
    if not math.isnan(truth):
        axes.plot(truth, y, "o", mfc="none", mec="black", ms=10, mew=1.1, label="truth")
    arms = [[max(0.0, probe.r2.value - probe.r2.low)], [max(0.0, probe.r2.high - probe.r2.value)]]
    colour, label = (_GREY, "on x (null control)") if grey else (COLOURS["dense"], "on x, linear probe")
    axes.errorbar(probe.r2.value, y, xerr=arms, fmt="o", color=colour, ms=4.5, capsize=2.5, lw=1.3, label=label)
