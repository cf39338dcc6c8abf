"""Reading a cache that somebody else wrote, or broke: damage is one clear line. Joined with SAEs, and trained on."""

from __future__ import annotations

import functools
import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from darkmatter import check_source, decompose
from darkmatter.adapters.caches import (
    CachedSource,
    StoredBatch,
    cached_activations,
    stored_training,
    write_cache,
)
from darkmatter.batch import ResumableSource
from darkmatter.errors import FileFormatError, InputError
from tests.cache_streams import SIZES, D, Stream, files, joined


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_cache(Stream(), tmp_path / "c", shard_tokens=10)
    return tmp_path / "c"


def rewrite(folder: Path, change: Any) -> None:
    index = json.loads((folder / "cache.json").read_text())
    change(index)
    (folder / "cache.json").write_text(json.dumps(index))


SHARD = "x-00001.safetensors"


@functools.cache
def packed(shard_tokens: int) -> dict[str, bytes]:
    """The files of a cache: written once, since every write waits for the disk."""
    with tempfile.TemporaryDirectory() as folder:
        write_cache(Stream(), folder, shard_tokens=shard_tokens)
        return files(Path(folder))


def unpacked(factory: pytest.TempPathFactory, *, shard_tokens: int) -> Path:
    folder = factory.mktemp("c")
    for name, data in packed(shard_tokens).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i: i.update(format="other"), "has format 'other', expected 'darkmatter-cache'"),
        (
            lambda i: i.update(version=2),
            "has version 2, expected 1: write the cache again, or read it with the program",
        ),
        (lambda i: i.update(shards=None), "it has no list of shards"),
        (lambda i: i.update(shards=[], n_tokens=0), "lists no shard"),
        (lambda i: i.update(shards=[3]), "a shard is a int"),
        (lambda i: i.update(source=None), "no description of the source"),
        (lambda i: i.update(dtype="float8"), "its dtype is 'float8'"),
        (lambda i: i.update(dtype=["float32"]), "its dtype is"),
        (lambda i: i.update(columns=["positions"]), "its columns are"),
        (lambda i: i.update(columns=[["groups"]]), "its columns are"),
        (lambda i: i.update(d_model=0), "d_model is 0, expected a positive integer"),
        (lambda i: i.update(d_model=True), "d_model is True"),
        (lambda i: i.update(n_tokens=30), "it promises 30 tokens, its shards hold 29"),
        (lambda i: i["shards"].append(i["shards"][0]), "lists a shard twice"),
        (lambda i: i["shards"][0].update(n_tokens=-1), "n_tokens is -1"),
        (lambda i: i["shards"][0].update(sha256="0"), "has no SHA-256"),
        *(
            (lambda i, name=name: i["shards"][0].update(file=name), "expected a name such as .* do not trust")
            for name in (
                "../x-00000.safetensors",
                "/x-00000.safetensors",
                "x-00000.safetensors\n",
                "a/../x-1",
                "",
                None,
            )
        ),
        # the shards contradict the index
        (
            lambda i: i["shards"][1].update(n_bytes=700),
            "x-00001.safetensors has .* bytes, expected 700: it is another",
        ),
        (lambda i: i["shards"][1].update(n_bytes=5000), "expected 5000: it is truncated"),
        (lambda i: (i.update(n_tokens=30), i["shards"][0].update(n_tokens=13)), "its data do not have 13 tokens"),
        (lambda i: i.update(dtype="float16"), "it holds .*BF16.*, expected .* x F16"),
        (lambda i: i.update(d_model=D + 1), "its data do not have"),
        (lambda i: i.update(d_model=D + 4, columns=["groups", "positions"]), "it holds"),
    ],
)
def test_an_index_that_lies(cache: Path, change: Any, words: str) -> None:
    rewrite(cache, change)
    with pytest.raises(FileFormatError, match=words) as caught:
        cached_activations(cache)
    assert "\n" not in str(caught.value)


