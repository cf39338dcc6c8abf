"""Array files, one or many, as a stream of activations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.adapters.array_files import load_groups
from darkmatter.adapters.caches.rows import Rows, open_rows
from darkmatter.adapters.caches.stream import StoredBatch
from darkmatter.adapters.group_ids import as_group_ids
from darkmatter.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """Which rows belong together and which of them count.

    Attributes:
        groups: Document id of every row, (n,); None where contexts, or single rows, are the documents.
        length: Rows in a context, all contexts being equally long; None where that is not known.
        skip_first: Rows dropped at the start of every context.
        skip_last: Rows dropped at its end.
    """

    groups: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    length: int | None = None
    skip_first: int = 0
    skip_last: int = 0

    def check(self, n: int) -> None:
        """Check that the contexts divide the rows.

        Args:
            n: Number of rows.

        Raises:
            InputError: They do not, nothing would be left of a context, or one document id per row is not there.
        """
        if min(self.skip_first, self.skip_last) < 0:
            raise InputError("skip_first and skip_last are expected to be 0 or more")
        if self.length is None and (self.skip_first or self.skip_last):
            raise InputError("skip_first and skip_last need context_length: where a context starts is not known")
        if self.length is not None:
            if self.length < 1 or n % self.length:
                raise InputError(f"context_length is {self.length}, expected one that divides the {n} rows")
            if self.skip_first + self.skip_last >= self.length:
                raise InputError(
                    f"skip_first and skip_last drop {self.skip_first + self.skip_last} rows, expected fewer than "
                    f"context_length {self.length}: nothing would be left"
                )
        if self.groups is not None and len(self.groups) != n:
            raise InputError(f"groups has shape ({len(self.groups)},), expected ({n},): one document id per row")

    def select(self, low: int, high: int) -> tuple[Tensor | None, npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
        """Say which of some rows count.

        Args:
            low: The first row.
            high: One after the last.

        Returns:
            Places of those that count (None for all), their document ids, their positions if known.
        """
        rows = np.arange(low, high, dtype=np.int64)
        positions = None if self.length is None else rows % self.length
        if self.groups is not None:
            groups = self.groups[low:high].copy()
        else:
            groups = rows if self.length is None else rows // self.length
        if positions is None or self.length is None or not (self.skip_first or self.skip_last):
            return None, groups, positions
        kept = (positions >= self.skip_first) & (positions < self.length - self.skip_last)
        return torch.from_numpy(kept.nonzero()[0]), groups[kept], positions[kept]

    def count(self, n: int) -> int:
        """How many of n rows count."""
        return n if self.length is None else n // self.length * (self.length - self.skip_first - self.skip_last)

    @property
    def description(self) -> dict[str, Any]:
        """The documents and positions, for the report."""
        if self.groups is not None:
            documents = "ids given"
        else:
            documents = "each token is its own document" if self.length is None else "each context is a document"
        facts: dict[str, Any] = {"documents": documents}
        if self.groups is not None:
            facts["documents_fingerprint"] = hashlib.blake2b(self.groups.tobytes(), digest_size=16).hexdigest()
        if self.length is not None:
            facts |= {"context_length": self.length, "skip_first": self.skip_first, "skip_last": self.skip_last}
        return facts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayActivations:
    """An `ActivationStream` over the rows of array files; build it with `array_activations` or `raw_activations`.

    Attributes:
        rows: The activations.
        contexts: Documents, and the rows that count.
        batch_size: Rows read for a batch.
        description: What goes into the report.
    """

    rows: Rows
    contexts: Contexts
    batch_size: int
    description: Mapping[str, Any] = field(repr=False)

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.rows.width

    def __iter__(self) -> Iterator[StoredBatch]:
        """Yield every batch, from the first row on."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[StoredBatch]:
        """Yield batch number `start` and those after it; earlier rows are not touched."""
        n = len(self.rows)
        for low in range(start * self.batch_size, n, self.batch_size):
            high = min(low + self.batch_size, n)
            kept, groups, positions = self.contexts.select(low, high)
            x = self.rows.read(low, high)
            yield StoredBatch(x=x if kept is None else x[kept], groups=groups, positions=positions)


def array_activations(
    files: Path | str | Sequence[Path | str],
    docs: Any = None,
    *,
    context_length: int | None = None,
    skip_first: int = 0,
    skip_last: int = 0,
    batch_size: int = 4096,
    description: Mapping[str, Any] | None = None,
) -> ArrayActivations:
    """Open array files as one stream of activations, to be joined with SAEs.

    Args:
        files: A `.npy` or `.safetensors` file, a pattern such as ``acts-*.npy``, or a list of files in their order.
        docs: File of the document ids of all rows, or the ids; None makes each context a document, or without
            `context_length` each token, which is right only for independent tokens.
        context_length: Rows in a context, if all are equally long.
        skip_first: Rows dropped at the start of every context; 1 drops BOS.
        skip_last: Rows dropped at its end.
        batch_size: Rows read for a batch; changes results by rounding only.
        description: Facts to add to the description (model, site, …): plain numbers and strings.

    Returns:
        The stream; the files are mapped, not read.

    Raises:
        InputError: An impossible option.
    """
    rows = open_rows(files)
    contexts = make_contexts(docs, len(rows), context_length, skip_first, skip_last)
    return stream_of(rows, contexts, batch_size, {"kind": "array files", "files": list(rows.names)}, description)


def make_contexts(docs: Any, n: int, length: int | None, skip_first: int, skip_last: int) -> Contexts:
    """Take document ids from a file or as they are, and check them against the rows.

    Args:
        docs: File of document ids, ids, or None.
        n: Number of rows.
        length: Rows in a context.
        skip_first: Rows dropped at the start of every context.
        skip_last: Rows dropped at its end.

    Returns:
        The contexts.
    """
    groups = None
    if docs is not None:
        groups = load_groups(docs) if isinstance(docs, str | Path) else as_group_ids(docs)
    contexts = Contexts(groups=groups, length=length, skip_first=skip_first, skip_last=skip_last)
    contexts.check(n)
    return contexts


def stream_of(
    rows: Rows, contexts: Contexts, batch_size: int, kind: Mapping[str, Any], more: Mapping[str, Any] | None
) -> ArrayActivations:
    """Put rows and contexts together, with their description.

    Args:
        rows: The activations.
        contexts: Documents, and the rows that count.
        batch_size: Rows read for a batch.
        kind: What this is and where it comes from.
        more: What the caller knows about it.

    Returns:
        The stream.

    Raises:
        InputError: A batch size below 1, or facts that are measured from the files.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, expected at least 1")
    facts = {
        **kind,
        "n_tokens": contexts.count(len(rows)),
        "d_model": rows.width,
        "dtype": rows.dtype,
        **contexts.description,
        "batch_size": batch_size,
        "fingerprint": rows.fingerprint,
    }
    clash = sorted(set(facts) & set(more or {}))
    if clash:
        raise InputError(f"description has the keys {clash}, which are measured from the files: rename them")
    return ArrayActivations(rows=rows, contexts=contexts, batch_size=batch_size, description={**facts, **(more or {})})
