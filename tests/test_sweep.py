"""Sweeps: every cell by itself, in any process and order; nothing is lost, nothing is done twice."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from darkmatter.commands import cells as cells_module
from darkmatter.commands.cells import cell_path
from darkmatter.commands.gather import MEASURED, VALUES, gather
from darkmatter.commands.grid import Cell, identity_of, make_cells, read_axes, read_share
from darkmatter.commands.settings import OPTIONS
from darkmatter.errors import InputError
from darkmatter.plots_sweep import Point, save_sweep_figure
from darkmatter.sandbox.experiment import Experiment
from darkmatter.sandbox.presets import PRESETS
from tests.test_cli import Arguments, invoke

BASE = PRESETS["tiny"].experiment.to_dict()
QUICK: Arguments = ["sweep", "--preset", "tiny", "--grid", "features=64", "--grid", "tokens=2048", "--grid", "l0=4"]
GRID: Arguments = [*QUICK, "--kinds", "none,independent,heteroscedastic", "--seeds", "0..1"]
"""Six surgical cells of a blink each."""


def run(*args: Any, out: Path, code: int = 0) -> Any:
    result = invoke(*args, "--out", out)
    assert result.exit_code == code, result.output
    return result


def cell_files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "cells").glob("[!.]*.json")}


def table(out: Path) -> list[dict[str, str]]:
    with (out / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# axes, cells and shares


def test_axes_are_read() -> None:
    axes = read_axes(["l0=2,3", "--dense_dim=4", "dictionary=random,clustered"], {"latents": "8, 16", "seed": "0..2"})
    assert axes == {
        "latents": ["8", "16"],
        "seed": ["0", "1", "2"],
        "l0": ["2", "3"],
        "dense-dim": ["4"],
        "dictionary": ["random", "clustered"],
    }
    assert list(axes) == ["latents", "seed", "l0", "dense-dim", "dictionary"]


def test_cells_are_the_product_and_know_their_values() -> None:
    axes = {"latents": ["16", "32"], "k": ["2", "4"], "kind": ["topk", "relu"]}
    cells = make_cells(BASE, axes)
    assert [tuple(cell.axes.values()) for cell in cells[:3]] == [
        ("16", "2", "topk"),
        ("16", "2", "relu"),
        ("16", "4", "topk"),
    ]
    assert len({cell.identity for cell in cells}) == 8
    for cell in cells:
        sae = cell.experiment.sae
        sparsity = sae.k if cell.kind == "topk" else sae.l0
        assert (str(sae.d_sae), str(int(sparsity)), sae.architecture) == tuple(cell.axes.values())
        assert cell.experiment.n_tokens == PRESETS["tiny"].experiment.n_tokens


def test_kinds_may_mix_trained_and_surgical() -> None:
    cells = make_cells(BASE, {"kind": ["topk", "none", "dense"], "l0": ["3", "4"]})
    assert [cell.kind for cell in cells] == ["topk", "topk", "none", "none", "dense", "dense"]
    assert [cell.experiment.sae.introduced_share for cell in cells[2:]] == [0, 0, 0.03, 0.03]


@given(st.permutations(sorted(BASE)))
def test_the_identity_is_that_of_the_experiment(order: list[str]) -> None:
    shuffled = {name: BASE[name] for name in order}
    assert identity_of(shuffled) == identity_of(BASE)
    through_json = json.loads(json.dumps(shuffled))
    assert identity_of(through_json) == identity_of(BASE)
    changed = {**BASE, "run": {**BASE["run"], "n_tokens": 8191}}
    assert identity_of(changed) != identity_of(BASE)


def test_one_experiment_has_one_identity_however_it_is_written() -> None:
    (first,) = make_cells(BASE, {"l0": ["4"]})
    (second,) = make_cells(BASE, {"l0": ["4.0"], "seed": ["0"]})
    assert first.identity == second.identity


@given(count=st.integers(0, 40), total=st.integers(1, 50))
def test_shares_are_a_partition(count: int, total: int) -> None:
    cells = list(range(count))
    shares = [cells[number - 1 :: of] for number, of in (read_share(f"{i}/{total}") for i in range(1, total + 1))]
    assert sorted(cell for share in shares for cell in share) == cells
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


BAD_GRIDS = [
    ("", "no axis to sweep over"),
    ("--grid l0", "expected NAME=V1,V2"),
    ("--grid =3", "expected NAME=V1,V2"),
    ("--grid gravity=9.81", "no axis 'gravity'"),
    ("--grid l0=", "expected values with commas between"),
    ("--grid l0=3,,4", "expected values with commas between"),
    ("--grid l0=3,3", "expected every value once"),
    ("--grid l0=3,3.0", "are the same experiment"),
    ("--grid l0=3 --grid l0=4", "the axis 'l0' twice"),
    ("--widths 16 --grid latents=32", "the axis 'latents' twice"),
    ("--widths many", "latents is 'many', expected a whole number"),
    ("--seeds 4..1", "ranges such as 0..4"),
    ("--seeds 0..999999999", "ranges such as 0..4"),
    ("--seeds 0..9999 --widths 1..99", "cells, expected at most"),
    ("--kinds topk,magic", "architecture is 'magic'"),
    ("--kinds none --widths 16", "--latents is an option of trained SAEs"),
    ("--grid l0=3,300", "cell l0=300: l0 is 300"),
    ("--k 0", "k is 0"),
    ("--k 65", "k is 65, expected at most d_sae = 64"),
    ("--seeds 0 --cell 0/2", "cell is '0/2', expected i/N"),
    ("--seeds 0 --cell 3/2", "cell is '3/2'"),
    ("--seeds 0 --cell 1", "cell is '1'"),
    ("--seeds 0 --cell 1/-2", "cell is '1/-2'"),
    ("--seeds 0 --preset huge", "preset is 'huge'"),
    ("--seeds 0 --config nowhere.json", "does not exist"),
    ("--seeds 0 --grid tokens=16", "cell seed=0 tokens=16: "),
    ("--seeds 0 --grid truth-tokens=1", "expected at least"),
    ("--seeds 0 --gather", "has none of the 1 cells"),
]


@pytest.mark.parametrize(("options", "words"), BAD_GRIDS)
def test_impossible_grids_are_refused_before_any_work(tmp_path: Path, options: str, words: str) -> None:
    preset = [] if "--preset" in options else ["--preset", "tiny"]
    result = run("sweep", *preset, *options.split(), out=tmp_path / "out", code=2)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and not result.stdout
    assert words in result.stderr and not (tmp_path / "out").exists()


# what a sweep leaves


def test_a_sweep_leaves_cells_a_table_and_a_figure(tmp_path: Path) -> None:
    done = run(*GRID, "--json", out=tmp_path)
    left = {path.name for path in tmp_path.iterdir()} - {"sweep.parquet"}  # that one only where pyarrow is installed
    assert left == {"cells", "sweep.json", "sweep.csv", "sweep.png"}
    summary = json.loads(done.stdout)
    assert [cell["state"] for cell in summary["cells"]] == ["done"] * 6 and summary["missing"] == 0
    rows = table(tmp_path)
    columns = ["cell", "kind", "seed", "features", "tokens", "l0", "quantity", *VALUES]
    assert list(rows[0]) == columns
    for cell in summary["cells"]:
        record = json.loads((tmp_path / "cells" / f"{cell['cell']}.json").read_text())
        assert record["report"] == cell["report"]
        assert identity_of(record["experiment"]) == record["cell"] == cell["cell"]
        found = {row["quantity"]: row for row in rows if row["cell"] == cell["cell"]}
        assert set(MEASURED) | {"introduced", "absent", "dense"} <= set(found)
        measured, truth = cell["report"]["saes"]["surgical"], cell["report"]["truth"]["surgical"]
        for quantity in MEASURED:
            ends = [float(found[quantity][end]) for end in ("value", "low", "high")]
            assert ends == [measured[quantity][end] for end in ("value", "low", "high")]
        assert float(found["fvu_nonlinear"]["truth"]) == truth["nonlinear"]["value"]
        assert float(found["introduced"]["truth"]) == truth["introduced"]["value"]
        assert {row["kind"] for row in rows if row["cell"] == cell["cell"]} == {cell["kind"]}
    assert imread(tmp_path / "sweep.png").shape[2] == 4


def test_trained_cells_have_their_recovery_in_the_table(tmp_path: Path) -> None:
    args = [*QUICK, "--grid", "train-tokens=2048", "--kinds", "topk,jumprelu", "--k", "3", "--keep-saes"]
    run(*args, out=tmp_path)
    recovered = {(row["kind"], row["quantity"]): row["value"] for row in table(tmp_path)}
    assert float(recovered["topk", "l0"]) == pytest.approx(3, abs=1e-6)
    assert 0 < float(recovered["jumprelu", "mcc"]) < 1
    for name in cell_files(tmp_path):
        assert (tmp_path / "saes" / name.removesuffix(".json") / "sae" / "cfg.json").exists()


def test_the_cells_do_not_depend_on_who_runs_them(tmp_path: Path) -> None:
    run(*GRID, out=tmp_path / "whole")
    for share in ("3/4", "1/4", "4/4"):
        result = run(*GRID, "--cell", share, out=tmp_path / "parts")
        assert "still to be done" in result.stderr and not (tmp_path / "parts" / "sweep.csv").exists()
    run(*GRID, "--cell", "2/4", out=tmp_path / "parts")
    assert cell_files(tmp_path / "parts") == cell_files(tmp_path / "whole") != {}
    for name in ("sweep.csv", "sweep.png", "sweep.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_more_shares_than_cells_leave_some_empty(tmp_path: Path) -> None:
    assert "0 of them here" in run(*GRID, "--cell", "9/9", out=tmp_path).stderr


def test_finished_cells_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*GRID, out=tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    measured: list[Experiment] = []
    original = cells_module.measure

    def counted(experiment: Experiment, **options: Any) -> Any:
        measured.append(experiment)
        return original(experiment, **options)

    monkeypatch.setattr(cells_module, "measure", counted)
    run(*GRID, out=tmp_path)
    assert not measured
    next(iter(stamps)).unlink()
    run(*GRID, out=tmp_path)
    assert len(measured) == 1
    # one seed more: only its cells are new
    run(*[*GRID[:-1], "0..2"], out=tmp_path)
    assert len(measured) == 4 and len(cell_files(tmp_path)) == 9
    untouched = list(stamps)[1:]
    assert [path.stat().st_mtime_ns for path in untouched] == [stamps[path] for path in untouched]


def test_a_failing_cell_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = cells_module.measure

    def fails(experiment: Experiment, **options: Any) -> Any:
        if getattr(experiment.sae, "introduced", "") == "independent" and experiment.world.seed == 1:
            raise ValueError("this one\nbreaks")
        return original(experiment, **options)

    with monkeypatch.context() as patch:
        patch.setattr(cells_module, "measure", fails)
        result = run(*GRID, "--json", out=tmp_path, code=3)
    assert "FAILED: ValueError: this one breaks" in result.stderr and "1 of 6 cells" in result.stderr
    states = {cell["state"]: cell for cell in json.loads(result.stdout)["cells"]}
    assert states["failed"]["error"] == "ValueError: this one breaks"
    assert len(cell_files(tmp_path)) == 6 and not (tmp_path / "sweep.csv").exists()
    # what is there can be gathered all the same
    run(*GRID, "--gather", out=tmp_path)
    assert len({row["cell"] for row in table(tmp_path)}) == 5
    # and the next run mends it
    assert "5 done before" in run(*GRID, out=tmp_path).stderr
    assert len({row["cell"] for row in table(tmp_path)}) == 6


def test_a_late_failure_does_not_hide_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes at one cell: the one that fails must not overwrite the one that is done."""
    run(*GRID, out=tmp_path)
    before = cell_files(tmp_path)
    monkeypatch.setattr("darkmatter.commands.sweep.unfinished", lambda out, cells: list(cells))

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("the other process removed it")

    monkeypatch.setattr(cells_module, "measure", fails)
    run(*GRID, out=tmp_path, code=3)
    assert cell_files(tmp_path) == before


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    run(*GRID, out=tmp_path)
    path = sorted((tmp_path / "cells").iterdir())[0]
    path.write_text(path.read_text()[:100])
    result = run(*GRID, out=tmp_path, code=2)
    assert str(path) in result.stderr and result.stderr.count("\n") == 1
    path.write_text("{}")
    assert "delete it" in run(*GRID, out=tmp_path, code=2).stderr


