"""The oracle of worlds, attacked; the page's numbers, its algebra, and the closed forms at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sympy as sp
from scipy import stats

from darkmatter.claims import AnyClaim
from darkmatter.claims.sandbox_moments import CLAIMS
from darkmatter.errors import InputError
from darkmatter.sandbox import World, population_covariance
from darkmatter.sandbox.contexts import hazard
from darkmatter.sandbox.sampling import EDGE, FINE
from darkmatter.theory.copula import (
    both_fire,
    both_fire_series,
    firing_correlation,
    gate_coefficients,
    series_error,
    threshold,
)
from darkmatter.theory.firings import pair_probabilities, topic_covariance
from proofs.checks import check_claim, check_twin

__all__ = ["CLAIMS"]


def test_claim(claim: AnyClaim) -> None:
    check_claim(claim)


def test_twin(claim: AnyClaim, twin: str) -> None:
    check_twin(claim, twin)


def test_independent_worlds_have_the_plain_covariance() -> None:
    world = World(n_features=40, d_model=8, dense_dim=3, l0=5.0, topics=1, amplitude="uniform", amplitude_last=2.0)
    assert world.independent
    p, scale = world.firing_rates, world.amplitude_scales
    variance = p * (4 / 3 - p) * scale**2  # M1 = 1, M2 = 4/3 of a uniform amplitude
    y, f = world.dictionary_matrix.astype(float), world.dense_map.astype(float)
    assert np.allclose(population_covariance(world), y.T @ np.diag(variance) @ y + f.T @ f, rtol=1e-12)


@pytest.mark.parametrize(
    ("p", "row"),
    [
        (0.5, [0.194, 0.3333, 0.5903, -0.3333]),
        (0.1, [0.1291, 0.2489, 0.5138, -0.1029]),
        (0.01, [0.0461, 0.1206, 0.3706, -0.0101]),
        (0.001, [0.0139, 0.0533, 0.2627, -0.001]),
    ],
)
def test_the_table_of_the_page(p: float, row: list[float]) -> None:
    rho = np.array([0.3, 0.5, 0.8, -0.5])
    found = firing_correlation(p, p, rho)
    assert np.round(found, 4).tolist() == row
    if p == 0.5:
        assert np.allclose(found, 2 / np.pi * np.arcsin(rho), rtol=1e-14)
    assert (found >= -p / (1 - p) * (1 + 1e-12)).all()  # P(both) ≥ 0


def test_the_exact_formula_against_the_bivariate_normal() -> None:
    rng = np.random.default_rng(0)
    for p, q, rho in zip(*rng.uniform(0.001, 0.9, (2, 40)), rng.uniform(-0.95, 0.95, 40), strict=True):
        cov = [[1.0, rho], [rho, 1.0]]
        wanted = float(stats.multivariate_normal([0, 0], cov).cdf([stats.norm.ppf(p), stats.norm.ppf(q)]))
        assert float(both_fire(p, q, rho)) == pytest.approx(wanted, abs=3e-8)  # scipy's own accuracy


def test_the_series_of_the_page() -> None:
    exact = float(both_fire(0.1, 0.2, 0.5))
    gaps = [abs(float(both_fire_series(0.1, 0.2, 0.5, k)) - exact) for k in (1, 5, 20)]
    limits = [float(series_error(0.1, 0.2, 0.5, k)) for k in (1, 5, 20)]
    assert np.allclose(gaps, [6.93e-3, 2.91e-5, 2.67e-10], rtol=5e-3)
    assert np.allclose(limits, [1.74e-2, 4.80e-4, 7.51e-9], rtol=5e-3)
    assert [math.ceil(math.log(1e-9) / math.log(r)) for r in (0.3, 0.5, 0.9)] == [18, 30, 197]


def test_the_coefficients_of_a_gate() -> None:
    z, lam, eps = sp.symbols("z lambda epsilon", real=True)
    density = sp.exp(-(z**2) / 2)

    def hermite(k: int, at: sp.Expr = z) -> sp.Expr:  # probabilists' polynomials
        return sp.expand(sp.expand(2 ** sp.Rational(-k, 2) * sp.hermite(k, z / sp.sqrt(2))).subs(z, at))

    tau = 0.7
    found = gate_coefficients(np.array(tau), np.array(1.0), 6)
    for k in range(1, 7):
        # the antiderivative of He_k φ is −He_{k−1} φ
        assert sp.simplify(sp.diff(-hermite(k - 1) * density, z) - hermite(k) * density) == 0
        value = float(hermite(k - 1, sp.Float(-tau))) * math.exp(-(tau**2) / 2) / math.sqrt(2 * math.pi)
        assert found[k - 1] == pytest.approx(value / math.sqrt(math.factorial(k)), rel=1e-12)
        # E[He_k(λ z + √(1 − λ²) ε) | z] = λ^k He_k(z)
        inside = sp.Poly(hermite(k, lam * z + sp.sqrt(1 - lam**2) * eps), eps)
        moments = [0 if j % 2 else sp.factorial2(j - 1) if j else 1 for j in range(k + 1)]
        mean = sum(c * moments[j] for (j,), c in inside.terms())
        assert sp.expand(mean - lam**k * hermite(k)) == 0


def test_the_squares_add_up_to_the_variance() -> None:
    # Σ c_k² is p (1 − p) at ρ → 1; what is missing after K terms falls like 1 / √K
    for p in (0.5, 0.05):
        squares = [c**2 for c in gate_coefficients(threshold(p), np.array(1.0), 40_000)]
        missing = p * (1 - p) - np.cumsum(squares)[[99, 399, 39_999]]
        assert (missing > 0).all() and missing[2] < 0.01 * p
        assert missing[0] / missing[1] == pytest.approx(2.0, rel=0.05)


def test_two_gates_fire_together_as_often_as_stated() -> None:
    # 10^6 draws in 50 blocks, |z| < 4 with Student's t of 49 degrees: false alarm 2e-4
    p, q, rho = 0.1, 0.2, 0.6
    rng = np.random.default_rng(3)
    u = rng.standard_normal((2, 50, 20_000))
    v = rho * u[0] + math.sqrt(1 - rho**2) * u[1]
    both = ((u[0] > -threshold(p)) & (v > -threshold(q))).mean(axis=1)
    error = both.std(ddof=1) / math.sqrt(50)
    assert abs(both.mean() - float(both_fire(p, q, rho))) < 4 * error
    # ρ as the correlation of the firings, and no dependence at all, are far away
    linear = p * q + rho * math.sqrt(p * (1 - p) * q * (1 - q))
    assert min(abs(both.mean() - wrong) for wrong in (linear, p * q)) > 4 * error


def test_the_tree_of_the_page() -> None:
    # 0 is the root with P = .4; 1 and 2 its children (q = .5, .25); 3 a child of 1, 4 a child of 2 (q = .5 each)
    parent, share = [-1, 0, 0, 1, 2], [1.0, 0.5, 0.25, 0.5, 0.5]
    loose = pair_probabilities(parent, share, [False] * 5, [[0.4]])
    assert np.allclose(np.diag(loose), [0.4, 0.2, 0.1, 0.1, 0.05])
    assert loose[1, 2] == pytest.approx(0.05) and loose[3, 4] == pytest.approx(0.1 * 0.05 / 0.4)
    assert loose[0, 4] == pytest.approx(0.05) and loose[1, 3] == pytest.approx(0.1)
    assert loose[1, 2] - 0.2 * 0.1 == pytest.approx(0.03)  # siblings that are independent given the parent
    apart = pair_probabilities(parent, share, [True, False, False, False, False], [[0.4]])
    assert apart[1, 2] == apart[1, 4] == apart[3, 4] == 0.0
    assert np.allclose(np.diag(apart), np.diag(loose)) and apart[1, 3] == pytest.approx(0.1)


def test_a_pair_has_the_probability_of_its_common_ancestor() -> None:
    rng = np.random.default_rng(1)
    n = 30
    parent = np.array([-1, -1] + [int(rng.integers(0, v)) for v in range(2, n)])
    share = rng.uniform(0.2, 1.0, n)
    found = pair_probabilities(parent, share, np.zeros(n, bool), [[0.5, 0.1], [0.1, 0.3]])
    paths = []
    for v in range(n):
        path = [v]
        while parent[path[-1]] >= 0:
            path.append(int(parent[path[-1]]))
        paths.append(path)
    p = np.diag(found)
    for u in range(n):
        for v in range(n):
            common = [a for a in paths[u] if a in paths[v]]
            roots = paths[u][-1], paths[v][-1]
            wanted = p[u] * p[v] / p[common[0]] if common else p[u] * p[v] * 0.1 / (p[roots[0]] * p[roots[1]])
            assert found[u, v] == pytest.approx(wanted, rel=1e-12)


def test_the_topics_of_the_page() -> None:
    # two features that fire on a quarter of the tokens, each on one of two topics only
    apart = topic_covariance([0.25, 0.25], [1.0, 1.0], [0, 1], 2)
    together = topic_covariance([0.25, 0.25], [1.0, 1.0], [0, 0], 2)
    assert apart[0, 1] == -0.0625 and together[0, 1] == 0.0625
    assert apart[0, 1] / (0.25 * 0.75) == pytest.approx(-1 / 3)
    by_topic = np.array([[0.5, 0.0], [0.0, 0.5]])  # P(fires | topic)
    assert np.allclose(np.cov(by_topic.T, bias=True), apart)


def test_thinned_points_by_algebra() -> None:
    h, mass, n = sp.symbols("h M n", positive=True)
    none = sp.summation(sp.exp(-mass) * mass**n / sp.factorial(n) * (1 - h / mass) ** n, (n, 0, sp.oo))
    assert sp.simplify(none - sp.exp(-h)) == 0


@pytest.mark.parametrize("rounds", [250_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_thinned_points_by_counts(rounds: int) -> None:
    # three coins from one process of mass 4 under an envelope of 4/3 each; |z| < 4 for 6 statistics: false alarm 4e-4
    p = np.array([0.6, 0.3, 0.15])
    rng = np.random.default_rng(2)
    place = np.repeat(np.arange(rounds), rng.poisson(4.0, rounds))
    coin = rng.integers(0, 3, len(place))
    kept = rng.random(len(place)) * (4 / 3) < -np.log1p(-p[coin])
    fires = np.zeros((rounds, 3))
    fires[place[kept], coin[kept]] = 1.0
    error = np.sqrt(p * (1 - p) / rounds)
    assert (np.abs(fires.mean(axis=0) - p) < 4 * error).all()
    assert (np.abs(fires.mean(axis=0) + np.expm1(-p)) > 4 * error).all()  # points at rate p instead
    for i, j in ((0, 1), (0, 2), (1, 2)):
        product = (fires[:, i] - p[i]) * (fires[:, j] - p[j])
        assert abs(product.mean()) < 4 * math.sqrt(p[i] * (1 - p[i]) * p[j] * (1 - p[j]) / rounds)


def test_the_envelope_is_never_below_the_rate() -> None:
    world = World(n_features=60, d_model=4, dense_dim=0, dense_share=0.0, l0=8.0, topics=3, correlation=0.8, factors=4)
    edges = np.concatenate([[-EDGE], np.linspace(-FINE, FINE, round(2 * FINE / 0.25) + 1), [EDGE]])
    inside = edges[:-1] + np.random.default_rng(0).random((50, len(edges) - 1)) * np.diff(edges)
    for table, own in enumerate((True, False)):
        a, b = world.contexts.curve(own=own)
        rate = hazard(a[:, None, None] + b[:, None, None] * inside)
        most, least = (part[table][:, None, :] for part in world.sampler._envelope)
        assert (rate <= most * (1 + 1e-12)).all()
        assert (rate >= most * least * (1 - 1e-12)).all()  # what is kept without a look at the rate


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: both_fire(1.0, 0.5, 0.1), "a firing probability is not in"),
        (lambda: both_fire(0.5, -0.1, 0.1), "a firing probability is not in"),
        (lambda: both_fire(0.5, 0.5, 0.99), "beyond 0.95"),
        (lambda: both_fire(0.5, 0.5, np.nan), "or not a number"),
        (lambda: firing_correlation(0.0, 0.5, 0.1), "never fires has no correlation"),
        (lambda: pair_probabilities([-1, 0], [1.0], [False, False], [[0.5]]), "share, exclusive and roots have shapes"),
        (lambda: pair_probabilities([-1, 5], [1.0, 0.5], [False, False], [[0.5]]), "a parent is event 5"),
        (lambda: pair_probabilities([1, 0], [0.5, 0.5], [False, False], np.zeros((0, 0))), "form a cycle"),
        (lambda: topic_covariance([0.1], [1.0], [2], 2), "topics below that number"),
        (lambda: topic_covariance([0.1, 0.2], [1.0], [0], 2), "three of one length"),
    ],
)
def test_nonsense_is_refused_in_one_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_gate_that_its_topic_has_to_itself_is_closed_elsewhere() -> None:
    assert 0.0 <= float(both_fire(0.0, 0.4, 0.7)) < 1e-300
    assert 0.0 <= float(both_fire_series(0.0, 0.4, 0.7, 10)) < 1e-290
