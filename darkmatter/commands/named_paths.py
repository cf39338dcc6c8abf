"""Options of the form ``NAME=PATH`` or ``PATH``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from darkmatter.errors import InputError


def named_paths(values: Sequence[str], what: str) -> dict[str, str]:
    """Read ``NAME=PATH`` or ``PATH`` (named by its last part, without a suffix) into a mapping.

    Args:
        values: The option's values.
        what: The option, for the message.

    Returns:
        Paths by name.

    Raises:
        InputError: No value, an empty name or path, or a name that repeats.
    """
    found: dict[str, str] = {}
    for value in values:
        name, mark, path = value.partition("=")
        if not mark:
            name, path = Path(value.partition("@")[0]).name.partition(".")[0], value
        if not name or not path:
            raise InputError(f"{what} {value!r}, expected PATH or NAME=PATH")
        if name in found:
            raise InputError(f"{what} names {name!r} twice: write NAME=PATH with a different NAME for each SAE")
        found[name] = path
    if not found:
        raise InputError(f"no {what} given, expected at least one")
    return found
