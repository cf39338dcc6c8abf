"""Statistical promises on worlds with exact population values: intervals cover, the estimator is unbiased."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from darkmatter import Decomposition, decompose
from tests.helpers import ListSource, Matrix

D = 32
RATE, AMPLITUDE_MOMENT = 0.1, 2.0  # gated exponential amplitudes: mean .1, variance .1 · 2 − .1²
VARIANCE = RATE * AMPLITUDE_MOMENT - RATE**2


@dataclass(frozen=True)
class Superposition:
    """4 D sparse features in D dimensions, half learned with 10 % shrinkage, with independent introduced error."""

    dictionary: Matrix
    noise: float = 0.2

    @classmethod
    def of(cls, seed: int) -> Superposition:
        rows = np.random.default_rng(seed).standard_normal((4 * D, D))
        return cls(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def sample(self, n: int, seed: int) -> ListSource:
        rng = np.random.default_rng(seed)
        codes = (rng.random((n, 4 * D)) < RATE) * rng.exponential(1.0, (n, 4 * D))
        learned = codes[:, : 2 * D] @ self.dictionary[: 2 * D]
        recon = 0.9 * learned + self.noise * rng.standard_normal((n, D))
        return ListSource(codes @ self.dictionary, {"sae": recon}, np.arange(n, dtype=np.int64))

    def truth(self) -> dict[str, float]:
        """Population shares from the covariances of independent factors, without any sampling."""
        half = self.dictionary[: 2 * D]
        x = VARIANCE * self.dictionary.T @ self.dictionary
        x_sae = 0.9 * VARIANCE * half.T @ half
        sae = 0.81 * VARIANCE * half.T @ half + self.noise**2 * np.eye(D)
        total = np.trace(x)
        error = np.trace(x - 2 * x_sae + sae)
        nonlinear = np.trace(sae - x_sae.T @ np.linalg.solve(x, x_sae))
        return {
            "fvu": error / total,
            "fvu_nonlinear": nonlinear / total,
            "r2_error": 1 - nonlinear / error,
            "linear_share": (error - nonlinear) / total,
            "gain": np.trace(x_sae) / np.trace(sae),
        }


WORLD = Superposition.of(0)
TRUTH = WORLD.truth()


def repeat(n: int, repeats: int, first_seed: int) -> list[Decomposition]:
    return [decompose(WORLD.sample(n, first_seed + i)) for i in range(repeats)]


def relative(values: npt.ArrayLike, name: str = "fvu_nonlinear") -> tuple[float, float]:
    """Mean relative error against the truth, and its standard error."""
    errors = np.asarray(values) / TRUTH[name] - 1
    return float(errors.mean()), float(stats.sem(errors))


def assert_unbiased(results: list[Decomposition], bound: float) -> None:
    bias, error = relative([r.fvu_nonlinear.value for r in results])
    # five standard errors of the mean, false alarm once in 1.7 million, must fit into the bound
    assert 5 * error < bound
    assert abs(bias) < bound
    # it would fail: the in-sample variance is low by d/n' and the out-of-fold one high by as much
    for half, sign in (("insample", -1), ("heldout", 1)):
        bias, error = relative([getattr(r, half) for r in results])
        assert sign * bias > 2 * bound


def test_the_population_values_are_right() -> None:
    source = WORLD.sample(40_000, 7)
    result = decompose(source)
    for name, value in TRUTH.items():
        estimate = getattr(result, name)
        # 2.5 times the 95 % half-width: false alarm once in 20,000 with 19 degrees of freedom
        assert abs(estimate.value - value) < 2.5 * (estimate.high - estimate.low) / 2, name


def test_bias_and_coverage_at_ten_tokens_per_direction() -> None:
    results = repeat(10 * D, 120, 1000)
    assert_unbiased(results, 0.02)
    for name, value in TRUTH.items():
        covered = sum(getattr(r, name).contains(value) for r in results)
        # nominal 95 %, promised 92 % at n = 10 d: fewer than 99 of 120 has probability 2e-4, for each of five numbers
        assert covered >= 99, name
    # it would fail: the same intervals centred on the in-sample variance
    shifted = 0
    for r in results:
        factor = r.insample / r.fvu_nonlinear.value
        shifted += r.fvu_nonlinear.low * factor <= TRUTH["fvu_nonlinear"] <= r.fvu_nonlinear.high * factor
    assert shifted < 99


@pytest.mark.slow
@pytest.mark.parametrize(("per_direction", "promise"), [(4, 0.91), (10, 0.92), (40, 0.93)])
def test_bias_and_coverage_at_full_size(per_direction: int, promise: float) -> None:
    repeats = 1000
    results = repeat(per_direction * D, repeats, 50_000)
    bound = {4: 0.03, 10: 0.01, 40: 0.005}[per_direction]
    assert_unbiased(results, bound)
    least, most = stats.binom(repeats, promise).ppf(1e-4), stats.binom(repeats, 0.975).ppf(1 - 1e-4)
    for name, value in TRUTH.items():
        # false alarm 1e-4 a side and number; above 97.5 % the intervals would be needlessly wide
        assert least <= sum(getattr(r, name).contains(value) for r in results) <= most, name
