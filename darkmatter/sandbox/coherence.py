"""Spread unit vectors apart: smallest possible mean squared cosine, and a far smaller largest one."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Singles = npt.NDArray[np.float32]

PASSES = 24
"""Passes over all pairs; twice as many would lower the largest cosine by another tenth."""

FIRST, LAST = 0.70, 0.98
"""A pass pushes pairs apart whose cosine exceeds this share of the largest; it rises from pass to pass."""

MOMENTUM = 0.5
"""Share of a pass's step that the next repeats."""

ROUNDS = 8
"""Projections on tight frames before the first pass."""

BLOCK = 512
"""Rows whose cosines with all others are in memory at a time."""


def welch_bound(n_vectors: int, dim: int) -> float:
    """Smallest possible root mean square cosine of m unit vectors in R^d, √((m − d) / (d (m − 1))), or 0 for m ≤ d.

    No set has a smaller largest |cosine| either. Source: Welch, "Lower bounds on the maximum cross correlation of
    signals", 1974.

    Args:
        n_vectors: m.
        dim: d.

    Returns:
        The bound.
    """
    return math.sqrt((n_vectors - dim) / (dim * (n_vectors - 1))) if n_vectors > dim else 0.0


def largest_cosine(rows: Singles) -> float:
    """Largest |cosine| between two different rows.

    Args:
        rows: (m, d) of unit norm.

    Returns:
        The coherence; 0 for a single row.
    """
    return _repel(torch.from_numpy(rows), 0.0, push=False)[1]


def low_coherence(rows: Singles) -> Singles:
    """Spread unit rows apart until they are a tight frame with a small largest cosine.

    Up to m = d the result is orthonormal. Beyond, two kinds of steps alternate. (1) Projection on the tight frames:
    Y ← Y (Y'Y)^(-1/2), then unit rows; the root mean square cosine falls to the Welch bound. (2) A pass over all pairs:
    with e the soft threshold of the cosines at c, a share of the largest one, y_i moves by −η Σ_j e_ij y_j plus half of
    its last move; this is gradient descent on Σ e². η = 1 / (2 + a / d) for a pairs per row above c: while a ≪ d the
    neighbours of a row are almost orthogonal, both ends of a pair move, and half of its excess each removes it. The
    result is the best of all passes, hence never worse than the first frame.

    A pass costs 1.5 m² d multiply-adds and memory for 1024 m cosines. Equal rows give equal results for one number
    of threads, and equal up to rounding otherwise.

    Source: alternating projection as in Tropp, Dhillon, Heath and Strohmer, "Designing structured tight frames via an
    alternating projection method", 2005; threshold, step and momentum are ours.

    Args:
        rows: (m, d) of unit norm, in general position; not changed.

    Returns:
        (m, d) rows of unit norm.
    """
    m, d = rows.shape
    if m <= d:
        basis, _ = np.linalg.qr(rows.T.astype(np.float64))
        return np.ascontiguousarray(basis.T, dtype=np.float32)
    bound = welch_bound(m, d)
    frame = torch.from_numpy(rows)
    for _ in range(ROUNDS):
        frame = _tight(frame)
    best, smallest = frame, _repel(frame, 0.0, push=False)[1]
    largest, move = smallest, torch.zeros_like(frame)
    for share in np.linspace(FIRST, LAST, PASSES).tolist():
        push, largest, pairs = _repel(frame, max(bound, share * largest))
        if largest < smallest:
            best, smallest = frame, largest
        move = MOMENTUM * move - push / (2.0 + 2.0 * pairs / (m * d))
        frame = _tight(_unit(frame + move))
    if _repel(frame, 0.0, push=False)[1] < smallest:
        best = frame
    spread: Singles = best.numpy()
    return spread


def _unit(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / norms


def _tight(rows: Tensor) -> Tensor:
    """Nearest tight frame, then unit rows; a direction that the rows have lost stays lost."""
    values, vectors = torch.linalg.eigh((rows.T @ rows).double())
    root = vectors * values.clamp_min(1e-12).rsqrt() @ vectors.T
    return _unit(rows @ root.float())


def _repel(rows: Tensor, threshold: float, *, push: bool = True) -> tuple[Tensor, float, int]:
    """Sum over j of the soft threshold of cos(i, j) times y_j; also the largest |cosine| and the pairs beyond.

    Args:
        rows: (m, d) of unit norm.
        threshold: Cosines up to it do not count.
        push: Whether to form the sum, which is two thirds of the work.

    Returns:
        The sum (m, d), the largest |cosine| (at least `threshold`), and the number of pairs above the threshold.
    """
    m = len(rows)
    total, largest, pairs = torch.zeros_like(rows), 0.0, 0
    buffer = rows.new_empty(min(BLOCK, m) * m)
    for first in range(0, m, BLOCK):
        block, rest = rows[first : first + BLOCK], rows[first:]  # pairs within the block are seen from both ends
        n = len(block)
        cosines = torch.mm(block, rest.T, out=buffer[: n * len(rest)].view(n, len(rest)))
        cosines.diagonal().zero_()
        excess = torch.nn.functional.softshrink(cosines, threshold)
        low, high = torch.aminmax(excess)
        largest = max(largest, -low.item(), high.item())
        if push:
            pairs += int(torch.count_nonzero(excess))
            total[first : first + n].addmm_(excess, rest)
            total[first + n :].addmm_(excess[:, n:].T, block)
    return total, threshold + largest, pairs
