"""Text files as documents, one at a time: a file larger than memory can be read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from darkmatter.adapters.parquet import parquet_rows
from darkmatter.errors import FileFormatError, InputError

SUFFIXES = (".txt", ".json", ".jsonl", ".parquet")
"""Text files that can be read."""

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can escape one; no tokenizer can encode it
_CHARACTERS = 2**20  # read at a time from a JSON list, which has no lines
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class TextFile:
    """The documents of a file, as a re-iterable stream; build it with `text_file`.

    Attributes:
        file: The file.
        column: Where the text stands in objects and tables.
        digest: Hash of the file's bytes.
        n_bytes: Size of the file.
    """

    file: Path
    column: str
    digest: str
    n_bytes: int

    @property
    def description(self) -> Mapping[str, Any]:
        """Name and content, whatever the file is called or when it was written."""
        facts = {"text": self.file.name, "text_fingerprint": self.digest, "text_bytes": self.n_bytes}
        return facts if self.column == "text" else {**facts, "text_column": self.column}

    def __iter__(self) -> Iterator[str]:
        """Yield the documents in order; a document's index in this order is its id everywhere."""
        return _documents(self.file, self.column)


def text_file(path: Path | str, *, column: str = "text") -> TextFile:
    """Open a text file; its bytes are read once, for the fingerprint that identifies a run.

    * `.txt`: documents are separated by one or more blank lines (lines with nothing but white space);
    * `.json`: a list of strings, or of objects with a string under `column`;
    * `.jsonl`: on every line a string or such an object; blank lines are skipped;
    * `.parquet`: the table's `column` of strings, which needs pyarrow.

    Args:
        path: The file, in UTF-8.
        column: Where the text stands in objects and tables.

    Returns:
        The stream.

    Raises:
        FileFormatError: Missing or another suffix.
    """
    file = _checked(Path(path))
    with _reading(file), file.open("rb") as handle:
        digest = hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        n_bytes = handle.tell()
    return TextFile(file, column, digest, n_bytes)


def read_documents(path: Path | str, *, column: str = "text", max_documents: int | None = None) -> list[str]:
    """Read the documents of a text file into a list; see `text_file` for the formats.

    Args:
        path: The file, in UTF-8.
        column: Where the text stands in objects and tables.
        max_documents: Stop after this many; the file is then not read further.

    Returns:
        At least one document.

    Raises:
        FileFormatError: Missing, another suffix, not UTF-8, not such JSON (with the first offending place), or empty.
        InputError: `max_documents` is below 1.
    """
    if max_documents is not None and max_documents < 1:
        raise InputError(f"max_documents is {max_documents}, expected at least 1")
    return list(islice(_documents(_checked(Path(path)), column), max_documents))


def count_documents(path: Path | str, *, column: str = "text") -> int:
    """Count the documents that `text_file` finds, without holding them."""
    return sum(1 for _ in _documents(_checked(Path(path)), column))


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{file} is not UTF-8 ({error}): convert it, e.g. with iconv", file) from None
    except OSError as error:
        raise FileFormatError(f"{file} cannot be read ({error.strerror})", file) from None


def _checked(file: Path) -> Path:
    if file.suffix not in SUFFIXES:
        raise FileFormatError(f"{file} ends in {file.suffix or 'nothing'!r}, expected {', '.join(SUFFIXES)}", file)
    if not file.is_file():
        raise FileFormatError(f"{file} is not a file, expected documents in {', '.join(SUFFIXES)}", file)
    return file


def _documents(file: Path, column: str) -> Iterator[str]:
    empty = True
    with _reading(file):
        for place, value in _READERS[file.suffix](file, column):
            document = value.get(column) if isinstance(value, dict) else value
            if not isinstance(document, str):
                expected = f"a string or an object with a string {column!r}"
                raise FileFormatError(f"{file} {place} is {_show(value)}, expected {expected}", file)
            if _HALF_CHARACTER.search(document):
                raise FileFormatError(f"{file} {place} holds half of a surrogate pair, which is not text", file)
            empty = False
            yield document
    if empty:
        raise FileFormatError(f"{file} holds no document", file)


def _paragraphs(file: Path, column: str) -> Iterator[tuple[str, Any]]:
    with file.open(encoding="utf-8-sig") as lines:
        waiting: list[str] = []
        number = 0
        for line in chain(lines, [""]):
            if line.strip():
                waiting.append(line)
            elif waiting:
                yield f"document {number}", "".join(waiting).strip("\n")
                number += 1
                waiting = []


def _json_lines(file: Path, column: str) -> Iterator[tuple[str, Any]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise FileFormatError(f"{file} line {number} is not JSON ({error})", file) from None


def _json_list(file: Path, column: str) -> Iterator[tuple[str, Any]]:
    # entries are decoded one by one, so that the list is never held
    with file.open(encoding="utf-8-sig") as characters:
        window = _Window(characters)
        try:
            if window.mark() != "[":
                kind = type(window.value()).__name__
                raise FileFormatError(f"{file} holds a JSON {kind}, expected a list of strings", file)
            number, mark = 0, window.step()
            while mark != "]":
                yield f"entry {number}", window.value()
                mark = window.mark()
                if mark not in {",", "]"} or (mark == "," and window.step() == "]"):
                    raise ValueError(f"expected ',' and an entry, or ']', after entry {number}")
                number += 1
            if window.step():
                raise ValueError("there is something after the list")
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"{file} is not JSON ({error})", file) from None


class _Window:
    """A view on a text stream that grows only while one value does not fit."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._text, self._place = stream, "", 0

    def mark(self) -> str:
        """Go to the next character that is not white space, and return it; "" at the end."""
        while True:
            rest = _SPACE.match(self._text, self._place)
            self._place = rest.end() if rest else self._place
            if self._place < len(self._text) or not self._more():
                return self._text[self._place : self._place + 1]

    def step(self) -> str:
        """Go over one character, then to the next that is not white space."""
        self._place += 1
        return self.mark()

    def value(self) -> Any:
        """Decode one value and go behind it.

        Returns:
            The value.

        Raises:
            ValueError: There is no whole value.
        """
        while True:
            try:
                value, self._place = _DECODER.raw_decode(self._text, self._place)
            except ValueError:
                if not self._more():
                    raise
            else:
                return value

    def _more(self) -> bool:
        rest = self._text[self._place :]
        # a value that is longer than the window doubles it, so that decoding it again and again stays linear
        fresh = self._stream.read(max(_CHARACTERS, len(rest)))
        self._text, self._place = rest + fresh, 0
        return bool(fresh)


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


_READERS: Mapping[str, Callable[[Path, str], Iterator[tuple[str, Any]]]] = {
    ".txt": _paragraphs,
    ".json": _json_list,
    ".jsonl": _json_lines,
    ".parquet": parquet_rows,
}
