"""Damaged, foreign and hostile SAE files: one clear line each, and nothing in them is ever executed."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tests.sae_families as f
from darkmatter.adapters import load_any_sae
from darkmatter.adapters.saes import tensor_files
from darkmatter.adapters.saes.tensor_files import read_safetensors, read_weights
from darkmatter.errors import DarkmatterError, FileFormatError, InputError


def refused(path: Path | str, words: str, **options: Any) -> None:
    with pytest.raises((FileFormatError, InputError), match=words) as caught:
        load_any_sae(path, **options)
    assert "\n" not in str(caught.value)


# which family


def test_unknown_folders_say_what_was_found_and_what_is_needed(tmp_path: Path) -> None:
    refused(tmp_path, r"no SAE of a known family \(found: nothing\), expected one of gemmascope \(params.npz")
    (tmp_path / "layer_20").mkdir()
    (tmp_path / "README.md").write_text("")
    refused(tmp_path, r"found: README.md, layer_20.*name the SAE's own folder or file")
    refused(tmp_path, "no SAE of the family openai", family="openai")
    refused(tmp_path, "family is 'gemma', expected one of gemmascope, saelens", family="gemma")
    refused(tmp_path, "dtype is 'int8', expected one of", dtype="int8")
    refused(tmp_path, "device 'abacus' cannot be used", device="abacus")


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "~/nowhere"])
def test_a_place_that_is_not_there(name: str, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere" if name == "nowhere" else name, "does not exist, expected an SAE's folder or file")


def test_a_folder_of_two_families_needs_the_family_or_the_file(tmp_path: Path) -> None:
    f.gemmascope(tmp_path)
    f.dictionary_learning(tmp_path)
    refused(tmp_path, r"holds several files of weights \(ae.pt, params.npz\)")
    assert load_any_sae(tmp_path, family="gemmascope").family == "gemmascope"
    assert load_any_sae(tmp_path, family="dictionary_learning").family == "dictionary_learning"
    assert load_any_sae(tmp_path / "ae.pt").family == "dictionary_learning"
    (tmp_path / "second.npz").write_bytes((tmp_path / "params.npz").read_bytes())
    assert load_any_sae(tmp_path / "second.npz").family == "gemmascope"


@pytest.mark.parametrize("family", ["gemmascope", "saelens", "sparsify", "dictionary_learning", "openai"])
def test_a_family_that_is_asked_for_must_fit(family: str, tmp_path: Path) -> None:
    f.sparsify(tmp_path / "sparsify")
    f.openai(tmp_path / "openai")
    for folder, own in (("sparsify", "sparsify"), ("openai/8.pt", "openai")):
        if own == family:
            assert load_any_sae(tmp_path / folder, family=family).family == own
        else:
            refused(tmp_path / folder, f"(no SAE of the family {family}|not of {family})", family=family)
    refused(tmp_path / "openai" / "8.pt", "not of darkmatter", family="darkmatter")


def test_names_that_no_family_writes(tmp_path: Path) -> None:
    save_file({"up": torch.zeros(2)}, tmp_path / "sae.safetensors")
    refused(tmp_path, r"holds \['up'\], which no known family writes")
    np.savez(tmp_path / "x.npz", W=np.zeros(3))
    refused(tmp_path / "x.npz", r"holds \['W'\], which no known family writes")
    (tmp_path / "x.bin").write_bytes(b"")
    refused(tmp_path / "x.bin", r"ends in '.bin', expected .safetensors, .npz or .pt: other pickled formats are never")


def test_a_local_place_has_no_revision(tmp_path: Path) -> None:
    f.gemmascope(tmp_path)
    refused(tmp_path, "revision 'main' was given for the local", revision="main")


def test_a_configuration_that_is_missing_or_damaged(tmp_path: Path) -> None:
    f.saelens(tmp_path)
    (tmp_path / "cfg.json").unlink()
    refused(tmp_path, "cfg.json does not exist, expected the configuration of a saelens SAE")
    f.sparsify(tmp_path / "b")
    refused(tmp_path / "b" / "cfg.json", "is a configuration, expected an SAE's folder or its weights")
    (tmp_path / "b" / "cfg.json").write_text('{"k": ')
    refused(tmp_path / "b", "cfg.json cannot be read as JSON")


# damage


def writers() -> dict[str, tuple[Callable[[Path], object], str]]:
    return {
        "npz": (f.gemmascope, "params.npz"),
        "safetensors": (f.saelens, "sae_weights.safetensors"),
        "pt": (f.dictionary_learning, "ae.pt"),
    }


@pytest.mark.parametrize("kind", writers())
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights(kind: str, share: float, tmp_path: Path) -> None:
    write, name = writers()[kind]
    write(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    refused(tmp_path, "truncated")


@pytest.mark.parametrize("kind", writers())
def test_bytes_that_are_something_else(kind: str, tmp_path: Path) -> None:
    write, name = writers()[kind]
    write(tmp_path)
    for junk in (b"\x00" * 300, b"<html>" * 50, np.random.default_rng(0).bytes(5000)):
        (tmp_path / name).write_bytes(junk)
        refused(tmp_path, "truncated|foreign")


@pytest.mark.parametrize("kind", writers())
def test_flipped_bytes_never_end_in_a_traceback(kind: str, tmp_path: Path) -> None:
    write, name = writers()[kind]
    write(tmp_path)
    data = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(0, min(len(data), 600), size=3):  # where the headers are
            damaged[place] ^= int(rng.integers(1, 256))
        (tmp_path / name).write_bytes(bytes(damaged))
        try:
            load_any_sae(tmp_path)
            outcomes.add("read")
        except DarkmatterError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes


def test_headers_that_promise_more_than_there_is(tmp_path: Path) -> None:
    f.saelens(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    good = file.read_bytes()
    file.write_bytes(struct.pack("<Q", 2**62) + good[8:])
    refused(tmp_path, "cannot be read as safetensors")
    header = json.dumps({"W_enc": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    refused(tmp_path, "cannot be read as safetensors")
    f.gemmascope(tmp_path / "b")
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 8)})
    with zipfile.ZipFile(tmp_path / "b" / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", stream.getvalue() + b"\0" * 64)
    refused(tmp_path / "b", "header promises 35184372088832 bytes of data, the archive holds 64")


def test_an_archive_that_claims_an_impossible_size(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", b"\0" * 100)
    data = bytearray((tmp_path / "params.npz").read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = struct.pack("<I", 2**31)  # the uncompressed size
    (tmp_path / "params.npz").write_bytes(bytes(data))
    refused(tmp_path, "claims 2147483648 bytes, more than a file of its size can hold")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad: float, tmp_path: Path) -> None:
    f.saelens(tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    weights["W_dec"][3, 4] = bad
    save_file(weights, tmp_path / "sae_weights.safetensors")
    refused(tmp_path, "holds NaN or infinity in W_dec: it is damaged or training diverged")


def test_weights_that_overflow_half_precision(tmp_path: Path) -> None:
    f.saelens(tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    weights["b_dec"][0] = 1e5
    save_file(weights, tmp_path / "sae_weights.safetensors")
    refused(tmp_path, "b_dec of .* overflows float16: load it in float32 or bfloat16", dtype="float16")
    assert load_any_sae(tmp_path, dtype="bfloat16").sae.dtype == torch.bfloat16
    assert load_any_sae(tmp_path).sae.dtype == torch.float32


# pickles


class Bomb:
    """An object whose unpickling would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    state: dict[str, Any] = {**f.learner_weights("AutoEncoder"), "bomb": Bomb(trace)}
    torch.save(state, tmp_path / "ae.pt")
    refused(tmp_path, "holds more than tensors, numbers and strings, and is not opened")
    torch.save(state, tmp_path / "ae.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path, "no zipped .pt file.*plain pickle, which is never opened")
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Bomb(trace)))
    refused(tmp_path, "plain pickle, which is never opened")
    np.savez(tmp_path / "params.npz", W_enc=np.array([Bomb(trace)], dtype=object))
    refused(tmp_path / "params.npz", "an array of Python objects")
    assert not trace.exists()
    call, arguments = Bomb(trace).__reduce__()
    call(*arguments)  # what opening it would have done
    assert trace.exists()


