"""Checks on arrays that come from outside: nothing is reshaped to fit, everything is said in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from darkmatter.errors import InputError

MAX_MAGNITUDE = 1e60
"""Largest entry whose fourth power, summed over a row, is still a float64."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def as_float_tensor(value: Any, name: str) -> Tensor:
    """View a numpy array, memory map or torch tensor as a floating torch tensor without copying where possible.

    Args:
        value: Array-like with a floating dtype (float16, bfloat16, float32 or float64).
        name: What the caller calls it, for the message.

    Returns:
        The tensor, same dtype, same shape; shares memory with `value` where torch allows it.

    Raises:
        InputError: `value` is not an array, its dtype is not floating, or it does not hold one value per entry.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{name} is a masked array, expected every entry to count: drop the masked rows before")
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f" or value.dtype.itemsize > 8:
            raise InputError(
                f"{name} has dtype {value.dtype}, expected float16, float32 or float64: "
                "convert it with `.astype('float32')`"
            )
        native = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
        if not native.flags.writeable:  # torch refuses to wrap read-only memory without a warning
            native = native.copy()
        return torch.from_numpy(native)
    if isinstance(value, Tensor):
        if value.dtype not in FLOATS:
            raise InputError(
                f"{name} has dtype {value.dtype}, expected float16, bfloat16, float32 or float64: "
                "convert it with `.float()`"
            )
        if value.layout != torch.strided:
            raise InputError(f"{name} is a {value.layout} tensor, expected a dense one: convert it with `.to_dense()`")
        if value.is_meta:
            raise InputError(f"{name} is on the meta device, which holds no values: load it onto a real device")
        return value.detach()
    raise InputError(f"{name} is a {type(value).__name__}, expected a numpy array or a torch tensor")


def check_matrix(value: Tensor, name: str, *, n: int | None = None, d: int | None = None) -> None:
    """Require a two-dimensional array of n tokens by d coordinates.

    Args:
        value: The array.
        name: What the caller calls it, for the message.
        n: Expected number of rows, if known.
        d: Expected width, if known.

    Raises:
        InputError: The shape differs; a transposed array is named as such.
    """
    shape = tuple(value.shape)
    if value.ndim != 2:
        raise InputError(f"{name} has shape {shape}, expected (n_tokens, d_model): flatten batch and position first")
    want = (n if n is not None else shape[0], d if d is not None else shape[1])
    if shape != want:
        hint = "it looks transposed: pass `.T`" if shape == want[::-1] else "every array needs one row per token of x"
        raise InputError(f"{name} has shape {shape}, expected {want}: {hint}")


def check_finite(value: Tensor, name: str) -> None:
    """Reject NaN, infinity and magnitudes whose fourth power would overflow.

    Args:
        value: Floating tensor, any shape (n, ...).
        name: What the caller calls it, for the message.

    Raises:
        InputError: With the number of bad entries and the first bad row.
    """
    if value.numel() == 0:
        return
    low, high = (float(v) for v in torch.aminmax(value))
    if low > -MAX_MAGNITUDE and high < MAX_MAGNITUDE:  # False for NaN as well
        return
    bad = ~(value.abs() < MAX_MAGNITUDE)
    row = int(bad.reshape(len(value), -1).any(dim=1).nonzero()[0])
    count = int(bad.sum())
    half = value.dtype == torch.float16
    cause = (
        "float16 overflows at 65504: cache activations in bfloat16 or float32"
        if half
        else "find the token that produced it, or drop its document"
    )
    raise InputError(f"{name} has {count} entries that are NaN, infinite or beyond 1e60 (first in row {row}): {cause}")