def test_missing_extra_and_foreign_shards(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "b")
    (cache / SHARD).unlink()
    with pytest.raises(FileFormatError, match=r"x-00001\.safetensors is missing, so the cache is not whole"):
        cached_activations(cache)
    shutil.copy(tmp_path / "b" / SHARD, cache / "x-00009.safetensors")
    with pytest.raises(FileFormatError, match=r"x-00009\.safetensors is not listed in cache.json: two caches were"):
        cached_activations(cache)
    with pytest.raises(FileFormatError, match=r"has no cache\.json, expected a folder that `write_cache` made"):
        cached_activations(tmp_path / "nowhere")
    with pytest.raises(FileFormatError, match="holds the caches of several sites, expected one of them: b, c"):
        cached_activations(tmp_path)
    (tmp_path / "b" / "cache.json").write_text("[1")
    with pytest.raises(FileFormatError, match="cannot be read as JSON"):
        cached_activations(tmp_path / "b")
    with pytest.raises(InputError, match="batch_size is 0"):
        cached_activations(cache, batch_size=0)


@settings(max_examples=60)
@given(data=st.data())
def test_a_shard_truncated_at_any_byte(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = unpacked(tmp_path_factory, shard_tokens=10)
    whole = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(FileFormatError, match="it is truncated, copy the cache again"):
        cached_activations(folder)


@pytest.mark.parametrize("claimed", [2**63, 2**40, 2**20 + 1, 10**5, 7, 0])
def test_a_header_that_claims_another_size_is_not_believed(cache: Path, claimed: int) -> None:
    data = bytearray((cache / SHARD).read_bytes())
    data[:8] = struct.pack("<Q", claimed)
    (cache / SHARD).write_bytes(bytes(data))
    with pytest.raises(FileFormatError, match="is not the shard that the index describes") as caught:
        cached_activations(cache)
    assert "\n" not in str(caught.value)


def test_a_header_as_large_as_its_file_allows_is_not_read(cache: Path) -> None:
    data = (cache / SHARD).read_bytes()
    size = int.from_bytes(data[:8], "little")
    padded = struct.pack("<Q", size + 2**21) + data[8 : 8 + size] + b" " * 2**21 + data[8 + size :]
    (cache / SHARD).write_bytes(padded)
    rewrite(cache, lambda index: index["shards"][1].update(n_bytes=len(padded)))
    with pytest.raises(FileFormatError, match=r"its header claims 20\d{5} bytes"):
        cached_activations(cache)


@settings(max_examples=150)
@given(place=st.integers(0, 330), value=st.integers(0, 255))
def test_a_changed_header_byte_is_our_error_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    folder = unpacked(tmp_path_factory, shard_tokens=100)
    path = folder / "x-00000.safetensors"
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    changed = data[place % header] != value
    data[place % header] = value
    path.write_bytes(bytes(data))
    try:
        found = joined(cached_activations(folder))
    except FileFormatError as error:
        assert "\n" not in str(error)
    else:  # swapped offsets of tensors of one size, or a byte of the padding
        assert found["x"].shape == (sum(SIZES), D)
    if changed:
        with pytest.raises(FileFormatError):
            cached_activations(folder, verify=True)


def test_altered_content_is_found_by_its_digest_and_nan_always(cache: Path) -> None:
    tensors = load_file(cache / SHARD)
    tensors["x"][3, 2] = 1.0
    save_file(tensors, cache / SHARD)
    assert cached_activations(cache).n_tokens == 29
    with pytest.raises(FileFormatError, match=r"x-00001\.safetensors does not have the SHA-256 that cache.json lists"):
        cached_activations(cache, verify=True)
    tensors["x"][3, 2] = float("nan")
    save_file(tensors, cache / SHARD)
    with pytest.raises(FileFormatError, match=r"x-00001\.safetensors holds NaN or infinity between tokens 0 and 13"):
        list(cached_activations(cache))


def test_a_shard_that_vanishes_while_it_is_read(cache: Path) -> None:
    stream = iter(cached_activations(cache, batch_size=5))
    next(stream)
    (cache / "x-00000.safetensors").write_bytes(b"")
    with pytest.raises(FileFormatError, match="can no longer be read"):
        list(stream)


# --- joined with SAEs, and trained on


def rectified(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=0)


def test_a_cache_with_saes_is_a_source_like_any_other(tmp_path: Path) -> None:
    class Long(Stream):
        def batches_from(self, start: int) -> Iterator[StoredBatch]:
            for number in range(start, 20):
                x = np.random.default_rng(number).standard_normal((50, D)).astype("f4") + 0.5
                yield StoredBatch(x=torch.from_numpy(x), groups=np.repeat(np.arange(5) + 5 * number, 10))

    write_cache(Long(), tmp_path, dtype="float32", shard_tokens=300)
    cache = cached_activations(tmp_path, batch_size=64)
    source = CachedSource(cache, {"a": rectified}, {"a": {"what": "relu"}})
    assert isinstance(source, ResumableSource)
    checked = check_source(source)
    assert (checked.n_batches, checked.n_tokens, checked.dtype) == (4, 256, "float32")
    direct = CachedSource(Long(), {"a": rectified})  # any stream can be joined, also one that is not on disk
    a, b = decompose(source, folds=5), decompose(direct, folds=5)
    assert a.fvu.value == pytest.approx(b.fvu.value, rel=1e-12)
    assert a.fvu_nonlinear.value == pytest.approx(b.fvu_nonlinear.value, rel=1e-12)
    elsewhere = next(iter(CachedSource(cache, {"a": rectified}, device="meta")))
    assert elsewhere.x.is_meta  # type: ignore[union-attr]
    facts = source.description
    assert facts["saes"] == {"a": {"what": "relu"}}
    assert (facts["kind"], facts["cached_from"], facts["site"], facts["model"]) == (
        "cached activations",
        "test",
        "resid_post:2",
        "m",
    )
    assert facts["n_tokens"] == 1000
    assert str(tmp_path.parent) not in json.dumps(facts)


def test_descriptions_tell_caches_apart(tmp_path: Path) -> None:
    prints = set()
    for seed, dtype in ((0, "float32"), (1, "float32"), (0, "bfloat16")):
        folder = tmp_path / f"{seed}{dtype}"
        write_cache(Stream(seed=seed), folder, dtype=dtype)
        prints.add(cached_activations(folder).description["cache_fingerprint"])
    assert len(prints) == 3
    one = tmp_path / "0float32"
    assert cached_activations(one).description == cached_activations(one).description
    moved = shutil.copytree(one, tmp_path / "moved")
    assert cached_activations(moved).description["cache_fingerprint"] in prints


def test_saes_that_do_not_fit(cache: Path) -> None:
    class Narrow:
        d_model = 4

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(InputError, match="SAE 'a' has d_model 4, but resid_post:2 of m has 6: choose the SAE of this"):
        CachedSource(cached_activations(cache), {"a": Narrow()})
    with pytest.raises(InputError, match="'a' is a int, expected a callable"):
        CachedSource(cached_activations(cache), {"a": 3})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="expected a non-empty tuple of SAE names"):
        CachedSource(cached_activations(cache), {})


