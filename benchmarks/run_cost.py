"""What a run costs in floating-point operations, memory and disk: arithmetic, not measurement.

One multiplication with its addition counts as two operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from darkmatter.moments import Layout
from darkmatter.products import SLICES

FOLDS = 20
SPLIT_PRODUCTS = SLICES * (SLICES + 1) // 2
"""Products of exact slices that replace one float64 product under `--precision split`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Gemma 2 model's sizes."""

    name: str
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int

    @property
    def block_weights(self) -> int:
        """Weights of one block's matrices."""
        attention = self.d_model * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.d_model * self.intermediate

    @property
    def weights(self) -> int:
        """Weights of all blocks and of the embedding, which the output shares."""
        return self.layers * self.block_weights + self.vocabulary * self.d_model

    def forward_flops(self, layer: int, context: int) -> int:
        """Operations per token of a forward pass that ends after a block; attention is computed in full (eager)."""
        return (layer + 1) * (2 * self.block_weights + 4 * context * self.heads * self.head_dim)


GEMMA_2_2B = Shape(
    name="Gemma-2-2B",
    layers=26,
    d_model=2304,
    heads=8,
    kv_heads=4,
    head_dim=256,
    intermediate=9216,
    vocabulary=256_000,
)
GEMMA_2_9B = Shape(
    name="Gemma-2-9B",
    layers=42,
    d_model=3584,
    heads=16,
    kv_heads=8,
    head_dim=256,
    intermediate=14_336,
    vocabulary=256_000,
)


def encode_flops(d_model: int, latents: int) -> int:
    """Operations per token of an encoder; the decoder, which is sparse, is left out."""
    return 2 * d_model * latents


def moments_flops(d_model: int, saes: int) -> int:
    """Operations per token of the sums: the product of x with the whole row, d × w."""
    return 2 * d_model * layout_of(d_model, saes).width


def sums_traffic(d_model: int, saes: int) -> float:
    """Bytes per token to read and write the float64 sums, once per block of rows."""
    layout = layout_of(d_model, saes)
    return 2 * 8 * d_model * layout.width / layout.block_rows


def solve_flops(d_model: int, saes: int, folds: int = FOLDS) -> float:
    """Operations of all leave-one-fold-out fits, once per run (docs/estimator.md)."""
    return folds * (d_model**3 / 3 + 4 * d_model**2 * (saes * d_model + 1 + 2 * saes))


def sums_bytes(d_model: int, saes: int, folds: int = FOLDS) -> int:
    """Memory of the sums of one site, float64, and of the blocks in which rows wait."""
    layout = layout_of(d_model, saes)
    return 8 * folds * layout.width * (d_model + layout.block_rows + 1)


def solve_bytes(d_model: int, saes: int, folds: int = FOLDS) -> int:
    """Memory that the solve adds for a while: log2 K + 3 arrays of d × w."""
    return round(8 * d_model * layout_of(d_model, saes).width * (math.log2(folds) + 3))


def sae_bytes(d_model: int, latents: int) -> int:
    """Memory of a JumpReLU SAE in float32."""
    return 4 * (2 * d_model * latents + 2 * latents + d_model)


def cache_bytes(d_model: int, tokens: int) -> int:
    """Disk of a bfloat16 cache of x at one site, with token id, document id and position (8 bytes each)."""
    return tokens * (2 * d_model + 24)


def cross_bytes(d_model: int, folds: int = FOLDS) -> int:
    """Memory of the cross-products of x with one SAE's errors, or of x with itself."""
    return 8 * folds * d_model**2


def layout_of(d_model: int, saes: int) -> Layout:
    """The columns of a site with some SAEs."""
    return Layout(d_model, tuple(map(str, range(saes))))
