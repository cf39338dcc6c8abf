"""Advertised hooks as sites: only where the name alone settles what is meant."""

from __future__ import annotations

import re

_BLOCK = r"(?:(?:model|language_model|transformer|gpt_neox)\.)*(?:layers|h)[._](\d+)"

_PATTERNS = (
    (r"blocks\.(\d+)\.hook_resid_post", "resid_post"),
    (r"blocks\.(\d+)\.hook_resid_pre", "resid_pre"),
    (r"blocks\.(\d+)\.hook_mlp_out", "mlp_out"),
    (r"blocks\.(\d+)\.attn\.hook_z", "attn_z"),
    (rf"{_BLOCK}(?:\.output)?", "resid_post"),
    (rf"{_BLOCK}\.post_feedforward_layernorm\.output", "mlp_out"),
    (rf"{_BLOCK}\.self_attn\.o_proj\.input", "attn_z"),
    (r"resid_post_layer_(\d+)", "resid_post"),
)


def site_of_hook(hook: str | None) -> str | None:
    """Translate a hook's name into a site.

    A name such as ``layers.3.mlp`` is not translated: whether a norm follows depends on the model.

    Args:
        hook: Name in the words of TransformerLens, Hugging Face modules, sparsify or dictionary_learning.

    Returns:
        A site such as "resid_post:3", or None where the name does not settle it.
    """
    for pattern, kind in _PATTERNS:
        match = re.fullmatch(pattern, hook or "")
        if match is not None:
            return f"{kind}:{int(match[1])}"
    return None


def same_place(first: str, second: str) -> bool:
    """Whether two spellings of a site mean the same activation: what enters a block has left the one before it."""
    return _plain(first) == _plain(second)


def _plain(site: str) -> str:
    spelled = site_of_hook(site.strip()) or site.strip()
    before = re.fullmatch(r"resid_pre:0*([1-9]\d*)", spelled)
    return spelled if before is None else f"resid_post:{int(before[1]) - 1}"
