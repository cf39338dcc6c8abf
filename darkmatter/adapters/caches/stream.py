"""What every kind of stored activations has in common: a stream of batches that can start anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from darkmatter.adapters.run_saes import TokenBatch

__all__ = ["ActivationStream", "StoredBatch", "TokenBatch"]


@runtime_checkable
class ActivationStream(Protocol):
    """Activations of one site; the same batches, in the same order, every time. A model's stream is one."""

    @property
    def d_model(self) -> int:
        """Activation width."""
        ...

    @property
    def description(self) -> Mapping[str, Any]:
        """What decides which tokens these are, as JSON."""
        ...

    def batches_from(self, start: int) -> Iterator[TokenBatch]:
        """Yield batch number `start` and those after it."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class StoredBatch:
    """Some tokens that were read from disk.

    Attributes:
        x: Activations, (n, d_model), float32.
        groups: Document id of each token, (n,).
        positions: Position of each token in its document, (n,); None where it was not kept.
        token_ids: Vocabulary ids, (n,); None where they were not kept.
    """

    x: Tensor
    groups: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64] | None = None
    token_ids: npt.NDArray[np.int64] | None = None
