"""Cutting a stream of activations into training batches of one size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.checks import as_float_tensor, check_finite, check_matrix
from darkmatter.errors import InputError

Activations = Iterable[Tensor | npt.NDArray[Any]]


@runtime_checkable
class Restartable(Protocol):
    """A stream that can begin at any token, so that a resumed run does not generate what it has seen."""

    def __iter__(self) -> Iterator[Tensor | npt.NDArray[Any]]:
        """Iterate from the first token."""
        ...

    def starting_at(self, token: int) -> Activations:
        """Give the same tokens in the same order, from the given one on; how they are batched does not matter."""
        ...


def skip(batches: Activations | Restartable, n_tokens: int) -> Activations:
    """Drop the first tokens of a stream: for free if it is `Restartable`, else by reading them.

    Args:
        batches: The stream.
        n_tokens: How many to drop.

    Returns:
        The rest.
    """
    if n_tokens == 0:
        return batches
    return batches.starting_at(n_tokens) if isinstance(batches, Restartable) else _after(batches, n_tokens)


def _after(batches: Activations, n_tokens: int) -> Iterator[Tensor | npt.NDArray[Any]]:
    left = n_tokens
    for batch in batches:
        if left < len(batch):
            yield batch[left:]
        left = max(0, left - len(batch))


def rebatch(batches: Activations, batch_size: int, *, first_token: int = 0) -> Iterator[Tensor]:
    """Re-slice activations of any row counts into batches of exactly `batch_size` rows, in the same order.

    The last rows that fill no batch are dropped. What comes out does not depend on how the caller cut the stream, and
    every row is checked before it is yielded.

    Args:
        batches: Arrays (n, d_model) of any n ≥ 0, of one width.
        batch_size: Rows per batch.
        first_token: Number of the first token, for messages.

    Yields:
        Float32 tensors (batch_size, d_model), each its own memory.

    Raises:
        InputError: An array that is not floating, of another width, or not finite; names the array and the token.
    """
    out: Tensor | None = None
    filled, n_tokens = 0, first_token
    for number, raw in enumerate(batches):
        name = f"activation batch {number}"
        x = as_float_tensor(raw, name)
        check_matrix(x, name, d=None if out is None else out.shape[1])
        rows = x.float()
        _check_tokens(rows, name, n_tokens)
        n_tokens += len(rows)
        if out is None:
            out = rows.new_empty(batch_size, rows.shape[1])
        while len(rows):
            take = min(len(rows), batch_size - filled)
            out[filled : filled + take] = rows[:take]
            filled, rows = filled + take, rows[take:]
            if filled == batch_size:
                yield out
                out, filled = torch.empty_like(out), 0


def _check_tokens(rows: Tensor, name: str, before: int) -> None:
    try:
        check_finite(rows, name)
    except InputError as error:
        first = int((~rows.isfinite()).any(dim=1).nonzero()[0])
        raise InputError(f"token {before + first} of the stream: {error}") from None
