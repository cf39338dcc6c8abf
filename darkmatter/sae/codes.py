"""Sparse latent activations of a batch of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Latent activations, row-compressed: token i owns entries ``offsets[i]:offsets[i+1]``.

    A latent listed twice for one token counts with the sum of its values.

    Attributes:
        values: Activations, (nnz,), floating; a stored zero means "selected but not active".
        latents: Which latent each value belongs to, (nnz,), int64, in 0…d_sae−1.
        offsets: First entry of each token, and the end, (n+1,), int64, not decreasing.
        d_sae: Number of latents.

    Raises:
        InputError: Shapes, dtypes, offsets or latents break the rules above.
    """

    values: Tensor
    latents: Tensor
    offsets: Tensor
    d_sae: int

    def __post_init__(self) -> None:
        """Check the layout.

        Raises:
            InputError: See the class.
        """
        if self.latents.dtype != torch.int64 or self.offsets.dtype != torch.int64:
            got = f"{self.latents.dtype} and {self.offsets.dtype}"
            raise InputError(f"latents and offsets are {got}, expected torch.int64 for both")
        if self.values.ndim != 1 or self.values.shape != self.latents.shape:
            got = f"{tuple(self.values.shape)} and {tuple(self.latents.shape)}"
            raise InputError(f"values and latents have shapes {got}, expected two vectors of equal length (nnz,)")
        nnz = len(self.values)
        ends = (int(self.offsets[0]), int(self.offsets[-1])) if self.offsets.ndim == 1 and len(self.offsets) else None
        if ends != (0, nnz) or bool((self.offsets.diff() < 0).any()):
            raise InputError(f"offsets must be a vector (n+1,) that rises from 0 to nnz = {nnz}, got ends {ends}")
        if nnz and not 0 <= int(self.latents.min()) <= int(self.latents.max()) < self.d_sae:
            got = f"{int(self.latents.min())}…{int(self.latents.max())}"
            raise InputError(f"latents span {got}, expected 0…{self.d_sae - 1}: these codes belong to another SAE")

    @classmethod
    def from_dense(cls, dense: Tensor) -> Codes:
        """Keep the non-zero entries of a dense array of codes.

        Args:
            dense: (n, d_sae), floating.

        Returns:
            The same codes, sparse.
        """
        tokens, latents = dense.nonzero(as_tuple=True)
        counts = torch.bincount(tokens, minlength=len(dense))
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(dense[tokens, latents], latents, offsets, dense.shape[1])

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.offsets) - 1

    @property
    def l0(self) -> float:
        """Mean number of latents above zero per token; NaN without tokens."""
        return int((self.values > 0).sum()) / self.n_tokens if self.n_tokens else float("nan")

    def dense(self) -> Tensor:
        """Spell the zeros out: (n, d_sae), the dtype of `values`."""
        tokens = torch.arange(self.n_tokens, device=self.values.device).repeat_interleave(self.offsets.diff())
        out = self.values.new_zeros(self.n_tokens, self.d_sae)
        return out.index_put_((tokens, self.latents), self.values, accumulate=True)
