"""A model's activations as a training stream: epochs over the text, each in a new order, from any token on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from torch import Tensor

from darkmatter.adapters.activations import ModelActivations
from darkmatter.adapters.sequences import TokenSequence
from darkmatter.errors import InputError

_BLOCK = 4096
"""Sequences held while they are put in a new order."""


@dataclass(frozen=True, slots=True)
class TrainingActivations:
    """A `darkmatter.sae.stream.Restartable` over the documents of a model's activations, as long as it is asked to be.

    Attributes:
        activations: The stream to draw from, of one site.
        n_tokens: Tokens in all; the last batch is cut to fit.
        seed: Seed of the orders.
    """

    activations: ModelActivations
    n_tokens: int
    seed: int

    def __iter__(self) -> Iterator[Tensor]:
        """Yield activations, (n, width), float32: the tokens of `batch_docs` sequences at a time."""
        return self.starting_at(0)

    def starting_at(self, token: int) -> Iterator[Tensor]:
        """Yield the same tokens from a given one on; the model does not read what lies before.

        (With a filter on norms it does, since only the activations tell which tokens count.)

        Args:
            token: Number of the first token wanted.

        Yields:
            Activations, (n, width), float32.

        Raises:
            InputError: A whole epoch has no token.
        """
        site, seen = self.activations.site, 0
        for epoch in count():
            before = seen
            for sequences in self._epoch(epoch):
                known = None if self.activations.limits else sum(int(part.counted.sum()) for part in sequences)
                if known is not None and seen + known <= token:
                    seen += known
                else:
                    x = self.activations.read(sequences)[site].x[: self.n_tokens - seen]
                    fresh = x[max(0, token - seen) :]
                    seen += len(x)
                    if len(fresh):
                        yield fresh
                if seen >= self.n_tokens:
                    return
            if seen == before:
                raise InputError("no token is left to train on: this share is empty, or the filter on norms drops all")

    def _epoch(self, epoch: int) -> Iterator[list[TokenSequence]]:
        """Read blocks of sequences in the order of the text, put each in a random order, and cut it into batches.

        Yields:
            At most `batch_docs` sequences.
        """
        generator = np.random.default_rng([self.seed, epoch])
        rows, size = iter(self.activations.sequences), self.activations.batch_docs
        while block := list(islice(rows, _BLOCK)):
            order = [block[place] for place in generator.permutation(len(block))]
            for low in range(0, len(order), size):
                yield order[low : low + size]


def training_activations(activations: ModelActivations, *, n_tokens: int, seed: int) -> TrainingActivations:
    """Cycle over the documents, in a new seeded order every epoch, until `n_tokens` tokens were yielded.

    Args:
        activations: The stream to draw from, of one site.
        n_tokens: Tokens to yield in all.
        seed: Seed of the orders.

    Returns:
        The stream; a resumed training skips what it has seen without running the model.

    Raises:
        InputError: `n_tokens` is below 1, or there are several sites.
    """
    if n_tokens < 1:
        raise InputError(f"n_tokens is {n_tokens}, expected at least 1")
    _ = activations.site  # refuses several
    return TrainingActivations(activations, n_tokens, seed)
