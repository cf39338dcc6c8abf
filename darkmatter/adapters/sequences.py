"""What a model reads: documents with the positions that count, one to a sequence or several packed together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from darkmatter.adapters.documents import TokenDocument, TokenStream
from darkmatter.adapters.positions import PositionPolicy
from darkmatter.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class TokenSequence:
    """One row of a forward pass.

    Attributes:
        ids: Vocabulary ids, (length,).
        groups: Index of each token's document, (length,).
        positions: Position of each token in its document, (length,).
        counted: Whether it counts, (length,).
    """

    ids: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    counted: npt.NDArray[np.bool_]


@dataclass(slots=True, kw_only=True)
class TokenCounts:
    """What one whole pass read, kept and dropped.

    Attributes:
        n_documents: Documents that count.
        n_documents_dropped: Documents without a position that counts, or shorter than the least length.
        n_documents_truncated: Documents among those that count that were cut, at the context length or to fit
            `max_tokens`.
        n_tokens: Tokens that count (before a filter on norms).
        n_dropped_first: Positions of documents that count dropped by `skip_first`.
        n_dropped_last: By `skip_last`.
        n_dropped_special: By `drop_special`, in between.
    """

    n_documents: int = 0
    n_documents_dropped: int = 0
    n_documents_truncated: int = 0
    n_tokens: int = 0
    n_dropped_first: int = 0
    n_dropped_last: int = 0
    n_dropped_special: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A document that counts."""

    index: int
    ids: npt.NDArray[np.int64]
    counted: npt.NDArray[np.bool_]
    truncated: bool


