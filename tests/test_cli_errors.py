"""Whatever a user gets wrong: exit code 2, one line on stderr, nothing on stdout, and no half-written report."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from darkmatter.adapters import files_source
from darkmatter.sandbox import World
from darkmatter.store import Checkpoint
from darkmatter.stream import accumulate
from tests.helpers import tiny_world
from tests.test_cli import SURGICAL, TINY, Arguments, good, invoke

FIXTURE = Path(__file__).parent / "fixtures" / "tiny-gemma2"
N, D = 400, 8
Array = npt.NDArray[Any]


def arrays() -> dict[str, Array]:
    world = tiny_world(N, D)
    return {"x": world.x.astype(np.float32), "recon": world.recons["sae0"].astype(np.float32)}


def write(folder: Path, changed: Mapping[str, Array] | None = None, *, suffix: str = ".npy") -> Arguments:
    """Files of a tiny world with some arrays replaced, and the command that reads them."""
    found: dict[str, Array] = {**arrays(), "docs": np.arange(N) // 4, **(changed or {})}
    for name, array in found.items():
        if suffix == ".npy":
            np.save(folder / f"{name}.npy", array)
        else:
            save_file({name: array}, folder / f"{name}.safetensors")
    return ["decompose", *(part for name in ("acts", "recon", "docs") for part in pair(folder, name, suffix))]


def pair(folder: Path, name: str, suffix: str = ".npy") -> Arguments:
    return [f"--{name}", folder / f"{'x' if name == 'acts' else name}{suffix}"]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder: Path, args: Arguments, *words: str, out: Path | None = None) -> str:
    """Run a command that must fail, and check how it fails."""
    before = files(folder)
    result = invoke(*args, "--out", out or folder / "out")
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert not result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert files(folder) == before, "it left something behind"
    for word in words:
        assert word in result.stderr, f"{word!r} not in {result.stderr}"
    return str(result.stderr)


# arrays that cannot be decomposed


def _with(value: float, *, name: str = "x", dtype: str = "float32") -> Callable[[Path], Arguments]:
    def make(folder: Path) -> Arguments:
        array = arrays()[name].astype(dtype)
        array[-1, -1] = value
        return write(folder, {name: array})

    return make


def _change(**changes: Callable[[Array], Array]) -> Callable[[Path], Arguments]:
    return lambda folder: write(folder, {name: change(arrays()[name]) for name, change in changes.items()})


def _short(a: Array) -> Array:
    return a[: D - 1]


def _half(a: Array) -> Array:
    with np.errstate(over="ignore"):
        return (a * 1e5).astype(np.float16)


BAD_ARRAYS: dict[str, tuple[Callable[[Path], Arguments], tuple[str, ...]]] = {
    "NaN in acts": (_with(np.nan), ("x has 1 entries that are NaN", f"first in row {N - 1}")),
    "inf in acts": (_with(-np.inf), ("x has 1 entries",)),
    "NaN in recon": (_with(np.nan, name="recon"), ("recon 'recon' has 1 entries",)),
    "float16 overflow": (_change(x=_half), ("float16 overflows at 65504",)),
    "too large": (_with(1e70, dtype="float64"), ("beyond 1e60",)),
    "transposed recon": (_change(recon=lambda a: a.T.copy()), ("looks transposed",)),
    "both transposed": (
        lambda folder: write(folder, {k: a.T.copy() for k, a in arrays().items()} | {"docs": np.arange(D)}),
        ("check that x is not transposed",),
    ),
    "other width": (_change(recon=lambda a: a[:, :-1].copy()), (f"expected ({N}, {D})",)),
    "other length": (_change(recon=lambda a: a[:-1]), (f"expected ({N}, {D})",)),
    "one dimension": (_change(x=lambda a: a[0]), ("expected (n_tokens, d_model)",)),
    "three dimensions": (_change(x=lambda a: a[None].copy()), ("expected (n_tokens, d_model)",)),
    "integers": (_change(x=lambda a: a.astype(np.int32)), ("holds int32",)),
    "fewer tokens than dimensions": (
        lambda folder: write(folder, {k: _short(a) for k, a in arrays().items()} | {"docs": np.arange(D - 1)}),
        ("pass more tokens",),
    ),
    "one document": (
        lambda folder: write(folder, {"docs": np.zeros(N, dtype=np.int64)}),
        ("1 document(s)", "one fold"),
    ),
    "no token": (
        lambda folder: write(folder, {k: a[:0] for k, a in arrays().items()} | {"docs": np.zeros(0, np.int64)}),
        ("at least one token",),
    ),
    "constant activations": (_change(x=lambda a: np.full_like(a, 0.1)), ("x is constant",)),
    "x passed twice": (_change(recon=lambda _: arrays()["x"]), ("x was not passed twice",)),
    "docs too short": (lambda folder: write(folder, {"docs": np.arange(N - 1)}), (f"({N - 1},), expected ({N},)",)),
    "docs of two dimensions": (
        lambda folder: write(folder, {"docs": np.zeros((N, 1), int)}),
        ("document id per token",),
    ),
    "docs that are numbers with a point": (lambda folder: write(folder, {"docs": np.arange(N) / 4}), ("float64",)),
}


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(tmp_path: Path, case: str, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, words = BAD_ARRAYS[case]
    original = write
    monkeypatch.setitem(globals(), "write", lambda folder, changed=None: original(folder, changed, suffix=suffix))
    refused(tmp_path, make(tmp_path), *words)


BAD_FILES: dict[str, tuple[bytes | None, tuple[str, ...]]] = {
    "missing": (None, ("is not a file",)),
    "empty": (b"", ("cannot be opened",)),
    "foreign": (b"PK\x03\x04 this is a zip archive, not an array" * 10, ("cannot be opened",)),
    "text": (b"0.1, 0.2\n0.3, 0.4\n", ("cannot be opened",)),
}


@pytest.mark.parametrize("name", ["acts", "recon", "docs"])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path: Path, case: str, suffix: str, name: str) -> None:
    args = write(tmp_path, suffix=suffix)
    content, words = BAD_FILES[case]
    path = Path(str(args[args.index(f"--{name}") + 1]))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    refused(tmp_path, args, str(path), *words)


def test_an_object_array_is_not_unpickled(tmp_path: Path) -> None:
    args = write(tmp_path)
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (canary,)  # type: ignore[return-value]

    np.save(tmp_path / "x.npy", np.array([[Evil()]], dtype=object), allow_pickle=True)
    refused(tmp_path, args, "Python objects")
    assert not canary.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pkl", ".npz", ".bin", ""])
def test_other_formats_are_never_opened(tmp_path: Path, suffix: str) -> None:
    args = write(tmp_path)
    (tmp_path / "x.npy").rename(tmp_path / f"x{suffix}")
    args[2] = tmp_path / f"x{suffix}"
    refused(tmp_path, args, "expected .npy or .safetensors")


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    args = write(tmp_path)
    for option in ("--acts", "--recon", "--docs"):
        broken = list(args)
        broken[args.index(option) + 1] = tmp_path
        refused(tmp_path, broken, "is not a file")


@given(suffix=st.sampled_from([".npy", ".safetensors"]), name=st.sampled_from(["acts", "recon"]), data=st.data())
def test_a_file_cut_anywhere_is_refused(suffix: str, name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        args = write(Path(folder), suffix=suffix)
        path = Path(str(args[args.index(f"--{name}") + 1]))
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1), label="bytes kept")])
        refused(Path(folder), args, str(path))


@given(
    name=st.sampled_from(["x", "recon"]),
    value=st.sampled_from([np.nan, np.inf, -np.inf, 1e61, -1e300]),
    row=st.integers(0, N - 1),
    column=st.integers(0, D - 1),
)
def test_a_bad_value_anywhere_is_refused(name: str, value: float, row: int, column: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        array = arrays()[name].astype(np.float64)
        array[row, column] = value
        refused(Path(folder), write(Path(folder), {name: array}), "has 1 entries", f"first in row {row}")


@given(shape=st.tuples(st.integers(1, 12), st.integers(1, 12)), other=st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_shapes_that_differ_are_refused(shape: tuple[int, int], other: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        x, recon = (rng.standard_normal(s).astype(np.float32) for s in (shape, other))
        args = write(Path(folder), {"x": x, "recon": recon, "docs": np.arange(shape[0])})
        if shape == other and shape[0] > shape[1] + 3:
            return  # enough tokens may be outside the largest fold
        line = refused(Path(folder), args)
        assert shape == other or str(other) in line


# options that contradict each other

ONE_OF = "error: expected one of --acts with --recon, --model with --site, --sae and --text, or --cache with --sae\n"


def test_neither_arrays_nor_a_model(tmp_path: Path) -> None:
    refused(tmp_path, ["decompose"], ONE_OF)


def test_arrays_and_a_model(tmp_path: Path) -> None:
    refused(tmp_path, [*write(tmp_path), "--model", FIXTURE], ONE_OF)


def test_stored_activations_and_a_model(tmp_path: Path) -> None:
    refused(tmp_path, ["decompose", "--cache", tmp_path, "--model", FIXTURE], ONE_OF)
    refused(tmp_path, [*write(tmp_path), "--cache", tmp_path], ONE_OF)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("--site", "--model needs --site, --sae, and --text or --tokens"),
        ("--sae", "no SAE is given, expected --sae or --sae-glob"),
        ("--text", "--model needs --site, --sae, and --text or --tokens"),
    ],
)
def test_a_model_without_what_it_needs(tmp_path: Path, missing: str, words: str) -> None:
    given: dict[str, str | Path] = {
        "--model": FIXTURE,
        "--site": "resid_post:1",
        "--sae": tmp_path,
        "--text": tmp_path / "text.json",
    }
    del given[missing]
    refused(tmp_path, ["decompose", *chain.from_iterable(given.items())], words)


def test_acts_without_recon(tmp_path: Path) -> None:
    refused(tmp_path, write(tmp_path)[:3], "no --recon given, expected at least one")


@pytest.mark.parametrize("value", ["=x.npy", "name=", "="])
def test_a_name_or_path_that_is_empty(tmp_path: Path, value: str) -> None:
    refused(tmp_path, [*write(tmp_path), "--recon", value], "expected PATH or NAME=PATH")


@pytest.mark.parametrize("second", ["recon.npy", "recon={}/x.npy"])
def test_sae_names_that_repeat(tmp_path: Path, second: str) -> None:
    refused(tmp_path, [*write(tmp_path), "--recon", second.format(tmp_path)], "names 'recon' twice")


def test_x_given_as_its_own_reconstruction(tmp_path: Path) -> None:
    args = write(tmp_path)
    refused(tmp_path, [*args, "--recon", f"other={args[2]}"], "did you pass x twice")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--folds", "1"], "folds is 1, expected at least 2"),
        (["--folds", "0"], "folds is 0, expected at least 2"),
        (["--folds", "-3"], "folds is -3, expected at least 2"),
        (["--device", "abacus"], "device 'abacus'"),
        (["--device", "meta"], "device 'meta'"),
        (["--device", "cuda:99"], "device 'cuda:99'"),
        (["--checkpoint-seconds", "-1"], "checkpoint-seconds"),
        (["--checkpoint-seconds", "nan"], "checkpoint-seconds"),
    ],
)
def test_impossible_options_of_decompose(tmp_path: Path, options: list[str], words: str) -> None:
    refused(tmp_path, [*write(tmp_path), *options], words)


# synth


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--l0 65", "l0 is 65"),
        ("--l0 33", "none of the 64 features fires on more than 50%"),
        ("--l0 0", "l0 is 0"),
        ("--l0 nan", "l0 is nan"),
        ("--dictionary orthonormal", "an orthonormal dictionary holds at most d_model = 16 features"),
        ("--dictionary learned", "dictionary is 'learned', expected one of random, orthonormal"),
        ("--k 33", "k is 33, expected at most d_sae = 32"),
        ("--k 0", "k is 0"),
        ("--dense-dim 17", "dense_dim is 17, expected at most d_model = 16"),
        ("--dense-dim -1", "dense_dim is -1"),
        ("--dense-dim 0 --dense-share 0.1", "dense_share is 0.1 with dense_dim = 0"),
        ("--dense-share 1", "dense_share is 1"),
        ("--zipf -1", "zipf is -1"),
        ("--topics 0", "topics is 0"),
        ("--topic-strength 2", "topic_strength is 2"),
        ("--doc-tokens 0", "doc_tokens is 0"),
        ("--features 0", "n_features is 0"),
        ("--d-model 0", "d_model is 0"),
        ("--seed -1", "seed is -1"),
        ("--latents 0", "d_sae is 0"),
        ("--train-tokens 2047", "n_tokens is 2047, expected at least batch_size"),
        ("--train-tokens -5", "n_tokens is -5"),
        ("--tokens 0", "n_tokens is 0"),
        ("--tokens -2048", "n_tokens is -2048"),
        ("--folds 1", "folds is 1, expected at least 2"),
        ("--truth-tokens 0", "truth_tokens is 0"),
        ("--truth-tokens -1", "truth_tokens is -1"),
        ("--truth-tokens 271", "n_tokens is 271 for 68 true factors, expected at least 272"),
        ("--firing harmonic", "firing is 'harmonic', expected one of zipf"),
        ("--amplitude heavy", "amplitude is 'heavy', expected one of exponential"),
        ("--dense moebius", "dense is 'moebius', expected one of gaussian"),
        ("--dense-dim 0 --dense circles", "dense is 'circles' with dense_dim = 0"),
        ("--correlation 1", "correlation is 1"),
        ("--roots 4", "roots is 4 and depth is 0"),
        ("--roots 4 --depth 1 --siblings rival", "siblings is 'rival'"),
        ("--dictionary hierarchical", "needs trees"),
        ("--architecture transformer", "architecture is 'transformer', expected one of topk"),
        ("--architecture relu", "k is given with architecture 'relu'"),  # TINY gives it outright
        ("--l1 0.1", "l1 is given with architecture 'topk'"),
        ("--groups 8+16", "groups is given with architecture 'topk'"),
        ("--groups 8+x", "groups is 'x', expected a whole number"),
        ("--architecture matryoshka --groups 8+16", "rise to d_sae = 32"),
        ("--encode-dtype int8", "encode_dtype is 'int8'"),
        ("--batch-size 0", "batch_size is 0"),
        ("--sae-seed -1", "seed is -1"),
        ("--shrinkage 0.1", "--shrinkage is an option of surgical SAEs"),
        ("--export onnx", "export is 'onnx', expected one of saelens, gemmascope"),
        ("--export gemmascope", "a topk SAE has no threshold"),
        ("--preset huge", "preset is 'huge', expected one of tiny, paper, synth-16k, manifold, hierarchy"),
    ],
)
def test_impossible_options_of_synth(tmp_path: Path, options: str, words: str) -> None:
    # nothing may be left behind, so this also says that every option is checked before an SAE is trained and saved
    refused(tmp_path, [*TINY, *options.split()], words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--shrinkage 1", "shrinkage is 1"),
        ("--shrinkage -0.1", "shrinkage is -0.1"),
        ("--learned -1", "learned is -1"),
        ("--learned 65", "learned is 65, expected at most the world's 64 features"),
        ("--learned many", "learned is 'many', expected a number"),
        ("--tilt 91", "tilt is 91"),
        ("--splitting 2", "splitting is 2"),
        ("--absorption nan", "absorption is nan"),
        ("--introduced magic", "introduced is 'magic', expected one of none, independent"),
        ("--introduced none --introduced-share 0.1", "introduced='none'"),
        ("--introduced-share -0.1", "introduced_share is -0.1"),
        ("--introduced-share inf", "introduced_share is inf"),
        ("--latents 32", "--latents is an option of trained SAEs"),
        ("--export saelens", "needs a trained SAE"),
    ],
)
def test_impossible_options_of_surgical_saes(tmp_path: Path, options: str, words: str) -> None:
    refused(tmp_path, [*SURGICAL, *options.split()], words)


@pytest.mark.parametrize("tokens", ["16", "17"])
def test_hopelessly_few_tokens_are_refused_before_training(tmp_path: Path, tokens: str) -> None:
    refused(tmp_path, [*TINY, "--tokens", tokens], "training tokens for")


def test_too_few_tokens_cost_the_report_but_not_the_sae(tmp_path: Path) -> None:
    # enough on average, but two documents leave one of them, fewer tokens than dimensions, to train on
    result = invoke(*TINY, "--tokens", "32", "--out", tmp_path)
    words = "training tokens for"
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1 and not result.stdout
    assert {path.name for path in files(tmp_path)} == {"cfg.json", "sae.safetensors"}, "only the SAE is worth keeping"


@pytest.mark.parametrize("file", ["cfg.json", "sae.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "foreign", "swapped"])
def test_a_damaged_sae_of_an_earlier_run(tmp_path: Path, file: str, damage: str) -> None:
    run: Arguments = [*TINY, "--out", tmp_path / "out"]
    good(*run)
    path = tmp_path / "out" / "sae" / file
    content = path.read_bytes()
    broken = {
        "cut": content[: len(content) // 2],
        "foreign": b'{"format": "of somebody else"}',
        "swapped": content[::-1],
    }
    path.write_bytes(broken[damage])
    before = files(tmp_path)
    result = invoke(*run)
    assert result.exit_code == 2 and not result.stdout
    assert [line.startswith("error: ") for line in result.stderr.splitlines()][-1:] == [True]
    assert str(path) in result.stderr and files(tmp_path) == before
    if file == "cfg.json":
        assert result.stderr.count("\n") == 1 and "delete" in result.stderr


# the folder to write to


@pytest.mark.parametrize("command", ["decompose", "synth"])
@pytest.mark.parametrize("below", [False, True], ids=["a file", "below a file"])
def test_an_out_that_cannot_be_a_folder_is_refused_before_any_work(
    tmp_path: Path, command: str, below: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("the pass began")

    monkeypatch.setattr("darkmatter.commands.decompose.decompose_many", work)
    monkeypatch.setattr("darkmatter.commands.training.train_sae", work)
    (tmp_path / "taken").write_text("mine")
    out = tmp_path / "taken" / "deeper" if below else tmp_path / "taken"
    refused(tmp_path, write(tmp_path) if command == "decompose" else list(TINY), "taken", "folder", out=out)
    assert (tmp_path / "taken").read_text() == "mine"


def test_an_out_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    args = write(tmp_path)
    monkeypatch.setattr(Path, "mkdir", denied)  # the tests may run as root, who may write anywhere
    refused(tmp_path, args, "Permission denied", "out")


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    args = write(tmp_path)
    monkeypatch.setattr("darkmatter.files.os.fsync", full)
    refused(tmp_path, args, "No space left on device")


@pytest.mark.parametrize("command", ["decompose", "synth"])
def test_the_report_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error", "decomposition.png")

    monkeypatch.setattr(f"darkmatter.commands.{command}.save_decomposition_figure", fail)
    args = write(tmp_path) if command == "decompose" else TINY
    result = invoke(*args, "--out", tmp_path / "out")
    assert result.exit_code == 2 and result.stderr == "error: decomposition.png: Input/output error\n"
    assert not result.stdout and not (tmp_path / "out" / "report.json").exists()


def test_the_checkpoint_of_another_run_is_neither_used_nor_overwritten(tmp_path: Path) -> None:
    args = write(tmp_path)
    other = files_source(tmp_path / "x.npy", {"recon": tmp_path / "recon.npy"})  # no documents
    accumulate(other, folds=20, checkpoint=Checkpoint(tmp_path / "out" / "checkpoint", every_seconds=0))
    refused(tmp_path, args, "the sums of another run", "delete", "choose another folder")
    world = World(n_features=64, d_model=16, dense_dim=4, l0=4.0, doc_tokens=16)
    pairs = world.pair(lambda x: x / 2, n_tokens=2048, name="surgical")
    accumulate(pairs, folds=20, checkpoint=Checkpoint(tmp_path / "synth" / "checkpoint", every_seconds=0))
    refused(tmp_path, SURGICAL, "the sums of another run", out=tmp_path / "synth")


@pytest.mark.parametrize("damage", ["cut", "not JSON", "another format"])
def test_a_damaged_checkpoint(tmp_path: Path, damage: str) -> None:
    args = write(tmp_path)
    folder = tmp_path / "out" / "checkpoint"
    source = files_source(tmp_path / "x.npy", {"recon": tmp_path / "recon.npy"}, tmp_path / "docs.npy")
    accumulate(source, folds=20, checkpoint=Checkpoint(folder, every_seconds=0))
    index = folder / "checkpoint.json"
    if damage == "cut":
        (tensors,) = folder.glob("*.safetensors")
        tensors.write_bytes(tensors.read_bytes()[:-8])
    else:
        index.write_text("{" if damage == "not JSON" else json.dumps({"format": "other"}))
    refused(tmp_path, args, "checkpoint")


# models, as far as no model is loaded


@pytest.mark.parametrize(
    ("site", "words"),
    [("mlp_in:2", "site kind 'mlp_in' is not supported"), ("2", "cannot be read"), ("resid_post:-1", "cannot be")],
)
def test_an_unknown_site(tmp_path: Path, site: str, words: str) -> None:
    good(*TINY, "--out", tmp_path / "run")
    (tmp_path / "text.json").write_text('["a story"]')
    where: Arguments = ["--model", FIXTURE, "--site", site, "--text", tmp_path / "text.json"]
    refused(tmp_path, ["decompose", *where, "--sae", tmp_path / "run" / "sae"], words)
    pytest.importorskip("transformers")
    refused(tmp_path, ["train-sae", *where], words)


def test_an_sae_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text('["a story"]')
    args: Arguments = ["decompose", "--model", FIXTURE, "--site", "resid_post:1", "--text", tmp_path / "text.json"]
    refused(tmp_path, [*args, "--sae", tmp_path / "nowhere"], "nowhere", "does not exist")


# what is not the user's fault


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7 TiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried\nto"),
        RuntimeError("CUDA out of memory. Tried to allocate 7 TiB"),
    ],
)
def test_too_little_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("darkmatter.commands.decompose.decompose_many", fail)
    refused(tmp_path, write(tmp_path), "out of memory", "fewer")


def test_a_defect_of_ours_stays_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("darkmatter.commands.decompose.decompose_many", fail)
    result = invoke(*write(tmp_path), "--out", tmp_path / "out")
    assert isinstance(result.exception, RuntimeError) and result.exit_code == 1


@pytest.mark.parametrize("bad", ["NaN", "synth"])
def test_in_a_real_process_there_is_nothing_but_the_line(tmp_path: Path, bad: str) -> None:
    args: Arguments = _with(np.nan)(tmp_path) if bad == "NaN" else [*TINY, "--l0", "100"]
    done = subprocess.run(
        [sys.executable, "-m", "darkmatter", *map(str, args), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
