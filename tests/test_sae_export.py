"""Exports: the written layout computes what the record computes, by the family's own code where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from darkmatter.errors import InputError
from darkmatter.sae import SAE
from darkmatter.sae.export import SAELENS_VERSION, export_gemmascope, export_saelens

Doubles = npt.NDArray[np.float64]
ACTIVATIONS = ("relu", "topk", "jumprelu", "gated")
BIASES = ("none", "b_dec", "own")
TOLERANCE = 3e-5
"""Rounding in float32: 16 products of total size 10 before and 40 of total size 8 behind the activation, with
ε = 6e-8 each, give at most (16 · 10 + 40 · 8) · ε = 2.9e-5; 2e-6 is seen."""

MARGIN = 1e-5
"""Tokens closer than this to a kink of the activation are left out: rounding may switch a latent there."""


def make(activation: Any, *, b_pre: str = "own", dtype: torch.dtype = torch.float32, seed: int = 0) -> SAE:
    g = torch.Generator().manual_seed(seed)
    d, s = 16, 40

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=g) * scale).to(dtype)

    gated = {name: draw(s, scale=0.3) for name in ("b_gate", "b_mag", "r_mag")}
    b_dec = draw(d)
    return SAE(
        W_enc=draw(d, s, scale=d**-0.5),
        b_enc=draw(s, scale=0.3),
        W_dec=draw(s, d, scale=d**-0.5),
        b_dec=b_dec,
        b_pre={"none": None, "b_dec": b_dec.clone(), "own": draw(d)}[b_pre],
        activation=activation,
        k=5 if activation == "topk" else None,
        threshold=draw(s, scale=0.5).abs() if activation == "jumprelu" else None,
        **(gated if activation == "gated" else {}),
    )


def activations(sae: SAE, n: int = 500) -> torch.Tensor:
    """Random tokens away from the jumps of the activation, by its own float64 transcription."""
    x = torch.randn(n, 16, generator=torch.Generator().manual_seed(9)) + 0.5
    wide = sae.to(dtype=torch.float64)
    centred = x.double() if wide.b_pre is None else x.double() - wide.b_pre
    pre = centred @ wide.W_enc + wide.b_enc
    distance = pre.abs()
    if wide.threshold is not None:
        distance = (pre - wide.threshold).abs()
    if wide.b_gate is not None:
        distance = (pre + wide.b_gate).abs()
    if wide.k is not None:
        distance = pre.sort(dim=1, descending=True).values.diff(dim=1)[:, wide.k - 1 : wide.k].abs()
    clear = x[distance.amin(dim=1) > MARGIN]
    assert len(clear) > 0.8 * n
    return clear


def saelens_forward(folder: Path, x: Doubles) -> Doubles:
    """The forward pass of SAELens 6.54 without input norm, in numpy, from what was written."""
    cfg = json.loads((folder / "cfg.json").read_text())
    w = {name: value.astype(np.float64) for name, value in load_file(folder / "sae_weights.safetensors").items()}
    assert cfg["normalize_activations"] == "none"
    assert cfg["reshape_activations"] == "none"
    x = x - w["b_dec"] if cfg["apply_b_dec_to_input"] else x
    if cfg["architecture"] == "gated":
        magnitude = x @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"]
        codes = (x @ w["W_enc"] + w["b_gate"] > 0) * np.maximum(magnitude, 0)
        return codes @ w["W_dec"] + w["b_dec"]
    pre = x @ w["W_enc"] + w["b_enc"]
    codes = np.maximum(pre, 0)
    if cfg["architecture"] == "jumprelu":
        codes *= pre > w["threshold"]
    if cfg["architecture"] == "topk":
        assert cfg["rescale_acts_by_decoder_norm"] is False
        rank = np.argsort(np.argsort(-pre, axis=1), axis=1)
        codes *= rank < cfg["k"]
    result: Doubles = codes @ w["W_dec"] + w["b_dec"]
    return result


def gemmascope_forward(path: Path, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The forward pass that GemmaScope publishes, in numpy."""
    with np.load(path, allow_pickle=False) as file:
        w = {name: file[name] for name in file.files}
    assert {name: value.dtype for name, value in w.items()} == dict.fromkeys(w, np.dtype(np.float32))
    assert {name: value.shape for name, value in w.items()} == {
        "W_enc": (16, 40),
        "W_dec": (40, 16),
        "b_enc": (40,),
        "b_dec": (16,),
        "threshold": (40,),
    }
    pre = x @ w["W_enc"] + w["b_enc"]
    result: npt.NDArray[np.float32] = np.maximum(pre, 0) * (pre > w["threshold"]) @ w["W_dec"] + w["b_dec"]
    return result


