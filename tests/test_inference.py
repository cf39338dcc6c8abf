"""Inference: intervals against a transcription in scipy, and the claim that optimism is symmetric, by Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from darkmatter import Estimate
from darkmatter.inference import (
    UNDEFINED,
    interval,
    raw_variances,
    relative_influence,
    residual_influence,
    squared,
    standard_error,
    symmetric_optimism,
)

EPS = float(np.finfo(np.float64).eps)
FINITE = st.floats(-1e6, 1e6)
SIZES = st.lists(st.integers(1, 1000), min_size=2, max_size=30)


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(FINITE, FINITE, FINITE, FINITE)
def test_an_estimate_is_an_interval(a: float, b: float, c: float, truth: float) -> None:
    low, value, high = sorted((a, b, c))
    estimate = Estimate(value, low, high)
    assert estimate.contains(truth) == (low <= truth <= high)
    assert estimate.contains(low) and estimate.contains(value) and estimate.contains(high)
    other = estimate.complement()
    assert (other.value, other.low, other.high) == (1 - value, 1 - high, 1 - low)
    assert other.low <= other.value <= other.high


def test_an_estimate_writes_itself() -> None:
    estimate = Estimate(0.123456, 0.1, 0.2)
    assert str(estimate) == f"{estimate}" == "0.1235 [0.1000, 0.2000]"
    assert f"{estimate:.1%}" == "12.3% [10.0%, 20.0%]"
    assert str(UNDEFINED) == "nan [nan, nan]"
    assert not UNDEFINED.contains(0.0)


@given(st.floats(-100, 100), SIZES, st.integers(0, 99))
def test_an_interval_is_student_t_on_weighted_folds(value: float, sizes: list[int], seed: int) -> None:
    psi = np.random.default_rng(seed).standard_normal(len(sizes))
    weight = np.array(sizes) / sum(sizes)
    mean = np.average(psi, weights=weight)
    error = math.sqrt(np.average((psi - mean) ** 2, weights=weight) / (len(sizes) - 1))
    low, high = stats.t(df=len(sizes) - 1, loc=value, scale=max(error, 1e-300)).interval(0.95)
    got = interval(value, tensor(psi), tensor(sizes))
    assert (got.value, got.low, got.high) == pytest.approx((value, low, high), rel=1e-10, abs=1e-12)
    assert standard_error(tensor(psi), tensor(sizes)) == pytest.approx(error, rel=1e-12, abs=1e-15)
    logarithmic = interval(abs(value), tensor(psi), tensor(sizes), link="log")
    half = min(high - value, 700.0)
    assert logarithmic.low == pytest.approx(abs(value) * math.exp(value - high), rel=1e-9, abs=1e-300)
    assert logarithmic.high == pytest.approx(abs(value) * math.exp(half), rel=1e-9)
    assert 0 <= logarithmic.low <= logarithmic.value <= logarithmic.high < math.inf


def test_equal_folds_give_the_textbook_interval() -> None:
    means = np.random.default_rng(0).standard_normal(12)
    low, high = stats.t(df=11, loc=means.mean(), scale=stats.sem(means)).interval(0.95)
    got = interval(means.mean(), tensor(means - means.mean()), torch.full((12,), 50.0, dtype=torch.float64))
    assert (got.low, got.high) == pytest.approx((low, high), rel=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_does_not_exist_has_no_interval(value: float) -> None:
    got = interval(value, tensor([0.1, 0.2]), tensor([5, 5]))
    assert math.isnan(got.value) and math.isnan(got.low) and math.isnan(got.high)


def test_an_interval_of_two_wild_folds_stays_finite() -> None:
    got = interval(1e-3, tensor([1e4, -1e4]), tensor([5, 5]), link="log")
    assert (got.low, math.isfinite(got.high)) == (0.0, True)


@given(FINITE, st.floats(0, 1e6), st.floats(0, 1e6))
def test_the_square_of_an_interval_holds_every_square(value: float, below: float, above: float) -> None:
    estimate = Estimate(value, value - below, value + above)
    got = squared(estimate)
    assert 0 <= got.low <= got.value <= got.high
    grid = np.linspace(estimate.low, estimate.high, 101) ** 2
    assert got.low <= grid.min() * (1 + 4 * EPS) and grid.max() <= got.high * (1 + 4 * EPS)
    # and no more: both ends are squares of points of the interval
    assert got.high == max(estimate.low**2, estimate.high**2)
    assert (got.low == 0.0) if estimate.contains(0.0) else (got.low == min(estimate.low**2, estimate.high**2))


@given(SIZES, st.integers(0, 99))
def test_influences_of_a_mean(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    sums = rng.exponential(1.0, len(sizes)) * np.array(sizes)
    got = relative_influence(tensor(sums), tensor(sizes)).numpy()
    assert got == pytest.approx(sums / sizes / (sums.sum() / sum(sizes)) - 1, rel=1e-12, abs=1e-14)
    # influences have weighted mean zero, and shrinking one fold's weight by t moves log mean by its influence, once
    assert abs(np.average(got, weights=sizes)) <= 1e-12
    step = 1e-6
    k = int(rng.integers(len(sizes)))
    weight = np.array(sizes, float)
    weight[k] *= 1 + step
    moved = math.log(np.average(sums / sizes, weights=weight) / np.average(sums / sizes, weights=sizes))
    share = sizes[k] / sum(sizes)
    assert moved == pytest.approx(step * share * got[k], rel=1e-3, abs=1e-12)
    rank = min(3, sum(sizes) - 2)
    if rank >= 0:
        wide = residual_influence(tensor(sums), tensor(sizes), rank).numpy()
        assert wide == pytest.approx(got * math.sqrt(sum(sizes) / (sum(sizes) - rank - 1)), rel=1e-12)
    assert relative_influence(torch.zeros(3, dtype=torch.float64), tensor([1, 2, 3])).tolist() == [0.0] * 3


@given(st.lists(st.floats(-1, 1e6), min_size=2, max_size=9), st.integers(1, 100))
def test_the_estimator_is_the_geometric_mean_of_its_halves(sums: list[float], n: int) -> None:
    train, heldout = tensor(sums), tensor(sums[::-1]) * 2
    n_train = torch.full((len(sums),), 3.0 * n, dtype=torch.float64)
    n_heldout = torch.full((len(sums),), 1.0 * n, dtype=torch.float64)
    s, c = raw_variances(train, heldout, n_train, n_heldout)
    assert s == pytest.approx(max(0.0, sum(sums) / (3 * n * len(sums))), rel=1e-9, abs=1e-9)
    assert c == pytest.approx(max(0.0, 2 * sum(sums) / (n * len(sums))), rel=1e-9, abs=1e-9)
    assert symmetric_optimism(train, heldout, n_train, n_heldout) == pytest.approx(math.sqrt(s * c), rel=1e-12)


def gaussian_split(seed: int, n_train: int, n: int, d: int) -> tuple[float, float]:
    """One train/test split of a Gaussian design with an intercept-free regression; noise variance 1."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n_train, d)), rng.standard_normal(n_train)
    weight, *_ = np.linalg.lstsq(x, y, rcond=None)
    test, noise = rng.standard_normal((n, d)), rng.standard_normal(n)
    return float(((y - x @ weight) ** 2).mean()), float(((noise - test @ weight) ** 2).mean())


