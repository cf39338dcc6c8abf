"""T6: what one gain can remove of an SAE's error, and what R² says of an SAE that outputs little; in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError


@dataclass(frozen=True, slots=True)
class Gain:
    """The best rescaling of a reconstruction.

    Attributes:
        gain: α = Cov(x, Sae) / Var Sae, without unit.
        removed: Var(x − Sae) − Var(x − α Sae) = (α − 1)² Var Sae, in squared activation units.
    """

    gain: float
    removed: float


def best_gain(cov_x_recon: float, var_recon: float) -> Gain:
    """The gain that minimises Var(x − g Sae), and what it removes.

    Args:
        cov_x_recon: Cov(x, Sae), a trace, in squared activation units.
        var_recon: Var Sae, in the same units, > 0.

    Returns:
        The gain. Source: proofs/09.

    Raises:
        InputError: Var Sae is not positive (no gain helps a dead SAE), or a number is not finite.
    """
    if not 0.0 < var_recon < math.inf or not math.isfinite(cov_x_recon):
        raise InputError(
            f"Var Sae is {var_recon!r} and Cov(x, Sae) {cov_x_recon!r}, expected finite numbers and a positive "
            "variance: a dead SAE has no gain"
        )
    gain = cov_x_recon / var_recon
    return Gain(gain, (gain - 1.0) ** 2 * var_recon)


def uniform_shrinkage(shrinkage: float, *, learned: float, introduced: float) -> Gain:
    """Gain and removable share of Sae = (1 − s) S1 + N with S1 uncorrelated with the rest of x, and N with both.

    α = (1 − s) Var S1 / ((1 − s)² Var S1 + Var N): introduced error hides shrinkage, α ≤ 1/(1 − s), and α = 1 exactly
    where Var N = s(1 − s) Var S1.

    Args:
        shrinkage: s, below 1.
        learned: Var S1, in squared activation units, > 0.
        introduced: Var N, in the same units, ≥ 0.

    Returns:
        The gain. Source: proofs/09.

    Raises:
        InputError: A variance that cannot be, or a shrinkage of 1 or more.
    """
    if not (math.isfinite(shrinkage) and shrinkage < 1.0):
        raise InputError(f"shrinkage is {shrinkage!r}, expected below 1: at 1 the SAE is dead")
    if not (0.0 < learned < math.inf and 0.0 <= introduced < math.inf):
        raise InputError(f"Var S1 is {learned!r} and Var N {introduced!r}, expected finite, the first positive")
    kept = 1.0 - shrinkage
    return best_gain(kept * learned, kept**2 * learned + introduced)


def hidden_shrinkages(introduced: float) -> tuple[float, float] | None:
    """The two shrinkages at which introduced error makes the gain exactly one: s(1 − s) = Var N / Var S1.

    Args:
        introduced: Var N / Var S1, ≥ 0.

    Returns:
        ½ (1 ± sqrt(1 − 4 Var N / Var S1)), the smaller first; None above ¼, where the gain is below one for every s.
        Source: proofs/09.

    Raises:
        InputError: A negative or infinite share.
    """
    if not 0.0 <= introduced < math.inf:
        raise InputError(f"Var N / Var S1 is {introduced!r}, expected a finite number of at least 0")
    if introduced > 0.25:
        return None
    root = math.sqrt(1.0 - 4.0 * introduced)
    return 2.0 * introduced / (1.0 + root), 0.5 * (1.0 + root)  # the first without cancellation


def uneven_shrinkage(variances: npt.ArrayLike, shrinkages: npt.ArrayLike, *, introduced: float = 0.0) -> float:
    """What the best gain leaves of the learned part when every feature shrinks by itself: Var(S1 − α Sae).

    With t_i = 1 − s_i, weights v_i = Var w_i, and E t, E t² the means with these weights, it is
    Var S1 (1 − (E t)² / (E t² + Var N / Var S1)); without N that is Var S1 c²/(1 + c²), c the coefficient of variation
    of t.

    Args:
        variances: v_i ≥ 0 of uncorrelated amplitudes of features with unit directions, (m,), squared activation units.
        shrinkages: s_i, (m,).
        introduced: Var N, in the same units, ≥ 0.

    Returns:
        The variance, in the same units. Source: proofs/09.

    Raises:
        InputError: Shapes that do not fit, negative variances, or a reconstruction that does not vary.
    """
    v, s = np.asarray(variances, dtype=np.float64), np.asarray(shrinkages, dtype=np.float64)
    if v.ndim != 1 or v.shape != s.shape or not (np.isfinite(v).all() and np.isfinite(s).all()) or (v < 0.0).any():
        raise InputError(
            f"variances {v.shape} and shrinkages {s.shape}, expected two flat sequences of equal length, finite, and "
            "no negative variance"
        )
    total, t = float(v.sum()), 1.0 - s
    square = float(v @ t**2) + introduced
    if introduced < 0.0 or not 0.0 < square < math.inf:
        raise InputError(f"Var Sae is {square!r} with Var N {introduced!r}, expected a reconstruction that varies")
    # Σ v (t − mean)² + …, a sum of squares, in place of a difference of nearly equal numbers
    mean = float(v @ t) / total if total > 0.0 else 0.0
    spread = float(v @ (t - mean) ** 2) + introduced
    return total * spread / square


def least_r2_error(recon: float, *, fvu: float | None = None) -> float:
    """The least R² of the error on x that an SAE can have, whatever it computes.

    R² ≥ 1 − Var Sae / Var x, attained at gain one; with the FVU f known, R² ≥ 1 − (ρ − (1 + ρ − f)²/4) / f for
    ρ = Var Sae / Var x, attained where the best affine predictor of Sae from x is a multiple of x.

    Args:
        recon: Var Sae / Var x, ≥ 0.
        fvu: Var(x − Sae) / Var x, > 0, if known.

    Returns:
        The bound, at least 0. Source: proofs/09.

    Raises:
        InputError: A negative number, or an FVU that no SAE with this Var Sae can have.
    """
    if not 0.0 <= recon < math.inf:
        raise InputError(f"Var Sae / Var x is {recon!r}, expected a finite number of at least 0")
    if fvu is None:
        return max(0.0, 1.0 - recon)
    root = math.sqrt(recon)
    slack = 1e-12 * (1.0 + root) ** 2
    if not (0.0 < fvu < math.inf and (1.0 - root) ** 2 - slack <= fvu <= (1.0 + root) ** 2 + slack):
        raise InputError(
            f"FVU is {fvu!r} with Var Sae / Var x = {recon!r}, expected between (1 - sqrt)² and (1 + sqrt)² and above 0"
        )
    unexplained = max(0.0, recon - (1.0 + recon - fvu) ** 2 / 4.0)
    return max(0.0, 1.0 - unexplained / fvu)
