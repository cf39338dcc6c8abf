"""Array files: what is written comes back, and damage anywhere is one clear error."""

from __future__ import annotations

import io
import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from darkmatter.adapters import as_group_ids, files_source, load_array, load_groups
from darkmatter.batch import check_source
from darkmatter.checks import as_float_tensor
from darkmatter.errors import FileFormatError, InputError

X = np.random.default_rng(0).standard_normal((11, 4)).astype("f4")


def npy_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
def test_npy_round_trip(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "x.npy", X.astype(dtype))
    back = load_array(tmp_path / "x.npy")
    assert isinstance(back, np.memmap)
    assert np.array_equal(back, X.astype(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_safetensors_round_trip_by_key_colon_or_being_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    x = torch.from_numpy(X).to(dtype)
    save_file({"x": x}, tmp_path / "one.safetensors")
    save_file({"x": x, "y": x * 2}, tmp_path / "two.safetensors")
    for back in (
        load_array(tmp_path / "one.safetensors"),
        load_array(tmp_path / "two.safetensors", key="x"),
        load_array(str(tmp_path / "two.safetensors:x")),
        load_array(Path(f"{tmp_path}/two.safetensors:x")),
    ):
        assert isinstance(back, torch.Tensor)
        assert back.dtype == dtype
        assert torch.equal(back, x)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, len(npy_bytes(X)) - 1))
