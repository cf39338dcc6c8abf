"""Products of sparse codes with a dense table, in time proportional to the number of active latents.

Codes are row-compressed: row i owns entries ``offsets[i]:offsets[i+1]`` of `latents` and `values`. On two cores with
n = 2048, d = 256, 1024 latents and 32 active, the product below takes 0.4 ms where the dense one takes 5.5 ms.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import embedding_bag

_GROUPING_PAYS = 16
"""Smallest d_sae / k at which the two-stage selection beats `torch.topk` (measured: 1.9× at 32, 2.3× at 2048)."""


def bag_sum(latents: Tensor, values: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    """Sum table rows per bag: out_i = Σ_j values_j · table[latents_j] over the entries j of row i.

    Args:
        latents: Row numbers of the table, (nnz,), int64.
        values: Weights, (nnz,), the table's dtype.
        offsets: Where each bag begins, and the end, (n+1,), int64.
        table: (rows, d).

    Returns:
        (n, d). Every bag is summed by one thread in order, so the result does not depend on the number of threads.
    """
    return embedding_bag(
        latents, table, offsets=offsets, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Select the k largest entries of every row, in no particular order.

    Columns are dealt into groups. A row's k largest entries lie in the k groups with the largest maxima: an entry in
    another group has k group maxima above it. So only k·size candidates are left, and size = sqrt(d_sae/k) balances
    the two selections at 2·sqrt(d_sae·k) entries instead of d_sae. Among equal entries the choice is arbitrary but
    depends on that row alone.

    Args:
        pre: Pre-activations, (n, d_sae).
        k: How many to keep, 1…d_sae.

    Returns:
        Values (n, k) and columns (n, k), int64.
    """
    n, d_sae = pre.shape
    if n == 0 or d_sae < _GROUPING_PAYS * k:
        direct = pre.topk(k, dim=1, sorted=False)
        return direct.values, direct.indices
    size = round(math.sqrt(d_sae / k))
    n_groups = d_sae // size
    grouped = rearrange(pre[:, : size * n_groups], "n (size group) -> n size group", size=size)
    best = grouped.amax(dim=1).topk(k, dim=1, sorted=False).indices
    members = torch.arange(0, size * n_groups, n_groups, device=pre.device)
    candidates = rearrange(best[:, None, :] + members[None, :, None], "n size k -> n (size k)")
    rest = torch.arange(size * n_groups, d_sae, device=pre.device).expand(n, -1)  # columns that fill no whole group
    candidates = torch.cat([candidates, rest], dim=1)
    values, chosen = pre.gather(1, candidates).topk(k, dim=1, sorted=False)
    return values, candidates.gather(1, chosen)


def group_max(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Select the largest entry of each of k runs of neighbouring columns.

    Args:
        pre: Pre-activations, (n, d_sae).
        k: Number of runs, a divisor of d_sae.

    Returns:
        Values (n, k) and columns (n, k), int64.
    """
    size = pre.shape[1] // k
    best = rearrange(pre, "n (k size) -> n k size", size=size).max(dim=2)
    return best.values, best.indices + torch.arange(0, pre.shape[1], size, device=pre.device)


def bag_sum_with_pullback(
    latents: Tensor, values: Tensor, offsets: Tensor, table: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Compute `bag_sum` and how to differentiate it by its values: ∂/∂values_j = ⟨upstream_i, table[latents_j]⟩.

    Args:
        latents: As for `bag_sum`.
        values: As for `bag_sum`.
        offsets: As for `bag_sum`.
        table: As for `bag_sum`.

    Returns:
        The bag sums (n, d), and a function from the gradient of a scalar by them, (n, d), to that by `values`, (nnz,);
        it can be called once. Only listed entries are computed: 9 ms where the dense product and a gather take 130 ms
        at n = 4096, d = 512, 4096 latents and 32 active.
    """
    with torch.enable_grad():  # torch's own kernel for these inner products is reachable only through autograd
        leaf = values.detach().requires_grad_()
        out = bag_sum(latents, leaf, offsets, table)

    def pullback(upstream: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(out, leaf, upstream)
        return gradient

    return out.detach(), pullback


def active_entries(mask: Tensor) -> Tensor:
    """List the true entries of a mask by their position in row-major order.

    Args:
        mask: (n, d_sae), bool, contiguous.

    Returns:
        Positions (nnz,), int64, rising.
    """
    if mask.device.type == "cpu":  # four times as fast as torch's
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero().flatten()


def transpose(latents: Tensor, offsets: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """Regroup row-compressed entries by latent, for sums over tokens.

    With ``entries, tokens, ends`` returned, ``bag_sum(tokens, values[entries], ends, table)`` is codesᵀ·table,
    (d_sae, d): the gradient of both weight matrices, 3 ms where the dense product takes 110 ms.

    Args:
        latents: Latent of each entry, (nnz,), int64.
        offsets: First entry of each token, and the end, (n+1,), int64.
        d_sae: Number of latents.

    Returns:
        Order of the entries (nnz,), their tokens (nnz,), and offsets (d_sae+1,), all int64; tokens rise per latent.
    """
    if latents.device.type == "cpu":  # a counting sort, ten times as fast as sorting keys
        rows = (np.arange(len(latents), dtype=np.int32), latents.numpy().astype(np.int32), offsets.numpy())
        columns = csr_array(rows, shape=(len(offsets) - 1, d_sae)).tocsc()
        arrays = (columns.data, columns.indices, columns.indptr)
        entries, tokens, ends = (torch.from_numpy(part.astype(np.int64)) for part in arrays)
        return entries, tokens, ends
    entries = torch.argsort(latents, stable=True)
    every = torch.arange(len(offsets) - 1, device=latents.device).repeat_interleave(offsets.diff())
    counts = torch.bincount(latents, minlength=d_sae)
    return entries, every[entries], torch.cat([counts.new_zeros(1), counts.cumsum(0)])
