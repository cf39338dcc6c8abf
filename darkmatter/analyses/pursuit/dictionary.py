"""A decoder as a dictionary of unit rows, and the candidates among them from which each token may choose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.sae import SAE
from darkmatter.sae.kernels import bag_sum

GRAM_BYTES = 2**30
"""Most memory for the table of inner products of all rows: 16,384 latents in float32."""

_PIECE = 2**19
"""Numbers gathered at once: 2 MiB in float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Dictionary:
    """Unit rows of a decoder; amplitudes of unit rows are codes times `norms`.

    Attributes:
        rows: W_dec with rows of norm one, (s, d), float32 or float64; a row of zeros stays zero and is never chosen.
        norms: Norms of the decoder's rows, (s,).
        gram: Inner products of all rows, (s, s); None where they do not fit.
    """

    rows: Tensor
    norms: Tensor
    gram: Tensor | None

    @classmethod
    def of(cls, sae: SAE, *, gram_bytes: int = GRAM_BYTES) -> Dictionary:
        """Take an SAE's decoder.

        Args:
            sae: The SAE.
            gram_bytes: Most memory for `gram`.

        Returns:
            The dictionary, in float64 if the record is, else in float32.
        """
        table = sae.W_dec.to(torch.float64 if sae.dtype == torch.float64 else torch.float32)
        norms = torch.linalg.vector_norm(table, dim=1)
        rows = table / torch.where(norms > 0, norms, 1.0)[:, None]
        fits = len(rows) ** 2 * rows.element_size() <= gram_bytes
        return cls(rows, norms, rows @ rows.T if fits else None)

    @property
    def n_latents(self) -> int:
        """Number s of rows."""
        return len(self.rows)

    def inner(self, latents: Tensor) -> Tensor:
        """Inner products of some rows of each token with each other, (n, k) → (n, k, k)."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What some tokens may choose from; a choice is a position 0 … C − 1.

    Attributes:
        dictionary: The rows.
        latents: Latent at every position, (n, C); None where every token may choose from all, position = latent.
        inner: Inner products of the candidates with each other, (n, C, C); None with `latents`.
        correlations: Inner products of the candidates with the target, (n, C); -inf for padding.
        floor: Correlations up to this are rounding, (n,).
        support_inner: Inner products of the encoder's latents with each other, (n, k, k).
        support_correlations: And with the target, (n, k).
    """

    dictionary: Dictionary
    latents: Tensor | None
    inner: Tensor | None
    correlations: Tensor
    floor: Tensor
    support_inner: Tensor
    support_correlations: Tensor

    def row(self, position: Tensor) -> Tensor:
        """Inner products of one candidate of each of the first m tokens with all candidates, (m,) → (m, C)."""
        if self.inner is not None:
            return self.inner[torch.arange(len(position), device=position.device), position]
        rows, gram = self.dictionary.rows, self.dictionary.gram
        return rows[position] @ rows.T if gram is None else gram[position]

    def latent(self, positions: Tensor) -> Tensor:
        """Latents at some positions, (n, k) → (n, k)."""
        return positions if self.latents is None else self.latents.gather(1, positions)


def decode(dictionary: Dictionary, latents: Tensor, amplitudes: Tensor) -> Tensor:
    """Sum unit rows, amplitudes (n, k) of latents (n, k) → (n, d)."""
    n, k = latents.shape
    if k == 0:
        return dictionary.rows.new_zeros(n, dictionary.rows.shape[1])
    offsets = torch.arange(0, n * k + 1, k, device=latents.device)
    return bag_sum(latents.flatten(), amplitudes.flatten(), offsets, dictionary.rows)
