"""Sums of numbers per token, by vocabulary id and document fold: what a token's identity says of them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.errors import InputError
from darkmatter.folds import fold_of
from darkmatter.inference import UNDEFINED, Estimate, interval, relative_influence

ID_BYTES = 2 * 2**30
"""Most memory for sums by id; 2 GiB hold 50 numbers of a vocabulary of 256k in 20 folds."""


class IdSums:
    """Streams numbers per token into sums by id and fold, (V, K, C + 1) in float64, V the highest id seen plus one.

    Where that would pass the limit the sums are dropped and `over` is set: a table by id is a by-product, which must
    not end a run.
    """

    def __init__(self, n_columns: int, folds: int, *, limit: int = ID_BYTES) -> None:
        """Start from nothing.

        Args:
            n_columns: Numbers per token C.
            folds: Folds K.
            limit: Most bytes.
        """
        self._limit = limit
        self._sums = torch.zeros(0, folds, n_columns + 1, dtype=torch.float64)
        self.over = False

    def add(self, groups: npt.NDArray[np.int64], token_ids: npt.NDArray[np.int64], columns: Tensor) -> None:
        """Add some tokens.

        Args:
            groups: Document ids, (n,).
            token_ids: Vocabulary ids, (n,).
            columns: The numbers, (n, C).

        Raises:
            InputError: A negative id.
        """
        if self.over or not len(token_ids):
            return
        if int(token_ids.min()) < 0:
            raise InputError(f"token_ids holds {int(token_ids.min())}, expected ids of a vocabulary, from 0 on")
        rows, k, c = self._sums.shape
        wanted = int(token_ids.max()) + 1
        if wanted > rows:
            wanted = max(wanted, min(2 * rows, self._limit // (k * c * 8)))
            if wanted * k * c * 8 > self._limit:
                self.over, self._sums = True, self._sums[:0]
                return
            self._sums = torch.cat([self._sums, self._sums.new_zeros(wanted - rows, k, c)])
        where = torch.from_numpy(token_ids * k + fold_of(groups, k))
        values = torch.cat([torch.ones(len(columns), 1, dtype=torch.float64), columns.double().cpu()], dim=1)
        self._sums.view(-1, c).index_add_(0, where, values)

    @property
    def seen(self) -> Tensor:
        """Ids that occur, (V',)."""
        return (self._sums[:, :, 0].sum(dim=1) > 0).nonzero()[:, 0]

    @property
    def counts(self) -> Tensor:
        """Tokens by id and fold, (V', K)."""
        return self._sums[self.seen, :, 0]

    def sums(self, column: int) -> Tensor:
        """Sums of a number by id and fold, (V', K)."""
        return self._sums[self.seen, :, column + 1]


def identity_r2(counts: Tensor, sums: Tensor, squares: Tensor) -> Estimate:
    """R² out of fold of predicting a number by the mean over other documents' tokens of the same id.

    The mean of id i over the other folds is drawn to the mean of all, (Σ t + λ t̄)/(n_i + λ), λ = the variance within
    ids over that between ids, by moments in those folds. An id that they lack gets t̄. R² = 1 − C/Var, C the held-out
    mean squared residual: what such a table would reach, a little below the population's R².

    Args:
        counts: Tokens by id and fold, (V, K).
        sums: Σ t by id and fold, (V, K).
        squares: Σ t² by fold, (K,).

    Returns:
        R² with its interval; undefined where t does not vary or fewer than two folds hold tokens.
    """
    n = counts.sum(dim=0)
    used = [k for k in range(len(n)) if n[k] > 0]
    mean = float(sums.sum() / n.sum())
    total = (squares - 2 * mean * sums.sum(dim=0) + n * mean**2)[used]
    if len(used) < 2 or not float(total.sum()) > 0:
        return UNDEFINED
    all_counts, all_sums = counts.sum(dim=1), sums.sum(dim=1)
    residual = []
    for k in used:
        own, rest = counts[:, k], all_counts - counts[:, k]
        rest_sums = all_sums - sums[:, k]
        centre = float(rest_sums.sum() / rest.sum())
        shrink = _shrinkage(rest, rest_sums, float(squares.sum() - squares[k]))
        guess = (rest_sums + shrink * centre) / (rest + shrink) if math.isfinite(shrink) else torch.tensor(centre)
        guess = torch.where(rest > 0, guess, centre)
        residual.append(squares[k] - 2 * (guess * sums[:, k]).sum() + (own * guess.square()).sum())
    left = torch.stack(residual).clamp_min(0)
    influence = relative_influence(left, n[used]) - relative_influence(total, n[used])
    return interval(float(left.sum() / total.sum()), influence, n[used], link="log").complement()


def _shrinkage(counts: Tensor, sums: Tensor, squares: float) -> float:
    """λ, the variance within ids over that between ids (one-way analysis of variance); infinite without the latter."""
    held = counts > 0
    n, between_ids = float(counts.sum()), float((sums[held].square() / counts[held]).sum())
    kinds = int(held.sum())
    if n <= kinds:
        return math.inf
    within = max(0.0, squares - between_ids) / (n - kinds)
    spread = between_ids - float(sums.sum()) ** 2 / n - (kinds - 1) * within
    size = n - float(counts.square().sum()) / n
    return within * size / spread if spread > 0 and size > 0 else math.inf
