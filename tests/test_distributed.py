"""Two real processes on loopback: the same numbers as one, in both; shares without tokens; kill and resume."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from darkmatter import Checkpoint, FileFormatError, InputError, decompose_many
from darkmatter.distributed import agreed, reduce_moments, start, world
from darkmatter.folds import FoldMoments
from darkmatter.stream import accumulate
from tests.helpers import ListSource, tiny_world

ROOT = Path(__file__).parent.parent
FOLDS = 5
KINDS = ("plain", "far", "empty", "few", "big")
MEANS = {"far": 1e4}


def shared_world(kind: str) -> ListSource:
    """Documents of 7 tokens; in "few" there are 3, so that most folds are empty; in "big" more than a sketch holds."""
    if kind == "few":
        return tiny_world(60, 3, n_saes=2, per_document=20)
    if kind == "big":
        return tiny_world(30_000, 2, per_document=1)
    return tiny_world(3000, 5, n_saes=2, per_document=7, mean=MEANS.get(kind, 0.0))


def share(source: ListSource, rank: int, size: int, kind: str) -> ListSource:
    """Every size-th document; in "empty" the first process gets them all."""
    mine = source.groups % size == rank if kind != "empty" else np.full(len(source.x), rank == 0)
    recons = {name: recon[mine] for name, recon in source.recons.items()}
    return ListSource(source.x[mine], recons, source.groups[mine], batch_size=100, description={"kind": kind})


def tensors(moments: FoldMoments) -> dict[str, torch.Tensor]:
    found = {}
    for k, (fold, keys) in enumerate(zip(moments.folds, moments.documents, strict=True)):
        found[f"{k}.n"] = torch.tensor(fold.n)
        found[f"{k}.documents"] = torch.from_numpy(keys.astype(np.uint64).view(np.int64))
        for name in ("mean", "cross", "error_gram", "target_ss", "far_x"):
            found[f"{k}.{name}"] = getattr(fold, name)
    return found


# what every process runs: argument 1 says what, in turn, argument 2 is a folder
SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from safetensors.torch import save_file
import torch
from darkmatter import Checkpoint, InputError, decompose_many
from darkmatter.distributed import start, world
from darkmatter.groups import decompose_groups, pass_bytes
from darkmatter.stream import accumulate
from tests.helpers import ListSource
from tests.test_distributed import FOLDS, KINDS, share, shared_world, tensors
from tests.test_store import Dying, KilledError

torch.set_num_threads(1)
folder = Path(sys.argv[2])

def groups():
    def make(names):
        whole = share(shared_world("plain"), *world(), "plain")
        return ListSource(whole.x, {n: whole.recons[n] for n in names}, whole.groups, 100, {"kind": "plain"})
    memory = pass_bytes(5, 1, FOLDS)
    return decompose_groups(
        make, ("sae0", "sae1"), d_model=5, memory=memory, folder=folder / "g", folds=FOLDS, sharded=True
    )

def refused(source, folds):
    try:
        accumulate(source, folds=folds, sharded=True)
    except InputError as error:
        return str(error)
    raise AssertionError("not refused")

def write(name, text):
    (folder / f"{name}-{world()[0]}.txt").write_text(text)

def run(what, rank, size):
    if what == "differ":
        write(what, refused(shared_world("few"), FOLDS + rank))
    elif what == "nothing":
        write(what, refused(replace(shared_world("few"), x=torch.zeros(0, 3)), FOLDS))
    elif what == "groups":
        for _ in range(2):
            results = groups()
        write(what, "\\n".join(results))
    else:
        kind = what if what in KINDS else "plain"
        source = share(shared_world(kind), rank, size, kind)
        checkpoint = None if what in KINDS else Checkpoint(folder / "saves", every_seconds=0.0)
        if what == "die":
            source = Dying(source, 3 + 4 * rank)
        moments = accumulate(source, folds=FOLDS, checkpoint=checkpoint, sharded=True)
        save_file({k: t.contiguous() for k, t in tensors(moments).items()}, folder / f"{what}-{rank}.safetensors")
        if what == "plain":
            results = decompose_many(source, folds=FOLDS, sharded=True)
            write(what, "\\n".join(r.to_json() for r in results.values()))

try:
    with start("gloo") as (rank, size):
        for what in sys.argv[1].split(","):
            run(what, rank, size)
except KilledError:
    sys.exit(7)
"""