def test_a_torch_that_cannot_read_safely_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    f.dictionary_learning(tmp_path)
    monkeypatch.setattr(tensor_files.torch, "__version__", "2.5.1+cpu")
    refused(tmp_path, "torch 2.5.1.* cannot read safely: update torch to 2.6")


def test_a_pt_file_must_hold_tensors_by_name(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "ae.pt")
    refused(tmp_path, "holds a list, expected a dictionary of tensors by name")
    torch.save({1: torch.zeros(2)}, tmp_path / "ae.pt")
    refused(tmp_path, "holds a dict, expected a dictionary of tensors by name")


# shards


def shard(folder: Path, names: tuple[str, str] = ("a.safetensors", "b.safetensors")) -> f.Forward:
    """Split an SAELens folder's weights over two files."""
    forward = f.saelens(folder)
    whole = folder / "sae_weights.safetensors"
    weights = load_file(whole)
    whole.unlink()
    parts = {names[0]: ["W_enc"], names[1]: [name for name in weights if name != "W_enc"]}
    for name, keys in parts.items():
        save_file({key: weights[key] for key in keys}, folder / name)
    index = {"metadata": {}, "weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (folder / "sae_weights.safetensors.index.json").write_text(json.dumps(index))
    return forward


def test_shards_are_joined(tmp_path: Path) -> None:
    forward = shard(tmp_path)
    x = f.tokens()
    loaded = load_any_sae(tmp_path, dtype="float64")
    assert np.abs(loaded(x).numpy() - forward(f.doubles(x))).max() < 1e-12


@pytest.mark.parametrize(
    "name",
    ["../a.safetensors", "/etc/a.safetensors", "sub/a.safetensors", "..\\a.safetensors", ".a.safetensors", "a.pt"],
)
def test_shards_outside_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "sae"
    shard(folder)
    index = folder / "sae_weights.safetensors.index.json"
    said = json.loads(index.read_text())
    save_file({"W_enc": torch.zeros(f.D, f.S)}, tmp_path / "a.safetensors")  # it is there, and still not read
    index.write_text(json.dumps({"weight_map": {**said["weight_map"], "W_enc": name}}))
    refused(folder, r"expected a plain .safetensors file name in the same folder: do not trust")


def test_shards_that_do_not_fit_their_index(tmp_path: Path) -> None:
    shard(tmp_path)
    index = tmp_path / "sae_weights.safetensors.index.json"
    said = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": {**said["weight_map"], "W_enc": "b.safetensors"}}))
    refused(tmp_path, r"disagree about \['W_enc'\]")
    index.write_text(json.dumps({"weight_map": {**said["weight_map"], "W_enc": "c.safetensors"}}))
    refused(tmp_path, "c.safetensors does not exist|disagree")
    for bad in ({}, {"weight_map": {}}, {"weight_map": {"W_enc": 3}}, {"weight_map": ["a"]}):
        index.write_text(json.dumps(bad))
        refused(tmp_path, "has no weight_map of file names")
    (tmp_path / "a.safetensors").unlink()
    index.write_text(json.dumps(said))
    refused(tmp_path, "a.safetensors does not exist")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for name in ("x.npz", "x.pt", "x.safetensors"):
        with pytest.raises(FileFormatError, match="does not exist"):
            read_weights(tmp_path / name)
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert read_safetensors(tmp_path / "x.safetensors")["x"].tolist() == [0, 0]


def test_fortran_order_and_foreign_byte_order_are_read_as_meant(tmp_path: Path) -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    np.savez_compressed(tmp_path / "x.npz", a=np.asfortranarray(array), b=array)
    found = read_weights(tmp_path / "x.npz")
    assert found["a"].tolist() == found["b"].tolist() == [[0, 1, 2], [3, 4, 5]]
