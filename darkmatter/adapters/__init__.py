"""Ways to get activations and reconstructions: arrays, files, and Hugging Face models.

Names are loaded on first use; transformers is imported only when a model is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from darkmatter.adapters.activations import ModelActivations, model_activations
    from darkmatter.adapters.array_files import files_source, load_array, load_groups
    from darkmatter.adapters.arrays import ArraySource, from_arrays
    from darkmatter.adapters.documents import TextStream, TokenStream, open_text
    from darkmatter.adapters.forward import ActivationBatch
    from darkmatter.adapters.group_ids import as_group_ids
    from darkmatter.adapters.hf import LoadedModel, load_model
    from darkmatter.adapters.model_sources import ModelSitesSource, ModelSource, model_source
    from darkmatter.adapters.paper_sums import PaperResult
    from darkmatter.adapters.positions import PositionPolicy
    from darkmatter.adapters.protocol import paper_protocol
    from darkmatter.adapters.reading import capture, splice
    from darkmatter.adapters.saes import FAMILIES, LoadedSae, load_any_sae
    from darkmatter.adapters.sites import Site, find_blocks, parse_site
    from darkmatter.adapters.text import count_documents, read_documents, text_file
    from darkmatter.adapters.token_files import token_file, token_rows
    from darkmatter.adapters.tokens import TokenisedText, tokenise
    from darkmatter.adapters.training import TrainingActivations, training_activations

_HOME = {
    "ActivationBatch": "forward",
    "ArraySource": "arrays",
    "FAMILIES": "saes",
    "LoadedModel": "hf",
    "LoadedSae": "saes",
    "ModelActivations": "activations",
    "ModelSource": "model_sources",
    "PaperResult": "paper_sums",
    "PositionPolicy": "positions",
    "Site": "sites",
    "ModelSitesSource": "model_sources",
    "TextStream": "documents",
    "TokenStream": "documents",
    "TokenisedText": "tokens",
    "TrainingActivations": "training",
    "as_group_ids": "group_ids",
    "capture": "reading",
    "count_documents": "text",
    "files_source": "array_files",
    "find_blocks": "sites",
    "from_arrays": "arrays",
    "load_any_sae": "saes",
    "load_array": "array_files",
    "load_groups": "array_files",
    "load_model": "hf",
    "model_activations": "activations",
    "model_source": "model_sources",
    "open_text": "documents",
    "paper_protocol": "protocol",
    "parse_site": "sites",
    "read_documents": "text",
    "splice": "reading",
    "text_file": "text",
    "token_file": "token_files",
    "token_rows": "token_files",
    "tokenise": "tokens",
    "training_activations": "training",
}

__all__ = [
    "FAMILIES",
    "ActivationBatch",
    "ArraySource",
    "LoadedModel",
    "LoadedSae",
    "ModelActivations",
    "ModelSitesSource",
    "ModelSource",
    "PaperResult",
    "PositionPolicy",
    "Site",
    "TextStream",
    "TokenStream",
    "TokenisedText",
    "TrainingActivations",
    "as_group_ids",
    "capture",
    "count_documents",
    "files_source",
    "find_blocks",
    "from_arrays",
    "load_any_sae",
    "load_array",
    "load_groups",
    "load_model",
    "model_activations",
    "model_source",
    "open_text",
    "paper_protocol",
    "parse_site",
    "read_documents",
    "splice",
    "text_file",
    "token_file",
    "token_rows",
    "tokenise",
    "training_activations",
]


def __getattr__(name: str) -> Any:  # PEP 562: the import cost is paid by the first use of a name
    if name in _HOME:
        return getattr(import_module(f"darkmatter.adapters.{_HOME[name]}"), name)
    raise AttributeError(f"module 'darkmatter.adapters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
