"""Which factors the affine part of an SAE's error belongs to: dense, absent or learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from darkmatter.inference import Estimate, interval
from darkmatter.sandbox.factor_sums import FactorSums, merged
from darkmatter.solve import check_enough_tokens, factor

if TYPE_CHECKING:
    import numpy.typing as npt

    from darkmatter.sandbox.features import Floats
    from darkmatter.sandbox.world import World

LEARNED = 0.5
"""A feature counts as learned if its response in Sae(x), along its own direction, is at least this."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Some factors, with what weighs their coefficients: Var = Σ_i v_i |M_i|² + |U'M|² for coefficient rows M_i."""

    rows: npt.NDArray[np.intp]
    variance: Floats
    low_rank: Floats

    def product(self, first: Floats, second: Floats) -> float:
        """Covariance of two sets of coefficients on these factors, Σ v_i ⟨A_i, B_i⟩ + ⟨U'A, U'B⟩."""
        a, b = first[self.rows], second[self.rows]
        return float(self.variance @ (a * b).sum(axis=1) + ((self.low_rank.T @ a) * (self.low_rank.T @ b)).sum())

    def gradient(self, coefficients: Floats, like: Floats) -> Floats:
        """Derivative of ½ product(M, M) with respect to M, zero on other factors."""
        found = np.zeros_like(like)
        mine = coefficients[self.rows]
        found[self.rows] = self.variance[:, None] * mine + self.low_rank @ (self.low_rank.T @ mine)
        return found


def affine_budget(world: World, folds: list[FactorSums], total: FactorSums) -> tuple[dict[str, Estimate], int]:
    """Split the affine error (Y − B)'f, whose covariance the world knows, among absent, dense and learned factors.

    A square of an estimated coefficient is too large by its noise. So B is estimated twice, from two disjoint halves
    of the folds, and the two enter as a product: its expectation has no noise term, whatever the noise's law. Intervals
    come from the influence of every fold on B, −2 ⟨(F'F)⁻¹ gradient, F_k'(Sae − B'f)⟩.

    Args:
        world: The world.
        folds: Sums of the folds.
        total: Their union.

    Returns:
        absent, dense, linear and cross as shares of Var x, and the number of learned features.
    """
    m, k = world.n_features, world.dense_dim
    moments = world.factor_moments
    true = np.vstack([world.dictionary_matrix, world.dense_map]).astype(np.float64)
    fit = factor(total.ff, total.mean["f"], total.n)
    weight = fit.solve(total.fs)
    miss = true - weight.numpy()
    halves = [true - _coefficients(merged(folds[start::2])) for start in (0, 1)]
    learned = (weight.numpy()[:m] * true[:m]).sum(axis=1) >= LEARNED
    variance = np.concatenate([moments.diagonal, np.ones(k)])
    low_rank = np.vstack([moments.low_rank, np.zeros((k, moments.low_rank.shape[1]))])
    rows = {
        "absent": np.flatnonzero(~learned),
        "linear": np.flatnonzero(learned),
        "dense": np.arange(m, m + k),
        "sparse": np.arange(m),
    }
    groups = {name: _Group(i, variance[i], low_rank[i]) for name, i in rows.items()}
    values = {name: group.product(halves[0], halves[1]) for name, group in groups.items()}
    adjoint = {
        name: fit.solve(torch.from_numpy(group.gradient(miss, true))) * total.n for name, group in groups.items()
    }
    n = torch.tensor([fold.n for fold in folds], dtype=torch.float64)
    influence = {name: torch.zeros(len(folds), dtype=torch.float64) for name in groups}
    for j, fold in enumerate(folds):
        score = _score(fold, total, weight)
        for name in groups:
            influence[name][j] = -2 * float((adjoint[name] * score).sum()) / fold.n
    # shared topics correlate learned features with absent ones
    values["cross"] = values["sparse"] - values["absent"] - values["linear"]
    influence["cross"] = influence["sparse"] - influence["absent"] - influence["linear"]
    shares = {
        name: interval(values[name] / world.variance, influence[name] / world.variance, n)
        for name in ("absent", "dense", "linear", "cross")
    }
    return shares, int(learned.sum())


def _coefficients(sums: FactorSums) -> Floats:
    fit = factor(sums.ff, sums.mean["f"], sums.n)
    check_enough_tokens(sums.n, fit.rank)
    found: Floats = fit.solve(sums.fs).numpy()
    return found


def _score(fold: FactorSums, total: FactorSums, weight: Tensor) -> Tensor:
    """Σ over the fold of (f − f̄)(s − s̄ − (f − f̄)B)', deviations from the means of all tokens, (m + k, d)."""
    shift_f = fold.mean["f"] - total.mean["f"]
    residual = fold.mean["s"] - total.mean["s"] - shift_f @ weight
    return (fold.fs - fold.ff @ weight).addr_(shift_f, residual, alpha=fold.n)
