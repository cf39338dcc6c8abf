"""SAE files: bit-exact round trips, and every kind of damage ends in one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from darkmatter.errors import FileFormatError, InputError
from darkmatter.sae import SAE, load_sae, load_sae_metadata, save_sae

REUSE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make(activation: Any = "topk", *, dtype: torch.dtype = torch.float32, seed: int = 0) -> SAE:
    g = torch.Generator().manual_seed(seed)
    d, s = 3, 5
    return SAE(
        W_enc=torch.randn(d, s, generator=g).to(dtype),
        b_enc=torch.randn(s, generator=g).to(dtype),
        W_dec=torch.randn(s, d, generator=g).to(dtype),
        b_dec=torch.randn(d, generator=g).to(dtype),
        b_pre=torch.randn(d, generator=g).to(dtype) if activation == "topk" else None,
        activation=activation,
        k=2 if activation == "topk" else None,
        threshold=torch.rand(s, generator=g).to(dtype) if activation == "jumprelu" else None,
    )


def same(a: SAE, b: SAE) -> bool:
    left, right = a.tensors(), b.tensors()
    return (
        (a.activation, a.k) == (b.activation, b.k)
        and left.keys() == right.keys()
        and all(torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
def test_round_trip_is_bit_exact(tmp_path: Path, activation: str, dtype: torch.dtype) -> None:
    sae = make(activation, dtype=dtype)
    metadata = {"trainer": "by hand", "history": [[1, 0.1]], "name": "é"}
    save_sae(sae, tmp_path / "new" / "folder", metadata=metadata)
    assert same(load_sae(tmp_path / "new" / "folder"), sae)
    assert load_sae_metadata(tmp_path / "new" / "folder") == metadata
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["cfg.json", "sae.safetensors"]


@pytest.mark.parametrize("norm", [None, "layer_norm", "constant_norm"])
@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_every_setting_survives(tmp_path: Path, activation: Any, norm: Any) -> None:
    plain = make("relu")
    sae = SAE(**plain.tensors(), activation=activation, k=1, input_norm=norm)
    save_sae(sae, tmp_path)
    found = load_sae(tmp_path)
    assert same(found, sae) and found.input_norm == norm
    assert found.fingerprint() == sae.fingerprint()
    assert ("input_norm" in json.loads((tmp_path / "cfg.json").read_text())) is (norm is not None)


def test_saving_again_replaces(tmp_path: Path) -> None:
    save_sae(make("topk"), tmp_path)
    save_sae(make("jumprelu", seed=1), str(tmp_path))
    assert same(load_sae(str(tmp_path)), make("jumprelu", seed=1))
    assert load_sae_metadata(tmp_path) == {}


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    W, b = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(3)
    tied = SAE(W_enc=W, b_enc=torch.zeros(5), W_dec=W.T, b_dec=b, b_pre=b)
    save_sae(tied, tmp_path)
    assert same(load_sae(tmp_path), tied)


def test_bad_metadata_and_target_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for metadata in ({"x": float("nan")}, {"x": torch.ones(1)}, {"x": {1, 2}}):
        with pytest.raises(InputError, match="metadata cannot be written as JSON"):
            save_sae(make(), tmp_path / "sae", metadata=metadata)
    assert not (tmp_path / "sae").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        save_sae(make(), tmp_path / "file")


@pytest.mark.parametrize("name", ["cfg.json", "sae.safetensors"])
def test_truncation_at_any_byte_is_a_format_error(tmp_path: Path, name: str) -> None:
    save_sae(make(), tmp_path, metadata={"note": "é"})
    whole = (tmp_path / name).read_bytes()
    needed = len(whole.rstrip(b"\n")) if name == "cfg.json" else len(whole)  # without its last newline JSON is complete
    for length in range(needed):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(FileFormatError):
            load_sae(tmp_path)
    (tmp_path / name).write_bytes(whole)
    assert same(load_sae(tmp_path), make())


@given(position=st.integers(0, 10**6), byte=st.integers(0, 255))
@REUSE
def test_any_changed_byte_of_the_weights_is_a_format_error(tmp_path: Path, position: int, byte: int) -> None:
    save_sae(make(), tmp_path)
    content = bytearray((tmp_path / "sae.safetensors").read_bytes())
    position %= len(content)
    changed = content[position] != byte
    content[position] = byte
    (tmp_path / "sae.safetensors").write_bytes(bytes(content))
    if changed:
        with pytest.raises(FileFormatError):
            load_sae(tmp_path)
    else:
        assert same(load_sae(tmp_path), make())


@given(position=st.integers(0, 10**6), byte=st.integers(0, 255))
@REUSE
def test_a_changed_byte_of_the_header_loads_or_is_a_format_error(tmp_path: Path, position: int, byte: int) -> None:
    save_sae(make(), tmp_path)
    content = bytearray((tmp_path / "cfg.json").read_bytes())
    content[position % len(content)] = byte
    (tmp_path / "cfg.json").write_bytes(bytes(content))
    try:
        loaded = load_sae(tmp_path)
    except FileFormatError as error:
        assert str(tmp_path) in str(error)
    else:
        assert loaded.tensors().keys() == make().tensors().keys()


def test_an_interrupted_save_over_an_older_sae_is_refused(tmp_path: Path) -> None:
    save_sae(make(), tmp_path / "new")
    save_sae(make(seed=1), tmp_path / "old")
    (tmp_path / "new" / "sae.safetensors").replace(tmp_path / "old" / "sae.safetensors")
    with pytest.raises(FileFormatError, match="does not match the sha256"):
        load_sae(tmp_path / "old")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "sae_lens"}, r"has format 'sae_lens', expected 'darkmatter-sae': .*adapters"),
        ({"format_version": 2}, "has format_version 2, expected 1: update"),
        ({"k": 9}, "k is 9, expected an integer from 1 to d_sae = 5"),
        ({"k": None}, "k is None with activation 'topk'"),
        ({"activation": "gelu"}, "activation is 'gelu'"),
        ({"activation": ["topk"]}, "activation is "),
        ({"activation": "jumprelu", "k": None}, "threshold is missing"),
        ({"input_norm": "batch_norm"}, "input_norm is 'batch_norm'"),
        ({"input_norm": ["layer_norm"]}, "input_norm is "),
        ({"d_sae": 6}, r"W_enc of shape \(3, 5\), cfg.json says \(3, 6\)"),
        ({"dtype": "bfloat16"}, "dtype float32, cfg.json says 'bfloat16'"),
        ({"sha256": "0"}, "does not match the sha256"),
        ({"metadata": [1]}, "has metadata list, expected an object"),
        ({"surprise": 1}, r"missing or unknown keys \['surprise'\]"),
    ],
)
def test_a_wrong_header_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save_sae(make(), tmp_path)
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FileFormatError, match=message):
        load_sae(tmp_path)


def test_a_header_without_a_key_is_refused(tmp_path: Path) -> None:
    save_sae(make(), tmp_path)
    path = tmp_path / "cfg.json"
    whole = json.loads(path.read_text())
    for key in whole:
        path.write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        with pytest.raises(FileFormatError, match=key):
            load_sae(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "{", "\xff", "[" * 100_000, '{"k": ' + "9" * 5000 + "}", ""])
def test_a_header_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    save_sae(make(), tmp_path)
    (tmp_path / "cfg.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FileFormatError, match=r"cfg\.json"):
        load_sae_metadata(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_dec": None}, r"lacks tensors \['W_dec'\]"),
        ({"W_skip": torch.ones(3, 3)}, r"unknown tensors \['W_skip'\]"),
        ({"W_dec": torch.ones(3, 5)}, "W_dec has shape .*transposed"),
        ({"b_enc": torch.full((5,), torch.nan)}, "b_enc has 5 entries that are NaN"),
        ({"b_enc": torch.zeros(5, dtype=torch.int32)}, "b_enc has dtype torch.int32"),
        ({"threshold": torch.zeros(5)}, "threshold is given with activation 'topk'"),
        ({"b_dec": torch.tensor(0.0)}, r"b_dec has shape \(\)"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save_sae(make(), tmp_path)
    tensors = load_file(tmp_path / "sae.safetensors") | change
    save_file({k: v for k, v in tensors.items() if v is not None}, tmp_path / "sae.safetensors")
    with pytest.raises(FileFormatError, match=message) as caught:
        load_sae(tmp_path)
    assert caught.value.path == tmp_path / "sae.safetensors"


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"cfg\.json does not exist"):
        load_sae(tmp_path / "nowhere")
    save_sae(make(), tmp_path)
    (tmp_path / "sae.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"sae\.safetensors does not exist"):
        load_sae(tmp_path)
    (tmp_path / "cfg.json").unlink()
    (tmp_path / "cfg.json").mkdir()
    with pytest.raises(FileFormatError, match=r"cfg\.json cannot be read"):
        load_sae(tmp_path)
