"""T2, attacked; and the page's failures F1 to F4, recomputed by algebra, enumeration and Monte Carlo."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import sympy as sp
from scipy.optimize import brentq

from darkmatter.claims import AnyClaim
from darkmatter.claims.upper_bound import CLAIMS
from darkmatter.errors import InputError
from darkmatter.theory.interference import interference
from darkmatter.theory.population import predicted, residual, variance
from darkmatter.theory.upper_bound import UpperBoundTerms, optimal_sae, soft_threshold, upper_bound_terms
from proofs.checks import check_claim, check_twin

__all__ = ["CLAIMS"]

_LIMIT = 4.0  # standard errors; by chance beyond it in 6 of 100,000 comparisons


def test_claim(claim: AnyClaim) -> None:
    check_claim(claim)


def test_twin(claim: AnyClaim, twin: str) -> None:
    check_twin(claim, twin)


def _z(sample: np.ndarray, truth: float) -> float:
    """Standard errors between a mean and what it should be."""
    return float((sample.mean() - truth) / (sample.std() / math.sqrt(len(sample))))


def test_f1_the_two_directions_of_the_page() -> None:
    found = soft_threshold(p=0.2, threshold=0.5)
    assert found.nonlinear == pytest.approx(0.011666, abs=5e-7)
    assert found.introduced == pytest.approx(0.029889, abs=5e-7)
    assert found.excess == pytest.approx(found.nonlinear - found.introduced)
    assert found.nonlinear / found.introduced == pytest.approx(0.390, abs=5e-4)


def test_f1_integrals_by_algebra() -> None:
    w, t, p = sp.symbols("w t p", positive=True)
    density = sp.exp(-w)

    def mean(below: sp.Expr, above: sp.Expr) -> sp.Expr:
        return p * (sp.integrate(below * density, (w, 0, t)) + sp.integrate(above * density, (w, t, sp.oo)))

    h = sp.exp(-t)
    assert sp.simplify(mean(w, t) - p * (1 - h)) == 0
    assert sp.simplify(mean(w**2, t**2) - 2 * p * (1 - h * (1 + t))) == 0
    assert sp.simplify(mean(w**2, w * t) - p * (2 - h * (2 + t))) == 0
    assert sp.simplify(mean(w, w) - p) == 0
    assert sp.simplify(mean(w**2, w**2) - 2 * p) == 0


def test_f1_other_features_and_the_angle_drop_out() -> None:
    """On a finite law, with the second feature at 53 degrees: R depends on the first amplitude alone."""
    pairs = np.array(list(itertools.product([0.0, 0.0, 0.4, 1.0, 3.0], [0.0, 2.0, 5.0])))
    x = pairs @ np.array([[1.0, 0.0], [0.6, 0.8]])
    lost = -np.minimum(pairs[:, :1], 0.5)
    first, one = pairs[:, :1] * [1.0, 0.0], lost * [1.0, 0.0]
    whole = upper_bound_terms(x, first, one)
    alone = upper_bound_terms(pairs[:, :1], pairs[:, :1], lost)
    assert whole.interference == pytest.approx(0.0, abs=1e-15)
    assert whole.nonlinear == pytest.approx(alone.nonlinear)
    assert whole.introduced == pytest.approx(alone.introduced)


def test_f1_by_monte_carlo() -> None:
    p, threshold, n = 0.2, 0.5, 1_000_000
    rng = np.random.default_rng(0)
    w = np.where(rng.random(n) < p, rng.exponential(size=n), 0.0)
    lost = -np.minimum(w, threshold)
    found = soft_threshold(p=p, threshold=threshold)
    mean, var_w = -p * -math.expm1(-threshold), 2 * p - p**2
    slope = -math.sqrt(found.predictable / var_w)
    r = lost - mean - slope * (w - p)
    assert abs(_z(r * (w - p), 0.0)) < _LIMIT  # the slope is that of the best predictor
    assert abs(_z(r**2, found.nonlinear)) < _LIMIT
    assert abs(_z((lost - mean) ** 2, found.introduced)) < _LIMIT
    # twins: the second moment without the mean, and a predictor through the origin
    assert abs(_z((lost - mean) ** 2, found.introduced + mean**2)) > 10 * _LIMIT
    assert abs(_z(r**2, found.introduced - (slope * var_w + p * mean) ** 2 / (2 * p))) > 10 * _LIMIT


def _coins(m: int) -> np.ndarray:
    return np.array(list(itertools.product([0.0, 1.0], repeat=m)))


_FRAME = np.array([[1.0, 0.0], [-0.5, math.sqrt(3) / 2], [-0.5, -math.sqrt(3) / 2]])


def test_f2_and_f4_three_coins_on_the_mercedes_frame() -> None:
    coins = _coins(3)
    x, learned = coins @ _FRAME, coins[:, :1] @ _FRAME[:1]
    assert variance(x) == pytest.approx(3 / 4)
    dead = upper_bound_terms(x, learned, -residual(learned, x))
    assert dead.nonlinear == pytest.approx(0.0, abs=1e-15)
    assert dead.introduced == pytest.approx(1 / 12)
    perfect = upper_bound_terms(x, learned, 0.0 * x)
    assert perfect.introduced == 0.0
    assert perfect.nonlinear == pytest.approx(1 / 12)
    # |q|² = v / 3 for any amplitude law of variance v, by T3's formula as well
    response = np.vstack([_FRAME[:1], np.zeros((2, 2))])
    assert interference(0.36 * np.eye(3), _FRAME, response) == pytest.approx(0.12)


def test_one_dead_sae_has_four_answers() -> None:
    coins = _coins(3)
    x, learned = coins @ _FRAME, coins[:, :1] @ _FRAME[:1]
    introduced = {
        "L = 0": -learned,
        "L = -x": x - learned,
        "L = -P S1": -learned + predicted(learned, x),
        "L = -S1": 0.0 * x,
    }
    found = {name: variance(n) for name, n in introduced.items()}
    assert found == pytest.approx({"L = 0": 1 / 4, "L = -x": 1 / 2, "L = -P S1": 1 / 12, "L = -S1": 0.0}, abs=1e-15)


def test_f3_two_coins() -> None:
    coins = _coins(2)
    s, u = coins[:, :1], coins[:, 1:]
    x = s + u
    found = upper_bound_terms(x, s, x / 2 - s)  # E[s | s + u] = x / 2
    assert found.nonlinear == pytest.approx(0.0, abs=1e-16)
    assert (found.introduced, found.interference, found.inner) == pytest.approx((1 / 8, 1 / 8, -1 / 8))


@pytest.mark.parametrize(
    ("noise", "interference_", "introduced", "nonlinear"),
    [(0.2, 0.0277, 0.0026, 0.0251), (0.4, 0.0576, 0.0380, 0.0196), (1.0, 0.0826, 0.0807, 0.0019)],
)
def test_f3_table_of_the_page(noise: float, interference_: float, introduced: float, nonlinear: float) -> None:
    found = optimal_sae(p=0.1, noise=noise)
    values = (found.interference, found.introduced, found.nonlinear)
    assert values == pytest.approx((interference_, introduced, nonlinear), abs=5e-5)


def test_f3_turns_at_one_third() -> None:
    turn = float(brentq(lambda s: optimal_sae(p=0.1, noise=s).excess, 0.1, 1.0))
    assert turn == pytest.approx(0.329, abs=5e-4)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("noise", [1e-4, 0.03, 0.4, 3.0, 1e4])
def test_f3_two_integrals_obey_the_identity(p: float, noise: float) -> None:
    found = optimal_sae(p=p, noise=noise)
    scale = p * (1 - p)
    assert found.nonlinear + found.introduced == pytest.approx(found.interference, rel=1e-10, abs=1e-10 * scale)
    assert found.excess == pytest.approx(found.nonlinear - found.introduced, rel=1e-10, abs=1e-10 * scale)
    twice = optimal_sae(p=p, noise=2 * noise, amplitude=2.0)
    assert twice.introduced == pytest.approx(4 * found.introduced, rel=1e-12)


@pytest.mark.parametrize("noise", [0.4, 1.0])
def test_f3_by_monte_carlo(noise: float) -> None:
    p, n = 0.1, 1_000_000
    rng = np.random.default_rng(1)
    s = (rng.random(n) < p).astype(np.float64)
    x = s + noise * rng.standard_normal(n)
    # Bayes by densities, not by the theory's logistic form
    one, zero = (weight * np.exp(-((x - c) ** 2) / (2 * noise**2)) for c, weight in ((1.0, p), (0.0, 1 - p)))
    recon = one / (one + zero)
    found = optimal_sae(p=p, noise=noise)
    slope = p * (1 - p) / (p * (1 - p) + noise**2)
    r = recon - p - slope * (x - p)
    assert abs(_z(r * (x - p), 0.0)) < _LIMIT
    assert abs(_z((recon - s) * (x - p), 0.0)) < _LIMIT
    assert abs(_z(r**2, found.nonlinear)) < _LIMIT
    assert abs(_z((recon - s) ** 2, found.introduced)) < _LIMIT
    # twins: the linear part left in, and the sum in place of the difference
    assert abs(_z((recon - p) ** 2, found.nonlinear)) > 10 * _LIMIT
    assert abs(_z(r**2, found.interference + found.introduced)) > 10 * _LIMIT


def test_excess_is_the_difference() -> None:
    terms = UpperBoundTerms(nonlinear=3.0, introduced=2.5, interference=1.0, inner=0.5, predictable=1.5)
    assert terms.excess == pytest.approx(0.5)


def test_a_threshold_that_nothing_passes_is_affine() -> None:
    found = soft_threshold(p=0.3, threshold=800.0)
    assert found.nonlinear == pytest.approx(0.0, abs=1e-15)
    assert found.introduced == pytest.approx(2 * 0.3 - 0.09)
    assert soft_threshold(p=1.0, threshold=0.0).introduced == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0.0, "threshold": 1.0}, "p is 0.0"),
        ({"p": 1.1, "threshold": 1.0}, "at most 1"),
        ({"p": 0.5, "threshold": -1.0}, "threshold is"),
        ({"p": 0.5, "threshold": math.nan}, "threshold is"),
        ({"p": 0.5, "threshold": math.inf}, "threshold is"),
    ],
)
def test_soft_threshold_refuses(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        soft_threshold(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.0, "noise": 1.0}, "below 1"),
        ({"p": 0.5, "noise": 0.0}, "noise is"),
        ({"p": 0.5, "noise": 1.0, "amplitude": math.inf}, "amplitude is"),
        ({"p": 0.5, "noise": 1e-9}, "ratio"),
    ],
)
def test_optimal_sae_refuses(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        optimal_sae(**options)


def test_terms_refuse_different_outcomes() -> None:
    with pytest.raises(InputError, match="expected one"):
        upper_bound_terms(np.zeros((3, 2)), np.zeros((4, 2)), np.zeros((3, 2)))
    with pytest.raises(InputError, match="finite"):
        upper_bound_terms(np.zeros((3, 2)), np.full((3, 2), np.nan), np.zeros((3, 2)))
