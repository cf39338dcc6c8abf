"""The figure of the geometry of the residual."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from darkmatter.analyses.spectrum import PartSpectrum, ResidualSpectrum
from darkmatter.plots import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY = "#9A9A9A"
_PARTS = {"error": "#000000", "linear": COLOURS["linear"], "nonlinear": COLOURS["nonlinear"]}
_MOST_PANELS = 3
_ANNOTATED = 12


def save_spectrum_figure(path: Path, result: ResidualSpectrum, truth: Mapping[str, Any] | None = None) -> None:
    """Draw spectra on logarithmic axes, one panel per SAE, the overlaps, and what the SAE's own directions hold.

    Args:
        path: The file to write, atomically.
        result: The geometry.
        truth: Closed-form spectra by SAE and part, where known.
    """
    real = [name for name, sae in result.saes.items() if not sae.control][:_MOST_PANELS]
    figure = new_figure(3.9 * len(real) + 7.6, 4.5)
    axes = figure.subplots(1, len(real) + 2, width_ratios=[1.0] * len(real) + [1.0, 0.9])
    for panel, name in zip(axes, real, strict=False):
        _spectra(panel, result, name, (truth or {}).get(name, {}))
    _overlaps(axes[len(real)], result)
    _shares(axes[len(real) + 1], result)
    figure.suptitle(
        f"Geometry of the error (d = {result.d_model}, {result.n_tokens:,} tokens, 95 % intervals)", fontsize=11
    )
    save_figure(figure, path)


def _spectra(axes: Axes, result: ResidualSpectrum, name: str, truth: Mapping[str, Any]) -> None:
    sae = result.saes[name]
    for control in (other for other, found in result.saes.items() if found.control and other.startswith(f"{name}~")):
        _line(axes, result, result.saes[control].nonlinear, _GREY, None, band=False)
    if any(found.control for found in result.saes.values()):
        axes.plot([], [], lw=1.0, color=_GREY, label="r of controls")
    _line(axes, result, result.x, "#0072B2", _label("x", result.x))
    for part, colour in _PARTS.items():
        _line(axes, result, getattr(sae, part), colour, _label(part, getattr(sae, part)))
    for part, colour in (("x", "#0072B2"), *_PARTS.items()):
        if part in truth:
            values = np.array(truth[part]["eigenvalues"])
            shown = values > 0
            marks = np.array(result.indices)[shown]
            axes.plot(marks, values[shown], "o", ms=5.5, mfc="none", mec=colour, mew=1.0)
    if truth:
        axes.plot([], [], "o", ms=5.5, mfc="none", mec="black", label="truth")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    floor = _floor(result, name)
    if floor > 0:
        axes.set_ylim(bottom=floor)
    axes.set_xlabel("rank of the eigenvalue")
    axes.set_ylabel("eigenvalue / Var x")
    axes.set_title(name, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7.5, frameon=False, loc="lower left", title="participation ratio", title_fontsize=7.5)


def _floor(result: ResidualSpectrum, name: str) -> float:
    """Where the axis ends: eigenvalues that are zero but for noise would stretch it without end."""
    sae = result.saes[name]
    values = [e.value for part in (result.x, sae.error, sae.nonlinear) for e in part.eigenvalues if e.value > 0]
    top = max(values, default=0.0)
    return max(min(values, default=0.0) / 3, top * 1e-6)


def _label(name: str, part: PartSpectrum) -> str:
    ratio = part.participation
    return f"{name}: –" if ratio.value != ratio.value else f"{name}: {ratio:.1f}"


def _line(
    axes: Axes, result: ResidualSpectrum, part: PartSpectrum, colour: str, label: str | None, *, band: bool = True
) -> None:
    if not part.eigenvalues:
        return
    ranks = np.array(result.indices)
    value, low, high = (np.array([getattr(e, end) for e in part.eigenvalues]) for end in ("value", "low", "high"))
    shown = value > 0
    axes.plot(ranks[shown], value[shown], lw=1.6 if band else 1.0, color=colour, label=label)
    if band:
        axes.fill_between(ranks[shown], np.maximum(low[shown], 1e-12), high[shown], color=colour, alpha=0.22, lw=0)


def _overlaps(axes: Axes, result: ResidualSpectrum) -> None:
    names = list(dict.fromkeys(n for pair in result.overlaps for n in (pair.first, pair.second)))
    names = [*(n for n in names if n != "x"), "x"]
    size = len(names)
    values = np.eye(size)
    for i, first in enumerate(names):
        for j, second in enumerate(names[:i]):
            values[i, j] = values[j, i] = result.overlap(first, second).overlap.value
        values[i, i] = (result.x if first == "x" else result.saes[first].nonlinear).stability
    axes.imshow(values, cmap="RdPu", vmin=0, vmax=1)
    if size <= _ANNOTATED:
        for i, first in enumerate(names):
            for j, second in enumerate(names):
                text = f"{values[i, j]:.2f}"
                if i != j:
                    found = result.overlap(first, second).overlap
                    text += f"\n±{(found.high - found.low) / 2:.2f}"
                dark = values[i, j] > 0.55
                axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color="white" if dark else "black")
    axes.set_xticks(range(size), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(size), names, fontsize=8)
    axes.set_title(
        f"overlap of the {result.rank} leading directions of r\n(chance {result.chance:.2f}; diagonal: between halves)",
        fontsize=9.5,
    )


def _shares(axes: Axes, result: ResidualSpectrum) -> None:
    """What spans hold of the error's parts, against chance."""
    labels: list[str] = []
    for name, sae in result.saes.items():
        for label, along in sae.spans.items():
            row = len(labels)
            labels.append(f"{name}\n{label}")
            for offset, (part, colour) in enumerate(_PARTS.items()):
                found = getattr(along, part)
                if found.value != found.value:
                    continue
                shade = _GREY if sae.control else colour
                place = row + 0.22 * (offset - 1)
                arms = [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]
                axes.errorbar(found.value, place, xerr=arms, fmt="o", ms=4.5, color=shade, capsize=2)
            axes.plot([along.chance] * 2, [row - 0.38, row + 0.38], color="black", lw=1, ls=":")
    if not labels:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no weights:\nno spans", ha="center", va="center", color=_GREY, transform=axes.transAxes)
        return
    axes.set_yticks(range(len(labels)), labels, fontsize=7.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.set_xlabel("share of its variance inside")
    axes.set_title("what the SAE's directions hold\n(dotted: by chance)", fontsize=9.5)
    for part, colour in _PARTS.items():
        axes.plot([], [], "o", ms=4.5, color=colour, label=part)
    axes.legend(fontsize=7.5, frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
