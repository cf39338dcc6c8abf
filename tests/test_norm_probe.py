"""The closed form of the norm tests: against samples, against `decompose`, against the formulas of appendix A."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from darkmatter.decomposition import decompose
from darkmatter.errors import InputError
from darkmatter.sandbox import Surgical, World
from darkmatter.sandbox.norm_probe import norm_probe

Matrix = npt.NDArray[np.float64]

WORLD = World(
    n_features=30, d_model=8, dense_dim=3, l0=5.0, zipf=0.5, dense_share=0.4, topic_strength=0.0, doc_tokens=1, seed=5
)
SAE = Surgical(learned=15, shrinkage=0.2, tilt=30.0, introduced="independent", introduced_share=0.1)
WORLDS = {
    "gaussian": WORLD,
    "no dense part": replace(WORLD, dense_dim=0, dense_share=0.0),
    "student": replace(WORLD, dense="student", dense_df=40.0, amplitude="half-normal"),
    "sphere": replace(WORLD, dense="sphere", amplitude="constant"),
    "torus": replace(WORLD, dense="torus", amplitude="uniform", amplitude_first=0.5),
    "swiss-roll": replace(WORLD, dense="swiss-roll", amplitude="gamma", amplitude_shape=4.0, amplitude_last=2.0),
}


def sample(world: World, sae: Surgical, n_tokens: int) -> tuple[Matrix, Matrix]:
    """x and Sae(x) of independent tokens."""
    bound = sae.bind(world)
    chunks = [world.chunk(i, stream="sample") for i in range(n_tokens // world.chunk_tokens)]
    x = np.concatenate([chunk.x for chunk in chunks])
    return x.astype(np.float64), np.concatenate([bound.recon(chunk) for chunk in chunks]).astype(np.float64)


def r2_and_error(x: Matrix, rows: Matrix) -> tuple[float, float]:
    """R² of the squared norms on x, and its standard error from the influence of every token."""
    norms = (rows**2).sum(axis=1)
    design = np.column_stack([np.ones(len(x)), x])
    residual = norms - design @ np.linalg.lstsq(design, norms, rcond=None)[0]
    total = (norms - norms.mean()) ** 2
    ratio = (residual**2).mean() / total.mean()
    influence = (residual**2 - ratio * total) / total.mean()  # the fitted map drops out (envelope theorem)
    return 1.0 - ratio, float(influence.std() / math.sqrt(len(x)))


@pytest.mark.parametrize("name", WORLDS)
def test_closed_form_against_samples(name: str) -> None:
    world = WORLDS[name]
    exact = norm_probe(world, SAE)
    x, recon = sample(world, SAE, 131_072)
    for want, rows in ((exact.x, x), (exact.error, x - recon), (exact.recon, recon)):
        got, error = r2_and_error(x, rows)
        # R² is too large by d / n < 1e-4 in a sample; 18 values within 5.5 standard errors: false alarm 7e-7
        assert abs(got - want) < 5.5 * error + 1e-4, name
        assert error < 0.01 * (1 - want) and 0.0 < want < 1.0


def test_each_term_matters() -> None:
    # in this world the pieces that could be forgotten move the values by more than the tolerance of the test above
    world = WORLDS["swiss-roll"]
    exact = norm_probe(world, SAE)
    for change in (
        {"dense": "gaussian"},
        {"amplitude": "exponential", "amplitude_shape": 1.0},
        {"amplitude_last": 1.0},
    ):
        other = norm_probe(replace(world, **change), SAE)  # type: ignore[arg-type]
        assert abs(other.x - exact.x) > 0.02, change
    assert abs(norm_probe(world, replace(SAE, introduced_share=0.0)).error - exact.error) > 0.02
    assert abs(norm_probe(world, replace(SAE, tilt=0.0)).recon - exact.recon) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_closed_form_against_a_million_tokens(name: str) -> None:
    world = WORLDS[name]
    exact = norm_probe(world, SAE)
    x, recon = sample(world, SAE, 1 << 20)
    for want, rows in ((exact.x, x), (exact.error, x - recon), (exact.recon, recon)):
        got, error = r2_and_error(x, rows)
        assert abs(got - want) < 5.5 * error + 1e-5, name
        assert error < 0.004


def test_decompose_estimates_the_closed_form() -> None:
    exact = norm_probe(WORLD, SAE)
    found = decompose(WORLD.pair(SAE, n_tokens=65_536))
    for estimate, value in (
        (found.r2_norm_x, exact.x),
        (found.r2_norm, exact.error),
        (found.r2_norm_recon, exact.recon),
    ):
        half = (estimate.high - estimate.low) / 2
        # 2.5 times the 95 % half-width: false alarm once in 20,000 with 19 degrees of freedom
        assert abs(estimate.value - value) < 2.5 * half
        assert half < 0.012


@pytest.mark.parametrize(
    ("amplitude", "shape", "limit"),
    [
        ("constant", 1.0, 1.0),
        ("uniform", 1.0, 15 / 16),
        ("half-normal", 1.0, 8 / (3 * math.pi)),
        ("exponential", 1.0, 3 / 4),
        ("gamma", 3.0, 5 / 6),
        ("lognormal", 1.0, math.exp(-1)),
    ],
)
def test_orthonormal_features_that_fire_seldom(amplitude: str, shape: float, limit: float) -> None:
    options: dict[str, Any] = {"amplitude": amplitude, "amplitude_shape": shape}
    world = World(
        n_features=16,
        d_model=16,
        dense_dim=0,
        dense_share=0.0,
        l0=16e-9,
        firing="constant",
        dictionary="orthonormal",
        topic_strength=0.0,
        **options,
    )
    # R² → M3² / (M2 M4), off by terms of the order of p = 1e-9 times moments up to e^6; float32 rows add 1e-7
    assert norm_probe(world, Surgical(learned=0)).x == pytest.approx(limit, rel=2e-6)


def test_random_directions_with_many_more_features_than_dimensions() -> None:
    world = World(
        n_features=4096, d_model=128, dense_dim=0, dense_share=0.0, l0=2.0, firing="constant", topic_strength=0.0
    )
    # (d / m) M3² / (M2 M4) of appendix A, an approximation for m ≫ d and small p
    assert norm_probe(world, Surgical(learned=0)).x == pytest.approx(128 / 4096 * 0.75, rel=0.1)


def test_a_norm_that_does_not_vary_has_no_r2() -> None:
    assert math.isnan(norm_probe(WORLD, Surgical(learned=0)).recon)
    perfect = norm_probe(WORLDS["no dense part"], Surgical(learned=1.0))
    assert math.isnan(perfect.error)
    assert perfect.recon == pytest.approx(perfect.x, rel=1e-12)


@pytest.mark.parametrize(
    ("world", "sae", "words"),
    [
        (replace(WORLD, topic_strength=0.5), SAE, "only where features are independent"),
        (replace(WORLD, correlation=0.3), SAE, "only where features are independent"),
        (replace(WORLD, dense="codes"), SAE, "only where features are independent"),
        (
            WORLD,
            replace(SAE, introduced="heteroscedastic"),
            "introduced='heteroscedastic'.*expected none or independent",
        ),
        (WORLD, replace(SAE, introduced="affine"), "introduced='affine'"),
        (WORLD, replace(SAE, splitting=0.5), "splitting 0.5"),
    ],
)
def test_what_has_no_closed_form_is_refused(world: World, sae: Surgical, words: str) -> None:
    with pytest.raises(InputError, match=words):
        norm_probe(world, sae)
