"""The paper's analyses beyond the split itself: each is one function from a source to a frozen result.

The functions are loaded on first use; their results and parts are in the package of each.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from darkmatter.analyses.controls import with_controls
    from darkmatter.analyses.cross_site import cross_site_errors
    from darkmatter.analyses.downstream import downstream_losses
    from darkmatter.analyses.error_saes import train_on_error
    from darkmatter.analyses.interp import interpret
    from darkmatter.analyses.ladder import predictor_ladder
    from darkmatter.analyses.norms import norm_probes
    from darkmatter.analyses.per_token import per_token_errors
    from darkmatter.analyses.pursuit import pursue
    from darkmatter.analyses.replicates import replicate_bracket
    from darkmatter.analyses.scaling import measure_scaling, scaling_law
    from darkmatter.analyses.spectrum import residual_spectrum

_HOME = {
    "cross_site_errors": "cross_site",
    "downstream_losses": "downstream",
    "interpret": "interp",
    "measure_scaling": "scaling",
    "norm_probes": "norms",
    "per_token_errors": "per_token",
    "predictor_ladder": "ladder",
    "pursue": "pursuit",
    "replicate_bracket": "replicates",
    "residual_spectrum": "spectrum",
    "scaling_law": "scaling",
    "train_on_error": "error_saes",
    "with_controls": "controls",
}

__all__ = [
    "cross_site_errors",
    "downstream_losses",
    "interpret",
    "measure_scaling",
    "norm_probes",
    "per_token_errors",
    "predictor_ladder",
    "pursue",
    "replicate_bracket",
    "residual_spectrum",
    "scaling_law",
    "train_on_error",
    "with_controls",
]


def __getattr__(name: str) -> Any:  # PEP 562: an analysis loads when it is used
    if name in _HOME:
        return getattr(import_module(f"darkmatter.analyses.{_HOME[name]}"), name)
    raise AttributeError(f"module 'darkmatter.analyses' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
