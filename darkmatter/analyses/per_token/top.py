"""The tokens with the most of something, a few in memory, with their neighbours in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.analyses.per_token.results import TopToken
from darkmatter.analyses.per_token.words import TokenText
from darkmatter.batch import Batch

_BEFORE, _AFTER = 16, 4


@dataclass(frozen=True, slots=True)
class _Found:
    value: float
    share: float
    square: float
    document: int
    position: int | None
    ids: tuple[int, ...]
    at: int


class TopTokens:
    """Keeps the N tokens with the largest values, at most one of a document, so that no document fills the list."""

    def __init__(self, size: int) -> None:
        """Start from nothing.

        Args:
            size: N.
        """
        self._size = size
        self._found: dict[int, _Found] = {}

    def add(self, batch: Batch, values: Tensor, share: Tensor, square: Tensor) -> None:
        """Look at a batch.

        Args:
            batch: The batch.
            values: What is compared, (n,); −∞ for tokens that are out of it.
            share: ‖r‖² / ‖e − ē‖² of every token, (n,).
            square: ‖r‖² of every token, (n,).
        """
        if not self._size:
            return
        floor = min((found.value for found in self._found.values()), default=-np.inf)
        full = len(self._found) == self._size
        rows = torch.nonzero(values > (floor if full else -np.inf))[:, 0].numpy()
        rows = rows[np.argsort(-values.numpy()[rows], kind="stable")]
        _, first = np.unique(batch.groups[rows], return_index=True)
        for row in rows[np.sort(first)[: self._size]]:
            self._take(batch, int(row), float(values[row]), float(share[row]), float(square[row]))

    def _take(self, batch: Batch, row: int, value: float, share: float, square: float) -> None:
        document = int(batch.groups[row])
        if document in self._found and self._found[document].value >= value:
            return
        ids, at = _window(batch, row)
        position = None if batch.positions is None else int(batch.positions[row])
        self._found[document] = _Found(value, share, square, document, position, ids, at)
        if len(self._found) > self._size:
            del self._found[min(self._found, key=lambda key: self._found[key].value)]

    def tokens(self, text: TokenText | None, mean_square: float) -> tuple[TopToken, ...]:
        """What was found, largest first.

        Args:
            text: Turns ids into text; without it ids are written.
            mean_square: Mean ‖r‖² of all tokens.
        """
        ordered = sorted(self._found.values(), key=lambda found: -found.value)
        return tuple(_shown(found, text, mean_square) for found in ordered)


def _window(batch: Batch, row: int) -> tuple[tuple[int, ...], int]:
    """Ids of a token and its neighbours of the same document, and which is its own."""
    if batch.token_ids is None:
        return (), 0
    low, high = max(0, row - _BEFORE), min(len(batch.groups), row + _AFTER + 1)
    apart = _breaks(batch, low, high)
    start = max((cut for cut in apart if cut <= row), default=low)
    stop = min((cut for cut in apart if cut > row), default=high)
    return tuple(batch.token_ids[start:stop].tolist()), row - start


def _breaks(batch: Batch, low: int, high: int) -> npt.NDArray[np.int64]:
    """Rows from low + 1 on that do not follow the row before them in one document."""
    same = np.diff(batch.groups[low:high]) == 0
    if batch.positions is not None:
        same &= np.diff(batch.positions[low:high]) == 1
    return low + 1 + np.flatnonzero(~same)


def _shown(found: _Found, text: TokenText | None, mean_square: float) -> TopToken:
    parts = (found.ids[: found.at], found.ids[found.at : found.at + 1], found.ids[found.at + 1 :])
    before, token, after = (_text(part, text) for part in parts)
    return TopToken(
        document=found.document,
        position=found.position,
        token_id=found.ids[found.at] if found.ids else None,
        share=found.share,
        square=found.square / mean_square if mean_square > 0 else 0.0,
        before=before,
        token=token,
        after=after,
    )


def _text(ids: Sequence[int], text: TokenText | None) -> str:
    return " ".join(map(str, ids)) if text is None or not ids else text.decode(ids)
