"""The whole space of configurations: any possible world draws what its oracle says, any other gives one clear line."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from darkmatter.claims.strategies import world_options, worlds
from darkmatter.errors import InputError
from darkmatter.sandbox import World, population_covariance
from darkmatter.sandbox.table import Table

CHUNKS = 20


@given(world_options())
def test_every_configuration_is_a_world_or_one_clear_line(options: dict[str, Any]) -> None:
    try:
        world = World(**options)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) > 20
        return
    chunk = world.chunk(0)
    assert np.isfinite(chunk.x).all() and chunk.x.shape == (world.chunk_tokens, world.d_model)
    assert (chunk.codes.data > 0).all()
    exact = chunk.codes @ world.dictionary_matrix.astype(np.float64) + chunk.dense.astype(np.float64)
    size = np.abs(chunk.codes) @ np.abs(world.dictionary_matrix) + np.abs(chunk.dense_coords) @ np.abs(chunk.dense_map)
    # (terms of a sum) · eps · Σ|terms|, with fewer than 100 terms a row
    assert (np.abs(chunk.x - exact) <= 100 * np.finfo(np.float32).eps * (size + 1e-30)).all()


WILD = {
    "n_features": st.integers(-1, 40),
    "d_model": st.integers(-1, 8),
    "dense_dim": st.integers(-1, 9),
    "l0": st.floats(allow_nan=True, allow_infinity=True),
    "zipf": st.floats(allow_nan=True),
    "amplitude": st.sampled_from(["exponential", "gamma", "lognormal", "cauchy", None]),
    "amplitude_shape": st.floats(-1, 5),
    "amplitude_first": st.floats(-1, 2),
    "dictionary": st.sampled_from(["random", "hierarchical", "orthonormal", "own", 3]),
    "similarity": st.floats(-0.5, 1.5),
    "firing": st.sampled_from(["zipf", "linear", "poisson", Table(np.ones(5)), Table(np.array([1.0, -1.0, 2.0]))]),
    "correlation": st.floats(-0.5, 1.5),
    "factors": st.integers(0, 3),
    "roots": st.integers(-1, 4),
    "branching": st.integers(0, 4),
    "depth": st.integers(-1, 3),
    "siblings": st.sampled_from(["exclusive", "twins"]),
    "exclusion": st.integers(0, 50),
    "dense": st.sampled_from(["student", "torus", "circles", "klein", True]),
    "dense_share": st.floats(-0.2, 1.2),
    "dense_df": st.floats(0, 8),
    "seed": st.integers(-2, 2),
}


@settings(max_examples=150)
@given(st.fixed_dictionaries({}, optional=WILD))
def test_nonsense_is_refused_in_one_line_and_nothing_else(options: dict[str, Any]) -> None:
    base = {"n_features": 12, "d_model": 6, "dense_dim": 3, "l0": 1.0}
    try:
        World(**{**base, **options}).chunk(0)
    except InputError as error:
        assert "\n" not in str(error)


@settings(max_examples=15)
@given(worlds(most_features=30))
def test_activations_have_the_moments_of_the_oracle(world: World) -> None:
    covariance = population_covariance(world)
    assert np.isclose(np.trace(covariance), world.variance, rtol=1e-6)
    assert abs(world.dense_variance / world.variance - world.dense_share) < 2e-6  # F is rounded to float32
    directions = np.linalg.qr(np.random.default_rng(world.seed).standard_normal((world.d_model, 3)))[0]
    means, squares = [], []
    for index in range(CHUNKS):
        x = world.chunk(index, stream="moments").x.astype(np.float64) - world.mean
        means.append((x @ directions).mean(axis=0))
        squares.append(((x @ directions) ** 2).mean(axis=0))
    exact = np.einsum("dj,de,ej->j", directions, covariance, directions)
    # chunks are independent; 6 statistics in 15 worlds, Student t with 19 degrees of freedom: false alarm 1e-5 in all
    limit = stats.t.isf(1e-5 / 180, CHUNKS - 1)
    for sample, wanted in ((np.array(means), np.zeros(3)), (np.array(squares), exact)):
        error = sample.std(axis=0, ddof=1) / np.sqrt(CHUNKS)
        assert (np.abs(sample.mean(axis=0) - wanted) <= limit * error + 1e-7 * world.variance).all()


@given(worlds(), st.integers(1, 6000), st.integers(1, 9000))
def test_any_world_survives_json_and_any_cut(world: World, batch_size: int, start: int) -> None:
    again = World.from_json(world.to_json())
    assert again == world and hash(again) == hash(world)
    assert again.to_json() == world.to_json()
    whole = torch.cat(list(world.activations(9001, batch_size=9001)))
    assert torch.equal(torch.cat(list(again.activations(9001, batch_size=batch_size))), whole)
    assert torch.equal(torch.cat(list(world.activations(9001, start=start))), whole[start:])


def test_foreign_json_is_refused() -> None:
    for text, message in (
        ("[1]", "a JSON list, expected an object"),
        ("{", "not JSON"),
        (json.dumps({"format": "other"}), "world has format 'other' version None"),
        (json.dumps({**World().to_dict(), "firing": {"dtype": "int8"}}), "table is"),
        (json.dumps({**World().to_dict(), "l0": -1}), "l0 is -1"),
    ):
        with pytest.raises(InputError, match=message):
            World.from_json(text)
