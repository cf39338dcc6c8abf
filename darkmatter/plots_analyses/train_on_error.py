"""The figure of `darkmatter train-on-error`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkmatter.analyses.error_saes import TargetResult, TrainOnError
from darkmatter.analyses.interp import Interpretation
from darkmatter.inference import Estimate
from darkmatter.plots import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY = "#8c8c8c"
_STYLES = {
    "linear": (COLOURS["linear"], "-", "linear error"),
    "nonlinear": (COLOURS["nonlinear"], "-", "nonlinear error"),
    "x": (COLOURS["dense"], "-", "x"),
    "linear-gaussian": (_GREY, "--", "Gaussian like linear error"),
    "nonlinear-gaussian": (_GREY, ":", "Gaussian like nonlinear error"),
    "isotropic": ("#c0c0c0", "-", "isotropic Gaussian"),
}
_MORE = ("-.", (0, (5, 1)), (0, (1, 1)))
_MARKS = {
    "absent": ("o", "absent features"),
    "learned": ("s", "learned features"),
    "original": ("D", "latents of the SAE"),
}


def save_error_saes_figure(path: Path, result: TrainOnError, found: Interpretation | None = None) -> None:
    """Draw FVU over training tokens with held-out intervals, and what the latents found or what a judge made of them.

    Args:
        path: The file to write (.png, .pdf or .svg), atomically.
        result: The analysis.
        found: Detection scores, drawn on the right where there are any.
    """
    second = found is not None or any(target.alignment for target in result.targets.values())
    figure = new_figure(11.5 if second else 7.0, 4.9)
    panels = figure.subplots(1, 2 if second else 1, squeeze=False)[0]
    _curves(panels[0], result)
    if found is not None:
        _detection(panels[1], found)
    elif second:
        _alignment(panels[1], result)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=8.5)
    save_figure(figure, path)


def _style(name: str, place: int) -> tuple[str, Any, str]:
    if name in _STYLES:
        return _STYLES[name]
    return "#b0a080", _MORE[place % len(_MORE)], name.replace("nonlinear~", "nonlinear, control ")


def _arms(estimate: Estimate) -> list[list[float]]:
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def _curves(axes: Axes, result: TrainOnError) -> None:
    end = max((target.history[-1][0] for target in result.targets.values()), default=1)
    for place, (name, target) in enumerate(result.targets.items()):
        colour, dash, label = _style(name, place)
        tokens, fvu = zip(*target.history, strict=True)
        marker = "." if len(tokens) < 12 else None
        axes.plot(tokens, fvu, color=colour, ls=dash, lw=1.6, marker=marker, label=label)
        x = end * (1.03 + 0.025 * place)
        axes.errorbar(x, target.fvu.value, yerr=_arms(target.fvu), fmt="o", ms=3, color=colour, capsize=2.5, lw=1.3)
    axes.axvline(end * 1.012, color="#dddddd", lw=0.8)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
    axes.set_xlabel("tokens trained on; at the right end: held-out documents, 95 % intervals")
    axes.set_ylabel("fraction of variance unexplained (FVU)")
    config = result.config
    sparsity = f"k {config['k']}" if config["k"] is not None else f"L0 {config['l0'] or 'free'}"
    scale = "whitened" if result.whitened else "unit variance"
    rank = next(iter(result.targets.values())).rank
    title = f"{config['d_sae']} {config['architecture']} latents, {sparsity}; rank {rank}, {scale}"
    axes.set_title(title, fontsize=10.5)


def _alignment(axes: Axes, result: TrainOnError) -> None:
    names = list(result.targets)
    labels = [label for label in _MARKS if any(label in result.targets[name].alignment for name in names)]
    for row, name in enumerate(names):
        colour = _style(name, row)[0]
        for j, label in enumerate(labels):
            y = -row + 0.22 * ((len(labels) - 1) / 2 - j)
            _aligned(axes, y, result.targets[name], label, colour)
    for label in labels:
        axes.plot([], [], _MARKS[label][0], color="#444444", ms=5, label=_MARKS[label][1])
    axes.plot([], [], "|", color=_GREY, ms=9, mew=2, label="random rows, same covariance")
    axes.set_yticks([-i for i in range(len(names))], [_style(name, i)[2] for i, name in enumerate(names)], fontsize=9)
    axes.set_ylim(-len(names) + 0.45, 0.55)
    axes.set_xlim(0, 1.02)
    axes.grid(axis="x", color="#eeeeee", zorder=0)
    axes.set_xlabel("mean over directions of the largest |cosine| with a latent, 95 %")
    axes.set_title("What the latents point at", fontsize=10.5)
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=2, frameon=False, fontsize=8.5)


def _aligned(axes: Axes, y: float, target: TargetResult, label: str, colour: str) -> None:
    if label not in target.alignment:
        return
    found = target.alignment[label]
    axes.errorbar(
        found.best.value, y, xerr=_arms(found.best), fmt=_MARKS[label][0], ms=5, color=colour, capsize=2.5, lw=1.3
    )
    axes.plot(found.control.value, y, "|", color=_GREY, ms=9, mew=2)


def _detection(axes: Axes, found: Interpretation) -> None:
    names = list(found.saes)
    for row, name in enumerate(names):
        sae, colour = found.saes[name], _style(name, row)[0]
        for y, estimate, mark, tint in (
            (-row + 0.11, sae.accuracy, "o", colour),
            (-row - 0.11, sae.control, "|", _GREY),
        ):
            if estimate.value == estimate.value:
                axes.errorbar(estimate.value, y, xerr=_arms(estimate), fmt=mark, ms=7, color=tint, capsize=2.5, lw=1.3)
    axes.axvline(0.5, color="#dddddd", lw=0.9, zorder=0)
    axes.text(0.5, 0.5, "chance", fontsize=8, color=_GREY, ha="center", va="bottom")
    axes.plot([], [], "o", color="#444444", label="its own explanation")
    axes.plot([], [], "|", color=_GREY, ms=9, mew=2, label="another latent's explanation")
    axes.set_yticks([-i for i in range(len(names))], [_style(name, i)[2] for i, name in enumerate(names)], fontsize=9)
    axes.set_ylim(-len(names) + 0.4, 0.7)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("detection accuracy, 95 % interval clustered by latent")
    axes.set_title(f"Can {found.model} tell where latents are active?", fontsize=10.5)
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=2, frameon=False, fontsize=8.5)
