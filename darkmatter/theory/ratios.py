"""A ratio of sums against the mean of ratios: over coordinates, batches or tokens, and over rotations."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError

Floats = npt.NDArray[np.float64]


def pooled_ratio(parts: npt.ArrayLike, wholes: npt.ArrayLike) -> float:
    """Σ parts / Σ wholes, the ratio with one numerator sum and one denominator sum.

    Args:
        parts: Numerators, (k,).
        wholes: Denominators, (k,), > 0.

    Returns:
        The ratio (proofs/13).
    """
    numerator, denominator = _pair(parts, wholes)
    return float(numerator.sum() / denominator.sum())


def mean_ratio(parts: npt.ArrayLike, wholes: npt.ArrayLike) -> float:
    """(1/k) Σ_j parts_j / wholes_j, every ratio with the same weight.

    Args:
        parts: Numerators, (k,).
        wholes: Denominators, (k,), > 0.

    Returns:
        The mean (proofs/13).
    """
    numerator, denominator = _pair(parts, wholes)
    return float((numerator / denominator).mean())


def weighting_gap(parts: npt.ArrayLike, wholes: npt.ArrayLike) -> float:
    """Pooled ratio − mean of ratios = Cov(w, ρ) / mean w, with w the wholes, ρ the ratios, moments over the k items.

    Args:
        parts: Numerators, (k,).
        wholes: Denominators, (k,), > 0.

    Returns:
        The gap: positive where the large items have the large ratios (proofs/13).
    """
    numerator, denominator = _pair(parts, wholes)
    ratio = numerator / denominator
    # centred before it is multiplied, so that equal ratios give exactly zero
    spread = ((denominator - denominator.mean()) * (ratio - ratio.mean())).mean()
    return float(spread / denominator.mean())


def mean_ratio_range(wholes: npt.ArrayLike, pooled: float) -> tuple[float, float]:
    """Smallest and largest mean of ratios in [0, 1] that a pooled ratio allows.

    To make the mean large, give ratio 1 to the smallest wholes until Σ w_j ρ_j = pooled · Σ w is used up; to make it
    small, to the largest. Both ends are attained (a knapsack whose items may be cut).

    Args:
        wholes: Denominators w, (k,), > 0.
        pooled: Σ w_j ρ_j / Σ w, in [0, 1].

    Returns:
        The two ends (proofs/13).

    Raises:
        InputError: A pooled ratio outside [0, 1].
    """
    weight = np.sort(_wholes(wholes))
    if not 0.0 <= pooled <= 1.0:
        raise InputError(f"pooled is {pooled!r}, expected a ratio in [0, 1]")

    def filled(order: Floats) -> float:
        left = pooled * order.sum() - (np.cumsum(order) - order)  # what is left when the item's turn comes
        return float(np.clip(left / order, 0.0, 1.0).mean())

    return filled(weight[::-1]), filled(weight)


def pooled_range(mean: float, count: int) -> tuple[float, float]:
    """Pooled ratios that a mean of k ratios in [0, 1] allows, whatever the wholes: max(0, 1 − k(1 − m)) to min(1, k m).

    Args:
        mean: m, in [0, 1].
        count: k ≥ 1.

    Returns:
        The two ends; the best that can be said without the wholes, though no positive wholes attain them (proofs/13).

    Raises:
        InputError: A mean outside [0, 1] or a count below 1.
    """
    if not 0.0 <= mean <= 1.0 or count < 1:
        raise InputError(f"mean is {mean!r} and count {count!r}, expected a mean in [0, 1] of at least one ratio")
    return max(0.0, 1.0 - count * (1.0 - mean)), min(1.0, count * mean)


def batch_ratio_bias(*, ratio: float, mean: float, variance: float, covariance: float, batch: int) -> float:
    """E[ratio within a batch] − ratio, to second order: (ρ Var w − Cov(n, w)) / (B (E w)²).

    n and w are a token's numerator and denominator, a batch is B independent tokens, its ratio is Σ n / Σ w. What is
    left out is E[(N − ρ W) δ² / (1 + δ)] / E w, of order B⁻², with N, W the batch means and δ = W / E w − 1.

    Args:
        ratio: ρ = E n / E w.
        mean: E w > 0.
        variance: Var w ≥ 0.
        covariance: Cov(n, w).
        batch: B ≥ 1.

    Returns:
        The bias (proofs/13).

    Raises:
        InputError: A mean that is not positive, a negative variance, or a batch below 1.
    """
    if not 0.0 < mean < math.inf or not 0.0 <= variance < math.inf or batch < 1:
        raise InputError(
            f"mean, variance and batch are {mean!r}, {variance!r} and {batch!r}, expected a positive mean, a variance "
            "of at least 0 and at least one token"
        )
    return (ratio * variance - covariance) / (batch * mean**2)


def equalising_rotation(matrix: npt.ArrayLike) -> Floats:
    """Orthogonal Q for which every diagonal entry of Q A Q' is tr A / d.

    d − 1 plane rotations: one of an entry above the mean and one below it makes the first equal to the mean, and the
    rest has the same mean again.

    Args:
        matrix: A, (d, d), symmetric.

    Returns:
        Q, (d, d); its rows are the basis (proofs/13).
    """
    work = symmetric(matrix, "matrix").copy()
    d = len(work)
    basis, target = np.eye(d), float(np.trace(work)) / d
    active = np.arange(d)
    while len(active) > 1:
        diagonal = np.diag(work)[active]
        i, j = int(active[np.argmax(diagonal)]), int(active[np.argmin(diagonal)])
        above, below, across = work[i, i] - target, work[j, j] - target, work[i, j]
        if above <= 0.0 or below >= 0.0:  # all equal, up to rounding
            break
        # above + 2 t across + t² below = 0 for t = tan of the angle; the root without cancellation
        root = math.sqrt(across**2 - above * below)
        tangent = above / (-across + math.copysign(root, -across if across else 1.0))
        cosine = 1.0 / math.hypot(1.0, tangent)
        plane = cosine * np.array([[1.0, tangent], [-tangent, 1.0]])
        pair = [i, j]
        work[pair] = plane @ work[pair]
        work[:, pair] = work[:, pair] @ plane.T
        basis[pair] = plane @ basis[pair]
        active = active[active != i]
    return basis


def rotation_gap_limit(part: npt.ArrayLike, whole: npt.ArrayLike) -> float:
    """The most that the mean of ratios differs from the pooled one in any orthonormal basis.

    |pooled − mean_j (Q A Q')_jj / (Q D Q')_jj| ≤ ½ (λ_max − λ_min) sd(δ) / mean(δ), with λ the eigenvalues of D⁻¹A
    and δ those of D. Equality: A and D commute, and half of the eigenvectors have one δ and one λ, half another.

    Args:
        part: A, (d, d), symmetric.
        whole: D, (d, d), symmetric and positive definite.

    Returns:
        The limit (proofs/13).

    Raises:
        InputError: Different shapes, or a singular D.
    """
    a, d = symmetric(part, "part"), symmetric(whole, "whole")
    if a.shape != d.shape:
        raise InputError(f"shapes are {a.shape} and {d.shape}, expected equal ones")
    values, vectors = np.linalg.eigh(d)
    if values[0] <= len(values) * np.finfo(np.float64).eps * values[-1]:
        raise InputError(
            "whole is singular, expected a positive definite matrix: leave out directions that do not vary"
        )
    root = vectors / np.sqrt(values)
    ratios = np.linalg.eigvalsh(root.T @ a @ root)
    return float(0.5 * (ratios[-1] - ratios[0]) * values.std() / values.mean())


def symmetric(matrix: npt.ArrayLike, name: str) -> Floats:
    """A checked symmetric matrix.

    Args:
        matrix: (d, d).
        name: What the message calls it.

    Returns:
        The matrix, float64.

    Raises:
        InputError: Not square, not finite or not symmetric.
    """
    found = np.asarray(matrix, dtype=np.float64)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or not found.size or not np.isfinite(found).all():
        raise InputError(f"{name} has shape {found.shape}, expected a finite square matrix")
    if np.abs(found - found.T).max() > 1e-8 * np.abs(found).max():
        raise InputError(f"{name} is not symmetric, expected a covariance: pass (a + a.T) / 2 if that is rounding")
    return found


def _wholes(wholes: npt.ArrayLike) -> Floats:
    found = np.asarray(wholes, dtype=np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all() or found.min() <= 0.0:
        raise InputError(
            f"wholes have shape {found.shape}, expected a flat sequence of positive numbers: leave out items without "
            "variance, whose ratio does not exist"
        )
    return found


def _pair(parts: npt.ArrayLike, wholes: npt.ArrayLike) -> tuple[Floats, Floats]:
    numerator, denominator = np.asarray(parts, dtype=np.float64), _wholes(wholes)
    if numerator.shape != denominator.shape or not np.isfinite(numerator).all():
        raise InputError(
            f"parts have shape {numerator.shape} and wholes {denominator.shape}, expected equal shapes and finite parts"
        )
    return numerator, denominator
