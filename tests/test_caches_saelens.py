"""Caches of SAELens: read as the data set's own library reads them, and refused where they are not whole.

The fixture is what `CacheActivationsRunner` of sae-lens 6.54 leaves on disk: one file per buffer, `dataset_info.json`
with an Array2D column named after the hook, `state.json` with the list of files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darkmatter import check_source
from darkmatter.adapters.caches import (
    CachedSource,
    cached_activations,
    open_activations,
    saelens_activations,
    write_cache,
)
from darkmatter.adapters.positions import PositionPolicy
from darkmatter.errors import FileFormatError, InputError
from tests.cache_streams import joined

pytest.importorskip("datasets", reason="needs the data set library that SAELens writes its caches with")

HOOK, BOS = "blocks.2.hook_resid_post", 2
ROWS, LENGTH, D = (4, 4, 3), 8, 5


def contexts(dtype: str = "float32") -> tuple[Any, Any]:
    """Activations and token ids of all contexts; BOS starts each, and stands between packed texts."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((sum(ROWS), LENGTH, D)).astype(dtype)
    ids = rng.integers(3, 50, (sum(ROWS), LENGTH))
    ids[:, 0] = BOS
    ids[::3, 5] = BOS
    return x, ids


def write(folder: Path, dtype: str = "float32", *, with_tokens: bool = True, hooks: tuple[str, ...] = (HOOK,)) -> Path:
    """The steps of `CacheActivationsRunner.run` and `_consolidate_shards`."""
    from datasets import Array2D, Dataset, Features, Sequence, Value

    features: dict[str, Any] = {hook: Array2D(shape=(LENGTH, D), dtype=dtype) for hook in hooks}
    if with_tokens:
        features["token_ids"] = Sequence(Value(dtype="int32"), length=LENGTH)
    x, ids = contexts(dtype)
    folder.mkdir()
    names, first = [], 0
    for number, rows in enumerate(ROWS):
        part = slice(first, first + rows)
        columns: dict[str, Any] = {hook: torch.from_numpy(x[part]) for hook in hooks}
        if with_tokens:
            columns["token_ids"] = torch.from_numpy(ids[part]).to(torch.int32)
        shard = folder.parent / f"shard_{folder.name}_{number:05d}"
        Dataset.from_dict(columns, features=Features(features)).save_to_disk(str(shard), num_shards=1)
        names.append(f"data-{number:05d}-of-{len(ROWS):05d}.arrow")
        (shard / "data-00000-of-00001.arrow").rename(folder / names[-1])
        (folder / "dataset_info.json").write_text((shard / "dataset_info.json").read_text())
        first += rows
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "abc", "_split": None}
    state |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "c")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_cache_is_read_as_its_own_library_reads_it(tmp_path: Path, dtype: str) -> None:
    from datasets import load_from_disk

    folder = write(tmp_path / "c", dtype)
    theirs = load_from_disk(str(folder)).with_format("numpy")
    x, ids = np.asarray(theirs[HOOK][:]), np.asarray(theirs["token_ids"][:])
    assert np.array_equal(x, contexts(dtype)[0].astype(x.dtype))  # it gives float64 back as float32
    cache = saelens_activations(folder, batch_size=24)
    counted = (ids != BOS) & (np.arange(LENGTH) >= 1)
    rows, positions = counted.nonzero()
    found = joined(cache)
    assert found["x"].dtype == torch.float32
    assert np.array_equal(found["x"].numpy(), x[counted].astype("f4"))
    assert np.array_equal(found["groups"], rows)
    assert np.array_equal(found["positions"], positions)
    assert np.array_equal(found["token_ids"], ids[counted])
    facts = cache.description
    assert (facts["site"], facts["hook"], facts["special_ids"]) == ("resid_post:2", HOOK, [BOS])
    assert (facts["d_model"], facts["context_length"], facts["n_contexts"]) == (D, LENGTH, sum(ROWS))
    assert (facts["dtype"], facts["skip_first"], facts["drop_special"]) == (dtype, 1, True)


