"""The command line: what it writes, that it repeats itself, and that a run killed at any time goes on."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

from darkmatter import __version__
from darkmatter.adapters import ArraySource, files_source
from darkmatter.cli import app
from darkmatter.decomposition import decompose_many
from darkmatter.report import FORMAT, FORMAT_VERSION
from darkmatter.sae import load_sae
from tests.helpers import tiny_world

Arguments = list[str | Path | int]
SURGICAL: Arguments = [
    *shlex.split("synth --features 64 --d-model 16 --dense-dim 4 --l0 4 --doc-tokens 16 --tokens 2048 --surgical"),
]
TINY: Arguments = [*SURGICAL[:-1], *shlex.split("--latents 32 --k 4 --train-tokens 4096")]
"""Runs of a second or two."""
WRITTEN = {"report.json", "experiment.json", "decomposition.png", "world.png"}
HEAVY = ("torch", "numpy", "scipy", "matplotlib", "transformers", "safetensors")


def invoke(*args: str | Path | int) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def good(*args: str | Path | int) -> Result:
    result = invoke(*args)
    assert result.exit_code == 0, result.stderr
    return result


def process(*args: str | Path | int, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "darkmatter", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def save_arrays(folder: Path, *, n: int = 2000, d: int = 12, n_saes: int = 1, suffix: str = ".npy") -> Arguments:
    """Files of a tiny world, and the options that read them."""
    world = tiny_world(n, d, n_saes=n_saes)
    arrays = {"x": world.x, "docs": world.groups, **world.recons}
    arrays = {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in arrays.items()}
    for name, array in arrays.items():
        if suffix == ".npy":
            np.save(folder / f"{name}.npy", array)
        else:
            save_file({"data": array}, folder / f"{name}.safetensors")
    recons: Arguments = [part for name in world.recons for part in ("--recon", folder / f"{name}{suffix}")]
    return ["--acts", folder / f"x{suffix}", "--docs", folder / f"docs{suffix}", *recons]


# start-up


def test_help_needs_less_than_half_a_second() -> None:
    # processor time, not wall-clock: other processes on the machine must not fail this
    used = []
    for _ in range(5):
        before = os.times()
        assert "decompose" in process("--help").stdout
        after = os.times()
        used.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(used) < 0.5


@pytest.mark.parametrize("command", [(), ("synth",), ("sweep",), ("presets",), ("decompose",), ("train-sae",)])
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    code = f"""
import sys
from darkmatter.cli import app
try:
    app([*{command!r}, "--help"])
except SystemExit as end:
    assert end.code == 0
