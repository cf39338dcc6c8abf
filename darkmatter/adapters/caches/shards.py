"""Reading our own cache: lazily, from any batch on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from darkmatter.adapters.caches.layout import (
    INDEX,
    PARTIAL,
    SHARDS,
    CacheIndex,
    Shard,
    check_shard,
    file_digest,
    first_line,
    read_index,
)
from darkmatter.adapters.caches.stream import StoredBatch
from darkmatter.errors import FileFormatError, InputError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CachedActivations:
    """An `ActivationStream` over a cache; build it with `cached_activations`.

    Attributes:
        folder: Where the cache is.
        index: What it says about itself.
        batch_size: Tokens in a batch; the last one of every shard is smaller.
    """

    folder: Path
    index: CacheIndex
    batch_size: int

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.index.d_model

    @property
    def site(self) -> str | None:
        """The site that was cached, if the cache says."""
        site = self.index.source.get("site")
        return site if isinstance(site, str) else None

    @property
    def n_tokens(self) -> int:
        """Tokens in one pass."""
        return self.index.n_tokens

    @property
    def description(self) -> Mapping[str, Any]:
        """The description of the stream that was cached, and what the cache adds to it."""
        return {
            **self.index.source,
            "kind": "cached activations",
            "cached_from": self.index.source.get("kind"),
            "cache": self.folder.name,
            "cache_dtype": self.index.dtype,
            "cache_fingerprint": self.index.fingerprint,
            "d_model": self.d_model,
            "n_tokens": self.n_tokens,
            "batch_size": self.batch_size,
        }

    def __iter__(self) -> Iterator[StoredBatch]:
        """Yield every batch, from the first on."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[StoredBatch]:
        """Yield batch number `start` and those after it; earlier ones are not read."""
        for shard in self.index.shards:
            n_batches = math.ceil(shard.n_tokens / self.batch_size)
            if start < n_batches:
                yield from self._read(shard, start * self.batch_size)
            start = max(start - n_batches, 0)

    def _read(self, shard: Shard, first: int) -> Iterator[StoredBatch]:
        path = self.folder / shard.file
        for low in range(first, shard.n_tokens, self.batch_size):
            try:
                # opened for every batch: a mapping that stays open keeps all that was read of it in memory
                with safe_open(path, framework="pt") as opened:
                    part = slice(low, min(low + self.batch_size, shard.n_tokens))
                    x = opened.get_slice("x")[part].to(torch.float32)
                    beside = {name: opened.get_slice(name)[part].numpy() for name in self.index.columns}
            except Exception as error:  # it was whole when it was opened
                raise FileFormatError(f"{path} can no longer be read ({first_line(error)})", path) from None
            if not bool(torch.isfinite(x).all()):
                raise FileFormatError(
                    f"{path} holds NaN or infinity between tokens {low} and {part.stop}: it was altered after it was "
                    "written, copy the cache again or write it again",
                    path,
                )
            yield StoredBatch(x=x, **beside)


def cached_activations(folder: Path | str, *, batch_size: int = 4096, verify: bool = False) -> CachedActivations:
    """Open a cache that `write_cache` finished.

    Sizes, names, shapes and dtypes of all shards are checked now, and values when they are read.

    Args:
        folder: Folder of the cache.
        batch_size: Tokens in a batch; changes results by rounding only.
        verify: Also read every shard and compare its digest.

    Returns:
        The stream; nothing is read yet.

    Raises:
        InputError: A batch size below 1.
        FileFormatError: No cache, an unfinished one, one of another version, or one with missing, extra, truncated or
            altered shards.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, expected at least 1")
    place = Path(folder)
    index = _index(place)
    listed = {shard.file for shard in index.shards}
    extra = sorted(path.name for path in place.glob(SHARDS) if path.name not in listed)
    if extra:
        raise FileFormatError(
            f"{place / extra[0]} is not listed in {INDEX}: two caches were mixed, copy this one again", place / extra[0]
        )
    for shard in index.shards:
        check_shard(place, shard, index)
        if verify and file_digest(place / shard.file) != shard.sha256:
            raise FileFormatError(
                f"{place / shard.file} does not have the SHA-256 that {INDEX} lists: its content was altered, copy the "
                "cache again or write it again",
                place / shard.file,
            )
    return CachedActivations(folder=place, index=index, batch_size=batch_size)


def _index(place: Path) -> CacheIndex:
    if not (place / INDEX).exists():
        if (place / PARTIAL).exists():
            done = read_index(place / PARTIAL).n_tokens
            raise FileFormatError(
                f"{place} holds an unfinished cache ({done} tokens so far): run what writes it again, it goes on from "
                "there",
                place / PARTIAL,
            )
        below = sorted(path.parent.name for path in place.glob(f"*/{INDEX}"))
        if below:
            raise FileFormatError(
                f"{place} holds the caches of several sites, expected one of them: {', '.join(below)}", place
            )
        raise FileFormatError(f"{place} has no {INDEX}, expected a folder that `write_cache` made", place)
    index = read_index(place / INDEX)
    if not index.shards:
        raise FileFormatError(f"{place / INDEX} lists no shard, expected at least one: write the cache again", place)
    return index
