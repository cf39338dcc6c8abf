"""What a token is in writing, and how its text is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

KINDS = ("word start", "continuation", "digits", "punctuation", "newline", "space", "special")
"""Classes of tokens by what they are in writing."""

_SPACE = ("\u2581", "\u0120")
_BREAKS = ("\n", "\u010a", "\r", "\u010d", "<0x0A>", "<0x0D>")


class TokenText(Protocol):
    """What must be known of a tokenizer."""

    def decode(self, ids: Sequence[int], /) -> str:
        """Text of some tokens in a row."""
        ...

    def kind(self, token_id: int, /) -> str:
        """Class of a token, one of `KINDS`."""
        ...


def kind_of_piece(piece: str, *, special: bool) -> str:
    """The class of a vocabulary piece, as SentencePiece and byte-level BPE write it.

    A word start carries a leading space; the first word of a text may lack it and then counts as a continuation.

    Args:
        piece: The piece as it stands in the vocabulary, a leading space as U+2581 or U+0120.
        special: Whether it is one of the tokenizer's special tokens.

    Returns:
        One of `KINDS`.
    """
    if special:
        return "special"
    if any(mark in piece for mark in _BREAKS):
        return "newline"
    bare = piece.lstrip("".join(_SPACE) + " \t").removeprefix("##")
    if not bare:
        return "space"
    if bare.isdigit():
        return "digits"
    if not any(letter.isalnum() for letter in bare):
        return "punctuation"
    return "word start" if piece.startswith((*_SPACE, " ")) else "continuation"
