"""Latents as a person or a judge sees them: contexts as text, densities, cosines with the original SAE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from darkmatter.analyses.error_saes import Kept, Measured, TrainOnError, best_cosines
from darkmatter.analyses.interp import LatentTask
from darkmatter.sae import SAE

Render = Callable[[Sequence[int], bool], str]
"""Token ids of a window, −1 outside, the middle one marked or not → text."""

_QUANTILES = 4


def renderer(tokenizer: Any) -> Render | None:
    """How to write a window as text; None without a tokenizer."""
    if tokenizer is None:
        return None

    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    def render(ids: Sequence[int], mark: bool) -> str:
        middle = len(ids) // 2
        left, rest = [i for i in ids[:middle] if i >= 0], [i for i in ids[middle:] if i >= 0]
        whole = decode(left + rest)
        if not mark:
            return whole
        before, upto = decode(left), decode(left + rest[:1])
        if upto.startswith(before) and whole.startswith(upto):
            return f"{before}<<{upto[len(before) :]}>>{whole[len(upto) :]}"
        return f"{before}<<{decode(rest[:1])}>>{decode(rest[1:])}"  # a token that is part of a character

    return render


def latent_file(result: TrainOnError, target: str, *, original: SAE | None, render: Render | None) -> dict[str, Any]:
    """The latents of one SAE as plain JSON types.

    Args:
        result: The analysis.
        target: Which SAE.
        original: The SAE whose error was learned, where its weights are known.
        render: How contexts are written.

    Returns:
        The latents with densities, cosines and contexts; and contexts drawn among all tokens.
    """
    measured, sae = result.measured[target], result.saes[target]
    contexts = measured.contexts
    assert contexts is not None
    chosen = contexts.latents
    cosines, nearest = (None, None)
    if original is not None:
        cosines, nearest = best_cosines(sae.W_dec[chosen], original.W_dec.to(sae.device))
    density = measured.density.numpy()
    latents = []
    for row, latent in enumerate(chosen):
        found: dict[str, Any] = {"latent": int(latent), "density": float(density[latent])}
        if cosines is not None and nearest is not None:
            found["nearest_original"] = {"latent": int(nearest[row]), "cosine": float(cosines[row])}
        found["top"] = _entries(contexts.top, row, render)
        sample = sorted(_entries(contexts.sample, row, render), key=lambda entry: -entry["activation"])
        for place, entry in enumerate(sample):
            entry["quantile"] = 1 + place * _QUANTILES // len(sample)
        found["sample"] = sample
        latents.append(found)
    others = _entries(contexts.others, 0, render, mark=False)
    for entry in others:
        del entry["activation"]
    return {
        "target": target,
        "sae": result.targets[target].sae,
        "d_sae": sae.d_sae,
        "window": contexts.plan.window,
        "latents": latents,
        "random": others,
    }


def _entries(kept: Kept, row: int, render: Render | None, *, mark: bool = True) -> list[dict[str, Any]]:
    found = []
    for place in np.flatnonzero(np.isfinite(kept.key[row])):
        ids = kept.ids[row, place]
        entry: dict[str, Any] = {
            "activation": float(kept.value[row, place]),
            "document": int(kept.group[row, place]),
            "position": int(kept.position[row, place]),
        }
        if (ids >= 0).any():
            entry["token_ids"] = [int(i) for i in ids if i >= 0]
            if render is not None:
                entry["text"] = render([int(i) for i in ids], mark)
        found.append(entry)
    return found


def latent_tasks(
    measured: Measured, render: Render | None, *, n_latents: int, n_contexts: int, rng: np.random.Generator
) -> list[LatentTask]:
    """Latents for a judge, evenly over the densities of those with enough contexts.

    Args:
        measured: The SAE's held-out contexts.
        render: How contexts are written.
        n_latents: Latents wanted.
        n_contexts: Active and inactive contexts each, at most; a latent with fewer than two of either is left out.
        rng: Draws contexts.

    Returns:
        The tasks, by rising density; no document is both shown and judged.
    """
    contexts = measured.contexts
    assert contexts is not None and render is not None
    density = measured.density.numpy()[contexts.latents]
    silent = (contexts.others_peak <= 0) & np.isfinite(contexts.others.key[0])[:, None]
    ready = [
        row
        for row in np.argsort(density, kind="stable")
        if len(_judged(contexts.top, contexts.sample, row)) >= 2 and silent[:, row].sum() >= 2
    ]
    places = np.unique(np.linspace(0, len(ready) - 1, min(n_latents, len(ready))).round().astype(int))
    tasks = []
    for row in (ready[place] for place in places):
        active = _judged(contexts.top, contexts.sample, row)
        quiet = np.flatnonzero(silent[:, row])
        size = min(n_contexts, len(active), len(quiet))
        shown = _shown(contexts.top, row)
        tasks.append(
            LatentTask(
                latent=int(contexts.latents[row]),
                shown=tuple(render(contexts.top.ids[row, place].tolist(), True) for place in shown),
                active=tuple(
                    render(contexts.sample.ids[row, place].tolist(), False) for place in rng.permutation(active)[:size]
                ),
                inactive=tuple(
                    render(contexts.others.ids[0, place].tolist(), False) for place in rng.permutation(quiet)[:size]
                ),
            )
        )
    return tasks


_SHOWN = 8


def _shown(top: Kept, row: int) -> np.ndarray:
    return np.flatnonzero(np.isfinite(top.key[row]))[:_SHOWN]


def _judged(top: Kept, sample: Kept, row: int) -> np.ndarray:
    """Places of sampled contexts from documents that are not shown."""
    there = np.isfinite(sample.key[row])
    return np.flatnonzero(there & ~np.isin(sample.group[row], top.group[row, _shown(top, row)]))
