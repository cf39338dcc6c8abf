"""The exceptions a user can meet: each says what was got, what was expected, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class DarkmatterError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(DarkmatterError, ValueError):
    """The input cannot be used: wrong shape, NaN, too few documents, an impossible configuration."""


class DegenerateError(DarkmatterError):
    """The data are well formed, but the asked quantity does not exist for them.

    Attributes:
        evidence: The measured numbers that led to the refusal, by name.
    """

    def __init__(self, message: str, evidence: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.evidence = dict(evidence or {})


class FileFormatError(DarkmatterError):
    """A file is truncated, foreign, or not what its name promises.

    Attributes:
        path: The offending file.
    """

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path
