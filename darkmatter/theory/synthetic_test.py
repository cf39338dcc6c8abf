"""T7: what the original paper's synthetic test reports, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError


@dataclass(frozen=True, slots=True)
class SyntheticTest:
    """Population values of the synthetic test; shares are of Var x', the trace of the covariance of x' = S + a g.

    Attributes:
        fvu: Var e / Var x' for e = x' − recon = a g − r g'.
        linear: Share that the best affine predictor of e from x' explains.
        nonlinear: The rest, fvu − linear.
        noise: True share of the activation noise, Var(a g) / Var x'; the test takes `linear` for it.
        introduced: True share of the introduced error, Var(r g') / Var x'; the test takes `nonlinear` for it.
    """

    fvu: float
    linear: float
    nonlinear: float
    noise: float
    introduced: float

    @property
    def r2_error(self) -> float:
        """Pooled R² of e regressed on x', linear / fvu; NaN where there is no error."""
        return self.linear / self.fvu if self.fvu > 0.0 else float("nan")

    @property
    def recovered(self) -> float:
        """Share of the activation noise that is called linear, linear / noise; NaN without noise."""
        return self.linear / self.noise if self.noise > 0.0 else float("nan")


def synthetic_test(eigenvalues: npt.ArrayLike | Sequence[float], *, a: float, r: float) -> SyntheticTest:
    """What the test reports for x' = S + a g and recon = S + r g', with g and g' independent N(0, I_d) and of S.

    e = a g − r g' and Cov(e, x') = a² I, so the best affine predictor of e is a Wiener filter: with s_j the
    eigenvalues of Cov S it explains Σ_j a⁴ / (s_j + a²) and leaves Σ_j s_j a² / (s_j + a²) + d r². It finds all of the
    noise only where S does not vary, and a share a² / (s_j + a²) elsewhere. No moment of S beyond the second matters.

    Args:
        eigenvalues: Eigenvalues s_j ≥ 0 of Cov S, (d,).
        a: Standard deviation of the activation noise per coordinate, ≥ 0.
        r: Standard deviation of the introduced error per coordinate, ≥ 0.

    Returns:
        The values (T7 in docs/concepts.md; the test is in Engels, Riggs and Tegmark 2024).

    Raises:
        InputError: Eigenvalues that are not a flat, finite, non-negative sequence, a negative or infinite a or r, or an
            x' that does not vary.
    """
    s = np.asarray(eigenvalues, dtype=np.float64)
    if s.ndim != 1 or not len(s) or not np.isfinite(s).all() or s.min() < 0.0:
        raise InputError(
            f"eigenvalues have shape {s.shape}, expected a flat sequence of finite numbers of at least 0: clip the "
            "rounding of an eigendecomposition"
        )
    for name, value in (("a", a), ("r", r)):
        if not 0.0 <= value < np.inf:
            raise InputError(f"{name} is {value!r}, expected a finite number of at least 0")
    noise, d = a**2, len(s)
    total = float(s.sum()) + d * noise
    if total == 0.0:
        raise InputError("x' does not vary: pass a positive eigenvalue or a positive a")
    linear = float((noise**2 / (s + noise)).sum()) if noise > 0.0 else 0.0
    missed = float((s * noise / (s + noise)).sum()) if noise > 0.0 else 0.0  # not d a² − linear, which could cancel
    return SyntheticTest(
        fvu=d * (noise + r**2) / total,
        linear=linear / total,
        nonlinear=(missed + d * r**2) / total,
        noise=d * noise / total,
        introduced=d * r**2 / total,
    )
