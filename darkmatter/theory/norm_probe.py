"""A: how much of a squared norm a linear probe of x reads off, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError
from darkmatter.theory.amplitudes import CodeMoments

Floats = npt.NDArray[np.float64]

_ORTHOGONAL = 1e-4
"""Largest |V V' − α I| / α that counts as orthogonal: maps are stored in float32, in up to 10^5 dimensions."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factors:
    """x = Σ_i w_i y_i + g F with independent w_1 … w_m and g, E g = 0 and Cov g = I.

    Attributes:
        directions: y_i, (m, d), of any length.
        moments: E w_i^r for r = 1 … 4, (4, m).
        dense_map: F, (k, d); (0, d) for no dense part.
        skew: E[g |g|²], (k,).
        square_variance: Var |g|².
    """

    directions: Floats
    moments: Floats
    dense_map: Floats
    skew: Floats
    square_variance: float

    @classmethod
    def sparse(cls, directions: npt.ArrayLike, moments: npt.ArrayLike) -> Factors:
        """Without a dense part.

        Args:
            directions: y_i, (m, d).
            moments: E w_i^r for r = 1 … 4, (4, m).

        Returns:
            The factors.
        """
        rows = np.asarray(directions, dtype=np.float64)
        return cls(
            directions=rows,
            moments=np.asarray(moments, dtype=np.float64),
            dense_map=np.zeros((0, rows.shape[-1])),
            skew=np.zeros(0),
            square_variance=0.0,
        )

    @property
    def itself(self) -> Vector:
        """The vector x."""
        return Vector(self.directions, self.dense_map, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """A vector v = Σ_i w_i u_i + g V + σ n of the same factors, with n ~ N(0, I_d) independent of them.

    Attributes:
        sparse: u_i, (m, d).
        dense: V, (k, d), with V V' = α I.
        noise: σ ≥ 0.
    """

    sparse: Floats
    dense: Floats
    noise: float


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """The best affine probe of ‖v‖² from x.

    Attributes:
        covariance: q = Cov(x, ‖v‖²), (d,).
        weights: a = Cov(x)⁺ q, (d,); the probe is x·a plus a constant.
        explained: q·a, the variance of the probe.
        total: Var ‖v‖².
    """

    covariance: Floats
    weights: Floats
    explained: float
    total: float

    @property
    def r2(self) -> float:
        """Explained / total; NaN where the norm does not vary."""
        return self.explained / self.total if self.total > 0.0 else math.nan


def norm_probe(factors: Factors, *vectors: Vector) -> tuple[Probe, ...]:
    """Population regression of ‖v‖² on x with an intercept, for every vector v.

    With H = U U', b_i = Σ_{j≠i} H_ij μ_j, c = Σ_i μ_i u_i, a = V c, C = Σ_i v_i u_i' u_i:
        q = Σ_i (H_ii k_i + 2 b_i v_i) y_i + (α E[g |g|²] + 2 a) F,        R² = q Cov(x)⁺ q' / Var ‖v‖²,
        Var ‖v‖² = Σ_i (H_ii² t_i + 4 H_ii b_i k_i + 4 b_i² v_i) + 2 Σ_{i≠j} H_ij² v_i v_j + 4 tr V C V'
                   + α² Var|g|² + 4 α a·E[g |g|²] + 4 |a|² + 2 d σ⁴ + 4 σ² E|v − σ n|².

    Args:
        factors: What x is made of.
        vectors: The v; `factors.itself` for ‖x‖².

    Returns:
        One probe for each vector.

    Raises:
        InputError: Shapes that do not fit, a negative or infinite σ, or V V' that is not a multiple of I.

    Source: proofs/12_norm_probe.md.
    """
    moments = _checked(factors)
    y, f = factors.directions, factors.dense_map
    axes, values = _varying((y.T * moments.variance) @ y + f.T @ f)
    found = []
    for vector in vectors:
        q, total = _norm(factors, moments, vector)
        seen = q @ axes  # an explicit inverse would lose as many digits as the condition number has
        found.append(Probe(q, axes @ (seen / values), float(seen**2 @ (1.0 / values)), total))
    return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class CodeProbe:
    """The best affine probe of ‖x‖² from the codes themselves; one of x does as well iff the y_i are independent.

    Attributes:
        weights: G_ii k_i / v_i + 2 b_i, (m,): slope on w_i; for independent y_i the best probe of x has a·y_i = this.
        explained: Q = Σ_i (G_ii k_i + 2 b_i v_i)² / v_i.
        unexplained: U = Σ_i G_ii² t_i (1 − ρ_i²) + 4 Σ_{j<i} G_ij² v_i v_j, ρ_i² = k_i² / (v_i t_i).
    """

    weights: Floats
    explained: float
    unexplained: float

    @property
    def r2(self) -> float:
        """Q / (Q + U); NaN where the norm does not vary."""
        total = self.explained + self.unexplained
        return self.explained / total if total > 0.0 else math.nan


def code_probe(directions: npt.ArrayLike, moments: npt.ArrayLike) -> CodeProbe:
    """Regression of ‖Σ_i w_i y_i‖² on w: an upper bound of the R² on x, attained by independent directions.

    Args:
        directions: y_i, (m, d).
        moments: E w_i^r for r = 1 … 4, (4, m).

    Returns:
        Slopes, explained and unexplained variance; a code that does not vary has slope 2 b_i.

    Raises:
        InputError: Shapes that do not fit, or moments that no law has.

    Source: proofs/12_norm_probe.md.
    """
    factors = Factors.sparse(directions, moments)
    codes = _checked(factors)
    gram = factors.directions @ factors.directions.T
    own = np.diag(gram)
    b = gram @ codes.mean - own * codes.mean
    varies = codes.variance > 0.0
    slope = np.divide(codes.k, codes.variance, out=np.zeros_like(codes.k), where=varies)
    weights = own * slope + 2.0 * b
    left = np.maximum(codes.t - slope * codes.k, 0.0)  # Cauchy–Schwarz: below 0 by rounding only
    pairs = (gram**2 * np.outer(codes.variance, codes.variance)).sum() - own**2 @ codes.variance**2
    return CodeProbe(weights, float(weights**2 @ codes.variance), float(own**2 @ left + 2.0 * pairs))


def gaussian_norm_r2(mean: npt.ArrayLike, covariance: npt.ArrayLike) -> float:
    """R² of ‖x‖² on x for x ~ N(μ, S): 4 μ'Sμ / (4 μ'Sμ + 2 tr S²).

    Args:
        mean: μ, (d,).
        covariance: S, (d, d).

    Returns:
        R²; NaN for S = 0.

    Raises:
        InputError: Shapes that do not fit, or entries that are not finite.

    Source: proofs/12_norm_probe.md.
    """
    mu, s = np.asarray(mean, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    if mu.ndim != 1 or s.shape != (len(mu), len(mu)) or not (np.isfinite(mu).all() and np.isfinite(s).all()):
        raise InputError(f"shapes are {mu.shape} and {s.shape}, expected (d,) and (d, d) with finite entries")
    seen, unseen = 4.0 * float(mu @ s @ mu), 2.0 * float((s**2).sum())
    return seen / (seen + unseen) if unseen > 0.0 else math.nan


def _norm(factors: Factors, codes: CodeMoments, v: Vector) -> tuple[Floats, float]:
    """Cov(x, ‖v‖²) and Var ‖v‖²."""
    k, d = factors.dense_map.shape
    alpha = _alpha(v, factors)
    own = (v.sparse**2).sum(axis=1)  # H_ii
    centre = codes.mean @ v.sparse
    b = v.sparse @ centre - own * codes.mean
    spread = (v.sparse.T * codes.variance) @ v.sparse
    pairs = max(float((spread**2).sum() - (own**2) @ codes.variance**2), 0.0)  # Σ_{i≠j} H_ij² v_i v_j
    total = float((own**2) @ codes.t + 4.0 * (own * b) @ codes.k + 4.0 * b**2 @ codes.variance) + 2.0 * pairs
    q = (own * codes.k + 2.0 * b * codes.variance) @ factors.directions
    if k:
        a = v.dense @ centre
        total += 4.0 * float((v.dense @ spread * v.dense).sum())
        total += alpha**2 * factors.square_variance + 4.0 * float(alpha * a @ factors.skew + a @ a)
        q = q + (alpha * factors.skew + 2.0 * a) @ factors.dense_map
    size = float(np.trace(spread) + centre @ centre) + alpha * k
    total += 2.0 * d * v.noise**4 + 4.0 * v.noise**2 * size
    return q, total


def _alpha(v: Vector, factors: Factors) -> float:
    m, (k, d) = len(factors.directions), factors.dense_map.shape
    if v.sparse.shape != (m, d) or v.dense.shape != (k, d):
        raise InputError(
            f"a vector has maps of shape {v.sparse.shape} and {v.dense.shape}, expected {(m, d)}, {(k, d)}"
        )
    if not 0.0 <= v.noise < math.inf:
        raise InputError(f"noise is {v.noise!r}, expected a finite standard deviation of at least 0")
    if not k:
        return 0.0
    gram = v.dense @ v.dense.T
    alpha: float = float(np.trace(gram)) / k
    if np.abs(gram - alpha * np.eye(k)).max() > _ORTHOGONAL * alpha:
        raise InputError(
            "V V' is not a multiple of I, expected orthogonal rows of one length: else ‖g V‖² needs more moments of g"
        )
    return alpha


def _checked(factors: Factors) -> CodeMoments:
    codes = CodeMoments.of(factors.moments)
    y, f = factors.directions, factors.dense_map
    if y.ndim != 2 or f.ndim != 2 or y.shape != (len(codes.mean), f.shape[1]) or factors.skew.shape != (len(f),):
        raise InputError(
            f"directions {y.shape}, moments (4, {len(codes.mean)}), dense map {f.shape} and skew {factors.skew.shape} "
            "do not fit: expected (m, d), (4, m), (k, d) and (k,)"
        )
    if not (np.isfinite(y).all() and np.isfinite(f).all()):
        raise InputError("directions or the dense map hold NaN or infinity, expected finite numbers")
    return codes


def _varying(covariance: Floats) -> tuple[Floats, Floats]:
    """Axes (d, r) in which x varies, and its variances there (r,)."""
    values, axes = np.linalg.eigh(covariance)
    # x may fill a subspace only (m + k < d): directions below rounding carry no variance
    real = values > len(values) * np.finfo(np.float64).eps * values.max(initial=0.0)
    return axes[:, real], values[real]
