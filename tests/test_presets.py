"""Presets and settings: every option reachable, each source over the one below it, one file that says it all."""

from __future__ import annotations

import inspect
import json
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from darkmatter import Surgical, World
from darkmatter.cli import app, synth
from darkmatter.commands.closed_form import closed_form
from darkmatter.commands.measure import check_experiment
from darkmatter.commands.settings import OPTIONS, TYPES, resolve, with_options
from darkmatter.errors import DarkmatterError, FileFormatError, InputError
from darkmatter.sae import TrainConfig
from darkmatter.sandbox.experiment import DEFAULT_SURGICAL, Experiment
from darkmatter.sandbox.presets import PRESETS, preset
from darkmatter.sandbox.table import Table
from tests.test_cli import SURGICAL, TINY, good, invoke

NOT_SETTINGS = {"ctx", "preset", "config", "export", "out", "as_json", "surgical", "seed"}
SMALL = World(n_features=64, d_model=16, dense_dim=4, l0=4.0, doc_tokens=16)


def plain(experiment: Experiment) -> dict[str, Any]:
    """An experiment's JSON, as it comes back from a file."""
    found: dict[str, Any] = json.loads(json.dumps(experiment.to_dict(), allow_nan=False))
    return found


# presets


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_possible_and_survives_json(name: str, tmp_path: Path) -> None:
    experiment = preset(name).experiment
    check_experiment(experiment, out=tmp_path)
    assert Experiment.from_dict(plain(experiment)) == experiment
    assert preset(name).summary.endswith(".") and preset(name).name == name


def test_the_presets_are_those_that_the_docs_promise() -> None:
    assert list(PRESETS) == ["tiny", "paper", "synth-16k", "manifold", "hierarchy"]
    large = PRESETS["synth-16k"].experiment.world
    assert (large.n_features, large.d_model, large.zipf, large.l0, large.factors) == (16_384, 768, 0.5, 34.0, 25)
    assert large.correlation > 0 and large.firing_rates.sum() == pytest.approx(34, rel=1e-12)
    assert PRESETS["manifold"].experiment.world.dense == "circles"
    hierarchy = PRESETS["hierarchy"].experiment.world
    assert hierarchy.siblings == "exclusive" and hierarchy.depth and not hierarchy.independent
    assert closed_form(PRESETS["paper"].experiment) is not None


def test_presets_are_listed() -> None:
    shown = good("presets").stdout
    assert all(name in shown for name in PRESETS)
    assert good("synth", "--preset", "help").stdout == shown
    listed = json.loads(good("presets", "--json").stdout)
    assert {name: Experiment.from_dict(entry["experiment"]) for name, entry in listed.items()} == {
        name: entry.experiment for name, entry in PRESETS.items()
    }


def test_an_unknown_preset_names_the_others() -> None:
    with pytest.raises(InputError, match="preset is 'papre', expected one of tiny, paper, synth-16k"):
        preset("papre")


# the paper's test


def test_the_closed_form_is_the_paper_test_alone() -> None:
    paper = replace(
        PRESETS["paper"].experiment,
        world=World(n_features=64, d_model=16, dense_dim=16, dense_share=0.2, l0=4.0, topic_strength=0.0),
    )
    theory = closed_form(paper)
    assert theory is not None and isinstance(paper.sae, Surgical)
    assert theory.noise == pytest.approx(0.2, rel=1e-6)  # the world's map is float32
    assert theory.introduced == pytest.approx(0.1, rel=1e-9)
    truth = paper.world.truth(paper.sae)
    assert theory.fvu == pytest.approx(truth.fvu.value, rel=1e-6)
    assert theory.nonlinear == pytest.approx(truth.nonlinear.value, rel=1e-6)
    others = [
        replace(paper, world=replace(paper.world, dense_dim=15)),
        replace(paper, world=replace(paper.world, dense="student")),
        replace(paper, sae=replace(paper.sae, shrinkage=0.1)),
        replace(paper, sae=replace(paper.sae, learned=63)),
        replace(paper, sae=replace(paper.sae, introduced="heteroscedastic")),
        replace(paper, sae=TrainConfig(d_sae=8, k=2, n_tokens=4096)),
    ]
    assert [closed_form(other) for other in others] == [None] * len(others)


