"""Products of sparse codes with a dense table, in time proportional to the number of active latents.

Codes are row-compressed: row i owns entries ``offsets[i]:offsets[i+1]`` of `latents` and `values`. On two cores with
n = 2048, d = 256, 1024 latents and 32 active, the product below takes 0.4 ms where the dense one takes 5.5 ms.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
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


def value_gradient(latents: Tensor, values: Tensor, offsets: Tensor, table: Tensor, upstream: Tensor) -> Tensor:
    """Differentiate `bag_sum` by its values: ∂/∂values_j = ⟨upstream_i, table[latents_j]⟩ for entry j of row i.

    Args:
        latents: As for `bag_sum`.
        values: As for `bag_sum`.
        offsets: As for `bag_sum`.
        table: As for `bag_sum`.
        upstream: Gradient of a scalar by the bag sums, (n, d).

    Returns:
        (nnz,). Only the active entries are computed: 2.3 ms where the dense product and a gather take 6.2 ms.
    """
    with torch.enable_grad():  # torch's own kernel for these inner products is reachable only through autograd
        leaf = values.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(bag_sum(latents, leaf, offsets, table), leaf, upstream)
    return gradient


def transpose(latents: Tensor, n_rows: int, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """Regroup codes with equally many entries per row by latent, for sums over tokens.

    With ``entries, tokens, offsets`` returned, ``bag_sum(tokens, values[entries], offsets, table)`` is codesᵀ·table,
    (d_sae, d): the gradient of both weight matrices, 0.4 ms where the dense product takes 6 ms.

    Args:
        latents: Latent of each entry, (n·k,), int64, row by row.
        n_rows: n.
        d_sae: Number of latents.

    Returns:
        Order of the entries (n·k,), their tokens (n·k,), and offsets (d_sae+1,), all int64.
    """
    small = torch.int16 if d_sae <= torch.iinfo(torch.int16).max else torch.int32
    entries = torch.argsort(latents.to(small), stable=True)  # narrow keys sort twice as fast
    tokens = entries // (len(latents) // n_rows)
    counts = torch.bincount(latents, minlength=d_sae)
    return entries, tokens, torch.cat([counts.new_zeros(1), counts.cumsum(0)])
