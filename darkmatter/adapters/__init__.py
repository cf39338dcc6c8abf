"""Ways to get activations and reconstructions: arrays, files, and Hugging Face models.

Names are loaded on first use; transformers is imported only when a model is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from darkmatter.adapters.activations import (
        ActivationBatch,
        ModelActivations,
        model_activations,
        training_activations,
    )
    from darkmatter.adapters.array_files import files_source, load_array, load_groups
    from darkmatter.adapters.arrays import ArraySource, from_arrays
    from darkmatter.adapters.group_ids import as_group_ids
    from darkmatter.adapters.hf import LoadedModel, capture, load_model
    from darkmatter.adapters.model_sources import ModelSource, model_source
    from darkmatter.adapters.sites import Site, find_blocks, parse_site
    from darkmatter.adapters.text import count_documents, read_documents
    from darkmatter.adapters.tokens import TokenisedText, tokenise

_HOME = {
    "ActivationBatch": "activations",
    "ArraySource": "arrays",
    "LoadedModel": "hf",
    "ModelActivations": "activations",
    "ModelSource": "model_sources",
    "Site": "sites",
    "TokenisedText": "tokens",
    "as_group_ids": "group_ids",
    "capture": "hf",
    "count_documents": "text",
    "files_source": "array_files",
    "find_blocks": "sites",
    "from_arrays": "arrays",
    "load_array": "array_files",
    "load_groups": "array_files",
    "load_model": "hf",
    "model_activations": "activations",
    "model_source": "model_sources",
    "parse_site": "sites",
    "read_documents": "text",
    "tokenise": "tokens",
    "training_activations": "activations",
}

__all__ = [
    "ActivationBatch",
    "ArraySource",
    "LoadedModel",
    "ModelActivations",
    "ModelSource",
    "Site",
    "TokenisedText",
    "as_group_ids",
    "capture",
    "count_documents",
    "files_source",
    "find_blocks",
    "from_arrays",
    "load_array",
    "load_groups",
    "load_model",
    "model_activations",
    "model_source",
    "parse_site",
    "read_documents",
    "tokenise",
    "training_activations",
]


def __getattr__(name: str) -> Any:  # PEP 562: the import cost is paid by the first use of a name
    if name in _HOME:
        return getattr(import_module(f"darkmatter.adapters.{_HOME[name]}"), name)
    raise AttributeError(f"module 'darkmatter.adapters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