def test_the_report_of_the_paper_test_has_the_closed_form(tmp_path: Path) -> None:
    args = shlex.split("synth --preset paper --features 64 --d-model 16 --dense-dim 16 --l0 4 --tokens 20480")
    done = good(*args, "--out", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    theory, measured = report["theory"]["surgical"], report["saes"]["surgical"]
    assert theory["theorem"] == "T7" and theory["noise"] == pytest.approx(0.2, rel=1e-6)
    for ours, closed in (("fvu", "fvu"), ("linear_share", "linear"), ("fvu_nonlinear", "nonlinear")):
        # six half-widths of a 95 % interval are twelve standard errors: a false alarm below 1e-6 even at t with 19 df
        width = measured[ours]["high"] - measured[ours]["low"]
        assert abs(measured[ours]["value"] - theory[closed]) < 3 * width
    assert "closed form (T7)" in done.stdout


# options reach every setting, and each source overrides those below it


def test_every_setting_has_an_option_with_the_same_default() -> None:
    parameters = {
        name.replace("_", "-"): parameter.default
        for name, parameter in inspect.signature(synth).parameters.items()
        if name not in NOT_SETTINGS
    }
    assert set(parameters) == set(OPTIONS) - {"seed"}
    trained, surgical = plain(Experiment()), plain(Experiment(sae=DEFAULT_SURGICAL))
    for name, default in parameters.items():
        for part, field in OPTIONS[name]:
            base = surgical if part == "surgical" else trained
            value = base["sae" if part in {"trained", "surgical"} else part][field]
            assert str(value) == str(default) if name == "learned" else value == default, name


def test_the_settings_are_all_fields() -> None:
    assert set(TYPES["world"]) == {field.name for field in fields(World)}
    assert set(TYPES["trained"]) == {field.name for field in fields(TrainConfig)}
    assert set(TYPES["surgical"]) == {field.name for field in fields(Surgical)}
    assert set(TYPES["run"]) | {"world", "sae"} == {field.name for field in fields(Experiment)}


def write(path: Path, data: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"format": "darkmatter-experiment", "version": 1, **data}))
    return path


def test_options_override_the_file_overrides_the_preset_overrides_the_defaults(tmp_path: Path) -> None:
    config = write(tmp_path / "a.json", {"world": {"l0": 5.0, "zipf": 0.5}, "sae": {"k": 5}, "run": {"folds": 10}})
    found = resolve(preset_name="tiny", config=config, options={"l0": 3.0, "tokens": 4096})
    assert found.world.l0 == 3.0  # the option
    assert (found.world.zipf, found.folds) == (0.5, 10)  # the file
    assert isinstance(found.sae, TrainConfig) and (found.sae.k, found.sae.d_sae) == (5, 64)  # the file, the preset
    assert (found.world.n_features, found.n_tokens) == (128, 4096)  # the preset, the option
    assert found.world.topics == World().topics  # the default
    assert resolve(preset_name=None, config=None, options={}) == Experiment()


def test_a_whole_file_leaves_nothing_of_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps(plain(PRESETS["paper"].experiment)))
    assert resolve(preset_name="tiny", config=path, options={}) == PRESETS["paper"].experiment


def test_one_seed_for_everything_and_another_for_the_sae() -> None:
    both = resolve(preset_name="tiny", config=None, options={"seed": 7})
    assert both.world.seed == both.sae.seed == 7
    other = resolve(preset_name="tiny", config=None, options={"seed": 7, "sae-seed": 9})
    assert (other.world.seed, other.sae.seed) == (7, 9)
    assert resolve(preset_name="tiny", config=None, options={"sae-seed": 9}).world.seed == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dense-dim": 0}, {"dense_share": 0.0}),
        ({"surgical": True, "introduced": "none"}, {"introduced_share": 0.0}),
        ({"surgical": True, "introduced": "none", "features": 64, "l0": 4.0}, {"learned": 64}),
        ({"architecture": "relu"}, {"k": None, "l0": 32.0}),
        ({"architecture": "relu", "l1": 0.2}, {"k": None, "l0": None, "l1": 0.2}),
        ({"architecture": "jumprelu", "target-l0": 5.0}, {"k": None, "l0": 5.0}),
        ({"architecture": "batchtopk", "k": 7}, {"k": 7, "l0": None}),
        ({"architecture": "matryoshka", "groups": "512+1024"}, {"groups": (512, 1024)}),
        ({"learned": "0.5", "surgical": True}, {"learned": 0.5}),
        ({"learned": "12", "surgical": True}, {"learned": 12}),
    ],
)
def test_what_is_not_given_follows(options: dict[str, Any], expected: dict[str, Any]) -> None:
    found = resolve(preset_name=None, config=None, options=options)
    held = {name: getattr(found.sae if hasattr(found.sae, name) else found.world, name) for name in expected}
    assert held == expected


