"""Many numbers per token regressed on x: what a second pass adds to the moments of the first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.errors import InputError
from darkmatter.folds import FoldMoments, fold_of
from darkmatter.inference import (
    UNDEFINED,
    Estimate,
    interval,
    relative_influence,
    residual_influence,
    symmetric_optimism,
)
from darkmatter.solve import check_enough_tokens, factor


class TargetSums:
    """Streams T numbers per token into X't by fold, about the fold's own mean of x, which the first pass knows.

    Memory is K d T float64 numbers beside the moments.
    """

    def __init__(self, moments: FoldMoments, n_targets: int) -> None:
        """Start from nothing.

        Args:
            moments: The first pass.
            n_targets: Numbers per token T.
        """
        self._moments = moments
        self._means = torch.stack([fold.mean_x for fold in moments.folds])
        k, d = self._means.shape
        self._n = self._means.new_zeros(k)
        self._xt = self._means.new_zeros(k, d, n_targets)
        self._t, self._tt = self._means.new_zeros(k, n_targets), self._means.new_zeros(k, n_targets)
        self._start: Tensor | None = None

    def add(self, x: Tensor, targets: Tensor, groups: npt.NDArray[np.int64]) -> None:
        """Add some tokens.

        Args:
            x: Activations, (n, d), float64.
            targets: The numbers, (n, T), float64.
            groups: Document ids, (n,).
        """
        device = self._means.device
        x, targets = x.to(device), targets.to(device)
        if self._start is None:  # sums of squares about a typical value lose no digits
            self._start = targets.mean(dim=0)
        targets = targets - self._start
        folds = fold_of(groups, len(self._n))
        for k in np.unique(folds):
            mine = torch.from_numpy(np.flatnonzero(folds == k)).to(device)
            own = targets[mine]
            self._n[k] += len(mine)
            self._xt[k].addmm_((x[mine] - self._means[k]).T, own)
            self._t[k] += own.sum(dim=0)
            self._tt[k] += own.square().sum(dim=0)

    def finish(self) -> TargetFit:
        """Regress every number on x with an intercept, leaving one fold out at a time.

        Returns:
            The sums of squares.

        Raises:
            InputError: Not the tokens of the first pass, fewer than two folds with tokens, or too few tokens.
        """
        expected = [fold.n for fold in self._moments.folds]
        if self._n.tolist() != expected:
            raise InputError(
                f"the second pass saw {int(self._n.sum()):,} tokens, expected the {sum(expected):,} of the first in "
                "the same folds: a source must repeat itself"
            )
        count = self._n.clamp_min(1)[:, None]
        parts = [
            _Part(fold.n, fold.mean_x, fold.xx, t / n, xt, tt - t.square() / n)
            for fold, t, n, xt, tt in zip(self._moments.folds, self._t, count, self._xt, self._tt, strict=True)
            if fold.n
        ]
        if len(parts) < 2:
            raise InputError("all documents fall into one fold, expected at least 2 folds with tokens: pass more")
        total = _union(parts)
        rank = factor(total.xx, total.mean_x, total.n).rank
        check_enough_tokens(min(total.n - part.n for part in parts), rank)
        fits = [_leave_out(part, rest) for part, rest in zip(parts, _rests(parts), strict=True)]
        n = torch.tensor([part.n for part in parts], dtype=torch.float64)
        spread = [part.tt + part.n * (part.mean_t - total.mean_t).square() for part in parts]
        return TargetFit(
            n=n,
            n_train=total.n - n,
            train=torch.stack([train for train, _ in fits]).cpu(),
            heldout=torch.stack([heldout for _, heldout in fits]).cpu(),
            total=torch.stack(spread).cpu(),
            rank=rank,
        )


@dataclass(frozen=True, slots=True, eq=False)
class TargetFit:
    """Sums of squares of T numbers; K counts the folds that hold tokens.

    Attributes:
        n: Held-out tokens, (K,).
        n_train: Training tokens, (K,).
        train: Residual sums of squares on the training tokens of each fit, (K, T).
        heldout: The same on the fold left out, (K, T).
        total: Σ (t − t̄)² by fold about the mean of all tokens, (K, T).
        rank: Directions of x.
    """

    n: Tensor
    n_train: Tensor
    train: Tensor
    heldout: Tensor
    total: Tensor
    rank: int

    def variance(self, i: int) -> float:
        """Variance of number i."""
        return float(self.total[:, i].sum() / self.n.sum())

    def residual(self, i: int) -> float:
        """Residual variance of number i, sqrt(S·C)."""
        return symmetric_optimism(self.train[:, i], self.heldout[:, i], self.n_train, self.n)

    def r2(self, i: int) -> Estimate:
        """R² of number i on x, 1 − sqrt(S·C)/Var; undefined where the number does not vary."""
        if not self.variance(i) > 0:
            return UNDEFINED
        influence = residual_influence(self.heldout[:, i], self.n, self.rank)
        influence = influence - relative_influence(self.total[:, i], self.n)
        return interval(self.residual(i) / self.variance(i), influence, self.n, link="log").complement()


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Moments of some tokens: count, mean and scatter of x, mean of t, X't and Σ (t − t̄)²."""

    n: int
    mean_x: Tensor
    xx: Tensor
    mean_t: Tensor
    xt: Tensor
    tt: Tensor


