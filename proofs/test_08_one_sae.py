"""T5, attacked; and the page's numbers and algebra, recomputed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sympy as sp

from darkmatter import InputError, Surgical, World
from darkmatter.claims import AnyClaim
from darkmatter.claims.one_sae import CLAIMS
from darkmatter.sandbox import population_shares
from darkmatter.sandbox.factor_space import FactorSpace
from darkmatter.theory.one_sae import published_bracket, published_world, shrinkage_line
from darkmatter.theory.one_sae_moments import (
    SecondMoments,
    ShrunkFeatures,
    alternative,
    feature_wise_bracket,
    uniform_bracket,
)
from darkmatter.theory.one_sae_sample import held_out_share
from darkmatter.theory.population import cross, predicted, residual, variance
from proofs.checks import check_claim, check_twin

__all__ = ["CLAIMS"]

Floats = np.typing.NDArray[np.float64]


def test_claim(claim: AnyClaim) -> None:
    check_claim(claim)


def test_twin(claim: AnyClaim, twin: str) -> None:
    check_twin(claim, twin)


def test_t5a_as_algebra() -> None:
    beta, s, t, a, b = sp.symbols("beta s t a b", positive=True)
    # the best multiple of x predicts U up to t² a + (1 − t)² b
    left = t**2 * a + (1 - t) ** 2 * b
    best = sp.solve(sp.diff(left, t), t)[0]
    assert sp.simplify(left.subs(t, best) - a * b / (a + b)) == 0
    # Cov U proportional to Cov S1 and uniform shrinkage: f R² is the square of Cov(x, e) / Var x
    alpha = 1 - beta
    linear = beta + s**2 * alpha - (1 - s) ** 2 * alpha * beta
    assert sp.expand(linear - (beta + s * alpha) ** 2) == 0


@pytest.mark.parametrize(
    ("fvu", "r2", "low", "high"),
    [
        (0.15, 0.5, 0.0, 0.075),
        (0.25, 0.5, 0.0, 0.125),
        (0.35, 0.5, 0.0, 0.175),
        (0.25, 0.1, 0.0919, 0.225),
        (0.35, 0.2, 0.0854, 0.28),
        (0.5, 0.5, 0.0, 0.25),
    ],
)
def test_the_published_brackets_of_the_page(fvu: float, r2: float, low: float, high: float) -> None:
    bracket = published_bracket(fvu, r2)
    assert [bracket.low, bracket.high] == pytest.approx([low, high], abs=5e-5)
    for share in (bracket.low, bracket.high):
        assert published_world(fvu, r2, share).introduced == share


def test_published_bracket_at_its_limits() -> None:
    assert published_bracket(0.0, 0.7) == published_bracket(0.0, 0.0)
    dead = published_bracket(1.0, 1.0)
    assert (dead.low, dead.high) == (0.0, 0.0)
    noise = published_bracket(1.8, 0.0)  # nothing of the error is linear: all of it is introduced
    assert (noise.low, noise.high) == (1.8, 1.8)


@pytest.mark.parametrize(
    ("fvu", "r2", "message"),
    [
        (-0.1, 0.5, "fvu is -0.1"),
        (float("nan"), 0.5, "fvu is nan"),
        (float("inf"), 0.5, "not a percentage"),
        (0.3, -0.2, "r2 is -0.2, .* pass 0 then"),
        (0.3, 1.2, "r2 is 1.2"),
        (2.0, 0.9, r"fvu \* r2 is 1.8"),
    ],
)
def test_published_numbers_that_cannot_be(fvu: float, r2: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        published_bracket(fvu, r2)


def test_other_inputs_that_cannot_be() -> None:
    two = np.eye(2)
    moments = SecondMoments(two, two / 2, two / 2)
    with pytest.raises(InputError, match="in the bracket"):
        published_world(0.25, 0.1, 0.05)
    with pytest.raises(InputError, match="recon >= 0"):
        shrinkage_line(-1.0, 0.5, 0.1)
    with pytest.raises(InputError, match="cross has shape"):
        SecondMoments(two, np.eye(3), two)
    with pytest.raises(InputError, match="recon is not symmetric"):
        SecondMoments(two, two, np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(InputError, match="spread is 0"):
        uniform_bracket(moments, spread=0.0)
    with pytest.raises(InputError, match="cross is not symmetric"):
        alternative(SecondMoments(two, np.array([[0.5, 0.2], [0.0, 0.5]]), two), 0 * two)
    with pytest.raises(InputError, match="introduced has a negative eigenvalue"):
        alternative(moments, -two)
    with pytest.raises(InputError, match="at most the covariance of the nonlinear error"):
        alternative(moments, two / 3)  # Cov r is I / 4
    with pytest.raises(InputError, match=r"cross - \(recon - introduced\)"):
        alternative(SecondMoments(two, two / 2, two), 0 * two)  # over-scaled: without N it cannot be
    with pytest.raises(InputError, match="expected \\(K, d, d\\) twice"):
        held_out_share(np.ones((2, 2, 2)), np.ones((2, 2, 2)), np.ones(3))
    with pytest.raises(InputError, match="drop empty folds"):
        held_out_share(np.ones((2, 2, 2)), np.ones((2, 2, 2)), np.array([1.0, 0.0]))


def test_the_worked_example_of_t5d() -> None:
    # two orthonormal features that fill x; the first comes back whole, the second shrunk by a half
    world = ShrunkFeatures(np.eye(2), np.array([1.0, 0.5]), np.zeros((2, 2)), np.zeros((2, 2)))
    end = uniform_bracket(world.moments)
    assert end.least == pytest.approx(1.0)
    assert end.high == pytest.approx(-0.25)  # a variance cannot be below a negative number
    wide = feature_wise_bracket(world.moments)
    assert [wide.low, wide.high] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert uniform_bracket(world.moments, spread=0.5).high == pytest.approx(0.5)


def test_the_positive_part_of_the_page() -> None:
    ones = np.ones((2, 2))
    moments = ShrunkFeatures(np.array([[1.0, 0.0]]), np.array([0.5]), np.zeros((2, 2)), ones).moments
    assert feature_wise_bracket(moments).low == pytest.approx(1.883, abs=5e-4)
    assert moments.nonlinear == pytest.approx(ones)
    assert alternative(moments, ones).retained == pytest.approx([0.5])
    with pytest.raises(InputError):
        alternative(moments, 0.99 * ones)


def test_the_two_truths_of_the_page() -> None:
    # u is uniform on an interval: its variance is 1/12 and nothing else of it matters
    v, w = 1.0, 1.0 / 12.0
    r = v * w / (v + w)
    assert r == pytest.approx(1 / 13)
    assert r / (v + w) == pytest.approx(12 / 169)
    moments = SecondMoments(np.array([[v + w]]), np.array([[v]]), np.array([[v]]))
    assert feature_wise_bracket(moments).high == pytest.approx(r)
    for introduced in (0.0, r):
        world = alternative(moments, np.array([[introduced]]))
        assert world.moments.cross == pytest.approx(np.array([[v]]))
    assert world.retained == pytest.approx([12 / 13])


BASE: dict[str, Any] = {
    "n_features": 48,
    "d_model": 12,
    "dense_dim": 0,
    "dense_share": 0.0,
    "l0": 4.0,
    "zipf": 0.5,
    "topic_strength": 0.0,
    "doc_tokens": 1,
    "seed": 1,
}
CLUSTERED = {"exclusion": 4, "dictionary": "clustered", "clusters": 4, "similarity": 0.8}
SAE = Surgical(learned=24, introduced="independent", introduced_share=0.02)


@pytest.mark.parametrize(
    ("options", "sae", "low"),
    [
        ({}, SAE, 0.0200),
        ({}, replace(SAE, shrinkage=0.1), -0.0400),
        ({}, replace(SAE, tilt=20.0), 0.0602),
        ({}, replace(SAE, introduced="interference"), 0.0394),
        (CLUSTERED, SAE, 0.0468),
        ({"correlation": 0.8, "factors": 3}, SAE, 0.0221),
        ({"topic_strength": 1.0, "topics": 4}, SAE, 0.0026),
    ],
)
def test_the_broken_assumptions_of_the_page(options: dict[str, Any], sae: Surgical, low: float) -> None:
    world = World(**{**BASE, **options})
    space, response = FactorSpace.of(world), sae.bind(world).response
    assert response is not None
    exact = population_shares(world, sae)
    assert exact.introduced == pytest.approx(0.02)
    kept = float((space.true * space.apply(response)).sum())
    assert (space.variance(response) - kept) / world.variance + exact.introduced == pytest.approx(low, abs=5e-5)
    assert exact.introduced <= exact.fvu_nonlinear  # the upper end needs none of it


def _l1_decoder(codes: Floats, x: Floats, price: float) -> Floats:
    """Rows that minimise E|x − Σ z_i d_i − b|² + price Σ E z_i |d_i| for uncorrelated codes: soft thresholding."""
    spread = ((codes - codes.mean(axis=0)) ** 2).mean(axis=0)
    rows = cross(codes, x) / spread[:, None]
    lengths = np.linalg.norm(rows, axis=1)
    kept = np.maximum(0.0, 1.0 - price * codes.mean(axis=0) / (2.0 * spread * lengths))
    return np.asarray(kept[:, None] * rows)


@pytest.mark.parametrize("price", [0.0, 0.3, 1.0])
def test_an_l1_price_leaves_the_decoder_short(price: float) -> None:
    rng = np.random.default_rng(5)
    # a full factorial design: codes on or off in every combination, so uncorrelated
    codes = np.array(np.meshgrid([0.0, 1.0], [0.0, 2.0], [0.0, 0.5])).reshape(3, -1).T
    x = codes @ rng.standard_normal((3, 4)) + rng.standard_normal((8, 4))
    decoder = _l1_decoder(codes, x, price)
    recon = codes @ decoder

    def objective(rows: Floats) -> float:
        penalty = price * float(codes.mean(axis=0) @ np.linalg.norm(rows, axis=1))
        return variance(x - codes @ rows) + penalty

    nudges = 1e-3 * rng.standard_normal((50, 3, 4))
    assert all(objective(decoder + nudge) >= objective(decoder) for nudge in nudges)
    short = cross(x, recon) - cross(recon, recon)
    assert short == pytest.approx(short.T)
    eigenvalues = np.linalg.eigvalsh(short)
    assert eigenvalues[0] > -1e-12  # Cov Sae ⪯ Cov(x, Sae): no lower end
    assert (eigenvalues[-1] > 1e-3) == (price > 0.0)


def test_an_optimal_decoder_fits_the_moments_of_a_flawless_one() -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((500, 3)) + 2.0
    codes = np.maximum(x @ rng.standard_normal((3, 6)), 0.0)
    recon = predicted(x, codes)
    moments = SecondMoments(cross(x, x), cross(x, recon), cross(recon, recon))
    flawless = alternative(moments, np.zeros((3, 3)))
    assert flawless.retained == pytest.approx(np.ones(3))  # Cov Sae = Cov(x, Sae): nothing even shrinks
    worst = alternative(moments, moments.nonlinear)
    assert worst.retained.max() < 1.0
    assert np.trace(worst.introduced) == pytest.approx(variance(residual(x - recon, x)))
