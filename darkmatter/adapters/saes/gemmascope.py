"""Gemma Scope (Gemma 2): one `params.npz` per SAE, JumpReLU, nothing subtracted before encoding.

codes = relu(pre) · (pre > threshold) with pre = x @ W_enc + b_enc, and recon = codes @ W_dec + b_dec, as in Lieberum et
al. (2024).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from darkmatter.adapters.saes.loaded import Parts, SaeFiles
from darkmatter.adapters.saes.pieces import check_keys, matrix
from darkmatter.errors import FileFormatError

_KEYS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
_RELEASE = r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)/(?:snapshots/\w+/)?"
_PLACE = r"layer_(\d{1,4})/width_\w+/average_l0_(\d{1,6})/[^/]*$"
_SITES = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_z"}


def read_gemmascope(weights: Mapping[str, Any], config: Mapping[str, Any], files: SaeFiles) -> Parts:
    """Read the arrays of a `params.npz`; site, L0 and model are known from the release's path alone.

    Args:
        weights: Its arrays.
        config: Unused: this family has none.
        files: Where it is.

    Returns:
        The parts.

    Raises:
        FileFormatError: Missing or unknown arrays, a scaling factor, a transcoder, or an SAE of the embedding.
    """
    del config
    named = {re.sub("^w_", "W_", name): value for name, value in weights.items()}
    check_keys(named, files, required=_KEYS, optional=("scaling_factor",))
    factor = named.pop("scaling_factor", None)
    if factor is not None and not torch.equal(factor, torch.ones_like(factor)):
        raise FileFormatError(
            f"{files.weights} has a scaling_factor that is not 1, whose place differs between versions: fold it into "
            "W_dec and save again",
            files.weights,
        )
    if re.search(r"gemma-scope-[\w-]*transcoder", files.path):
        raise FileFormatError(
            f"{files.path} is a transcoder, which predicts another site than it reads, so x − Sae(x) is no error of "
            "reconstruction: choose an SAE (-res, -mlp or -att)",
            files.weights,
        )
    if re.search(r"(?:^|/)embedding/width_\w+/[^/]+/[^/]*$", files.path):
        raise FileFormatError(
            f"{files.path} reads the embedding, which is no site here: choose a layer, such as layer_20", files.weights
        )
    matrix(named, "W_enc", files)
    place = re.search(_PLACE, files.path)
    release = re.search(_RELEASE + _PLACE, files.path)
    return Parts(
        fields={**named, "activation": "jumprelu"},
        site=None if release is None else f"{_SITES[release[3]]}:{int(release[4])}",
        l0=None if place is None else float(place[2]),
        model=None if release is None else f"gemma-2-{release[1]}" + ("-it" if release[2] == "it" else ""),
    )
