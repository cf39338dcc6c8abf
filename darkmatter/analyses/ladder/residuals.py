"""Residual sums of squares of one predictor over all fits, and the estimates that are read from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.inference import Estimate, interval, relative_influence, symmetric_optimism


@dataclass(frozen=True, slots=True, eq=False)
class Residuals:
    """Residual sums of squares of the error under one predictor.

    Attributes:
        train: Σ |r|² over the training tokens of the fit that left fold k out, (K,); None for a trained predictor,
            of which only held-out sums count.
        heldout: Σ |r|² over fold k, (K,).
        n_train: Training tokens of that fit, (K,).
        n: Tokens of fold k, (K,).
        per_target: Fitted parameters per coordinate of the error, for `residual_influence`.
    """

    train: Tensor | None
    heldout: Tensor
    n_train: Tensor
    n: Tensor
    per_target: float = 0.0

    @property
    def variance(self) -> float:
        """sqrt(S·C); C alone of a trained predictor."""
        if self.train is None:
            return float(self.heldout.sum() / self.n.sum())
        return symmetric_optimism(self.train, self.heldout, self.n_train, self.n)

    @property
    def influence(self) -> Tensor:
        """Influence of every fold on the logarithm of the variance, (K,)."""
        total = float(self.n.sum())
        return relative_influence(self.heldout, self.n) * math.sqrt(total / max(1.0, total - self.per_target - 1))

    def united(self, where: Tensor) -> Residuals:
        """The same with folds united to groups; `where` is the group of every fold, (K,)."""
        return Residuals(
            train=None if self.train is None else by_group(self.train, where),
            heldout=by_group(self.heldout, where),
            n_train=by_group(self.n_train, where),
            n=by_group(self.n, where),
            per_target=self.per_target,
        )


def by_group(sums: Tensor, where: Tensor) -> Tensor:
    """Add up fold sums by group."""
    return torch.zeros(int(where.max()) + 1, dtype=sums.dtype).index_add_(0, where, sums)


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """Var e by fold, against which residuals are read; residuals of groups of folds are compared by group.

    Attributes:
        sums: Σ |e − ē|² by fold about the mean of all tokens, (K,).
        n: Tokens of every fold, (K,).
        where: Group of every fold, (K,), int64.
    """

    sums: Tensor
    n: Tensor
    where: Tensor

    @property
    def variance(self) -> float:
        """Var e."""
        return float(self.sums.sum() / self.n.sum())

    def left(self, residuals: Residuals | None) -> tuple[float, Tensor]:
        """Share of Var e that is left, and the influence of the folds on its logarithm."""
        if residuals is None:
            return 1.0, torch.zeros_like(self.sums)
        return residuals.variance / self.variance, residuals.influence - relative_influence(self.sums, self.n)

    def r2(self, residuals: Residuals) -> Estimate:
        """1 − V / Var e; the interval is symmetric for the logarithm of V / Var e."""
        whole = self._like(residuals)
        left, influence = whole.left(residuals)
        return interval(left, influence, whole.n, link="log").complement()

    def difference(self, more: Residuals, less: Residuals | None) -> Estimate:
        """By how much the share that one predictor explains exceeds another's, or zero."""
        if less is not None and len(more.n) != len(less.n):
            more, less = (r if len(r.n) < len(self.n) else r.united(self.where) for r in (more, less))
        whole = self._like(more)
        left, influence = whole.left(more)
        other, other_influence = whole.left(less)
        return interval(other - left, other * other_influence - left * influence, whole.n)

    def _like(self, residuals: Residuals) -> Explained:
        if len(residuals.n) == len(self.n):
            return self
        groups = torch.arange(int(self.where.max()) + 1)
        return Explained(by_group(self.sums, self.where), by_group(self.n, self.where), groups)
