"""Where in a model the activations are read: sites, and how to find the modules that carry them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from darkmatter.adapters.site_table import KINDS, Side, place_in_block
from darkmatter.errors import InputError

_MODULE = "module"
_ALIASES = (
    (re.compile(r"blocks\.([0-9]{1,6})\.hook_(resid_pre|resid_post|mlp_out)"), ""),
    (re.compile(r"blocks\.([0-9]{1,6})\.attn\.hook_(z)"), "attn_"),
)
"""Names that TransformerLens gives to the same places."""


@dataclass(frozen=True, slots=True)
class Site:
    """One place in a model; written `KIND:LAYER`, or `MODULE.PATH.input` and `MODULE.PATH.output`.

    Attributes:
        kind: One of `KINDS`, or "module" for an explicit path.
        layer: Number of the block, counted from 0; -1 for an explicit path.
        path: The explicit path, as `named_modules` spells it; else "".
        side: The module's first input or its output; of an explicit path only.
    """

    kind: str
    layer: int = -1
    path: str = ""
    side: Side = "output"

    def __str__(self) -> str:
        return f"{self.path}.{self.side}" if self.kind == _MODULE else f"{self.kind}:{self.layer}"


@dataclass(frozen=True, slots=True, eq=False)
class Hook:
    """A site found in a model.

    Attributes:
        module: The module to hook.
        side: Whether its first input or its output is the activation.
        name: The module's path in the model.
    """

    module: nn.Module
    side: Side
    name: str


def parse_site(text: str) -> Site:
    """Read a site such as ``resid_post:2``, the residual stream after block 2 (the first block is 0).

    Args:
        text: `KIND:LAYER`; a module's path that ends in ``.input`` or ``.output``; or TransformerLens' name of the
            same place, such as ``blocks.2.hook_resid_post`` or ``blocks.2.attn.hook_z``.

    Returns:
        The site.

    Raises:
        InputError: Another form, or a kind that is not supported.
    """
    stripped = text.strip()
    for pattern, prefix in _ALIASES:
        alias = pattern.fullmatch(stripped)
        if alias is not None:
            return Site(kind=prefix + alias[2], layer=int(alias[1]))
    match = re.fullmatch(r"([A-Za-z_]+):([0-9]{1,6})", stripped)
    if match is not None:
        if match[1] not in KINDS:
            raise InputError(f"site kind {match[1]!r} is not supported, expected one of {', '.join(KINDS)}")
        return Site(kind=match[1], layer=int(match[2]))
    path = re.fullmatch(r"([A-Za-z_][A-Za-z0-9_.]*)\.(input|output)", stripped)
    if path is not None:
        return Site(kind=_MODULE, path=path[1], side="input" if path[2] == "input" else "output")
    raise InputError(
        f"site {text!r} cannot be read, expected KIND:LAYER such as 'resid_post:2' ({', '.join(KINDS)}), or a module's "
        "path with its side such as 'model.layers.2.mlp.output'"
    )


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the model's language part (a multimodal one nests it)."""
    config: Any = getattr(model, "config", None)
    nested = getattr(config, "get_text_config", None)
    return config if nested is None else nested()


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """Find the transformer blocks: the only `ModuleList` whose length is ``config.num_hidden_layers``.

    Names differ between architectures (`model.layers`, `transformer.h`, `gpt_neox.layers`); this rule does not. Of a
    multimodal model only the part named `language_model` is looked at, if there is one.

    Args:
        model: A Hugging Face model, or any module with such a `config`.

    Returns:
        The blocks, in order.

    Raises:
        InputError: No such list, or more than one.
    """
    return _blocks(model)[1]


def _blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    depth = getattr(text_config(model), "num_hidden_layers", None)
    if not isinstance(depth, int):
        raise InputError(f"{type(model).__name__} has no config.num_hidden_layers: expected a Hugging Face model")
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    inner = {name: m for name, m in lists.items() if "language_model" in name.split(".")}
    lists = inner or lists
    found = {name: m for name, m in lists.items() if len(m) == depth}
    if len(found) != 1:
        seen = ", ".join(f"{name} ({len(m)})" for name, m in lists.items()) or "none"
        raise InputError(
            f"{type(model).__name__} has {len(found)} module lists of length {depth}, expected exactly one "
            f"(the blocks); its lists: {seen}"
        )
    return next(iter(found.items()))


def resolve_site(model: nn.Module, site: Site) -> Hook:
    """Find the module that carries a site's activation.

    Args:
        model: The model.
        site: The site.

    Returns:
        The module, its side and its name.

    Raises:
        InputError: The layer or module does not exist, or it is not known where the kind lies in this model.
    """
    if site.kind == _MODULE:
        try:
            return Hook(model.get_submodule(site.path), site.side, site.path)
        except AttributeError:
            raise InputError(f"module {site.path!r} does not exist, expected {_nearest(model, site.path)}") from None
    place = place_in_block(site.kind, str(getattr(text_config(model), "model_type", None)))
    name, blocks = _blocks(model)
    if not 0 <= site.layer < len(blocks):
        raise InputError(f"site {site} does not exist: layers run from 0 to {len(blocks) - 1}")
    full = ".".join(part for part in (name, str(site.layer), place.path) if part)
    try:
        return Hook(model.get_submodule(full), place.side, full)
    except AttributeError:
        raise InputError(
            f"site {site} should be at {full}, which this {type(model).__name__} does not have: give the module itself "
            f"({_nearest(model, full)})"
        ) from None


def device_of(model: nn.Module, site: Site) -> torch.device:
    """Find the device of a site's module, where SAEs and sums belong if the model is spread over several.

    Args:
        model: The model.
        site: The site.

    Returns:
        The device of the module's first parameter; of a module without any, of the model's.
    """
    module = resolve_site(model, site).module
    return next((p.device for p in (*module.parameters(), *model.parameters())), torch.device("cpu"))


def _nearest(model: nn.Module, path: str) -> str:
    """What there is instead of the first part of a path that does not exist."""
    module, known = model, ""
    for part in path.split("."):
        children = dict(module.named_children())
        if part not in children:
            return f"one of {', '.join(list(children)[:8]) or 'none'} in {known or 'the model'}"
        module, known = children[part], f"{known}.{part}".lstrip(".")
    return "a module"
