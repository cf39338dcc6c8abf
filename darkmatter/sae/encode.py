"""From activations to the pairs of token and latent that matter: the encoder's product, and what lies above a bound."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from darkmatter.sae.config import TrainConfig
from darkmatter.sae.kernels import active_entries
from darkmatter.sae.layouts import DenseLayout, Layout, SparseLayout, listed
from darkmatter.sae.parameters import Parameters
from darkmatter.sae.workspace import Workspace

_DENSE_PAYS = 0.15
"""Share of listed pairs above which full matrices are faster (measured at n = 2048, d = 512, 4096 latents)."""


def pre_activations(
    parameters: Parameters, x: Tensor, config: TrainConfig, *, norms: Tensor | None, workspace: Workspace
) -> Tensor:
    """Compute (x − tied b_dec) · enc + b_enc, times the decoder norms where these are given.

    In bfloat16 the bias rides along as two more columns of the product, its leading and its remaining digits, so that
    it costs no pass of its own and loses no precision.

    Args:
        parameters: Current parameters.
        x: Activations in training units, (n, d_model).
        config: Settings.
        norms: Decoder norms, (d_sae,), so that latents compete by what they add to the reconstruction.
        workspace: Holds the result.

    Returns:
        (n, d_sae), in the encoder's dtype, valid until the next call.
    """
    enc, bias = parameters.enc, parameters.b_enc
    if config.tie_b_dec:
        bias = bias - enc @ parameters.b_dec
    if norms is not None:
        enc, bias = enc * norms[:, None], bias * norms
    n, (d_sae, d_model) = len(x), enc.shape
    if config.encode_dtype == "float32":
        out = workspace.empty("pre", (n, d_sae), dtype=x.dtype, device=x.device)
        return torch.addmm(bias, x, enc.T, out=out)
    half = torch.bfloat16
    left = workspace.empty("tokens", (n, d_model + 2), dtype=half, device=x.device)
    right = workspace.empty("encoder", (d_sae, d_model + 2), dtype=half, device=x.device)
    left[:, :d_model] = x
    left[:, d_model:] = 1.0
    right[:, :d_model] = enc
    right[:, d_model] = bias
    right[:, d_model + 1] = bias - right[:, d_model].to(bias.dtype)
    return torch.mm(left, right.T, out=workspace.empty("pre", (n, d_sae), dtype=half, device=x.device))


def above(pre: Tensor, bound: Tensor | float, dtype: torch.dtype, workspace: Workspace) -> Layout:
    """Hold the pre-activations above a bound: as a list while they are few, else all pairs as a matrix.

    Args:
        pre: (n, d_sae).
        bound: One for all latents, or (d_sae,).
        dtype: Of the values.
        workspace: Holds the mask and the matrix.

    Returns:
        A layout that holds every pair above the bound.
    """
    mask = workspace.empty("mask", tuple(pre.shape), dtype=torch.bool, device=pre.device)
    if isinstance(bound, Tensor):
        bound = bound.to(pre.dtype)
    torch.gt(pre, bound, out=mask)
    active = np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else int(mask.sum())
    if active > _DENSE_PAYS * pre.numel():
        full = workspace.empty("full", tuple(pre.shape), dtype=dtype, device=pre.device)
        return DenseLayout(full.copy_(pre), workspace)
    positions = active_entries(mask)
    return listed(pre.flatten()[positions].to(dtype), positions, pre.shape)


def split(layout: SparseLayout, prefixes: tuple[int, ...]) -> list[tuple[slice, SparseLayout]]:
    """Cut a list of pairs into groups of latents.

    Args:
        layout: The pairs.
        prefixes: Rising sizes of the nested prefixes; the last is d_sae.

    Returns:
        Per group its latents as a slice, and its pairs with latents counted from the group's first.
    """
    if len(prefixes) == 1:
        return [(slice(0, prefixes[0]), layout)]
    n = len(layout.offsets) - 1
    tokens = torch.arange(n, device=layout.latents.device).repeat_interleave(layout.offsets.diff())
    parts = []
    for low, high in zip((0, *prefixes[:-1]), prefixes, strict=True):
        inside = (layout.latents >= low) & (layout.latents < high)
        ends = torch.bincount(tokens[inside], minlength=n).cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends])
        part = SparseLayout(layout.pre[inside], layout.latents[inside] - low, offsets, high - low)
        parts.append((slice(low, high), part))
    return parts
