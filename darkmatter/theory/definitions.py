"""R² and FVU by every definition in use, from means and covariances: what the names of a number can mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError
from darkmatter.theory.population import centred, cross
from darkmatter.theory.ratios import Floats, mean_ratio, symmetric

_CUTOFF = 1e-10
"""Directions of x below this share of its largest variance do not vary."""


@dataclass(frozen=True, slots=True, eq=False)
class PairMoments:
    """First and second moments of activation x and error e, of a population or of a sample with divisor n.

    Attributes:
        mean_x: E x, (d,).
        mean_e: E e, (q,).
        cov_x: Cov x, (d, d); may be singular.
        cov_xe: Cov(x, e), (d, q).
        cov_e: Cov e, (q, q).
    """

    mean_x: Floats
    mean_e: Floats
    cov_x: Floats
    cov_xe: Floats
    cov_e: Floats

    def __post_init__(self) -> None:
        d, q = self.mean_x.shape[0], self.mean_e.shape[0]
        shapes = (symmetric(self.cov_x, "cov_x").shape, self.cov_xe.shape, symmetric(self.cov_e, "cov_e").shape)
        if shapes != ((d, d), (d, q), (q, q)):
            raise InputError(
                f"cov_x, cov_xe and cov_e have shapes {shapes}, expected {((d, d), (d, q), (q, q))} as by the means"
            )

    @staticmethod
    def of(x: npt.ArrayLike, e: npt.ArrayLike) -> PairMoments:
        """Moments of equally likely outcomes.

        Args:
            x: (n, d).
            e: (n, q), in the same order.

        Returns:
            The moments.
        """
        means = [np.asarray(a, dtype=np.float64).reshape(len(centred(a)), -1).mean(axis=0) for a in (x, e)]
        return PairMoments(means[0], means[1], cross(x, x), cross(x, e), cross(e, e))

    @property
    def slope(self) -> Floats:
        """A of the best affine predictor x A + b, (d, q), of minimum norm where x is singular."""
        slope: Floats = np.linalg.pinv(self.cov_x, rcond=_CUTOFF, hermitian=True) @ self.cov_xe
        return slope

    @property
    def intercept(self) -> Floats:
        """Intercept b of the best affine predictor, E e − E x A, (q,)."""
        intercept: Floats = self.mean_e - self.mean_x @ self.slope
        return intercept

    @property
    def residual_covariance(self) -> Floats:
        """Cov r of the residual r = e − x A − b, (q, q)."""
        left = self.cov_e - self.cov_xe.T @ self.slope
        return np.asarray((left + left.T) / 2.0)

    @property
    def mean_as_intercept(self) -> float:
        """τ = E x Cov(x)⁺ (E x)', how well a linear function of x can be constant; ∞ if one is exactly so.

        Without an intercept the best linear stand-in for the constant 1 misses it by 1 / (1 + τ) in mean square.
        """
        inverse = np.linalg.pinv(self.cov_x, rcond=_CUTOFF, hermitian=True)
        image = inverse @ self.mean_x
        outside = self.mean_x - self.cov_x @ image  # a mean along which x does not vary
        if np.linalg.norm(outside) > math.sqrt(_CUTOFF) * np.linalg.norm(self.mean_x):
            return math.inf
        return float(self.mean_x @ image)

    @property
    def origin_residual(self) -> Floats:
        """E r₀² by coordinate of the fit through the origin, (q,): Var r_j + b_j² / (1 + τ)."""
        missed: Floats = np.diag(self.residual_covariance) + self.intercept**2 / (1.0 + self.mean_as_intercept)
        return missed


@dataclass(frozen=True, slots=True)
class Definition:
    """One definition of R² or FVU.

    Attributes:
        name: Short name, in lower case with hyphens.
        meaning: The definition in one line.
        value: The number, from moments.
    """

    name: str
    meaning: str
    value: Callable[[PairMoments], float]


def _trace(matrix: Floats) -> float:
    return float(np.trace(matrix))


def _square(mean: Floats) -> float:
    return float(mean @ mean)


_ALL = (
    Definition(
        "r2",
        "pooled, centred, with an intercept: 1 − Var r / Var e; the one that every report uses",
        lambda m: 1.0 - _trace(m.residual_covariance) / _trace(m.cov_e),
    ),
    Definition(
        "r2-coordinate-mean",
        "mean over coordinates of each one's R², centred, with an intercept; depends on the basis",
        lambda m: 1.0 - mean_ratio(np.diag(m.residual_covariance), np.diag(m.cov_e)),
    ),
    Definition(
        "r2-no-intercept",
        "pooled, fit through the origin, total sum of squares centred; can be negative",
        lambda m: 1.0 - float(m.origin_residual.sum()) / _trace(m.cov_e),
    ),
    Definition(
        "r2-uncentred",
        "pooled, fit through the origin, total sum of squares uncentred",
        lambda m: 1.0 - float(m.origin_residual.sum()) / (_trace(m.cov_e) + _square(m.mean_e)),
    ),
    Definition(
        "r2-no-intercept-coordinate-mean",
        "fit through the origin, centred total by coordinate, mean over coordinates: Engels, Riggs and Tegmark 2024",
        lambda m: 1.0 - mean_ratio(m.origin_residual, np.diag(m.cov_e)),
    ),
    Definition(
        "fvu",
        "pooled, centred: Var e / Var x; the one that every report uses",
        lambda m: _trace(m.cov_e) / _trace(m.cov_x),
    ),
    Definition(
        "fvu-mixed",
        "mean square error over centred variance, E|e|² / Var x: Engels, Riggs and Tegmark 2024",
        lambda m: (_trace(m.cov_e) + _square(m.mean_e)) / _trace(m.cov_x),
    ),
    Definition(
        "fvu-uncentred",
        "mean square error over mean square activation, E|e|² / E|x|²",
        lambda m: (_trace(m.cov_e) + _square(m.mean_e)) / (_trace(m.cov_x) + _square(m.mean_x)),
    ),
    Definition(
        "fvu-coordinate-mean",
        "mean over coordinates of Var e_j / Var x_j; depends on the basis",
        lambda m: mean_ratio(np.diag(m.cov_e), np.diag(m.cov_x)),
    ),
)

DEFINITIONS: Mapping[str, Definition] = MappingProxyType({d.name: d for d in _ALL})
"""Definitions by name, for comparison with numbers from elsewhere (proofs/13); reports use "r2" and "fvu"."""


@dataclass(frozen=True, slots=True)
class TokenFvu:
    """Mean over tokens of |e|² / |x|², and what it is made of; no means are subtracted.

    Attributes:
        angle: Mean of sin² of the angle between x and Sae(x): all that a cosine similarity sees.
        gain: Mean of (|Sae(x)| / |x| − cos)²: wrong length of the reconstruction, token by token.
    """

    angle: float
    gain: float

    @property
    def fvu(self) -> float:
        """Mean of |e|² / |x|², angle + gain."""
        return self.angle + self.gain


def token_fvu(x: npt.ArrayLike, recon: npt.ArrayLike) -> TokenFvu:
    """|x − y|² / |x|² = sin² + (|y| / |x| − cos)² on every token, averaged.

    Args:
        x: Activations, (n, d), none of them zero.
        recon: Reconstructions y, (n, d); a zero one counts as orthogonal to x.

    Returns:
        The means (proofs/13).

    Raises:
        InputError: Different shapes, or a zero activation.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(recon, dtype=np.float64)
    centred(first)  # at least one token, finite
    size = np.linalg.norm(first, axis=-1)
    if first.ndim != 2 or first.shape != second.shape or not size.min():
        raise InputError(f"shapes are {first.shape} and {second.shape}, expected equal (n, d) and no activation zero")
    gain = np.linalg.norm(second, axis=-1) / size
    # |y| cos / |x|, by projection: a zero reconstruction needs no case of its own
    along = (first * second).sum(axis=-1) / size**2
    cosine = np.divide(along, gain, out=np.zeros_like(gain), where=gain > 0.0)
    across = first * cosine[:, None] / size[:, None] - np.divide(
        second, (gain * size)[:, None], out=np.zeros_like(second), where=gain[:, None] > 0.0
    )
    # sin² as the squared distance of y / |y| from its projection, not 1 − cos², which cancels
    sine = np.where(gain > 0.0, (across**2).sum(axis=-1), 1.0)
    return TokenFvu(angle=float(sine.mean()), gain=float(((gain - cosine) ** 2).mean()))