assert not {{name.partition(".")[0] for name in sys.modules}} & set({HEAVY!r})
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout and not done.stderr


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"""
import sys, darkmatter
assert darkmatter.__version__ and not set(sys.modules) & set({HEAVY!r})
from darkmatter import decompose, from_arrays, World
import darkmatter.plots, darkmatter.commands.decompose, darkmatter.commands.synth, darkmatter.commands.train_sae
import darkmatter.commands.sweep, darkmatter.plots_sweep, darkmatter.plots_world
assert not set(sys.modules) & {{"matplotlib", "transformers"}}
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version() -> None:
    assert good("--version").stdout == f"darkmatter {__version__}\n"


# synth


def test_synth_writes_report_figure_and_sae(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    result = good(*TINY, "--out", out)
    assert {path.name for path in out.iterdir()} == {*WRITTEN, "recovery.json", "sae"}
    assert {(out / f"{name}.png").read_bytes()[:4] for name in ("decomposition", "world")} == {b"\x89PNG"}
    sae = load_sae(out / "sae")
    assert (sae.d_model, sae.d_sae, sae.k) == (16, 32, 4)
    report = json.loads((out / "report.json").read_text())
    assert (report["format"], report["version"]) == (FORMAT, FORMAT_VERSION)
    assert report["training"]["sae"]["config"]["n_tokens"] == report["training"]["sae"]["n_tokens"] == 4096
    assert report["source"]["world"]["n_features"] == 64
    assert "the 95 % interval" in result.stdout and report["verdicts"]["sae"].startswith("sae misses")
    assert "sae/" in result.stderr and "latents against true features" in result.stdout
    recovery = json.loads((out / "recovery.json").read_text())
    assert report["recovery"]["sae"]["mcc"] == recovery["mcc"] and len(recovery["features"]["cosine"]) == 64


def test_json_is_all_there_is_on_stdout_and_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    done = process(*TINY, "--json", "--out", tmp_path / "a", PYTHONHASHSEED="123")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "a" / "report.json").read_text())
    share = report["saes"]["sae"]["fvu_nonlinear"]
    assert 0 < share["low"] < share["value"] < share["high"] < 1
    truth = report["truth"]["sae"]
    assert all(math.isfinite(truth[name][end]) for name in ("introduced", "nonlinear") for end in ("low", "high"))
    assert truth["introduced"]["value"] > 0 and truth["n_learned"] >= 0
    # another process, with tables in place of JSON
    good(*TINY, "--out", tmp_path / "b")
    good(*TINY, "--out", tmp_path / "c", "--seed", "1")
    for name in ("report.json", "experiment.json", "decomposition.png", "world.png", "sae/sae.safetensors"):
        first, again, other = ((tmp_path / run / name).read_bytes() for run in "abc")
        assert first == again != other, name


def test_a_second_run_takes_the_sae_of_the_first(tmp_path: Path) -> None:
    first = good(*TINY, "--out", tmp_path)
    files = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    stamp = (tmp_path / "sae" / "cfg.json").stat().st_mtime_ns
    second = good(*TINY, "--out", tmp_path)
    assert "Using the SAE that this same command trained before" in second.stderr
    assert "Using the SAE" not in first.stderr
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == files
    assert (tmp_path / "sae" / "cfg.json").stat().st_mtime_ns == stamp
    # more tokens to decompose is the same SAE; another world, or other training, is not
    assert "Using the SAE" in good(*TINY, "--tokens", "1024", "--out", tmp_path).stderr
    assert "Using the SAE" not in good(*TINY, "--k", "5", "--out", tmp_path).stderr
    assert load_sae(tmp_path / "sae").k == 5


@pytest.mark.parametrize(
    "kind", ["none", "independent", "heteroscedastic", "dense", "function", "interference", "affine"]
)
def test_surgical_saes_of_every_kind(tmp_path: Path, kind: str) -> None:
    args = [*SURGICAL, "--learned", "24", "--introduced", kind, "--out", tmp_path, "--json"]
    report = json.loads(good(*args).stdout)
    assert not (tmp_path / "sae").exists()
    truth = report["truth"]["surgical"]
    assert report["training"]["surgical"]["introduced"] == kind and truth["n_learned"] == 24
    numeric = kind in {"function", "interference"}  # topics make the features of this world dependent
    assert truth["method"].startswith("Monte Carlo" if numeric else "closed form")
    if not numeric:
        assert truth["introduced"]["value"] == pytest.approx(0.0 if kind in {"none", "affine"} else 0.03, rel=1e-9)
    assert report["saes"]["surgical"]["fvu_nonlinear"]["value"] > 0
    shares = {"--introduced-share": "0.08", "--shrinkage": "0.2"}
    if kind == "independent":
        again = json.loads(good(*args, *(part for pair in shares.items() for part in pair)).stdout)
        assert again["truth"]["surgical"]["introduced"]["value"] == 0.08


def test_a_world_without_a_dense_part(tmp_path: Path) -> None:
    report = json.loads(good(*TINY, "--dense-dim", "0", "--out", tmp_path, "--json").stdout)
    assert report["source"]["world"]["dense_share"] == 0 and abs(report["truth"]["sae"]["dense"]["value"]) < 1e-12


# decompose


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_decompose_says_exactly_what_python_says(tmp_path: Path, suffix: str) -> None:
    args = save_arrays(tmp_path, n_saes=3, suffix=suffix)
    out = tmp_path / "out"
    done = good("decompose", *args, "--out", out, "--json", "--folds", "10")
    assert {path.name for path in out.iterdir()} == {"report.json", "decomposition.png", "linear_maps.safetensors"}
    report = json.loads(done.stdout)
    assert report == json.loads((out / "report.json").read_text())
    recons: dict[str, str | Path] = {f"sae{i}": tmp_path / f"sae{i}{suffix}" for i in range(3)}
    source = files_source(tmp_path / f"x{suffix}", recons, tmp_path / f"docs{suffix}")
    results = decompose_many(source, folds=10)
    assert report["saes"] == {name: json.loads(result.to_json()) for name, result in results.items()}
    assert report["source"] == source.description
    maps = load_file(out / "linear_maps.safetensors")
    for name, result in results.items():
        assert result.linear_map is not None
        np.testing.assert_array_equal(maps[f"{name}.weight"], result.linear_map.weight.numpy())
        np.testing.assert_array_equal(maps[f"{name}.bias"], result.linear_map.bias.numpy())


def test_names_and_tables(tmp_path: Path) -> None:
    args = save_arrays(tmp_path)
    shown = good("decompose", *args, "--recon", f"other={tmp_path / 'sae0.npy'}", "--out", tmp_path / "out").stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["saes"]) == ["sae0", "other"]
    assert "sae0: shares of the variance of x" in shown and "sae0 | other" in shown
    # one array under two names: nothing is private to either
    pair = report["saes"]["sae0"]["replicates"]["other"]
    assert pair["unshared"]["value"] == pytest.approx(0, abs=1e-12)
    assert pair["correlation"]["value"] == pytest.approx(1, abs=1e-9)


def test_one_safetensors_file_may_hold_both_arrays(tmp_path: Path) -> None:
    save_arrays(tmp_path)
    arrays = {"x": np.load(tmp_path / "x.npy"), "recon": np.load(tmp_path / "sae0.npy")}
    save_file(arrays, tmp_path / "both.safetensors")
    both = tmp_path / "both.safetensors"
    options = ("--docs", tmp_path / "docs.npy", "--json", "--out", tmp_path / "out")
    a = json.loads(good("decompose", "--acts", f"{both}:x", "--recon", f"sae0={both}:recon", *options).stdout)
    separate = ("--acts", tmp_path / "x.npy", "--recon", tmp_path / "sae0.npy")
    b = json.loads(good("decompose", *separate, *options).stdout)
    assert a["saes"] == b["saes"]


def test_warnings_and_dead_saes_are_shown(tmp_path: Path) -> None:
    args = save_arrays(tmp_path, n=600)
    np.save(tmp_path / "dead.npy", np.full((600, 12), 0.25, dtype=np.float32))
    shown = good("decompose", *args, "--recon", tmp_path / "dead.npy", "--out", tmp_path / "out").stdout
    assert "dead is dead" in " ".join(shown.split()) and "only 60 documents for 20 folds" in " ".join(shown.split())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["saes"]["dead"]["gain"] == {"value": None, "low": None, "high": None}


def test_a_failing_run_leaves_an_earlier_report_alone(tmp_path: Path) -> None:
    args, out = save_arrays(tmp_path), tmp_path / "out"
    good("decompose", *args, "--out", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    x = np.load(tmp_path / "x.npy")
    x[-1, -1] = np.nan
    np.save(tmp_path / "x.npy", x)
    assert invoke("decompose", *args, "--out", out).exit_code == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


# killed runs


def test_a_run_killed_by_the_system_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = save_arrays(tmp_path, n=60_000, d=32)  # 15 batches
    good("decompose", *args, "--out", tmp_path / "whole")
    out = tmp_path / "killed"
    command = ("decompose", *args, "--out", out, "--checkpoint-seconds", "0")
    index = out / "checkpoint" / "checkpoint.json"
    running = subprocess.Popen([sys.executable, "-m", "darkmatter", *map(str, command)], stderr=subprocess.PIPE)
    stop = time.monotonic() + 60
    while not index.exists() and running.poll() is None and time.monotonic() < stop:
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert not (out / "report.json").exists()
    saved = json.loads(index.read_text())["batches"]
    assert 1 <= saved < 15

    starts: list[int] = []
    original = ArraySource.batches_from

    def watched(self: ArraySource, start: int) -> Any:
        starts.append(start)
        return original(self, start)

    monkeypatch.setattr(ArraySource, "batches_from", watched)
    good(*command)
    assert starts == [saved], "the run did not go on where it was"
    for name in ("report.json", "decomposition.png", "linear_maps.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (out / "checkpoint").exists()


@pytest.mark.parametrize("command", ["decompose", "synth"])
def test_an_interrupted_command_says_that_it_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    module = {"decompose": "decompose", "synth": "measure"}[command]
    monkeypatch.setattr(f"darkmatter.commands.{module}.decompose_many", interrupted)
    args: Arguments = ["decompose", *save_arrays(tmp_path)] if command == "decompose" else TINY
    result = invoke(*args, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert result.stderr.startswith("interrupted; the same command") and result.stderr.count("\n") == 1
    assert not result.stdout