def _union(parts: list[_Part]) -> _Part:
    """Moments of all parts together (Chan, Golub and LeVeque)."""
    if len(parts) == 1:
        return parts[0]
    n = sum(part.n for part in parts)
    weight = parts[0].mean_x.new_tensor([part.n for part in parts])[:, None]
    mean_x, mean_t = (
        first + (weight * (stacked - first)).sum(dim=0) / n
        for first, stacked in (
            (parts[0].mean_x, torch.stack([part.mean_x for part in parts])),
            (parts[0].mean_t, torch.stack([part.mean_t for part in parts])),
        )
    )
    off_x = torch.stack([part.mean_x - mean_x for part in parts])
    off_t = torch.stack([part.mean_t - mean_t for part in parts])
    xx = parts[0].xx + parts[1].xx
    xt, tt = parts[0].xt + parts[1].xt, parts[0].tt + parts[1].tt
    for part in parts[2:]:
        xx += part.xx
        xt += part.xt
        tt += part.tt
    return _Part(
        n=n,
        mean_x=mean_x,
        xx=xx.addmm_((off_x * weight).T, off_x),
        mean_t=mean_t,
        xt=xt.addmm_((off_x * weight).T, off_t),
        tt=tt + (weight * off_t.square()).sum(dim=0),
    )


def _rests(parts: list[_Part], others: _Part | None = None) -> Iterator[_Part]:
    """For every part in turn the union of all others, by halving: sums are united, never subtracted.

    Yields:
        Moments of the others, in the order of `parts`.
    """
    if len(parts) == 1 and others is not None:
        yield others
        return
    middle = len(parts) // 2
    left, right = parts[:middle], parts[middle:]
    for own, rest in ((left, right), (right, left)):
        yield from _rests(own, _union(rest if others is None else [others, *rest]))


def _leave_out(part: _Part, rest: _Part) -> tuple[Tensor, Tensor]:
    """Residual sums of squares (T,) of the fit to the rest: on the rest, and on the part."""
    fit = factor(rest.xx, rest.mean_x, rest.n)
    check_enough_tokens(rest.n, fit.rank)
    slope = fit.solve(rest.xt)
    off = part.mean_t - rest.mean_t - (part.mean_x - rest.mean_x) @ slope
    heldout = part.tt + (slope * (part.xx @ slope - 2 * part.xt)).sum(dim=0) + part.n * off.square()
    return (rest.tt - (slope * rest.xt).sum(dim=0)).clamp_min(0), heldout.clamp_min(0)
