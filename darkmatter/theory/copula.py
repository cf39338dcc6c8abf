"""Gates of a Gaussian copula: how often two features fire together, exactly and as a Hermite series with its error."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from darkmatter.errors import InputError

Floats = npt.NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)


def threshold(probability: npt.ArrayLike) -> Floats:
    """Φ⁻¹(p): a gate with firing probability p is open where a standard normal exceeds −Φ⁻¹(p).

    Args:
        probability: p in [0, 1), any shape.

    Returns:
        Thresholds of the same shape, with a finite number for p = 0.
    """
    found: Floats = ndtri(np.maximum(probability, np.finfo(np.float64).tiny))
    return found


def gate_coefficients(tau: Floats, loading: Floats, terms: int) -> list[Floats]:
    """Hermite coefficients of firing curves, E[1{Z > −τ} he_k(z)] = λ^k φ(τ) he_{k−1}(−τ) / √k for corr(Z, z) = λ.

    he_k = He_k / √k! is normalised, on the way too, so that nothing overflows.

    Args:
        tau: Thresholds, any shape.
        loading: λ in [−1, 1], of the same shape.
        terms: Number of terms K ≥ 1.

    Returns:
        Coefficients k = 1 … K, each of the same shape (proofs/15).
    """
    density = np.exp(-(tau**2) / 2) / math.sqrt(2 * math.pi)
    before, now = np.zeros_like(tau), np.ones_like(tau)  # he_{k-2}, he_{k-1} at −τ
    power = np.ones_like(tau)
    found = []
    for k in range(1, terms + 1):
        power = power * loading
        found.append(power * density * now / math.sqrt(k))
        before, now = now, (-tau * now - math.sqrt(k - 1) * before) / math.sqrt(k)
    return found


def both_fire(p: npt.ArrayLike, q: npt.ArrayLike, correlation: npt.ArrayLike) -> Floats:
    """P(both gates open), by Plackett's formula: p q + 1/(2π) ∫ exp(−(a² − 2ab sin t + b²) / (2 cos² t)) dt over t.

    a and b are the thresholds and t goes from 0 to arcsin ρ. The integrand is smooth: Gauss's rule with 48 nodes is
    good to 1e-13 for |ρ| ≤ 0.9 (no series, so it can check one).

    Args:
        p: Firing probability of one gate, in [0, 1).
        q: Of the other, of a shape that broadcasts.
        correlation: Latent correlation ρ, |ρ| ≤ 0.95, of a shape that broadcasts.

    Returns:
        The probabilities (proofs/15).

    Raises:
        InputError: A probability outside [0, 1), or a correlation beyond 0.95.
    """
    first, second, rho = _checked(p, q, correlation)
    a, b, angle = threshold(first)[..., None], threshold(second)[..., None], np.arcsin(rho)[..., None]
    t = angle * (1.0 + _NODES) / 2.0
    inside = np.exp(-(a**2 - 2.0 * a * b * np.sin(t) + b**2) / (2.0 * np.cos(t) ** 2))
    return np.asarray(first * second + (inside @ _WEIGHTS) * angle[..., 0] / (4.0 * math.pi))


def both_fire_series(p: npt.ArrayLike, q: npt.ArrayLike, correlation: npt.ArrayLike, terms: int) -> Floats:
    """P(both gates open) as the tetrachoric series, p q + Σ_{k ≤ K} ρ^k c_k(p) c_k(q).

    Args:
        p: Firing probability of one gate, in [0, 1).
        q: Of the other, of a shape that broadcasts.
        correlation: Latent correlation ρ, |ρ| ≤ 0.95, of a shape that broadcasts.
        terms: K ≥ 1.

    Returns:
        The sums (proofs/15).
    """
    first, second, rho = _checked(p, q, correlation)
    one = np.ones_like(first)
    pairs = zip(*(gate_coefficients(threshold(x), one, terms) for x in (first, second)), strict=True)
    return np.asarray(first * second + sum(rho**k * (c * d) for k, (c, d) in enumerate(pairs, start=1)))


def series_error(p: npt.ArrayLike, q: npt.ArrayLike, correlation: npt.ArrayLike, terms: int) -> Floats:
    """Bound of what the series leaves out: |ρ|^(K+1) √(T_K(p) T_K(q)), T_K(p) = p (1 − p) − Σ_{k ≤ K} c_k(p)².

    Args:
        p: Firing probability of one gate, in [0, 1).
        q: Of the other, of a shape that broadcasts.
        correlation: Latent correlation ρ, |ρ| ≤ 0.95, of a shape that broadcasts.
        terms: K ≥ 1.

    Returns:
        The bounds, at most |ρ|^(K+1) √(p (1 − p) q (1 − q)) (proofs/15).
    """
    first, second, rho = _checked(p, q, correlation)
    one = np.ones_like(first)
    tails = [
        np.maximum(x * (1.0 - x) - sum(c**2 for c in gate_coefficients(threshold(x), one, terms)), 0.0)
        for x in (first, second)
    ]
    return np.asarray(np.abs(rho) ** (terms + 1) * np.sqrt(tails[0] * tails[1]))


def firing_correlation(p: npt.ArrayLike, q: npt.ArrayLike, correlation: npt.ArrayLike) -> Floats:
    """Correlation of the two firings, (P(both) − p q) / √(p (1 − p) q (1 − q)); (2/π) arcsin ρ at p = q = 1/2.

    Args:
        p: Firing probability of one gate, in (0, 1).
        q: Of the other, of a shape that broadcasts.
        correlation: Latent correlation ρ, |ρ| ≤ 0.95, of a shape that broadcasts.

    Returns:
        The correlations, never beyond |ρ| (proofs/15).

    Raises:
        InputError: A gate that never fires has no correlation.
    """
    first, second, rho = _checked(p, q, correlation)
    if min(first.min(initial=1.0), second.min(initial=1.0)) <= 0.0:
        raise InputError("a firing probability is 0, expected above 0: a gate that never fires has no correlation")
    size = np.sqrt(first * (1.0 - first) * second * (1.0 - second))
    return np.asarray((both_fire(first, second, rho) - first * second) / size)


def _checked(p: npt.ArrayLike, q: npt.ArrayLike, correlation: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    first, second, rho = np.broadcast_arrays(*(np.asarray(a, dtype=np.float64) for a in (p, q, correlation)))
    for x in (first, second):
        if not ((x >= 0.0) & (x < 1.0)).all():
            raise InputError(
                "a firing probability is not in [0, 1), expected the share of tokens on which a gate opens"
            )
    if not (np.abs(rho) <= 0.95).all():
        raise InputError("a latent correlation is beyond 0.95 or not a number, expected |rho| of at most 0.95")
    return first, second, rho
