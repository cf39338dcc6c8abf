"""A decoder as a dictionary of unit rows, and inner products of these rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.sae import SAE
from darkmatter.sae.kernels import bag_sum

GRAM_BYTES = 3 * 2**29
"""Most memory for the tables of inner products of all rows: 16,384 latents in float32 and bfloat16."""

_PIECE = 2**19
"""Numbers gathered at once: 2 MiB in float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Dictionary:
    """Unit rows of a decoder; amplitudes of unit rows are codes times `norms`.

    Attributes:
        rows: W_dec with rows of norm one, (s, d), float32 or float64; a row of zeros stays zero and is never chosen.
        norms: Norms of the decoder's rows, (s,).
        gram: Inner products of all rows, (s, s); None where they do not fit.
        coarse: The same in bfloat16, half as much to read, to find rows that may matter; `gram` itself in float64.
    """

    rows: Tensor
    norms: Tensor
    gram: Tensor | None
    coarse: Tensor | None

    @classmethod
    def of(cls, sae: SAE, *, gram_bytes: int = GRAM_BYTES) -> Dictionary:
        """Take an SAE's decoder.

        Args:
            sae: The SAE.
            gram_bytes: Most memory for `gram` and `coarse`.

        Returns:
            The dictionary, in float64 if the record is, else in float32.
        """
        table = sae.W_dec.to(torch.float64 if sae.dtype == torch.float64 else torch.float32)
        norms = torch.linalg.vector_norm(table, dim=1)
        rows = table / torch.where(norms > 0, norms, 1.0)[:, None]
        wide = rows.dtype == torch.float64
        fits = len(rows) ** 2 * (8 if wide else 6) <= gram_bytes
        gram = rows @ rows.T if fits else None
        return cls(rows, norms, gram, gram if gram is None or wide else gram.bfloat16())

    @property
    def n_latents(self) -> int:
        """Number s of rows."""
        return len(self.rows)

    def inner(self, latents: Tensor) -> Tensor:
        """Inner products of some rows of each token with each other, (n, k) → (n, k, k)."""
        if self.gram is not None:
            return self.between(latents, latents)
        n, k = latents.shape
        out = self.rows.new_empty(n, k, k)
        # in pieces that stay in cache: twice as fast
        piece = max(1, min(n, _PIECE // max(1, k * self.rows.shape[1])))
        table = self.rows.new_empty(piece * k, self.rows.shape[1])
        for low in range(0, n if k else 0, piece):
            some = latents[low : low + piece]
            picked = torch.index_select(self.rows, 0, some.flatten(), out=table[: some.numel()])
            picked = picked.view(len(some), k, -1)
            torch.bmm(picked, picked.mT, out=out[low : low + piece])
        return out

    def between(self, these: Tensor, those: Tensor) -> Tensor:
        """Inner products from the table, (n, k) and (n, c) → (n, k, c)."""
        assert self.gram is not None
        # one list of places in the flat table: forty times as fast as whole rows and a gather from them
        places = these[:, :, None] * len(self.rows) + those[:, None, :]
        return self.gram.view(-1).index_select(0, places.flatten()).view(places.shape)


def decode(dictionary: Dictionary, latents: Tensor, amplitudes: Tensor) -> Tensor:
    """Sum unit rows, amplitudes (n, k) of latents (n, k) → (n, d)."""
    return _bags(dictionary.rows, latents, amplitudes)


def explained(dictionary: Dictionary, latents: Tensor, amplitudes: Tensor) -> Tensor:
    """Inner products of all rows with what a code decodes to, roughly, amplitudes (n, k) of latents (n, k) → (n, s)."""
    if dictionary.coarse is None:
        return decode(dictionary, latents, amplitudes) @ dictionary.rows.T
    return _bags(dictionary.coarse, latents, amplitudes.to(dictionary.coarse.dtype))


def _bags(table: Tensor, latents: Tensor, amplitudes: Tensor) -> Tensor:
    n, k = latents.shape
    if k == 0:
        return table.new_zeros(n, table.shape[1])
    offsets = torch.arange(0, n * k + 1, k, device=latents.device)
    return bag_sum(latents.flatten(), amplitudes.flatten(), offsets, table)
