"""Topics and the Gaussian copula: marginals, joint probabilities against the bivariate normal, and the series."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from darkmatter.sandbox.contexts import Contexts, hazard


def contexts(*, rho: float = 0.5, topics: int = 3, seed: int = 0, units: int = 12) -> Contexts:
    rng = np.random.default_rng(seed)
    rate = rng.uniform(0.002, 0.3, units)
    other = rate * 0.6 if topics > 1 else rate
    return Contexts(
        own=rate * topics - other * (topics - 1),
        other=other,
        topic=rng.integers(0, topics, units),
        n_topics=topics,
        factor=rng.integers(0, 2, units),
        loading=np.sqrt(rho) * rng.choice([-1.0, 1.0], units),
        n_factors=2 if rho else 0,
    )


def _joint(c: Contexts, i: int, j: int) -> float:
    """P(both fire), averaging a bivariate normal probability over topics."""
    latent = c.loading[i] * c.loading[j] if c.factor[i] == c.factor[j] and c.n_factors else 0.0
    total = 0.0
    for t in range(c.n_topics):
        p, q = (float(c.own[u] if c.topic[u] == t else c.other[u]) for u in (i, j))
        cov = [[1.0, latent], [latent, 1.0]]
        low = [stats.norm.ppf(p), stats.norm.ppf(q)]
        total += float(stats.multivariate_normal([0, 0], cov).cdf(low))
    return total / c.n_topics


@pytest.mark.parametrize("rho", [0.0, 0.2, 0.5, 0.85])
@pytest.mark.parametrize("topics", [1, 3])
def test_the_covariance_is_that_of_the_bivariate_normal(rho: float, topics: int) -> None:
    c = contexts(rho=rho, topics=topics)
    n = len(c.own)
    rows = np.concatenate([np.zeros((1, n)), *c.rows(np.eye(n))])
    found = rows.T @ rows
    assert np.allclose(c.product(np.eye(n)), found, atol=1e-13)
    # scipy's bivariate normal is good to about 1e-8; the series' first neglected term to 1e-9
    exact = np.array([[_joint(c, i, j) for j in range(n)] for i in range(n)]) - np.outer(c.rate, c.rate)
    apart = ~np.eye(n, dtype=bool)
    assert np.abs(found - exact)[apart].max() < 3e-8
    if rho or topics > 1:
        assert np.abs(exact)[apart].max() > 1e-4  # a covariance of zero would be caught


@pytest.mark.parametrize("rho", [0.2, 0.8])
def test_averaging_over_the_factor_gives_the_rate_back(rho: float) -> None:
    c = contexts(rho=rho)
    z, weight = np.polynomial.hermite_e.hermegauss(160)
    weight = weight / weight.sum()
    for own, rate in ((True, c.own), (False, c.other)):
        a, b = c.curve(own=own)
        curve = ndtr(a[:, None] + b[:, None] * z)
        assert np.allclose(curve @ weight, rate, rtol=1e-6)
    square = np.zeros(len(c.own))
    for own, share in ((True, 1 / 3), (False, 2 / 3)):
        a, b = c.curve(own=own)
        square += share * (ndtr(a[:, None] + b[:, None] * z) ** 2 @ weight)
    assert np.allclose(c.mean_square(), square, rtol=1e-5)
    assert not np.allclose(c.mean_square(), c.rate**2, rtol=1e-2)


def test_the_hazard_is_accurate_at_both_ends() -> None:
    s = np.array([-30.0, -6.0, 0.0, 6.0, 30.0])
    exact = np.array([4.906713927148187e-198, 9.865876454546034e-10, np.log(2.0), 20.736768787, 454.3212439955993])
    assert np.allclose(hazard(s), exact, rtol=1e-8)
