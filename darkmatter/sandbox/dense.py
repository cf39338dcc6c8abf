"""The dense part of an activation: Gaussian coordinates in a random subspace, scaled to a share of the variance."""

from __future__ import annotations

import numpy as np

from darkmatter.sandbox.features import Singles, orthonormal_rows
from darkmatter.sandbox.seeding import generator


def dense_map(dense_dim: int, *, d_model: int, share: float, sparse_variance: float, seed: int) -> Singles:
    """Map F from dense coordinates g ~ N(0, I_k) to activations.

    F = a Q with orthonormal rows Q, so Var(g F) = k a². The share is of the whole, hence
    k a² = share / (1 − share) · Var S, with S the sparse part.

    Args:
        dense_dim: k; 0 gives an empty map.
        d_model: d.
        share: Var(g F) / Var x, in [0, 1).
        sparse_variance: Var S, the trace of the sparse part's population covariance.
        seed: The world's seed.

    Returns:
        F, (k, d).
    """
    if dense_dim == 0:
        return np.zeros((0, d_model), dtype=np.float32)
    frame = orthonormal_rows(generator("dense map", seed), rows=dense_dim, width=d_model)
    scale = float(np.sqrt(share / (1.0 - share) * sparse_variance / dense_dim))
    return (scale * frame).astype(np.float32)
