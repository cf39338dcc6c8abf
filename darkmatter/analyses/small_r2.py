"""Interval of a gain in R² that holds where the gain is nothing, where it is large, and between."""

from __future__ import annotations

import math

import torch
from scipy import optimize, stats
from torch import Tensor

from darkmatter.inference import LEVEL, UNDEFINED, Estimate, standard_error

_SMALLEST = 1e-12
"""Directions of the regressors with less variance than this, that of each being 1, carry rounding, not information."""


def gain_interval(value: float, n: Tensor, mean: Tensor, scatter: Tensor, less: int) -> Estimate:
    """Interval of Δ = R²(all regressors) − R²(the first of them), from moments by fold.

    Let z be the other p regressors, freed of the first and whitened, t the target over its standard deviation, r its
    residual on all and r₀ that on the first: Δ = |γ|² with γ = E z t, and |γ̂|² is the gain in sample. γ̂ is a mean over
    tokens, close to normal, and its error does not vanish with γ. So |γ̂|² is like a noncentral χ², skewed where nΔ is
    of order one, and an interval symmetric in Δ cannot hold there. Folds of documents estimate, without taking tokens
    for independent or errors for alike:

    * V, the covariance of γ̂ at γ = 0, from fold means of z·r (the sandwich). τ = tr V is Takeuchi's optimism:
      E|γ̂|² = Δ + τ for any Δ; and Var|γ̂|² = 2 tr V² at γ = 0.
    * v, the variance of γ̂ along γ, from the influence function of Δ, r₀² − r² − Δt² = γ'z(r₀ + r) − Δt², over 2|γ|: the
      delta method, Var|γ̂|² = 4Δv far from 0. (Out of fold this influence has a noise of its own at γ = 0, with which
      the standard error is 2√p/n in place of √(2p)/n.)

    γ̂ points along γ only up to its noise, τ of |γ̂|², and least where |γ̂| is small. That part of v takes instead the
    largest variance of any direction, λ of V: v + max(0, λ − v) min(1, τ/|γ̂|²), nothing new where nΔ ≫ p or p = 1. All
    are widened by n/(n − C), the tokens over the degrees of freedom of r. The variance of |γ̂|² is linear in Δ, as for a
    noncentral χ²: 4Δv + 2 tr V². The root |γ̂| then has, by the delta method about Δ + τ with its mean to second order,

        s²(Δ) = (Δv + ½ tr V²) / (Δ + τ),    m(Δ) = sqrt(Δ + τ − s²(Δ)),

    and is close to normal for all Δ ≥ 0 and p ≥ 1 (Fisher's root of χ²). The interval holds every Δ ≥ 0 with

        |atanh |γ̂| − atanh m(Δ)| ≤ t s(Δ) / (1 − |γ̂|²),    t of K − 1 degrees of freedom.

    For p = 1 it is close to (|γ̂| ± t√v)². Where nΔ ≫ p it is that of the delta method: Fisher's z goes from the root of
    Δ near 0 to the logarithm of 1 − Δ near 1. Where |γ̂| is too small even for Δ = 0, as can happen for p > 1, and then
    in about 2.5 % of samples with Δ = 0, the upper end is 0.

    Args:
        value: Estimate of Δ; widens the interval where it lies outside, as one below 0 does.
        n: Tokens of every fold, all positive, (K,).
        mean: Means of the regressors and, last, of the target, (K, C).
        scatter: Their centred products in every fold, (K, C, C).
        less: How many of the regressors stand in both fits.

    Returns:
        The estimate with its interval; undefined if `value` is not finite, the target does not vary, or there are no
        more tokens than parameters.
    """
    weight = n / n.sum()
    off = mean - weight @ mean
    products = scatter / n[:, None, None] + off[:, :, None] * off[:, None, :]
    size = torch.einsum("k,kcc->c", weight, products).sqrt()
    free = float(n.sum()) - len(size)
    if not math.isfinite(value) or not float(size[-1]) > 0 or not free > 0:
        return UNDEFINED
    products = products / torch.where(size > 0, size, 1)[:, None] / torch.where(size > 0, size, 1)
    z, gamma, first = _directions(torch.einsum("k,kcd->cd", weight, products), less)
    square = float(gamma @ gamma)
    if not 0 < square < 1 - _SMALLEST:
        return Estimate(value, min(value, square), max(value, square))
    residual = first - z @ gamma
    widened = math.sqrt(float(n.sum()) / free)
    score = torch.einsum("cp,kcd,d->kp", z, products, residual) * widened
    along = torch.einsum("c,kcd,d->k", z @ gamma, products, first + residual) - square * products[:, -1, -1]
    v = standard_error(along * widened, n) ** 2 / (4 * square)
    trace, squared, largest = _spread(score, weight)
    v += max(0.0, largest - v) * min(1.0, trace / square)
    low, high = _ends(square, v, trace, squared, len(n) - 1)
    return Estimate(value, min(value, low), max(value, high))


