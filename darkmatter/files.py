"""Reading and writing files so that a crash leaves the old file or the new one, never half of either."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from darkmatter.errors import FileFormatError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Offer a temporary file beside `path`; on success it replaces `path` atomically, on failure it is removed.

    Args:
        path: The file to write; its folder is created.

    Yields:
        The temporary path to write to, with the same suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:  # the data must be on disk before the name points to them
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private; the user asked for an ordinary file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON atomically; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        what: What it should be, for the message.

    Returns:
        The object.

    Raises:
        FileFormatError: Missing, unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(f"{path} does not exist, expected {what}", path) from None
    except (ValueError, RecursionError, OSError) as error:  # bad UTF-8 or JSON, a huge integer, a folder in its place
        raise FileFormatError(f"{path} cannot be read as JSON ({error}), expected {what}", path) from None
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} holds a JSON {type(value).__name__}, expected {what} (an object)", path)
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically."""
    with replacing(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def read_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file.

    Args:
        path: The file.
        what: What it should be, for the message.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        FileFormatError: Missing, truncated, or not safetensors.
    """
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist, expected {what}", path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(
            f"{path} cannot be read as safetensors ({error}), expected {what}: it is truncated or foreign", path
        ) from None
