"""Var, Cov and P of the proofs on a finite population, every row one equally likely outcome: no sampling error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError

Floats = npt.NDArray[np.float64]

_CUTOFF = 1e-10


def centred(a: npt.ArrayLike) -> Floats:
    """A − E a, as a matrix of n outcomes.

    Args:
        a: Outcomes, (n, d), or (n,) for a scalar.

    Returns:
        (n, d), float64.

    Raises:
        InputError: No outcomes, or not finite.
    """
    values = np.asarray(a, dtype=np.float64)
    values = values.reshape(len(values), -1) if values.ndim else values.reshape(0, 1)
    if not len(values) or not np.isfinite(values).all():
        raise InputError(f"a population of {len(values)} outcomes, expected at least one and finite entries only")
    return np.asarray(values - values.mean(axis=0))


def variance(a: npt.ArrayLike) -> float:
    """Var a = E|a − E a|², the trace of the covariance.

    Args:
        a: Outcomes, (n, d).

    Returns:
        The variance, in squared units of a.
    """
    return covariance(a, a)


def covariance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Cov(a, b) = E⟨a − E a, b − E b⟩, the trace of the cross-covariance.

    Args:
        a: Outcomes, (n, d).
        b: Outcomes in the same order, (n, d).

    Returns:
        The covariance, in units of a times units of b.

    Raises:
        InputError: Different shapes.
    """
    first, second = centred(a), centred(b)
    if first.shape != second.shape:
        raise InputError(f"shapes are {first.shape} and {second.shape}, expected equal ones")
    return float((first * second).sum() / len(first))


def cross(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Cross-covariance matrix E (a − E a)'(b − E b).

    Args:
        a: Outcomes, (n, d).
        b: Outcomes in the same order, (n, q).

    Returns:
        (d, q).
    """
    first, second = centred(a), centred(b)
    return first.T @ second / len(first)


def predicted(a: npt.ArrayLike, x: npt.ArrayLike) -> Floats:
    """P a − E a: the best affine predictor of a from x, centred; of minimum norm where x is singular.

    Args:
        a: Outcomes, (n, q).
        x: Outcomes in the same order, (n, d).

    Returns:
        (n, q).
    """
    known = centred(x)
    # projecting onto the span of x solves no equations, so no condition number enters
    left, values, _ = np.linalg.svd(known, full_matrices=False)
    basis = left[:, values > _CUTOFF * max(values.max(initial=0.0), np.finfo(np.float64).tiny)]
    return np.asarray(basis @ (basis.T @ centred(a)))


def residual(a: npt.ArrayLike, x: npt.ArrayLike) -> Floats:
    """(I − P) a: what no affine function of x predicts.

    Args:
        a: Outcomes, (n, q).
        x: Outcomes in the same order, (n, d).

    Returns:
        (n, q), centred.
    """
    return centred(a) - predicted(a, x)