def test_cells_are_listed_with_their_state(tmp_path: Path) -> None:
    shown = run(*GRID, "--list", out=tmp_path / "out").stdout
    assert shown.count("missing") == 6 and "heteroscedastic" in shown and not (tmp_path / "out").exists()
    run(*GRID, "--cell", "1/2", out=tmp_path / "out")
    listed = json.loads(run(*GRID, "--list", "--json", out=tmp_path / "out").stdout)["cells"]
    assert [cell["state"] for cell in listed] == ["done", "missing"] * 3
    assert [cell["axes"]["kind"] for cell in listed] == ["none", "independent", "heteroscedastic"] * 2
    share = json.loads(run(*GRID, "--list", "--json", "--cell", "2/2", out=tmp_path / "out").stdout)["cells"]
    assert share == listed[1::2]


def test_a_sweep_is_one_file(tmp_path: Path) -> None:
    run(*GRID, out=tmp_path / "a")
    run("sweep", "--config", tmp_path / "a" / "sweep.json", out=tmp_path / "b")
    for name in ("sweep.csv", "sweep.png", "sweep.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    # axes on the command line take the place of the file's
    args = ["sweep", "--config", tmp_path / "a" / "sweep.json", "--seeds", "7", "--list", "--json"]
    listed = json.loads(run(*args, out=tmp_path / "a").stdout)["cells"]
    assert [cell["axes"]["seed"] for cell in listed] == ["7"] * 3


@pytest.mark.parametrize(
    "content",
    ['{"format": "darkmatter-sweep"}', '{"format": "darkmatter-sweep", "version": 1, "base": {}, "axes": {"l0": [3]}}'],
)
def test_a_damaged_sweep_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "sweep.json"
    path.write_text(content)
    result = run("sweep", "--config", path, out=tmp_path / "out", code=2)
    assert str(path) in result.stderr and result.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_killed_sweep_goes_on(tmp_path: Path) -> None:
    run(*GRID, out=tmp_path / "whole")
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "darkmatter", *map(str, GRID), "--out", str(out)]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    stop = time.monotonic() + 60
    while not list(cell_files(out)) and running.poll() is None and time.monotonic() < stop:
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert running.returncode == -signal.SIGKILL, "it ended before it could be killed"
    saved = cell_files(out)
    assert 1 <= len(saved) < 6
    assert f"{len(saved)} done before" in run(*GRID, out=out).stderr
    assert cell_files(out) == cell_files(tmp_path / "whole")


