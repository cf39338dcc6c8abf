"""Tokens without reconstructions, for an analysis that runs the SAEs itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from darkmatter.batch import Batch, BatchSource


@dataclass(frozen=True, slots=True)
class TokensOnly:
    """A source as a stream of tokens; what its SAEs make of them is dropped.

    Attributes:
        source: The source.
    """

    source: BatchSource

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.source.d_model

    @property
    def names(self) -> tuple[str, ...]:
        """No SAEs."""
        return ()

    @property
    def description(self) -> Mapping[str, Any]:
        """The source's."""
        return self.source.description

    def __iter__(self) -> Iterator[Batch]:
        """Yield every batch without reconstructions."""
        return (replace(batch, recons={}) for batch in self.source)
