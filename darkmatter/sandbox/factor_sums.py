"""Sums over the true factors of a world, by fold of documents, from one pass with sparse codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from darkmatter.checks import check_finite
from darkmatter.errors import InputError
from darkmatter.folds import fold_of
from darkmatter.sandbox.chunk import WorldChunk
from darkmatter.sandbox.factor_gram import GramStore, Part

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Floats, Singles
    from darkmatter.sandbox.world import World

Regressor = Literal["f", "x"]
"""What a reconstruction is regressed on: the true factors, or the activations."""


@dataclass(frozen=True, slots=True, eq=False)
class FactorSums:
    """Centred sums of some tokens, over p = m + k factors f, activations x and reconstructions s.

    Attributes:
        n: Tokens.
        mean: Means by letter.
        gram: Parts that add up to the raw Gram matrix of the factors; (p, p) is formed by `scatter` alone.
        fs: Centred cross sums of factors and reconstructions, (p, d).
        xx: Centred scatter of x, (d, d).
        xs: Centred cross sums of x and reconstructions, (d, d).
        ss: Σ|s − s̄|².
        ee: Σ|e − ē|².
    """

    n: int
    mean: Mapping[str, Tensor]
    gram: tuple[Part, ...]
    fs: Tensor
    xx: Tensor
    xs: Tensor
    ss: float
    ee: float

    def scatter(self, key: Regressor) -> Tensor:
        """Centred scatter of the regressor, as a matrix."""
        if key == "x":
            return self.xx
        mean = self.mean["f"].numpy()
        total = np.zeros((len(mean), len(mean)))
        for part in self.gram:
            part.add_to(total)
        return torch.from_numpy(total).addr_(self.mean["f"], self.mean["f"], alpha=-self.n)

    def scattered(self, key: Regressor, weight: Tensor) -> Tensor:
        """Centred scatter of the regressor @ weight, without forming the scatter of the factors."""
        if key == "x":
            return self.xx @ weight
        total = torch.zeros_like(weight)
        for part in self.gram:
            total += torch.from_numpy(part.times(weight.numpy()))
        return total.addr_(self.mean["f"], self.mean["f"] @ weight, alpha=-self.n)

    def crossed(self, key: Regressor) -> Tensor:
        """Centred cross sums of the regressor and the reconstructions."""
        return self.fs if key == "f" else self.xs


def collect_sums(
    world: World,
    pieces: Iterable[tuple[WorldChunk, Tensor]],
    folds: int,
    progress: Callable[[int], None] | None = None,
) -> list[FactorSums]:
    """Stream a world once, gathering each fold's sums.

    Args:
        world: The world.
        pieces: Chunks, with what the SAE (or anything else) makes of them, (n, d).
        folds: Folds of documents.
        progress: Called with the number of tokens after every chunk.

    Returns:
        Sums of every fold that holds tokens.

    Raises:
        InputError: All documents fall into one fold, or Sae(x) is not finite.
    """
    gatherers = [_Gatherer(world) for _ in range(folds)]
    for chunk, recon in pieces:
        check_finite(recon, "Sae(x)")  # a sum of squares that is NaN would read as zero further on
        fold_numbers = fold_of(chunk.groups, folds)
        for k in np.unique(fold_numbers):
            rows = np.flatnonzero(fold_numbers == k)
            gatherers[k].add(csr_array(chunk.codes[rows]), chunk.dense_coords[rows], chunk.x[rows], recon.numpy()[rows])
        if progress:
            progress(len(chunk))
    found = [gatherer.finish() for gatherer in gatherers if gatherer.n]
    if len(found) < 2:
        raise InputError(f"the truth stream has all its documents in {len(found)} fold: pass more tokens")
    return found


class _Gatherer:
    """Raw sums of one fold. Population means of x are taken off first, so that centring later cancels nothing."""

    def __init__(self, world: World) -> None:
        m, k, d = world.n_features, world.dense_dim, world.d_model
        self._m = m
        self._shift_x = world.mean
        self._gram = GramStore(m, k)
        self._fs = np.zeros((m + k, d))
        self._sum_f = np.zeros(m + k)
        self._xx, self._xs = np.zeros((d, d)), np.zeros((d, d))
        self._sum_x, self._sum_s = np.zeros(d), np.zeros(d)
        self._ss = self._ee = 0.0
        self.n = 0

    def add(self, codes: csr_array, coords: Singles, x: Singles, recon: Singles) -> None:
        """Add some tokens."""
        m = self._m
        self._gram.add(codes, coords)
        codes64 = codes.astype(np.float64)
        g: Floats = coords.astype(np.float64)
        x64, s64 = x - self._shift_x, recon - self._shift_x
        self._fs[:m] += codes64.T @ s64
        self._fs[m:] += g.T @ s64
        self._sum_f += np.concatenate([np.asarray(codes64.sum(axis=0)), g.sum(axis=0)])
        self._xx += x64.T @ x64
        self._xs += x64.T @ s64
        self._sum_x += x64.sum(axis=0)
        self._sum_s += s64.sum(axis=0)
        self._ss += float((s64**2).sum())
        self._ee += float(((x64 - s64) ** 2).sum())
        self.n += len(x)

    def finish(self) -> FactorSums:
        """Centre the sums on the fold's own means."""
        n = self.n
        mean_f, mean_x, mean_s = self._sum_f / n, self._sum_x / n, self._sum_s / n
        torch_of = torch.from_numpy
        error = mean_x - mean_s
        return FactorSums(
            n=n,
            mean={"f": torch_of(mean_f), "x": torch_of(mean_x), "s": torch_of(mean_s)},
            gram=self._gram.parts(),
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
    total = {name: torch.zeros_like(getattr(folds[0], name)) for name in ("fs", "xx", "xs")}
    ss = ee = 0.0
    for fold in folds:
        delta = {key: fold.mean[key] - mean[key] for key in mean}
        for name, sums in total.items():
            sums.add_(getattr(fold, name)).addr_(delta[name[0]], delta[name[1]], alpha=fold.n)
        ss += fold.ss + fold.n * float(delta["s"].square().sum())
        ee += fold.ee + fold.n * float((delta["x"] - delta["s"]).square().sum())
    gram = tuple(part for fold in folds for part in fold.gram)
    return FactorSums(n=n, mean=mean, gram=gram, **total, ss=ss, ee=ee)
