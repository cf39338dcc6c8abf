"""`darkmatter decompose` on a model in several processes, and killed at any time: the same report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from darkmatter.adapters.run_saes import SaeRunner
from tests.cli_models import FOLDS, TEXTS, TWO_FIT, Argument, Zoo, decompose, good, invoke, read, same, without

pytestmark = pytest.mark.models
WRITTEN = ("report.json", "decomposition.png", "linear_maps.safetensors")
FARTHEST = ("max_token_share", "max_leverage")
"""Of the farthest token, which is judged by the mean so far: the order of the tokens matters (docs/estimator.md)."""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    pytest.importorskip("transformers", reason="needs the `models` extra (transformers)")
    return Zoo.train(tmp_path_factory.mktemp("zoo"), "top", "jump", "mlp")


# processes


def test_two_processes_equal_one(zoo: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    options = ["decompose", *zoo.on("resid_post:1"), *zoo.three(), "--folds", FOLDS, "--json"]
    done = subprocess.run(
        [*command, "darkmatter", *map(str, options), "--checkpoint-seconds", "0", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # one report: two would not be JSON
    assert report == read(out)
    assert done.stderr.count("preflight: ") == done.stderr.count("Wrote") + 1 == 1
    assert {path.name for path in out.iterdir()} == set(WRITTEN)
    single = decompose(tmp_path / "single", *zoo.on("resid_post:1"), *zoo.three())
    for name, result in single["saes"].items():
        found = report["saes"][name]
        same(without(found, *FARTHEST), without(result, *FARTHEST), 1e-9)
        for quantity in FARTHEST:
            assert found[quantity] == pytest.approx(result[quantity], rel=0.25)
    assert report["source"] == {**single["source"], "documents_shared_by": 2}


@pytest.mark.parametrize("given", [("--cache", "nowhere", "--sae", "z"), ("--acts", "x.npy", "--recon", "y.npy")])
def test_what_is_for_one_process(given: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = invoke("decompose", *given, "--out", tmp_path / "out")
    words = f"error: {given[0]} is for one process, but there are 2: start without torchrun\n"
    assert (result.exit_code, result.stderr) == (2, words)


# killed runs


def test_a_run_killed_by_the_system_goes_on_to_the_same_bytes(zoo: Zoo, tmp_path: Path) -> None:
    options = (*zoo.on("resid_post:1"), *zoo.saes("top"), "--batch-docs", 2, "--folds", FOLDS, "--no-preflight")
    good("decompose", *options, "--out", tmp_path / "whole")
    out = tmp_path / "killed"
    index = out / "checkpoint" / "checkpoint.json"
    command = ("decompose", *options, "--checkpoint-seconds", 0, "--out", out)
    running = subprocess.Popen(
        [sys.executable, "-m", "darkmatter", *map(str, command)],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    stop = time.monotonic() + 60
    while not index.exists() and running.poll() is None and time.monotonic() < stop:
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert not (out / "report.json").exists()
    saved = json.loads(index.read_text())["batches"]
    assert 1 <= saved < len(TEXTS) / 2
    batches = counted(lambda: good(*command))
    assert batches == len(TEXTS) / 2 - saved, "the run did not go on where it was"
    for name in WRITTEN:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (out / "checkpoint").exists()


class _KilledError(BaseException):
    pass


def counted(run: Callable[[], object], *, until: int | None = None) -> int:
    """Batches of one site that SAEs are run on during a run, which is cut off before number `until`."""
    original, seen = SaeRunner.recons, 0

    def recons(self: SaeRunner, x: Any) -> Any:
        nonlocal seen
        if seen == until:
            raise _KilledError
        seen += 1
        return original(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SaeRunner, "recons", recons)
        run()
    return seen


@pytest.mark.parametrize(("how", "batches"), [("groups", 12), ("sites", 12), ("cache", 4)])
def test_other_runs_go_on_to_the_same_bytes(zoo: Zoo, tmp_path: Path, how: str, batches: int) -> None:
    # two groups, or two sites, of 6 batches of documents each, or of 2 of 4096 stored tokens; of two sites that are
    # read together the first, of which more was seen, does not run ahead
    site, names = ("resid_post:1", "mlp_out:1"), ("top", "mlp")
    options: tuple[Argument, ...] = ()
    if how != "sites":
        site, names = ("resid_post:1",), ("top", "lens=jump/saelens", "scope=jump/gemmascope")
        options = ("--memory", TWO_FIT)
    command = (*zoo.on(*site), *zoo.saes(*names), "--folds", FOLDS, "--no-preflight", "--checkpoint-seconds", 0)

    def run(name: str) -> object:
        cache = ("--write-cache", tmp_path / f"{name}-cache") if how == "cache" else ()
        return good("decompose", *command, *options, *cache, "--out", tmp_path / name)

    assert counted(lambda: run("whole")) == batches
    with pytest.raises(_KilledError):
        counted(lambda: run("cut"), until=batches * 3 // 4)
    assert not (tmp_path / "cut" / "report.json").exists()
    assert counted(lambda: run("cut")) == batches // 4 + (how == "sites"), "it did not go on where it was"
    for name in WRITTEN:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
