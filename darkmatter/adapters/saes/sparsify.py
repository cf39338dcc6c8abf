"""sparsify (EleutherAI): `cfg.json` and `sae.safetensors`, one folder per hookpoint.

codes = the k largest of relu((x − b_dec) @ encoder.weightᵀ + encoder.bias), recon = codes @ W_dec + b_dec.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from darkmatter.adapters.saes.hooks import site_of_hook
from darkmatter.adapters.saes.loaded import Parts, SaeFiles
from darkmatter.adapters.saes.pieces import check_keys, check_sizes, integer, matrix
from darkmatter.errors import FileFormatError

_KEYS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


def read_sparsify(weights: Mapping[str, Any], config: Mapping[str, Any], files: SaeFiles) -> Parts:
    """Read the tensors of a sparse coder; the folder's name is its hookpoint.

    Args:
        weights: Its tensors.
        config: `cfg.json`.
        files: Where they are.

    Returns:
        The parts.

    Raises:
        FileFormatError: A transcoder, a skip connection, a signed selection, another activation, or missing or unknown
            tensors.
    """
    if config.get("transcode") or config.get("skip_connection") or "W_skip" in weights:
        raise FileFormatError(
            f"{files.folder} is a transcoder or has a skip connection, so that its output is not made of latents "
            "alone: choose a sparse coder without `transcode` and `skip_connection`",
            files.weights,
        )
    activation = str(config.get("activation", "topk"))
    if activation not in {"topk", "groupmax"} or config.get("signed"):
        got = "a signed selection" if config.get("signed") else f"activation {activation!r}"
        raise FileFormatError(f"{files.folder} has {got}, expected topk or groupmax of positive parts", files.weights)
    check_keys(weights, files, required=_KEYS)
    W_enc = matrix(weights, "encoder.weight", files).T
    d_model = integer(config.get("d_in"), "d_in", files)
    latents = config.get("num_latents") or d_model * integer(config.get("expansion_factor"), "expansion_factor", files)
    check_sizes(files, d_model=d_model, d_sae=integer(latents, "num_latents", files), W_enc=W_enc)
    k = integer(config.get("k"), "k", files)
    hookpoint = re.search(r"(?:^|/)((?:\w+\.)*(?:layers|h)[._]\d+[^/]*|embed_tokens)/[^/]+$", files.path)
    hook = None if hookpoint is None else hookpoint[1]
    return Parts(
        fields={
            "W_enc": W_enc,
            "b_enc": weights["encoder.bias"],
            "W_dec": weights["W_dec"],
            "b_dec": weights["b_dec"],
            "b_pre": weights["b_dec"],
            "activation": activation,
            "k": k,
        },
        hook=hook,
        site=site_of_hook(hook),
        l0=float(k),
        notes=("b_dec is subtracted from x before encoding.",),
    )