def test_with_and_without_the_library_loaded(folder: Path) -> None:
    # the library registers the type of the arrays with pyarrow; without it the same column is a plain nested list
    import subprocess

    script = (
        "import sys; from darkmatter.adapters.caches import saelens_activations\n"
        f"batches = list(saelens_activations({str(folder)!r}))\n"
        "assert 'datasets' not in sys.modules\n"
        "print(sum(float(batch.x.double().sum()) for batch in batches))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    import datasets  # noqa: F401

    here = sum(float(batch.x.double().sum()) for batch in saelens_activations(folder))
    assert float(done.stdout) == here


@settings(max_examples=25)
@given(batch_size=st.integers(1, 60), start=st.integers(0, 12))
def test_batches_from_agrees_with_skipping(
    tmp_path_factory: pytest.TempPathFactory, batch_size: int, start: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "shared-saelens"
    if not folder.exists():
        write(folder)
    cache = saelens_activations(folder, batch_size=batch_size)
    every, late = list(cache), list(cache.batches_from(start))
    assert len(late) == max(len(every) - start, 0)
    for a, b in zip(every[start:], late, strict=True):
        assert torch.equal(a.x, b.x)
        assert np.array_equal(a.groups, b.groups)
    assert torch.equal(joined(cache)["x"], joined(saelens_activations(folder))["x"])


def test_positions_and_special_tokens_can_be_chosen(folder: Path, tmp_path: Path) -> None:
    x, ids = contexts()

    def rows(**options: Any) -> int:
        return len(joined(saelens_activations(folder, **options))["x"])

    assert rows(positions=PositionPolicy(skip_first=0, drop_special=False)) == ids.size
    assert rows(positions=PositionPolicy(skip_first=3, skip_last=2, drop_special=False)) == 3 * len(ids)
    assert rows(special_ids=()) == 7 * len(ids)
    assert rows() == 7 * len(ids) - 4  # one BOS more in every third context
    assert rows(special_ids={3}) == 7 * len(ids) - int((ids[:, 1:] == 3).sum())
    bare = saelens_activations(write(tmp_path / "bare", with_tokens=False))
    assert joined(bare)["token_ids"] is None
    assert np.array_equal(joined(bare)["x"].numpy(), x[:, 1:].reshape(-1, D))
    assert bare.description["special_ids"] == []


def test_a_source_and_a_cache_of_our_own_from_it(folder: Path, tmp_path: Path) -> None:
    cache = open_activations(folder)
    assert check_source(CachedSource(cache, {"a": torch.relu})).n_groups == sum(ROWS)
    write_cache(cache, tmp_path / "ours", dtype="float32", shard_tokens=20)
    ours = cached_activations(tmp_path / "ours", verify=True)
    for column in ("x", "groups", "positions", "token_ids"):
        assert np.array_equal(joined(ours)[column], joined(cache)[column])
    assert ours.description["cached_from"] == "SAELens cache"
    with pytest.raises(InputError, match="verify has no meaning for a SAELens cache"):
        open_activations(folder, verify=True)


def test_one_of_several_hooks(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", hooks=(HOOK, "blocks.3.hook_mlp_out"))
    with pytest.raises(
        FileFormatError, match=rf"has the hooks {HOOK}, blocks\.3\.hook_mlp_out: choose one with `hook`"
    ):
        saelens_activations(folder)
    with pytest.raises(FileFormatError, match="has no hook 'a', expected one of blocks"):
        saelens_activations(folder, hook="a")
    assert saelens_activations(folder, hook="blocks.3.hook_mlp_out").description["site"] == "mlp_out:3"


def edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


FILE = "data-00001-of-00003.arrow"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        *(
            ("state.json", lambda s, bad=bad: s["_data_files"][0].update(filename=bad), "do not trust these files")
            for bad in ("../a.arrow", "/a.arrow", "a\\b.arrow", "a.pkl", "", None, 3)
        ),
        ("state.json", lambda s: s["_data_files"].append("a.arrow"), "names the file None"),
        ("state.json", lambda s: s.update(_data_files=[]), "lists no data file"),
        ("state.json", lambda s: s.update(_data_files={"a": 1}), "lists no data file"),
        ("state.json", lambda s: s["_data_files"].append(s["_data_files"][0]), "lists a file twice"),
        ("state.json", lambda s: s["_data_files"].pop(), "is not listed in state.json: two caches were mixed"),
        (
            "state.json",
            lambda s: s["_data_files"].append({"filename": "b.arrow"}),
            "b.arrow is missing, so the cache is",
        ),
        ("state.json", lambda s: s.update(_indices_data_files=[{"filename": "i.arrow"}]), "selects rows by an index"),
        ("dataset_info.json", lambda i: i.update(features=None), "describes no column of"),
        ("dataset_info.json", lambda i: i["features"][HOOK].update(_type="Value"), "describes no column of"),
        ("dataset_info.json", lambda i: i["features"][HOOK].update(shape=[8]), r"gives .* the shape \[8\], expected"),
        ("dataset_info.json", lambda i: i["features"][HOOK].update(shape=[8, 0]), "the shape"),
        ("dataset_info.json", lambda i: i["features"][HOOK].update(dtype="int8"), "the dtype 'int8', expected float16"),
        (
            "dataset_info.json",
            lambda i: i["features"].update(other=i["features"].pop(HOOK)),
            "has no column other, but dataset_info.json promises one",
        ),
    ],
)
def test_files_that_lie(folder: Path, name: str, change: Any, words: str) -> None:
    edit(folder / name, change)
    with pytest.raises(FileFormatError, match=words) as caught:
        saelens_activations(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": [LENGTH, D + 1]}, r"is damaged in contexts 0 to 4 \(lists of \[5\] values, expected 6\)"),
        ({"shape": [LENGTH - 1, D]}, r"lists of \[8\] values, expected 7"),
        ({"dtype": "float16"}, "float32 values, expected float16"),
    ],
)
def test_columns_that_are_not_what_was_promised(folder: Path, change: dict[str, Any], words: str) -> None:
    edit(folder / "dataset_info.json", lambda info: info["features"][HOOK].update(change))
    with pytest.raises(FileFormatError, match=words):
        list(saelens_activations(folder))


