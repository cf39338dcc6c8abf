"""World: impossible configurations, the firing law, and what a stream promises."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkmatter.errors import InputError
from darkmatter.sandbox import World, WorldChunk
from darkmatter.sandbox.features import FIRING_CAP, TOPIC_CAP

SMALL = World(n_features=96, d_model=24, dense_dim=4, l0=6.0, topics=5, topic_strength=0.6, doc_tokens=48, seed=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_features": 0}, "n_features is 0, expected an int of at least 1"),
        ({"n_features": 64.0}, "n_features is 64.0"),
        ({"d_model": -1}, "d_model is -1"),
        ({"dense_dim": -1}, "dense_dim is -1"),
        ({"dense_dim": True}, "dense_dim is True"),
        ({"topics": 0}, "topics is 0"),
        ({"doc_tokens": 0}, "doc_tokens is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"l0": float("nan")}, "l0 is nan"),
        ({"l0": float("inf")}, "l0 is inf"),
        ({"l0": "8"}, "l0 is '8'"),
        ({"l0": 0.0}, "l0 is 0, expected above 0"),
        ({"l0": 48.5}, "at most 48"),
        ({"zipf": -0.1}, "zipf is -0.1"),
        ({"zipf": float("nan")}, "zipf is nan"),
        ({"dense_share": 1.0}, "dense_share is 1.0, expected a finite number of at least 0 and below 1"),
        ({"dense_share": -0.1}, "dense_share is -0.1"),
        ({"dense_dim": 0}, "pass dense_share=0"),
        ({"dense_dim": 25}, "dense_dim is 25, expected at most d_model = 24"),
        ({"topic_strength": 1.5}, "topic_strength is 1.5"),
        ({"dictionary": "onehot"}, "expected one of random, orthonormal, low-coherence"),
        ({"dictionary": "orthonormal"}, "use dictionary='random'"),
    ],
)
def test_impossible_worlds_are_refused_in_one_line(options: dict[str, object], message: str) -> None:
    base = {"n_features": 96, "d_model": 24, "dense_dim": 4, "l0": 6.0}
    with pytest.raises(InputError) as caught:
        World(**{**base, **options})  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    m=st.integers(1, 500),
    fraction=st.floats(1e-6, 1.0),
    zipf=st.floats(0.0, 10.0),
    topics=st.integers(1, 40),
    strength=st.floats(0.0, 1.0),
)
def test_firing_probabilities_sum_to_l0_and_average_out_over_topics(
    m: int, fraction: float, zipf: float, topics: int, strength: float
) -> None:
    l0 = fraction * m / 2
    world = World(n_features=m, d_model=4, dense_dim=1, l0=l0, zipf=zipf, topics=topics, topic_strength=strength)
    p, law = world.firing_rates, world.contexts
    assert abs(p.sum() - l0) <= 1e-9 * max(l0, 1.0)
    assert (p > 0).all() and (p <= FIRING_CAP * (1 + 1e-12)).all() and (np.diff(p) <= 1e-12).all()
    uncapped = p < FIRING_CAP * (1 - 1e-12)
    scale = p[uncapped] * np.arange(1, m + 1)[uncapped] ** zipf  # constant wherever the cap does not bind
    assert np.allclose(scale, scale[:1], rtol=1e-9, atol=0)
    assert np.allclose((law.own + (topics - 1) * law.other) / topics, p, rtol=1e-12, atol=0)
    assert (law.other >= 0).all() and (law.own <= TOPIC_CAP * (1 + 1e-12)).all()
    assert (law.topic >= 0).all() and (law.topic < topics).all()


def test_every_feature_is_capped_when_l0_is_the_maximum() -> None:
    assert np.allclose(World(n_features=10, d_model=4, dense_dim=1, l0=5.0).firing_rates, 0.5)


def test_geometry() -> None:
    assert SMALL.dictionary_matrix.shape == (96, 24)
    assert np.allclose(np.linalg.norm(SMALL.dictionary_matrix, axis=1), 1.0, atol=1e-6)
    f = SMALL.dense_map.astype(np.float64)
    gram = f @ f.T
    assert np.allclose(gram, gram[0, 0] * np.eye(4), atol=1e-6 * gram[0, 0])
    assert abs(SMALL.dense_variance / SMALL.variance - SMALL.dense_share) < 1e-6  # float32 rounding of F
    ortho = World(n_features=24, d_model=24, dense_dim=4, l0=6.0, dictionary="orthonormal").dictionary_matrix
    assert np.allclose(ortho @ ortho.T, np.eye(24), atol=1e-5)


def test_a_chunk_is_the_sum_of_its_parts() -> None:
    chunk = SMALL.chunk(2, stream="eval")
    codes = chunk.codes.toarray().astype(np.float64)
    assert chunk.x.dtype == chunk.codes.dtype == chunk.dense_coords.dtype == np.float32
    assert (codes >= 0).all() and chunk.codes.has_sorted_indices and chunk.codes.has_canonical_format
    exact = codes @ SMALL.dictionary_matrix + chunk.dense_coords.astype(np.float64) @ SMALL.dense_map
    size = codes.sum(axis=1) + np.abs(chunk.dense_coords).sum(axis=1) * np.abs(SMALL.dense_map).max()
    bound = 100 * np.finfo(np.float32).eps * size[:, None]  # (terms of a sum) · eps · Σ|terms|; below 100 terms a row
    assert (np.abs(chunk.x - exact) <= bound).all()
    odd = np.arange(1, 96, 2)
    even = np.arange(0, 96, 2).tolist()
    assert (np.abs(chunk.sparse_part(odd) - codes[:, odd] @ SMALL.dictionary_matrix[odd]) <= bound).all()
    assert (np.abs(chunk.sparse_part(odd) + chunk.sparse_part(even) + chunk.dense - chunk.x) <= 2 * bound).all()
    assert not chunk.sparse_part([]).any()


@pytest.mark.parametrize(
    ("features", "message"),
    [([96], "96 is out of range"), ([-1], "-1 is negative"), ([1, 1], "more than once"), ([0.5], "flat sequence")],
)
def test_wrong_feature_indices_are_refused(features: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SMALL.chunk(0).sparse_part(features)


def test_documents_are_whole_and_have_one_topic() -> None:
    assert SMALL.chunk_tokens == 85 * 48
    chunks = [SMALL.chunk(i, stream=s) for i in range(3) for s in ("train", "eval")]
    ids = np.concatenate([c.groups for c in chunks])
    unique, counts = np.unique(ids, return_counts=True)
    assert ids.dtype == np.int64 and (ids >= 0).all()
    assert len(unique) == 6 * 85 and (counts == 48).all()
    for chunk in chunks:
        assert (chunk.groups.reshape(85, 48) == chunk.groups[::48, None]).all()
        assert (chunk.topics.reshape(85, 48) == chunk.topics[::48, None]).all()


def test_documents_longer_than_a_chunk_and_of_one_token() -> None:
    tall = World(n_features=20, d_model=4, dense_dim=1, l0=2.0, doc_tokens=5000)
    assert len(tall.chunk(0)) == 5000 and len(np.unique(tall.chunk(0).groups)) == 1
    flat = World(n_features=20, d_model=4, dense_dim=1, l0=2.0, doc_tokens=1, topics=300)
    assert len(np.unique(flat.chunk(0).groups)) == len(flat.chunk(0)) == 4096


def _tokens(world: World, n_tokens: int, batch_size: int) -> torch.Tensor:
    batches = list(world.activations(n_tokens, batch_size=batch_size))
    assert {len(b) for b in batches[:-1]} <= {batch_size} and 0 < len(batches[-1]) <= batch_size
    return torch.cat(batches)


def test_the_batch_size_changes_nothing_bit_for_bit() -> None:
    whole = _tokens(SMALL, 9001, 9001)
    assert whole.dtype == torch.float32 and whole.shape == (9001, 24)
    for size in (1000, 4080, 4096, 20000):
        assert torch.equal(_tokens(SMALL, 9001, size), whole)
    assert torch.equal(_tokens(SMALL, 100, 7), whole[:100])


def test_chunks_come_in_any_order_and_make_the_stream() -> None:
    later = SMALL.chunk(1).x
    assert np.array_equal(SMALL.chunk(0).x, World.from_dict(SMALL.to_dict()).chunk(0).x)
    assert np.array_equal(later, SMALL.chunk(1).x)
    stream = _tokens(SMALL, 2 * SMALL.chunk_tokens, 4096).numpy()
    assert np.array_equal(stream[SMALL.chunk_tokens :], later)


def test_a_handed_out_batch_is_never_overwritten() -> None:
    stream = SMALL.activations(12000, batch_size=3000)
    first = next(stream)
    copy = first.clone()
    list(stream)
    assert torch.equal(first, copy)


def test_streams_chunks_and_seeds_are_independent() -> None:
    other_seed = World.from_dict({**SMALL.to_dict(), "seed": 4})
    draws = [SMALL.chunk(0), SMALL.chunk(1), SMALL.chunk(0, stream="eval"), other_seed.chunk(0)]
    n = SMALL.chunk_tokens
    for i, a in enumerate(draws):
        for b in draws[i + 1 :]:
            # the dense coordinates are i.i.d. N(0, 1): a correlation over 4n pairs has standard error 1/√(4n)
            # whatever the other side is; six pairs beyond 5.5 of them: false alarm 2e-7
            r = float((a.dense_coords * b.dense_coords).mean())
            assert abs(r) < 5.5 / np.sqrt(4 * n)
            assert not np.array_equal(a.topics, b.topics)
    assert not np.allclose(SMALL.dictionary_matrix, other_seed.dictionary_matrix)


def test_rows_cuts_every_part_alike() -> None:
    chunk = SMALL.chunk(0)
    cut = chunk.rows(100, 130).rows(5, 20)
    assert isinstance(cut, WorldChunk) and len(cut) == 15 and cut.first_row == 105
    assert np.array_equal(cut.x, chunk.x[105:120]) and np.array_equal(cut.groups, chunk.groups[105:120])
    assert np.array_equal(cut.codes.toarray(), chunk.codes.toarray()[105:120])
    assert np.array_equal(cut.dense_coords, chunk.dense_coords[105:120])
    assert chunk.rows(0, len(chunk)) is chunk


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SMALL.chunk(-1), "chunk index is -1"),
        (lambda: SMALL.chunk(1 << 32), "use a second stream name"),
        (lambda: SMALL.chunk(0, stream=""), "stream is ''"),
        (lambda: SMALL.activations(0), "n_tokens is 0"),
        (lambda: SMALL.activations(10, batch_size=0), "batch_size is 0"),
        (lambda: SMALL.activations(10, stream=3), "stream is 3"),
    ],
)
def test_wrong_requests_are_refused_at_once(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        call()


def test_a_world_survives_json() -> None:
    data = json.loads(json.dumps(SMALL.to_dict(), allow_nan=False))
    assert World.from_dict(data) == SMALL
    with pytest.raises(InputError, match=r"format 'darkmatter\.world' version 9, expected"):
        World.from_dict({**data, "version": 9})
    with pytest.raises(InputError, match=r"unknown \['colour'\]"):
        World.from_dict({**data, "colour": 1})
    with pytest.raises(InputError, match=r"lacks \['zipf'\]"):
        World.from_dict({k: v for k, v in data.items() if k != "zipf"})
