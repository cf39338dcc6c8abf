"""Intervals: how a residual variance moves when outcomes are re-weighted, and what fold variances estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError


def reweighted_variance(variance: float, squared_residual: float, leverage: float, step: float) -> float:
    """Residual variance of the law (1 − t) P + t δ_j: (1 − t) (σ² + t |r_j|² / (1 − t + t κ_j)), exactly.

    Its slope at t = 0 is |r_j|² − σ², the influence function: the fitted map has dropped out. It comes back in the
    curvature, −2 κ_j |r_j|². Negative t removes weight from the outcome; it is left out at t = −p_j / (1 − p_j).

    Args:
        variance: σ² = min E|e − x A − b|² under P, ≥ 0.
        squared_residual: |r_j|² of outcome j under the best map of P, ≥ 0.
        leverage: κ_j = 1 + (x_j − x̄) Cov(x)⁺ (x_j − x̄)', ≥ 1; infinite for an outcome off the support's plane.
        step: t < 1; above −1 / (κ − 1).

    Returns:
        σ² of the new law (proofs/03_intervals.md).

    Raises:
        InputError: Sizes out of range, or a step beyond the point at which the outcome is left out.
    """
    for name, value in (("variance", variance), ("squared residual", squared_residual)):
        if not 0.0 <= value < math.inf:
            raise InputError(f"{name} is {value!r}, expected a finite number of at least 0")
    if not leverage >= 1.0:
        raise InputError(f"leverage is {leverage!r}, expected at least 1: the intercept alone gives every outcome 1")
    if step == 0.0:  # infinity times zero is not a number
        return variance
    if not (step < 1.0 and 1.0 + step * (leverage - 1.0) > 0.0):
        raise InputError(f"step is {step!r}, expected below 1 and above -1 / (leverage - 1): nothing is left to fit")
    return (1.0 - step) * (variance + step * squared_residual / (1.0 + step * (leverage - 1.0)))


@dataclass(frozen=True, slots=True)
class FoldVariance:
    """The variance of a weighted mean of fold influences, and what its estimate is on average.

    Attributes:
        true: Var Σ w_k ψ_k = Σ w_k² v_k.
        expected: E se² = Σ w_k (1 − w_k) v_k / (K − 1).
    """

    true: float
    expected: float


def fold_variance(n: npt.ArrayLike, variances: npt.ArrayLike) -> FoldVariance:
    """What se² = Σ w_k (ψ_k − ψ̄)² / (K − 1) estimates, for independent folds of equal mean; w_k = n_k / n.

    The two agree when v_k = τ²/n_k, and when all folds have one size. Else se² is too small if larger folds have more
    than their share of variance.

    Args:
        n: Tokens per fold, (K,), K ≥ 2, all positive.
        variances: v_k = Var ψ_k, (K,), ≥ 0.

    Returns:
        Both variances, in squared units of ψ (proofs/03_intervals.md).

    Raises:
        InputError: Fewer than two folds, different lengths, an empty fold or a negative variance.
    """
    sizes, v = np.asarray(n, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    if sizes.ndim != 1 or sizes.shape != v.shape or len(sizes) < 2:
        raise InputError(f"n and variances have shapes {sizes.shape} and {v.shape}, expected (K,) twice, K at least 2")
    if not (np.isfinite(sizes + v).all() and sizes.min() > 0.0 and v.min() >= 0.0):
        raise InputError(
            "n and variances hold impossible values, expected n > 0 and variances >= 0: leave out empty folds"
        )
    w = sizes / sizes.sum()
    return FoldVariance(true=float((w**2 * v).sum()), expected=float((w * (1.0 - w) * v).sum() / (len(w) - 1)))


def design_effect(lengths: npt.ArrayLike, correlation: float) -> float:
    """Var of a mean over clustered tokens, in units of what independent tokens would have: 1 + ρ (Σ T² / n − 1).

    For documents of one length it is 1 + (T − 1) ρ. Tokens of different documents are independent.

    Args:
        lengths: Tokens T of every document, (D,), at least 1 each; n is their sum.
        correlation: ρ of any two tokens of one document, in [0, 1].

    Returns:
        The factor, ≥ 1 (Kish's design effect; proofs/03_intervals.md).

    Raises:
        InputError: No document, an empty one, or a correlation outside [0, 1].
    """
    t = np.asarray(lengths, dtype=np.float64)
    if t.ndim != 1 or not len(t) or not np.isfinite(t).all() or t.min() < 1.0:
        raise InputError(f"lengths have shape {t.shape}, expected (D,) with at least one token in every document")
    if not 0.0 <= correlation <= 1.0:
        raise InputError(f"correlation is {correlation!r}, expected a number in [0, 1]")
    return 1.0 + correlation * (float((t**2).sum() / t.sum()) - 1.0)


def residual_spread(n: int, rank: int, targets: int) -> float:
    """Relative variance of the unbiased residual variance of Gaussian noise: Var σ̂² / σ⁴ = 2 / ((n − rank − 1) q).

    Args:
        n: Tokens.
        rank: Directions of x that were fitted beside the intercept, ≥ 0.
        targets: q ≥ 1, coordinates with independent noise of equal variance.

    Returns:
        The relative variance (proofs/03_intervals.md); the influence function alone gives 2 / (n q).

    Raises:
        InputError: No degree of freedom is left, or no target.
    """
    if rank < 0 or targets < 1 or n <= rank + 1:
        raise InputError(
            f"n, rank and targets are {n!r}, {rank!r} and {targets!r}, expected rank >= 0, targets >= 1 and "
            "n > rank + 1: pass more tokens"
        )
    return 2.0 / ((n - rank - 1) * targets)
