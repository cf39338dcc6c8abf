"""Arrays as a source: laws of batching, and every up-front check."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkmatter.adapters import as_group_ids, from_arrays
from darkmatter.batch import ResumableSource, check_source, iterate_from
from darkmatter.checks import as_float_tensor
from darkmatter.errors import InputError


def make(n: int = 23, d: int = 5, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    return x, x + 0.1 * rng.standard_normal((n, d))


def collect(batches: Any, name: str = "sae") -> tuple[Any, Any, Any]:
    found = list(batches)
    return (
        torch.cat([as_float_tensor(b.x, "x") for b in found]),
        torch.cat([as_float_tensor(b.recons[name], "recon") for b in found]),
        np.concatenate([b.groups for b in found]),
    )


@given(n=st.integers(1, 60), batch_size=st.integers(1, 70), start=st.integers(0, 5), given_ids=st.booleans())
def test_any_batch_size_yields_every_row_once_and_resuming_equals_skipping(
    n: int, batch_size: int, start: int, given_ids: bool
) -> None:
    x, recon = make(n)
    ids = np.arange(n)[::-1].copy() // 3 if given_ids else None
    source = from_arrays(x, recon, ids, batch_size=batch_size)
    got_x, got_recon, got_ids = collect(source)
    assert np.array_equal(got_x, x)
    assert np.array_equal(got_recon, recon)
    assert np.array_equal(got_ids, np.arange(n) if ids is None else ids)
    skipped = list(source)[start:]
    resumed = list(iterate_from(source, start))
    assert len(resumed) == len(skipped)
    for one, other in zip(resumed, skipped, strict=True):
        assert np.array_equal(one.x, other.x)
        assert np.array_equal(one.groups, other.groups)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "bfloat16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_conforms_to_the_seam_for_every_floating_dtype(dtype: str, order: Any) -> None:
    x, recon = make()
    if dtype == "bfloat16":
        pair: tuple[Any, Any] = (torch.from_numpy(x).bfloat16(), torch.from_numpy(recon).bfloat16())
    else:
        pair = (np.array(x, dtype=dtype, order=order), np.array(recon, dtype=dtype, order=order))
    source = from_arrays(pair[0], {"a": pair[1], "b": pair[0] * 0}, batch_size=10)
    assert isinstance(source, ResumableSource)
    checked = check_source(source)
    assert (checked.n_tokens, checked.n_groups, checked.n_batches) == (23, 23, 3)
    assert source.names == ("a", "b")
    assert source.d_model == 5
    assert source.description["documents"] == "each token is its own document"


def test_a_memory_map_is_sliced_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, recon = make(1000, 4)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    largest: list[int] = []
    original = np.memmap.__getitem__

    def spy(self: Any, index: Any) -> Any:
        rows = original(self, index)
        largest.append(len(rows))
        return rows

    monkeypatch.setattr(np.memmap, "__getitem__", spy)
    source = from_arrays(mapped, recon, batch_size=64)
    assert max(largest) == 1  # building looks at single rows only
    got = collect(source)[0]
    assert max(largest) == 64
    assert np.array_equal(got, x)


def test_batches_of_a_memory_map_are_ordinary_writable_arrays(tmp_path: Path) -> None:
    x, recon = make()
    np.save(tmp_path / "x.npy", x)
    batch = next(iter(from_arrays(np.load(tmp_path / "x.npy", mmap_mode="r"), recon)))
    assert type(batch.x) is np.ndarray
    assert batch.x.flags.writeable


def test_groups_of_a_batch_do_not_alias_the_source() -> None:
    source = from_arrays(*make(), np.zeros(23, dtype=np.int64))
    next(iter(source)).groups[:] = 7
    assert not next(iter(source)).groups.any()


@pytest.mark.parametrize(
    "labels",
    [["a", "b", "a", "ß"], np.array(["a", "b", "a", "ß"]), np.array(["a", "b", "a", "ß"], dtype=object)],
    ids=["list", "fixed width", "object"],
)
def test_string_ids_hash_to_the_blake2b_of_their_utf8(labels: Any) -> None:
    want = [
        int.from_bytes(hashlib.blake2b(s.encode(), digest_size=8).digest(), "little", signed=True)
        for s in ["a", "b", "a", "ß"]
    ]
    assert as_group_ids(labels).tolist() == want


def test_string_hash_is_stable_across_versions() -> None:
    assert as_group_ids(["a", "document 17"]).tolist() == [3405396810240292928, 310756066802333919]


@given(st.lists(st.text(max_size=4), min_size=1, max_size=30))
def test_string_ids_are_equal_exactly_where_the_strings_are(labels: list[str]) -> None:
    ids = as_group_ids(labels).tolist()
    assert len(set(ids)) == len(set(labels))
    assert [ids[labels.index(s)] for s in labels] == ids


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "uint64"])
def test_integer_ids_keep_their_value(dtype: str) -> None:
    assert as_group_ids(np.array([3, 1, 3], dtype=dtype)).tolist() == [3, 1, 3]
    assert as_group_ids(torch.tensor([3, 1, 3])).tolist() == [3, 1, 3]
    assert as_group_ids([3, 1, 3]).dtype == np.int64


def test_huge_unsigned_ids_stay_distinct() -> None:
    ids = as_group_ids(np.array([2**63, 2**64 - 1, 0, 1], dtype=np.uint64))
    assert len(set(ids.tolist())) == 4


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros(4), "float64"),
        (np.zeros(4, dtype=bool), "bool"),
        (np.zeros((4, 1), dtype=int), r"shape \(4, 1\)"),
        (torch.zeros(4, dtype=torch.bfloat16), "bfloat16"),
        (["a", 1], "only integers or only strings"),
        ([True, False], "bool"),
        ([1.5], "float"),
        ([None], "NoneType"),
        ([2**70], "64 bits"),
        ("abcd", r"shape \(\)"),
        (np.ma.masked_array([1, 2], mask=[0, 1]), "masked"),
    ],
)
def test_bad_ids_are_refused(labels: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        as_group_ids(labels)


def test_ids_reach_the_batches_and_the_description() -> None:
    x, recon = make(6)
    source = from_arrays(x, recon, ["p", "p", "q", "q", "q", "r"], batch_size=4, description={"site": "resid_post:2"})
    first, second = source
    assert first.groups[0] == first.groups[1] != first.groups[2]
    assert first.groups[3] == second.groups[0] != second.groups[1]
    assert source.description["n_documents"] == 3
    assert source.description["documents"] == "ids given"
    assert source.description["site"] == "resid_post:2"
    assert source.description["n_tokens"] == 6


def test_fingerprint_tells_data_apart_and_is_reproducible() -> None:
    x, recon = make()

    def mark(a: Any, b: Any, groups: Any = None) -> Any:
        return from_arrays(a, b, groups).description["fingerprint"]

    base = mark(x, recon)
    assert mark(x.copy(), recon.copy()) == base
    changed_last, changed_first = x.copy(), recon.copy()
    changed_last[-1, -1] += 1
    changed_first[0, 0] += 1
    ids = np.arange(23)
    moved = ids.copy()
    moved[11] = 0
    marks = [base, mark(changed_last, recon), mark(x, changed_first), mark(x.astype("f4"), recon)]
    marks += [mark(x, recon, ids), mark(x, recon, moved), from_arrays(x, recon, name="b").description["fingerprint"]]
    assert len(set(marks)) == len(marks)


X, R = make()


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((X, R.T), {}, "transposed"),
        ((X, R[:-1]), {}, r"\(22, 5\), expected \(23, 5\)"),
        ((X[:, 0], R), {}, r"x has shape \(23,\)"),
        ((X[None], R), {}, "flatten"),
        ((X.T, R.T, np.arange(23)), {}, "x looks transposed"),
        ((X, R, np.arange(22)), {}, r"groups has shape \(22,\), expected \(23,\)"),
        ((X, R, np.arange(23.0)), {}, "float64"),
        ((X.astype(int), R), {}, "int64"),
        ((X.astype(complex), R), {}, "complex128"),
        ((X.astype(object), R), {}, "object"),
        ((X, R.astype(np.longdouble)), {}, "float"),
        ((torch.zeros(23, 5, dtype=torch.int32), R), {}, "int32"),
        ((X.tolist(), R), {}, "list"),
        ((X, None), {}, "NoneType"),
        ((X, {}), {}, "empty mapping"),
        ((X, {1: R}), {}, "SAE name 1"),
        ((X, {"": R}), {}, "non-empty str"),
        ((X, R), {"name": ""}, "non-empty str"),
        ((X, {"a": R, "b": R.T}), {}, "recon 'b'"),
        ((X[:0], R[:0]), {}, "at least one token"),
        ((X[:, :0], R[:, :0]), {}, "at least one token"),
        ((X, X), {}, "did you pass x twice"),
        ((X, X[:]), {}, "did you pass x twice"),
        ((np.ma.masked_array(X), R), {}, "masked"),
        ((X, R), {"batch_size": 0}, "batch_size is 0"),
        ((X, R), {"batch_size": 2.5}, "batch_size is 2.5"),
        ((X, R), {"batch_size": True}, "batch_size is True"),
        ((X, R), {"description": {"n_tokens": 3}}, "n_tokens"),
        ((X, R), {"description": {"a": float("nan")}}, "JSON"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: Any, options: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        from_arrays(*arguments, **options)
    assert "\n" not in str(caught.value)
