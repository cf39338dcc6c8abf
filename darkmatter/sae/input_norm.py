"""Rescaling of each token before an SAE, and how to undo it: what OpenAI's and some SAELens SAEs do at run time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from darkmatter.sae.record_checks import InputNorm

_EPS = 1e-5


def normalise(x: Tensor, kind: InputNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Rescale every token, x' = (x − shift) / scale up to a small constant; see `SAE` for both formulas.

    Args:
        x: Activations, (n, d_model), floating.
        kind: "layer_norm" or "constant_norm".

    Returns:
        x' (n, d_model); scale (n, 1) and shift (n, 1), so that recon · scale + shift undoes it. A token that is zero
        stays zero under constant_norm and its reconstruction becomes zero, the limit of ever smaller tokens.
    """
    if kind == "layer_norm":
        mean = x.mean(dim=1, keepdim=True)
        centred = x - mean
        spread = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / math.sqrt(x.shape[1] - 1)
        return centred / (spread + _EPS), spread, mean
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    root = math.sqrt(x.shape[1])
    return x * (root / norm.clamp(min=torch.finfo(x.dtype).tiny)), norm / root, torch.zeros_like(norm)
