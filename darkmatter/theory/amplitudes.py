"""Raw moments of amplitude laws, and how much of a code's square a linear function of the code explains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError

Floats = npt.NDArray[np.float64]
Moments = tuple[float, float, float, float]

LAWS = ("exponential", "constant", "uniform", "half-normal", "gamma", "lognormal", "poisson")
"""Laws by name; the last three have a shape."""

_SLACK = 8 * float(np.finfo(np.float64).eps)  # M1² and M2 of a constant differ by a few roundings

_SHAPES = {"gamma": (1e-60, 1e60), "lognormal": (1e-60, 10.0), "poisson": (1e-60, 1e60)}
"""Shapes whose fourth moment is a float64."""


def mean_one_moments(law: str, shape: float = 1.0) -> Moments:
    """Raw moments (M1, M2, M3, M4), M_r = E a^r, of an amplitude scaled to mean one.

    Gamma: Π_{j<r} (1 + j/k); lognormal: exp(σ² r (r − 1) / 2); uniform: 2^r / (r + 1); half-normal:
    (π/2)^{r/2} E|z|^r; Poisson: Touchard polynomials of λ, divided by λ^r.

    Args:
        law: One of `LAWS`.
        shape: k of the gamma law, σ of the lognormal law, λ of the Poisson law; 1 for the others.

    Returns:
        The moments, without a unit.

    Raises:
        InputError: An unknown law, a shape whose moments overflow, or a shape for a law without one.

    Source: proofs/12_norm_probe.md.
    """
    if law not in LAWS:
        raise InputError(f"law is {law!r}, expected one of {', '.join(LAWS)}")
    if law not in _SHAPES and shape != 1.0:
        raise InputError(f"shape is {shape!r}, but {law!r} has no shape: leave it at 1")
    low, high = _SHAPES.get(law, (1.0, 1.0))
    if not low <= shape <= high:
        raise InputError(f"shape is {shape!r}, expected {low:g} to {high:g} for {law!r}: the fourth moment overflows")
    if law == "gamma":
        two, three, four = (math.prod(1.0 + j / shape for j in range(r)) for r in (2, 3, 4))
        return (1.0, two, three, four)
    if law == "lognormal":
        two, three, four = (math.exp(shape**2 * r * (r - 1) / 2.0) for r in (2, 3, 4))
        return (1.0, two, three, four)
    if law == "poisson":
        rate = shape
        return (1.0, 1.0 + 1.0 / rate, 1.0 + 3.0 / rate + rate**-2, 1.0 + 6.0 / rate + 7.0 * rate**-2 + rate**-3)
    plain: dict[str, Moments] = {
        "exponential": (1.0, 2.0, 6.0, 24.0),
        "constant": (1.0, 1.0, 1.0, 1.0),
        "uniform": (1.0, 4 / 3, 2.0, 16 / 5),
        "half-normal": (1.0, math.pi / 2, math.pi, 3 * math.pi**2 / 4),
    }
    return plain[law]


def gated_moments(moments: npt.ArrayLike, p: npt.ArrayLike, scale: npt.ArrayLike = 1.0) -> Floats:
    """Raw moments of codes that fire with probability p and then have amplitude scale · a: p scale^r M_r.

    Args:
        moments: (4,), raw moments of a.
        p: Firing rates in [0, 1], (m,) or one number.
        scale: Scales > 0, (m,) or one number.

    Returns:
        (4, m), E w_i^r for r = 1 … 4, in units of the scale to the power r.

    Raises:
        InputError: Another number of moments, a rate outside [0, 1], or a scale that is not positive.

    Source: proofs/12_norm_probe.md.
    """
    raw, rates, scales = (np.asarray(value, dtype=np.float64) for value in (moments, p, scale))
    if raw.shape != (4,):
        raise InputError(f"moments have shape {raw.shape}, expected (4,): E a, E a², E a³, E a⁴")
    if not ((rates >= 0.0) & (rates <= 1.0)).all():
        raise InputError(f"p is {p!r}, expected firing rates from 0 to 1")
    if not ((scales > 0.0) & np.isfinite(scales)).all():
        raise InputError(f"scale is {scale!r}, expected positive finite numbers")
    rates, scales = np.broadcast_arrays(np.atleast_1d(rates), np.atleast_1d(scales))
    return np.asarray(rates * scales ** np.arange(1, 5)[:, None] * raw[:, None])


@dataclass(frozen=True, slots=True, eq=False)
class CodeMoments:
    """Central quantities of m independent codes.

    Attributes:
        mean: μ_i = E w_i, (m,).
        variance: v_i = Var w_i, (m,).
        k: Cov(w_i, w_i²), (m,).
        t: Var w_i², (m,).
    """

    mean: Floats
    variance: Floats
    k: Floats
    t: Floats

    @classmethod
    def of(cls, raw: npt.ArrayLike) -> CodeMoments:
        """From raw moments.

        Args:
            raw: E w_i^r for r = 1 … 4, (4, m).

        Returns:
            v = M2 − M1², k = M3 − M1 M2, t = M4 − M2².

        Raises:
            InputError: Another shape, not finite, or moments that no law has (M1² > M2 or M2² > M4).
        """
        moments = np.asarray(raw, dtype=np.float64)
        if moments.ndim != 2 or len(moments) != 4 or not np.isfinite(moments).all():
            raise InputError(f"raw moments have shape {moments.shape}, expected (4, m) and finite numbers")
        one, two, three, four = moments
        if (one**2 > two * (1.0 + _SLACK)).any() or (two**2 > four * (1.0 + _SLACK)).any():
            raise InputError("raw moments belong to no law: expected M1² ≤ M2 and M2² ≤ M4, in the order E w … E w⁴")
        return cls(one, np.maximum(two - one**2, 0.0), three - one * two, np.maximum(four - two**2, 0.0))


def square_r2(moments: npt.ArrayLike, p: float = 1.0) -> float:
    """R² of w² on w for one code: k² / (v t), also that of ‖x‖² on x for orthonormal directions and equal laws.

    With the gate written out: (M3 − p M1 M2)² / ((M2 − p M1²)(M4 − p M2²)), which tends to M3² / (M2 M4) as p → 0.

    Args:
        moments: (4,), raw moments of the amplitude, any scale.
        p: Firing rate in [0, 1]; 0 gives the limit.

    Returns:
        R² in [0, 1]; NaN for a code that does not vary.

    Raises:
        InputError: Moments that no law has, or a rate outside [0, 1].

    Source: proofs/12_norm_probe.md.
    """
    raw = np.asarray(moments, dtype=np.float64)
    if raw.shape != (4,):
        raise InputError(f"moments have shape {raw.shape}, expected (4,): E a, E a², E a³, E a⁴")
    if not 0.0 <= p <= 1.0:
        raise InputError(f"p is {p!r}, expected a firing rate from 0 to 1")
    CodeMoments.of(raw[:, None])  # refuses what is no law
    one, two, three, four = raw
    variance, spread = two - p * one**2, four - p * two**2
    if variance <= _SLACK * two or spread <= _SLACK * four:  # a constant, up to the rounding of its moments
        return math.nan
    return float((three - p * one * two) ** 2 / (variance * spread))
