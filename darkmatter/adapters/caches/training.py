"""Stored activations as a training stream: epochs over the store, each in a new order, from any token on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from torch import Tensor

from darkmatter.adapters.caches.stream import ActivationStream
from darkmatter.errors import InputError

_BLOCK = 64  # batches of one part of the stream that are put in a random order together


@dataclass(frozen=True, slots=True)
class StoredTraining:
    """A `darkmatter.sae.stream.Restartable` over stored activations, as long as it is asked to be.

    Blocks of 64 batches are read in their order; inside one the batches, and inside a batch the rows, are in a random
    order. One batch is in memory.

    Attributes:
        activations: The stream to draw from.
        n_tokens: Tokens in all; the last batch is cut to fit.
        seed: Seed of the orders.
    """

    activations: ActivationStream
    n_tokens: int
    seed: int

    def __iter__(self) -> Iterator[Tensor]:
        """Yield activations, (n, d_model)."""
        return self.starting_at(0)

    def starting_at(self, token: int) -> Iterator[Tensor]:
        """Yield the same tokens from a given one on; what lies before is read, and dropped.

        Args:
            token: Number of the first token wanted.

        Yields:
            Activations, (n, d_model).

        Raises:
            InputError: There is no token at all.
        """
        seen = 0
        for epoch in count():
            before = seen
            for x in self._epoch(epoch):
                part = x[: self.n_tokens - seen]
                fresh = part[max(0, token - seen) :]
                seen += len(part)
                if len(fresh):
                    yield fresh
                if seen >= self.n_tokens:
                    return
            if seen == before:
                raise InputError("the stored activations have no token to train on")

    def _epoch(self, epoch: int) -> Iterator[Tensor]:
        generator = np.random.default_rng([self.seed, epoch])
        for start in count(0, _BLOCK):
            found = False
            for number in generator.permutation(_BLOCK):
                batch = next(self.activations.batches_from(start + int(number)), None)
                if batch is not None:
                    found = True
                    yield batch.x[generator.permutation(len(batch.x))]
            if not found:
                return


def stored_training(activations: ActivationStream, *, n_tokens: int, seed: int) -> StoredTraining:
    """Cycle over stored activations, in a new seeded order every epoch, until `n_tokens` tokens were yielded.

    Args:
        activations: The stream to draw from.
        n_tokens: Tokens to yield in all.
        seed: Seed of the orders.

    Returns:
        The stream.

    Raises:
        InputError: `n_tokens` is below 1.
    """
    if n_tokens < 1:
        raise InputError(f"n_tokens is {n_tokens}, expected at least 1")
    return StoredTraining(activations, n_tokens, seed)
