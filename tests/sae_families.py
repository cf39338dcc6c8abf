"""Tiny random SAEs in the layout of every family, each with its forward pass transcribed in numpy from the format."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

Doubles = npt.NDArray[np.float64]
Forward = Callable[[Doubles], Doubles]
D, S, K = 16, 48, 5


@dataclass(frozen=True)
class Draw:
    """Random float32 tensors from one seed."""

    generator: torch.Generator

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * scale


def draws(seed: int = 0) -> Draw:
    return Draw(torch.Generator().manual_seed(seed))


def doubles(value: Tensor) -> Doubles:
    return np.asarray(value.double().numpy())


def relu(pre: Doubles) -> Doubles:
    return np.maximum(pre, 0)


def largest(pre: Doubles, k: int) -> Doubles:
    rank = np.argsort(np.argsort(-pre, axis=1), axis=1)
    return np.where(rank < k, pre, 0)


def gemmascope(folder: Path, *, lower: bool = False, two: bool = False, **config: Any) -> Forward:
    """Gemma Scope, or with `two` Gemma Scope 2."""
    draw = draws()
    w = {
        "W_enc": draw(D, S, scale=D**-0.5),
        "W_dec": draw(S, D, scale=D**-0.5),
        "b_enc": draw(S, scale=0.3),
        "b_dec": draw(D),
        "threshold": draw(S, scale=0.5),  # some below zero: still nothing negative may come out
    }
    folder.mkdir(parents=True, exist_ok=True)
    named = {name.replace("W_", "w_") if lower or two else name: value for name, value in w.items()}
    if two:
        save_file(named, folder / "params.safetensors")
        hook = {"hf_hook_point_in": "model.layers.7.output", "l0": 60, "model_name": "google/gemma-3-1b-pt"}
        header = {"architecture": "jump_relu", "type": "sae", "width": S, **hook, **config}
        (folder / "config.json").write_text(json.dumps(header))
    else:
        np.savez(folder / "params.npz", **{name: value.numpy() for name, value in named.items()})  # type: ignore[arg-type]
    W_enc, W_dec, b_enc, b_dec, threshold = (doubles(value) for value in w.values())

    def forward(x: Doubles) -> Doubles:
        pre = x @ W_enc + b_enc
        result: Doubles = relu(pre) * (pre > threshold) @ W_dec + b_dec
        return result

    return forward


SAELENS_NORMS = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in")
SAELENS_ARCHITECTURES = ("standard", "topk", "jumprelu", "gated")


def saelens(folder: Path, kind: str = "standard", norm: Any = "none", **config: Any) -> Forward:
    """SAELens 6, without knowing of training; `config` overrides its cfg.json."""
    draw = draws(1)
    w = {"W_enc": draw(D, S, scale=D**-0.5), "W_dec": draw(S, D, scale=D**-0.5), "b_dec": draw(D, scale=0.5)}
    if kind == "gated":
        w |= {name: draw(S, scale=0.3) for name in ("b_gate", "b_mag", "r_mag")}
    else:
        w["b_enc"] = draw(S, scale=0.3)
    if kind == "jumprelu":
        w["threshold"] = draw(S, scale=0.5).abs()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(w, folder / "sae_weights.safetensors")
    cfg: dict[str, Any] = {
        "architecture": kind,
        "d_in": D,
        "d_sae": S,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": norm,
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.0", "hook_name": "blocks.3.hook_resid_pre", "model_name": "toy"},
    }
    if kind == "topk":
        cfg |= {"k": K, "rescale_acts_by_decoder_norm": False}
    cfg |= config
    (folder / "cfg.json").write_text(json.dumps(cfg))
    factor = 0.4
    if norm == "expected_average_only_in":
        (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": factor}))
    v = {name: doubles(value) for name, value in w.items()}

    def codes(x: Doubles) -> Doubles:
        if kind == "gated":
            return (x @ v["W_enc"] + v["b_gate"] > 0) * relu(x @ (v["W_enc"] * np.exp(v["r_mag"])) + v["b_mag"])
        pre = x @ v["W_enc"] + v["b_enc"]
        if kind == "jumprelu":
            return relu(pre) * (pre > v["threshold"])
        if kind == "topk":
            length = np.linalg.norm(v["W_dec"], axis=1) if cfg["rescale_acts_by_decoder_norm"] else np.ones(S)
            return relu(largest(pre * length, K)) / length
        return relu(pre)

    def forward(x: Doubles) -> Doubles:
        scale: Any = 1.0
        shift: Any = 0.0
        if norm == "layer_norm":
            shift = x.mean(axis=1, keepdims=True)
            scale = x.std(axis=1, ddof=1, keepdims=True)
            x = (x - shift) / (scale + 1e-5)
        elif norm == "constant_norm_rescale":
            scale = np.linalg.norm(x, axis=1, keepdims=True) / D**0.5
            x = x / scale
        elif norm == "expected_average_only_in":
            scale = 1 / factor
            x = x * factor
        inside = x - v["b_dec"] if cfg["apply_b_dec_to_input"] else x
        result: Doubles = (codes(inside) @ v["W_dec"] + v["b_dec"]) * scale + shift
        return result

    return forward


def sparsify(folder: Path, activation: str = "topk", dtype: torch.dtype = torch.float32, **config: Any) -> Forward:
    """A sparse coder of sparsify."""
    draw = draws(2)
    groups = 6 if activation == "groupmax" else K
    w = {
        "encoder.weight": draw(S, D, scale=D**-0.5).to(dtype),
        "encoder.bias": draw(S, scale=0.3).to(dtype),
        "W_dec": draw(S, D, scale=D**-0.5).to(dtype),
        "b_dec": draw(D).to(dtype),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(w, folder / "sae.safetensors")
    cfg = {"activation": activation, "expansion_factor": S // D, "num_latents": 0, "k": groups, "d_in": D}
    flags = {"normalize_decoder": True, "multi_topk": False, "skip_connection": False, "transcode": False}
    (folder / "cfg.json").write_text(json.dumps({**cfg, **flags, **config}))
    weight, bias, W_dec, b_dec = (doubles(value) for value in w.values())

    def forward(x: Doubles) -> Doubles:
        active = relu((x - b_dec) @ weight.T + bias)
        if activation == "topk":
            codes = largest(active, groups)
        else:
            runs = active.reshape(len(x), groups, -1)
            codes = np.where(runs == runs.max(axis=2, keepdims=True), runs, 0).reshape(len(x), S)
        result: Doubles = codes @ W_dec + b_dec
        return result

    return forward


LEARNERS = (
    "AutoEncoder",
    "AutoEncoderNew",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
)


def learner_weights(kind: str) -> dict[str, Tensor]:
    """A random state dict of one of dictionary_learning's classes."""
    draw = draws(3)
    linear = {"encoder.weight": draw(S, D, scale=D**-0.5), "decoder.weight": draw(D, S, scale=D**-0.5)}
    plain = {"W_enc": draw(D, S, scale=D**-0.5), "W_dec": draw(S, D, scale=D**-0.5)}
    biases = {"b_enc": draw(S, scale=0.3), "b_dec": draw(D)}
    encoder = {"encoder.bias": biases["b_enc"]}
    by_k = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.6)}
    gate = {name: draw(S, scale=0.3) for name in ("r_mag", "gate_bias", "mag_bias")}
    return {
        "AutoEncoder": {**linear, **encoder, "bias": biases["b_dec"]},
        "AutoEncoderNew": {**linear, **encoder, "decoder.bias": biases["b_dec"]},
        "GatedAutoEncoder": {**linear, **gate, "decoder_bias": biases["b_dec"]},
        "JumpReluAutoEncoder": {**plain, **biases, "threshold": draw(S, scale=0.5)},
        "AutoEncoderTopK": {**linear, **encoder, "b_dec": biases["b_dec"], **by_k},
        "BatchTopKSAE": {**linear, **encoder, "b_dec": biases["b_dec"], **by_k},
        "MatryoshkaBatchTopKSAE": {**plain, **biases, **by_k, "group_sizes": torch.tensor([S // 4, S - S // 4])},
    }[kind]


def dictionary_learning(folder: Path, kind: str = "AutoEncoder", *, config: bool = True) -> Forward:
    """A finished run of dictionary_learning."""
    w = learner_weights(kind)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(w, folder / "ae.pt")
    if config:
        said = {"dict_class": kind, "layer": 8, "lm_name": "toy/model", "submodule_name": "resid_post_layer_8"}
        (folder / "config.json").write_text(json.dumps({"trainer": {**said, "norm_factor": 2.5}, "buffer": {}}))
    v = {name: doubles(value) for name, value in w.items()}
    W_enc = v["W_enc"] if "W_enc" in v else v["encoder.weight"].T
    W_dec = v["W_dec"] if "W_dec" in v else v["decoder.weight"].T
    b_dec = next(v[name] for name in ("b_dec", "bias", "decoder.bias", "decoder_bias") if name in v)

    def forward(x: Doubles) -> Doubles:
        pre = (x if kind in {"AutoEncoderNew", "JumpReluAutoEncoder"} else x - b_dec) @ W_enc
        if kind == "GatedAutoEncoder":
            codes = (pre + v["gate_bias"] > 0) * relu(np.exp(v["r_mag"]) * pre + v["mag_bias"])
            result: Doubles = codes @ W_dec + b_dec
            return result
        pre = pre + (v["b_enc"] if "b_enc" in v else v["encoder.bias"])
        if kind == "AutoEncoderTopK":
            codes = largest(relu(pre), K)
        elif "threshold" in v:
            codes = relu(pre * (pre > v["threshold"]))
        else:
            codes = relu(pre)
        result = codes @ W_dec + b_dec
        return result

    return forward


def openai(folder: Path, activation: str = "TopK", *, tied: bool = False, postact: str = "ReLU") -> Forward:
    """One of OpenAI's files."""
    draw = draws(4)
    w: dict[str, Any] = {
        "pre_bias": draw(D),
        "encoder.weight": draw(S, D, scale=D**-0.5),
        "latent_bias": draw(S, scale=0.3),
        "decoder.linear.weight" if tied else "decoder.weight": draw(D, S, scale=D**-0.5),
        "stats_last_nonzero": torch.zeros(S, dtype=torch.long),
        "activation": activation,
        "activation_state_dict": {"k": K, "postact_fn": postact} if activation == "TopK" else {},
    }
    if activation == "TopK":  # as its own code saves it
        w |= {"activation.k": K, "activation.postact_fn": postact}
    if tied:
        w["decoder.linear.weight"] = w["encoder.weight"]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(w, folder / "8.pt")
    bias, weight, latent = (doubles(w[name]) for name in ("pre_bias", "encoder.weight", "latent_bias"))
    decoder = weight if tied else doubles(w["decoder.weight"]).T

    def forward(x: Doubles) -> Doubles:
        top = activation == "TopK"
        mean, spread = x.mean(axis=1, keepdims=True), x.std(axis=1, ddof=1, keepdims=True)
        inside = (x - mean) / (spread + 1e-5) if top else x
        pre = (inside - bias) @ weight.T + latent
        codes = relu(largest(pre, K)) if top else relu(pre)
        recon: Doubles = codes @ decoder + bias
        return recon * spread + mean if top else recon

    return forward


def tokens(n: int = 300) -> Tensor:
    """Activations whose mean and scale are far from 0 and 1, and differ from token to token."""
    g = torch.Generator().manual_seed(9)
    return (torch.randn(n, D, generator=g) + 0.5) * torch.rand(n, 1, generator=g).add(0.5)
