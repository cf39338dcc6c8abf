"""T5a and T5b: brackets from published numbers and from traces (proofs/08_one_sae.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.claim import AnyClaim, Claim, Margin, at_most, equals, worst
from darkmatter.claims.one_sae_cases import ROUNDING, Shrunk, apart, orthogonal, parallel_sum, shrunk
from darkmatter.theory.one_sae import published_bracket, published_world, shrinkage_line

_PAGE = "08_one_sae"
_A = "S1 uncorrelated with S2 + D, N with both"


def _numbers(case: Shrunk) -> tuple[float, float]:
    """FVU and R² of a case."""
    r2 = case.var_linear / case.var_error if case.var_error > 0.0 else 0.0
    return case.var_error / case.var_x, min(r2, 1.0)


def _published(case: Shrunk, *, low: str = "f - sqrt(f R2)") -> Margin:
    f, r2 = _numbers(case)
    bracket, truth = published_bracket(f, r2), case.var_n / case.var_x
    left = {"f - sqrt(f R2)": bracket.low, "f - f R2": bracket.high, "f - R2": f - r2}[low]
    # sqrt(f R²) loses nothing: f R² is a sum of squares
    return worst(
        at_most(left, truth, scale=1.0 + f, rounding=ROUNDING),
        at_most(truth, bracket.high, scale=1.0 + f, rounding=ROUNDING),
    )


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Two published numbers, and where in their bracket the truth lies, from 0 (low) to 1 (high)."""

    fvu: float
    r2: float
    place: float


@st.composite
def _published_numbers(draw: st.DrawFn) -> _Numbers:
    fvu, share = draw(st.floats(0.01, 2.0)), draw(st.floats(0.0, 1.0))
    return _Numbers(fvu, share * min(1.0, 1.0 / fvu), draw(st.floats(0.0, 1.0)))


def _attained(case: _Numbers, *, interference: str = "parallel sum") -> Margin:
    bracket = published_bracket(case.fvu, case.r2)
    truth = min(bracket.low + case.place * (bracket.high - bracket.low), bracket.high)
    world = published_world(case.fvu, case.r2, truth)
    both = parallel_sum(world.learned, world.rest) if interference == "parallel sum" else world.rest[:1, :1]
    fvu = float(np.trace(world.rest)) + truth
    return worst(
        equals(np.trace(world.learned + world.rest), 1.0, scale=1.0, rounding=ROUNDING),
        equals(fvu, case.fvu, scale=1.0 + fvu, rounding=ROUNDING),
        equals(np.trace(both) + truth, case.fvu * (1.0 - case.r2), scale=1.0 + fvu, rounding=ROUNDING),
        at_most(0.0, float(min(world.learned.min(), world.rest.min())), scale=1.0, rounding=ROUNDING),
    )


def _mostly_introduced(case: Shrunk, *, disjoint: bool = False) -> Margin:
    if disjoint:
        case = apart(case)
    r2 = _numbers(case)[1]
    if r2 > 0.5 + ROUNDING:
        return Margin(r2 - 0.5)
    return at_most(case.var_error / 2.0, case.var_n, scale=case.var_x + case.var_n, rounding=ROUNDING)


def _line(case: Shrunk, *, weights: str = "kept", squared: bool = False) -> Margin:
    variance = (case.directions**2).sum(axis=1)
    weight = variance * case.retained if weights == "kept" else variance
    total = float(weight.sum())
    s = float((weight * (1.0 - case.retained)).sum()) / total if total > 0.0 else 0.0
    slope = case.covariance * (1.0 - s) if squared else case.covariance
    scale = case.var_recon + case.var_x
    return equals(shrinkage_line(case.var_recon, slope, s), case.var_n, scale=scale, rounding=ROUNDING)


def _lower(case: Shrunk, *, of: str = "any") -> Margin:
    if of == "shrunk":
        case = replace(case, retained=np.minimum(case.retained, 1.0))
    if of == "orthogonal":
        case = orthogonal(case)
    scale = case.var_recon + case.var_x
    return at_most(case.var_recon - case.covariance, case.var_n, scale=scale, rounding=ROUNDING)