@pytest.mark.parametrize("b_pre", BIASES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_saelens_layout_computes_the_same(tmp_path: Path, activation: str, b_pre: str) -> None:
    sae = make(activation, b_pre=b_pre)
    x = activations(sae)
    export_saelens(sae, tmp_path / "new" / "sae", metadata={"model_name": "toy"})
    found = saelens_forward(tmp_path / "new" / "sae", x.double().numpy())
    assert np.abs(found - sae(x).numpy()).max() <= TOLERANCE
    assert float(sae.encode(x).l0) > 3  # the comparison is about codes, not about biases
    cfg = json.loads((tmp_path / "new" / "sae" / "cfg.json").read_text())
    assert (cfg["d_in"], cfg["d_sae"], cfg["dtype"]) == (16, 40, "float32")
    assert cfg["apply_b_dec_to_input"] is (b_pre == "b_dec")
    assert cfg["metadata"] == {"model_name": "toy", "sae_lens_version": SAELENS_VERSION}


@pytest.mark.parametrize("b_pre", BIASES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_saelens_itself_computes_the_same(tmp_path: Path, activation: str, b_pre: str) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="needs the `bench` extra (sae-lens)")
    sae = make(activation, b_pre=b_pre)
    x = activations(sae)
    export_saelens(sae, tmp_path, metadata={"model_name": "toy"})
    other = sae_lens.SAE.load_from_disk(str(tmp_path))
    with torch.no_grad():
        assert (other.encode(x).to_dense() - sae.encode(x).dense()).abs().max() <= TOLERANCE
        assert (other(x) - sae(x)).abs().max() <= TOLERANCE
    assert other.cfg.metadata.model_name == "toy"


def test_without_folding_b_pre_the_comparison_fails(tmp_path: Path) -> None:
    sae = make("relu")
    x = activations(sae)
    export_saelens(sae, tmp_path)
    weights = {k: torch.from_numpy(v) for k, v in load_file(tmp_path / "sae_weights.safetensors").items()}
    wrong = SAE(**{**weights, "b_enc": sae.b_enc})
    assert (wrong(x) - sae(x)).abs().max() > 1e3 * TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_needs_no_folding_is_bit_exact(tmp_path: Path, activation: str, dtype: torch.dtype) -> None:
    sae = make(activation, b_pre="b_dec", dtype=dtype)
    export_saelens(sae, tmp_path)
    found = load_torch(tmp_path / "sae_weights.safetensors")
    assert json.loads((tmp_path / "cfg.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    folded = {"b_gate", "b_mag"} if activation == "gated" else set()
    kept = {name: value for name, value in sae.tensors().items() if name in set(found) - folded}
    assert set(found) == set(kept) | folded
    assert all(torch.equal(found[name], value) and found[name].dtype == dtype for name, value in kept.items())


@pytest.mark.parametrize("b_pre", BIASES)
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "gated"])
def test_gemmascope_layout_computes_the_same(tmp_path: Path, activation: str, b_pre: str) -> None:
    sae = make(activation, b_pre=b_pre)
    x = activations(sae)
    export_gemmascope(sae, tmp_path / "new" / "params.npz")
    assert np.abs(gemmascope_forward(tmp_path / "new" / "params.npz", x.numpy()) - sae(x).numpy()).max() <= TOLERANCE


def test_gemmascope_of_plain_weights_is_bit_exact(tmp_path: Path) -> None:
    sae = make("jumprelu", b_pre="none")
    export_gemmascope(sae, str(tmp_path / "params.npz"))
    with np.load(tmp_path / "params.npz", allow_pickle=False) as file:
        assert all(np.array_equal(file[name], value.numpy()) for name, value in sae.tensors().items())
        assert set(file.files) == set(sae.tensors())


def test_one_threshold_for_all_is_spelled_out(tmp_path: Path) -> None:
    plain = make("jumprelu")
    sae = SAE(**{**plain.tensors(), "threshold": torch.tensor(0.25)}, activation="jumprelu")
    x = activations(sae)
    export_saelens(sae, tmp_path)
    assert np.abs(saelens_forward(tmp_path, x.double().numpy()) - sae(x).numpy()).max() <= TOLERANCE
    export_gemmascope(sae, tmp_path / "params.npz")
    assert np.abs(gemmascope_forward(tmp_path / "params.npz", x.numpy()) - sae(x).numpy()).max() <= TOLERANCE


def test_a_large_mean_costs_no_accuracy_in_the_fold(tmp_path: Path) -> None:
    plain = make("relu")
    centre = torch.full((16,), 1000.0)
    sae = SAE(**{**plain.tensors(), "b_pre": centre})
    export_gemmascope(sae, tmp_path / "params.npz")
    with np.load(tmp_path / "params.npz", allow_pickle=False) as file:
        exact = plain.b_enc.double() - centre.double() @ plain.W_enc.double()
        assert np.array_equal(file["b_enc"], exact.float().numpy())


def test_topk_has_no_gemmascope_form(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"topk SAE \(k = 5\).*use export_saelens, or train"):
        export_gemmascope(make("topk"), tmp_path / "params.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
def test_an_input_norm_has_a_saelens_form_and_no_gemmascope_form(tmp_path: Path, norm: Any) -> None:
    plain = make("jumprelu")
    sae = SAE(**plain.tensors(), activation="jumprelu", input_norm=norm)
    export_saelens(sae, tmp_path)
    said = json.loads((tmp_path / "cfg.json").read_text())["normalize_activations"]
    assert said == {"layer_norm": "layer_norm", "constant_norm": "constant_norm_rescale"}[norm]
    with pytest.raises(InputError, match=f"an SAE with {norm} has no GemmaScope form: use export_saelens"):
        export_gemmascope(sae, tmp_path / "params.npz")


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
def test_saelens_itself_rescales_the_same(tmp_path: Path, norm: Any) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="needs the `bench` extra (sae-lens)")
    sae = SAE(**make("relu").tensors(), input_norm=norm)
    export_saelens(sae, tmp_path)
    x = 3 * activations(make("relu")) + 1
    with torch.no_grad():
        assert (sae_lens.SAE.load_from_disk(str(tmp_path))(x) - sae(x)).abs().max() <= TOLERANCE


def test_groupmax_has_neither_form(tmp_path: Path) -> None:
    sae = SAE(**make("relu").tensors(), activation="groupmax", k=5)
    with pytest.raises(InputError, match="a groupmax SAE has no SAELens form: write it with save_sae"):
        export_saelens(sae, tmp_path / "sae")
    with pytest.raises(InputError, match=r"a groupmax SAE \(k = 5\) cannot be written .*write it with save_sae"):
        export_gemmascope(sae, tmp_path / "params.npz")
    assert list(tmp_path.iterdir()) == []


def test_bad_targets_and_metadata_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for metadata in ({"x": float("nan")}, {"x": torch.ones(1)}):
        with pytest.raises(InputError, match="metadata cannot be written as JSON"):
            export_saelens(make("relu"), tmp_path / "sae", metadata=metadata)
    assert not (tmp_path / "sae").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        export_saelens(make("relu"), tmp_path / "file")
    with pytest.raises(InputError, match=r"is no \.npz file, expected a path such as"):
        export_gemmascope(make("relu"), tmp_path / "params")


def test_a_value_that_overflows_is_named(tmp_path: Path) -> None:
    wide = make("relu", dtype=torch.float64)
    sae = SAE(**{**wide.tensors(), "b_dec": torch.full((16,), 1e39, dtype=torch.float64)})
    with pytest.raises(InputError, match=r"b_dec reaches 1e\+39, which torch.float32 cannot hold"):
        export_gemmascope(sae, tmp_path / "params.npz")
    assert list(tmp_path.iterdir()) == []


def test_exporting_again_replaces_and_an_interrupted_export_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_saelens(make("relu"), tmp_path)
    export_saelens(make("gated", seed=1), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == "gated"

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("darkmatter.sae.export.write_json", crash)
    with pytest.raises(OSError, match="disk full"):
        export_saelens(make("relu", seed=2), tmp_path)
    assert not (tmp_path / "cfg.json").exists()
