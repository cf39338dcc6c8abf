"""Gemma Scope 2 (Gemma 3): `params.safetensors` with lower-case names, and a `config.json` that says the hook."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from darkmatter.adapters.saes.hooks import site_of_hook
from darkmatter.adapters.saes.loaded import Parts, SaeFiles
from darkmatter.adapters.saes.pieces import check_keys, matrix, text
from darkmatter.errors import FileFormatError

_NAMES = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec", "threshold": "threshold"}
_OTHER_KINDS = ("transcoder", "crosscoder", "clt")
_SITES = {"resid_post": "resid_post", "mlp_out": "mlp_out", "attn_out": "attn_z"}


def read_gemmascope2(weights: Mapping[str, Any], config: Mapping[str, Any], files: SaeFiles) -> Parts:
    """Read the tensors of a `params.safetensors`; the function is that of Gemma Scope.

    Args:
        weights: Its tensors.
        config: `config.json`, empty where there is none; site and L0 may then be in the path.
        files: Where they are.

    Returns:
        The parts.

    Raises:
        FileFormatError: A transcoder or crosscoder, another architecture, or missing or unknown tensors.
    """
    source, target = text(config.get("hf_hook_point_in")), text(config.get("hf_hook_point_out"))
    said = text(config.get("type")) or "/".join(files.path.split("/")[-3:-1])
    if (
        any(other in said for other in _OTHER_KINDS)
        or (target is not None and target != source)
        or "affine_skip_connection" in weights
    ):
        raise FileFormatError(
            f"{files.path} is a transcoder or crosscoder, which predicts another site than it reads, so x − Sae(x) is "
            "no error of reconstruction: choose one of resid_post, mlp_out or attn_out",
            files.weights,
        )
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise FileFormatError(
            f"{files.folder} has architecture {config['architecture']!r}, expected 'jump_relu'", files.weights
        )
    check_keys(weights, files, required=_NAMES)
    matrix(weights, "w_enc", files)
    l0: Any = config.get("l0")
    return Parts(
        fields={**{ours: weights[theirs] for theirs, ours in _NAMES.items()}, "activation": "jumprelu"},
        hook=source,
        site=site_of_hook(source) if source is not None else _site_of_path(files.path),
        l0=float(l0) if type(l0) in {int, float} else None,
        model=text(config.get("model_name")),
    )


def _site_of_path(path: str) -> str | None:
    match = re.search(r"(?:^|/)(resid_post|mlp_out|attn_out)(?:_all)?/layer_(\d{1,4})_", path)
    return None if match is None else f"{_SITES[match[1]]}:{int(match[2])}"
