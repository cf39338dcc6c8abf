"""A: when a squared norm can be read off linearly (proofs/12_norm_probe.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.claim import AnyClaim, Claim, Margin, at_most, equals, worst
from darkmatter.claims.norm_cases import (
    Codes,
    Features,
    Mixture,
    codes,
    explained_and_total,
    features,
    mixtures,
    normal_outcomes,
    rounding_scale,
    square_norms,
    whole_numbers,
)
from darkmatter.claims.norm_false import FALSE_CLAIMS
from darkmatter.claims.norm_random import RANDOM_CLAIMS
from darkmatter.claims.strategies import Floats, seeds
from darkmatter.theory.amplitudes import CodeMoments, gated_moments, square_r2
from darkmatter.theory.norm_probe import Factors, Vector, code_probe, gaussian_norm_r2, norm_probe
from darkmatter.theory.population import centred, predicted

_PAGE = "12_norm_probe"
_ROUNDING = 1e-12  # sums over at most 2,000 outcomes and 8 × 8 inverses, relative to `rounding_scale`


def _any_dictionary(case: Codes, *, means: bool = True, pairs: float = 2.0) -> Margin:
    (probe,) = norm_probe(case.factors, case.factors.itself)
    moments, total, explained = CodeMoments.of(case.moments), probe.total, probe.explained
    gram = case.directions @ case.directions.T
    other = gram - np.diag(np.diag(gram))
    if not means:  # b = 0
        q = (np.diag(gram) * moments.k) @ case.directions
        explained = float(q @ np.linalg.pinv((case.directions.T * moments.variance) @ case.directions) @ q)
    total -= (2.0 - pairs) * float(moments.variance @ other**2 @ moments.variance)
    scale = rounding_scale(case.x, case.x, probe.weights)
    return equals(explained_and_total(case.x, case.x), (explained, total), scale=scale, rounding=_ROUNDING)


def _mixture(case: Mixture, *, cross: float = 4.0, skewed: bool = True) -> Margin:
    x, v = case.outcomes()
    factors = case.factors
    (probe,) = norm_probe(factors if skewed else _without_skew(factors), case.vector)
    size = float(((v**2).sum(axis=1)).mean()) - case.noise**2 * v.shape[1]
    total = probe.total - (4.0 - cross) * case.noise**2 * size
    scale = rounding_scale(x, v, probe.weights)
    return equals(explained_and_total(x, v), (probe.explained, total), scale=scale, rounding=_ROUNDING)


def _without_skew(factors: Factors) -> Factors:
    return Factors(
        directions=factors.directions,
        moments=factors.moments,
        dense_map=factors.dense_map,
        skew=np.zeros_like(factors.skew),
        square_variance=factors.square_variance,
    )


def _independent(case: Codes, *, twice: bool = True) -> Margin:
    probe = code_probe(case.directions, case.moments)
    x, norms = case.x, square_norms(case.x)
    weights = probe.weights
    if not twice:  # b_i instead of 2 b_i
        gram = case.directions @ case.directions.T
        mean = case.outcomes.mean(axis=0)
        weights = weights - (gram @ mean - np.diag(gram) * mean)
    read = centred(case.w) @ weights[:, None]
    size = float(norms.max()) + 1.0
    return worst(
        equals(predicted(norms, x), read, scale=size, rounding=_ROUNDING),
        equals(
            explained_and_total(x, x),
            (probe.explained, probe.explained + probe.unexplained),
            scale=size**2,
            rounding=_ROUNDING,
        ),
    )


def _superposition(case: Codes, *, orthogonal: bool = False) -> Margin:
    directions = case.directions
    if orthogonal:  # the same lengths, at right angles
        directions = np.diag(np.linalg.norm(directions, axis=1))
    bound = code_probe(directions, case.moments)
    share = bound.explained / (bound.explained + bound.unexplained) if bound.explained else 0.0
    explained, total = explained_and_total(case.x, case.x)
    return at_most(explained, share * total, scale=float(square_norms(case.x).max()) ** 2 + 1.0, rounding=_ROUNDING)


def _rare(case: Features, *, column: float = 0.0) -> Margin:
    law, p = case.law.moments, case.p
    if law[1] <= 1.0 + 1e-12 and column:  # the column p = 1 has no entry for a constant
        return Margin(0.0)
    probe = code_probe(np.eye(2), gated_moments(law, np.full(2, p)))
    ratio = probe.r2 / square_r2(law, column)
    slope = float(probe.weights[0]) / (law[2] / law[1])
    low = max((1.0 - p) ** 2 - ratio, (1.0 - p) - slope)
    high = max(ratio - (1.0 - p) ** -2, slope - 1.0 / (1.0 - p))
    return at_most(max(low, high), 0.0, scale=1.0, rounding=1e-12)


def _scale_free(case: Features, *, noise: float = 0.0) -> Margin:
    factors = case.factors
    c = 0.1 + 2.0 * case.p  # any other number would do
    scaled = Factors.sparse(factors.directions, factors.moments * c ** np.arange(1, 5)[:, None])
    probes = [norm_probe(each, Vector(each.directions, each.dense_map, noise))[0] for each in (factors, scaled)]
    # an error δ of Cov(x) changes the explained variance by a δ a'
    condition = [
        float(CodeMoments.of(each.moments).variance.sum() * (probe.weights @ probe.weights)) / probe.total
        for each, probe in zip((factors, scaled), probes, strict=True)
    ]
    return equals(probes[0].r2, probes[1].r2, scale=1.0 + max(condition), rounding=1e-13)


@dataclass(frozen=True, slots=True)
class _Noisy:
    """Orthonormal features with Exp(λ) amplitudes that always fire, read from a norm with unit noise."""

    rate: float
    d: int

    def rho(self, *, features: int, seen: bool) -> float:
        """ρ of ‖x + n‖² on x, or, if the noise is seen, on x + n."""
        raw = np.array([math.factorial(r) / self.rate**r for r in range(1, 5)])
        y, moments = np.eye(features, self.d), np.tile(raw[:, None], (1, features))
        factors = Factors.sparse(y, moments)
        if not seen:
            (probe,) = norm_probe(factors, Vector(y, factors.dense_map, 1.0))
        else:
            factors = Factors(
                directions=y,
                moments=moments,
                dense_map=np.eye(self.d),
                skew=np.zeros(self.d),
                square_variance=2.0 * self.d,
            )
            (probe,) = norm_probe(factors, factors.itself)
        return math.sqrt(probe.r2)


def _rho(case: _Noisy, *, seen: bool = False, spare: int = 0) -> Margin:
    rate = case.rate
    wanted = 4.0 / math.sqrt(20.0 + 8.0 * rate**2 + 2.0 * rate**4)
    found = _Noisy(rate, case.d + spare).rho(features=case.d, seen=seen)
    return equals(found, wanted, scale=1.0, rounding=1e-13)


def _gaussian(block: Floats, *, square: float = 2.0, mean: bool = True) -> Margin:
    mu, a = block[0], block[1:]
    s = a.T @ a
    explained, total = explained_and_total(x := mu + normal_outcomes(len(a)) @ a, x)
    share = gaussian_norm_r2(mu if mean else 0.0 * mu, s) if total > 0.0 else 0.0
    if square != 2.0:
        seen = 4.0 * float(mu @ s @ mu)
        share = seen / (seen + square * float((s**2).sum()))
    return equals(explained, share * total, scale=float(square_norms(x).max()) ** 2 + 1.0, rounding=_ROUNDING)


CLAIMS: tuple[AnyClaim, ...] = (
    Claim(
        theorem="A",
        name="norm-r2-any-dictionary",
        page=_PAGE,
        statement="Var P|x|^2 = q Cov(x)^+ q' and Var|x|^2 have closed forms in raw moments and the Gram matrix",
        assumptions="independent codes with four moments, of any sign; any directions, m > d and repeated ones too",
        cases=codes(),
        margin=_any_dictionary,
        twins={
            "means of the other codes left out": partial(_any_dictionary, means=False),
            "pairs counted once": partial(_any_dictionary, pairs=1.0),
        },
    ),
    Claim(
        theorem="A",
        name="norm-r2-dense-part-and-noise",
        page=_PAGE,
        statement="the same for |v|^2, v = w U + g V + s n, regressed on x = w Y + g F",
        assumptions="w, g, n independent; E g = 0, Cov g = I, V V' = a I; n like N(0, I) to the fourth moment",
        cases=mixtures(),
        margin=_mixture,
        twins={
            "noise without its product with v": partial(_mixture, cross=0.0),
            "dense part taken for symmetric": partial(_mixture, skewed=False),
        },
    ),
    Claim(
        theorem="A",
        name="norm-r2-independent-directions",
        page=_PAGE,
        statement="R^2 = Q / (Q + U), and the best probe has a.y_i = G_ii k_i / v_i + 2 b_i",
        assumptions="independent codes, linearly independent directions",
        cases=codes(independent=True),
        margin=_independent,
        twins={"b_i instead of 2 b_i": partial(_independent, twice=False)},
    ),
    Claim(
        theorem="A",
        name="superposition-only-lowers-the-norm-r2",
        page=_PAGE,
        statement="no probe of x explains more of |x|^2 than the best probe of the codes, Q",
        assumptions="independent codes, any directions",
        cases=codes(),
        margin=_superposition,
        twins={"than with the same lengths at right angles": partial(_superposition, orthogonal=True)},
    ),
    Claim(
        theorem="A",
        name="norm-r2-of-rare-codes",
        page=_PAGE,
        statement="R^2(p) is M3^2/(M2 M4) and the slope is M3/M2 up to factors between (1-p)^2 and (1-p)^-2",
        assumptions="orthonormal directions, amplitudes >= 0 with four moments, firing rate p < 1",
        cases=features(),
        margin=_rare,
        twins={"the column p = 1 of the table": partial(_rare, column=1.0)},
    ),
    Claim(
        theorem="A",
        name="norm-r2-has-no-scale",
        page=_PAGE,
        statement="R^2 does not change when all codes are multiplied by one number: no rate is special",
        assumptions="independent codes, any directions, no dense part and no noise",
        cases=features(),
        margin=_scale_free,
        twins={"unit noise in the norm": partial(_scale_free, noise=1.0)},
    ),
    Claim(
        theorem="A",
        name="norm-rho-with-unit-noise",
        page=_PAGE,
        statement="Exp(l) features, |x + n|^2 regressed on x: rho = 4 / sqrt(20 + 8 l^2 + 2 l^4)",
        assumptions="m = d orthonormal features that always fire; n ~ N(0, I) is in the norm and not in x",
        cases=st.builds(_Noisy, rate=st.floats(0.2, 5.0), d=st.integers(1, 6)),
        margin=_rho,
        twins={
            "the noise is in x too": partial(_rho, seen=True),
            "more dimensions than features": partial(_rho, spare=2),
        },
    ),
    Claim(
        theorem="A",
        name="norm-r2-of-a-dense-gaussian",
        page=_PAGE,
        statement="x ~ N(m, S): R^2 of |x|^2 on x is 4 m'S m / (4 m'S m + 2 tr S^2)",
        assumptions="none; checked on a finite law with the first five moments of a Gaussian",
        cases=st.builds(lambda seed, d: whole_numbers(seed, 1 + d, d), seeds(), st.integers(1, 3)),
        margin=_gaussian,
        twins={
            "tr S^2 once": partial(_gaussian, square=1.0),
            "mean left out": partial(_gaussian, mean=False),
        },
    ),
    *RANDOM_CLAIMS,
    *FALSE_CLAIMS,
)