def test_an_interrupted_sweep_says_that_it_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cells_module, "measure", interrupted)
    assert "interrupted; the same command" in run(*GRID, out=tmp_path, code=130).stderr
    assert not cell_files(tmp_path)


# the table and the figure


def records(axes: dict[str, list[str]]) -> list[tuple[Cell, dict[str, Any]]]:
    """Made-up results, without truth."""
    share = {"value": 0.2, "low": 0.19, "high": 0.21}
    measured = {**dict.fromkeys(MEASURED, share), "introduced": {"low": 0.0, "high": 0.1}}
    return [(cell, {"report": {"saes": {"sae": measured}}}) for cell in make_cells(BASE, axes)]


def test_a_parquet_table_where_pyarrow_is_installed(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    axes = {"latents": ["16", "32"]}
    assert gather(tmp_path, records(axes), axes) == ["sweep.csv", "sweep.parquet", "sweep.png"]
    read = parquet.read_table(tmp_path / "sweep.parquet").to_pylist()
    assert [row["quantity"] for row in read] == [row["quantity"] for row in table(tmp_path)]


def test_a_table_without_truth(tmp_path: Path) -> None:
    axes = {"latents": ["16", "32"]}
    gather(tmp_path, records(axes), axes)
    rows = table(tmp_path)
    assert [row["quantity"] for row in rows] == [*MEASURED, "introduced"] * 2
    assert {row["truth"] for row in rows} == {""}


AXES: dict[str, dict[str, list[str]]] = {
    "widths, sparsity, kinds, seeds": {
        "kind": ["topk", "relu"],
        "latents": ["16", "32", "64"],
        "k": ["2", "4"],
        "seed": ["0", "1"],
    },
    "kinds alone": {"kind": ["none", "independent", "heteroscedastic", "dense", "affine"]},
    "architectures": {"architecture": ["topk", "batchtopk"]},
    "seeds alone": {"seed": ["0", "1", "2"]},
    "one cell": {"latents": ["16"]},
    "words": {"dictionary": ["random", "clustered"], "zipf": ["0", "1"]},
    "many rows": {"zipf": ["0", "1"], "l0": [str(i) for i in range(1, 9)]},
}


@pytest.mark.parametrize("case", AXES)
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_figures_of_any_grid(tmp_path: Path, case: str, suffix: str) -> None:
    axes = AXES[case]
    ends = (0.2, 0.19, 0.21)
    points = [
        Point(
            kind=cell.kind,
            axes=cell.axes,
            measured={"fvu": ends, "fvu_nonlinear": (0.1, 0.1, 0.1 - 1e-17)},
            truth={"fvu": ends, "nonlinear": ends, "introduced": ends} if number else {},
        )
        for number, cell in enumerate(make_cells(BASE, axes))
    ]
    for name in ("a", "b"):
        save_sweep_figure(tmp_path / f"{name}{suffix}", points, axes)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_every_option_is_an_axis() -> None:
    assert read_axes([f"{name}=1" for name in OPTIONS], {}) == {name: ["1"] for name in OPTIONS}


def test_the_file_of_a_cell_is_its_identity(tmp_path: Path) -> None:
    (cell,) = make_cells(BASE, {"seed": ["3"]})
    assert cell_path(tmp_path, cell).name == f"{cell.identity}.json"
    with pytest.raises(InputError, match="cell is"):
        read_share("one of two")
