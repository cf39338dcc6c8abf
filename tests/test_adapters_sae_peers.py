"""The readers against the families' own code, where it is installed: the `bench` extra has sae-lens."""

from __future__ import annotations

import json
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tests.sae_families as f
from darkmatter.adapters import load_any_sae

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, not ours

TOLERANCE = 3e-5


def peer(module: str, package: str) -> Any:
    pytest.importorskip(package, reason=f"needs {package}, which is no dependency")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(module)


def agree(folder: Path, recon: Tensor, x: Tensor) -> None:
    """Compare on tokens away from kinks: those whose codes are the same in float32 and float64."""
    loaded = load_any_sae(folder)
    exact = load_any_sae(folder, dtype="float64")
    codes = loaded.sae.encode(x).dense() > 0
    clear = (codes == (exact.sae.encode(x).dense() > 0)).all(dim=1)
    assert clear.double().mean() > 0.97
    assert 1 < float(codes.double().sum(dim=1).mean()) < f.S
    assert float((loaded(x) - recon)[clear].abs().max()) <= TOLERANCE


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", f.SAELENS_ARCHITECTURES)
@pytest.mark.parametrize("subtract", [True, False])
def test_saelens(kind: str, norm: str, subtract: bool, tmp_path: Path) -> None:
    sae_lens = peer("sae_lens", "sae_lens")
    f.saelens(tmp_path, kind, norm, apply_b_dec_to_input=subtract)
    theirs, x = sae_lens.SAE.load_from_disk(str(tmp_path)), f.tokens()
    with torch.no_grad():
        agree(tmp_path, theirs(x), x)


def test_saelens_topk_by_decoder_norm(tmp_path: Path) -> None:
    sae_lens = peer("sae_lens", "sae_lens")
    f.saelens(tmp_path, "topk", rescale_acts_by_decoder_norm=True)
    theirs, x = sae_lens.SAE.load_from_disk(str(tmp_path)), f.tokens()
    with torch.no_grad():
        agree(tmp_path, theirs(x), x)
        plain = load_any_sae(tmp_path).sae
        assert float((plain.encode(x).dense() - theirs.encode(x).to_dense()).abs().max()) <= TOLERANCE


def test_saelens_folds_the_input_scale_as_we_do(tmp_path: Path) -> None:
    sae_lens = peer("sae_lens", "sae_lens")
    f.saelens(tmp_path, "jumprelu", "expected_average_only_in")
    theirs, x = sae_lens.SAE.load_from_disk(str(tmp_path)), f.tokens()
    theirs.fold_activation_norm_scaling_factor(0.4)
    with torch.no_grad():
        agree(tmp_path, theirs(x), x)


def test_saelens_before_6(tmp_path: Path) -> None:
    sae_lens = peer("sae_lens", "sae_lens")
    f.saelens(tmp_path, "topk")
    old = {"d_in": f.D, "d_sae": f.S, "dtype": "float32", "hook_name": "blocks.3.hook_resid_post"}
    top = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": f.K}, "normalize_activations": "none"}
    (tmp_path / "cfg.json").write_text(json.dumps({**old, **top}))
    theirs, x = sae_lens.SAE.load_from_disk(str(tmp_path)), f.tokens()
    with torch.no_grad():
        agree(tmp_path, theirs(x), x)


@pytest.mark.parametrize("two", [False, True])
def test_gemmascope_by_the_loaders_of_saelens(two: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sae_lens = peer("sae_lens", "sae_lens")
    loaders = peer("sae_lens.loading.pretrained_sae_loaders", "sae_lens")
    folder = "resid_post/layer_7_width_65k_l0_medium" if two else "layer_20/width_16k/average_l0_71"
    f.gemmascope(tmp_path / folder, two=two)

    def local(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:
        return str(tmp_path / subfolder / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", local)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda *_: {"w_enc": [f.D, f.S]})
    if two:
        cfg, state, _ = loaders.gemma_3_sae_huggingface_loader("google/gemma-scope-2-1b-pt", folder)
    else:
        cfg, state, _ = loaders.gemma_2_sae_huggingface_loader("google/gemma-scope-9b-pt-res", folder)
    with np.errstate(all="ignore"):
        theirs = sae_lens.saes.JumpReLUSAE(
            sae_lens.saes.JumpReLUSAEConfig(d_in=f.D, d_sae=f.S, apply_b_dec_to_input=cfg["apply_b_dec_to_input"])
        )
    theirs.load_state_dict(state)
    x = f.tokens()
    with torch.no_grad():
        agree(tmp_path / folder, theirs(x), x)


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_sparsify(activation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparsify = peer("sparsify", "sparsify")
    coder = import_module("sparsify.sparse_coder")
    monkeypatch.setattr(coder, "decoder_impl", import_module("sparsify.utils").eager_decode)  # the other needs a GPU
    f.sparsify(tmp_path, activation)
    theirs, x = sparsify.SparseCoder.load_from_disk(tmp_path), f.tokens()
    with torch.no_grad():
        top = theirs.encode(x)
        agree(tmp_path, theirs.decode(top.top_acts, top.top_indices), x)


@pytest.mark.parametrize("kind", f.LEARNERS)
def test_dictionary_learning(kind: str, tmp_path: Path) -> None:
    peer("dictionary_learning", "dictionary_learning")
    home = {
        "AutoEncoderTopK": "trainers.top_k",
        "BatchTopKSAE": "trainers.batch_top_k",
        "MatryoshkaBatchTopKSAE": "trainers.matryoshka_batch_top_k",
    }.get(kind, "dictionary")
    module = import_module(f"dictionary_learning.{home}")
    f.dictionary_learning(tmp_path, kind)
    extra: tuple[Any, ...] = (f.K,) if "k" in f.learner_weights(kind) else ()
    extra += ([f.S // 4, f.S - f.S // 4],) if kind == "MatryoshkaBatchTopKSAE" else ()
    theirs, x = getattr(module, kind)(f.D, f.S, *extra), f.tokens()
    theirs.load_state_dict(f.learner_weights(kind))
    with torch.no_grad():
        agree(tmp_path, theirs(x), x)
