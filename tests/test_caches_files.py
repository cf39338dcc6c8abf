"""Array files, one or many, and the authors' raw files: mapped, in order, with their sign and their width."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from darkmatter import check_source, decompose, from_arrays
from darkmatter.adapters import load_array
from darkmatter.adapters.caches import CachedSource, array_activations, raw_activations, raw_source
from darkmatter.adapters.caches.rows import expand
from darkmatter.errors import FileFormatError, InputError

D = 6
X = np.random.default_rng(0).standard_normal((40, D)).astype("f4")


def joined(stream: Any, start: int = 0) -> dict[str, Any]:
    batches = list(stream.batches_from(start))
    return {
        "x": torch.cat([batch.x for batch in batches]).numpy(),
        "groups": np.concatenate([batch.groups for batch in batches]),
        "positions": None if batches[0].positions is None else np.concatenate([batch.positions for batch in batches]),
    }


# --- array files


@pytest.mark.parametrize("kind", ["float16 npy", "float32 npy", "bfloat16 safetensors", "float16 safetensors"])
def test_arrays_of_every_precision_are_read_exactly(tmp_path: Path, kind: str) -> None:
    dtype, suffix = kind.split()
    path = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        np.save(path, X.astype(dtype))
        assert isinstance(load_array(path), np.memmap)
        wanted = X.astype(dtype).astype("f4")
    else:
        save_file({"x": torch.from_numpy(X).to(getattr(torch, dtype))}, path)
        wanted = torch.from_numpy(X).to(getattr(torch, dtype)).float().numpy()
    stream = array_activations(path, np.arange(40) // 8, batch_size=7)
    found = joined(stream)
    assert np.array_equal(found["x"], wanted)
    assert np.array_equal(found["groups"], np.arange(40) // 8)
    assert stream.description["dtype"] == dtype
    assert check_source(CachedSource(stream, {"a": torch.relu})).n_tokens == 28


@given(batch_size=st.integers(1, 50), start=st.integers(0, 45), cuts=st.sets(st.integers(1, 39), max_size=4))
def test_several_files_are_one_stream(
    tmp_path_factory: pytest.TempPathFactory, batch_size: int, start: int, cuts: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("x")
    for number, part in enumerate(np.split(X, sorted(cuts))):
        np.save(folder / f"acts-{number + 8}.npy", part)  # 8, 9, 10, …: the alphabet has another order
    if len(cuts) == 0:
        (folder / "acts-8.npy").rename(folder / "acts-0.npy")
    stream = array_activations(sorted_files(folder), batch_size=batch_size)
    assert np.array_equal(joined(stream)["x"], X)
    late = [batch.x for batch in stream.batches_from(start)]
    assert np.array_equal(torch.cat([torch.zeros(0, D), *late]).numpy(), X[start * batch_size :])


def sorted_files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: int(path.stem.split("-")[1]))


def test_a_pattern_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for number in range(12):
        np.save(tmp_path / f"acts-{number}.npy", X[number : number + 1])
    assert [path.name for path in expand(tmp_path / "acts-*.npy")] == [f"acts-{n}.npy" for n in range(12)]
    assert np.array_equal(joined(array_activations(tmp_path / "acts-*.npy"))["x"], X[:12])
    (tmp_path / "acts-5.npy").unlink()
    with pytest.raises(FileFormatError, match=r"acts-\*\.npy has no file with number 5, but one with 11: a file is"):
        array_activations(tmp_path / "acts-*.npy")
    for number in (0, 1, 2, 3, 4):
        (tmp_path / f"acts-{number}.npy").unlink()
    with pytest.raises(FileFormatError, match="has no file with number 1, but one with 11"):
        array_activations(tmp_path / "acts-*.npy")
    assert len(array_activations([tmp_path / f"acts-{n}.npy" for n in (6, 9)]).rows) == 2
    with pytest.raises(FileFormatError, match=r"no file matches .*none-\*\.npy"):
        array_activations(tmp_path / "none-*.npy")


@pytest.mark.parametrize(
    "names", [["a-1.npy", "a-2.npy"], ["a-0.npy", "a-1.npy"], ["a.npy", "b.npy"], ["l3-0.npy", "l4-2.npy"]]
)
def test_numbering_that_has_no_gap_or_says_nothing_of_one(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        np.save(tmp_path / name, X)
    assert [path.name for path in expand(tmp_path / "*.npy")] == names


def test_array_files_that_cannot_be(tmp_path: Path) -> None:
    np.save(tmp_path / "a-0.npy", X)
    np.save(tmp_path / "a-1.npy", X[:, :5])
    with pytest.raises(FileFormatError, match=r"a-1\.npy has 5 columns, expected 6 as in a-0\.npy"):
        array_activations(tmp_path / "a-*.npy")
    one = tmp_path / "a-0.npy"
    for words, options in (
        (r"groups has shape \(39,\), expected \(40,\)", {"docs": np.arange(39)}),
        ("batch_size is 0", {"batch_size": 0}),
        ("context_length is 7, expected one that divides the 40 rows", {"context_length": 7}),
        ("context_length is 0, expected one", {"context_length": 0}),
        ("skip_first and skip_last need context_length", {"skip_first": 1}),
        ("expected to be 0 or more", {"context_length": 8, "skip_last": -1}),
        ("drop 8 rows, expected fewer than context_length 8", {"context_length": 8, "skip_first": 5, "skip_last": 3}),
        (r"keys \['n_tokens'\], which are measured", {"description": {"n_tokens": 3}}),
    ):
        with pytest.raises(InputError, match=words):
            array_activations(one, **options)
    with pytest.raises(InputError, match="no file of activations"):
        array_activations([])


def test_contexts_give_documents_positions_and_what_is_dropped(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    stream = array_activations(
        tmp_path / "x.npy", context_length=8, skip_first=2, skip_last=1, batch_size=11, description={"site": "mine"}
    )
    kept = [row for row in range(40) if 2 <= row % 8 < 7]
    found = joined(stream)
    assert np.array_equal(found["x"], X[kept])
    assert found["groups"].tolist() == [row // 8 for row in kept]
    assert found["positions"].tolist() == [row % 8 for row in kept]
    facts = stream.description
    assert (facts["n_tokens"], facts["skip_first"], facts["skip_last"], facts["site"]) == (25, 2, 1, "mine")
    assert facts["documents"] == "each context is a document"
    np.save(tmp_path / "docs.npy", np.arange(40) // 20)
    with_ids = array_activations(tmp_path / "x.npy", tmp_path / "docs.npy", context_length=8, skip_first=2)
    assert set(joined(with_ids)["groups"].tolist()) == {0, 1}
    assert with_ids.description["documents"] == "ids given"


def test_other_content_has_another_fingerprint(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    first = array_activations(tmp_path / "x.npy", np.arange(40)).description
    assert array_activations(tmp_path / "x.npy", np.arange(40)).description == first
    assert array_activations(tmp_path / "x.npy", np.arange(40) // 2).description != first
    np.save(tmp_path / "x.npy", X + 1)
    assert array_activations(tmp_path / "x.npy", np.arange(40)).description["fingerprint"] != first["fingerprint"]


# --- the authors' raw files


def authors(folder: Path, *, contexts: int = 30, length: int = 16, d: int = 12, seed: int = 0) -> dict[str, Any]:
    """Files as the authors' scripts keep them: contexts of one length, error = reconstruction - activation."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((contexts, length, d)) + 2 * rng.standard_normal(d)).astype("f4")
    mean = x.mean(axis=(0, 1))
    recon = (mean + 0.8 * np.maximum(x - mean, -0.5)).astype("f4")
    x.tofile(folder / "acts_layer_20.npy")  # their suffix, though there is no header
    (recon - x).tofile(folder / "errors.npy")
    (x - recon).tofile(folder / "ours.npy")
    return {"x": x, "recon": recon}


