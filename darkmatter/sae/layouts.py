"""Two ways to hold the latents that matter in a batch: listed, or as a full matrix.

A *layout* holds one value per (token, latent) pair: every pair that can have a code or a gradient is in it. The
activation functions are elementwise, so one formula serves both layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from darkmatter.sae.kernels import bag_sum, bag_sum_with_pullback, transpose
from darkmatter.sae.workspace import Workspace

Pullback = Callable[[Tensor], Tensor]
"""Maps the gradient of a scalar by a reconstruction, (n, d), to its gradient by the values that were decoded."""


class Layout(Protocol):
    """Pairs of token and latent, with the pre-activation of each."""

    @property
    def pre(self) -> Tensor:
        """Pre-activations, one per pair; owned by the layout."""
        ...

    def spread(self, per_latent: Tensor) -> Tensor:
        """Give every pair its latent's number: (d_sae,) to something that broadcasts with `pre`."""
        ...

    def decode(self, values: Tensor, table: Tensor) -> tuple[Tensor, Pullback]:
        """Give Σ_j values_ij · table_j, (n, d), and its pullback; `values` are zero outside the layout."""
        ...

    def gather(self, values: Tensor, rows: Tensor) -> Tensor:
        """Give Σ_i values_ij · rows_i, (d_sae, d)."""
        ...

    def totals(self, values: Tensor) -> Tensor:
        """Give Σ_i values_ij, (d_sae,)."""
        ...

    def counts(self, chosen: Tensor) -> Tensor:
        """Count the chosen pairs of every latent, (d_sae,), int64."""
        ...


@dataclass(slots=True, eq=False)
class DenseLayout:
    """Every pair, as a matrix (n, d_sae): faster than a list once more than a seventh of the pairs matter.

    Attributes:
        pre: (n, d_sae).
        workspace: Where products as large as `pre` go.
    """

    pre: Tensor
    workspace: Workspace

    def spread(self, per_latent: Tensor) -> Tensor:
        """Broadcast over tokens: the vector itself."""
        return per_latent

    def decode(self, values: Tensor, table: Tensor) -> tuple[Tensor, Pullback]:
        """Multiply by the table; the pullback is the product with its transpose, in a buffer of the workspace."""

        def pullback(upstream: Tensor) -> Tensor:
            return torch.mm(upstream, table.T, out=self.workspace.like("dense pullback", self.pre))

        return values @ table, pullback

    def gather(self, values: Tensor, rows: Tensor) -> Tensor:
        """Multiply by the transpose."""
        return values.T @ rows

    def totals(self, values: Tensor) -> Tensor:
        """Sum over tokens."""
        return values.sum(dim=0)

    def counts(self, chosen: Tensor) -> Tensor:
        """Count over tokens."""
        return chosen.sum(dim=0)


@dataclass(eq=False)
class SparseLayout:
    """Listed pairs, row-compressed: token i owns entries ``offsets[i]:offsets[i+1]``.

    Attributes:
        pre: (nnz,).
        latents: (nnz,), int64.
        offsets: (n+1,), int64.
        d_sae: Number of latents.
    """

    pre: Tensor
    latents: Tensor
    offsets: Tensor
    d_sae: int

    @cached_property
    def _by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        return transpose(self.latents, self.offsets, self.d_sae)

    def spread(self, per_latent: Tensor) -> Tensor:
        """Look the latents up."""
        return per_latent[self.latents]

    def decode(self, values: Tensor, table: Tensor) -> tuple[Tensor, Pullback]:
        """Sum table rows per token."""
        return bag_sum_with_pullback(self.latents, values, self.offsets, table)

    def gather(self, values: Tensor, rows: Tensor) -> Tensor:
        """Sum rows per latent."""
        entries, tokens, ends = self._by_latent
        return bag_sum(tokens, values[entries], ends, rows)

    def totals(self, values: Tensor) -> Tensor:
        """Sum over each latent's tokens, in their order."""
        entries, _, ends = self._by_latent
        return torch.segment_reduce(values[entries], "sum", offsets=ends)

    def counts(self, chosen: Tensor) -> Tensor:
        """Count over each latent's tokens."""
        return torch.bincount(self.latents[chosen], minlength=self.d_sae)


def listed(values: Tensor, positions: Tensor, shape: torch.Size) -> SparseLayout:
    """Make a list of pairs from their positions in a matrix.

    Args:
        values: Pre-activations, (nnz,).
        positions: Where they lie in row-major order, (nnz,), int64, rising.
        shape: (n, d_sae).

    Returns:
        The layout.
    """
    n, d_sae = shape
    offsets = torch.searchsorted(positions, torch.arange(0, n * d_sae + 1, d_sae, device=positions.device))
    return SparseLayout(values, positions % d_sae, offsets, d_sae)
