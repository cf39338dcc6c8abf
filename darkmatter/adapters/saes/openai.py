"""OpenAI's sparse autoencoders: one `.pt` file with a state dict that names its activation (Gao et al., 2024).

codes = activation((x' − pre_bias) @ encoder.weightᵀ + latent_bias) and recon = codes @ decoder.weightᵀ + pre_bias. Here
x' is x, or with TopK the layer norm of x, undone at the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from darkmatter.adapters.saes.loaded import Parts, SaeFiles
from darkmatter.adapters.saes.pieces import check_keys, integer, matrix
from darkmatter.errors import FileFormatError

_KEYS = ("pre_bias", "encoder.weight", "latent_bias")
_OPTIONAL = (
    "decoder.weight",
    "decoder.linear.weight",  # tied: the encoder under a second name
    "activation",
    "activation_state_dict",
    "activation.k",  # the same once more, when TopK is a module of its own
    "activation.postact_fn",
    "stats_last_nonzero",
    "latents_activation_frequency",
    "latents_mean_square",
)
LAYER_NORM = (
    "Each x is layer-normalised before encoding and the reconstruction scaled back: the token's own mean and standard "
    "deviation pass outside the latents."
)


def read_openai(weights: Mapping[str, Any], config: Mapping[str, Any], files: SaeFiles) -> Parts:
    """Read a state dict; layer norm belongs to TopK and to nothing else in this family.

    Args:
        weights: The state dict.
        config: Unused: this family has none.
        files: Where it is.

    Returns:
        The parts.

    Raises:
        FileFormatError: Another activation, or missing or unknown entries.
    """
    del config
    check_keys(weights, files, required=_KEYS, optional=_OPTIONAL)
    W_enc = matrix(weights, "encoder.weight", files).T
    tied = "decoder.weight" not in weights
    if tied and "decoder.linear.weight" not in weights:
        check_keys(weights, files, required=(*_KEYS, "decoder.weight"), optional=_OPTIONAL)
    W_dec = W_enc.T if tied else matrix(weights, "decoder.weight", files).T
    activation = str(weights.get("activation", "ReLU"))
    state = weights.get("activation_state_dict") or {}
    if activation not in {"ReLU", "TopK"} or not isinstance(state, Mapping):
        raise FileFormatError(f"{files.weights} has activation {activation!r}, expected ReLU or TopK", files.weights)
    top = activation == "TopK"
    if top and state.get("postact_fn") != "ReLU":
        raise FileFormatError(
            f"{files.weights} has {state.get('postact_fn')!r} after TopK, expected ReLU: negative codes have no place "
            "in the record",
            files.weights,
        )
    k = integer(state.get("k"), "k", files) if top else None
    layer = re.search(r"(?:^|/)resid_post_mlp[^/]*/autoencoders/(\d{1,4})\.pt$", files.path)
    return Parts(
        fields={
            "W_enc": W_enc,
            "b_enc": weights["latent_bias"],
            "W_dec": W_dec.contiguous(),
            "b_dec": weights["pre_bias"],
            "b_pre": weights["pre_bias"],
            "activation": "topk" if top else "relu",
            "k": k,
            "input_norm": "layer_norm" if top else None,
        },
        site=None if layer is None else f"resid_post:{int(layer[1])}",
        l0=None if k is None else float(k),
        normalisation=LAYER_NORM if top else None,
        notes=("pre_bias is subtracted before encoding and added to the reconstruction.",),
    )