def test_npy_truncated_at_any_byte(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        path.write_bytes(npy_bytes(X)[:cut])
        with pytest.raises(FileFormatError, match=r"x\.npy") as caught:
            load_array(path)
    assert caught.value.path == path


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, len(save({"x": torch.from_numpy(X)})) - 1))
def test_safetensors_truncated_at_any_byte(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(save({"x": torch.from_numpy(X)})[:cut])
        with pytest.raises(FileFormatError, match="truncated or foreign"):
            load_array(path)


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 127), value=st.integers(0, 255), suffix=st.sampled_from([".npy", ".safetensors"]))
def test_a_changed_header_byte_gives_an_array_or_our_error(place: int, value: int, suffix: str) -> None:
    data = bytearray(npy_bytes(X) if suffix == ".npy" else save({"x": torch.from_numpy(X)}))
    data[place] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        path.write_bytes(bytes(data))
        try:
            back = load_array(path)
        except FileFormatError as error:
            assert "\n" not in str(error)
        else:
            assert as_float_tensor(back, "x").ndim == 2


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.npy", npy_bytes(np.array([[object()]], dtype=object)), "Python objects"),
        ("x.npy", pickle.dumps(X), "truncated, foreign or holds Python objects"),
        ("x.npy", npy_bytes(np.asfortranarray(X)), "ascontiguousarray"),
        ("x.npy", npy_bytes(np.float32(3)), r"shape \(\)"),
        ("x.npy", npy_bytes(X[0]), "flatten"),
        ("x.npy", npy_bytes(X[:0]), "at least one"),
        ("x.npy", npy_bytes(X.astype(int)), "int64"),
        ("x.npy", npy_bytes(X.astype("c8")), "complex64"),
        ("x.npy", npy_bytes(np.zeros(3, dtype=[("a", "f4")])), "expected float16"),
        ("x.npy", npy_bytes(X) + npy_bytes(X), "one array per file"),
        ("x.npy", b"", "truncated"),
        ("x.safetensors", npy_bytes(X), "truncated or foreign"),
        ("x.safetensors", save({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}), r"no key was given: choose one"),
        ("x.safetensors", save({}), "no key was given"),
        ("x.safetensors", save({"a": torch.zeros(2, 2, dtype=torch.int32)}), "int32"),
        ("x.safetensors", save({"a": torch.zeros(2, 2, dtype=torch.float8_e4m3fn)}), "float8"),
        ("x.pt", b"", "never opened"),
        ("x", b"", "numpy.memmap"),
    ],
)
def test_unusable_files_are_refused_with_the_remedy(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    with pytest.raises(FileFormatError, match=words) as caught:
        load_array(write(tmp_path / name, data))
    assert "\n" not in str(caught.value)


def test_missing_file_and_wrong_keys(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="not a file"):
        load_array(tmp_path / "none.npy")
    with pytest.raises(FileFormatError, match="not a file"):
        load_array(tmp_path / "none.safetensors:x")
    path = write(tmp_path / "x.safetensors", save({"a": torch.zeros(2, 2)}))
    with pytest.raises(FileFormatError, match=r"holds \['a'\], not 'b'"):
        load_array(path, key="b")
    with pytest.raises(FileFormatError, match="key 'a' has no meaning"):
        load_array(write(tmp_path / "x.npy", npy_bytes(X)), key="a")


@pytest.mark.parametrize(
    ("name", "data", "labels"),
    [
        ("d.npy", npy_bytes(np.array([2, 2, 7])), [2, 2, 7]),
        ("d.npy", npy_bytes(np.array(["a", "a", "b"])), ["a", "a", "b"]),
        ("d.safetensors", save({"docs": torch.tensor([2, 2, 7])}), [2, 2, 7]),
        ("d.json", b"[2, 2, 7]", [2, 2, 7]),
        ("d.json", b'["a", "a", "b"]', ["a", "a", "b"]),
        ("d.txt", b"2\n2\n7\n", ["2", "2", "7"]),
        ("d.txt", b"\xef\xbb\xbfa\r\na\r\nb", ["a", "a", "b"]),
    ],
)
def test_document_ids_of_every_format(tmp_path: Path, name: str, data: bytes, labels: list[Any]) -> None:
    assert load_groups(write(tmp_path / name, data)).tolist() == as_group_ids(labels).tolist()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("d.npy", npy_bytes(np.zeros(3)), "float64"),
        ("d.npy", npy_bytes(np.zeros((3, 1), dtype=int)), "expected \\(n_tokens,\\)"),
        ("d.npy", npy_bytes(np.zeros(0, dtype=int)), "no document id"),
        ("d.safetensors", save({"a": torch.zeros(3)}), "float32"),
        ("d.json", b"{}", "dict"),
        ("d.json", b"[1, 2", "JSON"),
        ("d.json", b"\xff", "JSON"),
        ("d.json", b"[1, 2.5]", "entry 1 is 2.5"),
        ("d.json", b"[1, true]", "entry 1 is true"),
        ("d.json", b'[1, "a"]', "only integers or only strings"),
        ("d.json", b"[]", "no document id"),
        ("d.txt", b"a\n\nb\n", "line 2 is blank"),
        ("d.txt", b"", "line 1 is blank"),
        ("d.txt", b"\xff\xfe", "UTF-8"),
        ("d.csv", b"1\n", "ends in '.csv'"),
    ],
)
def test_bad_document_ids_name_the_file(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    with pytest.raises(FileFormatError, match=words) as caught:
        load_groups(write(tmp_path / name, data))
    assert name in str(caught.value)


def test_files_source_from_mixed_formats(tmp_path: Path) -> None:
    write(tmp_path / "x.npy", npy_bytes(X))
    save_file({"a": torch.from_numpy(X) * 0.9, "b": torch.from_numpy(X) * 0.5}, tmp_path / "r.safetensors")
    write(tmp_path / "d.txt", b"".join(b"%d\n" % (i // 4) for i in range(11)))
    source = files_source(
        tmp_path / "x.npy",
        {"a": tmp_path / "r.safetensors:a", "b": tmp_path / "r.safetensors:b"},
        tmp_path / "d.txt",
        batch_size=4,
        description={"layer": 2},
    )
    checked = check_source(source)
    assert (checked.n_tokens, checked.n_groups) == (11, 3)
    assert source.description["layer"] == 2
    assert source.description["files"]["recons"] == {"a": "r.safetensors:a", "b": "r.safetensors:b"}
    assert str(tmp_path) not in json.dumps(dict(source.description))
    assert torch.equal(as_float_tensor(next(iter(source)).recons["b"], "b"), torch.from_numpy(X[:4]) * 0.5)


def test_files_source_refuses_x_as_its_own_reconstruction(tmp_path: Path) -> None:
    write(tmp_path / "x.npy", npy_bytes(X))
    with pytest.raises(InputError, match="did you pass x twice"):
        files_source(tmp_path / "x.npy", {"a": tmp_path / "." / "x.npy"})
