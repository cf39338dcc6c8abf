"""T7, attacked; the algebra of the page by sympy; and its numbers, recomputed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sympy as sp

from darkmatter.claims import AnyClaim
from darkmatter.claims.synthetic_test import CLAIMS, Grid
from darkmatter.theory.population import predicted, variance
from darkmatter.theory.synthetic_test import SyntheticTest, synthetic_test
from proofs.checks import check_claim, check_twin

__all__ = ["CLAIMS"]

S, U, D = sp.symbols("s u d", positive=True)


def test_claim(claim: AnyClaim) -> None:
    check_claim(claim)


def test_twin(claim: AnyClaim, twin: str) -> None:
    check_twin(claim, twin)


def test_one_eigenvalue_by_symbols() -> None:
    slope = U / (S + U)  # Cov(e, x') / Var x'
    linear, missed = slope * U, U - slope * U
    assert sp.simplify(linear - U**2 / (S + U)) == 0
    assert sp.simplify(missed - S * U / (S + U)) == 0
    share = U / (S + U)
    assert sp.simplify(sp.diff(share, U) - S / (S + U) ** 2) == 0  # rises with the noise
    assert sp.simplify(sp.diff(share, S) + U / (S + U) ** 2) == 0  # falls with the signal
    assert sp.simplify(sp.diff(share, S, 2) - 2 * U / (S + U) ** 3) == 0  # convex: Jensen
    assert sp.limit(share, S, 0) == 1
    assert sp.limit(share * S / U, S, sp.oo) == 1


def test_a_flat_spectrum_squares_the_noise_share() -> None:
    noise = U / (S + U)
    linear = U**2 / (S + U) / (S + U)
    assert sp.simplify(linear - noise**2) == 0
    missed = sp.simplify(noise - linear)
    assert sp.solve(sp.diff(missed, U), U) == [S]
    assert missed.subs(U, S) == sp.Rational(1, 4)


def test_rank_one_is_the_other_end() -> None:
    noise = D * U / (D * S + D * U)  # trace d s in one direction
    recovered = (D - 1 + U / (D * S + U)) / D
    assert sp.simplify(recovered - (1 - (1 - noise) / (D * (1 - noise) + noise))) == 0


def test_two_coins_of_the_page() -> None:
    s, g = np.array([[-1.0], [-1.0], [1.0], [1.0]]), np.array([[-1.0], [1.0], [-1.0], [1.0]])
    x = s + g
    assert variance(x) == 2.0
    assert variance(predicted(g, x)) == pytest.approx(0.5)
    test = synthetic_test([1.0], a=1.0, r=0.0)
    assert (test.noise, test.linear, test.nonlinear, test.introduced) == pytest.approx((0.5, 0.25, 0.25, 0.0))


def _grid(s: float, levels: range) -> tuple[list[SyntheticTest], np.ndarray]:
    pairs = [(float(a), float(r)) for a in levels for r in levels]
    return [synthetic_test([s], a=a, r=r) for a, r in pairs], np.array([a for a, _ in pairs])


def test_numbers_of_the_page() -> None:
    def correlation(first: object, second: object) -> float:
        return float(np.corrcoef(first, second)[0, 1])  # type: ignore[call-overload]

    tests, a = _grid(100.0, range(5))
    linear = [test.linear for test in tests]
    assert correlation(a, linear) == pytest.approx(0.878, abs=5e-4)
    assert correlation([test.noise for test in tests], linear) == pytest.approx(0.964, abs=5e-4)
    tests, a = _grid(100.0, range(1, 5))
    linear = [test.linear for test in tests]
    assert correlation(a, linear) == pytest.approx(0.931, abs=5e-4)
    assert correlation([test.noise for test in tests], linear) == pytest.approx(0.972, abs=5e-4)
    assert tests[0].recovered == pytest.approx(0.0099, abs=5e-5)
    assert tests[-1].recovered == pytest.approx(0.138, abs=5e-4)
    found = Grid(476.0, 3.0, 1.0, 3)
    assert found.correlation == pytest.approx(0.9918, abs=5e-5)
    assert found.recovered == pytest.approx(0.0499, abs=5e-5)


def test_the_correlation_tends_to_a_number_of_the_grid_while_nothing_is_recovered() -> None:
    a = np.arange(1.0, 5.0)
    limit = float(np.corrcoef(a**2, a**4)[0, 1])
    for s in (1e4, 1e6, 1e8):
        grid = Grid(s, 1.0, 1.0, 4)
        assert abs(grid.correlation - limit) < 1.0 / s
        assert grid.recovered < 17.0 / s
    assert limit == pytest.approx(0.9715, abs=5e-5)


def test_two_levels_correlate_perfectly() -> None:
    assert Grid(1e6, 1.0, 1.0, 2).correlation == pytest.approx(1.0, abs=1e-9)


def test_recovered_is_at_least_the_noise_share() -> None:
    # so that an attribution that is off by a factor of ten needs noise below a tenth of the variance
    rng = np.random.default_rng(0)
    for _ in range(200):
        test = synthetic_test(rng.exponential(1.0, 6) ** 3, a=math.sqrt(rng.exponential()), r=1.0)
        assert test.recovered >= test.noise * (1 - 1e-12)
