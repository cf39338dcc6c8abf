"""Some tokens of a world with every true part known, and a way to cut a stream of them into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from darkmatter.errors import InputError
from darkmatter.sae.kernels import bag_sum

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Integers, Singles


@dataclass(frozen=True, slots=True)
class WorldChunk:
    """Consecutive tokens of one stream, with the factors that made them.

    x = codes @ dictionary + dense_coords @ dense_map, in float32.

    Attributes:
        stream: Name of the stream.
        index: Number of the chunk in the stream.
        first_row: Row of the chunk that the first token here is; 0 unless it was cut by `rows`.
        codes: Amplitudes w ≥ 0, (n, m), float32.
        dense_coords: Dense coordinates g, (n, k), float32.
        x: Activations, (n, d), float32.
        groups: Document id of every token, (n,), distinct across chunks and streams.
        topics: Topic of every token's document, (n,).
        dictionary: Rows y_i, (m, d).
        dense_map: F, (k, d).
    """

    stream: str
    index: int
    first_row: int
    codes: csr_array
    dense_coords: Singles
    x: Singles
    groups: Integers
    topics: Integers
    dictionary: Singles
    dense_map: Singles

    def __len__(self) -> int:
        return len(self.x)

    @property
    def dense(self) -> Singles:
        """The dense part D = dense_coords @ dense_map, (n, d)."""
        return self.dense_coords @ self.dense_map

    def sparse_part(self, features: Sequence[int] | Integers) -> Singles:
        """The part of x made by some features: Σ_{i in features} w_i y_i.

        Args:
            features: Distinct indices in [0, m).

        Returns:
            (n, d), float32.

        Raises:
            InputError: An index is out of range or repeated.
        """
        chosen = np.zeros(self.codes.shape[1], dtype=bool)
        chosen[check_features(features, len(chosen))] = True
        keep = chosen[self.codes.indices]
        ends = np.concatenate([[0], np.cumsum(keep)])[self.codes.indptr]
        part = csr_array((self.codes.data[keep], self.codes.indices[keep], ends), shape=self.codes.shape)
        return sparse_product(part, self.dictionary)

    def rows(self, start: int, stop: int) -> WorldChunk:
        """Cut out consecutive tokens; the arrays are views where possible.

        Args:
            start: First row to keep.
            stop: Row after the last.

        Returns:
            The same stream and chunk number, with `first_row` moved.
        """
        if (start, stop) == (0, len(self)):
            return self
        return replace(
            self,
            first_row=self.first_row + start,
            codes=csr_array(self.codes[start:stop]),
            dense_coords=self.dense_coords[start:stop],
            x=self.x[start:stop],
            groups=self.groups[start:stop],
            topics=self.topics[start:stop],
        )


def sparse_product(codes: csr_array, dictionary: Singles) -> Singles:
    """Multiply codes (n, m) by a table (m, d): n · L0 · d operations, each row summed in order by one thread."""
    if dictionary.shape[1] == 0:
        return np.zeros((codes.shape[0], 0), dtype=np.float32)
    indices, offsets = (torch.from_numpy(part.astype(np.int32, copy=False)) for part in (codes.indices, codes.indptr))
    product: Singles = bag_sum(indices, torch.from_numpy(codes.data), offsets, torch.from_numpy(dictionary)).numpy()
    return product


def check_features(features: Sequence[int] | Integers, n_features: int | None) -> Integers:
    """Check feature indices.

    Args:
        features: Indices a user gave.
        n_features: m, or None where it is not known yet.

    Returns:
        The indices as int64, in the given order.

    Raises:
        InputError: Not whole numbers, out of range, or repeated.
    """
    index = np.asarray(features)
    if index.size == 0:
        return np.zeros(0, dtype=np.int64)
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise InputError(
            f"feature indices have dtype {index.dtype} and shape {index.shape}, expected a flat sequence of ints"
        )
    low, high = int(index.min()), int(index.max())
    if low < 0:
        raise InputError(f"feature index {low} is negative, expected indices from 0")
    if n_features is not None and high >= n_features:
        raise InputError(f"feature index {high} is out of range, expected at most {n_features - 1}")
    if len(np.unique(index)) < len(index):
        raise InputError("a feature index appears more than once: name every feature once")
    return index.astype(np.int64)


def rebatch(pieces: Iterator[tuple[Tensor, ...]], batch_size: int) -> Iterator[tuple[Tensor, ...]]:
    """Cut a stream of row-aligned tensors into batches of one size; only the last may be shorter.

    Args:
        pieces: Tuples of tensors with equal numbers of rows, any number of rows a piece.
        batch_size: Rows per batch, ≥ 1.

    Yields:
        Tuples in the same order; views of a piece where a batch lies inside one.
    """
    held: list[tuple[Tensor, ...]] = []
    size = 0
    for piece in pieces:
        start, n = 0, len(piece[0])
        while start < n:
            take = min(batch_size - size, n - start)
            held.append(tuple(column[start : start + take] for column in piece))
            start, size = start + take, size + take
            if size == batch_size:
                yield _joined(held)
                held, size = [], 0
    if held:
        yield _joined(held)


def _joined(held: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return held[0] if len(held) == 1 else tuple(torch.cat(column) for column in zip(*held, strict=True))
