"""Activation caches that SAELens made: a Hugging Face data set on disk, read with pyarrow alone.

A row is one context: an array (context, d_model) in a column named after the hook, and the token ids. The data set's
own library is not needed, and nothing in the files is executed: unknown column types are read as the lists they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from darkmatter.adapters.caches.arrow_files import INFO, choose_hook, data_files, matrix, record_blocks
from darkmatter.adapters.caches.layout import first_line
from darkmatter.adapters.caches.stream import StoredBatch
from darkmatter.adapters.positions import PositionPolicy
from darkmatter.adapters.sites import parse_site
from darkmatter.errors import FileFormatError, InputError
from darkmatter.files import read_json

_TOKENS = "token_ids"
_PILOT = 64  # contexts that tell whether all start with the same token


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SaelensActivations:
    """An `ActivationStream` over a SAELens cache; build it with `saelens_activations`.

    Attributes:
        folder: Where the cache is.
        hook: The column that is read.
        context_length: Tokens in a context.
        d_model: Activation width.
        dtype: Precision on disk.
        blocks: Contexts in every block of every file.
        with_tokens: Whether token ids are there.
        special_ids: Tokens that count as special.
        policy: Which positions count.
        batch_contexts: Contexts in a batch, at most; a batch lies in one block.
        fingerprint: What the data set says its content is.
    """

    folder: Path
    hook: str
    context_length: int
    d_model: int
    dtype: str
    blocks: Mapping[str, tuple[int, ...]] = field(repr=False)
    with_tokens: bool
    special_ids: frozenset[int]
    policy: PositionPolicy
    batch_contexts: int
    fingerprint: str | None

    @property
    def n_contexts(self) -> int:
        """Contexts in the cache."""
        return sum(sum(rows) for rows in self.blocks.values())

    @property
    def description(self) -> Mapping[str, Any]:
        """Everything that decides which tokens these are."""
        return {
            "kind": "SAELens cache",
            "cache": self.folder.name,
            "cache_fingerprint": self.fingerprint,
            "site": _site(self.hook),
            "hook": self.hook,
            "d_model": self.d_model,
            "dtype": self.dtype,
            "context_length": self.context_length,
            "n_contexts": self.n_contexts,
            "documents": (
                "each context is a document; SAELens packs texts, so one that goes on in the next context is split"
            ),
            **self.policy.description,
            "special_ids": sorted(self.special_ids),
            "batch_contexts": self.batch_contexts,
        }

    def __iter__(self) -> Iterator[StoredBatch]:
        """Yield every batch, from the first context on."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[StoredBatch]:
        """Yield batch number `start` and those after it; earlier ones are not read."""
        context = 0
        for name, blocks in self.blocks.items():
            n_batches = sum(-(-rows // self.batch_contexts) for rows in blocks)
            if start < n_batches:
                yield from self._file(name, context, start)
            start = max(start - n_batches, 0)
            context += sum(blocks)

    def _file(self, name: str, context: int, start: int) -> Iterator[StoredBatch]:
        for rows, block in zip(self.blocks[name], self._blocks(name), strict=True):
            for low in range(0, rows, self.batch_contexts):
                if start:
                    start -= 1
                    continue
                part = block.slice(low, self.batch_contexts)
                try:
                    batch = self._batch(part, context + low)
                except Exception as error:  # damaged bytes are obeyed until something breaks, whatever it is
                    if isinstance(error, MemoryError):
                        raise
                    raise FileFormatError(
                        f"{self.folder / name} is damaged in contexts {context + low} to "
                        f"{context + low + len(part)} ({first_line(error)}): write the cache again",
                        self.folder / name,
                    ) from None
                yield batch
            context += rows

    def _blocks(self, name: str) -> Iterator[Any]:
        return record_blocks(self.folder / name, [self.hook, _TOKENS] if self.with_tokens else [self.hook])

    def _batch(self, part: Any, context: int) -> StoredBatch:
        part.validate(full=True)  # offsets that lead out of the file
        n, length = len(part), self.context_length
        x = matrix(part.column(self.hook), n, (length, self.d_model))
        if x.dtype.name != self.dtype:
            raise ValueError(f"{x.dtype.name} values, expected {self.dtype}")
        ids = matrix(part.column(_TOKENS), n, (length,)).astype(np.int64) if self.with_tokens else None
        nothing = np.full(length, -1, dtype=np.int64)
        counted = np.stack([
            self.policy.mask(nothing if ids is None else ids[row], self.special_ids) for row in range(n)
        ])
        kept = torch.from_numpy(x)[torch.from_numpy(counted)].to(torch.float32)
        if not bool(torch.isfinite(kept).all()):
            raise ValueError("NaN or infinity")
        rows, positions = counted.nonzero()
        return StoredBatch(
            x=kept,
            groups=context + rows.astype(np.int64),
            positions=positions.astype(np.int64),
            token_ids=None if ids is None else ids[counted],
        )


def saelens_activations(
    folder: Path | str,
    *,
    hook: str | None = None,
    positions: PositionPolicy | None = None,
    special_ids: Collection[int] | None = None,
    batch_size: int = 4096,
) -> SaelensActivations:
    """Open a cache that SAELens' `CacheActivationsRunner` made.

    Such a cache keeps every position, BOS included, and packs texts into contexts of one length.

    Args:
        folder: Folder of the cache.
        hook: The column to read; None where there is only one.
        positions: Which positions count; None drops the first of every context, and special tokens.
        special_ids: Vocabulary ids of special tokens. None takes the token that starts every context, if all start
            with the same: their BOS, which also stands between packed texts.
        batch_size: Tokens in a batch, rounded to whole contexts.

    Returns:
        The stream; no activation is read yet.

    Raises:
        InputError: pyarrow is missing, an impossible option, or a filter on norms.
        FileFormatError: No such cache, an unfinished one, one with missing or damaged files, or no such hook.
    """
    place, policy = Path(folder), positions or PositionPolicy()
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, expected at least 1")
    if policy.norm_filter is not None:
        raise InputError("norm_filter is not applied to a SAELens cache: leave it out, or cache with darkmatter")
    if (place / ".tmp_shards").exists():
        raise FileFormatError(
            f"{place} holds an unfinished SAELens cache (.tmp_shards): let the caching run to its end", place
        )
    info = read_json(place / INFO, "the description of a SAELens cache")
    chosen, (length, width), dtype = choose_hook(place / INFO, info, hook)
    policy.check(length)
    names, fingerprint = data_files(place)
    features = info["features"]
    cache = SaelensActivations(
        folder=place,
        hook=chosen,
        context_length=length,
        d_model=width,
        dtype=dtype,
        blocks={},
        with_tokens=_TOKENS in features,
        special_ids=frozenset(special_ids or ()),
        policy=policy,
        batch_contexts=max(1, batch_size // length),
        fingerprint=fingerprint,
    )
    cache = replace(cache, blocks={name: tuple(map(len, cache._blocks(name))) for name in names})
    if not cache.n_contexts:
        raise FileFormatError(f"{place} holds no context: write the cache again", place)
    if special_ids is None and cache.with_tokens:
        return _with_bos(cache)
    return cache


def _site(hook: str) -> str:
    """The site that a hook's name stands for, or the name itself."""
    try:
        return str(parse_site(hook))
    except InputError:
        return hook


def _with_bos(cache: SaelensActivations) -> SaelensActivations:
    """The same cache, its BOS taken for special where every context starts with one token."""
    whole = replace(cache, policy=PositionPolicy(skip_first=0, drop_special=False))
    firsts: list[int] = []
    for batch in whole:
        if batch.token_ids is not None and batch.positions is not None:
            firsts += batch.token_ids[batch.positions == 0].tolist()
        if len(firsts) >= _PILOT:
            break
    same = len(firsts) > 1 and len(set(firsts)) == 1
    return replace(cache, special_ids=frozenset(firsts[:1])) if same else cache
