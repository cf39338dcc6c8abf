"""Where a kind of site lies inside a block, by the model's type: names mean different things in different models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from darkmatter.errors import InputError

Side = Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class Place:
    """A module inside a block, and which side of it is read.

    Attributes:
        path: Path from the block; "" is the block itself.
        side: Its first input or its output.
    """

    path: str
    side: Side


RESIDUAL = {"resid_pre": Place("", "input"), "resid_post": Place("", "output")}
"""The stream before and after a block: the same in every model."""

_HEADS = Place("self_attn.o_proj", "input")
_PLAIN = {"mlp_out": Place("mlp", "output"), "attn_z": _HEADS}
# here a norm stands between the MLP and the stream: its output is what the block adds
_NORMED = {"mlp_out": Place("post_feedforward_layernorm", "output"), "attn_z": _HEADS}

TABLE: dict[str, dict[str, Place]] = {
    "gemma2": _NORMED,
    "gemma3": _NORMED,
    "gemma3_text": _NORMED,
    "gpt2": {"mlp_out": Place("mlp", "output"), "attn_z": Place("attn.c_proj", "input")},
    "gpt_neox": {"mlp_out": Place("mlp", "output"), "attn_z": Place("attention.dense", "input")},
    "llama": _PLAIN,
    "mistral": _PLAIN,
    "olmo2": _NORMED,
    "phi3": _PLAIN,
    "qwen2": _PLAIN,
    "qwen3": _PLAIN,
}
"""Places of "mlp_out" (what the MLP adds to the stream) and "attn_z" (heads, joined, before their output product)."""

KINDS = ("resid_pre", "resid_post", "mlp_out", "attn_z")
"""Kinds of site that have a name."""


def place_in_block(kind: str, model_type: str) -> Place:
    """Find where a kind of site lies in the blocks of a model.

    Args:
        kind: One of `KINDS`.
        model_type: `model_type` of the model's configuration (of its language part).

    Returns:
        The place.

    Raises:
        InputError: The kind is unknown, or known only for other models.
    """
    if kind not in KINDS:
        raise InputError(f"site kind {kind!r} is not supported, expected one of {', '.join(KINDS)}, or a module's path")
    if kind in RESIDUAL:
        return RESIDUAL[kind]
    if model_type not in TABLE:
        raise InputError(
            f"where {kind} lies in a {model_type!r} model is not known (known: {', '.join(sorted(TABLE))}): give the "
            "module itself, such as model.layers.3.mlp.output"
        )
    return TABLE[model_type][kind]
