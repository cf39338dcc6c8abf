"""SAELens: `cfg.json` and `sae_weights.safetensors`, versions before and after 6.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from darkmatter.adapters.saes.hooks import site_of_hook
from darkmatter.adapters.saes.loaded import Parts, SaeFiles
from darkmatter.adapters.saes.openai import LAYER_NORM
from darkmatter.adapters.saes.pieces import check_keys, check_sizes, integer, matrix, text
from darkmatter.errors import FileFormatError
from darkmatter.files import read_json

_ARCHITECTURES = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
_EXTRA = {"standard": ("b_enc",), "topk": ("b_enc",), "jumprelu": ("b_enc", "threshold")}
_GATE = ("b_gate", "b_mag", "r_mag")
_CONSTANT_NORM = (
    "Each x is rescaled to norm √d_model before encoding and the reconstruction scaled back: the token's own norm "
    "passes outside the latents."
)


def read_saelens(weights: Mapping[str, Any], config: Mapping[str, Any], files: SaeFiles) -> Parts:
    """Read the tensors of an SAELens folder as `cfg.json` says.

    Args:
        weights: Its tensors.
        config: `cfg.json`.
        files: Where they are.

    Returns:
        The parts.

    Raises:
        FileFormatError: Another architecture, activation or normalisation, or missing or unknown tensors.
    """
    architecture = _architecture(config, files)
    _check_factor(weights, files)
    extra = _GATE if architecture == "gated" else _EXTRA[architecture]
    check_keys(weights, files, required=("W_enc", "W_dec", "b_dec", *extra), optional=("scaling_factor",))
    W_enc, W_dec = matrix(weights, "W_enc", files), matrix(weights, "W_dec", files)
    d_model, d_sae = (integer(config.get(name), name, files) for name in ("d_in", "d_sae"))
    check_sizes(files, d_model=d_model, d_sae=d_sae, W_enc=W_enc)
    fields: dict[str, Any] = {name: weights[name] for name in extra}
    fields.setdefault("b_enc", torch.zeros(d_sae, dtype=W_enc.dtype))
    fields |= {"W_enc": W_enc, "W_dec": W_dec, "b_dec": weights["b_dec"], "activation": _ARCHITECTURES[architecture]}
    notes = []
    if config.get("apply_b_dec_to_input", True):
        fields["b_pre"] = weights["b_dec"]
        notes.append("b_dec is subtracted from x before encoding.")
    if architecture == "topk":
        fields["k"] = integer(_option(config, "k"), "k", files)
        if config.get("rescale_acts_by_decoder_norm", False) and W_dec.shape == (d_sae, d_model):
            fields |= _by_decoder_norm(fields)
            notes.append("Latents compete by code times decoder norm: the norms were folded into the encoder.")
    metadata = config.get("metadata")
    said: Mapping[str, Any] = metadata if isinstance(metadata, Mapping) else config
    hook = text(said.get("hook_name")) or text(said.get("hook_point"))
    if config.get("reshape_activations", "none") == "hook_z":
        notes.append("Heads are concatenated: x is (n, heads · d_head).")
    return Parts(
        fields=fields,
        hook=hook,
        site=site_of_hook(hook),
        l0=float(fields["k"]) if "k" in fields else None,
        model=text(said.get("model_name")),
        notes=tuple(notes),
        **_normalisation(config, files, fields),
    )


def _architecture(config: Mapping[str, Any], files: SaeFiles) -> str:
    architecture = str(config.get("architecture", "standard"))
    function = str(config.get("activation_fn", config.get("activation_fn_str", "relu")))
    if function == "topk" and architecture == "standard":  # how versions before 6.0 said it
        architecture, function = "topk", "relu"
    if architecture not in _ARCHITECTURES:
        remedy = (
            "save it with save_inference_model, which makes it a jumprelu SAE"
            if "batchtopk" in architecture
            else "wrap its own code in a function x -> reconstruction"
        )
        raise FileFormatError(
            f"{files.folder} has architecture {architecture!r}, expected one of {', '.join(_ARCHITECTURES)}: {remedy}",
            files.weights,
        )
    if function not in {"relu", "topk"}:
        raise FileFormatError(f"{files.folder} has activation_fn {function!r}, expected relu or topk", files.weights)
    return architecture


def _option(config: Mapping[str, Any], name: str) -> Any:
    old = config.get("activation_fn_kwargs")
    return config[name] if name in config else old.get(name) if isinstance(old, Mapping) else None


def _check_factor(weights: Mapping[str, Any], files: SaeFiles) -> None:
    factor = weights.get("scaling_factor")
    if factor is not None and not torch.equal(factor, torch.ones_like(factor)):
        raise FileFormatError(
            f"{files.weights} has a finetuned scaling_factor, which SAELens no longer applies: fold it into W_dec",
            files.weights,
        )


def _by_decoder_norm(fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    norm = torch.linalg.vector_norm(fields["W_dec"], dim=1)
    unit = fields["W_dec"] / norm.clamp(min=torch.finfo(norm.dtype).tiny)[:, None]  # a zero row stays zero
    return {"W_enc": fields["W_enc"] * norm, "b_enc": fields["b_enc"] * norm, "W_dec": unit}


def _normalisation(config: Mapping[str, Any], files: SaeFiles, fields: dict[str, Any]) -> dict[str, Any]:
    kind = config.get("normalize_activations", "none")
    if kind in (None, False, "none"):
        return {}
    if kind == "layer_norm":
        fields["input_norm"] = "layer_norm"
        return {"normalisation": LAYER_NORM}
    if kind == "constant_norm_rescale":
        fields["input_norm"] = "constant_norm"
        return {"normalisation": _CONSTANT_NORM}
    if kind in (True, "expected_average_only_in"):
        scaler = files.folder / "activation_scaler.json"
        factor = read_json(scaler, "a scaling factor").get("scaling_factor") if scaler.is_file() else None
        return {"scaled": True, "input_scale": factor if type(factor) in {int, float} else None}
    raise FileFormatError(
        f"{files.folder} has normalize_activations {kind!r}, expected none, layer_norm, constant_norm_rescale or "
        "expected_average_only_in: fold it into the weights with SAELens and save again",
        files.weights,
    )
