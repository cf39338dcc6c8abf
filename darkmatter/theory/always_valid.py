"""T4: what is left of the disputed claim without its assumptions, and what published numbers then allow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError

Floats = npt.NDArray[np.float64]

Assumed = Literal["nothing", "aligned", "unpredictable", "optimal"]

_ROUNDING = 1e-9  # by which numbers that come from data may miss a limit


@dataclass(frozen=True, slots=True)
class Bracket:
    """Bounds of a variance, low ≤ … ≤ high; high may be infinite."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class AlwaysValid:
    """What published numbers allow, in shares of Var x.

    Attributes:
        interference: Largest |q|² / Var x that is compatible with the assumptions.
        low: Lower bound of introduced error.
        high: Upper bound of introduced error.
    """

    interference: float
    low: float
    high: float


def bound_from_angle(nonlinear: float, *, cosine: float, r2_introduced: float = 0.0) -> float:
    """Var N ≤ R / [(1 − R²(N|x)) (1 − c²)], c = min(0, cosine).

    Args:
        nonlinear: R = Var (I − P) e, ≥ 0.
        cosine: Cosine between q = (I − P) S1 and (I − P) N, in [−1, 1]; 0 where one of them vanishes.
        r2_introduced: Pooled R² of N regressed on x, in [0, 1].

    Returns:
        The bound, in the units of R; infinite where N is affine in x or opposite to q (proofs/07).

    Raises:
        InputError: A number outside its range.
    """
    _check_range("nonlinear", nonlinear, 0.0, math.inf)
    _check_range("cosine", cosine, -1.0, 1.0)
    _check_range("r2_introduced", r2_introduced, 0.0, 1.0)
    c = min(0.0, cosine)
    left = (1.0 - r2_introduced) * (1.0 - c) * (1.0 + c)
    return nonlinear / left if left > 0.0 else math.inf


def bounds_from_length(nonlinear: float, interference: float) -> Bracket:
    """(√R − |q|)² ≤ Var (I − P) N ≤ (√R + |q|)², for |q| known.

    Args:
        nonlinear: R = Var (I − P) e, ≥ 0.
        interference: |q|² = Var (I − P) S1, ≥ 0.

    Returns:
        The bounds, in the units of R (proofs/07).

    Raises:
        InputError: A number that is negative or not finite.
    """
    _check_range("nonlinear", nonlinear, 0.0, math.inf)
    _check_range("interference", interference, 0.0, math.inf)
    r, q = math.sqrt(nonlinear), math.sqrt(interference)
    return Bracket((r - q) ** 2, (r + q) ** 2)


def most_interference(learned: float, rest: float, *, covariance: float = 0.0) -> float:
    """|q|² ≤ (Var S1 · Var U − Cov(S1, U)²) / Var x, whatever else the laws of S1 and U = S2 + D are.

    Never above min(Var S1, Var U), and attained by parts with proportional covariances.

    Args:
        learned: Var S1 ≥ 0.
        rest: Var U ≥ 0.
        covariance: Cov(S1, U), the trace.

    Returns:
        The bound, in the units of Var S1 (proofs/07).

    Raises:
        InputError: A negative or infinite variance, or a covariance that no pair with these variances has.
    """
    _check_range("learned", learned, 0.0, math.inf)
    _check_range("rest", rest, 0.0, math.inf)
    most = math.sqrt(learned) * math.sqrt(rest)
    if not abs(covariance) <= most * (1.0 + _ROUNDING):
        raise InputError(f"covariance is {covariance!r}, expected at most {most!r} in size: check the variances")
    total = learned + rest + 2.0 * covariance
    if total <= 1e-12 * (learned + rest):  # x does not vary, or all of the numerator is rounding
        return min(learned, rest)
    scalar = (most - covariance) * (most + covariance) / total
    return min(max(scalar, 0.0), learned, rest)