def test_the_authors_files_and_their_sign(tmp_path: Path) -> None:
    made = authors(tmp_path)
    source = raw_source(
        tmp_path / "acts_layer_20.npy",
        {"a": tmp_path / "errors.npy"},
        d_model=12,
        context_length=16,
        skip_first=5,
        skip_last=1,
        batch_size=50,
        description={"model": "m"},
    )
    kept = slice(5, 15)
    x, recon = made["x"][:, kept].reshape(-1, 12), made["recon"][:, kept].reshape(-1, 12)
    batches = list(source)
    assert np.array_equal(torch.cat([b.x for b in batches]).numpy(), x)  # type: ignore[arg-type]
    found = torch.cat([b.recons["a"] for b in batches]).numpy()  # type: ignore[arg-type]
    np.testing.assert_allclose(found, recon, rtol=0, atol=2e-6)  # the error was rounded to float32 once
    assert check_source(source).n_groups == 13
    groups = np.repeat(np.arange(30), 10)
    direct = decompose(from_arrays(x, recon, groups), folds=5)
    ours = decompose(source, folds=5)
    assert ours.fvu.value == pytest.approx(direct.fvu.value, rel=1e-5)
    assert ours.fvu_nonlinear.value == pytest.approx(direct.fvu_nonlinear.value, rel=1e-4)
    facts = source.description
    assert (facts["error_sign"], facts["model"], facts["n_tokens"]) == ("recon-x", "m", 300)
    assert facts["errors"]["a"]["file"] == "errors.npy"
    late = list(source.batches_from(3))
    assert torch.equal(late[0].recons["a"], batches[3].recons["a"])  # type: ignore[arg-type]


