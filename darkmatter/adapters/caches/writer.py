"""One cache being written: batches in, whole shards out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from darkmatter.adapters.caches.layout import (
    COLUMNS,
    DTYPES,
    INDEX,
    PARTIAL,
    SHARDS,
    CacheIndex,
    Shard,
    check_shard,
    file_digest,
    read_index,
)
from darkmatter.adapters.caches.plan import plan_of, size_text
from darkmatter.adapters.caches.stream import TokenBatch
from darkmatter.checks import check_matrix
from darkmatter.errors import InputError
from darkmatter.files import replacing, write_json

SHARD_BYTES = 2**28
"""Size of a shard where none is asked for."""


class ShardWriter:
    """Collects batches of one site and writes them a shard at a time; only whole shards survive a kill.

    Attributes:
        folder: Folder of the cache.
        plan: Its size.
        finished: Whether the whole cache is there already.
        shard_tokens: Tokens after which a shard is written.
        index: What is on disk.

    Raises:
        InputError: An impossible option, or a folder with another cache.
    """

    def __init__(self, folder: Path, index: CacheIndex, shard_tokens: int | None) -> None:
        if shard_tokens is not None and shard_tokens < 1:
            raise InputError(f"shard_tokens is {shard_tokens}, expected at least 1")
        self.folder = folder
        self.plan = plan_of(index, folder)
        self.finished = (folder / INDEX).exists()
        self.shard_tokens = shard_tokens or max(1, SHARD_BYTES // index.bytes_per_token)
        self.index = self._known(index)
        self._rows: list[dict[str, Tensor]] = []
        self._tokens = self._batches = 0

    @property
    def missing_bytes(self) -> int | None:
        """What is still to be written, if known."""
        return None if self.plan.n_bytes is None else max(self.plan.n_bytes - self.plan.written_bytes, 0)

    def start(self, needed: int | None = None) -> None:
        """Check the space, and drop what a killed run left behind its last shard.

        Args:
            needed: Bytes that must be free; None for what this cache misses.

        Raises:
            InputError: Too little is free.
        """
        needed = self.missing_bytes if needed is None else needed
        if needed is not None and self.plan.exact and needed > self.plan.free_bytes:
            raise InputError(
                f"the cache needs {size_text(needed)}, but {self.folder} has {size_text(self.plan.free_bytes)} free: "
                "choose another folder, fewer tokens or a shorter dtype"
            )
        listed = {shard.file for shard in self.index.shards}
        for stray in (*self.folder.glob(SHARDS), *self.folder.glob(f".{SHARDS}")):
            if stray.name not in listed:
                stray.unlink(missing_ok=True)
        write_json(self.folder / PARTIAL, self.index.to_dict())

    def add(self, number: int, batch: TokenBatch) -> None:
        """Take batch `number`, unless it was written before."""
        if number < self.index.n_batches + self._batches:
            return
        self._rows.append(self._tensors(number, batch))
        self._tokens += len(batch.groups)
        self._batches += 1
        if self._tokens >= self.shard_tokens:
            self._flush()

    def finish(self) -> None:
        """Write what is left, then the index under the name of a finished cache.

        Raises:
            InputError: There was no token at all.
        """
        if self._tokens:
            self._flush()
        if not self.index.shards:
            raise InputError("no token to cache: check the text and the positions that are dropped")
        write_json(self.folder / INDEX, self.index.to_dict())
        (self.folder / PARTIAL).unlink(missing_ok=True)

    def _known(self, index: CacheIndex) -> CacheIndex:
        path = self.folder / (INDEX if self.finished else PARTIAL)
        if not path.exists():
            if any(self.folder.glob(SHARDS)):
                raise InputError(f"{self.folder} holds shards without an index: choose an empty folder, or delete them")
            return index
        known = read_index(path)
        if known.identity != index.identity:
            raise InputError(
                f"{self.folder} holds another cache (it differs in {_difference(known, index)}): choose another "
                "folder, or delete it"
            )
        for shard in known.shards:
            check_shard(self.folder, shard, known)
        return known

    def _tensors(self, number: int, batch: TokenBatch) -> dict[str, Tensor]:
        where = f"batch {number + 1}: "
        check_matrix(batch.x, f"{where}x", n=len(batch.groups), d=self.index.d_model)
        values = {column: getattr(batch, column) for column in COLUMNS}
        columns = tuple(column for column, value in values.items() if value is not None)
        if not self.index.shards and not self._batches:
            self.index = replace(self.index, columns=columns)
        if columns != self.index.columns:
            raise InputError(f"{where}it has {', '.join(columns)}, expected {', '.join(self.index.columns)} as before")
        rows = {column: torch.from_numpy(np.array(values[column], dtype=np.int64)) for column in columns}
        for column, value in rows.items():
            if value.shape != (len(batch.x),):
                raise InputError(f"{where}{column} has shape {tuple(value.shape)}, expected ({len(batch.x)},)")
        return {"x": _cast(batch, self.index.dtype), **rows}

    def _flush(self) -> None:
        name = f"x-{len(self.index.shards):05d}.safetensors"
        path = self.folder / name
        try:
            with replacing(path) as temporary:
                save_file({key: torch.cat([rows[key] for rows in self._rows]) for key in self._rows[0]}, temporary)
                digest, n_bytes = file_digest(temporary), temporary.stat().st_size
        except Exception as error:  # safetensors has its own type for a full disk
            if not isinstance(error, OSError) and "os error" not in str(error).lower():
                raise
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"{path} cannot be written ({reason}): make room and run the same again, it goes on after "
                f"{self.index.n_tokens} tokens"
            ) from None
        shard = Shard(file=name, n_tokens=self._tokens, n_batches=self._batches, n_bytes=n_bytes, sha256=digest)
        self.index = replace(self.index, shards=(*self.index.shards, shard))
        write_json(self.folder / PARTIAL, self.index.to_dict())
        self._rows, self._tokens, self._batches = [], 0, 0


def _cast(batch: TokenBatch, dtype: str) -> Tensor:
    stored = batch.x.detach().to("cpu", DTYPES[dtype])
    bad = ~torch.isfinite(stored)
    if not bool(bad.any()):
        return stored
    row = int(bad.any(dim=1).nonzero()[0])
    values = batch.x[row].detach().double()
    place = f"document {batch.groups[row]}"
    if batch.positions is not None:
        place += f", position {batch.positions[row]}"
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"x is NaN or infinite in {place}, before it is cached: find its cause, or drop the document")
    remedy = "bfloat16, which keeps the range of float32" if dtype == "float16" else "float32"
    raise InputError(
        f"x reaches {float(values.abs().max()):.3g} in {place}, but {dtype} ends at "
        f"{torch.finfo(DTYPES[dtype]).max:.3g}: write the cache in {remedy}"
    )


def _difference(known: CacheIndex, index: CacheIndex) -> str:
    before, now = ({**i.source, "cache dtype": i.dtype, "d_model": i.d_model} for i in (known, index))
    return ", ".join(sorted(key for key in {*before, *now} if before.get(key) != now.get(key)))
