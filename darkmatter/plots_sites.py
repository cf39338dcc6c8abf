"""The figure of several sites of a model: the error along the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from darkmatter.inference import Estimate
from darkmatter.plots import COLOURS, new_figure, save_figure
from darkmatter.results import Decomposition

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^v<>P"


def save_sites_figure(path: Path, results: Mapping[str, Mapping[str, Decomposition]]) -> None:
    """Draw, site by site, the shares of the variance and the R² of the error and of its squared norm.

    Args:
        path: The file to write (.png, .pdf or .svg), atomically.
        results: Decompositions by site, in the order of the network, and SAE.
    """
    sites = list(results)
    figure = new_figure(max(6.4, 2.4 + 0.75 * len(sites)), 4.2)
    shares, explained = figure.subplots(1, 2)
    for at, members in enumerate(results.values()):
        for number, result in enumerate(members.values()):
            place = at + 0.16 * (number - (len(members) - 1) / 2)
            marker = _MARKERS[number % len(_MARKERS)]
            _point(shares, place, result.fvu, COLOURS["linear"], marker, "error (FVU)")
            _point(shares, place, result.fvu_nonlinear, COLOURS["nonlinear"], marker, "nonlinear")
            _point(explained, place, result.r2_error, COLOURS["dense"], marker, "e on x")
            _point(explained, place, result.r2_norm, COLOURS["introduced"], marker, "|e|² on x")
    shares.set_ylabel("share of the variance of x")
    explained.set_ylabel("R²")
    explained.set_ylim(min(0.0, explained.get_ylim()[0]), 1.0)
    for axes in (shares, explained):
        axes.set_xticks(range(len(sites)), sites, rotation=35, ha="right", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        handles, names = axes.get_legend_handles_labels()
        unique = dict(zip(names, handles, strict=True))
        axes.legend(unique.values(), unique.keys(), frameon=False, fontsize=8)
    shares.set_ylim(bottom=0.0)
    figure.suptitle("The error along the network (95 % intervals)", fontsize=11)
    save_figure(figure, path)


def _point(axes: Axes, at: float, estimate: Estimate, colour: str, marker: str, label: str) -> None:
    arms = [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
    axes.errorbar(at, estimate.value, yerr=arms, fmt=marker, color=colour, capsize=2, ms=5, lw=1.1, label=label)
