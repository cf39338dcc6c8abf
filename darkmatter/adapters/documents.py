"""Streams of documents: text, and token ids; nothing here holds more than one document."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from darkmatter.adapters.hub_text import HUB_ID, hub_text
from darkmatter.adapters.text import SUFFIXES, text_file
from darkmatter.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class TokenDocument:
    """One document, ready for the model.

    Attributes:
        index: Its place in the stream, counted from 0 over all documents: its id everywhere.
        ids: Vocabulary ids, BOS included, (length,).
        truncated: Whether it was cut at the context length.
    """

    index: int
    ids: npt.NDArray[np.int64]
    truncated: bool


@runtime_checkable
class TextStream(Protocol):
    """A re-iterable stream of documents as text; the same ones, in the same order, every time."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What identifies the text, as JSON; its name under ``text``."""
        ...

    def __iter__(self) -> Iterator[str]:
        """Start again from the first document."""
        ...


@runtime_checkable
class TokenStream(Protocol):
    """A re-iterable stream of documents as token ids; the same ones, in the same order, every time."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What identifies the tokens, as JSON."""
        ...

    @property
    def context_length(self) -> int:
        """Longest document, in tokens."""
        ...

    @property
    def n_tokens(self) -> int | None:
        """Tokens of all documents; None where only a pass would tell."""
        ...

    def __iter__(self) -> Iterator[TokenDocument]:
        """Start again from the first document."""
        ...

    def part(self, rank: int, size: int) -> Iterator[TokenDocument]:
        """Yield the documents whose index leaves the rest `rank` when divided by `size`."""
        ...


@dataclass(frozen=True, slots=True)
class TextList:
    """Documents that are in memory already; build it with `as_text`.

    Attributes:
        documents: The texts.
        name: What they are called in the report.
        digest: Hash of every text.
    """

    documents: Sequence[str] = field(repr=False)
    name: str | None
    digest: str

    @property
    def description(self) -> Mapping[str, Any]:
        """Name and content."""
        return {"text": self.name, "text_fingerprint": self.digest}

    def __iter__(self) -> Iterator[str]:
        """Yield the documents in order."""
        return iter(self.documents)


def as_text(documents: TextStream | Sequence[str], *, name: str | None = None) -> TextStream:
    """Take a list of strings, or a stream as it is.

    Args:
        documents: The texts.
        name: What a list is called in the report.

    Returns:
        The stream.

    Raises:
        InputError: A single string, something that can be read only once, or an entry that is not a string.
    """
    if isinstance(documents, TextStream):
        return documents
    if isinstance(documents, str):
        raise InputError("documents is one string, expected a list of strings: pass `[text]` for a single document")
    if not isinstance(documents, Sequence):
        raise InputError(
            f"documents is a {type(documents).__name__}, expected a list of strings, or a stream with `description` "
            "that can be iterated again"
        )
    digest = hashlib.blake2b(digest_size=16)
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise InputError(f"document {index} is a {type(document).__name__}, expected a string")
        content = document.encode("utf-8", "surrogatepass")
        digest.update(f"{len(content)} ".encode())
        digest.update(content)
    return TextList(documents, name, digest.hexdigest())


def names_data_set(place: Path | str) -> bool:
    """Say whether a place means a data set on the hub: ``owner/name``, no local path, and none of our suffixes."""
    name = str(place)
    return bool(HUB_ID.fullmatch(name.partition("@")[0])) and not name.endswith(SUFFIXES) and not Path(name).exists()


def open_text(
    place: Path | str,
    *,
    column: str = "text",
    subset: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    shuffle: int | None = None,
) -> TextStream:
    """Open a local file, or a data set on the hub where `place` is no file but reads ``owner/name``.

    Args:
        place: A path, or a hub id, which may end in ``@revision``.
        column: Where the text stands in objects and tables.
        subset: Configuration of the data set; hub only, as the next three.
        split: Its split; None is "train".
        revision: Branch, tag or commit.
        shuffle: Seed of a shuffle through a buffer.

    Returns:
        The stream.

    Raises:
        InputError: Options of the hub for a local file.
    """
    name = str(place)
    if names_data_set(name):
        return hub_text(name, subset=subset, split=split or "train", column=column, revision=revision, shuffle=shuffle)
    given = {"subset": subset, "split": split, "revision": revision, "shuffle": shuffle}
    useless = [option for option, value in given.items() if value is not None]
    if useless:
        raise InputError(f"{' and '.join(useless)} was given for the local file {name}: leave it out")
    return text_file(name, column=column)
