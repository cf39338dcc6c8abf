"""Amplitude laws: exact moments and expectations, draws that follow them, and refusals."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from darkmatter.errors import InputError
from darkmatter.sandbox.amplitudes import AmplitudeLaw, amplitude_law
from darkmatter.sandbox.seeding import generator

CASES = [("exponential", 1.0), ("uniform", 1.0), ("half-normal", 1.0)]
CASES += [("gamma", k) for k in (0.1, 0.3, 1.0, 7.5, 1000.0)] + [("lognormal", s) for s in (0.001, 0.3, 1.0, 3.0)]


def oracle(name: str, shape: float) -> stats.rv_continuous:
    """The same law from scipy."""
    return {
        "exponential": lambda: stats.expon(),
        "uniform": lambda: stats.uniform(0.0, 2.0),
        "half-normal": lambda: stats.halfnorm(scale=math.sqrt(math.pi / 2)),
        "gamma": lambda: stats.gamma(shape, scale=1.0 / shape),
        "lognormal": lambda: stats.lognorm(shape, scale=math.exp(-(shape**2) / 2)),
    }[name]()


def _moments_agree(law: AmplitudeLaw, moments: tuple[float, ...]) -> bool:
    found = [law.expectation(lambda a, p=power: a**p) for power in range(1, 5)]  # type: ignore[misc]
    return np.allclose(found, moments, rtol=1e-11, atol=0)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_moments_are_those_of_the_law_and_the_mean_is_one(name: str, shape: float) -> None:
    law = amplitude_law(name, shape)
    assert law.moments[0] == 1.0
    assert np.allclose(law.moments, [oracle(name, shape).moment(p) for p in range(1, 5)], rtol=1e-9, atol=0)
    assert _moments_agree(law, law.moments)
    assert not _moments_agree(law, (*law.moments[:3], law.moments[3] * (1 + 1e-9)))


@given(k=st.floats(0.1, 1e3), sigma=st.floats(1e-3, 3.0), power=st.floats(0.0, 8.0))
def test_any_shape_integrates_any_power(k: float, sigma: float, power: float) -> None:
    gamma, lognormal = amplitude_law("gamma", k), amplitude_law("lognormal", sigma)
    # E a^p = Γ(k + p) / (Γ(k) k^p), and exp(σ² p (p − 1) / 2); lgamma(1e3) ≈ 6e3 leaves 1e-12
    log_gamma = math.lgamma(k + power) - math.lgamma(k) - power * math.log(k)
    assert gamma.expectation(lambda a: a**power) == pytest.approx(math.exp(log_gamma), rel=1e-10)
    want = math.exp(sigma**2 * power * (power - 1) / 2)
    assert lognormal.expectation(lambda a: a**power) == pytest.approx(want, rel=1e-10)
    assert _moments_agree(gamma, gamma.moments) and _moments_agree(lognormal, lognormal.moments)


@pytest.mark.parametrize("function", [np.tanh, lambda a: a / (1 + a), lambda a: np.sin(a) * np.exp(-a)])
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_expectations_agree_with_adaptive_quadrature(name: str, shape: float, function: object) -> None:
    law, same = amplitude_law(name, shape), oracle(name, shape)

    def over_quantiles(u: float) -> float:  # E f(a) = ∫ f(quantile(u)) du, by scipy on both halves of the law
        return float(function(same.ppf(u)) + function(same.isf(u)))  # type: ignore[operator]

    pieces = [0.0, 1e-12, 1e-9, 1e-6, 1e-3, 0.05, 0.5]
    parts = [integrate.quad(over_quantiles, a, b, epsabs=1e-13, epsrel=1e-12, limit=200) for a, b in pairwise(pieces)]
    want, error = sum(p[0] for p in parts), sum(p[1] for p in parts)
    assert abs(law.expectation(function) - want) <= 1e-9 + error  # type: ignore[arg-type]


def test_a_kink_costs_what_the_docstring_says() -> None:
    # E|a − 1| of Exp(1) is 2/e
    error = amplitude_law("exponential").expectation(lambda a: np.abs(a - 1.0)) - 2 / math.e
    assert 1e-9 < abs(error) < 1e-3


def _p_value(draws: np.ndarray, same: stats.rv_continuous) -> float:
    return float(stats.kstest(draws.astype(np.float64), same.cdf).pvalue)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_draws_follow_the_law(name: str, shape: float) -> None:
    law, same = amplitude_law(name, shape), oracle(name, shape)
    draws = law.draw(generator("amplitude test", name), 100_000)
    assert draws.dtype == np.float32 and draws.shape == (100_000,) and (draws > 0).all() and np.isfinite(draws).all()
    if shape == 0.001:  # float32 resolves this law only into 10^4 steps: test z, whose steps are small against 1/√n
        draws, same = (np.log(draws.astype(np.float64)) + shape**2 / 2) / shape, stats.norm()
    assert _p_value(draws, same) > 1e-6  # Kolmogorov–Smirnov, false alarm 1e-6
    assert _p_value(1.03 * draws + 0.03, same) < 1e-6  # a law off by three hundredths is caught


def test_constant_is_constant() -> None:
    law = amplitude_law("constant")
    assert law.moments == (1.0, 1.0, 1.0, 1.0) and law.expectation(np.cos) == math.cos(1.0)
    assert (law.draw(generator("amplitude test"), 5) == np.ones(5)).all()


def test_draws_repeat_and_survive_copying() -> None:
    for name, shape in CASES:
        law = amplitude_law(name, shape)
        again = copy.deepcopy(law)
        assert np.array_equal(law.draw(generator("a", 1), 50), again.draw(generator("a", 1), 50))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("cauchy", 1.0, "amplitude is 'cauchy', expected one of exponential, constant, uniform, half-normal, gamma"),
        ("exponential", 2.0, "amplitude 'exponential' has no shape: leave it at 1"),
        ("gamma", 0.01, "amplitude_shape is 0.01"),
        ("gamma", 2e3, "amplitude_shape is 2000.0"),
        ("gamma", float("nan"), "amplitude_shape is nan"),
        ("gamma", "2", "amplitude_shape is '2'"),
        ("gamma", True, "amplitude_shape is True"),
        ("lognormal", 0.0, "amplitude_shape is 0.0"),
        ("lognormal", 3.5, "at most 3"),
    ],
)
def test_impossible_laws_are_refused_in_one_line(name: str, shape: float, message: str) -> None:
    with pytest.raises(InputError) as caught:
        amplitude_law(name, shape)
    assert message in str(caught.value) and "\n" not in str(caught.value)
