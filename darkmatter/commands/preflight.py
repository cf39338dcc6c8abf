"""What is bound to fail is said before any work is done."""

from __future__ import annotations

from pathlib import Path

import torch

from darkmatter.errors import InputError


def check_run(*, folds: int, out: Path, device: str = "cpu", checkpoint_seconds: float = 0.0) -> None:
    """Check the options that otherwise only matter once a model was loaded, an SAE trained, or a pass finished.

    Args:
        folds: Document folds.
        out: Folder to write; it need not exist.
        device: Where the sums live.
        checkpoint_seconds: Least time between two saves.

    Raises:
        InputError: Fewer than two folds, an `out` that cannot be a folder, a device that cannot hold float64 sums, or
            a time that is negative or NaN.
    """
    if folds < 2:
        raise InputError(f"folds is {folds}, expected at least 2: an interval needs two folds that differ")
    if not checkpoint_seconds >= 0:
        raise InputError(f"checkpoint-seconds is {checkpoint_seconds:g}, expected 0 or more")
    check_out(out)
    try:
        torch.zeros(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # torch has no type for this
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise InputError(f"device {device!r} cannot hold the sums, in float64 ({reason}): try 'cpu'") from None


def check_out(out: Path) -> None:
    """Check that a folder can be written.

    Args:
        out: The folder; it need not exist.

    Raises:
        InputError: It, or a part of its path, is a file.
    """
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"{nearest} is a file, expected a folder to write to: choose another --out")


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Check an option that takes one of a few words.

    Args:
        name: The option.
        value: Its value.
        known: The words.

    Raises:
        InputError: Another word.
    """
    if value not in known:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(known)}")