def _bracket(case: Shrunk, *, mean_shrinkage: bool = False, half: bool = False) -> Margin:
    low = case.var_recon - case.covariance
    if mean_shrinkage:
        low = shrinkage_line(case.var_recon, case.covariance, 1.0 - float(case.retained.mean()))
    high = case.var_nonlinear / 2.0 if half else case.var_nonlinear
    scale = case.var_recon + case.var_x
    return worst(
        at_most(max(0.0, low), case.var_n, scale=scale, rounding=ROUNDING),
        at_most(case.var_n, high, scale=scale, rounding=ROUNDING),
    )


TRACES: tuple[AnyClaim, ...] = (
    Claim(
        theorem="T5a",
        name="published-bracket",
        page=_PAGE,
        statement="max(0, f - sqrt(f R2)) <= Var N / Var x <= f (1 - R2), with f = FVU",
        assumptions=f"{_A}; features uncorrelated and shrunk, each by its own s_i in [0, 1]",
        cases=shrunk(),
        margin=_published,
        twins={
            "the root forgotten": partial(_published, low="f - f R2"),
            "R2 in place of sqrt(f R2)": partial(_published, low="f - R2"),
        },
    ),
    Claim(
        theorem="T5a",
        name="published-bracket-is-sharp",
        page=_PAGE,
        statement="for any f and R2 with f R2 <= 1 every value of the bracket belongs to a world with these numbers",
        assumptions="none; the world has Sae = S1 + N, without shrinkage",
        cases=_published_numbers(),
        margin=_attained,
        twins={"interference = all of U in shared directions": partial(_attained, interference="rest")},
    ),
    Claim(
        theorem="T5a",
        name="a-mostly-unpredictable-error-is-mostly-introduced",
        page=_PAGE,
        statement="R2 <= 1/2 means that at least half of the error is introduced by the SAE",
        assumptions=f"{_A}; no shrinkage",
        cases=shrunk(least=1.0, readable=True),
        margin=_mostly_introduced,
        false=True,
        known=Shrunk(np.array([[1.0]]), np.array([1.0]), np.array([[1.0]]), np.zeros((0, 1)), np.eye(1)),
        twins={"S1 and the rest of x in different dimensions": partial(_mostly_introduced, disjoint=True)},
    ),
    Claim(
        theorem="T5b",
        name="shrinkage-line",
        page=_PAGE,
        statement="Var N = Var Sae - (1 - s) Cov(x, Sae), s the mean of s_i weighted by what is kept, (1 - s_i) v_i",
        assumptions=f"{_A}; features uncorrelated",
        cases=shrunk(),
        margin=_line,
        twins={
            "(1 - s) squared": partial(_line, squared=True),
            "the mean weighted by the variance v_i": partial(_line, weights="variance"),
        },
    ),
    Claim(
        theorem="T5b",
        name="trace-bracket",
        page=_PAGE,
        statement="max(0, Var Sae - Cov(x, Sae)) <= Var N <= Var r",
        assumptions=f"{_A}; features uncorrelated and shrunk, each by its own s_i in [0, 1]",
        cases=shrunk(),
        margin=_bracket,
        twins={
            "the mean shrinkage put for each feature's own": partial(_bracket, mean_shrinkage=True),
            "half of Var r": partial(_bracket, half=True),
        },
    ),
    Claim(
        theorem="T5b",
        name="any-gain-leaves-the-lower-end",
        page=_PAGE,
        statement="Var Sae - Cov(x, Sae) <= Var N, whatever the gain 1 - s_i of each learned feature",
        assumptions=f"{_A}; features uncorrelated; gains from 0 to 3/2",
        cases=shrunk(most=1.5, readable=True),
        margin=_lower,
        false=True,
        known=Shrunk(np.array([[1.0]]), np.array([1.5]), np.zeros((0, 1)), np.zeros((0, 1)), np.eye(1)),
        twins={"gains of at most 1": partial(_lower, of="shrunk")},
    ),
    Claim(
        theorem="T5b",
        name="correlated-features-leave-the-lower-end",
        page=_PAGE,
        statement="Var Sae - Cov(x, Sae) <= Var N, also where learned features are correlated with each other",
        assumptions=f"{_A}; features shrunk, each by its own s_i in [0, 1]",
        cases=shrunk(correlated=True, readable=True),
        margin=_lower,
        false=True,
        known=Shrunk(
            np.array([[1.0], [1.0]]),
            np.array([0.0, 1.0]),
            np.zeros((0, 1)),
            np.zeros((0, 1)),
            np.array([[1.0, -1.0], [0.0, 1.0]]),
        ),
        twins={"orthogonal directions": partial(_lower, of="orthogonal")},
    ),
)
