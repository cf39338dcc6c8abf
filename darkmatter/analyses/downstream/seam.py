"""What this analysis needs of a model, or of a world that stands in for one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from darkmatter.batch import Batch


class SplicedBatch(Protocol):
    """Some tokens of a site, with the losses that follow when other activations flow through it."""

    @property
    def batch(self) -> Batch:
        """The tokens whose activation is replaced, n of them."""
        ...

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Which of them have a loss: those with a next token in their document, (m,)."""
        ...

    def clean(self) -> Tensor:
        """Losses at `rows` with nothing replaced, in nats, (m,)."""
        ...

    def identity(self) -> Tensor:
        """The same with x taken out and put back, (m,)."""
        ...

    def losses(self, replacement: Tensor) -> Tensor:
        """The same with the activations of all n tokens replaced, each by its row of (n, d_model); (m,)."""
        ...


class SplicedLoss(Protocol):
    """A re-iterable stream of `SplicedBatch`es, the same every time."""

    @property
    def d_model(self) -> int:
        """Activation width."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the SAEs, the keys of every batch's `recons`."""
        ...

    @property
    def description(self) -> Mapping[str, Any]:
        """Where the tokens come from."""
        ...

    def __iter__(self) -> Iterator[SplicedBatch]:
        """Start again from the first batch."""
        ...
