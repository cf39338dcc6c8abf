"""T4: bounds of introduced error that hold without T2's assumptions (proofs/07_always_valid.md)."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.affine_models import affine_models, measured, projection_rounding, size, terms
from darkmatter.claims.always_valid_cases import Attained, Paper, attained, holds_truth, published, reached
from darkmatter.claims.claim import AnyClaim, Claim, Margin, at_most, equals, worst
from darkmatter.claims.strategies import Floats, Population, covariances, seeds
from darkmatter.theory.always_valid import bound_from_angle, bounds_from_length, most_interference, parallel_sum
from darkmatter.theory.population import covariance, cross, residual, variance
from darkmatter.theory.upper_bound import UpperBoundTerms

_PAGE = "07_always_valid"
_EPS = float(np.finfo(np.float64).eps)


def _cosine(t: UpperBoundTerms) -> float:
    length = math.sqrt(t.interference) * math.sqrt(max(0.0, t.introduced - t.predictable))
    return min(1.0, max(-1.0, t.inner / length)) if length > 0.0 else 0.0


def _interference(model: Population, *, known_covariance: bool = True) -> Margin:
    a, b, c = variance(model.learned), variance(model.rest), covariance(model.learned, model.rest)
    q, other = residual(model.learned, model.x), residual(model.rest, model.x)
    most = most_interference(a, b, covariance=c) if known_covariance else a * b / max(a + b, 1e-300)
    scale, rounding = size(model), projection_rounding(model.x)
    if variance(model.x) > 0.0:  # what the division by Var x amplifies
        rounding += 100.0 * _EPS * (a + b) / variance(model.x)
    return worst(
        equals(q, -other, scale=math.sqrt(scale), rounding=rounding),
        at_most(variance(q), most, scale=scale, rounding=rounding),
        at_most(most, min(a, b), scale=scale, rounding=rounding),
    )


def _root(a: Floats) -> Floats:
    values, axes = np.linalg.eigh(a)
    return np.asarray(np.sqrt(np.where(values > 1e-12 * values[-1], values, 0.0))[:, None] * axes.T)


def _parallel(pair: tuple[Floats, Floats], *, formula: str = "") -> Margin:
    """Against a population with exactly these covariances: 2d outcomes of S1 or U alone, and their opposites."""
    a, b = pair
    d = len(a)
    rows = math.sqrt(2 * d) * np.vstack([_root(a), np.zeros((d, d)), -_root(a), np.zeros((d, d))])
    rest = math.sqrt(2 * d) * np.vstack([np.zeros((d, d)), _root(b), np.zeros((d, d)), -_root(b)])
    x = rows + rest
    q = residual(rows, x)
    if formula == "pseudoinverses":
        inverse = np.linalg.pinv(a, rcond=1e-10, hermitian=True) + np.linalg.pinv(b, rcond=1e-10, hermitian=True)
        total = np.linalg.pinv(inverse, rcond=1e-10, hermitian=True)
    else:
        total = (2.0 if formula == "twice" else 1.0) * parallel_sum(a, b)
    scale, rounding = float(np.trace(a + b)), projection_rounding(x)
    bound = most_interference(float(np.trace(a)), float(np.trace(b)))
    return worst(
        equals(total, cross(q, q), scale=scale, rounding=rounding),
        at_most(float(np.trace(total)), bound, scale=scale, rounding=rounding),
    )


def _angle(model: Population, *, cosine: str = "", r2: bool = True) -> Margin:
    t = terms(model)
    c = _cosine(t) * (-1.0 if cosine == "swapped" else 1.0)
    ratio = min(1.0, t.predictable / t.introduced) if r2 and t.introduced > 0.0 else 0.0
    if cosine == "left out":
        c = 0.0
    # multiplied through, for the bound itself may be infinite
    room = 1.0 / bound_from_angle(1.0, cosine=c, r2_introduced=ratio)
    scale, rounding = size(model), projection_rounding(model.x)
    return at_most(t.introduced * room, measured(model), scale=scale, rounding=rounding)


def _without_angle(model: Population, *, turned: bool = False) -> Margin:
    if turned and terms(model).inner < 0.0:
        model = replace(model, introduced=-model.introduced)
    return _angle(model, cosine="left out")


def _length(model: Population, *, right_angled: bool = False) -> Margin:
    t, r = terms(model), measured(model)
    bracket = bounds_from_length(r, t.interference)
    low, high = (r - t.interference, r + t.interference) if right_angled else (bracket.low, bracket.high)
    unexplained = variance(residual(model.introduced, model.x))
    scale, rounding = size(model), projection_rounding(model.x)
    return worst(
        at_most(low, unexplained, scale=scale, rounding=rounding),
        at_most(unexplained, high, scale=scale, rounding=rounding),
    )


CLAIMS: tuple[AnyClaim, ...] = (
    Claim(
        theorem="T4",
        name="interference-is-bounded-by-both-parts",
        page=_PAGE,
        statement="(I - P) S1 = -(I - P) U, |q|^2 <= (Var S1 Var U - Cov(S1, U)^2) / Var x <= min(Var S1, Var U)",
        assumptions="x = S1 + U",
        cases=affine_models(),
        margin=_interference,
        twins={"Var S1 Var U / (Var S1 + Var U) for correlated parts": partial(_interference, known_covariance=False)},
    ),
    Claim(
        theorem="T4",
        name="interference-is-a-parallel-sum",
        page=_PAGE,
        statement="Cov q = A : B = A - A (A + B)^+ A, and tr(A : B) <= tr A tr B / (tr A + tr B)",
        assumptions="S1, U uncorrelated, with covariances A, B of any rank",
        cases=st.integers(1, 5).flatmap(lambda d: st.tuples(covariances(d=d), covariances(d=d))),
        margin=_parallel,
        twins={
            "(A^+ + B^+)^+ for singular covariances": partial(_parallel, formula="pseudoinverses"),
            "the harmonic mean, twice as large": partial(_parallel, formula="twice"),
        },
    ),
    Claim(
        theorem="T4",
        name="bound-from-the-angle",
        page=_PAGE,
        statement="Var N <= R / [(1 - R^2(N|x)) (1 - c^2)], c = min(0, cos(q, N_perp))",
        assumptions="L affine in x",
        cases=affine_models(),
        margin=_angle,
        twins={
            "R^2(N|x) left out": partial(_angle, r2=False),
            "swapped sign of the cosine": partial(_angle, cosine="swapped"),
        },
    ),
    Claim(
        theorem="T4",
        name="bounds-from-the-length",
        page=_PAGE,
        statement="(sqrt R - |q|)^2 <= Var N_perp <= (sqrt R + |q|)^2",
        assumptions="L affine in x",
        cases=affine_models(),
        margin=_length,
        twins={"R -+ |q|^2, as at a right angle": partial(_length, right_angled=True)},
    ),
    Claim(
        theorem="T4",
        name="bounds-are-attained",
        page=_PAGE,
        statement="for all R, |q|, c < 0 and R^2(N|x) < 1 there are models at each end of the two bounds",
        assumptions="|q| = -c |N_perp| for the angle; q and N_perp parallel for the length",
        cases=st.builds(
            Attained,
            nonlinear=st.floats(0.0, 10.0),
            length=st.floats(0.0, 3.0),
            cosine=st.floats(-0.99, 0.0),
            r2=st.floats(0.0, 0.99),
            d=st.integers(1, 3),
            seed=seeds(),
        ),
        margin=attained,
        twins={
            "q twice as long": partial(attained, stretch=2.0),
            "N_perp not parallel to q": partial(attained, turn=0.5),
        },
    ),
    Claim(
        theorem="T4",
        name="published-numbers-hold-the-truth",
        page=_PAGE,
        statement="always_valid(FVU, R^2) holds |q|^2 and the introduced error",
        assumptions="Cov(S1, U) >= 0; one of: L affine; L = 0 and Cov(N, x) = 0; Sae(x) = E[S1 | x]",
        cases=published("aligned", "unpredictable", "optimal"),
        margin=holds_truth,
        twins={
            "ends of T5a, which need Cov(N, S1) = 0": partial(holds_truth, ends="T5a"),
            "g in place of sqrt(g) - g": partial(holds_truth, ends="square root"),
            "parts that cancel each other": partial(holds_truth, ends="cancelling parts"),
        },
    ),
    Claim(
        theorem="T4",
        name="published-numbers-say-no-more",
        page=_PAGE,
        statement="for all FVU and R^2 there are models at each end of always_valid",
        assumptions="each of its assumptions; FVU R^2 < 1, R^2 > FVU where N = 0 or Sae(x) = E[S1 | x]",
        cases=st.builds(Paper, nonlinear=st.floats(0.0, 2.0), explained=st.floats(0.01, 0.99)),
        margin=reached,
        twins={"Var U = g in place of sqrt(g)": partial(reached, power=1.0)},
    ),
    Claim(
        theorem="T4",
        name="bound-without-the-angle",
        page=_PAGE,
        statement="Var N <= R / (1 - R^2(N|x)): what x predicts of N is all that R can miss",
        assumptions="S1 uncorrelated with S2 + D; L = 0",
        cases=affine_models(linear=False, uncorrelated=True, readable=True),
        margin=_without_angle,
        false=True,
        known=Population(
            np.array([[0.0], [0.0], [1.0], [1.0]]),
            np.array([[0.0], [1.0], [0.0], [1.0]]),
            np.zeros((4, 1)),
            np.array([[0.0], [0.5], [-0.5], [0.0]]),
        ),
        twins={"N turned so that <q, N> >= 0": partial(_without_angle, turned=True)},
    ),
)
