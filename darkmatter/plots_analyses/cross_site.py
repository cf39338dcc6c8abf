"""The figure of a cross-site analysis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkmatter.analyses.cross_site import CrossSite, ErrorExplained, Kind
from darkmatter.inference import Estimate
from darkmatter.plots import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES: dict[Kind, tuple[str, dict[str, Any]]] = {
    "sae": ("SAE outputs", {"color": COLOURS["nonlinear"]}),
    "raw": ("raw activations", {"color": "#555555"}),
    "random": ("random features", {"color": "#8c8c8c"}),
    "shuffled": ("shuffled documents", {"color": "#b5b5b5"}),
    "noise": ("Gaussian noise", {"color": "#d9d9d9"}),
}
_QUANTITIES = (
    ("r2_alone", "error e explained without x", "R² of e on the regressors alone"),
    ("share_nonlinear", "nonlinear error r explained beside x", "share of Var r"),
)


def save_cross_site_figure(
    path: Path, result: CrossSite, truth: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Draw what each earlier site, all together and each control explain of e and of r, one row per target SAE.

    Args:
        path: The file to write (.png, .pdf or .svg), atomically.
        result: The result.
        truth: Population values by "KIND REGRESSORS", where they are known.
    """
    figure = new_figure(10.4, 0.9 + 3.5 * len(result.saes))
    grid = figure.subplots(len(result.saes), 2, squeeze=False)
    for (name, found), row in zip(result.saes.items(), grid, strict=True):
        for axes, (quantity, title, label) in zip(row, _QUANTITIES, strict=True):
            _bars(axes, result, found, quantity, truth or {})
            title = title if result.beside == "x" else title.replace("beside x", "beside x of all sites")
            axes.set_title(f"{name}: {title}" if len(result.saes) > 1 else title, fontsize=10)
            axes.set_ylabel(label)
        line: Estimate = found.r2_x
        row[0].axhline(line.value, color="black", lw=1, ls="--", label="x itself: R² of e on x")
    handles, labels = grid[0][0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(
        f"How much of the error at {result.target} is linear in earlier sites ({result.n_tokens:,} tokens, "
        "95 % intervals)",
        fontsize=11,
    )
    save_figure(figure, path)


def _bars(
    axes: Axes, result: CrossSite, found: ErrorExplained, quantity: str, truth: Mapping[str, Mapping[str, float]]
) -> None:
    names = list(dict.fromkeys(row.regressors for row in found.rows))
    width = 0.82 / len(result.kinds)
    for i, kind in enumerate(result.kinds):
        label, style = _STYLES[kind]
        at = [j + (i - (len(result.kinds) - 1) / 2) * width for j in range(len(names))]
        estimates: list[Estimate] = [getattr(found.row(name, kind), quantity) for name in names]
        axes.bar(at, [e.value for e in estimates], 0.92 * width, label=label, **style)
        arms = [[max(0.0, e.value - e.low) for e in estimates], [max(0.0, e.high - e.value) for e in estimates]]
        axes.errorbar(at, [e.value for e in estimates], yerr=arms, fmt="none", color="black", capsize=2.5, lw=1.0)
        known = [
            (x, truth[f"{kind} {name}"][quantity])
            for x, name in zip(at, names, strict=True)
            if f"{kind} {name}" in truth
        ]
        if known:
            xs, ys = zip(*known, strict=True)
            axes.plot(xs, ys, "D", ms=4.5, mfc="white", mec=COLOURS["introduced"], mew=1.3, zorder=5, label="truth")
    axes.axhline(0.0, color="black", lw=0.8)
    axes.set_xticks(range(len(names)), [name.replace("/", "/\n") for name in names])
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
