"""What a model loses when something else flows through a site: its loss on the next tokens, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.adapters.activations import ModelActivations
from darkmatter.adapters.backoff import BackOff
from darkmatter.adapters.next_tokens import Rows, loss_parts, next_token_losses, targets
from darkmatter.adapters.reading import splice
from darkmatter.batch import Batch, BatchSource
from darkmatter.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class ModelLosses:
    """A re-iterable stream of batches with the losses that a replacement at the site leads to.

    Attributes:
        activations: The stream of activations, of one site.
        source: What each SAE, and each control, makes of them: a `ModelSource` of these activations, or one around it.

    Raises:
        InputError: The model has no head, or there are several sites.
    """

    activations: ModelActivations
    source: BatchSource
    _parts: BackOff = field(init=False, repr=False)

    def __post_init__(self) -> None:
        loaded = self.activations.loaded
        if not loaded.has_head:
            raise InputError(
                f"{loaded.name} has no head that predicts tokens, so it has no loss: expected a causal language model"
            )
        _ = self.activations.site  # raises where there are several
        length = self.activations.sequences.tokens.context_length
        parts = loss_parts(loaded, length, remedy="lower the context length, or load the model in bfloat16")
        object.__setattr__(self, "_parts", parts)

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.source.d_model

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the SAEs and controls."""
        return self.source.names

    @property
    def description(self) -> Mapping[str, Any]:
        """The source's description."""
        return self.source.description

    def __iter__(self) -> Iterator[ModelLossBatch]:
        """Yield every batch, from the first document on; its losses are computed when they are asked for.

        Raises:
            InputError: The source is not one of these activations.
        """
        sequences = iter(self.activations.sequences)
        for batch in self.source:
            rows = Rows.of(list(islice(sequences, self.activations.batch_docs)))
            yield ModelLossBatch(self.activations, batch, rows, _replaced(rows, batch), self._parts)


@dataclass(frozen=True, slots=True, eq=False)
class ModelLossBatch:
    """One batch of `ModelLosses`.

    Attributes:
        activations: The stream that it is of.
        batch: The counted tokens, n of them.
        sequences: The sequences that hold them, with every position.
        replaced: Which positions a replacement is put at, (rows, pos): those of the tokens, in order. The others, such
            as BOS, are left as they are.
    """

    activations: ModelActivations
    batch: Batch
    sequences: Rows
    replaced: Tensor
    _parts: BackOff = field(repr=False)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Which of the tokens have a loss: those with a next token in their document, (m,)."""
        number = torch.full(self.replaced.shape, -1)
        number[self.replaced] = torch.arange(int(self.replaced.sum()))
        found: npt.NDArray[np.int64] = number[:, :-1][self._valid].numpy()
        return found

    def clean(self) -> Tensor:
        """Losses of the model alone: −log p(next token) at every token of `rows`, in nats, (m,)."""
        return self._run(lambda _: nullcontext())

    def identity(self) -> Tensor:
        """The same with what flows through the site taken out and put back, (m,): the clean losses, bit for bit."""
        return self._run(lambda part: self._splice(part, lambda x: x))

    def losses(self, replacement: Tensor) -> Tensor:
        """The same with other activations at the site.

        Args:
            replacement: What the model goes on with at the tokens, (n, d_model).

        Returns:
            (m,), float32, on the CPU.
        """
        ends = torch.cat([torch.zeros(1, dtype=torch.long), self.replaced.sum(dim=1).cumsum(dim=0)]).tolist()

        def hook(part: slice) -> AbstractContextManager[None]:
            return self._splice(part, lambda _: replacement[ends[part.start] : ends[part.stop]])

        return self._run(hook)

    @property
    def _valid(self) -> Tensor:
        return targets(self.sequences) & self.replaced[:, :-1]

    def _run(self, hook: Callable[[slice], AbstractContextManager[None]]) -> Tensor:
        return next_token_losses(self.activations.loaded, self.sequences, hook, self._parts)[self._valid]

    def _splice(self, part: slice, replace: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        where = self.replaced[part]

        def exchange(x: Tensor) -> Tensor:
            keep = where.to(x.device)
            out = x.clone()
            out[keep] = replace(x[keep]).to(device=x.device, dtype=x.dtype)
            return out

        return splice(self.activations.loaded.model, self.activations.site, exchange)


def _replaced(rows: Rows, batch: Batch) -> Tensor:
    """Where the tokens of a batch stand: the counted positions, but for those that a filter on norms dropped.

    Raises:
        InputError: They stand nowhere: the batch is of another stream.
    """
    where = rows.counted.clone()
    if int(where.sum()) != len(batch.groups) and batch.positions is not None:
        length = int(rows.positions.max()) + 1
        kept = torch.from_numpy(batch.groups * length + batch.positions)
        where &= torch.isin(rows.groups * length + rows.positions, kept)
    same = torch.equal(rows.groups[where], torch.from_numpy(batch.groups))
    if not same or (
        batch.token_ids is not None and not torch.equal(rows.ids[where], torch.from_numpy(batch.token_ids))
    ):
        raise InputError(
            "the source yields other tokens than the activations read, expected a ModelSource of the same activations"
        )
    return where