def test_training_sees_every_token_once_per_epoch_in_another_order(cache: Path) -> None:
    stored = cached_activations(cache, batch_size=5)
    rows = torch.cat(list(stored_training(stored, n_tokens=58 + 4, seed=0)))
    wanted = joined(stored)["x"]

    def ordered(x: torch.Tensor) -> list[list[float]]:
        return sorted(x.tolist())

    assert rows.shape == (62, D)
    assert ordered(rows[:29]) == ordered(rows[29:58]) == ordered(wanted)
    assert not torch.equal(rows[:29], rows[29:58])
    assert not torch.equal(rows[:29], wanted)
    for start in (0, 1, 28, 29, 30, 61, 62):
        late = list(stored_training(stored, n_tokens=62, seed=0).starting_at(start))
        assert torch.equal(torch.cat([rows[:0], *late]), rows[start:])
    assert not torch.equal(rows, torch.cat(list(stored_training(stored, n_tokens=62, seed=1))))
    with pytest.raises(InputError, match="n_tokens is 0"):
        stored_training(stored, n_tokens=0, seed=0)

    class Nothing(Stream):
        def batches_from(self, start: int) -> Iterator[StoredBatch]:
            return iter(())

    with pytest.raises(InputError, match="no token to train on"):
        list(stored_training(Nothing(), n_tokens=1, seed=0))


def test_more_batches_than_one_block_are_all_trained_on() -> None:
    class Many(Stream):
        def batches_from(self, start: int) -> Iterator[StoredBatch]:
            for number in range(start, 150):
                yield StoredBatch(x=torch.full((2, D), float(number)), groups=np.zeros(2, dtype=np.int64))

    rows = torch.cat(list(stored_training(Many(), n_tokens=300, seed=0)))[:, 0]
    assert sorted(rows.tolist()) == sorted(np.repeat(np.arange(150.0), 2).tolist())
