"""Why the sandbox's oracle is exact: moments of dependent firings in closed form (proofs/15_sandbox_moments.md)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from hypothesis import strategies as st
from scipy.special import ndtr

from darkmatter.claims.claim import AnyClaim, Claim, Margin, agrees, at_most, equals
from darkmatter.claims.sandbox_worlds import (
    SmallWorld,
    describe,
    enumerated_shares,
    pair_covariance,
    sampled_worlds,
    small_worlds,
    topical_worlds,
)
from darkmatter.claims.strategies import seeds, worlds
from darkmatter.sandbox import Surgical, World, population_covariance, population_shares
from darkmatter.sandbox.contexts import SERIES_ERROR
from darkmatter.sandbox.features import TOPIC_CAP
from darkmatter.theory.copula import both_fire, both_fire_series, firing_correlation, series_error
from darkmatter.theory.firings import topic_covariance

_PAGE = "15_sandbox_moments"
_EPS = float(np.finfo(np.float64).eps)


def _moments(world: World, *, wrong: str = "") -> Margin:
    found = world.factor_moments.apply(np.eye(world.factor_moments.n_channels))
    size = np.sqrt(np.outer(world.factor_moments.variance, world.factor_moments.variance))
    gap = (found - pair_covariance(world, wrong=wrong)) / size
    # the series leaves out at most SERIES_ERROR of two standard deviations; sums have a few hundred terms
    return equals(gap, 0.0, scale=1.0, rounding=SERIES_ERROR + 1e3 * _EPS)


def _shares(case: SmallWorld, *, independent: bool = False) -> Margin:
    wanted = enumerated_shares(case, independent=independent)
    found = population_shares(case.world, Surgical(learned=case.learned, shrinkage=case.shrinkage))
    names = ("absent", "dense", "linear", "cross", "interference", "fvu", "fvu_nonlinear")
    left = np.array([getattr(found, name) for name in names])
    right = np.array([wanted[name] for name in names])
    return equals(left, right, scale=1.0, rounding=1e3 * _EPS * wanted["condition"])


@dataclass(frozen=True, slots=True)
class _Gates:
    """Two gates with given firing probabilities and latent correlation, and a number of terms."""

    p: float
    q: float
    correlation: float
    terms: int

    def __str__(self) -> str:
        found = float(firing_correlation(self.p, self.q, self.correlation))
        return (
            f"P(fire) = {self.p:.4g} and {self.q:.4g}, latent correlation {self.correlation:.4g}: firings {found:.4g}"
        )

    @property
    def size(self) -> float:
        """Product of the two standard deviations."""
        return float(np.sqrt(self.p * (1.0 - self.p) * self.q * (1.0 - self.q)))


_gates = st.builds(
    _Gates,
    p=st.floats(1e-4, 0.9),
    q=st.floats(1e-4, 0.9),
    correlation=st.floats(-0.9, 0.9),
    terms=st.integers(1, 40),
)


def _truncation(gates: _Gates, *, wrong: str = "") -> Margin:
    rho, terms = gates.correlation, gates.terms
    limit = float(series_error(gates.p, gates.q, rho, terms + 1 if wrong == "late" else terms))
    series = float(both_fire_series(gates.p, gates.q, rho, terms))
    if wrong == "threshold":  # of one gate only: the probability that it is closed
        series = float(both_fire_series(1.0 - gates.p, gates.q, rho, terms))
    gap = abs(series - float(both_fire(gates.p, gates.q, rho)))
    # P(both) = p q + …, so each side carries a few roundings of the larger variance; T_K falls like K^(-1/2) only and
    # does not cancel, and a normalised Hermite polynomial loses a rounding a term
    lost = 1e2 * _EPS * max(gates.p, gates.q) / gates.size
    return at_most(gap, limit, scale=gates.size, rounding=lost + 1e3 * _EPS)


def _weaker(gates: _Gates, *, power: int = 1) -> Margin:
    found = float(firing_correlation(gates.p, gates.q, gates.correlation))
    return at_most(abs(found), abs(gates.correlation) ** power, scale=1.0, rounding=1e2 * _EPS / gates.size)


def _same(gates: _Gates, *, latent: bool = False) -> Margin:
    rho = 0.0 if latent else gates.correlation
    return equals(firing_correlation(gates.p, gates.q, rho), rho, scale=1.0, rounding=1e2 * _EPS / gates.size)


def _topics(world: World, *, wrong: str = "") -> Margin:
    p = world.firing_rates
    # the topic's tokens can carry at most TOPIC_CAP of firings
    concentration = np.minimum(world.topic_strength, (TOPIC_CAP / p - 1.0) / (world.topics - 1))
    exact = topic_covariance(p, concentration, world.contexts.topic, world.topics)
    if wrong == "one topic":
        exact = np.maximum(exact, 0.0)
    found = world.factor_moments.apply(np.eye(len(p)))
    off = ~np.eye(len(p), dtype=bool)
    scale = world.amplitude_scales
    return equals(found[off] / np.outer(scale, scale)[off], exact[off], scale=float(p.max()), rounding=1e2 * _EPS)


def _uncorrelated(world: World, *, no_topics: bool = False) -> Margin:
    if no_topics:
        world = World(**{**{name: getattr(world, name) for name in world.__dataclass_fields__}, "topic_strength": 0.0})
    found = world.factor_moments.apply(np.eye(world.n_features))
    return equals(found - np.diag(np.diag(found)), 0.0, scale=float(np.diag(found).max()), rounding=1e2 * _EPS)


def _coins(case: tuple[World, int], *, wrong: str = "") -> Margin:
    world, seed = case
    rng, law, n = np.random.default_rng(seed), world.contexts, 4096
    topics, z = rng.integers(0, world.topics, n), rng.standard_normal((n, law.n_factors))
    token, feature = world.sampler.draw(rng, topics, z)
    fires = np.zeros((n, world.n_features))
    fires[token, feature] = 1.0
    p = np.where(topics[:, None] == law.topic, law.own, law.other)
    if law.n_factors and wrong != "context":
        (a, b), (c, d) = law.curve(own=True), law.curve(own=False)
        own = topics[:, None] == law.topic
        p = ndtr(np.where(own, a, c) + np.where(own, b, d) * z[:, law.factor])
    if wrong == "hazard":  # points at rate p instead of −log(1 − p)
        p = -np.expm1(-p)
    gap, spread = fires - p, p * (1.0 - p)
    half = world.n_features // 2
    pair = gap[:, :half].sum(axis=1) * gap[:, half:].sum(axis=1)
    pair_spread = spread[:, :half].sum(axis=1) * spread[:, half:].sum(axis=1)
    total = np.append(gap.sum(axis=0), pair.sum())
    variance = np.append(spread.sum(axis=0), pair_spread.sum())
    seen = variance >= 50.0
    return agrees(total[seen], 0.0, np.sqrt(variance[seen]), limit=7.0)


def _draws(case: tuple[World, int], *, independent: bool = False) -> Margin:
    world, seed = case
    covariance = population_covariance(world)
    if independent:
        p, scale = world.firing_rates, world.amplitude_scales
        rows = np.sqrt(p * (world.amplitude_law.moments[1] - p))[:, None] * scale[:, None] * world.dictionary_matrix
        covariance = rows.T @ rows + world.dense_map.T.astype(np.float64) @ world.dense_map
    directions = np.random.default_rng(seed).standard_normal((world.d_model, 2))
    x = world.chunk(0, stream=str(seed)).x - world.mean
    along = (x @ directions).reshape(64, -1, 2)
    means = along.mean(axis=1)
    squares = np.stack([(along[..., i] * along[..., j]).mean(axis=1) for i, j in ((0, 0), (1, 1), (0, 1))], axis=1)
    exact = directions.T @ covariance @ directions
    sample = np.hstack([means, squares])
    wanted = np.array([0.0, 0.0, exact[0, 0], exact[1, 1], exact[0, 1]])
    error = sample.std(axis=0, ddof=1) / 8.0
    return agrees(sample.mean(axis=0), wanted, error, limit=7.0)


_TOPICAL = World(
    n_features=4, d_model=2, dense_dim=0, dense_share=0.0, l0=1.0, zipf=0.0, topics=2, topic_strength=1.0, seed=0
)

CLAIMS: tuple[AnyClaim, ...] = (
    Claim(
        theorem="worlds",
        name="moments-of-dependent-firings",
        page=_PAGE,
        statement="Cov of the codes = sum over pairs by topic, bivariate normal and path to the common ancestor",
        assumptions="none: any world of the sandbox; the series of the copula is cut at 1e-9 of two deviations",
        cases=worlds(most_features=24),
        margin=_moments,
        show=describe,
        twins={
            "topics averaged before pairs are formed": partial(_moments, wrong="marginals"),
            "no copula": partial(_moments, wrong="gates"),
            "exclusive siblings taken as independent": partial(_moments, wrong="siblings"),
        },
    ),
    Claim(
        theorem="worlds",
        name="shares-by-enumeration",
        page=_PAGE,
        statement="population_shares of a surgical SAE = shares of the error over all outcomes, regressed on x",
        assumptions="constant amplitudes and no copula, so that all outcomes can be listed",
        cases=small_worlds(),
        margin=_shares,
        twins={"features taken as independent": partial(_shares, independent=True)},
    ),
    Claim(
        theorem="worlds",
        name="tetrachoric-series-error",
        page=_PAGE,
        statement="P(both) minus K terms of the series is at most |rho|^(K+1) sqrt(T_K(p) T_K(q))",
        assumptions="Gaussian copula with |rho| <= 0.9; T_K(p) = p (1 - p) less the squares of K coefficients",
        cases=_gates,
        margin=_truncation,
        twins={
            "the bound of one term more": partial(_truncation, wrong="late"),
            "threshold of the wrong sign": partial(_truncation, wrong="threshold"),
        },
    ),
    Claim(
        theorem="worlds",
        name="firings-correlate-less-than-latents",
        page=_PAGE,
        statement="the correlation of two firings is at most |rho| in size",
        assumptions="Gaussian copula with latent correlation rho",
        cases=_gates,
        margin=_weaker,
        twins={"at most rho squared": partial(_weaker, power=2)},
    ),
    Claim(
        theorem="worlds",
        name="latent-correlation-is-that-of-firings",
        page=_PAGE,
        statement="the latent correlation rho is the correlation of the firings",
        assumptions="Gaussian copula with latent correlation rho",
        cases=_gates,
        margin=_same,
        false=True,
        known=_Gates(0.5, 0.5, 0.5, 1),
        twins={"rho = 0 added to the assumptions": partial(_same, latent=True)},
    ),
    Claim(
        theorem="worlds",
        name="topics-covariance",
        page=_PAGE,
        statement="Cov(fire u, fire v) = p_u p_v c_u c_v (T 1[same topic] - 1)",
        assumptions="independent given the topic; c the share of a feature's firing that its topic has to itself",
        cases=topical_worlds(),
        margin=_topics,
        show=describe,
        twins={"only features of one topic are correlated": partial(_topics, wrong="one topic")},
    ),
    Claim(
        theorem="worlds",
        name="topics-leave-features-uncorrelated",
        page=_PAGE,
        statement="features that are drawn independently within every document are uncorrelated",
        assumptions="topics alone tie features together",
        cases=topical_worlds(),
        margin=_uncorrelated,
        show=describe,
        false=True,
        known=_TOPICAL,
        twins={"topic strength 0 added to the assumptions": partial(_uncorrelated, no_topics=True)},
    ),
    Claim(
        theorem="worlds",
        name="thinned-points-are-coins",
        page=_PAGE,
        statement="drawn firings are independent coins with the stated rates, given topic and latent factors",
        assumptions="no trees or groups; 4,096 tokens; rates and products of two disjoint sums",
        cases=st.tuples(sampled_worlds(loose=True), seeds()),
        margin=_coins,
        statistical="1e-4 per 1,000 examples: 25 sums of variance 50 or more beyond 7 standard errors, Poisson tail",
        twins={
            "points at rate p instead of -log(1 - p)": partial(_coins, wrong="hazard"),
            "rates without the context": partial(_coins, wrong="context"),
        },
    ),
    Claim(
        theorem="worlds",
        name="draws-have-the-covariance",
        page=_PAGE,
        statement="drawn activations have the mean and covariance of the oracle, along random directions",
        assumptions="moderate tails; 4,096 tokens in 64 blocks of whole documents",
        cases=st.tuples(sampled_worlds(), seeds()),
        margin=_draws,
        statistical="1e-4 per 1,000 examples: 5 means of 64 blocks beyond 7 standard errors, Student t, some skewness",
        twins={"features taken as independent": partial(_draws, independent=True)},
    ),
)
