"""Fold sums about the means of all tokens, and the ratios that are read from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.folds import FoldMoments
from darkmatter.inference import Estimate, interval, relative_influence
from darkmatter.moments import Moments


@dataclass(frozen=True, slots=True)
class FoldMeans:
    """Fold sums about the means of all tokens; `n` runs over the folds that hold tokens.

    Attributes:
        n: Tokens, (K,).
        x: Σ |x − x̄|², (K,).
        xe: Σ ⟨x − x̄, e_a − ē_a⟩, (K, S).
        ee: Σ ⟨e_a − ē_a, e_b − ē_b⟩, (K, S, S).
        targets: Σ (t − t̄)², (K, 1 + 2 S).
    """

    n: Tensor
    x: Tensor
    xe: Tensor
    ee: Tensor
    targets: Tensor

    @classmethod
    def of(cls, moments: FoldMoments, total: Moments) -> FoldMeans:
        """Collect the sums of all folds."""
        used = [fold for fold in moments.folds if fold.n]
        traces = [fold.traces_about(total.mean) for fold in used]
        return cls(
            n=torch.tensor([fold.n for fold in used], dtype=torch.float64),
            x=torch.stack([t.x for t in traces]).cpu(),
            xe=torch.stack([t.xe for t in traces]).cpu(),
            ee=torch.stack([t.ee for t in traces]).cpu(),
            targets=torch.stack([t.targets for t in traces]).cpu(),
        )

    def mean(self, sums: Tensor) -> float:
        """Σ sums / n over all folds."""
        return float(sums.sum() / self.n.sum())

    @property
    def var_x(self) -> float:
        """Var x, the trace of its covariance."""
        return self.mean(self.x)

    def var_e(self, i: int) -> float:
        """Var e of SAE i."""
        return self.mean(self.ee[:, i, i])

    def log_influence(self, sums: Tensor) -> Tensor:
        """Influence of every fold on the logarithm of a mean, (K,)."""
        return relative_influence(sums, self.n)

    def ratio(self, top: Tensor, bottom: Tensor) -> Estimate:
        """Σ top / Σ bottom with the delta-method interval on the identity scale."""
        value = float(top.sum() / bottom.sum())
        return interval(value, (top - value * bottom) / self.n / self.mean(bottom), self.n)

    def share(self, variance: float, influence: Tensor, of: Tensor) -> Estimate:
        """Ratio variance / mean(of), log scale; `influence` is that of the folds on the logarithm of the variance."""
        value = variance / self.mean(of)
        return interval(value, influence - self.log_influence(of), self.n, link="log")
