"""Products of float64 blocks on devices whose float64 is slow: exact integer slices, multiplied in float32.

A column v with scale s, the power of two above its largest entry, is written as
v ≈ s (q_1 2⁻⁷ + q_2 2⁻¹⁵ + q_3 2⁻²³ + q_4 2⁻³¹) with integers |q| ≤ 128 (Ozaki et al. 2012). Products of two such
integers are at most 2¹⁴, so that 1,024 of them add up without rounding in any arithmetic with bfloat16 inputs and
float32 sums.
The result is therefore the same, bit for bit, on every device and under every setting of
`torch.set_float32_matmul_precision`: under "medium" the products run on bfloat16 units where there are any.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from darkmatter.errors import InputError

Precision = Literal["float64", "split"]
"""How blocks are multiplied: in float64, or from exact slices with a relative rounding of about 2⁻²⁷ (see `add_split`).
Sums are float64 either way."""

SLICES = 4
EXACT_ROWS = 256
"""Rows multiplied at once: four products of two slices share one sum, 4 · 256 · 2¹⁴ = 2²⁴."""

_FIRST, _STEP = 2**7, 2**8


def check_precision(value: str) -> None:
    """Require a `Precision`.

    Args:
        value: The option.

    Raises:
        InputError: Something else.
    """
    if value not in get_args(Precision):
        raise InputError(
            f"precision is {value!r}, expected 'float64', or 'split' for a device whose float64 is much slower "
            "than its float32"
        )


def add_product(out: Tensor, left: Tensor, right: Tensor, precision: Precision) -> Tensor:
    """Add left' right to `out`, in place.

    Args:
        out: (p, q), float64.
        left: (n, p), float64.
        right: (n, q), float64.
        precision: How to multiply.

    Returns:
        `out`.
    """
    return out.addmm_(left.T, right) if precision == "float64" else add_split(out, left, right)


def add_split(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add left' right to `out`, in place, from float32 products of exact slices.

    With M the largest magnitude in a column, the error of an entry is at most 2⁻²⁷ n M_left M_right, plus the rounding
    of one float64 addition per 256 rows: slices beyond the fourth are below 2⁻³² s each, products that are left out
    below 3.1 · 2⁻³² s s', and s ≤ 2 M.

    Args:
        out: (p, q), float64.
        left: (n, p), float64.
        right: (n, q), float64.

    Returns:
        `out`.
    """
    p = left.shape[1]
    for rows, others in zip(torch.split(left, EXACT_ROWS), torch.split(right, EXACT_ROWS), strict=True):
        a, a_scale = _slices(rows)
        # slices take twice the memory of what they are made of: as many columns at a time as `left` has
        for columns, target in zip(torch.split(others, p, dim=1), torch.split(out, p, dim=1), strict=True):
            b, b_scale = _slices(columns)
            total = torch.zeros_like(target)
            for order in reversed(range(SLICES)):  # the smallest first
                first = a[: order + 1].flatten(0, 1)
                second = b[: order + 1].flip(0).flatten(0, 1)
                total.div_(_STEP).add_(first.T @ second)
            target += total.mul_(a_scale[:, None] / _FIRST).mul_(b_scale / _FIRST)
    return out


def _slices(values: Tensor) -> tuple[Tensor, Tensor]:
    """Integer slices of every column, (SLICES, n, q) float32, and its scale, (q,) float64."""
    largest = values.abs().amax(dim=0)
    mantissa = torch.frexp(largest)[0]
    scale = torch.where(largest > 0, largest / mantissa, 1.0)
    rest = values / scale * _FIRST  # exact, as is everything below
    slices = torch.empty(SLICES, *values.shape, dtype=torch.float32, device=values.device)
    for part in slices:
        whole = rest.round()
        part.copy_(whole)
        rest.sub_(whole).mul_(_STEP)
    return slices, scale