def test_missing_values_and_nan(tmp_path: Path) -> None:
    import pyarrow as pa

    folder = write(tmp_path / "c")
    x = contexts()[0][:4]
    ids = pa.array([[BOS] * LENGTH] * 4, type=pa.list_(pa.int32(), LENGTH))

    def put(rows: list[Any]) -> None:
        column = pa.array(rows, type=pa.list_(pa.list_(pa.float32())))
        batch = pa.record_batch([column, ids], names=[HOOK, "token_ids"])
        with pa.OSFile(str(folder / FILE), "wb") as file, pa.ipc.new_stream(file, batch.schema) as stream:
            stream.write_batch(batch)

    policy = PositionPolicy(skip_first=0, drop_special=False)
    rows = x.tolist()
    put(rows)
    assert len(joined(saelens_activations(folder, positions=policy))["x"]) == sum(ROWS) * LENGTH
    for spoil, words in (
        (lambda: rows[1][2].__setitem__(0, float("nan")), r"contexts 4 to 8 \(NaN or infinity\)"),
        (lambda: rows[1][2].__setitem__(0, None), "missing values"),
        (lambda: rows[1].__setitem__(2, None), "lists of"),
        (lambda: rows.__setitem__(1, None), "lists of"),
    ):
        spoil()
        put(rows)
        with pytest.raises(FileFormatError, match=words):
            list(saelens_activations(folder, positions=policy))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_truncated_at_any_byte(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "truncated-saelens"
    if not folder.exists():
        write(folder)
        (folder.parent / "whole").write_bytes((folder / FILE).read_bytes())
    whole = (folder.parent / "whole").read_bytes()
    (folder / FILE).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(FileFormatError, match="truncated or foreign"):
        list(saelens_activations(folder))


def test_a_file_that_stops_between_two_blocks_is_not_whole(tmp_path: Path) -> None:
    import pyarrow as pa

    folder = write(tmp_path / "c")
    with pa.memory_map(str(folder / FILE)) as mapped:
        block = pa.ipc.open_stream(mapped).read_next_batch()
        with pa.OSFile(str(tmp_path / "two"), "wb") as file, pa.ipc.new_stream(file, block.schema) as stream:
            stream.write_batch(block.slice(0, 2))
            first = file.tell()
            stream.write_batch(block.slice(2))
    whole = (tmp_path / "two").read_bytes()
    (folder / FILE).write_bytes(whole)
    assert saelens_activations(folder).n_contexts == sum(ROWS)
    for cut in (first, len(whole) - 8):
        with pa.BufferReader(whole[:cut]) as part:
            assert len(pa.ipc.open_stream(part).read_all()) == (2 if cut == first else 4)  # arrow takes it for whole
        (folder / FILE).write_bytes(whole[:cut])
        with pytest.raises(FileFormatError, match="does not end like an arrow stream: it is truncated or foreign"):
            saelens_activations(folder)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_our_error_or_other_numbers(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "changed-saelens"
    if not folder.exists():
        write(folder)
        (folder.parent / "unchanged").write_bytes((folder / FILE).read_bytes())
    whole = bytearray((folder.parent / "unchanged").read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 9))] = data.draw(st.integers(0, 255))
    (folder / FILE).write_bytes(bytes(whole))
    try:
        found = joined(saelens_activations(folder))
    except FileFormatError as error:
        assert "\n" not in str(error)
    else:
        assert bool(torch.isfinite(found["x"]).all())


def test_unfinished_foreign_and_options(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileFormatError, match=r"dataset_info\.json does not exist, expected the description of a SAEL"):
        saelens_activations(tmp_path)
    with pytest.raises(InputError, match="batch_size is 0"):
        saelens_activations(folder, batch_size=0)
    with pytest.raises(InputError, match="norm_filter is not applied to a SAELens cache"):
        saelens_activations(folder, positions=PositionPolicy(norm_filter=10))
    with pytest.raises(InputError, match="expected at most 7 together"):
        saelens_activations(folder, positions=PositionPolicy(skip_first=8))
    monkeypatch.setattr("pyarrow.__version__", "14.0.0")
    with pytest.raises(InputError, match=r"pyarrow 14\.0\.0 cannot read .* safely: update it to 14\.0\.1 or later"):
        saelens_activations(folder)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        InputError, match=r"needs pyarrow, which cannot be imported .*pip install 'darkmatter\[datasets"
    ):
        saelens_activations(folder)
    monkeypatch.undo()
    (folder / ".tmp_shards").mkdir()
    with pytest.raises(FileFormatError, match="holds an unfinished SAELens cache"):
        saelens_activations(folder)
