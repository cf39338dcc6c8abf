"""The sampler draws exactly the law it claims: firings by topic and factor, trees, groups, independence otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from darkmatter.sandbox import World
from darkmatter.sandbox.sampling import FiringSampler

WORLD = World(n_features=200, d_model=8, dense_dim=2, l0=14.0, topics=4, topic_strength=0.5, doc_tokens=32, seed=11)
CHUNKS = [WORLD.chunk(i) for i in range(12)]  # 49,152 tokens, 1,536 documents


def _smallest_p_value(probability: np.ndarray, *, own: bool) -> float:
    """Smallest exact two-sided binomial p-value over features, of the firings on own or on other topics."""
    law = WORLD.contexts
    trials, firings = np.zeros(200), np.zeros(200)
    for chunk in CHUNKS:
        fires = chunk.codes.astype(bool).toarray()
        here = (chunk.topics[:, None] == law.topic) == own
        trials += here.sum(axis=0)
        firings += (fires & here).sum(axis=0)
    low = stats.binom.cdf(firings, trials, probability)
    high = stats.binom.sf(firings - 1, trials, probability)
    return float(2 * np.minimum(low, high).min())


def test_firings_by_topic_follow_their_law() -> None:
    law = WORLD.contexts
    assert _smallest_p_value(law.own, own=True) > 1e-6 / 200  # exact tails, Bonferroni: false alarm 1e-6
    assert _smallest_p_value(law.other, own=False) > 1e-6 / 200
    assert _smallest_p_value(WORLD.firing_rates, own=True) < 1e-6 / 200  # and a world without topics would be caught


def test_topics_are_uniform_over_documents() -> None:
    counts = np.bincount(np.concatenate([c.topics[::32] for c in CHUNKS]), minlength=4)
    assert stats.chisquare(counts).pvalue > 1e-6


def test_given_the_topic_firings_are_independent_across_tokens_and_features() -> None:
    law = WORLD.contexts
    given_topic = np.where(law.topic == np.arange(4)[:, None], law.own, law.other)  # (T, m)
    mean, variance = given_topic.sum(axis=1), (given_topic * (1 - given_topic)).sum(axis=1)
    l0 = np.concatenate([np.diff(c.codes.indptr).reshape(-1, 32).sum(axis=1) for c in CHUNKS])
    topic = np.concatenate([c.topics[::32] for c in CHUNKS])
    # under independence a document's total has variance 32 Σ p(1 − p): the squared z has mean 1
    square = (l0 - 32 * mean[topic]) ** 2 / (32 * variance[topic])
    error = square.std() / np.sqrt(len(square))
    assert abs(square.mean() - 1) < 5 * error  # false alarm 6e-7
    ignoring = (l0 - l0.mean()) ** 2 / (32 * (WORLD.firing_rates * (1 - WORLD.firing_rates)).sum())
    assert ignoring.mean() - 1 > 5 * ignoring.std() / np.sqrt(len(ignoring))  # topics do tie a document together


def test_amplitudes_have_the_stated_moments() -> None:
    a = np.concatenate([c.codes.data for c in CHUNKS]).astype(np.float64)
    # kth power of Exp(1): mean k!, variance (2k)! − k!²; 4 moments beyond 5.5 standard errors: false alarm 2e-7
    # (the fourth power is skewed; with 690,000 amplitudes its mean is normal enough)
    sizes = [1.0, 2.0, 6.0, 24.0, 120.0, 720.0, 5040.0, 40320.0]
    for k, moment in enumerate(WORLD.amplitude_law.moments, start=1):
        assert moment == sizes[k - 1]
        assert abs((a**k).mean() - moment) < 5.5 * np.sqrt((sizes[2 * k - 1] - moment**2) / len(a))


def _copula(rho: float, **options: object) -> World:
    base = {"n_features": 40, "d_model": 4, "dense_dim": 0, "dense_share": 0.0, "l0": 4.0, "zipf": 1.0, "factors": 3}
    return World(**{**base, "topics": 1, "doc_tokens": 1, "correlation": rho, **options})  # type: ignore[arg-type]


def _p_value_given_factors(world: World, claimed: World) -> float:
    """Smallest p-value over features and strata of z: firings among tokens whose factor lies in a stratum."""
    smallest = 1.0
    rng = np.random.default_rng(5)
    z = np.clip(rng.standard_normal((40_000, world.factors)), -8, 8)
    topics = rng.integers(0, world.topics, 40_000)
    token, feature = world.sampler.draw(rng, topics, z)
    fires = np.zeros((40_000, world.n_features), dtype=bool)
    fires[token, feature] = True
    assert fires.sum() == len(token)
    law = claimed.contexts
    for u in range(world.n_features):
        own = topics == law.topic[u]
        probability = np.empty(40_000)
        for here in (True, False):
            a, b = law.curve(own=here)
            rows = own == here
            probability[rows] = stats.norm.cdf(a[u] + b[u] * z[rows, law.factor[u]])
        strata = np.digitize(z[:, law.factor[u]], [-1.0, 0.0, 1.0])
        for stratum in range(4):
            p = probability[strata == stratum]
            # independent coins with known, unequal probabilities: the normal score of their sum
            score = (fires[strata == stratum, u].sum() - p.sum()) / np.sqrt((p * (1 - p)).sum())
            if (p * (1 - p)).sum() > 25:
                smallest = min(smallest, float(2 * stats.norm.sf(abs(score))))
    return smallest


@pytest.mark.parametrize("rho", [0.2, 0.8])
@pytest.mark.parametrize("topics", [1, 4])
def test_given_the_factors_every_feature_is_its_own_coin(rho: float, topics: int) -> None:
    world = _copula(rho, topics=topics, topic_strength=0.6)
    # 40 features × 4 strata; the normal tail with 25 expected firings is good to a factor of ten here
    assert _p_value_given_factors(world, world) > 1e-7 / 160
    assert _p_value_given_factors(world, _copula(rho / 2, topics=topics, topic_strength=0.6)) < 1e-9


def test_a_child_fires_only_with_its_parent_and_rivals_never_together() -> None:
    world = World(
        n_features=80, d_model=4, dense_dim=0, dense_share=0.0, l0=4.0, roots=4, branching=3, depth=2,
        siblings="exclusive", exclusion=4, doc_tokens=1,
    )  # fmt: skip
    fires = np.concatenate([world.chunk(i).codes.toarray() > 0 for i in range(8)])
    parent = world.parent
    children = np.flatnonzero(parent >= 0)
    assert len(children) == 4 * 12 and (fires[:, children] <= fires[:, parent[children]]).all()
    groups = [np.flatnonzero(world.forest.parent == v) for v in range(world.forest.n_events)]
    rivals = [g for g in groups if len(g) > 1]
    assert len(rivals) == 4 + 12 + 7
    for group in rivals:
        assert fires[:, group].sum(axis=1).max() == 1
    # exact binomial tails over 80 features: false alarm 1e-6; firings on 32,768 independent tokens
    count = fires.sum(axis=0)
    low, high = (
        stats.binom.cdf(count, len(fires), world.firing_rates),
        stats.binom.sf(count - 1, len(fires), world.firing_rates),
    )
    assert 2 * np.minimum(low, high).min() > 1e-6 / 80


def test_the_mean_number_of_firings_is_the_asked_one_to_a_per_cent() -> None:
    for options in (
        {},
        {"correlation": 0.3, "factors": 25},
        {"roots": 16, "depth": 2, "branching": 4, "zipf": 1.0},
        {"exclusion": 8},
        {"topics": 16, "topic_strength": 1.0},
    ):
        base = {"n_features": 2000, "d_model": 4, "dense_dim": 0, "dense_share": 0.0, "l0": 32.0, "doc_tokens": 1}
        world = World(**{**base, **options})  # type: ignore[arg-type]
        assert abs(world.firing_rates.sum() - 32.0) < 1e-9
        drawn = np.concatenate([np.diff(world.chunk(i).codes.indptr) for i in range(16)])
        error = drawn.std() / np.sqrt(len(drawn))
        assert error < 0.06 and abs(drawn.mean() - 32.0) < 5.5 * error


def test_the_sampler_draws_every_pair_once_and_in_order() -> None:
    world = _copula(0.5, topics=4, topic_strength=0.5)
    sampler = FiringSampler(world.forest, world.contexts)
    rng = np.random.default_rng(0)
    token, feature = sampler.draw(rng, rng.integers(0, 4, 3000), rng.standard_normal((3000, 3)))
    key = token * 40 + feature
    assert (np.diff(key) > 0).all() and token.max() < 3000 and feature.max() < 40
