"""Where does a sparse autoencoder's reconstruction error come from, and how sure are we?

Public names are loaded on first use, so that ``import darkmatter`` (and ``darkmatter --help``) stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from darkmatter.adapters.arrays import from_arrays
    from darkmatter.batch import Batch, BatchSource, SourceCheck, check_source
    from darkmatter.decomposition import decompose, decompose_many, decompose_moments
    from darkmatter.errors import DarkmatterError, DegenerateError, FileFormatError, InputError
    from darkmatter.inference import Estimate
    from darkmatter.results import Decomposition
    from darkmatter.sandbox import Surgical, World
    from darkmatter.store import Checkpoint

_HOME = {
    "Batch": "batch",
    "BatchSource": "batch",
    "SourceCheck": "batch",
    "check_source": "batch",
    "Checkpoint": "store",
    "DarkmatterError": "errors",
    "Decomposition": "results",
    "DegenerateError": "errors",
    "Estimate": "inference",
    "FileFormatError": "errors",
    "InputError": "errors",
    "Surgical": "sandbox",
    "World": "sandbox",
    "from_arrays": "adapters.arrays",
    "decompose": "decomposition",
    "decompose_many": "decomposition",
    "decompose_moments": "decomposition",
}

__all__ = [
    "Batch",
    "BatchSource",
    "Checkpoint",
    "DarkmatterError",
    "Decomposition",
    "DegenerateError",
    "Estimate",
    "FileFormatError",
    "InputError",
    "SourceCheck",
    "Surgical",
    "World",
    "check_source",
    "decompose",
    "decompose_many",
    "decompose_moments",
    "from_arrays",
]


def __getattr__(name: str) -> Any:  # PEP 562: the import cost is paid by the first use of a name
    if name in _HOME:
        return getattr(import_module(f"darkmatter.{_HOME[name]}"), name)
    raise AttributeError(f"module 'darkmatter' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
