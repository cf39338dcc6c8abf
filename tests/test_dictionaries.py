"""Dictionaries: unit rows, the stated cosines, low coherence against its bounds, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from darkmatter.errors import InputError
from darkmatter.sandbox.coherence import largest_cosine, low_coherence, welch_bound
from darkmatter.sandbox.dictionaries import KINDS, dictionary
from darkmatter.sandbox.features import orthonormal_rows
from darkmatter.sandbox.seeding import generator
from darkmatter.sandbox.table import Table

EPS = float(np.finfo(np.float32).eps)


def _cosines(rows: np.ndarray) -> np.ndarray:
    gram = rows.astype(np.float64) @ rows.T.astype(np.float64)
    np.fill_diagonal(gram, 0.0)
    return gram


def _rms(rows: np.ndarray) -> float:
    m = len(rows)
    return math.sqrt((_cosines(rows) ** 2).sum() / (m * (m - 1)))


@given(
    kind=st.sampled_from(KINDS), m=st.integers(1, 40), d=st.integers(2, 12), seed=st.integers(0, 99), s=st.floats(0, 1)
)
def test_any_dictionary_has_unit_rows_and_repeats(kind: str, m: int, d: int, seed: int, s: float) -> None:
    m = min(m, d) if kind == "orthonormal" else m
    options = {"n_features": m, "d_model": d, "clusters": 3, "similarity": s}
    options["parent"] = np.where(np.arange(m) < 2, -1, (np.arange(m) - 2) // 2)
    rows = dictionary(kind, seed=seed, **options)  # type: ignore[arg-type]
    assert rows.dtype == np.float32 and rows.shape == (m, d) and rows.flags.c_contiguous
    assert np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1).max() < 4 * EPS * math.sqrt(d)
    assert np.array_equal(rows, dictionary(kind, seed=seed, **options))  # type: ignore[arg-type]
    assert not np.array_equal(rows, dictionary(kind, seed=seed + 1, **options))  # type: ignore[arg-type]


def test_random_and_orthonormal_keep_their_draws() -> None:
    # a world's dictionary must not change between versions: these are the documented draws, written out
    raw = generator("dictionary", 7).standard_normal((50, 8), dtype=np.float32)
    want = raw / np.sqrt((raw.astype(np.float64) ** 2).sum(axis=1))[:, None].astype(np.float32)
    assert np.array_equal(dictionary("random", n_features=50, d_model=8, seed=7), want)
    frame = orthonormal_rows(generator("dictionary", 7), rows=5, width=8).astype(np.float32)
    assert np.array_equal(dictionary("orthonormal", n_features=5, d_model=8, seed=7), frame)


def test_random_directions_are_uniform_on_the_sphere() -> None:
    rows = dictionary("random", n_features=20_000, d_model=5, seed=0)
    # a coordinate squared is Beta(1/2, (d − 1)/2); Kolmogorov–Smirnov, false alarm 1e-6 per coordinate
    law = stats.beta(0.5, 2.0)
    assert min(stats.kstest(rows[:, j].astype(np.float64) ** 2, law.cdf).pvalue for j in range(5)) > 1e-6
    assert stats.kstest(rows[:, 0].astype(np.float64) ** 2, stats.beta(0.5, 2.5).cdf).pvalue < 1e-6


@pytest.mark.parametrize("similarity", [0.0, 0.3, 0.9, 1.0])
def test_clusters_share_a_centre_at_exactly_the_stated_cosine(similarity: float) -> None:
    m, d, clusters, seed = 60, 16, 4, 5
    rows = dictionary("clustered", n_features=m, d_model=d, seed=seed, clusters=clusters, similarity=similarity)
    raw = generator("dictionary", seed).standard_normal((clusters, d), dtype=np.float32).astype(np.float64)
    centres = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    cosines = rows.astype(np.float64) @ centres.T
    own = cosines[np.arange(m), np.arange(m) % clusters]
    assert np.abs(own - similarity).max() < 4 * EPS  # rounding of d entries to float32, each half an eps of its size
    assert similarity == 1.0 or np.abs(cosines[:, 0] - similarity).max() > 0.01  # not true of another's centre


def test_more_clusters_than_features_and_clusters_gather() -> None:
    few = dictionary("clustered", n_features=3, d_model=8, seed=0, clusters=64, similarity=0.5)
    assert few.shape == (3, 8)
    rows = dictionary("clustered", n_features=600, d_model=64, seed=0, clusters=6, similarity=0.7)
    same = (np.arange(600)[:, None] - np.arange(600)) % 6 == 0
    np.fill_diagonal(same, False)
    # the noise parts are independent: E cos = s² within a cluster, with deviation (1 − s²)/√(d − 1) ≈ .064 per pair
    assert abs(_cosines(rows)[same].mean() - 0.49) < 0.01
    assert abs(_cosines(dictionary("random", n_features=600, d_model=64, seed=0))[same].mean()) < 0.01


def test_children_have_the_stated_cosine_with_their_parent_at_every_depth() -> None:
    parent = np.concatenate([[-1, -1, -1], np.repeat(np.arange(3), 4), np.repeat(np.arange(3, 15), 4), [-1]])
    rows = dictionary("hierarchical", n_features=64, d_model=20, seed=3, similarity=0.6, parent=parent)
    cosines = rows.astype(np.float64) @ rows.T.astype(np.float64)
    child = np.flatnonzero(parent >= 0)
    assert np.abs(cosines[child, parent[child]] - 0.6).max() < 4 * EPS
    grandchild = child[parent[parent[child]] >= 0]
    beyond = cosines[grandchild, parent[parent[grandchild]]]
    assert abs(beyond.mean() - 0.36) < 5 * 0.64 / math.sqrt(19 * len(beyond))  # 0.6², up to 5 standard errors
    assert np.abs(beyond - 0.6).max() > 0.1


def test_low_coherence_is_tight_and_far_less_coherent_than_random() -> None:
    for m, d, most in ((512, 32, 2.1), (96, 64, 2.2), (400, 16, 2.6)):
        start = dictionary("random", n_features=m, d_model=d, seed=1)
        rows = dictionary("low-coherence", n_features=m, d_model=d, seed=1)
        bound = welch_bound(m, d)
        assert bound * (1 - 1e-6) <= _rms(rows) <= bound * (1 + 1e-4) < _rms(start)
        assert largest_cosine(rows) <= most * bound < 0.75 * largest_cosine(start)
        spread = rows.T.astype(np.float64) @ rows
        assert np.abs(spread - m / d * np.eye(d)).max() < 0.02 * m / d  # a tight frame: Y'Y = (m / d) I


@given(m=st.integers(1, 60), d=st.integers(1, 60), seed=st.integers(0, 99))
def test_low_coherence_never_makes_it_worse_and_never_beats_the_bound(m: int, d: int, seed: int) -> None:
    start = dictionary("random", n_features=m, d_model=d, seed=seed)
    before = start.copy()
    rows = low_coherence(start)
    assert np.array_equal(start, before)
    assert np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1).max() < 4 * EPS * math.sqrt(d)
    bound = welch_bound(m, d)
    assert largest_cosine(rows) >= bound - 8 * EPS * math.sqrt(d)
    if m <= d:
        assert largest_cosine(rows) < 8 * EPS * math.sqrt(d)
    elif m > 1:
        assert _rms(rows) <= max(_rms(start), bound) + 1e-3


def test_the_simplex_is_found() -> None:
    # d + 1 vectors reach the bound: a regular simplex, every cosine −1/d
    rows = dictionary("low-coherence", n_features=5, d_model=4, seed=0)
    assert np.abs(np.abs(_cosines(rows))[~np.eye(5, dtype=bool)] - 0.25).max() < 0.02


def test_largest_cosine_looks_at_every_pair() -> None:
    rows = dictionary("random", n_features=1300, d_model=40, seed=2)  # more than two blocks
    assert largest_cosine(rows) == pytest.approx(np.abs(_cosines(rows)).max(), abs=8 * EPS)
    for i, j in ((0, 1299), (511, 512), (1030, 1031), (700, 20)):
        near = rows.copy()
        near[j] = -near[i]
        assert largest_cosine(near) == pytest.approx(1.0, abs=8 * EPS)
    assert largest_cosine(rows[:1]) == 0.0


def test_own_directions_are_kept_and_made_exactly_unit() -> None:
    rows = dictionary("random", n_features=10, d_model=4, seed=0).astype(np.float64)
    got = dictionary(Table(rows * (1 + 5e-5)), n_features=10, d_model=4, seed=3)
    assert got.dtype == np.float32 and np.abs(got - rows).max() < 2 * EPS
    with pytest.raises(InputError, match=r"shape \(10, 4\), expected \(n_features, d_model\) = \(4, 10\)"):
        dictionary(Table(rows), n_features=4, d_model=10, seed=0)
    rows[7] *= 1.001
    with pytest.raises(InputError, match=r"row 7 has norm 1\.001, expected unit rows"):
        dictionary(Table(rows), n_features=10, d_model=4, seed=0)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("onehot", {}, "dictionary is 'onehot', expected a Table or one of random, orthonormal, low-coherence"),
        ("orthonormal", {}, "use dictionary='random'"),
        ("clustered", {"similarity": 1.1}, "similarity is 1.1"),
        ("clustered", {"similarity": -0.1}, "similarity is -0.1"),
        ("clustered", {"similarity": float("nan")}, "similarity is nan"),
        ("clustered", {"clusters": 0}, "clusters is 0"),
        ("clustered", {"d_model": 1}, "d_model is 1, expected at least 2"),
        ("hierarchical", {}, "set roots, branching and depth"),
        ("hierarchical", {"parent": np.array([-1, 0])}, "parent has shape (2,), expected (9,)"),
        ("hierarchical", {"parent": np.arange(9)}, "indices of earlier features"),
        ("hierarchical", {"parent": np.full(9, -2)}, "indices of earlier features"),
    ],
)
def test_impossible_dictionaries_are_refused_in_one_line(kind: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        dictionary(kind, **{"n_features": 9, "d_model": 5, "seed": 0, **options})  # type: ignore[arg-type]
    assert message in str(caught.value) and "\n" not in str(caught.value)
