"""Surgical SAEs: what they refuse, what they promise, and their closed form against big samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from darkmatter.errors import InputError
from darkmatter.sandbox import Surgical, World, WorldChunk, population_shares
from darkmatter.sandbox.added import KINDS, Squash

WORLD = World(
    n_features=60, d_model=12, dense_dim=3, l0=5.0, dense_share=0.2, topics=4, topic_strength=0.8, doc_tokens=16, seed=5
)
CHUNKS = [WORLD.chunk(i, stream="eval") for i in range(16)]  # 65,536 tokens, 4,096 documents


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learned": -1}, "learned is -1"),
        ({"learned": True}, "learned is True"),
        ({"learned": 0.0}, "pass an int for a number"),
        ({"learned": 1.5}, "expected a share in (0, 1]"),
        ({"learned": float("nan")}, "learned is the float nan"),
        ({"learned": [-2, 3]}, "-2 is negative"),
        ({"learned": [3, 3]}, "more than once"),
        ({"learned": "all"}, "expected a flat sequence of ints"),
        ({"learned": [[1], [2]]}, "expected a flat sequence of ints"),
        ({"shrinkage": 1.0}, "shrinkage is 1.0, expected a finite number of at least 0 and below 1"),
        ({"shrinkage": -0.1}, "shrinkage is -0.1"),
        ({"shrinkage": float("nan")}, "shrinkage is nan"),
        ({"introduced": "gaussian"}, "expected one of none, independent, heteroscedastic, dense"),
        ({"introduced_share": 0.1}, "choose a kind of introduced error (independent, heteroscedastic, dense, function"),
        ({"introduced": "independent", "introduced_share": -0.1}, "introduced_share is -0.1"),
        ({"introduced": "independent", "introduced_share": float("inf")}, "introduced_share is inf"),
        ({"tilt": 90.5}, "tilt is 90.5, expected a finite number of at least 0 and at most 90"),
        ({"tilt": True}, "tilt is True"),
        ({"splitting": 1.5}, "splitting is 1.5, expected a finite number of at least 0 and at most 1"),
        ({"splitting_angle": -1.0}, "splitting_angle is -1.0"),
        ({"absorption": float("nan")}, "absorption is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_saes_are_refused_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Surgical(**{"learned": 5, **options})  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_learned_means() -> None:
    assert Surgical(learned=3).features(60).tolist() == [0, 1, 2]
    assert Surgical(learned=0).features(60).tolist() == []
    assert Surgical(learned=0.25).features(60).tolist() == list(range(15))
    assert Surgical(learned=0.001).features(60).tolist() == [0]
    assert Surgical(learned=1.0).features(60).tolist() == list(range(60))
    assert Surgical(learned=[7, 2]).features(60).tolist() == [7, 2]
    assert Surgical(learned=np.array([7, 2])) == Surgical(learned=(7, 2))
    assert len({Surgical(learned=np.array([7, 2])), Surgical(learned=[7, 2])}) == 1
    with pytest.raises(InputError, match="feature index 60 is out of range"):
        Surgical(learned=[60]).bind(WORLD)
    with pytest.raises(InputError, match="learned is 61"):
        Surgical(learned=61).bind(WORLD)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_recon_is_the_sum_of_its_parts(kind: str) -> None:
    sae = Surgical(learned=20, shrinkage=0.3, introduced=kind, introduced_share=0.1).bind(WORLD)  # type: ignore[arg-type]
    chunk = CHUNKS[0]
    exact = chunk.codes.toarray()[:, :20].astype(np.float64) @ WORLD.dictionary_matrix[:20]
    recon, noise = sae.recon(chunk), sae.introduced(chunk)
    assert recon.dtype == noise.dtype == np.float32
    # sums of fewer than 50 float32 terms, none above 50
    assert np.abs(sae.learned_part(chunk) - exact).max() < 50 * 50 * np.finfo(np.float32).eps
    assert np.abs(recon - (0.7 * exact + noise)).max() < 2 * 50 * 50 * np.finfo(np.float32).eps
    clean = Surgical(learned=20, shrinkage=0.3).bind(WORLD)
    assert not clean.introduced(chunk).any()


@pytest.mark.parametrize("kind", ["independent", "heteroscedastic"])
def test_gaussian_error_is_seeded_by_sae_stream_and_chunk(kind: str) -> None:
    sae = Surgical(learned=20, introduced=kind, introduced_share=0.1)  # type: ignore[arg-type]
    chunk, noise = CHUNKS[0], sae.bind(WORLD).introduced(CHUNKS[0])
    assert np.array_equal(noise, sae.bind(WORLD).introduced(chunk))
    assert np.array_equal(noise[50:80], sae.bind(WORLD).introduced(chunk.rows(50, 80)))
    others = [
        replace(sae, seed=1).bind(WORLD).introduced(chunk),
        sae.bind(WORLD).introduced(replace(chunk, stream="train")),
        sae.bind(WORLD).introduced(replace(chunk, index=1)),
    ]
    for other in others:
        r = np.corrcoef(noise.ravel(), other.ravel())[0, 1]
        assert abs(r) < 0.05  # 49,152 pairs; the heteroscedastic scale at most triples the standard error .0045
    assert np.corrcoef(noise.ravel(), (2 * noise).ravel())[0, 1] > 0.99


def test_a_function_error_depends_on_x_alone_and_is_continuous() -> None:
    sae = Surgical(learned=20, introduced="function", introduced_share=0.1)
    bound, chunk = sae.bind(WORLD), CHUNKS[0]
    noise = bound.introduced(chunk)
    moved = replace(chunk, stream="elsewhere", index=9, codes=chunk.codes * 0)
    assert np.array_equal(noise, bound.introduced(moved))
    assert np.array_equal(noise, replace(sae, seed=1).bind(WORLD).introduced(chunk))
    squash = bound.term
    assert isinstance(squash, Squash)
    # |N(x + δ) − N(x)| ≤ scale · Σ slope_j ‖y_j‖² ‖δ‖, since |tanh'| ≤ 1; float32 adds rounding of the values
    step = np.float32(1e-2) * np.random.default_rng(0).standard_normal(chunk.x.shape, dtype=np.float32)
    change = np.linalg.norm(bound.introduced(replace(chunk, x=chunk.x + step)) - noise, axis=1)
    assert (change <= bound.scale * squash.slopes.sum() * np.linalg.norm(step, axis=1) * 1.001 + 1e-4).all()
    assert change.max() > 1e-3


def _by_document(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, 16, *values.shape[1:]).mean(axis=1)


def test_a_function_error_is_correlated_with_x_and_gaussian_error_is_not() -> None:
    def predictable(kind: str) -> float:
        sae = Surgical(learned=20, introduced=kind, introduced_share=0.07).bind(WORLD)  # type: ignore[arg-type]
        noise = np.concatenate([sae.introduced(c) for c in CHUNKS]).astype(np.float64)
        return 1 - _lstsq_residual(noise).var(axis=0).sum() / noise.var(axis=0).sum()

    assert predictable("function") > 0.3
    # independent noise: R² ~ d/n = 2e-4; heteroscedastic: a few times that
    assert max(predictable("independent"), predictable("heteroscedastic")) < 0.003


def _lstsq_residual(target: np.ndarray) -> np.ndarray:
    x = np.concatenate([c.x for c in CHUNKS]).astype(np.float64)
    design = np.hstack([np.ones((len(x), 1)), x])
    return target - design @ np.linalg.lstsq(design, target, rcond=None)[0]


@pytest.mark.parametrize(
    "sae",
    [
        Surgical(learned=30),
        Surgical(learned=0.5, shrinkage=0.2, introduced="independent", introduced_share=0.05),
        Surgical(learned=range(0, 60, 2), shrinkage=0.4, introduced="heteroscedastic", introduced_share=0.08),
        Surgical(learned=30, tilt=40.0, introduced="dense", introduced_share=0.06),
        Surgical(learned=40, shrinkage=0.1, tilt=15.0, introduced="affine", introduced_share=0.2),
    ],
)
def test_closed_form_agrees_with_regression_on_a_big_sample(sae: Surgical) -> None:
    want, bound = population_shares(WORLD, sae), sae.bind(WORLD)
    x = np.concatenate([c.x for c in CHUNKS]).astype(np.float64)
    error = x - np.concatenate([bound.recon(c) for c in CHUNKS])
    residual = _lstsq_residual(error)
    n, d = x.shape
    v = _by_document(((x - x.mean(axis=0)) ** 2).sum(axis=1))
    e = _by_document(((error - error.mean(axis=0)) ** 2).sum(axis=1))
    r = _by_document((residual**2).sum(axis=1)) * n / (n - d - 1)

    def z(top: np.ndarray, bottom: np.ndarray, share: float) -> float:
        influence = (top - share * bottom) / bottom.mean()  # mean zero at the true ratio; documents are independent
        return float(abs(influence.mean()) / (influence.std() / np.sqrt(len(influence))))

    # at most four ratios by five SAEs, each within 5 standard errors: false alarm 1.2e-5
    assert z(e, v, want.fvu) < 5
    assert z(r, v, want.fvu_nonlinear) < 5
    assert z(e - r, e, want.r2_error) < 5
    if sae.tilt == 0.0:
        parts = _parts(bound.config, CHUNKS)
        assert z(parts, v, want.absent + want.linear + want.cross) < 5
    # and a value that is 5 % off would be noticed
    assert z(r, v, 1.05 * want.fvu_nonlinear) > 5 and z(e, v, 1.05 * want.fvu) > 5


def _parts(sae: Surgical, chunks: list[WorldChunk]) -> np.ndarray:
    """|s S1 + S2|² about its mean, by document."""
    weight = np.ones(60)
    weight[sae.features(60)] = sae.shrinkage
    codes = np.concatenate([c.codes.toarray() for c in chunks]).astype(np.float64)
    part = (codes * weight) @ WORLD.dictionary_matrix
    return _by_document(((part - part.mean(axis=0)) ** 2).sum(axis=1))
