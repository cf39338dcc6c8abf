"""Text files as lists of documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from darkmatter.errors import FileFormatError, InputError

SUFFIXES = (".txt", ".json", ".jsonl")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can escape one; no tokenizer can encode it


def read_documents(path: Path | str, *, max_documents: int | None = None) -> list[str]:
    """Read the documents of a text file, in order; a document's index in this list is its id everywhere.

    * `.txt`: documents are separated by one or more blank lines (lines with nothing but white space);
    * `.json`: a list of strings;
    * `.jsonl`: on every line a string, or an object with a string under ``text``; blank lines are skipped.

    Args:
        path: The file, in UTF-8.
        max_documents: Stop after this many; a `.jsonl` file is then not read further.

    Returns:
        At least one document.

    Raises:
        FileFormatError: Missing, another suffix, not UTF-8, not such JSON (with the first offending place), or empty.
        InputError: `max_documents` is below 1.
    """
    if max_documents is not None and max_documents < 1:
        raise InputError(f"max_documents is {max_documents}, expected at least 1")
    file = Path(path)
    readers = {".txt": _paragraphs, ".json": _json_list, ".jsonl": _json_lines}
    if file.suffix not in readers:
        raise FileFormatError(f"{file} ends in {file.suffix or 'nothing'!r}, expected {', '.join(SUFFIXES)}", file)
    if not file.is_file():
        raise FileFormatError(f"{file} is not a file, expected documents in {', '.join(SUFFIXES)}", file)
    try:
        documents = list(islice(readers[file.suffix](file), max_documents))
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{file} is not UTF-8 ({error}): convert it, e.g. with iconv", file) from None
    except OSError as error:
        raise FileFormatError(f"{file} cannot be read ({error.strerror})", file) from None
    if not documents:
        raise FileFormatError(f"{file} holds no document", file)
    for index, document in enumerate(documents):
        if _HALF_CHARACTER.search(document):
            raise FileFormatError(f"{file} document {index} holds half of a surrogate pair, which is not text", file)
    return documents


def count_documents(path: Path | str) -> int:
    """Count the documents that `read_documents` finds."""
    return len(read_documents(path))


def _paragraphs(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8-sig")
    return (part.strip("\n") for part in re.split(r"\n(?:[^\S\n]*\n)+", text) if part.strip())


def _json_list(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8-sig")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{file} is not JSON ({error})", file) from None
    if not isinstance(value, list):
        raise FileFormatError(f"{file} holds a JSON {type(value).__name__}, expected a list of strings", file)
    for index, document in enumerate(value):
        if not isinstance(document, str):
            raise FileFormatError(f"{file} entry {index} is {_show(document)}, expected a string", file)
    return iter(value)


def _json_lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise FileFormatError(f"{file} line {number} is not JSON ({error})", file) from None
            document = value.get("text") if isinstance(value, dict) else value
            if not isinstance(document, str):
                raise FileFormatError(
                    f"{file} line {number} is {_show(value)}, expected a string or an object with a string 'text'", file
                )
            yield document


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
