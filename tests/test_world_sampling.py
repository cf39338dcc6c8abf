"""The sampler draws exactly the law it claims: subsets, firings by topic, independence given the topic."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from darkmatter.sandbox import World
from darkmatter.sandbox.features import EXPONENTIAL
from darkmatter.sandbox.sampling import OFTEN, FiringLaw, distinct_rows, draw_codes

WORLD = World(n_features=200, d_model=8, dense_dim=2, l0=14.0, topics=4, topic_strength=0.5, doc_tokens=32, seed=11)
CHUNKS = [WORLD.chunk(i) for i in range(12)]  # 49,152 tokens, 1,536 documents


def _subset_p_value(urn: np.ndarray, row: np.ndarray, urns: int, size: int, count: int) -> float:
    member = np.zeros((urns, size), dtype=np.int64)
    np.add.at(member, (urn, row), 1)
    assert member.max() == 1 and (member.sum(axis=1) == count).all()
    _, seen = np.unique(member @ (1 << np.arange(size)), return_counts=True)
    cells = np.zeros(round(stats.binom.pmf(count, size, 0.5) * 2**size))
    cells[: len(seen)] = seen
    return float(stats.chisquare(cells).pvalue)


def test_distinct_rows_are_uniform_over_subsets() -> None:
    # chi-square over all C(6, c) subsets of 20,000 urns; false alarm 1e-6 per case
    for count in (1, 2, 3, 5):
        counts, sizes = np.full(20_000, count), np.full(20_000, 6)
        urn, row = distinct_rows(np.random.default_rng(count), counts, sizes)
        assert _subset_p_value(urn, row, 20_000, 6, count) > 1e-6


def test_the_uniformity_check_catches_a_biased_sampler() -> None:
    # the usual mistake: move a repeat to the next free row
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 6, 20_000), rng.integers(0, 6, 20_000)
    second = np.where(second == first, (second + 1) % 6, second)
    urn = np.tile(np.arange(20_000), 2)
    assert _subset_p_value(urn, np.concatenate([first, second]), 20_000, 6, 2) < 1e-6


@given(sizes=hnp.arrays(np.int64, st.integers(0, 8), elements=st.integers(0, 9)), data=st.data())
def test_distinct_rows_are_distinct_and_as_many_as_asked(sizes: np.ndarray, data: st.DataObject) -> None:
    counts = np.array([data.draw(st.integers(0, int(s))) for s in sizes], dtype=np.int64)
    urn, row = distinct_rows(np.random.default_rng(0), counts, sizes)
    assert np.array_equal(np.bincount(urn, minlength=len(sizes)), counts)
    assert len(set(zip(urn.tolist(), row.tolist(), strict=True))) == counts.sum()
    assert (row < sizes[urn]).all()


def test_certain_firings_land_on_exactly_the_tokens_of_their_topics() -> None:
    topics = np.repeat(np.array([2, 0, 1, 0, 3, 2]), 5)  # topic 4 has a feature but no token
    topic = np.array([0, 1, 2, 3, 4, 0])
    here, zero, one = topics[:, None] == topic, np.zeros(6), np.ones(6)
    for own, other, want in ((one, zero, here), (zero, one, ~here), (one, one, here | ~here)):
        law = FiringLaw(own=own, other=other, topic=topic, n_topics=5)
        codes = draw_codes(np.random.default_rng(0), law, EXPONENTIAL, topics)
        assert np.array_equal(codes.toarray() > 0, want) and codes.nnz == want.sum()


def _smallest_p_value(probability: np.ndarray, *, own: bool) -> float:
    """Smallest exact two-sided binomial p-value over features, of the firings on own or on other topics."""
    law = WORLD.firing_law
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
    law = WORLD.firing_law
    assert (law.own > OFTEN).sum() > 5 and (law.own < OFTEN).sum() > 100  # both ways of drawing are at work
    assert _smallest_p_value(law.own, own=True) > 1e-6 / 200  # exact tails, Bonferroni: false alarm 1e-6
    assert _smallest_p_value(law.other, own=False) > 1e-6 / 200
    assert _smallest_p_value(WORLD.firing, own=True) < 1e-6 / 200  # and a world without topics would be caught


def test_topics_are_uniform_over_documents() -> None:
    counts = np.bincount(np.concatenate([c.topics[::32] for c in CHUNKS]), minlength=4)
    assert stats.chisquare(counts).pvalue > 1e-6


def test_given_the_topic_firings_are_independent_across_tokens_and_features() -> None:
    law = WORLD.firing_law
    given_topic = np.where(law.topic == np.arange(4)[:, None], law.own, law.other)  # (T, m)
    mean, variance = given_topic.sum(axis=1), (given_topic * (1 - given_topic)).sum(axis=1)
    l0 = np.concatenate([np.diff(c.codes.indptr).reshape(-1, 32).sum(axis=1) for c in CHUNKS])
    topic = np.concatenate([c.topics[::32] for c in CHUNKS])
    # under independence a document's total has variance 32 Σ p(1 − p): the squared z has mean 1
    square = (l0 - 32 * mean[topic]) ** 2 / (32 * variance[topic])
    error = square.std() / np.sqrt(len(square))
    assert abs(square.mean() - 1) < 5 * error  # false alarm 6e-7
    ignoring = (l0 - l0.mean()) ** 2 / (32 * (WORLD.firing * (1 - WORLD.firing)).sum())
    assert ignoring.mean() - 1 > 5 * ignoring.std() / np.sqrt(len(ignoring))  # topics do tie a document together


def test_amplitudes_have_the_stated_moments() -> None:
    a = np.concatenate([c.codes.data for c in CHUNKS]).astype(np.float64)
    # kth power of Exp(1): mean k!, variance (2k)! − k!²; 4 moments beyond 5.5 standard errors: false alarm 2e-7
    # (the fourth power is skewed; with 690,000 amplitudes its mean is normal enough)
    sizes = [1.0, 2.0, 6.0, 24.0, 120.0, 720.0, 5040.0, 40320.0]
    for k, moment in enumerate(EXPONENTIAL.moments, start=1):
        assert moment == sizes[k - 1]
        assert abs((a**k).mean() - moment) < 5.5 * np.sqrt((sizes[2 * k - 1] - moment**2) / len(a))