def _directions(whole: Tensor, less: int) -> tuple[Tensor, Tensor, Tensor]:
    """Combinations of the columns: z, (C, p); γ̂, (p,); and the target's residual on the first regressors, (C,)."""
    rest = torch.eye(len(whole), dtype=whole.dtype)[:, less:]
    if less:
        rest[:less] = -slopes(whole[:less, :less], whole[:less, less:])
    left = rest.T @ whole @ rest
    variance, basis = torch.linalg.eigh(left[:-1, :-1])
    kept = variance > _SMALLEST
    root = basis[:, kept] / variance[kept].sqrt()
    return rest[:, :-1] @ root, root.T @ left[:-1, -1], rest[:, -1]


def slopes(gram: Tensor, cross: Tensor) -> Tensor:
    """Least squares from moments in the minimum-norm sense, G⁺H of regressors scaled to unit variance.

    The symmetric eigendecomposition gives the same bits from call to call, which torch's least-squares drivers do not.

    Args:
        gram: G, (c, c).
        cross: H, (c, q).

    Returns:
        (c, q); 0 for a regressor that does not vary.
    """
    size = gram.diagonal().sqrt()
    scale = torch.where(size > 0, size, 1).reciprocal()[:, None]
    solution: Tensor = scale * (torch.linalg.pinv(scale * gram * scale.T, hermitian=True) @ (scale * cross))
    return solution


def _spread(score: Tensor, weight: Tensor) -> tuple[float, float, float]:
    """Trace of V and of V², and the largest eigenvalue of V, from fold means of scores as if they were normal.

    V̂ is then Wishart with m = K − 1 degrees of freedom over m: E tr V̂² = (1 + 1/m) tr V² + (tr V)²/m and
    E (tr V̂)² = (tr V)² + 2 tr V²/m, solved for tr V² and kept within (tr V)²/p and (tr V)². Eigenvalues of V̂ spread
    more than those of V: they are drawn to their mean until their squares add up to tr V².
    """
    m = len(score) - 1
    centred = score - weight @ score
    v = (weight[:, None] * centred).T @ centred / m
    trace, raw, even = float(v.trace()), float(v.square().sum()), float(v.trace()) ** 2 / len(v)
    squared = (raw - trace**2 / m) * m**2 / ((m - 1) * (m + 2)) if m > 1 else trace**2
    squared = min(max(squared, even), trace**2)
    kept = math.sqrt(min(1.0, (squared - even) / (raw - even))) if raw > even else 1.0
    return trace, squared, (1 - kept) * trace / len(v) + kept * float(torch.linalg.eigvalsh(v)[-1])


def _ends(square: float, v: float, trace: float, squared: float, m: int) -> tuple[float, float]:
    """The smallest and largest Δ that are not rejected; both 0 where even 0 is too much."""
    if not trace > 0:
        return square, square
    t = float(stats.t.ppf((1 + LEVEL) / 2, m))

    def excess(delta: float, sign: int) -> float:
        variance = (delta * v + squared / 2) / (delta + trace)
        expected = min(max(delta + trace - variance, 0.0), 1 - 1e-15)
        return math.atanh(math.sqrt(expected)) + sign * t * math.sqrt(variance) / (1 - square) - centre

    centre, ends = math.atanh(math.sqrt(square)), []
    for sign in (1, -1):
        if excess(0.0, sign) >= 0:
            ends.append(0.0)
        elif excess(1.0, sign) <= 0:
            ends.append(1.0)
        else:
            ends.append(float(optimize.brentq(excess, 0.0, 1.0, args=(sign,), xtol=1e-15)))
    return ends[0], ends[1]
