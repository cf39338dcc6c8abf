"""Checks on the plain values that configure a sandbox."""

from __future__ import annotations

import math

from darkmatter.errors import InputError


def check_int(value: object, name: str, low: int) -> None:
    """Require an int (a Python one, so that it can be written as JSON).

    Args:
        value: What a user gave.
        name: What the caller calls it, for the message.
        low: Smallest allowed value.

    Raises:
        InputError: Another type, a bool, or below `low`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise InputError(f"{name} is {value!r}, expected an int of at least {low}")


def check_number(value: object, name: str, low: float, high: float, *, closed: bool = True) -> None:
    """Require a finite number in an interval.

    Args:
        value: What a user gave.
        name: What the caller calls it, for the message.
        low: Smallest allowed value.
        high: Largest allowed value, or with `closed=False` the value to stay below; infinity for no limit.
        closed: Whether `high` itself is allowed.

    Raises:
        InputError: Another type, a bool, NaN, or outside the interval.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and low <= value <= high and (closed or value < high) and value != math.inf:  # type: ignore[operator]
        return
    end = "" if high == math.inf else f" and {'at most' if closed else 'below'} {high:g}"
    raise InputError(f"{name} is {value!r}, expected a finite number of at least {low:g}{end}")


def check_stream(stream: object) -> None:
    """Require a stream name.

    Args:
        stream: What a user gave.

    Raises:
        InputError: Not a non-empty string.
    """
    if not isinstance(stream, str) or not stream:
        raise InputError(f"stream is {stream!r}, expected a non-empty name such as 'train' or 'eval'")


def check_choice(value: object, name: str, choices: tuple[str, ...]) -> None:
    """Require one of some names.

    Args:
        value: What a user gave.
        name: What the caller calls it, for the message.
        choices: The names.

    Raises:
        InputError: Anything else.
    """
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