def environment(**more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}}
    return {**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", **more}


def free_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return str(sock.getsockname()[1])


def two(what: str, folder: Path, code: int = 0) -> None:
    """Run two processes to their end."""
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, what, str(folder)],
            cwd=ROOT,
            env=environment(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [code] * 2, errors


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run of everything that needs no second life: to start processes takes longest."""
    folder = tmp_path_factory.mktemp("two")
    two(",".join([*KINDS, "groups", "differ", "nothing"]), folder)
    return folder


def texts(folder: Path, what: str) -> list[str]:
    return [(folder / f"{what}-{rank}.txt").read_text() for rank in range(2)]


def sums(folder: Path, what: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(folder / f"{what}-{rank}.safetensors") for rank in range(2)]


def assert_same_sums(got: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor], mean: float) -> None:
    """Within 1e-9 of the size of the sums; the mean within roundings of itself."""
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        if name.endswith((".n", ".documents")):
            assert torch.equal(got[name], tensor), name
        else:
            # |x|² has the mean d · mean², and a scatter loses its digits to that: see test_moments
            scale = float(tensor.abs().max()) + (mean**2 if ".cross" in name or "target" in name else 0.0) + 1e-300
            assert float((got[name] - tensor).abs().max()) <= 1e-9 * scale, name


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(kind: str, everything: Path) -> None:
    first, second = sums(everything, kind)
    assert all(torch.equal(first[name], second[name]) for name in first)  # bit for bit the same in both
    one = accumulate(shared_world(kind), folds=FOLDS)
    assert_same_sums(first, tensors(one), MEANS.get(kind, 0.0))
    assert (min(fold.n for fold in one.folds) == 0) is (kind == "few")


def test_both_get_the_same_decomposition(everything: Path) -> None:
    first, second = texts(everything, "plain")
    assert first == second
    one = decompose_many(shared_world("plain"), folds=FOLDS)
    assert_close_json(first, "\n".join(result.to_json() for result in one.values()))


def assert_close_json(got: str, want: str) -> None:
    pairs = zip(got.splitlines(), want.splitlines(), strict=True)
    for a, b in pairs:
        key, mark, value = a.strip().rstrip(",").partition(": ")
        other = b.strip().rstrip(",").partition(": ")[2]
        if mark and value[:1].isdigit() and "." in value:
            slack = 1e-3 if "shrinkage" in key or "condition" in key else 1e-9
            assert float(value) == pytest.approx(float(other), rel=slack, abs=1e-9), key
        elif not a.strip().startswith(("0.", "1.", "2.", "-")):
            assert a == b


def test_without_the_shift_the_sums_would_be_wrong() -> None:
    # the comparison above can fail: sums about each process's own mean do not simply add up
    source = shared_world("plain")
    halves = [accumulate(share(source, rank, 2, "plain"), folds=FOLDS) for rank in range(2)]
    whole = accumulate(source, folds=FOLDS)
    added = halves[0].folds[0].cross + halves[1].folds[0].cross
    gap = (added - whole.folds[0].cross).abs().max() / whole.folds[0].cross.abs().max()
    assert float(gap) > 1e-6


def test_every_process_resumes_from_its_own_save(everything: Path, tmp_path: Path) -> None:
    saves = tmp_path / "saves"
    two("die", tmp_path, code=7)
    done = [json.loads((saves / f"part-rank-{r}" / "checkpoint.json").read_text())["batches"] for r in range(2)]
    assert done == [3, 7]
    # alone, or with another number of processes, these are the sums of another run
    part = share(shared_world("plain"), 0, 2, "plain")
    with pytest.raises(FileFormatError, match="of another run"):
        accumulate(part, folds=FOLDS, checkpoint=Checkpoint(saves), sharded=True)
    two("go", tmp_path)
    want = sums(everything, "plain")[0]
    assert all(torch.equal(tensor, want[name]) for name, tensor in sums(tmp_path, "go")[1].items())


def test_groups_over_two_processes(everything: Path) -> None:
    assert texts(everything, "groups") == ["sae0\nsae1", ""]
    want = decompose_many(shared_world("plain"), folds=FOLDS)
    for number, name in enumerate(want):
        got = json.loads((everything / "g" / f"group-{number}.json").read_text())["saes"][name]
        assert got["fvu_nonlinear"]["value"] == pytest.approx(want[name].fvu_nonlinear.value, rel=1e-9)
        assert got["n_tokens"] == 3000
    assert not list((everything / "g").glob("*/"))  # saves of finished passes are gone


def test_processes_that_disagree_or_have_nothing_are_refused(everything: Path) -> None:
    for text in texts(everything, "differ"):
        assert text.startswith("the 2 processes accumulated different SAEs, widths or numbers of folds: start all")
    for text in texts(everything, "nothing"):
        assert text.startswith("the source yields no tokens")


def test_torchrun_starts_them(everything: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    done = subprocess.run(
        [*command, f"--master-port={free_port()}", str(script), "few", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    want = sums(everything, "few")[0]
    assert all(torch.equal(tensor, want[name]) for name, tensor in sums(tmp_path, "few")[1].items())


def test_a_process_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert world() == (0, 1)
    moments = accumulate(shared_world("few"), folds=FOLDS)
    assert reduce_moments(moments) is moments
    assert agreed(5) == 5
    with start() as found:
        assert found == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert world() == (1, 4)
    with pytest.raises(InputError, match=r"^process 1 of 4 is not connected to the others: call distributed.start\(\)"):
        reduce_moments(moments)


BAD: dict[str, tuple[Mapping[str, str], str]] = {
    "only one": ({"RANK": "0"}, r"^the environment has RANK=0 and WORLD_SIZE=None, expected 0 <= RANK < WORLD_SIZE"),
    "no number": ({"RANK": "x", "WORLD_SIZE": "2"}, r"RANK=x and WORLD_SIZE=2"),
    "beyond": ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK=2 and WORLD_SIZE=2"),
    "no address": (
        {"RANK": "0", "WORLD_SIZE": "2"},
        r"^2 processes, but .* has no MASTER_ADDR and no MASTER_PORT: start",
    ),
    "no port number": (
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"},
        r"^process 1 of 2 cannot join the others through gloo \(.*\): check MASTER_ADDR, MASTER_PORT",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_environment_is_one_line(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    given, match = BAD[case]
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=match) as caught, start("gloo"):
        pass
    assert "\n" not in str(caught.value)


def test_a_missing_backend_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    backend: Any = "carrier"
    with pytest.raises(InputError, match=r"^this torch has no carrier, expected a build with it"), start(backend):
        pass
