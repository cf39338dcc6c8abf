"""Our cache of activations: what is written comes back, and a kill costs one shard."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from darkmatter.adapters.caches import (
    StoredBatch,
    cached_activations,
    open_activations,
    plan_cache,
    write_cache,
    write_site_caches,
)
from darkmatter.adapters.sites import parse_site
from darkmatter.errors import FileFormatError, InputError
from tests.cache_streams import SIZES, D, Stream, files, joined


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("bare", [False, True])
def test_what_is_written_comes_back(tmp_path: Path, dtype: str, bare: bool) -> None:
    stream, said, seen = Stream(bare=bare), [], []
    cache = write_cache(
        stream, tmp_path / "c", dtype=dtype, shard_tokens=10, announce=said.append, progress=seen.append
    )
    wanted, found = joined(stream), joined(cached_activations(tmp_path / "c", batch_size=4, verify=True))
    assert found["x"].dtype == torch.float32
    assert torch.equal(found["x"], wanted["x"].to(getattr(torch, dtype)).float())
    for column in ("groups", "positions", "token_ids"):
        assert np.array_equal(found[column], wanted[column])
        assert found[column] is None or found[column].dtype == np.int64
    assert sum(seen) == cache.n_tokens == sum(SIZES)
    # whole batches, until there are 10 tokens: 5+0+7 | 4+9 | 3+1
    assert [shard.n_tokens for shard in cache.index.shards] == [12, 13, 4]
    each = 2 * D + 24 if dtype != "float32" else 4 * D + 24
    assert len(said) == 1
    assert said[0].startswith(f"The cache takes {_size(29 * each)}: 29 tokens of {each} bytes; ")


def _size(n: int) -> str:
    return f"{n / 1e3:.1f} kB" if n >= 1000 else f"{n} bytes"


def test_the_files_are_plain_safetensors_with_an_index_anyone_can_check(tmp_path: Path) -> None:
    write_cache(Stream(), tmp_path, shard_tokens=10)
    index = json.loads((tmp_path / "cache.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache.json", *(s["file"] for s in index["shards"])]
    assert (index["format"], index["version"], index["dtype"], index["d_model"]) == (
        "darkmatter-cache",
        1,
        "bfloat16",
        6,
    )
    assert index["source"]["site"] == "resid_post:2"
    for shard in index["shards"]:
        data = (tmp_path / shard["file"]).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (shard["sha256"], shard["n_bytes"])
        tensors = load_file(tmp_path / shard["file"])
        assert {k: (v.dtype, len(v)) for k, v in tensors.items()} == {
            "x": (torch.bfloat16, shard["n_tokens"]),
            **dict.fromkeys(("groups", "positions", "token_ids"), (torch.int64, shard["n_tokens"])),
        }


@settings(max_examples=40)
@given(batch_size=st.integers(1, 20), start=st.integers(0, 40), shard_tokens=st.integers(1, 40))
def test_batches_from_agrees_with_skipping(
    tmp_path_factory: pytest.TempPathFactory, batch_size: int, start: int, shard_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("c")
    write_cache(Stream(), folder, dtype="float32", shard_tokens=shard_tokens)
    cache = cached_activations(folder, batch_size=batch_size)
    every, late = list(cache), list(cache.batches_from(start))
    assert len(late) == max(len(every) - start, 0)
    for a, b in zip(every[start:], late, strict=True):
        assert torch.equal(a.x, b.x)
        assert np.array_equal(a.groups, b.groups)
    assert torch.equal(joined(cache)["x"], joined(Stream())["x"])


@pytest.mark.parametrize("die_at", range(len(SIZES)))
def test_a_killed_write_goes_on_and_gives_the_same_bytes(tmp_path: Path, die_at: int) -> None:
    write_cache(Stream(), tmp_path / "whole", shard_tokens=6)
    with pytest.raises(KeyboardInterrupt):
        write_cache(Stream(die_at=die_at), tmp_path / "c", shard_tokens=6)
    assert not (tmp_path / "c" / "cache.json").exists()
    with pytest.raises(FileFormatError, match=r"unfinished cache \(\d+ tokens so far\): run what writes it again"):
        cached_activations(tmp_path / "c")
    # what a kill inside a write leaves behind: a half-written temporary file, a shard that no index knows
    (tmp_path / "c" / ".x-00001-abcd.safetensors").write_bytes(b"half")
    (tmp_path / "c" / "x-00007.safetensors").write_bytes(b"half")
    again, seen = Stream(), []
    write_cache(again, tmp_path / "c", shard_tokens=6, progress=seen.append)
    assert files(tmp_path / "c") == files(tmp_path / "whole")
    assert sum(seen) == sum(SIZES)
    on_disk = {0: 0, 1: 0, 2: 0, 3: 3, 4: 3, 5: 5, 6: 5}[die_at]  # shards end after batches 2, 4 and 6
    assert again.made[0] == on_disk


def test_a_finished_cache_is_opened_and_not_written_again(tmp_path: Path) -> None:
    write_cache(Stream(), tmp_path, shard_tokens=6)
    before, again = files(tmp_path), Stream()
    assert write_cache(again, tmp_path).n_tokens == sum(SIZES)
    assert again.made == []
    assert files(tmp_path) == before


@pytest.mark.parametrize("finished", [False, True])
def test_another_cache_is_not_overwritten(tmp_path: Path, finished: bool) -> None:
    if finished:
        write_cache(Stream(), tmp_path, shard_tokens=6)
    else:
        with pytest.raises(KeyboardInterrupt):
            write_cache(Stream(die_at=4), tmp_path, shard_tokens=6)
    before = files(tmp_path)
    with pytest.raises(
        InputError, match=r"holds another cache \(it differs in seed\): choose another folder, or delete"
    ):
        write_cache(Stream(seed=1), tmp_path)
    with pytest.raises(InputError, match=r"differs in cache dtype"):
        write_cache(Stream(), tmp_path, dtype="float32")
    assert files(tmp_path) == before


def test_a_killed_process_leaves_no_cache_that_looks_whole(tmp_path: Path) -> None:
    script = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from tests.cache_streams import Stream
from darkmatter.adapters.caches import write_cache

class Slow(Stream):
    def batches_from(self, start):
        for number, batch in enumerate(super().batches_from(start), start):
            if number == 5:
                print("ready", flush=True)
                time.sleep(60)
            yield batch

write_cache(Slow(), {str(tmp_path / "c")!r}, shard_tokens=6)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    with pytest.raises(FileFormatError, match=r"unfinished cache \(25 tokens so far\)"):
        cached_activations(tmp_path / "c")
    again = Stream()
    write_cache(again, tmp_path / "c", shard_tokens=6)
    assert again.made == [5, 6]
    assert torch.equal(joined(cached_activations(tmp_path / "c"))["x"], joined(Stream())["x"].bfloat16().float())


def test_half_precision_that_overflows_names_the_place_and_the_remedy(tmp_path: Path) -> None:
    x = torch.zeros(3, D)
    x[2, 1] = -7e4

    class Large(Stream):
        def batches_from(self, start: int) -> Iterator[StoredBatch]:
            yield StoredBatch(x=x, groups=np.array([4, 4, 9]), positions=np.array([1, 2, 1]), token_ids=np.arange(3))

    with pytest.raises(InputError) as caught:
        write_cache(Large(), tmp_path / "c", dtype="float16")
    assert str(caught.value) == (
        "x reaches 7e+04 in document 9, position 1, but float16 ends at 6.55e+04: write the cache in bfloat16, which "
        "keeps the range of float32"
    )
    assert write_cache(Large(), tmp_path / "d", dtype="bfloat16").n_tokens == 3
    x[2, 1] = 3.4e38  # beyond bfloat16, which rounds it up
    with pytest.raises(InputError, match=r"bfloat16 ends at 3\.39e\+38: write the cache in float32"):
        write_cache(Large(), tmp_path / "e")
    x[2, 1] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite in document 9, position 1, before it is cached"):
        write_cache(Large(), tmp_path / "f", dtype="float32")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(3, D + 1)}, r"batch 1: x has shape \(3, 7\), expected \(3, 6\)"),
        ({"positions": None}, None),
        ({"groups": np.arange(4)}, r"x has shape \(3, 6\), expected \(4, 6\)"),
        ({"token_ids": np.arange(4)}, r"token_ids has shape \(4,\), expected \(3,\)"),
    ],
)
def test_batches_that_do_not_fit_together(tmp_path: Path, change: dict[str, Any], words: str | None) -> None:
    plain = StoredBatch(x=torch.zeros(3, D), groups=np.arange(3), positions=np.arange(3), token_ids=np.arange(3))

    class Odd(Stream):
        def batches_from(self, start: int) -> Iterator[StoredBatch]:
            if words is None:
                yield plain
            yield dataclasses.replace(plain, **change)

    with pytest.raises(InputError, match=words or "batch 2: it has groups, token_ids, expected groups, positions, tok"):
        write_cache(Odd(), tmp_path / "c")


def test_options_and_places_that_cannot_be(tmp_path: Path) -> None:
    for words, options in (
        ("dtype is 'int8', expected one of bfloat16, float16, float32", {"dtype": "int8"}),
        ("shard_tokens is 0, expected at least 1", {"shard_tokens": 0}),
    ):
        with pytest.raises(InputError, match=words):
            write_cache(Stream(), tmp_path / "c", **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        write_cache(Stream(), tmp_path / "file" / "c")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "x-00000.safetensors").write_bytes(b"somebody's")
    with pytest.raises(InputError, match="shards without an index: choose an empty folder, or delete them"):
        write_cache(Stream(), tmp_path / "strange")

    class Nothing(Stream):
        def batches_from(self, start: int) -> Iterator[StoredBatch]:
            return iter(())

    with pytest.raises(InputError, match="no token to cache"):
        write_cache(Nothing(), tmp_path / "none")
    shared = Stream()
    shared.description = {**shared.description, "documents_shared_by": 2}
    with pytest.raises(InputError, match="write the cache from one process"):
        write_cache(shared, tmp_path / "shared")


def test_the_size_is_planned_and_must_fit(tmp_path: Path) -> None:
    stream = Stream()
    stream.description = {**stream.description, "n_tokens": 10**15}
    plan = plan_cache(stream, tmp_path / "not" / "yet")
    assert (plan.bytes_per_token, plan.n_bytes) == (36, 36 * 10**15)
    assert plan.sentence.startswith("The cache takes 36000.0 TB: 1000000000000000 tokens of 36 bytes; ")
    with pytest.raises(InputError, match=r"the cache needs 36000\.0 TB, but .* free: choose another folder"):
        write_cache(stream, tmp_path / "c")
    stream.description = {"max_tokens": 10**15}  # only the pass will tell whether there are as many
    assert "takes at most 36000.0 TB" in plan_cache(stream, tmp_path).sentence
    assert write_cache(stream, tmp_path / "c").n_tokens == sum(SIZES)
    stream.description = {}
    assert plan_cache(stream, tmp_path).sentence.startswith("The cache takes 36 bytes per token, for as many as")


def test_a_full_disk_is_one_line_and_what_was_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = save_file

    def full(tensors: Any, path: Path) -> None:
        if "00001" in path.name:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr("darkmatter.adapters.caches.writer.save_file", full)
    with pytest.raises(InputError, match=r"No space left on device\): make room and run the same again, .* 12 tokens"):
        write_cache(Stream(), tmp_path, shard_tokens=6)
    assert sorted(files(tmp_path)) == ["cache.partial.json", "x-00000.safetensors"]


# --- several sites in one pass


class Sites:
    """Two sites of different widths that keep different tokens of the same batches."""

    sites = (parse_site("resid_post:1"), parse_site("resid_post:2"))
    widths: Mapping[Any, int] = dict(zip(sites, (D, D + 2), strict=True))
    description: Mapping[str, Any] = {"kind": "test", "site": "both", "d_model": {str(s): w for s, w in widths.items()}}

    def __init__(self, die_at: int | None = None) -> None:
        self.die_at, self.made = die_at, list[int]()

    def batch(self, number: int, site: Any) -> StoredBatch:
        n = 4 if site == self.sites[0] else 1 + number % 3
        x = np.random.default_rng([number, self.widths[site]]).standard_normal((n, self.widths[site])).astype("f4")
        return StoredBatch(x=torch.from_numpy(x), groups=np.full(n, number))

    def site_batches_from(self, start: int) -> Iterator[dict[Any, StoredBatch]]:
        for number in range(start, 9):
            if number == self.die_at:
                raise KeyboardInterrupt
            self.made.append(number)
            yield {site: self.batch(number, site) for site in self.sites}


@pytest.mark.parametrize("die_at", [None, 0, 3, 5, 8])
def test_sites_are_cached_in_one_pass_each_in_its_folder(tmp_path: Path, die_at: int | None) -> None:
    if die_at is not None:
        with pytest.raises(KeyboardInterrupt):
            write_site_caches(Sites(die_at), tmp_path, dtype="float32", shard_tokens=8)
    streams, said = Sites(), []
    caches = write_site_caches(streams, tmp_path, dtype="float32", shard_tokens=8, announce=said.append)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["resid_post-1", "resid_post-2"]
    assert [line.split(":")[0:2] for line in said] == [["resid_post", "1"], ["resid_post", "2"]]
    for site, cache in caches.items():
        assert cache.site == str(site)
        assert cache.d_model == cache.index.source["d_model"] == streams.widths[site]
        wanted = [streams.batch(number, site) for number in range(9)]
        assert torch.equal(joined(cache)["x"], torch.cat([b.x for b in wanted]))
        assert np.array_equal(joined(cache)["groups"], np.concatenate([b.groups for b in wanted]))
    # site 1 ends a shard every 2 batches; site 2, with 1, 2, 3, 1, 2, … tokens, after 5 and 9: who is behind decides
    assert streams.made[0] == {None: 0, 0: 0, 3: 0, 5: 4, 8: 5}[die_at]
    again = Sites()
    write_site_caches(again, tmp_path, dtype="float32")
    assert again.made == []


# --- recognised


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_cache(Stream(), tmp_path / "c", shard_tokens=10)
    return tmp_path / "c"


def test_any_kind_is_recognised(cache: Path, tmp_path: Path) -> None:
    assert open_activations(cache, verify=True).description["kind"] == "cached activations"
    np.save(tmp_path / "acts-0.npy", np.ones((4, D), dtype="f4"))
    assert open_activations(tmp_path / "acts-*.npy", docs=[0, 0, 1, 1]).description["kind"] == "array files"
    for place, option, words in (
        (cache, {"hook": "a"}, "hook has no meaning for a darkmatter cache"),
        (cache, {"docs": [1]}, "docs has no meaning for a darkmatter cache"),
        (tmp_path / "acts-0.npy", {"verify": True}, "verify has no meaning for array files"),
    ):
        with pytest.raises(InputError, match=words):
            open_activations(place, **option)
    with pytest.raises(FileFormatError, match="holds no known activations"):
        open_activations(tmp_path / "acts.pt")


# --- memory

MEMORY = """
import sys, tempfile
from pathlib import Path
import numpy as np, torch
from darkmatter.adapters.caches import CachedSource, StoredBatch, cached_activations, write_cache

n, keep = int(sys.argv[1]), sys.argv[2] == "keep"
kept = []

class Stream:
    d_model, description = 256, {"n_tokens": n}
    def batches_from(self, start):
        for low in range(start * 1000, n, 1000):
            x = torch.randn(1000, 256, generator=torch.Generator().manual_seed(low))
            if keep:
                kept.append(x)
            yield StoredBatch(x=x, groups=(low + np.arange(1000)) // 100)

with tempfile.TemporaryDirectory() as folder:
    write_cache(Stream(), folder, shard_tokens=5000)
    cache = cached_activations(folder, batch_size=1000)
    assert sum(len(batch.x) for batch in CachedSource(cache, {"a": torch.relu})) == n
status = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def peak(n: int, mode: str) -> int:
    root = Path(__file__).parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(n), mode], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, as Linux has it")
def test_peak_memory_does_not_depend_on_the_number_of_tokens() -> None:
    few = peak(10_000, "stream")
    assert peak(60_000, "stream") < 1.05 * few
    assert peak(60_000, "keep") > 1.1 * few  # it would fail: 61 MB of x held on to
