"""Several mapped arrays as the rows of one, never read whole; and the files that a pattern stands for."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from darkmatter.adapters.array_files import load_array
from darkmatter.batch import Array
from darkmatter.checks import as_float_tensor
from darkmatter.errors import FileFormatError, InputError

FINGERPRINT_ROWS = 16
"""Rows, evenly spaced from the first to the last, that stand for the content in a fingerprint."""

_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Matrices of one width, one below the other.

    Attributes:
        parts: The matrices, (n_i, d) each; mapped or in memory.
        names: File name of each.
    """

    parts: tuple[Array, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def width(self) -> int:
        """Number of columns d."""
        return int(self.parts[0].shape[1])

    @property
    def dtype(self) -> str:
        """Precision, as torch and numpy call it; several where the files differ."""
        return ", ".join(sorted({str(part.dtype).removeprefix("torch.") for part in self.parts}))

    def read(self, low: int, high: int) -> Tensor:
        """Copy rows out of the files.

        Args:
            low: The first.
            high: One after the last.

        Returns:
            (high - low, d), float32.
        """
        pieces = list(self._pieces(low, high))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    @property
    def fingerprint(self) -> str:
        """Hash of names, shapes, dtypes and 16 rows."""
        shapes = [(name, tuple(part.shape), str(part.dtype)) for name, part in zip(self.names, self.parts, strict=True)]
        digest = hashlib.blake2b(repr(shapes).encode(), digest_size=16)
        for row in np.unique(np.linspace(0, len(self) - 1, num=FINGERPRINT_ROWS).astype(np.int64)):
            digest.update(self.read(int(row), int(row) + 1).numpy().tobytes())
        return digest.hexdigest()

    def _pieces(self, low: int, high: int) -> Iterator[Tensor]:
        first = 0
        for part in self.parts:
            start, stop = max(low - first, 0), min(high - first, len(part))
            if start < stop:
                rows = part[start:stop]
                copied = np.array(rows, subok=False) if isinstance(rows, np.ndarray) else rows
                yield as_float_tensor(copied, "x").to(torch.float32, copy=True)
            first += len(part)


def open_rows(files: Path | str | Sequence[Path | str]) -> Rows:
    """Map array files.

    Args:
        files: A `.npy` or `.safetensors` file, a pattern such as ``acts-*.npy``, or a list of files in their order.

    Returns:
        Their rows.

    Raises:
        InputError: No file.
        FileFormatError: A file that `load_array` refuses, or one of another width.
    """
    paths = expand(files) if isinstance(files, str | Path) else [Path(file) for file in files]
    if not paths:
        raise InputError("no file of activations was given, expected at least one")
    parts = tuple(load_array(path) for path in paths)
    for path, part in zip(paths, parts, strict=True):
        if part.shape[1] != parts[0].shape[1]:
            raise FileFormatError(
                f"{path} has {part.shape[1]} columns, expected {parts[0].shape[1]} as in {paths[0].name}: these files "
                "do not belong together",
                path,
            )
    return Rows(parts=parts, names=tuple(path.name for path in paths))


def expand(pattern: Path | str) -> list[Path]:
    """Find the files that a pattern stands for, in the order of the numbers in their names.

    Args:
        pattern: A path in which ``*`` and ``?`` stand for anything; a path that exists is taken as it is.

    Returns:
        The files.

    Raises:
        FileFormatError: No file matches, or the numbering has a gap.
    """
    text = str(pattern)
    if not is_pattern(text):
        return [Path(text)]
    found = sorted((Path(name) for name in glob.glob(text)), key=_natural)  # noqa: PTH207 - the folder may be one too
    if not found:
        raise FileFormatError(f"no file matches {text}", Path(text))
    # a stream with a hole would be presented as whole, where one number alone tells the files apart
    pieces = [_NUMBER.split(path.name) for path in found]
    if len({len(piece) for piece in pieces}) == 1:
        changing = [k for k in range(len(pieces[0])) if len({piece[k] for piece in pieces}) > 1]
        if len(changing) == 1 and changing[0] % 2:
            numbers = [int(piece[changing[0]]) for piece in pieces]
            gaps = [n for n in range(min(numbers[0], 1), numbers[0] + len(numbers)) if n not in numbers]
            if gaps and (numbers[0] > 1 or gaps[0] > numbers[0]):
                raise FileFormatError(
                    f"{text} has no file with number {gaps[0]}, but one with {numbers[-1]}: a file is missing, or list "
                    "the files yourself",
                    Path(text),
                )
    return found


def is_pattern(text: str) -> bool:
    """Whether a path is a pattern rather than a file."""
    return any(mark in text for mark in "*?") and not Path(text).exists()


def _natural(path: Path) -> list[tuple[int, int, str]]:
    pieces = enumerate(_NUMBER.split(path.name))
    return [(1, int(piece), "") if place % 2 else (0, 0, piece) for place, piece in pieces]
