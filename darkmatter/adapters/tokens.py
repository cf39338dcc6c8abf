"""Text as token ids, document by document: BOS exactly once, cut at the context length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np

from darkmatter.adapters.documents import TextStream, TokenDocument, as_text
from darkmatter.errors import InputError

Bos = Literal["auto", "prepend", "none"]
"""Whether BOS is put in front: as the tokenizer itself does, always, or never."""

_CHUNK = 64  # documents tokenised per call: fast tokenizers work on a list in parallel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenisedText:
    """A `TokenStream`: each document of a text is tokenised on its own, when it is reached; build it with `tokenise`.

    Attributes:
        text: The text.
        tokenizer: A Hugging Face tokenizer.
        context_length: Longest document, in tokens, BOS included; a longer one is cut, not split.
        bos_id: Put in front of every document exactly once; None puts nothing there.
    """

    text: TextStream
    tokenizer: Any = field(repr=False)
    context_length: int
    bos_id: int | None

    @property
    def n_tokens(self) -> None:
        """Unknown before a pass."""
        return

    @property
    def description(self) -> Mapping[str, Any]:
        """The text, and how it is tokenised."""
        return {
            **self.text.description,
            "tokenizer": type(self.tokenizer).__name__,
            "context_length": self.context_length,
            "bos": "none" if self.bos_id is None else "prepended to every document",
        }

    def __iter__(self) -> Iterator[TokenDocument]:
        """Yield every document."""
        return self.part(0, 1)

    def part(self, rank: int, size: int) -> Iterator[TokenDocument]:
        """Yield the documents whose index leaves the rest `rank` when divided by `size`; only they are tokenised.

        Raises:
            InputError: A document is not a string.
        """
        own = islice(enumerate(self.text), rank, None, size)
        while chunk := list(islice(own, _CHUNK)):
            for index, document in chunk:
                if not isinstance(document, str):
                    raise InputError(f"document {index} is a {type(document).__name__}, expected a string")
            # Truncation is done below: a tokenizer may be set to cut from the left.
            texts = [document for _, document in chunk]
            encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            for (index, _), raw in zip(chunk, encoded, strict=True):
                whole = list(raw) if self.bos_id is None else _with_bos(list(raw), self.bos_id)
                ids = np.array(whole[: self.context_length], dtype=np.int64)
                yield TokenDocument(index, ids, truncated=len(ids) < len(whole))


def tokenise(
    tokenizer: Any,
    documents: TextStream | Sequence[str],
    *,
    context_length: int = 128,
    bos: Bos = "prepend",
    name: str | None = None,
) -> TokenisedText:
    """Set up the tokenising of a text; nothing is read yet.

    Args:
        tokenizer: A Hugging Face tokenizer.
        documents: The texts.
        context_length: Longest document, in tokens, BOS included.
        bos: "prepend" puts the tokenizer's BOS in front of every document, "none" puts nothing there, "auto" does
            what the tokenizer would do by itself.
        name: What a list of documents is called in the report.

    Returns:
        The stream.

    Raises:
        InputError: An impossible option, something that is not a list of strings, or a tokenizer without BOS, or
            without anything.
    """
    if context_length < 1:
        raise InputError(f"context_length is {context_length}, expected at least 1")
    if bos not in get_args(Bos):
        raise InputError(f"bos is {bos!r}, expected one of {', '.join(map(repr, get_args(Bos)))}")
    text = as_text(documents, name=name)
    if tokenizer is None:
        raise InputError("the model has no tokenizer, which text needs: give token ids (.npy) instead of text")
    bos_id = getattr(tokenizer, "bos_token_id", None)
    if bos == "prepend" and bos_id is None:
        raise InputError(
            f"the tokenizer ({type(tokenizer).__name__}) has no BOS token, expected one to prepend: choose bos "
            "'none' (or 'auto', which does what the tokenizer does)"
        )
    if bos == "none" or (bos == "auto" and not _adds_bos(tokenizer, bos_id)):
        bos_id = None
    return TokenisedText(text=text, tokenizer=tokenizer, context_length=context_length, bos_id=bos_id)


def _adds_bos(tokenizer: Any, bos_id: int | None) -> bool:
    encoded = tokenizer(["a"], add_special_tokens=True, verbose=False)["input_ids"][0]
    return bos_id is not None and len(encoded) > 0 and encoded[0] == bos_id


def _with_bos(ids: list[int], bos_id: int) -> list[int]:
    # Some tokenizers add BOS whatever they are told, and a text may begin with a literal one.
    first = next((place for place, token in enumerate(ids) if token != bos_id), len(ids))
    return [bos_id, *ids[first:]]
