"""Which positions of a document count."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionPolicy:
    """Positions that are dropped: the ends of every document, special tokens, and outliers in norm.

    The model reads every token; the policy says which activations are used. Positions are those in the document as
    the model reads it, so a document that was cut at the context length ends where it was cut.

    Attributes:
        skip_first: Positions dropped at the start of every document; 1 drops BOS, whose activation is an outlier.
        skip_last: Positions dropped at its end.
        drop_special: Drop BOS, EOS, padding and the tokenizer's other special tokens wherever they stand.
        norm_filter: Drop an activation whose norm exceeds this multiple of the median norm, site by site; the median
            is that of the pilot, the counted positions of the first documents. None keeps all.

    Raises:
        InputError: A negative number of positions, or a multiple that is not above 1.
    """

    skip_first: int = 1
    skip_last: int = 0
    drop_special: bool = True
    norm_filter: float | None = None

    def __post_init__(self) -> None:
        for name in ("skip_first", "skip_last"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.norm_filter is not None and not 1 < self.norm_filter < math.inf:
            raise InputError(
                f"norm_filter is {self.norm_filter:g}, expected above 1: it is a multiple of the median norm, such as "
                "10"
            )

    def check(self, context_length: int) -> None:
        """Check that a document as long as the context has a position left.

        Args:
            context_length: Longest document, in tokens.

        Raises:
            InputError: It has not.
        """
        if self.skip_first + self.skip_last >= context_length:
            named = f"skip_first is {self.skip_first}" + (f", skip_last {self.skip_last}" if self.skip_last else "")
            raise InputError(
                f"{named}, expected at most {context_length - 1} together: with context_length {context_length} no "
                "position would be left"
            )

    def mask(self, ids: npt.NDArray[np.int64], special_ids: Collection[int]) -> npt.NDArray[np.bool_]:
        """Say which positions of one document count, before any norm is known.

        Args:
            ids: Its token ids, (length,).
            special_ids: The tokenizer's special tokens.

        Returns:
            True where a position counts, (length,).
        """
        counted = np.ones(len(ids), dtype=np.bool_)
        counted[: self.skip_first] = False
        counted[max(len(ids) - self.skip_last, 0) :] = False
        if self.drop_special and special_ids:
            counted &= ~np.isin(ids, np.fromiter(special_ids, dtype=np.int64))
        return counted

    @property
    def description(self) -> Mapping[str, Any]:
        """The policy, for the report."""
        return {
            "skip_first": self.skip_first,
            "skip_last": self.skip_last,
            "drop_special": self.drop_special,
            "norm_filter": self.norm_filter,
        }
