"""Documents that are token ids already: one row of an array each, mapped from disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from darkmatter.adapters.documents import TokenDocument
from darkmatter.errors import FileFormatError, InputError

_BLOCK = 2**22  # ids looked at together


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenRows:
    """A `TokenStream` of the rows of an array; build it with `token_file` or `token_rows`.

    Attributes:
        rows: Token ids, (n_documents, length), any integer dtype; may be a memory map.
        pad_id: Value that fills rows up at their end; None if every row is full.
        context_length: Longest document, in tokens; a longer row is cut.
        name: What the array is called in the report.
        digest: Hash of shape, dtype and every id.
        n_tokens: Tokens of all documents as they are read, without padding.
        highest: Largest id.
    """

    rows: npt.NDArray[Any] = field(repr=False)
    pad_id: int | None
    context_length: int
    name: str | None
    digest: str
    n_tokens: int
    highest: int

    @property
    def description(self) -> Mapping[str, Any]:
        """Name and content."""
        return {
            "text": self.name,
            "text_fingerprint": self.digest,
            "tokenizer": "none: token ids were given",
            "pad_id": self.pad_id,
            "context_length": self.context_length,
            "bos": "as given in the token ids",
        }

    def __iter__(self) -> Iterator[TokenDocument]:
        """Yield every row."""
        return self.part(0, 1)

    def part(self, rank: int, size: int) -> Iterator[TokenDocument]:
        """Yield the rows whose number leaves the rest `rank` when divided by `size`; others are not read."""
        for index in range(rank, len(self.rows), size):
            row = np.array(self.rows[index], dtype=np.int64)
            length = int(_lengths(row[None], self.pad_id)[0])
            yield TokenDocument(index, row[: min(length, self.context_length)], truncated=length > self.context_length)


def token_file(path: Path | str, *, pad_id: int | None = None, context_length: int | None = None) -> TokenRows:
    """Open a `.npy` file of token ids without reading it into memory; every id is looked at once.

    Args:
        path: The file: integers, (n_documents, length).
        pad_id: Value that fills rows up at their end (it may be negative); None if every row is full.
        context_length: Longest document, in tokens; None takes whole rows.

    Returns:
        The stream.

    Raises:
        FileFormatError: Missing, truncated, foreign, pickled, or not such an array.
    """
    file = Path(path)
    if file.suffix != ".npy" or not file.is_file():
        raise FileFormatError(f"{file} is not a .npy file, expected token ids, one row per document", file)
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header is evaluated by numpy and fails in whatever way its text suggests
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileFormatError(
            f"{file} cannot be opened as .npy ({reason}): it is truncated, foreign or holds Python objects", file
        ) from None
    try:
        return token_rows(rows, pad_id=pad_id, context_length=context_length, name=file.name)
    except InputError as error:
        raise FileFormatError(f"{file}: {error}", file) from None


def token_rows(
    rows: npt.NDArray[Any], *, pad_id: int | None = None, context_length: int | None = None, name: str | None = None
) -> TokenRows:
    """Take an array of token ids as documents.

    Args:
        rows: Integers, (n_documents, length).
        pad_id: Value that fills rows up at their end; None if every row is full.
        context_length: Longest document, in tokens; None takes whole rows.
        name: What the array is called in the report.

    Returns:
        The stream.

    Raises:
        InputError: Another shape or dtype, an id below 0 that is not padding, or an impossible context length.
    """
    if rows.dtype.kind not in "iu":
        raise InputError(f"token ids are {rows.dtype}, expected integers: save them with `.astype('int32')`")
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(
            f"token ids have shape {rows.shape}, expected (n_documents, length): one row per document, the short ones "
            "filled up with a padding id"
        )
    if context_length is not None and context_length < 1:
        raise InputError(f"context_length is {context_length}, expected at least 1")
    longest = rows.shape[1] if context_length is None else min(context_length, rows.shape[1])
    digest = hashlib.blake2b(repr((rows.shape, rows.dtype.str)).encode(), digest_size=16)
    n_tokens, highest = 0, -1
    step = max(1, _BLOCK // rows.shape[1])
    for low in range(0, len(rows), step):
        block = np.ascontiguousarray(rows[low : low + step])
        digest.update(block.data)
        lengths = _lengths(block, pad_id)
        real = np.arange(block.shape[1]) < lengths[:, None]
        bad = (real & (block < 0)).any(axis=1)
        if bad.any():
            row = low + int(bad.argmax())
            raise InputError(
                f"row {row} holds an id below 0 before its end, expected ids from 0: only padding may be negative, and "
                "only at the end of a row (pad_id)"
            )
        n_tokens += int(np.minimum(lengths, longest).sum())
        highest = max(highest, int(block.max(where=real, initial=0)))
    return TokenRows(
        rows=rows,
        pad_id=pad_id,
        context_length=longest,
        name=name,
        digest=digest.hexdigest(),
        n_tokens=n_tokens,
        highest=highest,
    )


def _lengths(block: npt.NDArray[Any], pad_id: int | None) -> npt.NDArray[np.int64]:
    """Tokens of every row: what comes before the padding at its end."""
    width = block.shape[1]
    if pad_id is None:
        return np.full(len(block), width, dtype=np.int64)
    real = block != pad_id
    return np.where(real.any(axis=1), width - real[:, ::-1].argmax(axis=1), 0)