def test_the_other_sign_gives_the_same_reconstruction_and_the_wrong_one_is_refused(tmp_path: Path) -> None:
    made = authors(tmp_path)
    acts = tmp_path / "acts_layer_20.npy"
    source = raw_source(acts, {"a": tmp_path / "ours.npy"}, d_model=12, error_sign="x-recon")
    found = torch.cat([b.recons["a"] for b in source]).numpy()  # type: ignore[arg-type]
    np.testing.assert_allclose(found, made["recon"].reshape(-1, 12), rtol=0, atol=2e-6)
    for file, sign, other in (("ours.npy", "recon-x", "x-recon"), ("errors.npy", "x-recon", "recon-x")):
        with pytest.raises(InputError, match=rf"Cov\(x, e\) = -.* the sign is the other one, pass '{other}'"):
            raw_source(acts, {"a": tmp_path / file}, d_model=12, error_sign=sign)  # type: ignore[arg-type]
        raw_source(acts, {"a": tmp_path / file}, d_model=12, error_sign=sign, check_sign=False)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="error_sign is 'minus', expected one of recon-x, x-recon"):
        raw_source(acts, {"a": tmp_path / "errors.npy"}, d_model=12, error_sign="minus")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"shape": [30, 16, 12]}, 16),
        ({"shape": [30, 16, 3, 4]}, 16),
        ({"shape": [480, 12]}, None),
        ({"d_model": 12}, None),
        ({"d_model": 12, "context_length": 16}, 16),
    ],
)
def test_the_shape_from_a_config(tmp_path: Path, config: dict[str, Any], length: int | None) -> None:
    authors(tmp_path)
    (tmp_path / "shape.json").write_text(json.dumps(config))
    stream = raw_activations(tmp_path / "acts_layer_20.npy", config=tmp_path / "shape.json")
    assert (stream.d_model, len(stream.rows), stream.contexts.length) == (12, 480, length)


def test_configs_that_do_not_fit(tmp_path: Path) -> None:
    authors(tmp_path)
    acts, config = tmp_path / "acts_layer_20.npy", tmp_path / "shape.json"
    config.write_text('{"shape": [31, 16, 12]}')
    with pytest.raises(FileFormatError, match=r"has 480 rows of 12, but .* says 496: it is truncated or another file"):
        raw_activations(acts, config=config)
    with pytest.raises(InputError, match="says d_model 12 and context_length 16, but 13 and None were given"):
        raw_activations(acts, d_model=13, config=config)
    for text in ("{}", '{"shape": [12]}', '{"shape": [0, 12]}', '{"shape": "a", "d_model": 12}', '{"d_model": "12"}'):
        config.write_text(text)
        with pytest.raises(FileFormatError, match=r"neither a shape such as \[300, 1024, 3584\] nor a d_model"):
            raw_activations(acts, config=config)
    with pytest.raises(InputError, match="d_model is None, expected a positive int: a raw file does not say how wide"):
        raw_activations(acts)


