"""T3: with introduced error defined by the true factors, nonlinear error bounds it (proofs/06_introduced.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.claim import AnyClaim, Claim, Margin, at_most, equals, worst
from darkmatter.claims.strategies import Floats, seeds, small_matrices, surgical_worlds
from darkmatter.sandbox import Surgical, World, population_shares
from darkmatter.sandbox.factor_space import FactorSpace
from darkmatter.theory.interference import interference
from darkmatter.theory.population import covariance, cross, predicted, residual, variance

_PAGE = "06_introduced"
_ROUNDING = 1e-11  # projections of at most 10 outcomes with entries below 100: some hundred roundings of 1e-14


@dataclass(frozen=True, slots=True, eq=False)
class Factored:
    """A finite law of factors, x = f A, and any reconstruction at all, one per outcome.

    Attributes:
        factors: f, (n, m).
        true: A, (m, d).
        recon: Sae, (n, d).
    """

    factors: Floats
    true: Floats
    recon: Floats

    @property
    def x(self) -> Floats:
        """The activations."""
        return self.factors @ self.true

    @property
    def introduced(self) -> Floats:
        """N of T3."""
        return residual(self.recon, self.factors)

    @property
    def nonlinear(self) -> Floats:
        """The residual r, as it is measured."""
        return residual(self.x - self.recon, self.x)

    @property
    def hidden(self) -> Floats:
        """The interference q = (I − P) f B."""
        return residual(predicted(self.recon, self.factors), self.x)

    @property
    def scale(self) -> float:
        """What rounding is proportional to."""
        return variance(self.x) + variance(self.recon) + 1.0

    def __str__(self) -> str:
        def rows(a: Floats) -> str:
            return "; ".join(" ".join(f"{v:g}" for v in row) for row in a)

        return f"factors [{rows(self.factors)}], directions [{rows(self.true)}], Sae [{rows(self.recon)}]"


@st.composite
def factored(draw: st.DrawFn, *, superposed: bool = True, readable: bool = False) -> Factored:
    """Populations of factors; without superposition m ≤ d and the directions are independent."""
    d = draw(st.integers(1, 3))
    m = draw(st.integers(1, 4 if superposed else d))
    n = draw(st.integers(2, 10))
    # a block that is cut does not change its meaning when a size shrinks, so that sizes can shrink by themselves
    width, rows = (7, 14) if readable else (m + d, n + max(m, d))
    block = draw(small_matrices(rows, width, readable=readable))
    factors, recon, true = block[:n, :m], block[:n, -d:], block[-max(m, d) :, -d:]
    true = true[:m] if superposed else true
    if not superposed:  # a triangle with ones on its diagonal: independent rows by construction
        true = (np.triu(true, 1) + np.eye(d))[:m]
    return Factored(factors, true, recon)


def _split(case: Factored, *, learned_only: bool = False, part: float = 1.0) -> Margin:
    introduced = case.introduced
    if learned_only:  # "whatever is not linear in the learned features"
        introduced = residual(case.recon, case.factors[:, :1])
    total = variance(introduced) + part * variance(case.hidden)
    return equals(variance(case.nonlinear), total, scale=case.scale, rounding=_ROUNDING)


def _uncorrelated(case: Factored, *, of: str = "factors") -> Margin:
    n = case.introduced if of == "factors" else residual(case.recon, case.x)
    scale = case.scale * (1.0 + float(np.abs(case.factors).max()))
    return worst(
        equals(cross(n, case.factors), 0.0, scale=scale, rounding=_ROUNDING),
        equals(cross(n, case.x), 0.0, scale=scale, rounding=_ROUNDING),
        equals(covariance(n, case.hidden), 0.0, scale=scale, rounding=_ROUNDING),
    )


def _bound(case: Factored, *, factor: float = 1.0) -> Margin:
    left, right = variance(case.introduced), factor * variance(case.nonlinear)
    return at_most(left, right, scale=case.scale, rounding=_ROUNDING)


def _equality(case: Factored) -> Margin:
    return equals(variance(case.introduced), variance(case.nonlinear), scale=case.scale, rounding=_ROUNDING)


def _readable(case: Factored) -> Factored:
    """The same introduced error on an affine part that x shows."""
    return replace(case, recon=case.introduced + case.x)


def _no_interference(case: Factored) -> Margin:
    # an x that does not vary would be a cheap counterexample; a filter would make the search slow
    return _equality(case) if variance(case.x) > 0.0 else Margin(1.0)


def _doubled(case: Factored) -> Factored:
    """The same directions for as many factors again, which fire one outcome later."""
    factors = np.hstack([case.factors, np.roll(case.factors, 1, axis=0)])
    return Factored(factors, np.vstack([case.true, case.true]), case.recon)


@dataclass(frozen=True, slots=True, eq=False)
class _Alternative:
    case: Factored
    coefficients: Floats
    extra: Floats


@st.composite
def _alternatives(draw: st.DrawFn) -> _Alternative:
    case = draw(factored())
    m, d = case.true.shape
    block = draw(small_matrices(m + len(case.factors), d))
    return _Alternative(case, block[:m], block[m:])


def _smallest(alternative: _Alternative, *, sign: float = 1.0) -> Margin:
    """Any other affine part leaves at least as much; one more factor leaves at most as much."""
    case, scale = alternative.case, alternative.case.scale + variance(alternative.extra) + 100.0
    other = case.recon - case.factors @ alternative.coefficients
    finer = residual(case.recon, np.hstack([case.factors, alternative.extra[:, :1]]))
    here = variance(case.introduced)
    return worst(
        at_most(sign * here, sign * variance(other), scale=scale, rounding=_ROUNDING),
        at_most(sign * variance(finer), sign * here, scale=scale, rounding=_ROUNDING),
    )


def _world(pair: tuple[World, Surgical], *, part: float = 1.0, noise: float = 1.0) -> Margin:
    world, surgical = pair
    shares, space = population_shares(world, surgical), FactorSpace.of(world)
    response = surgical.bind(world).response
    assert response is not None, "the strategy draws SAEs with a closed form"
    sigma = space.apply(np.eye(len(response)))
    hidden = interference(sigma, space.true, response) / world.variance
    return worst(
        equals(shares.fvu_nonlinear, noise * shares.introduced + part * hidden, scale=1.0 + hidden, rounding=1e-9),
        at_most(shares.introduced, shares.fvu_nonlinear, scale=1.0, rounding=1e-9),
    )


_TWO_COINS = Factored(
    factors=np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]),
    true=np.array([[1.0], [1.0]]),
    recon=np.array([[0.0], [0.0], [1.0], [1.0]]),
)


@dataclass(frozen=True, slots=True)
class _OneFeature:
    """One sparse feature of two dimensions, learned perfectly, in a dense part of k dimensions."""

    k: int
    angle: float
    seed: int

    def __str__(self) -> str:
        return (
            f"one feature at angle {self.angle:g} in two dimensions, learned perfectly; a dense part of {self.k} "
            f"dimensions with directions from seed {self.seed}"
        )

    def hidden(self, *, dense: bool) -> float:
        """Interference in closed form."""
        rng = np.random.default_rng(self.seed)
        directions = rng.standard_normal((self.k if dense else 0, 2))
        y = np.array([[np.cos(self.angle), np.sin(self.angle)]])
        true, response = np.vstack([y, directions]), np.vstack([y, 0.0 * directions])
        return interference(np.eye(len(true)), true, response)


def _few_features(case: _OneFeature, *, dense: bool = True) -> Margin:
    return at_most(case.hidden(dense=dense), 0.0, scale=1.0, rounding=_ROUNDING)


CLAIMS: tuple[AnyClaim, ...] = (
    Claim(
        theorem="T3",
        name="introduced-is-uncorrelated",
        page=_PAGE,
        statement="N, the part of Sae(x) that is not affine in the true factors, is uncorrelated with f, x and q",
        assumptions="x is affine in the factors",
        cases=factored(),
        margin=_uncorrelated,
        twins={"not affine in x instead": partial(_uncorrelated, of="x")},
    ),
    Claim(
        theorem="T3",
        name="nonlinear-is-introduced-plus-interference",
        page=_PAGE,
        statement="Var r = Var N + Var q, q = (I - P) f B",
        assumptions="x is affine in the factors; any Sae, not even a function of x",
        cases=factored(),
        margin=_split,
        twins={
            "N relative to the learned features only": partial(_split, learned_only=True),
            "interference left out": partial(_split, part=0.0),
            "a factor 2": partial(_split, part=2.0),
        },
    ),
    Claim(
        theorem="T3",
        name="introduced-is-at-most-nonlinear",
        page=_PAGE,
        statement="Var N <= Var r",
        assumptions="x is affine in the factors",
        cases=factored(),
        margin=_bound,
        twins={"half of Var r": partial(_bound, factor=0.5)},
    ),
    Claim(
        theorem="T3",
        name="no-superposition-no-interference",
        page=_PAGE,
        statement="Var N = Var r where the factors can be read off x",
        assumptions="m + k <= d and independent directions",
        cases=factored(superposed=False),
        margin=_equality,
        twins={"every direction used twice": lambda case: _equality(_doubled(case))},
    ),
    Claim(
        theorem="T3",
        name="introduced-is-the-least",
        page=_PAGE,
        statement="no other affine part leaves a smaller N; a finer set of factors leaves no larger one",
        assumptions="x is affine in the factors",
        cases=_alternatives(),
        margin=_smallest,
        twins={"reversed": partial(_smallest, sign=-1.0)},
    ),
    Claim(
        theorem="T3",
        name="worlds-obey-t3",
        page=_PAGE,
        statement="the sandbox's population shares satisfy fvu_nonlinear = introduced + interference",
        assumptions="any world, any surgical SAE with a closed form",
        cases=surgical_worlds(),
        margin=_world,
        show=lambda pair: f"{pair[0]}, {pair[1]}",
        every=10,
        twins={
            "interference left out": partial(_world, part=0.0),
            "introduced error counted twice": partial(_world, noise=2.0),
        },
    ),
    Claim(
        theorem="T3",
        name="nonlinear-is-introduced",
        page=_PAGE,
        statement="all nonlinear error is introduced by the SAE: Var r = Var N",
        assumptions="x is affine in the factors",
        cases=factored(readable=True),
        margin=_no_interference,
        false=True,
        known=_TWO_COINS,
        twins={
            "the SAE's affine part is affine in x": lambda c: _no_interference(replace(c, recon=c.introduced + c.x))
        },
    ),
    Claim(
        theorem="T3",
        name="few-features-do-not-interfere",
        page=_PAGE,
        statement="fewer sparse features than dimensions (m <= d) leave no interference",
        assumptions="a dense part may be there",
        cases=st.builds(_OneFeature, k=st.integers(0, 3), angle=st.floats(0.0, 3.0), seed=seeds()),
        margin=_few_features,
        false=True,
        known=_OneFeature(k=2, angle=0.0, seed=0),
        twins={"no dense part": partial(_few_features, dense=False)},
    ),
)
