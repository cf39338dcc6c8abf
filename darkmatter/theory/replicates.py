"""T8: what two or more SAEs on the same tokens say about the error that they introduce, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError

Floats = npt.NDArray[np.float64]


def corrected(var_difference: float, cov_x_difference: float) -> float:
    """½ [Var(a − b) − |Cov(x, a − b)|]: the lower end of T5b for the SAE a − b.

    Equal to ½ Var(N_a − N_b) where one SAE has learned all that the other has and neither shrinks; not cut at 0.

    Args:
        var_difference: Var(a − b), in squared activation units, ≥ 0.
        cov_x_difference: Cov(x, a − b), a trace, in the same units.

    Returns:
        The value, in the same units. Source: proofs/11.

    Raises:
        InputError: A negative or infinite variance, or a covariance that is not finite.
    """
    if not 0.0 <= var_difference < math.inf or not math.isfinite(cov_x_difference):
        raise InputError(
            f"Var(a - b) is {var_difference!r} and Cov(x, a - b) {cov_x_difference!r}, expected finite numbers and a "
            "variance of at least 0: pass traces of covariance matrices"
        )
    return 0.5 * (var_difference - abs(cov_x_difference))


def instrument(var_a: float, *, cov_xa: float, cov_xb: float, cov_ab: float) -> float:
    """Var a − Cov(x, a) Cov(a, b) / Cov(x, b): introduced error of the SAE a by means of another one, b.

    Equal to Var N_a − Cov(N_a, N_b) Cov(x, a) / Cov(x, b) where the affine parts of a and b are proportional, and
    where a has learned all that b has with a uniform shrinkage; not cut at 0.

    Args:
        var_a: Var a, in squared activation units, ≥ 0.
        cov_xa: Cov(x, a), a trace, in the same units.
        cov_xb: Cov(x, b).
        cov_ab: Cov(a, b).

    Returns:
        The value, in the same units; NaN where Cov(x, b) ≤ 0, for then b is no instrument. Source: proofs/11.

    Raises:
        InputError: A negative or infinite variance, or a covariance that is not finite.
    """
    if not 0.0 <= var_a < math.inf or not all(map(math.isfinite, (cov_xa, cov_xb, cov_ab))):
        raise InputError(
            f"Var a is {var_a!r} and the covariances {cov_xa!r}, {cov_xb!r} and {cov_ab!r}, expected finite numbers "
            "and a variance of at least 0: pass traces of covariance matrices"
        )
    return var_a - cov_xa * cov_ab / cov_xb if cov_xb > 0.0 else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Two SAEs, a = (1 − s_a)(Z + E_a) + N_a and b = (1 − s_b)(Z + E_b) + N_b, all parts uncorrelated but N_a and N_b.

    All variances are traces in the same units; those of the parts are ≥ 0. `only_b` = 0 says that b is nested in a.

    Attributes:
        common: Var Z, what both have learned.
        only_a: Var E_a, what a alone has learned.
        only_b: Var E_b.
        shrinkage_a: s_a, below 1.
        shrinkage_b: s_b, below 1.
        introduced_a: Var N_a.
        introduced_b: Var N_b.
        introduced_ab: Cov(N_a, N_b).
    """

    common: float
    only_a: float = 0.0
    only_b: float = 0.0
    shrinkage_a: float = 0.0
    shrinkage_b: float = 0.0
    introduced_a: float = 0.0
    introduced_b: float = 0.0
    introduced_ab: float = 0.0

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InputError: A variance below 0, a shrinkage of 1 or more, a covariance beyond Cauchy and Schwarz, or a
                number that is not finite.
        """
        for f in fields(self):
            value = getattr(self, f.name)
            if not math.isfinite(value) or (f.name != "introduced_ab" and "shrinkage" not in f.name and value < 0.0):
                raise InputError(f"{f.name} is {value!r}, expected a finite number of at least 0: pass a variance")
            if "shrinkage" in f.name and value >= 1.0:
                raise InputError(f"{f.name} is {value!r}, expected below 1: an SAE that outputs nothing has no S1")
        limit = math.sqrt(self.introduced_a * self.introduced_b)
        if abs(self.introduced_ab) > limit * (1.0 + 1e-9):
            raise InputError(
                f"introduced_ab is {self.introduced_ab!r}, expected at most {limit:g} in absolute value: it is a "
                "covariance of parts with the variances introduced_a and introduced_b"
            )

    @property
    def cov_xa(self) -> float:
        """Cov(x, a)."""
        return (1.0 - self.shrinkage_a) * (self.common + self.only_a)

    @property
    def cov_xb(self) -> float:
        """Cov(x, b)."""
        return (1.0 - self.shrinkage_b) * (self.common + self.only_b)

    @property
    def cov_ab(self) -> float:
        """Cov(a, b)."""
        return (1.0 - self.shrinkage_a) * (1.0 - self.shrinkage_b) * self.common + self.introduced_ab

    @property
    def var_a(self) -> float:
        """Var a."""
        return (1.0 - self.shrinkage_a) ** 2 * (self.common + self.only_a) + self.introduced_a

    @property
    def var_difference(self) -> float:
        """Var(a − b)."""
        u, w = 1.0 - self.shrinkage_a, 1.0 - self.shrinkage_b
        return (u - w) ** 2 * self.common + u**2 * self.only_a + w**2 * self.only_b + 2.0 * self.private

    @property
    def private(self) -> float:
        """½ Var(N_a − N_b)."""
        return 0.5 * (self.introduced_a + self.introduced_b) - self.introduced_ab

    @property
    def corrected(self) -> float:
        """What `corrected` makes of this pair in the population."""
        return corrected(self.var_difference, self.cov_xa - self.cov_xb)

    @property
    def instrument(self) -> float:
        """What `instrument` makes of a by means of b in the population."""
        return instrument(self.var_a, cov_xa=self.cov_xa, cov_xb=self.cov_xb, cov_ab=self.cov_ab)

    @property
    def instrument_excess(self) -> float:
        """Instrument − Var N_a: what b alone has learned lifts it, introduced error in common lowers it."""
        if not self.cov_xb > 0.0:
            return math.nan
        missing = self.only_b / (self.common + self.only_b)
        lifted = (1.0 - self.shrinkage_a) ** 2 * (self.common + self.only_a) * missing
        return lifted - self.introduced_ab * self.cov_xa / self.cov_xb


def between_variance(gram: npt.ArrayLike) -> float:
    """1/(J − 1) Σ_j Var(r_j − r̄), r̄ the mean of J nonlinear residuals: the mean unshared part of all pairs.

    It equals mean Var r_j minus the mean covariance of two different residuals, so it does not depend on J.

    Args:
        gram: Cov(r_i, r_j), traces, (J, J), symmetric, J ≥ 2.

    Returns:
        The variance, in units of the entries. Source: proofs/11.
    """
    g = _gram(gram)
    return float((np.trace(g) - g.sum() / len(g)) / (len(g) - 1))


def most_interference(gram: npt.ArrayLike, *, signs: bool = True) -> float:
    """The most that Var q can be if all J residuals share the interference q.

    Var q ≤ Var(Σ a_j r_j) for all weights with Σ a_j = 1, and Var q ≤ Cov(r_i, r_k) for every pair whose introduced
    errors are not negatively correlated. Nothing else follows from the covariances.

    Args:
        gram: Cov(r_i, r_j), traces, (J, J), symmetric, J ≥ 2.
        signs: Use that no Cov(N_i, N_k) is negative; else the first bound only.

    Returns:
        The smaller bound, at least 0, in units of the entries. Source: proofs/11.
    """
    g = _gram(gram)
    count = len(g)
    values, vectors = np.linalg.eigh(g)
    root = np.sqrt(np.clip(values, 0.0, None))[:, None] * vectors.T  # |root a|² = Var(Σ a_j r_j)
    # weights that sum to one are 1/J plus weights that sum to zero
    zero_sum = np.linalg.svd(np.ones((1, count)))[2][1:].T
    mean, free = root @ np.full(count, 1.0 / count), root @ zero_sum
    left, singular, _ = np.linalg.svd(free, full_matrices=False)
    basis = left[:, singular > 1e-7 * np.sqrt(max(values[-1], 0.0))]  # the root of a rounding error is no direction
    bound = float(((mean - basis @ (basis.T @ mean)) ** 2).sum())
    return max(0.0, min(bound, float(g[~np.eye(count, dtype=bool)].min()))) if signs else bound


def lower_ends(gram: npt.ArrayLike, *, signs: bool = True) -> Floats:
    """R_j − `most_interference`: the best lower ends of Var N_j that J replicates with equal interference give.

    Args:
        gram: Cov(r_i, r_j), traces, (J, J), symmetric, J ≥ 2.
        signs: Use that no Cov(N_i, N_k) is negative.

    Returns:
        (J,), in units of the entries; not cut at 0. Source: proofs/11.
    """
    return np.asarray(np.diagonal(_gram(gram)) - most_interference(gram, signs=signs))


def _gram(gram: npt.ArrayLike) -> Floats:
    g = np.asarray(gram, dtype=np.float64)
    if g.ndim != 2 or g.shape[0] != g.shape[1] or len(g) < 2:
        raise InputError(f"the covariances have shape {g.shape}, expected (J, J) with J of at least 2")
    if not np.isfinite(g).all() or not np.allclose(g, g.T, rtol=1e-9, atol=1e-12 * float(np.abs(g).max())):
        raise InputError("the covariances are not finite or not symmetric, expected Cov(r_i, r_j) = Cov(r_j, r_i)")
    return g
