"""T2: whether the unexplained share of the error bounds what the SAE introduced (proofs/05_upper_bound_claim.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.affine_models import (
    affine_models,
    measured,
    optimal_models,
    projection_rounding,
    readable_part,
    residual_frame,
    size,
    terms,
)
from darkmatter.claims.claim import AnyClaim, Claim, Margin, at_most, equals, worst
from darkmatter.claims.strategies import Population, seeds
from darkmatter.theory.population import centred, covariance, cross, predicted, residual, variance

_PAGE = "05_upper_bound_claim"


def _with(model: Population, *, uncorrelated_with: str) -> Population:
    known = {
        "x": model.x,
        "S1": model.learned,
        "x and S1": np.hstack([model.x, model.learned]),
    }
    return replace(model, introduced=residual(model.introduced, known[uncorrelated_with]))


def _parts(model: Population, *, cross_term: float = 2.0, predictable: str = "PN") -> Margin:
    t, r = terms(model), measured(model)
    scale, rounding = size(model), projection_rounding(model.x)
    unexplained = t.introduced - t.predictable
    left_out = t.predictable if predictable == "PN" else t.introduced
    return worst(
        equals(r, t.interference + unexplained + cross_term * t.inner, scale=scale, rounding=rounding),
        equals(r - t.introduced, t.interference + 2.0 * t.inner - left_out, scale=scale, rounding=rounding),
    )


def _bound(model: Population, *, uncorrelated_with: str = "") -> Margin:
    if uncorrelated_with:
        model = _with(model, uncorrelated_with=uncorrelated_with)
    left, right = variance(model.introduced), measured(model)
    return at_most(left, right, scale=size(model), rounding=projection_rounding(model.x))


def _readable(model: Population, *, all_counts: bool = False, readable: bool = True) -> Margin:
    if readable:
        model = readable_part(model)
    hidden = _with(model, uncorrelated_with="x")
    left_out = 0.0 if all_counts else variance(predicted(model.introduced, model.x))
    scale, rounding = size(model), projection_rounding(model.x)
    return worst(
        equals(measured(model), variance(model.introduced) - left_out, scale=scale, rounding=rounding),
        equals(measured(hidden), variance(hidden.introduced), scale=scale, rounding=rounding),
    )


@dataclass(frozen=True, slots=True)
class _Angle:
    """N of unit variance and uncorrelated with x, at a given angle to q = (I − P) S1.

    Attributes:
        length: |q| / |N|.
        cosine: cos(q, N).
        d: Width.
        seed: Draws x and the two directions.
    """

    length: float
    cosine: float
    d: int
    seed: int

    def model(self) -> Population:
        """Eight outcomes."""
        x, q, across = residual_frame(self.d, self.seed)
        learned = x @ x[: self.d] + self.length * q
        introduced = self.cosine * q + math.sqrt((1.0 - self.cosine) * (1.0 + self.cosine)) * across
        return Population(learned, x - learned, np.zeros_like(x), introduced)


@st.composite
def _angles(draw: st.DrawFn) -> _Angle:
    length = draw(st.floats(0.0, 3.0))
    offset = draw(st.sampled_from([0.0, 1.0, -1.0])) * draw(st.floats(0.0, 1.0))
    cosine = min(1.0, max(-1.0, -length / 2.0 + offset))  # around the threshold, and often on it
    return _Angle(length, cosine, draw(st.integers(1, 3)), draw(seeds()))


def _angle(case: _Angle, *, part: float = 0.5) -> Margin:
    """R ≥ Var N on one side of the threshold, ≤ on the other, = on it."""
    model, gap = case.model(), case.cosine + part * case.length
    excess = measured(model) - variance(model.introduced)
    scale, rounding = size(model), projection_rounding(model.x)
    if gap == 0.0:
        return equals(excess, 0.0, scale=scale, rounding=rounding)
    return at_most(0.0, math.copysign(1.0, gap) * excess, scale=scale, rounding=rounding)


def _optimal(model: Population, *, sign: float = -1.0) -> Margin:
    t = terms(model)
    scale, rounding = size(model), projection_rounding(model.x)
    return worst(
        equals(measured(model), t.interference + sign * t.introduced, scale=scale, rounding=rounding),
        equals(cross(model.introduced, model.x), 0.0, scale=scale, rounding=rounding),
    )


@dataclass(frozen=True, slots=True)
class _Resplit:
    """A model, and by how much Var N is to exceed its least value."""

    model: Population
    more: float


def _splits(case: _Resplit, *, cross_term: float = 2.0) -> Margin:
    """Another L, affine in x, for the same S1 and the same Sae."""
    model, x = case.model, case.model.x
    rest = model.recon - model.learned  # L + N, whatever the split
    steps = math.sqrt(case.more / variance(x)) if variance(x) > 0.0 else 0.0
    linear = predicted(rest, x) + steps * centred(x)
    other = replace(model, linear=linear, introduced=rest - linear)
    q, r = residual(model.learned, x), residual(model.error, x)
    least = variance(q) + variance(r) + cross_term * covariance(q, r)
    scale, rounding = size(model) + size(other), projection_rounding(x)
    return worst(
        equals(measured(other), measured(model), scale=scale, rounding=rounding),
        equals(variance(other.introduced), least + steps**2 * variance(x), scale=scale, rounding=rounding),
        at_most(least, variance(model.introduced), scale=scale, rounding=rounding),
    )


def _missing(model: Population, *, linear: bool = True) -> Margin:
    if not linear:
        model = replace(_with(model, uncorrelated_with="x"), linear=np.zeros_like(model.x))
    left = variance(predicted(model.error, model.x))
    return at_most(left, variance(model.rest), scale=size(model), rounding=projection_rounding(model.x))


_COINS = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
_S, _U = _COINS[:, :1], _COINS[:, 1:]
_OPTIMAL_COINS = Population(_S, _U, np.zeros_like(_S), (_U - _S) / 2.0)  # Sae = E[S1 | x] = x / 2

CLAIMS: tuple[AnyClaim, ...] = (
    Claim(
        theorem="T2",
        name="unexplained-error-in-parts",
        page=_PAGE,
        statement="R = |q|^2 + |N_perp|^2 + 2<q, N_perp>, and R - Var N = |q|^2 + 2<q, N_perp> - |P N|^2",
        assumptions="Sae = S1 + L + N with L affine in x",
        cases=affine_models(),
        margin=_parts,
        twins={
            "dropped factor 2": partial(_parts, cross_term=1.0),
            "|N|^2 in place of |P N|^2": partial(_parts, predictable="N"),
        },
    ),
    Claim(
        theorem="T2",
        name="bound-for-uncorrelated-introduced-error",
        page=_PAGE,
        statement="Var N <= R",
        assumptions="L affine in x; N uncorrelated with x and with S1",
        cases=affine_models(introduced="x and S1"),
        margin=_bound,
        twins={
            # applied to the same N moved along x: what the missing half of the assumption lets in
            "uncorrelated with S1 only": lambda model: _bound(
                _with(replace(model, introduced=model.introduced + model.rest), uncorrelated_with="S1")
            ),
            "uncorrelated with x only": lambda model: _bound(
                _with(replace(model, introduced=model.introduced - model.learned), uncorrelated_with="x")
            ),
        },
    ),
    Claim(
        theorem="T2",
        name="bound-depends-on-the-angle",
        page=_PAGE,
        statement="Var N <= R exactly if cos(q, N) >= -|q| / (2|N|); equality at equality",
        assumptions="L affine in x; N uncorrelated with x",
        cases=_angles(),
        margin=_angle,
        twins={"dropped factor 2": partial(_angle, part=1.0)},
    ),
    Claim(
        theorem="T2",
        name="readable-learned-part-reverses-the-bound",
        page=_PAGE,
        statement="R = (1 - R^2(N|x)) Var N, so R = Var N where N is uncorrelated with x",
        assumptions="L and S1 affine in x",
        cases=affine_models(),
        margin=_readable,
        twins={
            "R = Var N for every N": partial(_readable, all_counts=True),
            "S1 not affine in x": partial(_readable, readable=False),
        },
    ),
    Claim(
        theorem="T2",
        name="optimal-sae-hides-what-it-introduces",
        page=_PAGE,
        statement="R = |q|^2 - Var N, and Cov(N, x) = 0",
        assumptions="Sae(x) = E[S1 | x], L = 0",
        cases=optimal_models(),
        margin=_optimal,
        twins={
            "swapped sign": partial(_optimal, sign=1.0),
            "N left out": partial(_optimal, sign=0.0),
        },
    ),
    Claim(
        theorem="T2",
        name="one-sae-has-many-splits",
        page=_PAGE,
        statement="over all L affine in x, Var N takes every value from |q + r|^2 up; R stays the same",
        assumptions="S1 and Sae given; x varies for values above the least",
        cases=st.builds(_Resplit, model=affine_models(), more=st.floats(0.0, 100.0)),
        margin=_splits,
        twins={"dropped cross term": partial(_splits, cross_term=0.0)},
    ),
    Claim(
        theorem="T2",
        name="unexplained-error-bounds-introduced-error",
        page=_PAGE,
        statement="the unexplained part of the error is an upper bound of the introduced error: Var N <= R",
        assumptions="S1 uncorrelated with S2 + D; L = 0",
        cases=affine_models(linear=False, uncorrelated=True, readable=True),
        margin=_bound,
        false=True,
        known=Population(_S, _U, np.zeros_like(_S), _U),
        twins={"N uncorrelated with x and S1 added": partial(_bound, uncorrelated_with="x and S1")},
    ),
    Claim(
        theorem="T2",
        name="bound-for-unpredictable-introduced-error",
        page=_PAGE,
        statement="Var N <= R, since nothing of the introduced error can be predicted from x",
        assumptions="S1 uncorrelated with S2 + D; L = 0; N uncorrelated with x",
        cases=affine_models(linear=False, introduced="x", uncorrelated=True, readable=True),
        margin=_bound,
        false=True,
        known=_OPTIMAL_COINS,
        twins={"N uncorrelated with S1 added": partial(_bound, uncorrelated_with="x and S1")},
    ),
    Claim(
        theorem="T2",
        name="predictable-error-is-missing-features",
        page=_PAGE,
        statement="the predictable part of the error is at most what the SAE has not learned: Var(P e) <= Var(S2 + D)",
        assumptions="L affine in x",
        cases=affine_models(readable=True),
        margin=_missing,
        false=True,
        known=Population(_S, 0.0 * _S, _S, 0.0 * _S),
        twins={"L = 0 and N uncorrelated with x added": partial(_missing, linear=False)},
    ),
)
