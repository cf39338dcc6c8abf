"""Sums over the true factors of a world, by fold of documents, from one pass with sparse codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor

from darkmatter.checks import check_finite
from darkmatter.errors import InputError
from darkmatter.folds import fold_of
from darkmatter.sandbox.source import Sae, recon_chunks

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Floats
    from darkmatter.sandbox.world import World

_GRAM_CHUNKS = 8


@dataclass(frozen=True, slots=True)
class FactorSums:
    """Centred sums of one fold of documents, over p = m + k factors f, activations x and reconstructions s."""

    n: int
    mean: Mapping[str, Tensor]
    ff: Tensor
    fs: Tensor
    xx: Tensor
    xs: Tensor
    ss: float
    ee: float


def collect_sums(
    world: World, sae: Sae, n_tokens: int, folds: int, stream: str, progress: Callable[[int], None] | None
) -> list[FactorSums]:
    """Stream the world once, gathering each fold's sums; the codes wait, sparse, for a few chunks at a time.

    Args:
        world: The world.
        sae: The SAE.
        n_tokens: Tokens to draw.
        folds: Folds of documents.
        stream: Stream to draw from.
        progress: Called with the number of tokens after every chunk.

    Returns:
        Sums of every fold that holds tokens.

    Raises:
        InputError: All documents fall into one fold, or Sae(x) is not finite.
    """
    gatherers = [_Gatherer(world) for _ in range(folds)]
    for chunk, recons in recon_chunks(world, {"sae": sae}, n_tokens=n_tokens, stream=stream):
        check_finite(recons["sae"], "Sae(x)")  # a sum of squares that is NaN would read as zero further on
        fold_numbers = fold_of(chunk.groups, folds)
        for k in np.unique(fold_numbers):
            rows = np.flatnonzero(fold_numbers == k)
            gatherers[k].add(
                csr_array(chunk.codes[rows]), chunk.dense_coords[rows], chunk.x[rows], recons["sae"].numpy()[rows]
            )
        if progress:
            progress(len(chunk))
    found = [gatherer.finish() for gatherer in gatherers if gatherer.n]
    if len(found) < 2:
        raise InputError(f"the truth stream has all its documents in {len(found)} fold: pass more tokens")
    return found


class _Gatherer:
    """Raw sums of one fold. Population means are taken off first, so that centring later cancels nothing."""

    def __init__(self, world: World) -> None:
        m, k, d = world.n_features, world.dense_dim, world.d_model
        self._m = m
        self._shift_f = np.concatenate([world.factor_moments.mean, np.zeros(k)])
        self._shift_x = world.mean
        self._ff = np.zeros((m + k, m + k))
        self._fs = np.zeros((m + k, d))
        self._sum_f = np.zeros(m + k)
        self._xx, self._xs = np.zeros((d, d)), np.zeros((d, d))
        self._sum_x, self._sum_s = np.zeros(d), np.zeros(d)
        self._ss = self._ee = 0.0
        self._waiting: list[csr_array] = []
        self.n = 0

    def add(self, codes: csr_array, coords: Floats, x: Floats, recon: Floats) -> None:
        """Add some tokens."""
        m = self._m
        codes64 = codes.astype(np.float64)
        g, x64, s64 = coords.astype(np.float64), x - self._shift_x, recon - self._shift_x
        sums = np.asarray(codes64.sum(axis=0))
        code_coords = codes64.T @ g
        self._ff[:m, m:] += code_coords
        self._ff[m:, m:] += g.T @ g
        self._fs[:m] += codes64.T @ s64
        self._fs[m:] += g.T @ s64
        self._sum_f += np.concatenate([sums, g.sum(axis=0)])
        self._xx += x64.T @ x64
        self._xs += x64.T @ s64
        self._sum_x += x64.sum(axis=0)
        self._sum_s += s64.sum(axis=0)
        self._ss += float((s64**2).sum())
        self._ee += float(((x64 - s64) ** 2).sum())
        self.n += len(x)
        self._waiting.append(codes64)
        if len(self._waiting) == _GRAM_CHUNKS:
            self._absorb()

    def _absorb(self) -> None:
        if self._waiting:
            codes = csr_array(vstack(self._waiting))
            gram = csr_array(codes.T @ codes)
            rows = np.repeat(np.arange(self._m), np.diff(gram.indptr))
            self._ff[rows, gram.indices] += gram.data  # every entry occurs once in a product, so += is safe
            self._waiting = []

    def finish(self) -> FactorSums:
        """Centre the sums on the fold's own means."""
        self._absorb()
        m, n = self._m, self.n
        self._ff[m:, :m] = self._ff[:m, m:].T
        mean_f, mean_x, mean_s = self._sum_f / n, self._sum_x / n, self._sum_s / n
        torch_of = torch.from_numpy
        error = mean_x - mean_s
        return FactorSums(
            n=n,
            mean={"f": torch_of(mean_f), "x": torch_of(mean_x), "s": torch_of(mean_s)},
            ff=torch_of(self._ff - n * np.outer(mean_f, mean_f)),
            fs=torch_of(self._fs - n * np.outer(mean_f, mean_s)),
            xx=torch_of(self._xx - n * np.outer(mean_x, mean_x)),
            xs=torch_of(self._xs - n * np.outer(mean_x, mean_s)),
            ss=self._ss - n * float(mean_s @ mean_s),
            ee=self._ee - n * float(error @ error),
        )


def merged(folds: list[FactorSums]) -> FactorSums:
    """Sums of the union: scatter + Σ_k n_k δ_k δ_k'."""
    n = sum(fold.n for fold in folds)
    mean = {key: torch.stack([fold.n / n * fold.mean[key] for fold in folds]).sum(dim=0) for key in ("f", "x", "s")}
    total = {name: torch.zeros_like(getattr(folds[0], name)) for name in ("ff", "fs", "xx", "xs")}
    ss = ee = 0.0
    for fold in folds:
        delta = {key: fold.mean[key] - mean[key] for key in mean}
        for name, sums in total.items():
            sums.add_(getattr(fold, name)).addr_(delta[name[0]], delta[name[1]], alpha=fold.n)
        ss += fold.ss + fold.n * float(delta["s"].square().sum())
        ee += fold.ee + fold.n * float((delta["x"] - delta["s"]).square().sum())
    return FactorSums(n=n, mean=mean, **total, ss=ss, ee=ee)
