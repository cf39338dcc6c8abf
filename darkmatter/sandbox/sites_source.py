"""Three sites of a world as a stream: a batch of each at a time, all of the same tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from darkmatter.batch import Batch
from darkmatter.sandbox.chunk import rebatch

if TYPE_CHECKING:
    from darkmatter.sandbox.sites import Sites

EARLIER, TARGET = ("early", "write"), "late"
SITES = (*EARLIER, TARGET)
SAE_NAME = "surgical"
"""The SAE of every site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SitesPair:
    """The sites' stream: a resumable `darkmatter.batch.SitesSource`.

    Attributes:
        of: World and SAEs.
        n_tokens: Length of the stream.
        batch_size: Tokens per batch; only the last may be shorter.
        stream: Name of the stream.
    """

    of: Sites
    n_tokens: int
    batch_size: int
    stream: str

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return SITES

    @property
    def widths(self) -> Mapping[str, int]:
        """Activation width by site."""
        return dict.fromkeys(SITES, self.of.world.d_model)

    @property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the SAEs by site."""
        return dict.fromkeys(SITES, (SAE_NAME,))

    @property
    def description(self) -> dict[str, Any]:
        """World, SAEs and stream, as plain JSON types."""
        return {**self.of.to_dict(), "stream": self.stream, "n_tokens": self.n_tokens}

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        """Start again from the first batch."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[dict[str, Batch]]:
        """Yield the batches from number `start` on, without drawing the chunks before it.

        Args:
            start: Number of the first batch wanted, from 0.

        Yields:
            A batch of every site.
        """
        for groups, positions, *arrays in rebatch(self._pieces(start * self.batch_size), self.batch_size):
            batches = {}
            for i, site in enumerate(SITES):
                x, recon = arrays[2 * i : 2 * i + 2]
                batches[site] = Batch(x, {SAE_NAME: recon}, groups.numpy(), positions.numpy())
            yield batches

    def _pieces(self, start: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """Draw the chunks from token `start` on.

        Yields:
            Document ids, positions, then x and Sae(x) of every site.
        """
        world, size = self.of.world, self.of.world.chunk_tokens
        for index in range(start // size, -(-self.n_tokens // size)):
            low, high = max(start - index * size, 0), min(self.n_tokens - index * size, size)
            chunk = world.chunk(index, stream=self.stream)
            positions = np.arange(len(chunk)) % world.doc_tokens
            drawn = [array for pair in self.of.draw(chunk).values() for array in pair]
            rows: list[np.ndarray] = [chunk.groups, positions, *drawn]
            yield tuple(torch.from_numpy(array[low:high]) for array in rows)
