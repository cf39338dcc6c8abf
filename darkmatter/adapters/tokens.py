"""Documents as token ids: BOS exactly once, cut at the context length, and a count of what was dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError

_CHUNK = 64  # documents tokenised per call: fast tokenizers work on a list in parallel


@dataclass(frozen=True, slots=True, eq=False)
class TokenisedText:
    """Token ids of the documents that are long enough, and which of their positions count.

    Attributes:
        ids: Token ids of every kept document, BOS included, at most `context_length` each.
        documents: Index of every kept document in the text.
        bos: Whether a BOS token stands at position 0.
        context_length: Longest sequence, in tokens, BOS included.
        skip_first: Positions dropped at the start of every document.
        n_read: Documents tokenised (fewer than the text has when `max_tokens` was reached).
        n_dropped: Documents among them that had no token beyond the first `skip_first`.
        n_truncated: Kept documents that were cut, at `context_length` or to fit `max_tokens`.
        n_tokens: Tokens that count, over all kept documents.
    """

    ids: tuple[npt.NDArray[np.int64], ...] = field(repr=False)
    documents: tuple[int, ...] = field(repr=False)
    bos: bool
    context_length: int
    skip_first: int
    n_read: int
    n_dropped: int
    n_truncated: int
    n_tokens: int

    @property
    def fingerprint(self) -> str:
        """Hash of every token id and document index."""
        digest = hashlib.blake2b(digest_size=16)
        for index, ids in zip(self.documents, self.ids, strict=True):
            digest.update(np.array([index, len(ids)], dtype="<i8").tobytes())
            digest.update(ids.astype("<i8").tobytes())
        return digest.hexdigest()


def tokenise(
    tokenizer: Any,
    documents: Sequence[str],
    *,
    context_length: int = 128,
    skip_first: int = 1,
    max_tokens: int | None = None,
    bos: bool = True,
) -> TokenisedText:
    """Tokenise each document on its own, put BOS in front exactly once, and cut at the context length.

    Args:
        tokenizer: A Hugging Face tokenizer.
        documents: The texts.
        context_length: Longest sequence, in tokens, BOS included.
        skip_first: Positions to drop at the start of every document; 1 drops BOS, whose activation is an outlier.
        max_tokens: Keep exactly this many tokens, cutting the last document; None keeps all.
        bos: Whether to prepend the tokenizer's BOS token.

    Returns:
        The kept documents.

    Raises:
        InputError: An impossible option, something that is not a list of strings, a tokenizer without BOS, or no
            document that is long enough.
    """
    _check_options(context_length, skip_first, max_tokens)
    _check_documents(documents)
    bos_id: Any = getattr(tokenizer, "bos_token_id", None)
    if bos and bos_id is None:
        raise InputError(
            f"the tokenizer ({type(tokenizer).__name__}) has no BOS token, expected one to prepend: pass `bos=False`"
        )
    kept: list[npt.NDArray[np.int64]] = []
    indices: list[int] = []
    n_read = n_dropped = n_truncated = n_tokens = 0
    for low in range(0, len(documents), _CHUNK):
        # Truncation is done below: a tokenizer may be set to cut from the left.
        encoded = tokenizer(list(documents[low : low + _CHUNK]), add_special_tokens=False, verbose=False)["input_ids"]
        for index, raw in enumerate(encoded, start=low):
            whole = _with_bos(list(raw), bos_id) if bos else list(raw)
            n_read += 1
            room = context_length if max_tokens is None else min(context_length, max_tokens - n_tokens + skip_first)
            ids = whole[:room]
            if len(ids) <= skip_first:
                n_dropped += 1
                continue
            kept.append(np.array(ids, dtype=np.int64))
            indices.append(index)
            n_truncated += len(ids) < len(whole)
            n_tokens += len(ids) - skip_first
            if n_tokens == max_tokens:
                break
        if n_tokens == max_tokens:
            break
    if not kept:
        raise InputError(
            f"none of {n_read} documents has more than {skip_first} tokens (skip_first, BOS included): "
            "give longer documents or a smaller skip_first"
        )
    return TokenisedText(
        ids=tuple(kept),
        documents=tuple(indices),
        bos=bos,
        context_length=context_length,
        skip_first=skip_first,
        n_read=n_read,
        n_dropped=n_dropped,
        n_truncated=n_truncated,
        n_tokens=n_tokens,
    )


def _with_bos(ids: list[int], bos_id: int) -> list[int]:
    # Some tokenizers add BOS whatever they are told, and a text may begin with a literal one.
    first = next((place for place, token in enumerate(ids) if token != bos_id), len(ids))
    return [bos_id, *ids[first:]]


def _check_options(context_length: int, skip_first: int, max_tokens: int | None) -> None:
    if context_length < 1:
        raise InputError(f"context_length is {context_length}, expected at least 1")
    if not 0 <= skip_first < context_length:
        raise InputError(
            f"skip_first is {skip_first}, expected 0 to {context_length - 1}: with context_length {context_length} "
            "no position would be left"
        )
    if max_tokens is not None and max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}, expected at least 1")


def _check_documents(documents: Sequence[str]) -> None:
    if isinstance(documents, str):
        raise InputError("documents is one string, expected a list of strings: pass `[text]` for a single document")
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise InputError(f"document {index} is a {type(document).__name__}, expected a string")