def parallel_sum(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """A : B = A − A (A + B)⁺ A, the covariance of q = (I − P) S1 where S1 and U are uncorrelated.

    Args:
        a: Covariance of S1, (d, d), symmetric and positive semidefinite; may be singular.
        b: Covariance of U, (d, d), the same.

    Returns:
        (d, d), symmetric; its trace is |q|² and at most tr A · tr B / (tr A + tr B) (proofs/07).

    Raises:
        InputError: Not two symmetric matrices of one shape.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    for name, matrix in (("a", first), ("b", second)):
        square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
        if not square or not np.isfinite(matrix).all() or matrix.shape != first.shape:
            raise InputError(f"{name} has shape {matrix.shape}, expected two finite square matrices of one shape")
        if np.abs(matrix - matrix.T).max(initial=0.0) > _ROUNDING * np.abs(matrix).max(initial=0.0):
            raise InputError(f"{name} is not symmetric, expected a covariance: pass (m + m.T) / 2")
    values, axes = np.linalg.eigh(first + second)
    kept = values > 100 * np.finfo(np.float64).eps * values.max(initial=0.0)
    root = axes[:, kept] / np.sqrt(values[kept])
    # whitened, A and B become W and I − W: A : B = (A + B)^½ W (I − W) (A + B)^½ loses nothing to cancellation
    back = axes[:, kept] * np.sqrt(values[kept])
    return np.asarray(back @ (root.T @ first @ root) @ (root.T @ second @ root) @ back.T)


def always_valid(fvu: float, r2_error: float, *, assumed: Assumed) -> AlwaysValid:
    """What FVU and R² of one SAE allow for introduced error, by what the reader is ready to assume.

    With R = f(1 − R²), g = f R² and Q the largest |q|²: max(0, √R − √Q)² ≤ introduced ≤ (√R + √Q)², all in shares of
    Var x. "nothing": no bound at all. "aligned" (Cov(S1, S2 + D) ≥ 0 in trace): Q = 1/4, and the bounds are for the
    part of N that is not affine in x. "unpredictable" (also L = 0 and N uncorrelated with x): Q = √g − g, for Var N.
    "optimal" (aligned, and Sae(x) = E[S1 | x]): 0 ≤ Var N ≤ √g − f.

    Args:
        fvu: Var e / Var x ≥ 0.
        r2_error: Pooled R² of e regressed on x with an intercept, in [0, 1].
        assumed: One of "nothing", "aligned", "unpredictable", "optimal".

    Returns:
        The bounds; all are attained (proofs/07).

    Raises:
        InputError: A number outside its range, an unknown assumption, or numbers that refute the assumption.
    """
    _check_range("fvu", fvu, 0.0, math.inf)
    _check_range("r2_error", r2_error, 0.0, 1.0)
    if assumed not in get_args(Assumed):
        raise InputError(f"assumed is {assumed!r}, expected one of {', '.join(get_args(Assumed))}")
    if assumed == "nothing":
        return AlwaysValid(math.inf, 0.0, math.inf)
    nonlinear, explained = fvu * (1.0 - r2_error), fvu * r2_error
    if assumed == "aligned":
        most = 0.25
    elif explained > 1.0 + _ROUNDING:
        raise InputError(f"fvu · r2_error is {explained!r}, above 1: these numbers refute the assumption {assumed!r}")
    else:
        most = max(0.0, math.sqrt(explained) - explained)
    if assumed == "optimal":
        if r2_error < fvu * (1.0 - _ROUNDING):
            raise InputError(f"r2_error is {r2_error!r}, below fvu {fvu!r}: no SAE of least error has such numbers")
        return AlwaysValid(most, 0.0, max(0.0, math.sqrt(explained) - fvu))
    r, q = math.sqrt(nonlinear), math.sqrt(most)
    return AlwaysValid(most, max(0.0, r - q) ** 2, (r + q) ** 2)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high or math.isinf(value):
        end = f"in [{low:g}, {high:g}]" if high < math.inf else f"finite and at least {low:g}"
        raise InputError(f"{name} is {value!r}, expected a number {end}")
