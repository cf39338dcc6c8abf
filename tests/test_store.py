"""Checkpoints: resumed runs are the same bit for bit, whatever killed them; damaged saves are one kind of error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import darkmatter.store
from darkmatter import Batch, Checkpoint, FileFormatError, InputError, decompose_many
from darkmatter.folds import FoldAccumulator, FoldMoments
from darkmatter.moments import Layout
from darkmatter.store import run_identity
from darkmatter.stream import accumulate
from tests.helpers import ListSource, tiny_world

FOLDS = 3
N = 6000
SIZE = 370


class KilledError(Exception):
    """Stands for whatever ends a process."""


@dataclass(frozen=True)
class Dying:
    """A source that fails when asked for batch number `last`."""

    source: ListSource
    last: int

    @property
    def d_model(self) -> int:
        return self.source.d_model

    @property
    def names(self) -> tuple[str, ...]:
        return self.source.names

    @property
    def description(self) -> Any:
        return self.source.description

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.source):
            if number == self.last:
                raise KilledError
            yield batch


def world() -> ListSource:
    """Every fold fills a block of rows once or twice, and has rows waiting at almost every batch boundary."""
    source = tiny_world(N, 4, n_saes=2, per_document=7)
    return replace(source, batch_size=SIZE, description={"name": "tiny", "seed": 0})


def every_batch(folder: Path) -> Checkpoint:
    return Checkpoint(folder, every_seconds=0.0)


def assert_identical(first: FoldMoments, second: FoldMoments) -> None:
    for a, b in zip(first.folds, second.folds, strict=True):
        assert a.n == b.n
        for name in ("mean", "cross", "error_gram", "target_ss", "far_x"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert all(np.array_equal(a, b) for a, b in zip(first.documents, second.documents, strict=True))


WHOLE = accumulate(world(), folds=FOLDS)
N_BATCHES = len(list(world()))


def test_the_world_exercises_blocks() -> None:
    assert min(fold.n for fold in WHOLE.folds) > WHOLE.layout.block_rows


@given(st.lists(st.integers(1, N_BATCHES - 1), min_size=1, max_size=3))
def test_a_run_killed_anywhere_ends_the_same(deaths: list[int]) -> None:
    with TemporaryDirectory() as folder:
        checkpoint = every_batch(Path(folder) / "run")
        for last in deaths:  # each life starts from the save of the one before, and may get no further
            with pytest.raises(KilledError):
                accumulate(Dying(world(), last), folds=FOLDS, checkpoint=checkpoint)
        assert_identical(accumulate(world(), folds=FOLDS, checkpoint=checkpoint), WHOLE)


def test_batches_that_are_saved_are_not_read_again(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        accumulate(Dying(world(), 5), folds=FOLDS, checkpoint=every_batch(tmp_path))
    index = json.loads((tmp_path / "checkpoint.json").read_text())
    assert index["batches"] == 5
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [index["tensors"]]  # older saves are gone

    class Resumable(ListSource):
        def batches_from(self, start: int) -> Iterator[Batch]:
            asked.append(start)
            return iter(list(self)[start:])

    asked: list[int] = []
    seen: list[int] = []
    source = world()
    resumable = Resumable(source.x, source.recons, source.groups, source.batch_size, source.description)
    moments = accumulate(resumable, folds=FOLDS, checkpoint=every_batch(tmp_path), progress=seen.append)
    assert asked == [5]
    assert seen[0] == 5 * source.batch_size and sum(seen) == N
    assert_identical(moments, WHOLE)


def test_saves_are_spaced_in_time(tmp_path: Path) -> None:
    rare = Checkpoint(tmp_path, every_seconds=3600.0)
    assert_identical(accumulate(world(), folds=FOLDS, checkpoint=rare), WHOLE)
    assert not list(tmp_path.iterdir())


def killed_run(folder: Path, after: int = 9) -> str:
    with pytest.raises(KilledError):
        accumulate(Dying(world(), after), folds=FOLDS, checkpoint=every_batch(folder))
    return run_identity(world(), FOLDS)


def resume(folder: Path, source: ListSource | None = None, folds: int = FOLDS) -> int:
    source = source or world()
    accumulator = FoldAccumulator(Layout(source.d_model, source.names), folds=folds)
    return Checkpoint(folder).resume(accumulator, run_identity(source, folds))


def test_another_run_is_not_continued(tmp_path: Path) -> None:
    killed_run(tmp_path)
    assert resume(tmp_path) == 9
    renamed = {"sae0": world().recons["sae0"], "other": world().recons["sae1"]}
    others = {
        "description": (replace(world(), description={"name": "tiny", "seed": 1}), FOLDS),
        "names": (replace(world(), recons=renamed, names=()), FOLDS),
        "order of names": (replace(world(), names=("sae1", "sae0")), FOLDS),
        "width": (replace(world(), x=world().x[:, :3]), FOLDS),
        "folds": (world(), FOLDS + 1),
    }
    for what, (source, folds) in others.items():
        with pytest.raises(FileFormatError, match=r"sums of another run.*delete .* or choose another folder") as caught:
            resume(tmp_path, source, folds)
        assert caught.value.path == tmp_path / "checkpoint.json", what


def test_the_identity_does_not_depend_on_the_order_of_keys() -> None:
    source = world()
    swapped = replace(source, description={"seed": 0, "name": "tiny"})
    assert run_identity(source, 4) == run_identity(swapped, 4) != run_identity(source, 5)


@cache
def saved_files() -> dict[str, bytes]:
    with TemporaryDirectory() as name:
        killed_run(Path(name))
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


@given(st.data())
def test_a_truncated_save_is_refused_at_every_byte(data: st.DataObject) -> None:
    files = saved_files()
    victim = data.draw(st.sampled_from(sorted(files)))
    kept = data.draw(st.integers(0, len(files[victim]) - 2))  # the last byte of JSON is a newline
    with TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content[:kept] if file == victim else content)
        before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(FileFormatError, match=r"delete .* to start again|cannot be read"):
            resume(folder)
        assert sorted(path.name for path in folder.iterdir()) == before


INDEX: dict[str, Any] = {"format": "darkmatter-moments", "version": 1, "batches": 9}
BAD_INDEX: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an array": lambda index: [index],
    "another format": lambda index: {**index, "format": "safetensors"},
    "a later version": lambda index: {**index, "version": 2},
    "no identity": lambda index: {k: v for k, v in index.items() if k != "identity"},
    "no tensors": lambda index: {k: v for k, v in index.items() if k != "tensors"},
    "a path out of the folder": lambda index: {**index, "tensors": "../outside.safetensors"},
    "an absolute path": lambda index: {**index, "tensors": "/etc/passwd"},
    "the folder itself": lambda index: {**index, "tensors": "."},
    "its parent": lambda index: {**index, "tensors": ".."},
    "an empty name": lambda index: {**index, "tensors": ""},
    "a name with a null byte": lambda index: {**index, "tensors": "a\0b"},
    "a number for a name": lambda index: {**index, "tensors": 3},
    "a file that is not there": lambda index: {**index, "tensors": "moments-8.safetensors"},
    "the index for tensors": lambda index: {**index, "tensors": "checkpoint.json"},
    "batches zero": lambda index: {**index, "batches": 0},
    "batches negative": lambda index: {**index, "batches": -9},
    "batches a string": lambda index: {**index, "batches": "9"},
    "batches true": lambda index: {**index, "batches": True},
    "batches null": lambda index: {**index, "batches": None},
}


@pytest.mark.parametrize("case", BAD_INDEX)
def test_a_foreign_index_is_refused(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed_run(folder)
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(next(folder.glob("*.safetensors")).read_bytes())
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(BAD_INDEX[case](json.loads(path.read_text()))))
    with pytest.raises(FileFormatError) as caught:
        resume(folder)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_garbage_for_an_index_is_refused(content: bytes) -> None:
    with TemporaryDirectory() as name:
        (Path(name) / "checkpoint.json").write_bytes(content)
        with pytest.raises(FileFormatError):
            resume(Path(name))


def test_a_folder_for_an_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").mkdir()
    with pytest.raises(FileFormatError, match=r"checkpoint\.json cannot be read as JSON"):
        resume(tmp_path)


BAD_TENSORS: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "one missing": lambda t: {k: v for k, v in t.items() if k != "2.cross"},
    "none at all": lambda t: {"other": torch.zeros(3)},
    "wrong width": lambda t: {**t, "1.mean": t["1.mean"][:-1]},
    "wrong dtype": lambda t: {**t, "0.cross": t["0.cross"].float()},
    "n a vector": lambda t: {**t, "0.n": torch.tensor([1, 2])},
    "n negative": lambda t: {**t, "0.n": torch.tensor(-5)},
    "more waiting rows than a block holds": lambda t: {**t, "0.waiting": t["0.waiting"].repeat(2000, 1)},
    "waiting rows of another width": lambda t: {**t, "0.waiting": t["0.waiting"][:, :-1]},
    "documents a number": lambda t: {**t, "0.documents": torch.tensor(3)},
    "documents a matrix": lambda t: {**t, "0.documents": torch.zeros(3, 2, dtype=torch.int64)},
    "NaN": lambda t: {**t, "2.cross": t["2.cross"] * torch.nan},
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_foreign_tensors_are_refused_and_nothing_is_taken_over(case: str, tmp_path: Path) -> None:
    killed_run(tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    save_file({k: v.contiguous() for k, v in BAD_TENSORS[case](load_file(path)).items()}, path)
    source = world()
    accumulator = FoldAccumulator(Layout(source.d_model, source.names), folds=FOLDS)
    with pytest.raises(FileFormatError, match=r"delete .* to start again"):
        Checkpoint(tmp_path).resume(accumulator, run_identity(source, FOLDS))
    assert accumulator.n_tokens == 0
    assert_identical(accumulator.freeze(), FoldAccumulator(Layout(4, source.names), folds=FOLDS).freeze())


@pytest.mark.parametrize("writer", ["write_tensors", "write_json"])
def test_an_interrupted_save_leaves_the_last_one_in_force(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = killed_run(tmp_path)
    accumulator = FoldAccumulator(Layout(4, world().names), folds=FOLDS)
    assert Checkpoint(tmp_path).resume(accumulator, identity) == 9
    accumulator.update(list(world())[9])

    def interrupted(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(darkmatter.store, writer, interrupted)
        with pytest.raises(KeyboardInterrupt):
            Checkpoint(tmp_path).save(accumulator, identity, 10)
    assert resume(tmp_path) == 9
    assert_identical(accumulate(world(), folds=FOLDS, checkpoint=every_batch(tmp_path)), WHOLE)
    assert len(list(tmp_path.iterdir())) == 2  # the half-made save is gone with the next


def test_a_failing_disk_leaves_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = killed_run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    accumulator = FoldAccumulator(Layout(4, world().names), folds=FOLDS)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        Checkpoint(tmp_path).save(accumulator, identity, 10)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_clear_removes_the_saves_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    checkpoint = every_batch(folder)
    checkpoint.clear()  # nothing there yet
    killed_run(folder)
    checkpoint.clear()
    assert not folder.exists()
    assert resume(folder) == 0
    killed_run(folder)
    (folder / "notes.txt").write_text("mine")
    checkpoint.clear()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_bad_batch_after_a_save_is_still_an_input_error(tmp_path: Path) -> None:
    source = world()
    source.x[4000] = np.nan
    with pytest.raises(InputError, match=f"batch {4000 // SIZE + 1}: "):
        accumulate(source, folds=FOLDS, checkpoint=every_batch(tmp_path))
    assert_identical(accumulate(world(), folds=FOLDS, checkpoint=every_batch(tmp_path)), WHOLE)


SCRIPT = """
import sys, time
from pathlib import Path
from darkmatter import Checkpoint, decompose_many
from tests.helpers import ListSource, tiny_world

class Slow(ListSource):
    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(0.02)
            yield batch

world = tiny_world(2400, 5, n_saes=2, per_document=8)
source = Slow(world.x, world.recons, world.groups, 40, {"name": "slow"})
results = decompose_many(source, folds=6, checkpoint=Checkpoint(Path(sys.argv[1]), every_seconds=0.0))
print("\\n".join(result.to_json() for result in results.values()))
"""


def start(folder: Path) -> subprocess.Popen[str]:
    root = Path(__file__).parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    return subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def batches_saved(folder: Path) -> int:
    path = folder / "checkpoint.json"
    return int(json.loads(path.read_text())["batches"]) if path.exists() else 0


def test_a_process_killed_by_the_system_goes_on(tmp_path: Path) -> None:
    world = tiny_world(2400, 5, n_saes=2, per_document=8)
    uninterrupted = decompose_many(replace(world, batch_size=40, description={"name": "slow"}), folds=6)
    want = "\n".join(result.to_json() for result in uninterrupted.values())
    process = start(tmp_path)
    try:
        deadline = time.monotonic() + 120
        while batches_saved(tmp_path) < 20 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert 20 <= batches_saved(tmp_path) < 60
    process = start(tmp_path)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.strip() == want
