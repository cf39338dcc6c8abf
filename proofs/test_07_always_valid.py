"""T4, attacked; and the page's cases and table, recomputed."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import sympy as sp

from darkmatter.claims import AnyClaim
from darkmatter.claims.always_valid import CLAIMS
from darkmatter.errors import InputError
from darkmatter.theory.always_valid import (
    Assumed,
    Bracket,
    always_valid,
    bound_from_angle,
    bounds_from_length,
    most_interference,
    parallel_sum,
)
from darkmatter.theory.population import covariance, residual, variance
from darkmatter.theory.upper_bound import optimal_sae
from proofs.checks import check_claim, check_twin

__all__ = ["CLAIMS"]


def test_claim(claim: AnyClaim) -> None:
    check_claim(claim)


def test_twin(claim: AnyClaim, twin: str) -> None:
    check_twin(claim, twin)


def test_the_two_coins_need_the_length() -> None:
    """Sae = E[S1 | x] = x / 2: the angle says nothing, the length says all."""
    s, u = (np.array(column).reshape(-1, 1) for column in ([0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]))
    x = s + u
    q, n = residual(s, x), residual(x / 2 - s, x)
    cosine = covariance(q, n) / math.sqrt(variance(q) * variance(n))
    assert cosine == pytest.approx(-1.0)
    assert bound_from_angle(0.0, cosine=-1.0) == math.inf
    bracket = bounds_from_length(0.0, variance(q))
    assert (bracket.low, bracket.high) == pytest.approx((1 / 8, 1 / 8))
    assert variance(n) == pytest.approx(1 / 8)


def test_the_angle_bound_is_the_worst_length_and_the_length_bound_the_worst_angle() -> None:
    n, q, c, r = sp.symbols("n q c r", real=True)
    total = n**2 + 2 * c * q * n + q**2
    least = total.subs(q, sp.solve(sp.diff(total, q), q)[0])
    assert sp.simplify(least - n**2 * (1 - c**2)) == 0
    # at c = -1 and c = 1 the length bounds solve the same equation
    assert sp.expand(total.subs({c: -1, n: r + q})) == r**2
    assert sp.expand(total.subs({c: 1, n: r - q})) == r**2


def test_the_frontier_of_the_published_numbers() -> None:
    """The models of `published-numbers-say-no-more`: Var U = g + |q|² = √g, and the split with a private direction."""
    g, r = sp.symbols("g r", positive=True)
    root = sp.sqrt(g)
    assert sp.simplify(root * (1 - root) - (root - g)) == 0
    u = r**2 / (1 - g - 2 * r)
    b, total, apart = r + u, 1 - g + u, g - u
    assert sp.simplify(b**2 / total + apart - g) == 0  # Var P U
    assert sp.simplify(b * (total - b) / total - r) == 0  # |q|²
    assert sp.simplify(total + apart - 1) == 0  # Var x


@pytest.mark.parametrize(
    ("fvu", "r2", "aligned", "unpredictable", "optimal"),
    [
        (0.1, 0.5, 0.524, 0.410, 0.124),
        (0.2, 0.5, 0.666, 0.610, 0.116),
        (0.2, 0.7, 0.555, 0.531, 0.174),
        (0.3, 0.5, 0.787, 0.765, 0.087),
    ],
)
def test_table_of_the_page(fvu: float, r2: float, aligned: float, unpredictable: float, optimal: float) -> None:
    highs: dict[Assumed, float] = {"aligned": aligned, "unpredictable": unpredictable, "optimal": optimal}
    for assumed, high in highs.items():
        found = always_valid(fvu, r2, assumed=assumed)
        assert found.low == 0.0
        assert found.high == pytest.approx(high, abs=5e-4)


def test_the_lower_end_is_positive_only_where_much_is_unexplained() -> None:
    assert always_valid(0.5, 0.5, assumed="aligned").low == 0.0
    assert always_valid(0.6, 0.5, assumed="aligned").low == pytest.approx((math.sqrt(0.3) - 0.5) ** 2)
    assert always_valid(0.3, 0.2, assumed="unpredictable").low == pytest.approx(0.004, abs=5e-4)


@pytest.mark.parametrize(("p", "noise"), [(0.1, 0.2), (0.1, 0.4), (0.1, 1.0), (0.5, 0.7), (0.9, 0.3)])
def test_every_optimal_sae_in_one_dimension_attains_its_bound(p: float, noise: float) -> None:
    found = optimal_sae(p=p, noise=noise)
    learned, total = p * (1 - p), p * (1 - p) + noise**2
    # Var e = Var x + Var Sae − 2 Cov(x, Sae), with Var Sae = Var S1 − Var N and Cov(x, Sae) = Cov(x, S1) = Var S1
    error = total + (learned - found.introduced) - 2 * learned
    bounds = always_valid(error / total, 1 - found.nonlinear / error, assumed="optimal")
    assert bounds.high == pytest.approx(found.introduced / total, rel=1e-9)
    assert bounds.interference == pytest.approx(found.interference / total, rel=1e-9)


def test_nothing_follows_from_nothing() -> None:
    found = always_valid(0.2, 0.5, assumed="nothing")
    assert (found.interference, found.low, found.high) == (math.inf, 0.0, math.inf)


def test_no_error_is_no_introduced_error() -> None:
    assert always_valid(0.0, 0.0, assumed="unpredictable").high == 0.0
    assert always_valid(0.0, 0.0, assumed="optimal").high == 0.0
    assert always_valid(1.0, 1.0, assumed="optimal").high == 0.0  # S1 = 0: nothing to reconstruct


def test_degenerate_angles() -> None:
    assert bound_from_angle(0.3, cosine=0.7) == pytest.approx(0.3)
    assert bound_from_angle(0.3, cosine=-0.6, r2_introduced=0.5) == pytest.approx(0.3 / (0.5 * 0.64))
    assert bound_from_angle(0.3, cosine=0.0, r2_introduced=1.0) == math.inf
    assert bound_from_angle(0.3, cosine=-1.0) == math.inf
    assert bounds_from_length(0.0, 0.0) == Bracket(0.0, 0.0)


def test_interference_of_cancelling_parts() -> None:
    assert most_interference(1.0, 1.0, covariance=-1.0) == 1.0  # x is constant, nothing predicts S1
    assert most_interference(1.0, 4.0, covariance=-1.0) == pytest.approx(1.0)  # S1 uncorrelated with x
    assert most_interference(1.0, 1.0, covariance=1.0) == 0.0  # S1 = x / 2
    assert most_interference(0.0, 0.0) == 0.0
    assert most_interference(3.0, 1.0) == pytest.approx(3 / 4)
    # never above the smaller variance, and attains it at one covariance
    worst = max(most_interference(1.0, 4.0, covariance=c) for c in np.linspace(-2.0, 2.0, 401))
    assert worst == pytest.approx(1.0)


def test_parallel_sum_of_regular_and_singular_matrices() -> None:
    rng = np.random.default_rng(0)
    a, b = (m @ m.T for m in rng.standard_normal((2, 4, 4)))
    assert parallel_sum(a, b) == pytest.approx(np.linalg.inv(np.linalg.inv(a) + np.linalg.inv(b)))
    assert parallel_sum([[2.0]], [[2.0]]) == pytest.approx(np.array([[1.0]]))
    assert parallel_sum(np.diag([1.0, 0.0]), np.diag([0.0, 1.0])) == pytest.approx(np.zeros((2, 2)))
    assert parallel_sum(np.zeros((2, 2)), np.zeros((2, 2))) == pytest.approx(np.zeros((2, 2)))
    # of two directions at 45 degrees nothing is hidden: two features in two dimensions can be read
    tilted = np.full((2, 2), 0.5)
    assert parallel_sum(np.diag([1.0, 0.0]), tilted) == pytest.approx(np.zeros((2, 2)), abs=1e-15)


@pytest.mark.parametrize(
    ("fvu", "r2", "assumed", "message"),
    [
        (-0.1, 0.5, "aligned", "fvu is"),
        (math.nan, 0.5, "aligned", "fvu is"),
        (math.inf, 0.5, "nothing", "fvu is"),
        (0.2, 1.5, "aligned", "r2_error is"),
        (0.2, 0.5, "everything", "expected one of"),
        (3.0, 0.5, "unpredictable", "refute"),
        (0.5, 0.2, "optimal", "least error"),
    ],
)
def test_always_valid_refuses(fvu: float, r2: float, assumed: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        always_valid(fvu, r2, assumed=cast(Any, assumed))


def test_the_other_functions_refuse() -> None:
    with pytest.raises(InputError, match="cosine is"):
        bound_from_angle(0.1, cosine=-1.5)
    with pytest.raises(InputError, match="nonlinear is"):
        bounds_from_length(-0.1, 0.1)
    with pytest.raises(InputError, match="interference is"):
        bounds_from_length(0.1, math.inf)
    with pytest.raises(InputError, match="covariance is"):
        most_interference(1.0, 1.0, covariance=-1.1)
    with pytest.raises(InputError, match="one shape"):
        parallel_sum(np.eye(2), np.eye(3))
    with pytest.raises(InputError, match="not symmetric"):
        parallel_sum(np.array([[1.0, 0.5], [0.0, 1.0]]), np.eye(2))
