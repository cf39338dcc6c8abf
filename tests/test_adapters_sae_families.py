"""Every family's files give the family's own function, and every trap of its format is sprung."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tests.sae_families as f
from darkmatter.adapters import LoadedSae, load_any_sae
from darkmatter.adapters.saes.hooks import same_place, site_of_hook
from darkmatter.errors import FileFormatError, InputError
from darkmatter.sae import SAE, save_sae
from darkmatter.sae.export import export_gemmascope, export_saelens

TOLERANCE = 3e-5
"""Rounding in float32, as for the exports: sums of 16 and 48 terms of size 1 give less than that."""

WRITERS: dict[str, Callable[[Path], f.Forward]] = {
    "gemmascope": f.gemmascope,
    "gemmascope lower case": lambda path: f.gemmascope(path, lower=True),
    "gemmascope 2": lambda path: f.gemmascope(path, two=True),
    **{
        f"saelens {kind} {norm}": lambda path, kind=kind, norm=norm: f.saelens(path, kind, norm)  # type: ignore[misc]
        for kind in f.SAELENS_ARCHITECTURES
        for norm in f.SAELENS_NORMS
    },
    "saelens without b_dec": lambda path: f.saelens(path, "jumprelu", apply_b_dec_to_input=False),
    "saelens topk by norm": lambda path: f.saelens(path, "topk", rescale_acts_by_decoder_norm=True),
    "sparsify": f.sparsify,
    "sparsify groupmax": lambda path: f.sparsify(path, "groupmax"),
    "sparsify in bfloat16": lambda path: f.sparsify(path, dtype=torch.bfloat16),
    **{f"learner {kind}": lambda path, kind=kind: f.dictionary_learning(path, kind) for kind in f.LEARNERS},  # type: ignore[misc]
    "openai": f.openai,
    "openai relu": lambda path: f.openai(path, "ReLU"),
    "openai tied": lambda path: f.openai(path, tied=True),
}


def difference(loaded: LoadedSae, forward: f.Forward) -> float:
    x = f.tokens()
    return float(np.abs(loaded(x).double().numpy() - forward(f.doubles(x))).max())


@pytest.mark.parametrize("name", WRITERS)
def test_the_function_is_the_familys_own(name: str, tmp_path: Path) -> None:
    forward = WRITERS[name](tmp_path)
    exact = load_any_sae(tmp_path, dtype="float64")
    assert difference(exact, forward) < 1e-12  # 64 terms of size 1 with ε = 2e-16
    loaded = load_any_sae(tmp_path)
    assert loaded.sae.dtype == torch.float32
    x = f.tokens()
    codes, wanted = loaded.sae.encode(x).dense(), exact.sae.encode(x).dense()
    clear = ((codes > 0) == (wanted > 0)).all(dim=1)  # rounding may switch a latent at a kink
    assert clear.double().mean() > 0.97
    got = loaded(x[clear]).double().numpy()
    assert np.abs(got - forward(f.doubles(x[clear]))).max() <= TOLERANCE
    assert 1 < loaded.sae.encode(x).l0 < f.S
    assert loaded.family == {"learner": "dictionary_learning"}.get(name.split()[0], name.split()[0])


@pytest.mark.parametrize("name", ["saelens topk none", "openai", "sparsify", "gemmascope", "learner BatchTopKSAE"])
def test_the_comparison_can_fail(name: str, tmp_path: Path) -> None:
    forward = WRITERS[name](tmp_path)
    loaded = load_any_sae(tmp_path, dtype="float64")
    settings = {"activation": loaded.sae.activation, "k": loaded.sae.k, "input_norm": loaded.sae.input_norm}
    wrong = SAE(**{**loaded.sae.tensors(), **settings, "b_enc": loaded.sae.b_enc + 1e-3})  # type: ignore[arg-type]
    x = f.tokens()
    assert np.abs(wrong(x).numpy() - forward(f.doubles(x))).max() > 10 * TOLERANCE


# what the files say


def test_gemmascope_says_site_and_l0_in_its_path_alone(tmp_path: Path) -> None:
    for release, site, model in (
        ("gemma-scope-9b-pt-res", "resid_post:20", "gemma-2-9b"),
        ("gemma-scope-2b-pt-mlp", "mlp_out:20", "gemma-2-2b"),
        ("gemma-scope-9b-it-att", "attn_z:20", "gemma-2-9b-it"),
    ):
        folder = tmp_path / release / "layer_20" / "width_1m" / "average_l0_57"
        f.gemmascope(folder)
        loaded = load_any_sae(folder)
        assert (loaded.site, loaded.l0, loaded.model) == (site, 57, model)
        assert (loaded.sae.d_model, loaded.sae.d_sae) == (f.D, f.S)  # from the arrays, not from "1m"
    f.gemmascope(tmp_path / "plain")
    loaded = load_any_sae(tmp_path / "plain" / "params.npz")
    assert (loaded.site, loaded.l0, loaded.model, loaded.revision) == (None, None, None, None)


def test_gemmascope_2_says_them_in_its_configuration(tmp_path: Path) -> None:
    f.gemmascope(tmp_path / "sae", two=True)
    loaded = load_any_sae(tmp_path / "sae")
    assert (loaded.site, loaded.l0, loaded.hook) == ("resid_post:7", 60, "model.layers.7.output")
    folder = tmp_path / "attn_out_all" / "layer_9_width_16k_l0_small"
    f.gemmascope(folder, two=True)
    (folder / "config.json").unlink()
    assert (load_any_sae(folder).site, load_any_sae(folder).l0) == ("attn_z:9", None)


def test_saelens_says_them_in_its_metadata(tmp_path: Path) -> None:
    f.saelens(tmp_path, "topk")
    loaded = load_any_sae(tmp_path)
    assert (loaded.hook, loaded.site, loaded.l0) == ("blocks.3.hook_resid_pre", "resid_pre:3", f.K)
    assert loaded.model == "toy"
    assert loaded.notes == ("b_dec is subtracted from x before encoding.",)


def test_dictionary_learning_says_them_in_its_configuration(tmp_path: Path) -> None:
    f.dictionary_learning(tmp_path, "BatchTopKSAE")
    loaded = load_any_sae(tmp_path)
    assert (loaded.site, loaded.l0, loaded.model) == ("resid_post:8", f.K, "toy/model")
    assert any("divided x by 2.5 and folded" in note for note in loaded.notes)
    assert any("one threshold at inference" in note for note in loaded.notes)


def test_sparsify_and_openai_say_them_in_their_paths(tmp_path: Path) -> None:
    f.sparsify(tmp_path / "layers.10")
    f.sparsify(tmp_path / "layers.10.mlp")
    f.sparsify(tmp_path / "mine")
    assert (load_any_sae(tmp_path / "layers.10").site, load_any_sae(tmp_path / "layers.10").l0) == (
        "resid_post:10",
        f.K,
    )
    mlp = load_any_sae(tmp_path / "layers.10.mlp")
    assert (mlp.site, mlp.hook) == (None, "layers.10.mlp")  # whether a norm follows depends on the model
    assert load_any_sae(tmp_path / "mine").hook is None
    folder = tmp_path / "resid_post_mlp_v5_32k" / "autoencoders"
    f.openai(folder)
    loaded = load_any_sae(folder / "8.pt")
    assert (loaded.site, loaded.l0) == ("resid_post:8", f.K)
    assert loaded.normalisation is not None and "mean and standard deviation pass outside" in loaded.normalisation


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.0.hook_resid_post", "resid_post:0"),
        ("blocks.0.hook_resid_pre", "resid_pre:0"),
        ("blocks.4.hook_mlp_out", "mlp_out:4"),
        ("blocks.4.attn.hook_z", "attn_z:4"),
        ("blocks.4.hook_resid_mid", None),
        ("model.layers.4.output", "resid_post:4"),
        ("model.layers.4.self_attn.o_proj.input", "attn_z:4"),
        ("model.layers.4.post_feedforward_layernorm.output", "mlp_out:4"),
        ("model.layers.4.mlp.output", None),
        ("h.11", "resid_post:11"),
        ("gpt_neox.layers.3", "resid_post:3"),
        ("", None),
        (None, None),
    ],
)
def test_hooks_become_sites_only_where_that_is_certain(hook: str | None, site: str | None) -> None:
    assert site_of_hook(hook) == site


def test_spellings_of_one_place() -> None:
    for other in ("resid_post:2", " resid_post:2 ", "resid_pre:3", "model.layers.2.output", "blocks.3.hook_resid_pre"):
        assert same_place("resid_post:2", other) and same_place(other, "resid_pre:3")
    for other in ("resid_post:3", "resid_pre:2", "mlp_out:2", "model.layers.2.mlp.output", "resid_pre:0"):
        assert not same_place("resid_post:2", other)


def test_our_own_format_is_read_as_it_is_stored(tmp_path: Path) -> None:
    draw = f.draws()
    sae = SAE(draw(f.D, f.S), draw(f.S), draw(f.S, f.D), draw(f.D), activation="topk", k=3).to(dtype=torch.bfloat16)
    save_sae(sae, tmp_path, metadata={"source": {"site": "resid_post:1", "model": "toy"}, "config": {"seed": 1}})
    loaded = load_any_sae(tmp_path)
    assert loaded.sae.fingerprint() == sae.fingerprint()
    assert (loaded.family, loaded.site, loaded.model, loaded.l0) == ("darkmatter", "resid_post:1", "toy", 3)
    assert loaded.training is not None and loaded.training["config"] == {"seed": 1}
    assert load_any_sae(tmp_path / "sae.safetensors", dtype="float32").sae.dtype == torch.float32
    assert json.loads(json.dumps(loaded.describe(), allow_nan=False))["stored_dtype"] == "bfloat16"


@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu", "gated"])
@pytest.mark.parametrize("norm", [None, "layer_norm", "constant_norm"])
def test_our_exports_read_back_as_the_same_function(activation: Any, norm: Any, tmp_path: Path) -> None:
    draw = f.draws(7)
    fields: dict[str, Any] = {"W_enc": draw(f.D, f.S, scale=0.25), "b_enc": draw(f.S, scale=0.3)}
    fields |= {"W_dec": draw(f.S, f.D, scale=0.25), "b_dec": draw(f.D), "b_pre": draw(f.D)}
    fields |= {"k": 5} if activation == "topk" else {}
    fields |= {"threshold": draw(f.S).abs()} if activation == "jumprelu" else {}
    fields |= {name: draw(f.S, scale=0.3) for name in ("b_gate", "b_mag", "r_mag")} if activation == "gated" else {}
    sae = SAE(**fields, activation=activation, input_norm=norm)
    x = f.tokens()
    export_saelens(sae, tmp_path / "saelens", metadata={"hook_name": "blocks.2.hook_resid_post"})
    loaded = load_any_sae(tmp_path / "saelens")
    assert float((loaded(x) - sae(x)).abs().max()) <= TOLERANCE
    assert loaded.site == "resid_post:2"
    if activation != "topk" and norm is None:
        export_gemmascope(sae, tmp_path / "params.npz")
        assert float((load_any_sae(tmp_path / "params.npz")(x) - sae(x)).abs().max()) <= TOLERANCE


def test_configurations_of_saelens_before_6(tmp_path: Path) -> None:
    new = f.saelens(tmp_path, "topk", True)
    cfg = {
        "d_in": f.D,
        "d_sae": f.S,
        "hook_point": "blocks.3.hook_resid_post",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": f.K},
        "normalize_activations": False,
        "model_name": "gpt2-small",
    }
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    weights = load_file(tmp_path / "sae_weights.safetensors")
    save_file({**weights, "scaling_factor": torch.ones(f.S)}, tmp_path / "sae_weights.safetensors")
    loaded = load_any_sae(tmp_path, dtype="float64")
    assert difference(loaded, new) < 1e-12
    assert (loaded.site, loaded.model) == ("resid_post:3", "gpt2-small")
    save_file({**weights, "scaling_factor": torch.full((f.S,), 1.1)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(FileFormatError, match="finetuned scaling_factor"):
        load_any_sae(tmp_path)


# traps


def refused(path: Path | str, words: str, **options: Any) -> None:
    with pytest.raises((FileFormatError, InputError), match=words) as caught:
        load_any_sae(path, **options)
    assert "\n" not in str(caught.value)


def test_an_input_scale_that_is_not_folded_in(tmp_path: Path) -> None:
    forward = f.saelens(tmp_path, "jumprelu", "expected_average_only_in")
    (tmp_path / "activation_scaler.json").unlink()
    refused(tmp_path, "rescaled activations and does not say the factor.*input_scale")
    loaded = load_any_sae(tmp_path, dtype="float64", input_scale=0.4)
    assert difference(loaded, forward) < 1e-12
    assert loaded.normalisation == "It was trained on 0.4 · x; the factor was folded into the weights."
    refused(tmp_path, "input_scale is 0.0, expected a positive", input_scale=0.0)
    f.saelens(tmp_path, "jumprelu")
    refused(tmp_path, "holds weights for x as it is: leave input_scale out", input_scale=0.4)


def test_sparsify_is_not_read_as_saelens(tmp_path: Path) -> None:
    f.sparsify(tmp_path)
    refused(tmp_path, "no SAE of the family saelens", family="saelens")
    (tmp_path / "sae.safetensors").rename(tmp_path / "sae_weights.safetensors")
    refused(tmp_path, "holds the tensors of sparsify, not of saelens", family="saelens")


def test_backups_of_dictionary_learning(tmp_path: Path) -> None:
    f.dictionary_learning(tmp_path)
    state = f.learner_weights("AutoEncoder")
    torch.save({"step": 10, "ae": state, "optimizer": {"state": {}}}, tmp_path / "ae.pt")
    refused(tmp_path, r"mid-training backup \(it holds ae, optimizer, step\), whose biases are not rescaled")
    torch.save({**state, "optimizer": {}}, tmp_path / "ae.pt")
    refused(tmp_path, "mid-training backup")


def test_checkpoints_of_dictionary_learning_use_the_runs_configuration(tmp_path: Path) -> None:
    forward = f.dictionary_learning(tmp_path, "BatchTopKSAE")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "ae.pt").rename(tmp_path / "checkpoints" / "ae_100.pt")
    assert difference(load_any_sae(tmp_path / "checkpoints" / "ae_100.pt", dtype="float64"), forward) < 1e-12


@pytest.mark.parametrize("kind", f.LEARNERS)
def test_dictionary_learning_without_its_configuration(kind: str, tmp_path: Path) -> None:
    forward = f.dictionary_learning(tmp_path, kind, config=False)
    if kind in {"AutoEncoderTopK", "BatchTopKSAE"}:  # the same entries, another function
        refused(tmp_path, "fits AutoEncoderTopK and BatchTopKSAE, which select differently")
    else:
        assert difference(load_any_sae(tmp_path, dtype="float64"), forward) < 1e-12


def test_a_threshold_that_was_never_set_is_said(tmp_path: Path) -> None:
    f.dictionary_learning(tmp_path, "BatchTopKSAE")
    torch.save({**f.learner_weights("BatchTopKSAE"), "threshold": torch.tensor(-1.0)}, tmp_path / "ae.pt")
    loaded = load_any_sae(tmp_path)
    assert any("never set" in note for note in loaded.notes)
    pre = (f.tokens() - loaded.sae.b_dec) @ loaded.sae.W_enc + loaded.sae.b_enc
    assert loaded.sae.encode(f.tokens()).l0 == pytest.approx(float((pre > 0).double().sum(dim=1).mean()))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: f.sparsify(p, transcode=True), "is a transcoder or has a skip connection"),
        (lambda p: f.sparsify(p, skip_connection=True), "is a transcoder or has a skip connection"),
        (lambda p: f.sparsify(p, signed=True), "a signed selection, expected topk or groupmax"),
        (lambda p: f.sparsify(p, activation="topk", d_in=f.D + 1), r"configuration says \(17, 51\)"),
        (lambda p: f.sparsify(p, activation="groupmax", k=7), "expected a divisor of d_sae"),
        (lambda p: f.sparsify(p, k="five"), "has k 'five', expected an integer"),
        (lambda p: f.gemmascope(p, two=True, type="transcoder"), "is a transcoder or crosscoder"),
        (lambda p: f.gemmascope(p, two=True, hf_hook_point_out="model.layers.8.output"), "is a transcoder"),
        (lambda p: f.gemmascope(p, two=True, architecture="relu"), "has architecture 'relu', expected 'jump_relu'"),
        (lambda p: f.gemmascope(p / "gemma-scope-2b-pt-transcoders" / "layer_0"), "is a transcoder"),
        (lambda p: f.gemmascope(p / "embedding" / "width_4k" / "average_l0_6"), "reads the embedding"),
        (lambda p: f.gemmascope(p / "transcoder_all" / "x", two=True, type=None), "is a transcoder"),
        (lambda p: f.saelens(p, "gated", architecture="temporal"), "has architecture 'temporal', expected one of"),
        (lambda p: f.saelens(p, architecture="batchtopk"), "save it with save_inference_model"),
        (lambda p: f.saelens(p, activation_fn="tanh-relu"), "has activation_fn 'tanh-relu'"),
        (lambda p: f.saelens(p, "standard", "covariance_whitening"), "normalize_activations 'covariance_whitening'"),
        (lambda p: f.saelens(p, d_in=f.D + 1), r"shape \(16, 48\), its configuration says \(17, 48\)"),
        (lambda p: f.saelens(p, architecture="jumprelu"), r"lacks \['threshold'\]"),
        (lambda p: f.saelens(p, "jumprelu", architecture="standard"), r"unknown entries \['threshold'\]"),
        (lambda p: f.saelens(p, "topk", k=0), "does not hold a valid SAE: k is 0"),
        (lambda p: f.openai(p, postact="Identity"), "has 'Identity' after TopK, expected ReLU"),
        (lambda p: f.openai(p, "Identity"), "has activation 'Identity', expected ReLU or TopK"),
    ],
)
def test_what_has_no_place_in_the_record(write: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    write(tmp_path)
    (file,) = (p for p in tmp_path.rglob("*") if p.suffix in {".npz", ".safetensors", ".pt"})
    refused(file.parent, words)


def test_other_contents_are_refused(tmp_path: Path) -> None:
    f.dictionary_learning(tmp_path, "AutoEncoder")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "CrossCoder"}}))
    refused(tmp_path, "has dict_class 'CrossCoder', expected one of AutoEncoder")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "GatedAutoEncoder"}}))
    refused(tmp_path, "lacks .*'decoder_bias'")
    (tmp_path / "config.json").unlink()
    torch.save({"weights": torch.zeros(3)}, tmp_path / "ae.pt")
    refused(tmp_path, "expected the state dict of one of AutoEncoder")
    torch.save({**f.learner_weights("AutoEncoder"), "bias": "none"}, tmp_path / "ae.pt")
    refused(tmp_path, r"has \['bias'\] that are no tensors")
    torch.save({**f.learner_weights("AutoEncoder"), "encoder.weight": torch.zeros(3)}, tmp_path / "ae.pt")
    refused(tmp_path, r"has encoder.weight of shape \(3,\), expected a matrix")
