"""Which pairs of token and latent are active in topk, batchtopk and matryoshka: the largest, per token or per batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

from darkmatter.sae.kernels import active_entries, top_k
from darkmatter.sae.layouts import SparseLayout, listed
from darkmatter.sae.workspace import Workspace

_GROUPS_PER_K = 8
"""Groups of columns per kept entry: fewer make the bound too loose, more cost time (measured at k 32 of 4096)."""

_SAMPLED_ROWS = 16
_SLACK = 0.1


def per_token(pre: Tensor, k: int, dtype: torch.dtype, workspace: Workspace) -> SparseLayout:
    """List the k largest pre-activations of every token, if positive: others have no code and no gradient.

    Columns are dealt into groups; a row's k-th largest group maximum is a lower bound of its k-th largest entry, and
    little more than k entries exceed it. Of equal entries at the cut the first are kept, so that a row's choice
    depends on that row alone. 20 ms where `torch.topk` takes 28 ms and `top_k` 25 ms (two cores, n = d_sae = 4096,
    k = 32).

    Args:
        pre: (n, d_sae).
        k: How many.
        dtype: Of the listed values.
        workspace: Holds the mask.

    Returns:
        At most n·k pairs.
    """
    n, d_sae = pre.shape
    size = d_sae // (_GROUPS_PER_K * k)
    if pre.device.type != "cpu" or size < 2:
        values, columns = top_k(pre, k)
        offsets = torch.arange(0, n * k + 1, k, device=pre.device)
        return SparseLayout(values.flatten().to(dtype), columns.flatten(), offsets, d_sae)
    grouped = rearrange(pre[:, : size * (d_sae // size)], "n (size group) -> n size group", size=size)
    bound = _kth_largest(grouped.amax(dim=1).to(dtype).numpy(), k)
    mask = _at_least(pre, torch.from_numpy(bound), workspace)
    positions = active_entries(mask)
    values = pre.flatten()[positions].to(dtype)
    keep = torch.from_numpy(_largest_in_rows(values.numpy(), positions.numpy() // d_sae, n, k))
    return listed(values[keep], positions[keep], pre.shape)


def _kth_largest(rows: npt.NDArray[np.floating], k: int) -> npt.NDArray[np.floating]:
    width = rows.shape[1]
    cut: npt.NDArray[np.floating] = np.partition(rows, width - k, axis=1)[:, width - k]
    return cut


def _at_least(pre: Tensor, bound: Tensor, workspace: Workspace) -> Tensor:
    """Mark what is positive and at least its row's bound, on the CPU, where numpy compares three times as fast.

    numpy has no bfloat16, but positive floats of one format are ordered like their bits, and negative ones have a
    negative sign bit.
    """
    mask = workspace.empty("mask", tuple(pre.shape), dtype=torch.bool, device=pre.device)
    bound = bound.clamp(min=torch.finfo(pre.dtype).tiny).to(pre.dtype)[:, None]
    if pre.dtype == torch.bfloat16:
        pre, bound = pre.view(torch.int16), bound.view(torch.int16)
    np.greater_equal(pre.numpy(), bound.numpy(), out=mask.numpy())
    return mask


def _largest_in_rows(
    values: npt.NDArray[np.floating], rows: npt.NDArray[np.int64], n: int, k: int
) -> npt.NDArray[np.bool_]:
    """Mark the k largest entries of every row, all of them where there are fewer; rows rise, ties go to the first."""
    counts = np.bincount(rows, minlength=n)
    width = int(counts.max(initial=0))
    if width <= k:
        return np.ones(len(values), dtype=np.bool_)
    starts = np.concatenate([[0], counts.cumsum()])[rows]
    padded = np.full((n, width), -np.inf, dtype=values.dtype)
    padded[rows, np.arange(len(rows)) - starts] = values
    cut = _kth_largest(padded, k)[rows]
    above, tied = values > cut, values == cut
    room = (k - np.bincount(rows[above], minlength=n))[rows]
    so_far = np.concatenate([[0], tied.cumsum()])
    kept: npt.NDArray[np.bool_] = above | (tied & (so_far[1:] - so_far[starts] <= room))
    return kept


def per_batch(
    pre: Tensor, k: int, dtype: torch.dtype, *, guess: float | None, workspace: Workspace
) -> tuple[SparseLayout, float]:
    """List the n·k largest positive pre-activations of the whole batch (Bussmann et al. 2024, BatchTopK).

    The candidates are what exceeds a lower bound of the cut: the guess less some slack, or 0 where that leaves too
    few. So the result does not depend on the guess, only the time does. Of equal entries at the cut the first are kept.

    Args:
        pre: (n, d_sae).
        k: How many per token on average.
        dtype: Of the listed values.
        guess: The cut of the previous batch; None estimates one from some of the tokens.
        workspace: Holds the mask.

    Returns:
        At most n·k pairs, and the smallest of their values (0 without pairs).
    """
    count = len(pre) * k
    if guess is None:
        some = pre[:: max(1, len(pre) // _SAMPLED_ROWS)].float().flatten()
        guess = float(some.kthvalue(max(1, len(some) - len(some) * k // pre.shape[1])).values)
    mask = workspace.empty("mask", tuple(pre.shape), dtype=torch.bool, device=pre.device)
    positions = active_entries(torch.gt(pre, max(0.0, (1 - _SLACK) * guess), out=mask))
    if len(positions) < count and guess > 0:
        positions = active_entries(torch.gt(pre, 0, out=mask))
    values = pre.flatten()[positions].to(dtype)
    if len(values) > count:
        cut = float(values.topk(count, sorted=False).values.min())
        ties = (values == cut).nonzero().flatten()
        keep = values >= cut
        keep[ties[count - int((values > cut).sum()) :]] = False
        positions, values = positions[keep], values[keep]
    return listed(values, positions, pre.shape), float(values.min()) if len(values) else 0.0
