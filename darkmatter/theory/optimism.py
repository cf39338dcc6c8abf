"""Estimator: how far in-sample and held-out residual variances lie from the truth, and what of it cancels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError
from darkmatter.theory.population import Floats, centred

_CUTOFF = 1e-10


@dataclass(frozen=True, slots=True)
class FirstOrder:
    """Optimism of least squares on n' independent tokens: E S = σ² − c/n' + O(n'⁻²), E C = σ² + c/n' + O(n'⁻²).

    Attributes:
        variance: Residual variance σ² of the best affine predictor, squared units of e.
        optimism: c = tr(H⁻¹J) = E|r|² ℓ, with ℓ the population leverage; same units.
        parameters: p = rank of x + 1, the intercept counted; the mean of ℓ.
    """

    variance: float
    optimism: float
    parameters: int

    @property
    def leverage_covariance(self) -> float:
        """Cov(|r|², ℓ) = c − p σ²; minus n' times the bias of adjusted R²'s residual variance, to first order."""
        return self.optimism - self.parameters * self.variance


@dataclass(frozen=True, slots=True)
class SecondOrder:
    """Coefficients of 1/n'² beyond `FirstOrder`, for independent tokens.

    Attributes:
        insample: b_S of E S = σ² − c/n' + b_S/n'² + O(n'⁻³), squared units of e.
        heldout: b_C of E C = σ² + c/n' + b_C/n'² + O(n'⁻³), same units.
        root: β of E sqrt(SC) = σ² (1 + β/n'² + …) for K equal folds with both halves pooled, no unit.
    """

    insample: float
    heldout: float
    root: float


@dataclass(frozen=True, slots=True)
class Halves:
    """Expectations of the two halves of the estimator, and the truth.

    Attributes:
        insample: E S.
        heldout: E C.
        variance: σ².
    """

    insample: float
    heldout: float
    variance: float = 1.0

    @property
    def root_bias(self) -> float:
        """Relative error of sqrt(E S · E C) as σ²; E sqrt(SC) lies below it by the Jensen term of proofs/02."""
        return math.sqrt(self.insample * self.heldout) / self.variance - 1.0


@dataclass(frozen=True, slots=True)
class CustomaryBiases:
    """Relative biases of five estimators of σ² for a Gaussian design with independent noise.

    Attributes:
        insample: RSS/n of one fit to all tokens.
        half: Hold-out of one half after a fit to the other.
        cross_validation: K-fold cross-validation.
        adjusted: RSS/(n − d − 1), the residual variance behind adjusted R².
        root: sqrt(E S · E C) at n' = n (1 − 1/K).
    """

    insample: float
    half: float
    cross_validation: float
    adjusted: float
    root: float


def weights_of(n: int, weights: npt.ArrayLike | None) -> Floats:
    """Probabilities of n outcomes, equal ones by default.

    Args:
        n: Number of outcomes.
        weights: Positive numbers, (n,), scaled to sum to one; None for equally likely outcomes.

    Returns:
        (n,), sums to one.

    Raises:
        InputError: Another shape, or an entry that is not positive and finite.
    """
    w = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (n,) or not np.isfinite(w).all() or w.min() <= 0.0:
        raise InputError(f"weights have shape {w.shape}, expected {n} positive numbers: drop outcomes of probability 0")
    return np.asarray(w / w.sum())


def whitened(x: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Floats:
    """Coordinates z of (1, x) with E z'z = I, so that z z' is the population leverage ℓ and z_s z_t' = x_s Σ⁻¹ x_t'.

    Args:
        x: Outcomes, (n, d).
        weights: Their probabilities, (n,); equal by default.

    Returns:
        (n, p), p = rank of x + 1.
    """
    known = centred(x)
    w = weights_of(len(known), weights)
    known = known - w @ known
    root = np.sqrt(w)[:, None]
    left, values, _ = np.linalg.svd(root * known, full_matrices=False)
    kept = left[:, values > _CUTOFF * max(values.max(initial=0.0), np.finfo(np.float64).tiny)]
    return np.asarray(np.hstack([np.ones_like(root), kept / root]))


def residuals(e: npt.ArrayLike, z: Floats, weights: Floats) -> Floats:
    """R = e − z A with A the best coefficients in the law, for whitened z.

    Args:
        e: Outcomes, (n, q).
        z: From `whitened`, (n, p).
        weights: Probabilities, (n,).

    Returns:
        (n, q).

    Raises:
        InputError: Another number of outcomes.
    """
    target = centred(e)
    if len(target) != len(z):
        raise InputError(f"e has {len(target)} outcomes and x has {len(z)}, expected as many: pass them in one order")
    return np.asarray(target - z @ (z.T @ (weights[:, None] * target)))


def first_order(e: npt.ArrayLike, x: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> FirstOrder:
    """Takeuchi's c = E|r|² ℓ of a finite law, r the residual of the best affine predictor and ℓ = x Σ⁻¹ x'.

    Args:
        e: Outcomes of the error, (n, q).
        x: Outcomes of the activation, (n, d).
        weights: Their probabilities, (n,); equal by default.

    Returns:
        σ², c and p (proofs/02).
    """
    z = whitened(x, weights)
    w = weights_of(len(z), weights)
    squares = (residuals(e, z, w) ** 2).sum(axis=1)
    return FirstOrder(
        variance=float(w @ squares), optimism=float(w @ (squares * (z**2).sum(axis=1))), parameters=z.shape[1]
    )


def second_order(
    e: npt.ArrayLike, x: npt.ArrayLike, *, folds: int, weights: npt.ArrayLike | None = None
) -> SecondOrder:
    """What is left after the first order has cancelled.

    With κ₃ = E|r|²(ℓ² − ℓ), J = E|r|² z'z, V = E ℓ z'z − I, W = E ℓ z'r and Q = tr JV + |W|² + E⟨r₁,r₂⟩(z₁z₂')³:
    b_S = κ₃ − Q, b_C = 3Q − 2κ₃, β = (σ²(2Q − κ₃) − c² − 2 tr(J²)/(K − 1)) / (2σ⁴), where the J of the last term is
    the covariance of all p·q gradient entries, so that its tr(J²) = E⟨r₁,r₂⟩²(z₁z₂')².

    Args:
        e: Outcomes of the error, (n, q).
        x: Outcomes of the activation, (n, d).
        folds: Number K of equal folds.
        weights: Probabilities, (n,); equal by default.

    Returns:
        The coefficients (proofs/02).

    Raises:
        InputError: Fewer than two folds, or no residual.
    """
    z = whitened(x, weights)
    w = weights_of(len(z), weights)
    r = residuals(e, z, w)
    squares, leverage = (r**2).sum(axis=1), (z**2).sum(axis=1)
    variance, c = float(w @ squares), float(w @ (squares * leverage))
    total = float(w @ (centred(e) ** 2).sum(axis=1))
    if folds < 2 or not variance > _CUTOFF**2 * total:  # a perfect fit leaves rounding, not a residual
        raise InputError(
            f"{folds} folds and a residual variance of {variance:.3g}, expected at least 2 and more than 0"
        )
    third = float(w @ (squares * (leverage**2 - leverage)))
    gradient = z.T @ ((w * squares)[:, None] * z)
    spread = z.T @ ((w * leverage)[:, None] * z) - np.eye(z.shape[1])
    skew = z.T @ ((w * leverage)[:, None] * r)
    inner, alike = r @ r.T, z @ z.T
    q = float((gradient * spread).sum() + (skew**2).sum() + w @ (inner * alike**3) @ w)
    trace = float(w @ (inner**2 * alike**2) @ w)
    root = (variance * (2 * q - third) - c**2 - 2 * trace / (folds - 1)) / (2 * variance**2)
    return SecondOrder(insample=third - q, heldout=3 * q - 2 * third, root=root)


def gaussian_design(n: float, d: int) -> Halves:
    """E S = σ²(n − d − 1)/n and E C = σ²(n + 1)(n − 2)/(n(n − d − 2)), exact, in units of σ².

    Gaussian x with any mean and non-singular covariance, independent homoscedastic noise, an intercept. The product is
    1 + ((d − 1) n + 2(d + 1))/(n²(n − d − 2)), so the root of the product is within d/(n(n − d − 2)) above 1.

    Args:
        n: Training tokens n', more than d + 2; n(1 − 1/K) need not be whole.
        d: Width of x, at least 1.

    Returns:
        The expectations (proofs/02).
    """
    _check_size(n, d)
    return Halves(insample=(n - d - 1) / n, heldout=(n + 1) * (n - 2) / (n * (n - d - 2)))


def heteroscedastic_design(n: float, d: int, *, a: float, b: float) -> Halves:
    """The same for noise of variance a + b xΣ⁻¹x' given x, with x ~ N(0, Σ): σ² = a + b d, c = (d + 1)a + d(d + 3)b.

    E S = (n − d − 1)/n · (a + b d (n² − n + 2)/(n(n + 1))) and
    E C = (n − 2)(a n(n + 1) + b d (n² + 3n − 4d − 8))/(n²(n − d − 2)), exact for every n > d + 2. The residual variance
    of adjusted R², n E S/(n − d − 1), is σ² − 2 b d (n − 1)/(n(n + 1)).

    Args:
        n: Training tokens n', more than d + 2.
        d: Width of x, at least 1.
        a: Constant part of the noise variance, ≥ 0.
        b: Part that grows with the squared norm of whitened x, ≥ 0.

    Returns:
        The expectations (proofs/02).

    Raises:
        InputError: Negative or no noise.
    """
    _check_size(n, d)
    if not (0.0 <= a < math.inf and 0.0 <= b < math.inf and a + b > 0.0):
        raise InputError(f"noise a = {a!r}, b = {b!r}, expected finite numbers of at least 0, not both 0")
    return Halves(
        insample=(n - d - 1) / n * (a + b * d * (n**2 - n + 2) / (n * (n + 1))),
        heldout=(n - 2) * (a * n * (n + 1) + b * d * (n**2 + 3 * n - 4 * d - 8)) / (n**2 * (n - d - 2)),
        variance=a + b * d,
    )


def customary_biases(n: float, d: int, *, folds: int = 20, cross_validation_folds: int = 10) -> CustomaryBiases:
    """Relative biases of the usual estimators of σ² for a Gaussian design with independent noise, an intercept fitted.

    Args:
        n: All tokens; a half of them must be more than d + 2.
        d: Width of x.
        folds: Folds K of sqrt(SC).
        cross_validation_folds: Folds of cross-validation.

    Returns:
        The biases, −0.1 for 10 % too low (proofs/02).

    Raises:
        InputError: Fewer than two folds.
    """
    if min(folds, cross_validation_folds) < 2:
        raise InputError(f"folds are {folds} and {cross_validation_folds}, expected at least 2")
    return CustomaryBiases(
        insample=gaussian_design(n, d).insample - 1.0,
        half=gaussian_design(n / 2, d).heldout - 1.0,
        cross_validation=gaussian_design(n * (1 - 1 / cross_validation_folds), d).heldout - 1.0,
        adjusted=0.0,
        root=gaussian_design(n * (1 - 1 / folds), d).root_bias,
    )


def _check_size(n: float, d: int) -> None:
    if d < 1 or not d + 2 < n < math.inf:
        raise InputError(f"n is {n!r} and d is {d!r}, expected d of at least 1 and n above d + 2: pass more tokens")
