"""T5a and T5b: what FVU and R², or the traces of one SAE's second moments, say about introduced error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError

Floats = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # of two numbers whose product is exactly 1


@dataclass(frozen=True, slots=True)
class Bracket:
    """What introduced error can be, given the numbers and the assumptions.

    Attributes:
        low: Lower end of Var N, ≥ 0; a share of Var x where the numbers that went in were shares.
        high: Upper end.
    """

    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class PublishedWorld:
    """Covariances of S1 and of U = S2 + D, and Var N, with Sae = S1 + N and Var x = 1; all parts uncorrelated.

    Attributes:
        learned: Cov S1, (3, 3), diagonal.
        rest: Cov U, (3, 3), diagonal.
        introduced: Var N.
    """

    learned: Floats
    rest: Floats
    introduced: float


def published_bracket(fvu: float, r2: float) -> Bracket:
    """Bracket of Var N / Var x from two published numbers: max(0, f − sqrt(f R²)) ≤ Var N / Var x ≤ f (1 − R²).

    f R² is the share of Var x that is linear error. By Cauchy and Schwarz its root is at least Cov(x, e) / Var x, and
    Var N ≥ Var e − Cov(x, e) is T5b. The lower end is positive exactly where R² < f. Both ends are attained.

    Args:
        fvu: f = Var e / Var x, ≥ 0.
        r2: R² of e regressed on x, pooled over coordinates and with an intercept, from 0 to 1.

    Returns:
        The bracket, in shares of Var x (T5a, proofs/08_one_sae.md).

    Raises:
        InputError: A number out of range, or f R² > 1, which the assumptions exclude.
    """
    if not 0.0 <= fvu < math.inf:
        raise InputError(
            f"fvu is {fvu!r}, expected a finite number of at least 0: pass Var e / Var x, not a percentage"
        )
    if not 0.0 <= r2 <= 1.0:
        raise InputError(
            f"r2 is {r2!r}, expected a number from 0 to 1: a negative R2 comes from a fit that overfits, pass 0 then"
        )
    linear = fvu * r2
    if linear > 1.0 + _ROUNDING:
        raise InputError(
            f"fvu * r2 is {linear:g}, expected at most 1: linear error beyond Var x means an over-scaled SAE, "
            "for which there is no bracket"
        )
    high = fvu * (1.0 - r2)
    return Bracket(low=min(max(0.0, fvu - math.sqrt(linear)), high), high=high)


def published_world(fvu: float, r2: float, introduced: float) -> PublishedWorld:
    """A world with a given FVU and R² whose introduced share is anything inside the published bracket.

    With n = Var N, β = f − n and τ = f (1 − R²) − n, a share φ = τ / (β (1 − β)) of Var x lies in a coordinate that S1
    and U divide as 1 − β to β; of the rest U has the second coordinate and S1 the third. Then Var U = β and
    tr(Cov S1 : Cov U) = φ β (1 − β) = τ, the interference.

    Args:
        fvu: f.
        r2: R².
        introduced: Var N / Var x, inside `published_bracket(fvu, r2)`.

    Returns:
        The world (T5a, proofs/08_one_sae.md).

    Raises:
        InputError: See `published_bracket`; or an introduced share outside the bracket.
    """
    bracket = published_bracket(fvu, r2)
    if not bracket.low <= introduced <= bracket.high:
        raise InputError(
            f"introduced is {introduced!r}, expected a share in the bracket [{bracket.low:g}, {bracket.high:g}]"
        )
    beta = min(fvu - introduced, 1.0)
    interference = bracket.high - introduced
    both = beta * (1.0 - beta)
    phi = min(interference / both, 1.0) if both > 0.0 else 0.0
    return PublishedWorld(
        learned=np.diag([phi * (1.0 - beta), 0.0, (1.0 - phi) * (1.0 - beta)]),
        rest=np.diag([phi * beta, (1.0 - phi) * beta, 0.0]),
        introduced=introduced,
    )


def shrinkage_line(recon: float, covariance: float, s: float) -> float:
    """Var N(s) = Var Sae − (1 − s) Cov(x, Sae): introduced error if the mean shrinkage is s.

    The mean weights feature i by what it keeps, (1 − s_i) v_i; for uniform shrinkage it is the shrinkage.

    Args:
        recon: Var Sae ≥ 0, the trace of its covariance.
        covariance: Cov(x, Sae), the trace of the cross-covariance, in the same squared units.
        s: Shrinkage.

    Returns:
        Var N(s), in the same units; below 0 where the data exclude s (T5b, proofs/08_one_sae.md).

    Raises:
        InputError: A number that is not finite, or a negative variance.
    """
    if not (0.0 <= recon < math.inf and math.isfinite(covariance) and math.isfinite(s)):
        raise InputError(
            f"recon, covariance and s are {recon!r}, {covariance!r} and {s!r}, expected finite numbers and recon >= 0"
        )
    return recon - (1.0 - s) * covariance
