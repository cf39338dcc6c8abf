"""Moments of the sparse channels: rows and products agree, and draws have them, over the whole space of worlds."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from scipy import stats

from darkmatter.claims.strategies import worlds
from darkmatter.sandbox import World


def channels(world: World, codes: np.ndarray) -> np.ndarray:
    """The sparse channels of some codes: w, and with dense="codes" also s tanh(w / s)."""
    if world.dense_codes is None:
        return codes
    scale = world.amplitude_scales
    return np.hstack([codes, scale * np.tanh(codes / scale)])


@given(worlds())
def test_rows_products_and_variances_are_one_covariance(world: World) -> None:
    moments = world.factor_moments
    c = moments.n_channels
    blocks = list(moments.rows(np.eye(c)))
    rows = np.concatenate(blocks)
    covariance = moments.apply(np.eye(c))
    size = np.sqrt(np.outer(moments.variance, moments.variance)) + 1e-300
    # rounding of sums of at most a few thousand terms, each below the product of two standard deviations
    assert (np.abs(rows.T @ rows - covariance) / size).max() < 1e-11
    assert np.abs(covariance - covariance.T).max() <= 1e-11 * size.max()
    assert np.allclose(np.diag(covariance), moments.variance, rtol=1e-11)
    table = np.random.default_rng(world.seed).standard_normal((c, 3))
    assert np.allclose(np.concatenate(list(moments.rows(table))), rows @ table, atol=1e-11 * np.abs(rows).max())


@settings(max_examples=12)
@given(worlds(most_features=24))
def test_draws_have_the_moments(world: World) -> None:
    # one chunk is one draw of each statistic where documents are short; chunks are independent
    n_chunks, moments = 24, world.factor_moments
    means, squares, crosses = [], [], []
    direction = np.random.default_rng(world.seed).standard_normal((moments.n_channels, 4))
    for index in range(n_chunks):
        f = channels(world, world.chunk(index).codes.toarray().astype(np.float64))
        means.append((f.mean(axis=0) - moments.mean) @ direction)
        part = (f - moments.mean) @ direction
        squares.append((part**2).mean(axis=0))
        crosses.append((part[:, :2] * part[:, 2:]).mean(axis=0))
    exact = direction.T @ moments.apply(direction)
    for sample, wanted in (
        (np.array(means), np.zeros(4)),
        (np.array(squares), np.diag(exact)),
        (np.array(crosses), np.array([exact[0, 2], exact[1, 3]])),
    ):
        error = sample.std(axis=0, ddof=1) / np.sqrt(n_chunks)
        # 10 statistics in 12 worlds, Student t with 23 degrees of freedom: false alarm 1e-5 in all, and the run is
        # repeatable; lognormal fourth powers are skewed, which costs some of that
        limit = stats.t.isf(1e-5 / 240, n_chunks - 1)
        assert (np.abs(sample.mean(axis=0) - wanted) <= limit * error + 1e-12).all()


def test_the_check_of_the_moments_would_catch_a_forgotten_dependence() -> None:
    world = World(
        n_features=20, d_model=8, dense_dim=0, dense_share=0.0, l0=3.0, correlation=0.6, factors=1, topic_strength=0.0
    )
    other = World(n_features=20, d_model=8, dense_dim=0, dense_share=0.0, l0=3.0, topic_strength=0.0)
    ones = world.contexts.loading[:, None]
    linked, loose = (float((ones.T @ w.factor_moments.apply(ones))[0, 0]) for w in (world, other))
    squares = [((w.codes.toarray() - world.factor_moments.mean) @ ones) ** 2 for w in map(world.chunk, range(12))]
    means = np.array([s.mean() for s in squares])
    error = means.std(ddof=1) / np.sqrt(12)
    assert abs(means.mean() - linked) < 7 * error < abs(means.mean() - loose)
