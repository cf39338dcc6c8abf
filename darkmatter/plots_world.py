"""The figure of one experiment: what its world is like and, of a trained SAE, what it found there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from darkmatter.plots import COLOURS, new_figure, save_figure
from darkmatter.report import percent
from darkmatter.sandbox.recovery_result import KINDS, Recovery

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from darkmatter.sandbox.chunk import WorldChunk
    from darkmatter.sandbox.world import World

STREAM = "figure"
"""Stream of the tokens that are drawn, apart from those of training, pass and truth."""

_DOTS = 3000
_KIND_COLOURS = {"matched": "absent", "duplicate": "interference", "false": "introduced", "dead": "linear"}

History = Sequence[tuple[int, float]]


def save_world_figure(
    path: Path, world: World, *, recovery: Recovery | None = None, history: History | None = None
) -> None:
    """Draw an experiment's world, and where they are known the training and the recovery.

    Args:
        path: The file to write (.png, .pdf or .svg), atomically.
        world: The world; one chunk of it is drawn.
        recovery: How well the latents are the features.
        history: (tokens, FVU) of the training.
    """
    chunk = world.chunk(0, stream=STREAM)
    panels: list[Callable[[Axes], None]] = [
        lambda axes: _rates(axes, world, chunk),
        lambda axes: _counts(axes, world, chunk),
    ]
    if world.dense_dim:
        panels.append(lambda axes: _dense(axes, world, chunk))
    if history:
        panels.append(lambda axes: _training(axes, history))
    if recovery is not None:
        panels.append(lambda axes: _matches(axes, recovery))
        panels.append(lambda axes: _latents(axes, recovery))
    columns = 3 if len(panels) > 2 else 2
    rows = -(-len(panels) // columns)
    figure = new_figure(3.5 * columns, 2.9 * rows)
    spots = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(spots, panels, strict=False):
        panel(axes)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in spots[len(panels) :]:
        axes.set_axis_off()
    save_figure(figure, path)


def _rates(axes: Axes, world: World, chunk: WorldChunk) -> None:
    wanted = world.firing_rates
    order = np.argsort(-wanted, kind="stable")
    seen = np.bincount(chunk.codes.indices, minlength=world.n_features) / len(chunk)
    rank = np.arange(1, world.n_features + 1)
    fired = seen[order] > 0
    axes.plot(rank[fired], seen[order][fired], ".", ms=2.5, color=COLOURS["linear"], label=f"in {len(chunk):,} tokens")
    axes.plot(rank, wanted[order], color="black", lw=1.3, label="asked for")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("feature, by rank")
    axes.set_ylabel("firing rate per token")
    axes.set_title("How often features fire", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower left")


def _counts(axes: Axes, world: World, chunk: WorldChunk) -> None:
    counts = np.diff(chunk.codes.indptr)
    low, high = int(counts.min()), int(counts.max())
    width = max(1, -(-(high - low + 1) // 40))
    axes.hist(
        counts, bins=(np.arange(low, high + width + 1, width) - 0.5).tolist(), color=COLOURS["linear"], density=True
    )
    axes.axvline(world.l0, color="black", lw=1.3, ymax=0.86)
    told = f"line: {world.l0:g} on average, asked for"
    axes.text(0.98, 0.98, told, transform=axes.transAxes, ha="right", va="top", fontsize=8)
    axes.set_xlabel("features that fire on a token")
    axes.set_ylabel("share of tokens per count")
    axes.set_title("Features per token", fontsize=10)
    axes.set_ylim(top=1.2 * axes.get_ylim()[1])


def _dense(axes: Axes, world: World, chunk: WorldChunk) -> None:
    coords = chunk.dense_coords[:_DOTS]
    axes.set_title(f"Dense part: {world.dense}, {percent(world.dense_share)} of Var x", fontsize=10)
    if world.dense_dim == 1:
        axes.hist(coords[:, 0], bins=60, color=COLOURS["dense"], density=True)
        axes.set_xlabel("dense coordinate 1")
        axes.set_ylabel("density")
        return
    second = 2 if world.dense == "swiss-roll" else 1  # the roll is wound in the first and the third
    axes.plot(coords[:, 0], coords[:, second], ".", ms=2, alpha=0.5, color=COLOURS["dense"])
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel("dense coordinate 1")
    axes.set_ylabel(f"dense coordinate {second + 1}")


def _training(axes: Axes, history: History) -> None:
    tokens, fvu = zip(*history, strict=True)
    axes.plot(tokens, fvu, color=COLOURS["dense"], lw=1.3)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}")
    axes.set_xlabel("million training tokens")
    axes.set_ylabel("FVU")
    axes.set_title("Training", fontsize=10)


def _matches(axes: Axes, recovery: Recovery) -> None:
    features = recovery.features
    matched = features.latent >= 0
    cosine = np.abs(features.cosine[matched])
    axes.plot(features.rate[matched], cosine, ".", ms=2.5, alpha=0.5, color=COLOURS["absent"])
    axes.axhline(recovery.match_cosine, color="black", lw=1.0, ls="--")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("firing rate of the feature")
    axes.set_ylabel("|cosine| with its latent")
    found = f"{percent(recovery.recovered_share)} of {recovery.n_features:,} found"
    axes.set_title(f"Features: {found}", fontsize=10)


def _latents(axes: Axes, recovery: Recovery) -> None:
    shares = {kind: float(np.mean(recovery.latents.kind == KINDS.index(kind))) for kind in _KIND_COLOURS}
    for place, (kind, share) in enumerate(shares.items()):
        axes.barh(-place, share, 0.62, color=COLOURS[_KIND_COLOURS[kind]])
        axes.text(share + 0.02, -place, percent(share), va="center", fontsize=9)
    names = {
        "matched": "stand for\na feature",
        "duplicate": "duplicates",
        "false": "stand for\nnone",
        "dead": "never fired",
    }
    axes.set_yticks([-place for place in range(len(shares))], [names[kind] for kind in shares])
    axes.set_xlim(0, 1.25)
    axes.set_xticks([0, 0.5, 1])
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.set_xlabel("share of the latents")
    axes.set_title(f"Latents: what {recovery.d_sae:,} are", fontsize=10)