@dataclass(slots=True, kw_only=True, eq=False)
class SequenceStream:
    """A re-iterable stream of sequences: the documents of a `TokenStream` under a policy.

    Over all ranks the sequences are those of rank 0 of 1, so limits and packing do not depend on the number of ranks.

    Attributes:
        tokens: The documents.
        policy: Which positions count.
        special_ids: The tokenizer's special tokens.
        max_tokens: Keep exactly this many tokens, cutting the last document; None keeps all.
        max_documents: Keep this many documents; None keeps all.
        min_length: Drop documents shorter than this, in tokens, BOS included.
        pack: Put several documents into one sequence as long as they fit.
        rank: Which share of the documents (when packed: of the sequences) is yielded.
        size: Number of shares; the one of document i is i modulo `size`.
        counts: What the last whole pass counted, of this share; None before one.

    Raises:
        InputError: An impossible option.
    """

    tokens: TokenStream
    policy: PositionPolicy = field(default_factory=PositionPolicy)
    special_ids: frozenset[int] = frozenset()
    max_tokens: int | None = None
    max_documents: int | None = None
    min_length: int = 0
    pack: bool = False
    rank: int = 0
    size: int = 1
    counts: TokenCounts | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.policy.check(self.tokens.context_length)
        for name in ("max_tokens", "max_documents"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}, expected at least 1")
        if not 0 <= self.min_length <= self.tokens.context_length:
            raise InputError(
                f"min_length is {self.min_length}, expected 0 to {self.tokens.context_length}, the context length: "
                "documents are cut there"
            )
        if not 0 <= self.rank < self.size:
            raise InputError(f"rank is {self.rank}, expected 0 to {self.size - 1}")

    @property
    def n_tokens(self) -> int | None:
        """Tokens that count in a pass, before a filter on norms; None where only a pass would tell."""
        if self.counts is None and self.tokens.n_tokens is not None:
            for _ in self:  # token ids are at hand: counting needs no model
                pass
        return self.counts.n_tokens if self.tokens.n_tokens is not None and self.counts is not None else None

    @property
    def description(self) -> Mapping[str, Any]:
        """Everything that decides the tokens, but for the share."""
        facts: dict[str, Any] = {**self.tokens.description, **self.policy.description}
        facts["max_tokens"] = self.max_tokens
        facts["max_documents"] = self.max_documents
        facts["min_length"] = self.min_length
        facts["packed"] = "later documents of a sequence attend to earlier ones" if self.pack else False
        facts["documents"] = "ids are document indices in the text"
        return facts

    @property
    def outcome(self) -> Mapping[str, int]:
        """The counts of the last whole pass; empty before one."""
        return {} if self.counts is None else asdict(self.counts)

    def share(self, rank: int, size: int) -> SequenceStream:
        """Take another share of the same documents."""
        return SequenceStream(
            tokens=self.tokens,
            policy=self.policy,
            special_ids=self.special_ids,
            max_tokens=self.max_tokens,
            max_documents=self.max_documents,
            min_length=self.min_length,
            pack=self.pack,
            rank=rank,
            size=size,
        )

    def __iter__(self) -> Iterator[TokenSequence]:
        """Yield every sequence of this share; a pass to the end sets `counts`.

        Raises:
            InputError: No document counts.
        """
        counts = TokenCounts()
        for documents in self._packed(counts) if self.pack else self._single(counts):
            for document in documents:
                self._count(document, counts)
            yield _sequence(documents)
        self.counts = counts

    def _single(self, counts: TokenCounts) -> Iterator[list[_Kept]]:
        # without a limit no share depends on another, so that the others' documents need not be tokenised
        alone = self.size > 1 and self.max_tokens is None and self.max_documents is None
        source = self.tokens.part(self.rank, self.size) if alone else iter(self.tokens)
        for document in self._kept(source, counts, complete=not alone):
            if document.index % self.size == self.rank:
                yield [document]

    def _packed(self, counts: TokenCounts) -> Iterator[list[_Kept]]:
        return islice(self._filled(counts), self.rank, None, self.size)

    def _filled(self, counts: TokenCounts) -> Iterator[list[_Kept]]:
        waiting: list[_Kept] = []
        length = 0
        for document in self._kept(iter(self.tokens), counts, complete=True):
            if waiting and length + len(document.ids) > self.tokens.context_length:
                yield waiting
                waiting, length = [], 0
            waiting.append(document)
            length += len(document.ids)
        if waiting:
            yield waiting

    def _kept(self, source: Iterator[TokenDocument], counts: TokenCounts, *, complete: bool) -> Iterator[_Kept]:
        n_read = n_kept = n_tokens = 0
        for document in source:
            n_read += 1
            counted = self.policy.mask(document.ids, self.special_ids)
            if len(document.ids) < self.min_length or not counted.any():
                counts.n_documents_dropped += document.index % self.size == self.rank
                continue
            n_kept += 1
            kept = _Kept(document.index, document.ids, counted, document.truncated)
            if self.max_tokens is not None:
                kept = _cut(kept, self.max_tokens - n_tokens)
                n_tokens += int(kept.counted.sum())
            yield kept
            if n_kept == self.max_documents or (n_tokens == self.max_tokens):
                return
        if complete and not n_kept:
            policy = ", ".join(f"{name} {value}" for name, value in self.policy.description.items() if value)
            least = f" and at least {self.min_length} tokens" if self.min_length else ""
            raise InputError(
                f"none of {n_read} documents has a position that counts{least} (BOS included; {policy or 'no rule'}): "
                "give longer documents or drop fewer positions"
            )

    def _count(self, document: _Kept, counts: TokenCounts) -> None:
        length = len(document.ids)
        first = min(self.policy.skip_first, length)
        # a document that was cut to fit max_tokens ends with a token that counts
        last = 0 if document.counted[-1] else min(self.policy.skip_last, length - first)
        counts.n_documents += 1
        counts.n_documents_truncated += document.truncated
        counts.n_tokens += int(document.counted.sum())
        counts.n_dropped_first += first
        counts.n_dropped_last += last
        counts.n_dropped_special += length - first - last - int(document.counted.sum())


def _cut(document: _Kept, left: int) -> _Kept:
    """Keep at most `left` counted tokens, and nothing behind them: a causal model does not need it."""
    places = document.counted.nonzero()[0]
    if len(places) <= left:
        return document
    end = int(places[left - 1]) + 1
    return _Kept(document.index, document.ids[:end], document.counted[:end], truncated=True)


def _sequence(documents: list[_Kept]) -> TokenSequence:
    lengths = [len(document.ids) for document in documents]
    return TokenSequence(
        ids=np.concatenate([document.ids for document in documents]),
        groups=np.repeat(np.array([document.index for document in documents], dtype=np.int64), lengths),
        positions=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
        counted=np.concatenate([document.counted for document in documents]),
    )
