"""dictionary_learning: `ae.pt`, a state dict, and `config.json`, which names its class.

Biases and thresholds are stored for x as it is: training on normalised activations is undone when it saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from darkmatter.adapters.saes.hooks import site_of_hook
from darkmatter.adapters.saes.loaded import Parts, SaeFiles
from darkmatter.adapters.saes.pieces import check_keys, integer, matrix, text
from darkmatter.errors import FileFormatError

_LINEAR = frozenset({"encoder.weight", "encoder.bias", "decoder.weight"})
_PLAIN = frozenset({"W_enc", "b_enc", "W_dec", "b_dec"})
_BY_TOKEN = _LINEAR | {"b_dec", "k"}
KEYS: dict[str, tuple[frozenset[str], ...]] = {
    "AutoEncoder": (_LINEAR | {"bias"},),
    "AutoEncoderNew": (_LINEAR | {"decoder.bias"},),
    "GatedAutoEncoder": (
        frozenset({"encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"}),
    ),
    "JumpReluAutoEncoder": (_PLAIN | {"threshold"},),
    "AutoEncoderTopK": (_BY_TOKEN | {"threshold"}, _BY_TOKEN),
    "BatchTopKSAE": (_BY_TOKEN | {"threshold"},),
    "MatryoshkaBatchTopKSAE": (_PLAIN | {"k", "threshold", "group_sizes"},),
}
"""Entries of each class's state dict."""

_BACKUP = {"optimizer", "optimizer_state_dict", "ae", "step"}


def read_dictionary_learning(weights: Mapping[str, Any], config: Mapping[str, Any], files: SaeFiles) -> Parts:
    """Read a state dict by the class that wrote it.

    Args:
        weights: The state dict.
        config: `config.json`, empty where there is none.
        files: Where they are.

    Returns:
        The parts.

    Raises:
        FileFormatError: A mid-training backup, an unknown class, one that is ambiguous without its configuration, or
            entries that do not fit.
    """
    if _BACKUP & set(weights):
        raise FileFormatError(
            f"{files.weights} is a mid-training backup (it holds {', '.join(sorted(_BACKUP & set(weights)))}), whose "
            "biases are not rescaled to x: use the ae.pt of the finished run, or a file of its checkpoints folder",
            files.weights,
        )
    trainer = config.get("trainer")
    said: Mapping[str, Any] = trainer if isinstance(trainer, Mapping) else {}
    name = _class(weights, text(said.get("dict_class")), files)
    odd = [key for key, value in weights.items() if key != "k" and not isinstance(value, Tensor)]
    if odd:
        raise FileFormatError(f"{files.weights} has {odd} that are no tensors, expected a state dict", files.weights)
    fields, notes = _fields(name, weights, files)
    hook, layer = text(said.get("submodule_name")), said.get("layer")
    norm = said.get("norm_factor")
    if type(norm) in {int, float}:
        notes.append(f"Its trainer divided x by {norm:.6g} and folded that into the biases it stored.")
    return Parts(
        fields=fields,
        hook=hook or (f"layer {layer}" if type(layer) is int else None),
        site=site_of_hook(hook),
        l0=float(integer(weights["k"], "k", files)) if "k" in weights else None,
        model=text(said.get("lm_name")),
        notes=tuple(notes),
    )


def _class(weights: Mapping[str, Any], named: str | None, files: SaeFiles) -> str:
    fitting = [name for name, sets in KEYS.items() if any(set(weights) == keys for keys in sets)]
    if named is None and len(fitting) == 1:
        return fitting[0]
    if named is None and fitting:
        raise FileFormatError(
            f"{files.weights} fits {' and '.join(fitting)}, which select differently, expected a config.json with "
            "trainer.dict_class beside it: copy it there from where you got the weights",
            files.weights,
        )
    if named is None:
        raise FileFormatError(
            f"{files.weights} holds {sorted(weights)[:8]}, expected the state dict of one of {', '.join(KEYS)}",
            files.weights,
        )
    if named not in KEYS:
        raise FileFormatError(
            f"{files.folder} has dict_class {named!r}, expected one of {', '.join(KEYS)}: wrap its own code in a "
            "function x -> reconstruction",
            files.weights,
        )
    if named not in fitting:
        check_keys(weights, files, required=KEYS[named][0])
    return named


def _fields(name: str, weights: Mapping[str, Any], files: SaeFiles) -> tuple[dict[str, Any], list[str]]:
    """Arguments of `SAE`, and notes."""
    if "W_enc" in weights:
        fields = {key: weights[key] for key in _PLAIN}
        matrix(weights, "W_enc", files)
    else:
        W_enc = matrix(weights, "encoder.weight", files).T
        fields = {"W_enc": W_enc, "W_dec": matrix(weights, "decoder.weight", files).T.contiguous()}
        fields["b_enc"] = weights.get("encoder.bias", torch.zeros(W_enc.shape[1], dtype=W_enc.dtype))
        bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
        fields["b_dec"] = weights[bias.get(name, "b_dec")]
    if name in {"AutoEncoderNew", "JumpReluAutoEncoder"}:
        notes = ["Nothing is subtracted from x before encoding."]
    else:
        fields["b_pre"] = fields["b_dec"]
        notes = ["The decoder's bias is subtracted from x before encoding."]
    if name == "AutoEncoderTopK":
        return {**fields, "activation": "topk", "k": integer(weights["k"], "k", files)}, notes
    if name == "GatedAutoEncoder":
        gate = {"b_gate": weights["gate_bias"], "b_mag": weights["mag_bias"], "r_mag": weights["r_mag"]}
        return {**fields, **gate, "activation": "gated"}, notes
    if "threshold" not in weights:
        return {**fields, "activation": "relu"}, notes
    threshold: Tensor = weights["threshold"]
    if name != "JumpReluAutoEncoder":
        notes.append("The average top-k of training is one threshold at inference.")
        if bool((threshold < 0).any()):
            notes.append("The threshold was never set (−1), so that every positive latent is active.")
    return {**fields, "activation": "jumprelu", "threshold": threshold}, notes
