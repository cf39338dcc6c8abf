"""The figure of a pursuit: error by inference, and against L0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkmatter.analyses.controls import is_control
from darkmatter.analyses.pursuit import Coding, Pursuit, SaePursuit
from darkmatter.inference import Estimate
from darkmatter.plots import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS = {"encoder": "encoder", "refit": "its latents,\nre-fitted", "gp": "gradient\npursuit", "omp": "OMP"}
_GREYS = {"linear": "#D9D9D9", "nonlinear": "#A6A6A6"}
_MARKERS = {"gp": ("o", "--"), "omp": ("s", "-")}
_WHISKER: dict[str, Any] = {"color": "black", "capsize": 3, "lw": 1.2, "fmt": "none"}


def save_pursuit_figure(path: Path, result: Pursuit) -> None:
    """Draw for every SAE a stacked bar per inference with the encoder-error band, and the curve against L0 if swept.

    Args:
        path: The file to write, atomically.
        result: The result.
    """
    swept = any(sae.curve for sae in result.saes.values())
    rows = len(result.saes)
    figure = new_figure(10.4 if swept else 6.8, 0.7 + 3.5 * rows)
    grid = figure.subplots(rows, 2 if swept else 1, squeeze=False)
    for axes, (name, sae) in zip(grid, result.saes.items(), strict=True):
        _bars(axes[0], name, sae)
        if swept:
            _curve(axes[1], name, sae)
    labels: dict[str, Any] = {}
    for axes in grid.flat:
        handles, names = axes.get_legend_handles_labels()
        labels |= {name: handle for name, handle in zip(names, handles, strict=True) if name not in labels}
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(
        f"One decoder, other codes at the same L0 ({result.n_tokens:,} tokens, 95 % intervals)", fontsize=11
    )
    save_figure(figure, path)


def _colours(name: str) -> Mapping[str, str]:
    return _GREYS if is_control(name) else COLOURS


def _bars(axes: Axes, name: str, sae: SaePursuit) -> None:
    colours, control = _colours(name), " (control)" if is_control(name) else ""
    for x, coding in enumerate(sae.codings.values()):
        linear, nonlinear = coding.error.linear_share, coding.error.fvu_nonlinear
        axes.bar(x, linear.value, 0.62, color=colours["linear"], label="linear in x" + control)
        axes.bar(x, nonlinear.value, 0.62, bottom=linear.value, color=colours["nonlinear"], label="nonlinear" + control)
        for end, estimate, shift in (
            (linear.value, linear, -0.14),
            (linear.value + nonlinear.value, coding.error.fvu, 0.14),
        ):
            axes.errorbar(x + shift, end, yerr=_arms(estimate, end), **_WHISKER)
    encoder, best = sae.codings["encoder"].error.fvu.value, sae.dictionary_error.value
    if best < encoder:
        axes.axhspan(best, encoder, color="#E69F00", alpha=0.18, lw=0, label="encoder error, at least", zorder=0)
    axes.set_xticks(range(len(sae.codings)), [_LABELS[method] for method in sae.codings], fontsize=9)
    axes.set_title(f"{name}: L0 {sae.codings['encoder'].l0.value:.1f}", fontsize=10)
    _finish(axes)


def _curve(axes: Axes, name: str, sae: SaePursuit) -> None:
    colours, control = _colours(name), " (control)" if is_control(name) else ""
    for method, (marker, line) in _MARKERS.items():
        points = [coding for coding in sae.curve if coding.method == method]
        if not points:
            continue
        _line(axes, points, "fvu", "black", marker, line, f"{method}: error")
        _line(axes, points, "fvu_nonlinear", colours["nonlinear"], marker, line, f"{method}: nonlinear{control}")
    encoder = sae.codings["encoder"]
    for part, colour in (("fvu", "black"), ("fvu_nonlinear", colours["nonlinear"])):
        value = getattr(encoder.error, part).value
        label = "encoder: error, nonlinear" if part == "fvu" else None
        axes.plot(encoder.l0.value, value, "*", ms=13, color=colour, mec="white", mew=0.6, label=label, zorder=4)
    axes.set_xscale("log")
    ticks = sorted({coding.steps for coding in sae.curve if coding.steps is not None})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("latents per token (L0)")
    axes.set_title(f"{name}: against L0", fontsize=10)
    _finish(axes)


def _line(axes: Axes, points: list[Coding], part: str, colour: str, marker: str, line: str, label: str) -> None:
    estimates: list[Estimate] = [getattr(coding.error, part) for coding in points]
    arms = [_arms(estimate, estimate.value) for estimate in estimates]
    yerr = [[arm[side][0] for arm in arms] for side in (0, 1)]
    axes.errorbar(
        [coding.l0.value for coding in points],
        [estimate.value for estimate in estimates],
        yerr=yerr,
        color=colour,
        marker=marker,
        ms=5,
        mfc="white" if line == "--" else colour,
        ls=line,
        lw=1.3,
        capsize=2.5,
        label=label,
    )


def _arms(estimate: Estimate, end: float) -> list[list[float]]:
    # rounding may put the end of a bar just outside an interval without width
    return [[max(0.0, end - estimate.low)], [max(0.0, estimate.high - end)]]


def _finish(axes: Axes) -> None:
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.set_ylabel("share of the variance of x")
    axes.spines[["top", "right"]].set_visible(False)
