"""T2: when the unexplained share of the error bounds what the SAE introduced, and exact cases in which it does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy.typing as npt
from scipy.integrate import quad
from scipy.special import expit, logit

from darkmatter.errors import InputError
from darkmatter.theory.population import centred, covariance, predicted, residual, variance

_REACH = 38.0  # standard deviations beyond which the normal density is below 1e-300


@dataclass(frozen=True, slots=True)
class UpperBoundTerms:
    """What decides whether R ≥ Var N, for x = S1 + U and Sae = S1 + L + N with L affine in x; all are variances.

    Attributes:
        nonlinear: R = Var (I − P) e, the unexplained part of the error.
        introduced: Var N of this split.
        interference: |q|², q = (I − P) S1.
        inner: ⟨q, (I − P) N⟩.
        predictable: |P N|².
    """

    nonlinear: float
    introduced: float
    interference: float
    inner: float
    predictable: float

    @property
    def excess(self) -> float:
        """R − Var N = |q|² + 2⟨q, N⊥⟩ − |P N|²; the disputed claim holds where this is not negative."""
        return self.interference + 2.0 * self.inner - self.predictable


def upper_bound_terms(x: npt.ArrayLike, learned: npt.ArrayLike, introduced: npt.ArrayLike) -> UpperBoundTerms:
    """The terms of R = |q|² + |N⊥|² + 2⟨q, N⊥⟩ on a finite population of equally likely outcomes.

    Args:
        x: Outcomes of the activation, (n, d).
        learned: Outcomes of S1 in the same order, (n, d).
        introduced: Outcomes of N in the same order, (n, d).

    Returns:
        The terms (proofs/05); L does not enter, for it is affine in x.

    Raises:
        InputError: Shapes that differ, or entries that are not finite.
    """
    parts = [centred(part) for part in (x, learned, introduced)]
    if len({part.shape for part in parts}) > 1:
        shapes = ", ".join(str(part.shape) for part in parts)
        raise InputError(f"x, learned and introduced have shapes {shapes}, expected one: pass the same outcomes")
    q, unexplained = residual(learned, x), residual(introduced, x)
    return UpperBoundTerms(
        nonlinear=variance(q + unexplained),
        introduced=variance(introduced),
        interference=variance(q),
        inner=covariance(q, unexplained),
        predictable=variance(predicted(introduced, x)),
    )


def soft_threshold(*, p: float, threshold: float) -> UpperBoundTerms:
    """F1: one feature of a readable code comes back soft-thresholded, w → max(w − t, 0), and S1 = w y is affine in x.

    With w = Exp(1) with probability p, else 0, the SAE introduces N = −min(w, t) y. Let h = e^{−t}:
    E min = p(1 − h), E min² = 2p(1 − h(1 + t)), E w min = p(2 − h(2 + t)), Var w = 2p − p². Then q = 0 and
    R = Var N − Cov(w, min)² / Var w. Other features drop out as long as the directions are linearly independent.

    Args:
        p: Probability that the feature fires, 0 < p ≤ 1.
        threshold: The threshold t ≥ 0, in units of the mean amplitude.

    Returns:
        The terms, for L = 0 (proofs/05).

    Raises:
        InputError: p or the threshold outside its range.
    """
    _check_probability(p, most=1.0)
    if not 0.0 <= threshold < math.inf:
        raise InputError(f"threshold is {threshold!r}, expected a finite number of at least 0")
    h = math.exp(-threshold)
    mean = p * -math.expm1(-threshold)
    square = 2.0 * p * (-math.expm1(-threshold) - threshold * h)
    product = p * (-2.0 * math.expm1(-threshold) - threshold * h)
    introduced = square - mean**2
    predictable = (product - p * mean) ** 2 / (2.0 * p - p**2)
    nonlinear = max(0.0, introduced - predictable)  # a threshold that nothing passes leaves rounding
    return UpperBoundTerms(nonlinear, introduced, 0.0, 0.0, predictable)


def optimal_sae(*, p: float, noise: float, amplitude: float = 1.0) -> UpperBoundTerms:
    """F3: the SAE of least error, Sae(x) = E[S1 | x], for x = S1 + D with S1 = c·Bernoulli(p), D ~ N(0, s²), d = 1.

    N = E[S1 | x] − S1 is uncorrelated with every function of x, and Cov(S1, N) = −Var N. So R = |q|² − Var N, with
    |q|² = v s² / (v + s²), v = p(1 − p)c². R and Var N are two separate integrals over the posterior
    expit(logit p + (c x − c²/2) / s²), by adaptive quadrature.

    Args:
        p: Probability that the feature fires, 0 < p < 1.
        noise: Standard deviation s > 0 of the dense part.
        amplitude: The amplitude c > 0.

    Returns:
        The terms, for L = 0; to about 1e-10 of Var S1 (proofs/05).

    Raises:
        InputError: A parameter outside its range.
    """
    _check_probability(p, most=math.nextafter(1.0, 0.0))
    for name, value in (("noise", noise), ("amplitude", amplitude)):
        if not 0.0 < value < math.inf:
            raise InputError(f"{name} is {value!r}, expected a finite number above 0")
    a = amplitude / noise  # x is in units of the noise below, variances in units of the amplitude
    if not 1e-6 <= a <= 1e6:
        raise InputError(f"amplitude / noise is {a!r}, expected a ratio in [1e-6, 1e6]")
    v = p * (1.0 - p)
    slope = v * a / (v * a**2 + 1.0)
    turn = a / 2.0 - float(logit(p)) / a  # where the posterior is 1/2

    def posterior(x: float) -> float:
        return float(expit(a * (x - turn)))

    def nonlinear(x: float) -> float:
        return (posterior(x) - p - slope * (x - p * a)) ** 2

    def given(mean: float, value: Callable[[float], float]) -> float:
        edges = [turn - 20.0 / a, turn, turn + 20.0 / a, mean]
        points = sorted(e - mean for e in edges if abs(e - mean) < _REACH)

        def weighted(z: float) -> float:
            return value(mean + z) * math.exp(-(z**2) / 2.0) / math.sqrt(2.0 * math.pi)

        return float(quad(weighted, -_REACH, _REACH, points=points, limit=400, epsabs=1e-14, epsrel=1e-11)[0])

    unit = amplitude**2
    missed = unit * p * given(a, lambda x: float(expit(a * (turn - x))))  # E S1 (c − E[S1|x]) = Var(S1 | x)
    return UpperBoundTerms(
        nonlinear=unit * (p * given(a, nonlinear) + (1.0 - p) * given(0.0, nonlinear)),
        introduced=missed,
        interference=unit * v / (v * a**2 + 1.0),
        inner=-missed,
        predictable=0.0,
    )


def _check_probability(p: float, *, most: float) -> None:
    if not 0.0 < p <= most:
        raise InputError(f"p is {p!r}, expected a probability above 0 and {'at most' if most == 1.0 else 'below'} 1")
