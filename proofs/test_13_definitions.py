"""Definitions, attacked; the page's numbers, its algebra, and the edges of the closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

from darkmatter.claims import AnyClaim
from darkmatter.claims.definitions import CLAIMS
from darkmatter.errors import InputError
from darkmatter.theory.definitions import DEFINITIONS, PairMoments, token_fvu
from darkmatter.theory.ratios import (
    batch_ratio_bias,
    equalising_rotation,
    mean_ratio,
    mean_ratio_range,
    pooled_range,
    pooled_ratio,
    rotation_gap_limit,
    weighting_gap,
)
from proofs.checks import check_claim, check_twin

__all__ = ["CLAIMS"]


def test_claim(claim: AnyClaim) -> None:
    check_claim(claim)


def test_twin(claim: AnyClaim, twin: str) -> None:
    check_twin(claim, twin)


def test_the_thousand_coordinates_of_the_page() -> None:
    s = np.arange(1, 1001) ** -1.5
    r2 = 0.02 / (s + 0.02)
    assert round(mean_ratio(s * r2, s), 3) == 0.971
    assert round(pooled_ratio(s * r2, s), 3) == 0.229
    assert weighting_gap(s * r2, s) == pytest.approx(pooled_ratio(s * r2, s) - mean_ratio(s * r2, s), rel=1e-12)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((1000, 1000)))[0] ** 2
    # over random bases the third decimal is stable: each of 1,000 ratios averages 1,000 variances
    assert mean_ratio(basis @ (s * r2), basis @ s) == pytest.approx(0.285, abs=2e-3)
    assert round(mean_ratio_range(s, pooled_ratio(s * r2, s))[1], 3) == 0.991
    assert pooled_range(0.971, 1000) == (0.0, 1.0)


def test_the_turn_of_the_page_goes_below_the_pooled_value() -> None:
    variances, r2 = np.array([1.0, 6.0, 9.0]), np.array([1.0, 0.5, 0.0])
    c = np.sqrt(0.5)
    turn = np.array([[c, 0.0, c], [0.0, 1.0, 0.0], [-c, 0.0, c]]) ** 2
    assert mean_ratio(variances * r2, variances) == pytest.approx(0.5)
    assert pooled_ratio(variances * r2, variances) == pytest.approx(0.25)
    assert mean_ratio(turn @ (variances * r2), turn @ variances) == pytest.approx(0.7 / 3)


@pytest.mark.parametrize(("mean", "wanted"), [(0.0, -3.0), (3.0, 1.0 - (5.0 + 1.25 / 46.0) / 6.25)])
def test_the_fit_through_the_origin_of_the_page(mean: float, wanted: float) -> None:
    eye, ones = np.eye(5), np.ones(5)
    # e = (x − mean) / 2 + 2 + noise: shifting x leaves e as it is
    moments = PairMoments(mean * ones, 2.0 * ones, eye, 0.5 * eye, 1.25 * eye)
    value = {name: definition.value(moments) for name, definition in DEFINITIONS.items()}
    assert value["r2"] == value["r2-coordinate-mean"] == pytest.approx(0.2)
    assert value["r2-no-intercept"] == pytest.approx(wanted, abs=1e-12)
    assert value["r2-no-intercept-coordinate-mean"] == pytest.approx(wanted, abs=1e-12)
    assert moments.mean_as_intercept == pytest.approx(5 * mean**2)

    # 10^6 samples in 50 blocks, R² of each block; a block's fit of 5 slopes to 20,000 tokens is biased by 3e-4 at most,
    # and 50 blocks leave a standard error of a few 1e-4: 4 standard errors, false alarm 2e-4 (t with 49 degrees)
    rng = np.random.default_rng(1)
    found = []
    for _ in range(50):
        x = rng.standard_normal((20_000, 5))
        e = x / 2 + 2 + rng.standard_normal(x.shape)
        x += mean
        r = e - x @ np.linalg.lstsq(x, e, rcond=None)[0]
        found.append(1 - (r**2).sum() / ((e - e.mean(axis=0)) ** 2).sum())
    error = np.std(found, ddof=1) / np.sqrt(50)
    bias = 5 / 20_000 * (1 - wanted)  # in-sample: each coordinate loses 5 of 20,000 degrees of freedom
    assert abs(np.mean(found) - bias - wanted) < 4 * error
    if not mean:  # that the mean of x replaces nothing is then the truth; nothing to tell apart
        return
    assert abs(np.mean(found) - bias - (1 - (5 + 1.25) / 6.25)) > 4 * error


def test_a_dead_sae_has_a_small_uncentred_fvu() -> None:
    # Var x = 1, |E x|² = 9, Sae = E x
    moments = PairMoments(np.array([3.0]), np.array([0.0]), np.eye(1), np.eye(1), np.eye(1))
    assert DEFINITIONS["fvu"].value(moments) == 1.0
    assert DEFINITIONS["fvu-uncentred"].value(moments) == pytest.approx(0.1)
    good = PairMoments(np.array([3.0]), np.array([0.0]), np.eye(1), np.array([[0.3]]), 0.3 * np.eye(1))
    assert DEFINITIONS["fvu-uncentred"].value(good) == pytest.approx(0.03)
    off = PairMoments(np.array([3.0]), np.array([2.0]), np.eye(1), np.array([[0.3]]), 0.3 * np.eye(1))
    assert DEFINITIONS["fvu-mixed"].value(off) == pytest.approx(4.3)
    assert DEFINITIONS["fvu-coordinate-mean"].value(off) == pytest.approx(0.3)
    assert DEFINITIONS["r2-uncentred"].value(off) == pytest.approx(1 - (0.21 + 1.1**2 / 10) / 4.3)


def test_half_of_everything_has_cosine_one() -> None:
    x = np.random.default_rng(0).standard_normal((100, 4))
    parts = token_fvu(x, x / 2)
    assert parts.angle < 1e-30 and parts.gain == pytest.approx(0.25) and parts.fvu == pytest.approx(0.25)
    assert token_fvu(x, 0 * x).fvu == 1.0
    assert token_fvu(x, -x).fvu == pytest.approx(4.0)


def test_the_algebra_of_the_intercept() -> None:
    # one h, one t: the minimum of (1 − t)² + t²/τ, and Sherman–Morrison in two dimensions
    t, tau = sp.symbols("t tau", positive=True)
    loss = (1 - t) ** 2 + t**2 / tau
    at = sp.solve(sp.diff(loss, t), t)[0]
    assert sp.simplify(at - tau / (1 + tau)) == 0
    assert sp.simplify(loss.subs(t, at) - 1 / (1 + tau)) == 0
    m = sp.Matrix(1, 2, sp.symbols("m1 m2", real=True))
    a, b, c = sp.symbols("a b c", real=True)
    covariance = sp.Matrix([[a, b], [b, c]])
    left = 1 - (m * (covariance + m.T * m).inv() * m.T)[0]
    assert sp.simplify(left - 1 / (1 + (m * covariance.inv() * m.T)[0])) == 0


def test_the_algebra_of_the_cosine_and_of_the_batches() -> None:
    g, angle, delta = sp.symbols("g theta delta", real=True)
    distance = 1 - 2 * g * sp.cos(angle) + g**2
    assert sp.simplify(distance - sp.sin(angle) ** 2 - (g - sp.cos(angle)) ** 2) == 0
    assert sp.simplify(1 / (1 + delta) - (1 - delta + delta**2 / (1 + delta))) == 0


def test_the_limit_of_the_gap_is_attained_by_halves() -> None:
    whole, r2 = np.array([1.0, 1.0, 5.0, 5.0]), np.array([0.9, 0.9, 0.2, 0.2])
    part = whole * (1 - r2)
    gap = abs(pooled_ratio(part, whole) - mean_ratio(part, whole))
    assert gap == pytest.approx(rotation_gap_limit(np.diag(part), np.diag(whole)), rel=1e-12)


@pytest.mark.parametrize("d", [1, 2, 5, 40])
def test_equalising_rotation(d: int) -> None:
    rng = np.random.default_rng(d)
    root = rng.standard_normal((d, d))
    for matrix in (root @ root.T, root + root.T, np.diag(np.arange(d, dtype=float)), np.eye(d)):
        q = equalising_rotation(matrix)
        assert np.allclose(q @ q.T, np.eye(d), atol=1e-12)
        scale = np.abs(matrix).max() + 1.0
        assert np.allclose(np.diag(q @ matrix @ q.T), np.trace(matrix) / d, atol=1e-12 * d * scale)


def test_every_value_between_two_bases_is_attained() -> None:
    # along a path of rotations from the axes to the equalising basis the mean passes through everything between
    variances, r2 = np.array([1.0, 6.0, 9.0]), np.array([1.0, 0.5, 0.0])
    end = equalising_rotation(np.diag(variances))
    if np.linalg.det(end) < 0:
        end[0] *= -1
    values, vectors = np.linalg.eig(end)
    means = []
    for step in np.linspace(0.0, 1.0, 201):
        turn = np.real(vectors @ np.diag(np.exp(step * np.log(values.astype(complex)))) @ np.linalg.inv(vectors)) ** 2
        means.append(mean_ratio(turn @ (variances * r2), turn @ variances))
    assert means[0] == pytest.approx(0.5) and means[-1] == pytest.approx(0.25)
    assert np.abs(np.diff(means)).max() < 0.02


def test_the_ranges_are_attained_and_not_exceeded() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        wholes, ratios = rng.uniform(0.1, 3.0, 6), rng.uniform(0.0, 1.0, 6) ** 3
        pooled, mean = pooled_ratio(wholes * ratios, wholes), mean_ratio(wholes * ratios, wholes)
        low, high = mean_ratio_range(wholes, pooled)
        assert low - 1e-12 <= mean <= high + 1e-12
        first, last = pooled_range(mean, 6)
        assert first - 1e-12 <= pooled <= last + 1e-12
    assert mean_ratio_range([1.0, 3.0], 0.25) == pytest.approx((1 / 6, 0.5))
    # nearly all of the variance in one coordinate, and that one alone unexplained
    wholes, ratios = np.array([1e-9, 1e-9, 1.0]), np.array([1.0, 1.0, 0.4])
    assert pooled_ratio(wholes * ratios, wholes) == pytest.approx(pooled_range(0.8, 3)[0])


def test_a_mean_along_which_x_does_not_vary_is_an_intercept() -> None:
    x = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 3.0]])
    moments = PairMoments.of(x, np.array([[1.0], [5.0], [2.0]]))
    assert moments.mean_as_intercept == np.inf
    assert DEFINITIONS["r2-no-intercept"].value(moments) == DEFINITIONS["r2"].value(moments)


def test_batches_of_independent_tokens() -> None:
    # |e|² independent of |x|²: the mean of batch ratios is too high, by 1/B of Var w / (E w)²
    rng = np.random.default_rng(7)
    w, n = rng.standard_exponential((100_000, 10)) + 1.0, rng.standard_exponential((100_000, 10))
    ratios = n.mean(axis=1) / w.mean(axis=1)
    error = ratios.std() / np.sqrt(len(ratios))
    bias = batch_ratio_bias(ratio=0.5, mean=2.0, variance=1.0, covariance=0.0, batch=10)
    assert bias == pytest.approx(0.5 / 40)
    # the remainder is of order ρ (Var w / (B (E w)²))² · 3 = 0.001; 10^6 tokens, 4 standard errors: false alarm 6e-5
    assert abs(ratios.mean() - 0.5 - bias) < 4 * error + 1e-3
    assert ratios.mean() - 0.5 > 4 * error + 1e-3
    assert abs(ratios.mean() - 0.5 + bias) > 4 * error + 1e-3  # swapped sign


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pooled_ratio([1.0], [0.0]), "wholes have shape"),
        (lambda: mean_ratio([1.0, 2.0], [1.0]), "parts have shape"),
        (lambda: weighting_gap([np.nan], [1.0]), "finite parts"),
        (lambda: mean_ratio_range([1.0], 1.5), "pooled is 1.5"),
        (lambda: pooled_range(-0.1, 3), "mean is -0.1"),
        (lambda: batch_ratio_bias(ratio=1.0, mean=0.0, variance=1.0, covariance=0.0, batch=2), "a positive mean"),
        (lambda: equalising_rotation(np.ones((2, 3))), "expected a finite square matrix"),
        (lambda: equalising_rotation(np.array([[1.0, 2.0], [0.0, 1.0]])), "is not symmetric"),
        (lambda: rotation_gap_limit(np.eye(2), np.diag([1.0, 0.0])), "whole is singular"),
        (lambda: rotation_gap_limit(np.eye(2), np.eye(3)), "expected equal ones"),
        (lambda: token_fvu(np.zeros((1, 2)), np.ones((1, 2))), "no activation zero"),
        (lambda: PairMoments(np.zeros(2), np.zeros(2), np.eye(2), np.eye(3), np.eye(2)), "as by the means"),
    ],
)
def test_nonsense_is_refused_in_one_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_every_definition_says_what_it_is() -> None:
    assert all(name == d.name and d.meaning for name, d in DEFINITIONS.items())
    assert len({d.meaning for d in DEFINITIONS.values()}) == len(DEFINITIONS)