def test_what_is_given_never_follows() -> None:
    for options in ({"dense-dim": 0, "dense-share": 0.1}, {"surgical": True, "learned": 64, "features": 32, "l0": 1.0}):
        found = with_options(Experiment().to_dict(), options)
        with pytest.raises(InputError):
            check_experiment(Experiment.from_dict(found), out=Path("nowhere"))


def test_arrays_from_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rates, rows = rng.uniform(0.5, 1.0, 64), rng.standard_normal((64, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for name, array in (("rates", rates), ("rows", rows), ("learned", np.arange(0, 64, 2))):
        np.save(tmp_path / f"{name}.npy", array)
    files = ["--firing", tmp_path / "rates.npy", "--dictionary", tmp_path / "rows.npy"]
    args = [*SURGICAL, *files, "--learned", tmp_path / "learned.npy", "--out", tmp_path / "out", "--json"]
    report = good(*args).stdout
    saved = Experiment.from_dict(json.loads((tmp_path / "out" / "experiment.json").read_text()))
    assert isinstance(saved.world.firing, Table) and isinstance(saved.sae, Surgical)
    np.testing.assert_array_equal(saved.world.firing.array, rates)
    assert saved.world.dictionary == Table(rows) and saved.sae.learned == tuple(range(0, 64, 2))
    # the file alone is the experiment: the arrays are not needed any more
    for name in ("rates", "rows", "learned"):
        (tmp_path / f"{name}.npy").unlink()
    again = good("synth", "--config", tmp_path / "out" / "experiment.json", "--out", tmp_path / "b", "--json").stdout
    assert again == report


BAD_ARRAYS: dict[str, tuple[str, Any, str]] = {
    "missing": ("--firing", None, "is not a file"),
    "text": ("--firing", b"0.1, 0.2", "cannot be read as .npy"),
    "archive": ("--firing", b"PK\x03\x04", "cannot be read as .npy"),
    "objects": ("--dictionary", np.array([{}], dtype=object), "cannot be read as .npy"),
    "a matrix of rates": ("--firing", np.ones((64, 2)), "expected numbers of shape (n_features,)"),
    "one row of directions": ("--dictionary", np.ones(16), "expected numbers of shape (n_features, d_model)"),
    "words": ("--firing", np.array(["a", "b"]), "expected numbers"),
    "NaN": ("--firing", np.full(64, np.nan), "NaN"),
    "other length": ("--firing", np.ones(63), "expected (n_features,) = (64,)"),
    "other width": ("--dictionary", np.eye(64), "expected (n_features, d_model) = (64, 16)"),
    "indices with a point": ("--learned", np.ones(3), "whole numbers"),
    "indices beyond the world": ("--learned", np.array([64]), "64"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused(case: str, tmp_path: Path) -> None:
    option, content, words = BAD_ARRAYS[case]
    path = tmp_path / "array.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    result = invoke(*SURGICAL, option, path, "--out", tmp_path / "out")
    assert result.exit_code == 2 and not result.stdout and not (tmp_path / "out").exists()
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and words in result.stderr


# the file


def test_the_file_of_a_run_is_the_run(tmp_path: Path) -> None:
    good(*TINY, "--export", "saelens", "--out", tmp_path / "a")
    config = tmp_path / "a" / "experiment.json"
    again = CliRunner().invoke(app, ["synth", "--config", str(config), "--out", str(tmp_path / "b")])
    assert again.exit_code == 0 and "Using the SAE" not in again.stderr
    for name in ("report.json", "experiment.json", "decomposition.png", "world.png", "recovery.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert {path.name for path in (tmp_path / "a" / "saelens").iterdir()} == {"cfg.json", "sae_weights.safetensors"}
    # and an option changes it
    other = json.loads(good("synth", "--config", config, "--seed", 1, "--out", tmp_path / "c", "--json").stdout)
    assert other["source"]["world"]["seed"] == 1 != json.loads(config.read_text())["world"]["seed"]


def test_a_gemmascope_export(tmp_path: Path) -> None:
    good(*TINY, "--architecture", "batchtopk", "--export", "gemmascope", "--no-truth", "--out", tmp_path)
    with np.load(tmp_path / "gemmascope" / "params.npz", allow_pickle=False) as params:
        assert params["W_enc"].shape == (16, 32)
    report = json.loads((tmp_path / "report.json").read_text())
    assert "truth" not in report and report["recovery"]["sae"]["mcc"] > 0


BAD_CONFIGS: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{", "cannot be read as JSON"),
    "a list": ([], "JSON list"),
    "another format": ({"format": "of somebody else", "version": 1}, "format 'of somebody else'"),
    "another version": ({"version": 99}, "version 99"),
    "an unknown part": ({"planet": {}}, "'planet'"),
    "an unknown setting": ({"world": {"gravity": 9.81}}, "unknown settings of world: gravity"),
    "a part that is no object": ({"world": 3}, "'world'"),
    "an unknown kind": ({"sae": {"kind": "magic"}}, "kind 'magic'"),
    "a value out of range": ({"world": {"l0": -1}}, "l0 is -1"),
    "a value of another type": ({"world": {"n_features": "many"}}, "n_features is 'many'"),
    "a setting of the other kind": ({"sae": {"kind": "surgical", "k": 4}}, "unknown settings of sae: k"),
    "a broken table": ({"world": {"firing": {"dtype": "float64"}}}, "table is"),
    "no number": ({"run": {"n_tokens": None}}, "n_tokens is None"),
    "truth that is no truth value": ({"run": {"truth": "yes"}}, "truth is 'yes'"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_files_are_refused(case: str, tmp_path: Path) -> None:
    content, words = BAD_CONFIGS[case]
    path = tmp_path / "experiment.json"
    if isinstance(content, dict):
        write(path, content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    result = invoke("synth", "--config", path, "--out", tmp_path / "out")
    assert result.exit_code == 2 and not result.stdout and not (tmp_path / "out").exists()
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and words in result.stderr


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@given(part=st.sampled_from(["world", "sae", "run"]), data=st.data())
def test_any_damage_to_a_file_is_refused_or_means_something(part: str, data: st.DataObject) -> None:
    damaged = plain(Experiment(world=SMALL, sae=TrainConfig(d_sae=8, k=2, n_tokens=4096)))
    name = data.draw(st.sampled_from(sorted(damaged[part])))
    damaged[part][name] = data.draw(JUNK)
    try:
        found = Experiment.from_dict(damaged)
    except DarkmatterError as error:
        assert str(error)
        return
    assert Experiment.from_dict(plain(found)) == found


@given(
    n_features=st.integers(40, 100),
    l0=st.floats(0.5, 8),
    zipf=st.floats(0, 2),
    dense=st.sampled_from(["gaussian", "circles", "student"]),
    architecture=st.sampled_from(["topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"]),
    k=st.integers(1, 8),
    seed=st.integers(0, 2**40),
)
def test_options_survive_the_file(
    n_features: int, l0: float, zipf: float, dense: str, architecture: str, k: int, seed: int
) -> None:
    sparsity = {"k": k} if architecture in {"topk", "batchtopk", "matryoshka"} else {"target-l0": float(k)}
    options = {"features": n_features, "l0": l0, "zipf": zipf, "dense": dense, "latents": 16, "seed": seed}
    found = resolve(preset_name="tiny", config=None, options={**options, "architecture": architecture, **sparsity})
    assert Experiment.from_dict(plain(found)) == found
    assert (found.world.n_features, found.world.l0, found.sae.seed) == (n_features, l0, seed)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="does not exist"):
        resolve(preset_name=None, config=tmp_path / "nowhere.json", options={})


def test_killed_training_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from darkmatter.sae import optimise

    args = [*TINY, "--train-tokens", "16384", "--no-truth"]
    good(*args, "--out", tmp_path / "whole")
    step, taken = optimise.Optimiser.step, []

    def stops(self: Any, x: Any) -> None:
        taken.append(1)
        if len(taken) == 5:
            raise KeyboardInterrupt
        step(self, x)

    with monkeypatch.context() as patch:
        patch.setattr("darkmatter.sae.checkpoint.TrainCheckpoint.due", lambda self: True)
        patch.setattr(optimise.Optimiser, "step", stops)
        assert invoke(*args, "--out", tmp_path / "killed").exit_code == 130
    assert (tmp_path / "killed" / "training").is_dir()
    taken.clear()
    monkeypatch.setattr(optimise.Optimiser, "step", lambda self, x: (taken.append(1), step(self, x))[1])
    good(*args, "--out", tmp_path / "killed")
    assert len(taken) == 4, "it began again"
    assert not (tmp_path / "killed" / "training").exists()
    for name in ("report.json", "sae/sae.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
