"""T5c and T5d: brackets from second moments as matrices (proofs/08_one_sae.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.claim import AnyClaim, Claim, Margin, at_most, equals, worst
from darkmatter.claims.one_sae_cases import (
    ROUNDING,
    Interval,
    Shrunk,
    condition_rounding,
    intervals,
    shrunk,
    world_rounding,
)
from darkmatter.claims.strategies import Floats
from darkmatter.theory.one_sae_moments import (
    alternative,
    feature_wise_bracket,
    relative_eigenvalues,
    uniform_bracket,
)

_PAGE = "08_one_sae"
_A = "S1 uncorrelated with S2 + D, N with both"
_OUTSIDE = 0.01


def _least(matrix: Floats) -> float:
    return float(np.linalg.eigvalsh(matrix)[0])


def _positive(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)


def _matrix(case: Shrunk, *, low: str = "positive") -> Margin:
    moments, noise = case.moments, case.introduced.T @ case.introduced
    bracket, difference = feature_wise_bracket(moments), moments.recon - moments.kept
    scale, rounding = case.var_recon + case.var_x, case.rounding
    ends = {
        "positive": bracket.low,
        "absolute": float(np.abs(np.linalg.eigvalsh(difference)).sum()),
        "swapped": float(np.trace(_positive(-difference))),
    }
    return worst(
        at_most(0.0, _least(noise - difference), scale=scale, rounding=ROUNDING),
        at_most(0.0, _least(moments.nonlinear - noise), scale=scale, rounding=rounding),
        at_most(ends[low], case.var_n, scale=scale, rounding=ROUNDING),
        at_most(case.var_n, bracket.high, scale=scale, rounding=rounding),
        at_most(case.var_recon - case.covariance, bracket.low, scale=scale, rounding=ROUNDING),
    )


def _attained(case: Interval, *, power: float = 0.0) -> Margin:
    world = alternative(case.moments, case.introduced)
    world = replace(world, features=world.features * world.retained[:, None] ** power)
    given, found = case.moments, world.moments
    scale = float(np.trace(given.x) + np.trace(given.recon))
    rounding = world_rounding(given, world)
    pairs = ((found.x, given.x), (found.cross, given.cross), (found.recon, given.recon))
    return worst(
        *(equals(a, b, scale=scale, rounding=rounding) for a, b in pairs),
        at_most(0.0, _least(world.rest), scale=scale, rounding=rounding),
        at_most(0.0, float(world.retained.min()), scale=1.0, rounding=ROUNDING),
        at_most(float(world.retained.max()), 1.0, scale=1.0, rounding=ROUNDING),
    )


def _aligned(case: Shrunk) -> Shrunk:
    """One coordinate per row, so that all matrices are diagonal."""
    d = case.directions.shape[1]

    def one(rows: Floats) -> Floats:
        return np.asarray(rows * (np.arange(len(rows))[:, None] % d == np.arange(d)))

    return replace(case, directions=one(case.directions), rest=one(case.rest), introduced=one(case.introduced))


def _positive_part(case: Shrunk, *, diagonal: bool = False) -> Margin:
    if diagonal:
        case = _aligned(case)
    moments = case.moments
    left = _least(moments.nonlinear - _positive(moments.recon - moments.kept))
    return at_most(0.0, left, scale=case.var_recon + case.var_x, rounding=case.rounding)


@dataclass(frozen=True, slots=True, eq=False)
class _Spread:
    """A case whose smallest retained share is at least `spread` times the largest."""

    case: Shrunk
    spread: float


@st.composite
def _spreads(draw: st.DrawFn) -> _Spread:
    case = draw(shrunk())
    spread = draw(st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.1]))
    most = draw(st.integers(0, 20)) / 20
    # the smallest of the drawn shares is kept at `spread` of the largest, whatever they are
    return _Spread(replace(case, retained=most * (spread + (1.0 - spread) * case.retained)), spread)


def _eigenvalue_end(drawn: _Spread, *, share: str = "largest eigenvalue") -> Margin:
    case, spread = drawn.case, drawn.spread
    bracket = uniform_bracket(case.moments, spread=spread)
    least = {
        "largest eigenvalue": bracket.least,
        "its square": bracket.least**2,
        "its complement": 1.0 - bracket.least,
    }[share]
    high = case.var_recon - spread * least * case.covariance
    scale, rounding = case.var_recon + case.var_x, case.rounding + condition_rounding(case.moments.recon)
    margins = [
        at_most(case.var_n, high, scale=scale, rounding=rounding),
        at_most(bracket.low, case.var_n, scale=scale, rounding=rounding),
    ]
    if spread == 1.0:
        margins.append(at_most(high, case.var_nonlinear, scale=scale, rounding=rounding))
    return worst(*margins)


def _uniform_ends(case: Shrunk, *, by_traces: bool = False) -> Margin:
    moments, bracket = case.moments, uniform_bracket(case.moments)
    least = float(np.trace(moments.kept) / np.trace(moments.x)) if by_traces else bracket.least
    rounding = case.rounding + condition_rounding(moments.recon)

    def room(share: float) -> tuple[float, float]:
        """Smallest eigenvalues of Cov U and Cov N at a retained share, relative to Cov x and Cov Sae."""
        rest = relative_eigenvalues(moments.x - moments.kept / share, moments.x)
        noise = relative_eigenvalues(moments.recon - share * moments.kept, moments.recon)
        return float(rest.min()), float(noise.min())

    margins = [
        at_most(0.0, min(*room(least), *room(bracket.most)), scale=1.0, rounding=rounding),
        at_most(room(least * (1.0 - _OUTSIDE))[0], -_OUTSIDE / 2.0, scale=1.0),
    ]
    if bracket.most < 1.0:
        margins.append(at_most(room(bracket.most * (1.0 + _OUTSIDE))[1], -_OUTSIDE / 2.0, scale=1.0))
    return worst(*margins)


def _under_any(case: Shrunk, *, uniform: bool = False) -> Margin:
    if uniform:
        case = replace(case, retained=np.full_like(case.retained, case.retained[0]))
    high = uniform_bracket(case.moments).high
    return at_most(case.var_n, high, scale=case.var_recon + case.var_x, rounding=case.rounding)


MATRICES: tuple[AnyClaim, ...] = (
    Claim(
        theorem="T5c",
        name="matrix-bracket",
        page=_PAGE,
        statement="Cov Sae - Cov(x, Sae) <= Cov N <= Cov r as matrices, so Var N >= tr (Cov Sae - Cov(x, Sae))+",
        assumptions=f"{_A}; features uncorrelated and shrunk, each by its own s_i in [0, 1]",
        cases=shrunk(),
        margin=_matrix,
        twins={
            "absolute values of the eigenvalues": partial(_matrix, low="absolute"),
            "swapped sign": partial(_matrix, low="swapped"),
        },
    ),
    Claim(
        theorem="T5c",
        name="matrix-bracket-is-sharp",
        page=_PAGE,
        statement="every X between max(0, Cov Sae - Cov(x, Sae)) and Cov r is Cov N of a world with these moments",
        assumptions="Cov(x, Sae) symmetric, between 0 and Cov x; 0 and Cov Sae - Cov(x, Sae) both below X",
        cases=intervals(),
        margin=_attained,
        twins={"features of variance |g|^2, not |g|^2 / (1 - s)": partial(_attained, power=0.5)},
    ),
    Claim(
        theorem="T5c",
        name="the-positive-part-is-always-attained",
        page=_PAGE,
        statement="(Cov Sae - Cov(x, Sae))+ is below Cov r, so that the lower end of Var N is attained",
        assumptions=f"{_A}; features uncorrelated and shrunk, each by its own s_i in [0, 1]",
        cases=shrunk(readable=True),
        margin=_positive_part,
        false=True,
        known=Shrunk(np.array([[1.0, 0.0]]), np.array([0.5]), np.zeros((0, 2)), np.array([[1.0, 1.0]]), np.eye(1)),
        twins={"all matrices diagonal": partial(_positive_part, diagonal=True)},
    ),
    Claim(
        theorem="T5d",
        name="largest-eigenvalue-end",
        page=_PAGE,
        statement="Var N <= Var Sae - rho lambda Cov(x, Sae), which for rho = 1 is at most Var r",
        assumptions=f"{_A}; smallest over largest retained share 1 - s_i is at least rho",
        cases=_spreads(),
        margin=_eigenvalue_end,
        show=lambda drawn: f"rho = {drawn.spread:g}, {drawn.case}",
        twins={
            "lambda squared": partial(_eigenvalue_end, share="its square"),
            "1 - lambda in place of lambda": partial(_eigenvalue_end, share="its complement"),
        },
    ),
    Claim(
        theorem="T5d",
        name="uniform-bracket-is-sharp",
        page=_PAGE,
        statement="1 - s can be anything from lambda to min(1, mu), and nothing else",
        assumptions=f"{_A}; uniform shrinkage s in [0, 1)",
        cases=shrunk(least=0.05, uniform=True),
        margin=_uniform_ends,
        twins={"the ratio of the traces in place of lambda": partial(_uniform_ends, by_traces=True)},
    ),
    Claim(
        theorem="T5d",
        name="largest-eigenvalue-end-under-any-shrinkage",
        page=_PAGE,
        statement="Var N <= Var Sae - lambda Cov(x, Sae)",
        assumptions=f"{_A}; features uncorrelated and shrunk, each by its own s_i in [0, 1]",
        cases=shrunk(readable=True),
        margin=_under_any,
        false=True,
        known=Shrunk(np.eye(2), np.array([1.0, 0.5]), np.zeros((0, 2)), np.zeros((0, 2)), np.eye(2)),
        twins={"uniform shrinkage": partial(_under_any, uniform=True)},
    ),
)