def monte_carlo(n_train: int, d: int, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Means and standard errors of S, C and sqrt(S·C) for σ² = 1; S and C are averaged over splits as over folds."""
    draws = np.array([gaussian_split(seed, n_train, 50, d) for seed in range(repeats)])
    s, c = draws.T
    batches = draws.reshape(20, -1, 2).mean(axis=1)  # twenty pooled estimates
    both = np.sqrt(batches[:, 0] * batches[:, 1])
    values = {"S": s.mean(), "C": c.mean(), "both": both.mean()}
    errors = {"S": stats.sem(s), "C": stats.sem(c), "both": stats.sem(both)}
    return values, {key: float(error) for key, error in errors.items()}


@pytest.mark.parametrize(("n_train", "d"), [(40, 10), (100, 10)])
def test_optimism_is_symmetric_for_a_gaussian_design(n_train: int, d: int) -> None:
    values, errors = monte_carlo(n_train, d, 4000)
    gamma = d / n_train
    # exact expectations; five standard errors, false alarm once in 1.7 million each
    assert abs(values["S"] - (1 - gamma)) < 5 * errors["S"]
    # E|A - Â|² is tr E(X'X)⁻¹ = d/(n' - d - 1) for an inverse Wishart: C = 1 + d/(n' - d - 1), 1/(1 - γ) to first order
    assert abs(values["C"] - (1 + d / (n_train - d - 1))) < 5 * errors["C"]
    exact = math.sqrt((1 - gamma) * (1 + d / (n_train - d - 1)))
    assert 1 < exact < 1.008  # what is left of σ² = 1: second order in γ / n'
    # the root of pooled means is below the root of expectations by Jensen: half the relative variance, 0.02 %
    assert abs(values["both"] - exact) < 5 * errors["both"] + 5e-4
    # it would fail: either half alone is off by more than twenty times that
    for half in ("S", "C"):
        assert abs(values[half] - exact) > 0.05 > 5 * errors[half] + 5e-4
