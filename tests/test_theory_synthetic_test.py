"""T7: the closed form of the paper's synthetic test, against a world that is that test, samples, and its own laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkmatter.decomposition import decompose
from darkmatter.errors import InputError
from darkmatter.sandbox import Surgical, World, population_covariance, population_shares
from darkmatter.theory import synthetic_test

EPS = np.finfo(np.float64).eps
PAPER = World(n_features=96, d_model=24, dense_dim=24, dense_share=0.2, l0=6.0, topic_strength=0.0, doc_tokens=8)
SAE = Surgical(learned=1.0, introduced="independent", introduced_share=0.1)


def _closed(world: World, sae: Surgical) -> tuple[float, float, float]:
    """FVU, linear and nonlinear share from T7, with S the sparse part of a world whose dense part fills the space."""
    d = world.d_model
    noise = world.dense_variance / d
    values = np.linalg.eigvalsh(population_covariance(world)) - noise
    test = synthetic_test(
        np.maximum(values, 0.0), a=math.sqrt(noise), r=math.sqrt(sae.introduced_share * world.variance / d)
    )
    assert test.noise == pytest.approx(world.dense_share, rel=1e-6)  # F is float32
    assert test.introduced == pytest.approx(sae.introduced_share, rel=1e-6)
    return test.fvu, test.linear, test.nonlinear


def test_a_world_with_a_dense_part_in_every_direction_is_the_synthetic_test() -> None:
    exact = population_shares(PAPER, SAE)
    want = (exact.fvu, exact.fvu - exact.fvu_nonlinear, exact.fvu_nonlinear)
    # two ways to the same numbers in float64; F is float32 and its rows equally long to 1e-7
    assert _closed(PAPER, SAE) == pytest.approx(want, rel=1e-6)
    assert exact.linear == 0.0 and exact.dense == pytest.approx(0.2, rel=1e-6)


def test_decompose_reports_what_the_closed_form_says() -> None:
    fvu, linear, nonlinear = _closed(PAPER, SAE)
    found = decompose(PAPER.pair(SAE, n_tokens=16_384))
    assert found.fvu.contains(fvu) and found.linear_share.contains(linear)  # 95 %, fixed seed
    assert found.fvu_nonlinear.contains(nonlinear)
    # reading the linear share as the activation noise would be wrong here, and the interval is narrow enough to say so
    assert found.linear_share.high < 0.8 * PAPER.dense_share


@given(
    st.lists(st.floats(0.0, 1e6), min_size=1, max_size=12),
    st.floats(1e-3, 1e3),
    st.floats(0.0, 1e3),
)
def test_laws(eigenvalues: list[float], a: float, r: float) -> None:
    test = synthetic_test(eigenvalues, a=a, r=r)
    s, d = np.array(eigenvalues), len(eigenvalues)
    rounding = 1e-12  # sums of at most 12 terms of one sign
    assert test.linear + test.nonlinear == pytest.approx(test.fvu, rel=rounding)
    assert test.fvu == pytest.approx(test.noise + test.introduced, rel=rounding)
    assert 0.0 < test.recovered <= 1.0 + rounding
    assert test.nonlinear >= test.introduced * (1 - rounding)  # T3: what is left bounds what is introduced
    scaled = synthetic_test(9.0 * s, a=3 * a, r=3 * r)
    assert scaled.linear == pytest.approx(test.linear, rel=rounding)
    # by definition, with matrices: regress e on x'
    x, cross = np.diag(s + a**2), a**2 * np.eye(d)
    explained = np.trace(cross @ np.linalg.solve(x, cross))
    assert test.linear == pytest.approx(explained / np.trace(x), rel=1e-10)


def test_samples_agree() -> None:
    rng = np.random.default_rng(0)
    n, a, r = 200_000, 0.7, 0.4
    s = np.array([4.0, 1.0, 0.25, 0.0])
    part = rng.exponential(1.0, (n, 4)) * np.sqrt(s)
    noise = a * rng.standard_normal((n, 4))
    x, error = part + noise, noise - r * rng.standard_normal((n, 4))
    x, error = x - x.mean(axis=0), error - error.mean(axis=0)
    residual = error - x @ np.linalg.lstsq(x, error, rcond=None)[0]
    square, total = (residual**2).sum(axis=1), (x**2).sum(axis=1)
    want = synthetic_test(s, a=a, r=r)
    influence = (square - want.nonlinear * total) / total.mean()
    assert abs(influence.mean()) < 5 * influence.std() / math.sqrt(n)  # false alarm 6e-7
    wrong = (square - 1.02 * want.nonlinear * total) / total.mean()
    assert abs(wrong.mean()) > 5 * wrong.std() / math.sqrt(n)


def test_flat_spectrum_calls_little_of_the_noise_linear_while_correlation_is_high() -> None:
    d, grid = 16, np.array([1.0, 2.0, 3.0, 4.0])
    recovered = [synthetic_test(np.full(d, 100.0), a=a, r=0.0).recovered for a in grid]
    assert recovered == pytest.approx(grid**2 / (100 + grid**2))
    assert 0.0099 < recovered[0] < 0.01 and 0.137 < recovered[-1] < 0.138  # "only 1–14 %"
    # over the grid of both noises the share called linear still follows the true share of the noise
    tests = [synthetic_test(np.full(d, 100.0), a=a, r=r) for a in grid for r in grid]
    assert np.corrcoef([test.noise for test in tests], [test.linear for test in tests])[0, 1] > 0.95


def test_extremes() -> None:
    clean = synthetic_test([1.0, 2.0], a=0.0, r=0.5)
    assert clean.linear == 0.0 and clean.nonlinear == clean.fvu == clean.introduced
    assert math.isnan(clean.recovered) and clean.r2_error == 0.0
    pure = synthetic_test([0.0, 0.0], a=2.0, r=0.0)
    assert pure.fvu == pure.linear == 1.0 and pure.nonlinear == 0.0 and pure.recovered == 1.0
    assert math.isnan(synthetic_test([1.0], a=0.0, r=0.0).r2_error)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eigenvalues": []}, "expected a flat sequence"),
        ({"eigenvalues": [[1.0]]}, r"shape \(1, 1\), expected a flat sequence"),
        ({"eigenvalues": [1.0, -1e-9]}, "finite numbers of at least 0"),
        ({"eigenvalues": [math.nan]}, "finite numbers"),
        ({"a": -1.0}, "a is -1.0, expected a finite number"),
        ({"r": math.inf}, "r is inf"),
        ({"a": math.nan}, "a is nan"),
        ({"eigenvalues": [0.0], "a": 0.0}, "x' does not vary"),
    ],
)
def test_impossible_inputs_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        synthetic_test(**{"eigenvalues": [1.0], "a": 1.0, "r": 1.0, **options})  # type: ignore[arg-type]
