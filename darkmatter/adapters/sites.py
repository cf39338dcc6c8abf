"""Where in a model the activations are read: sites, and how to find the blocks that carry them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from darkmatter.errors import InputError

KINDS = ("resid_post",)
"""Kinds of site that can be captured; `resid_post` is the residual stream after a block (the block's output)."""


@dataclass(frozen=True, slots=True)
class Site:
    """One place in a model.

    Attributes:
        kind: One of `KINDS`.
        layer: Number of the block, counted from 0.
    """

    kind: str
    layer: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.layer}"


def parse_site(text: str) -> Site:
    """Read a site such as ``resid_post:2``, the output of block 2 (the first block is 0).

    Args:
        text: Kind and layer, joined by a colon.

    Returns:
        The site.

    Raises:
        InputError: Another form, or a kind that is not supported.
    """
    match = re.fullmatch(r"([A-Za-z_]+):([0-9]{1,6})", text.strip())
    if match is None:
        raise InputError(f"site {text!r} cannot be read, expected KIND:LAYER such as 'resid_post:2'")
    if match[1] not in KINDS:
        raise InputError(f"site kind {match[1]!r} is not supported, expected one of {', '.join(KINDS)}")
    return Site(kind=match[1], layer=int(match[2]))


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the model's language part (a multimodal one nests it)."""
    config: Any = getattr(model, "config", None)
    nested = getattr(config, "get_text_config", None)
    return config if nested is None else nested()


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """Find the transformer blocks: the only `ModuleList` whose length is ``config.num_hidden_layers``.

    Names differ between architectures (`model.layers`, `transformer.h`, `gpt_neox.layers`); this rule does not.

    Args:
        model: A Hugging Face model, or any module with such a `config`.

    Returns:
        The blocks, in order.

    Raises:
        InputError: No such list, or more than one.
    """
    depth = getattr(text_config(model), "num_hidden_layers", None)
    if not isinstance(depth, int):
        raise InputError(f"{type(model).__name__} has no config.num_hidden_layers: expected a Hugging Face model")
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    found = {name: m for name, m in lists.items() if len(m) == depth}
    if len(found) != 1:
        seen = ", ".join(f"{name} ({len(m)})" for name, m in lists.items()) or "none"
        raise InputError(
            f"{type(model).__name__} has {len(found)} module lists of length {depth}, expected exactly one "
            f"(the blocks); its lists: {seen}"
        )
    return next(iter(found.values()))


def site_module(model: nn.Module, site: Site) -> nn.Module:
    """Return the module whose output is the site's activation.

    Args:
        model: The model.
        site: The site.

    Returns:
        For `resid_post`, block number `site.layer`.

    Raises:
        InputError: The layer does not exist, or the kind of site is not supported.
    """
    if site.kind not in KINDS:
        raise InputError(f"site kind {site.kind!r} is not supported, expected one of {', '.join(KINDS)}")
    blocks = find_blocks(model)
    if not 0 <= site.layer < len(blocks):
        raise InputError(f"site {site} does not exist: layers run from 0 to {len(blocks) - 1}")
    return blocks[site.layer]
