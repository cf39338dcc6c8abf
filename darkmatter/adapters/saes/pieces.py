"""What every family's reader needs: tensors by name, and settings of the right type."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from darkmatter.adapters.saes.loaded import SaeFiles
from darkmatter.errors import FileFormatError


def check_keys(
    weights: Mapping[str, Any], files: SaeFiles, *, required: Collection[str], optional: Collection[str] = ()
) -> None:
    """Require every tensor that is needed, and none whose meaning is unknown.

    Args:
        weights: What the file holds.
        files: Where it is.
        required: Names that must be there.
        optional: Names that may be there.

    Raises:
        FileFormatError: Names that are missing or unknown.
    """
    missing = sorted(set(required) - set(weights))
    unknown = sorted(set(weights) - set(required) - set(optional))
    if missing or unknown:
        raise FileFormatError(
            f"{files.weights} lacks {missing} and has unknown entries {unknown[:8]}, expected "
            f"{', '.join(sorted(required))}: it is another kind of SAE, or incomplete",
            files.weights,
        )


def matrix(weights: Mapping[str, Any], name: str, files: SaeFiles) -> Tensor:
    """Take a matrix.

    Args:
        weights: What the file holds.
        name: Its name.
        files: Where it is.

    Returns:
        The matrix.

    Raises:
        FileFormatError: It is no tensor with two dimensions.
    """
    value = weights[name]
    if not isinstance(value, Tensor) or value.ndim != 2:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise FileFormatError(f"{files.weights} has {name} of {got}, expected a matrix", files.weights)
    return value


def integer(value: Any, name: str, files: SaeFiles) -> int:
    """Take an integer, from JSON or from a tensor with one entry.

    Args:
        value: The value.
        name: What the files call it.
        files: Where they are.

    Returns:
        The integer.

    Raises:
        FileFormatError: It is something else.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point():
        value = int(value)
    if type(value) is not int:
        raise FileFormatError(f"{files.folder} has {name} {value!r}, expected an integer", files.weights)
    return value


def check_sizes(files: SaeFiles, *, d_model: int, d_sae: int, W_enc: Tensor) -> None:
    """Require the sizes of the configuration to be those of the arrays.

    Args:
        files: Where they are.
        d_model: Width that the configuration says.
        d_sae: Latents that it says.
        W_enc: Encoder, (d_model, d_sae).

    Raises:
        FileFormatError: They differ.
    """
    if tuple(W_enc.shape) != (d_model, d_sae):
        raise FileFormatError(
            f"{files.weights} has an encoder of shape {tuple(W_enc.shape)}, its configuration says "
            f"({d_model}, {d_sae}): the two files belong to different SAEs",
            files.weights,
        )


def text(value: Any) -> str | None:
    """Take a string that is only shown; anything else is left out."""
    return value if isinstance(value, str) and value else None