def test_raw_files_that_do_not_fit(tmp_path: Path) -> None:
    authors(tmp_path)
    acts = tmp_path / "acts_layer_20.npy"
    np.zeros(479 * 12, dtype="f4").tofile(tmp_path / "short.npy")
    with pytest.raises(
        FileFormatError, match=r"short\.npy has 479 rows of 12, but .* has 480: they belong to different"
    ):
        raw_source(acts, {"a": tmp_path / "short.npy"}, d_model=12)
    with pytest.raises(InputError, match="did you pass x twice"):
        raw_source(acts, {"a": acts}, d_model=12)
    with pytest.raises(InputError, match="expected a non-empty tuple of SAE names"):
        raw_source(acts, {}, d_model=12)
    np.zeros(2304 * 4, dtype="f4").tofile(tmp_path / "nine.bin")
    with pytest.raises(FileFormatError) as caught:
        raw_activations(tmp_path / "nine.bin", d_model=3584)
    assert str(caught.value) == (
        f"{tmp_path}/nine.bin has 36864 bytes, expected a multiple of 14336 (d_model 3584, float32): widths that fit: "
        "512, 768, 1024, 1152, 1536, 2304, 3072, 4608"
    )
    (tmp_path / "odd.bin").write_bytes(b"12345")
    with pytest.raises(FileFormatError, match="no common width fits, is it float32"):
        raw_activations(tmp_path / "odd.bin", d_model=12)
    (tmp_path / "empty.bin").write_bytes(b"")
    with pytest.raises(FileFormatError, match="has 0 bytes"):
        raw_activations(tmp_path / "empty.bin", d_model=12)
    with pytest.raises(FileFormatError, match="does not exist"):
        raw_activations(tmp_path / "none.bin", d_model=12)
    np.save(tmp_path / "header.npy", X)
    with pytest.raises(FileFormatError, match=r"has a \.npy header, so it is no raw file"):
        raw_activations(tmp_path / "header.npy", d_model=6)
    torch.save(torch.zeros(4, 6), tmp_path / "acts.pt")
    with pytest.raises(FileFormatError, match=r"is a zip archive \(\.pt or \.npz\), expected raw float32"):
        raw_activations(tmp_path / "acts.pt", d_model=6)


@pytest.mark.parametrize("given", [384, 1536, 2304, 512, 3072])
def test_a_width_that_divides_the_file_but_contradicts_its_columns(tmp_path: Path, given: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((768, 768), dtype="f4") * np.exp(rng.standard_normal((768, 1), dtype="f4"))
    x += 0.7 * rng.standard_normal(768, dtype="f4")  # means of columns: what a width shows itself by
    x[::100] *= 300  # attention sinks
    x.tofile(tmp_path / "x.bin")
    assert raw_activations(tmp_path / "x.bin", d_model=768).d_model == 768
    with pytest.raises(FileFormatError, match=f"looks 768 wide, not {given}: .* check_width=False if you know better"):
        raw_activations(tmp_path / "x.bin", d_model=given)
    assert raw_activations(tmp_path / "x.bin", d_model=given, check_width=False).d_model == given


@pytest.mark.parametrize("seed", range(5))
def test_without_means_nothing_is_concluded_about_the_width(tmp_path: Path, seed: int) -> None:
    np.random.default_rng(seed).standard_normal(2304 * 128, dtype="f4").tofile(tmp_path / "x.bin")
    for width in (2304, 1152, 768, 512):
        assert raw_activations(tmp_path / "x.bin", d_model=width).d_model == width


MEMORY = """
import sys
from pathlib import Path
import numpy as np, torch
from darkmatter.adapters.caches import CachedSource, array_activations, raw_source

folder, n, keep = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "keep"
if keep:
    held = np.load(folder / "0.npy"), np.fromfile(folder / "x.bin", dtype="f4")
docs = np.arange(n) // 100
source = raw_source(folder / "x.bin", {"a": folder / "e.bin"}, d_model=128, docs=docs, batch_size=1000)
assert sum(len(batch.x) + len(batch.recons["a"]) for batch in source) == 2 * n
source = CachedSource(array_activations(folder / "*.npy", docs, batch_size=1000), {"a": torch.relu})
assert sum(len(batch.x) + len(batch.recons["a"]) for batch in source) == 2 * n
status = Path("/proc/self/status").read_text().splitlines()
found = {line.split(":")[0]: int(line.split()[1]) for line in status if line.startswith(("VmHWM", "RssAnon"))}
print(found["RssAnon"])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, as Linux has it")
def test_mapped_files_are_not_held_in_memory(tmp_path: Path) -> None:
    def held(n: int, mode: str) -> int:
        folder = tmp_path / f"{n}"
        folder.mkdir(exist_ok=True)
        x = np.random.default_rng(0).standard_normal((n, 128), dtype="f4")
        np.save(folder / "0.npy", x)
        x.tofile(folder / "x.bin")
        (-0.1 * np.maximum(x, 0.5)).tofile(folder / "e.bin")
        root = Path(__file__).parent.parent
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", MEMORY, str(folder), str(n), mode]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    # pages of a mapped file can be dropped at any time and are not counted; what is a process's own is
    few = held(5_000, "stream")
    assert held(50_000, "stream") < 1.1 * few
    assert held(50_000, "keep") > 1.2 * few  # it would fail: 51 MB
