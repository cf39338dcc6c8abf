"""What a cache will take on disk, and what identifies it, before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darkmatter.adapters.caches.layout import COLUMNS, DTYPES, SHARDS, CacheIndex
from darkmatter.adapters.caches.stream import ActivationStream
from darkmatter.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """What a cache will take on disk.

    Attributes:
        n_tokens: Tokens to write, or the most that are wanted; None where only the pass would tell.
        exact: Whether there are as many.
        bytes_per_token: Size of one token.
        free_bytes: What is free where the cache goes.
        written_bytes: What an unfinished or finished cache there holds already.
    """

    n_tokens: int | None
    exact: bool
    bytes_per_token: int
    free_bytes: int
    written_bytes: int

    @property
    def n_bytes(self) -> int | None:
        """Size of the whole cache, if known."""
        return None if self.n_tokens is None else self.n_tokens * self.bytes_per_token

    @property
    def sentence(self) -> str:
        """The plan, to be said before anything is written."""
        each, free = size_text(self.bytes_per_token), size_text(self.free_bytes)
        if self.n_bytes is None:
            return f"The cache takes {each} per token, for as many as the pass finds; {free} are free."
        most = "" if self.exact else "at most "
        return f"The cache takes {most}{size_text(self.n_bytes)}: {self.n_tokens} tokens of {each}; {free} are free."


def plan_cache(activations: ActivationStream, folder: Path | str, *, dtype: str = "bfloat16") -> CachePlan:
    """Say how large a cache will be.

    Args:
        activations: What would be written.
        folder: Where.
        dtype: Precision of x on disk.

    Returns:
        The plan.

    Raises:
        InputError: An unknown dtype, or a path that is a file.
    """
    place = Path(folder)
    return plan_of(new_index(activations.description, activations.d_model, dtype), place)


def new_index(source: Mapping[str, Any], d_model: int, dtype: str) -> CacheIndex:
    """Make the index of a cache in which nothing was written yet.

    Args:
        source: Description of the stream to write.
        d_model: Activation width.
        dtype: Precision of x on disk.

    Returns:
        The index.

    Raises:
        InputError: An unknown dtype, or activations of which other processes hold a part.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    if source.get("documents_shared_by"):
        raise InputError(
            "these activations are one process's share of the documents, expected all of them: write the cache from "
            "one process"
        )
    plain = json.loads(json.dumps(dict(source), allow_nan=False))  # as it will be read: tuples become lists
    return CacheIndex(source=plain, dtype=dtype, d_model=d_model, columns=COLUMNS)


def plan_of(index: CacheIndex, folder: Path) -> CachePlan:
    """Say how large the cache of an index will be.

    Args:
        index: The index.
        folder: Where the cache goes.

    Returns:
        The plan.

    Raises:
        InputError: The folder, or a part of its path, is a file.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"{nearest} is a file, expected a folder to write the cache to")
    written = 0
    for path in folder.glob(SHARDS):
        with suppress(FileNotFoundError):
            written += path.stat().st_size
    counts = [index.source.get(key) for key in ("n_tokens", "max_tokens")]
    known = [count if type(count) is int else None for count in counts]
    return CachePlan(
        n_tokens=known[0] if known[0] is not None else known[1],
        exact=known[0] is not None,
        bytes_per_token=index.bytes_per_token,
        free_bytes=shutil.disk_usage(nearest).free,
        written_bytes=written,
    )


def size_text(n_bytes: int) -> str:
    """A size in bytes, as one reads it."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes} bytes"
