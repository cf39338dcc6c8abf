"""Monoid: how far merged moments can be from exact arithmetic, and the textbook formula beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from darkmatter.errors import InputError

UNIT = 2.0**-53
"""Unit roundoff u of float64: every operation is off by at most this share of its result."""

_SECOND_ORDER = 1.1  # products of roundings, as long as no count of roundings times u exceeds 1 %


@dataclass(frozen=True, slots=True)
class Merges:
    """How sums were formed; nothing else of the order matters to the bounds.

    Attributes:
        depth: Most operations on the way of any row, h ≥ 1: blocks absorbed after it or with it, and unions.
        parts: Most sets united at once, k ≥ 2.
        block: Most rows multiplied at once, b ≥ 1.
    """

    depth: int
    parts: int
    block: int

    def __post_init__(self) -> None:
        for name, least in (("depth", 1), ("parts", 2), ("block", 1)):
            value = getattr(self, name)
            if value < least:
                raise InputError(f"{name} is {value!r}, expected at least {least}: count the operations on rows again")


def mean_error(merges: Merges, *, largest: float, spread: float) -> float:
    """Bound on the error of a merged mean, 1.1 h u (2 M + (b + k + 6) D).

    Args:
        merges: How it was formed.
        largest: M, the largest magnitude in the column.
        spread: D, largest minus smallest entry of the column.

    Returns:
        The bound, in units of the column (proofs/01_moments.md).

    Raises:
        InputError: A negative or infinite size, or so many operations that the bound would exceed 1 % of D.
    """
    _check_sizes(largest=largest, spread=spread)
    count = merges.block + merges.parts + 6
    _check_count(merges.depth * count)
    return _SECOND_ORDER * merges.depth * UNIT * (2.0 * largest + count * spread)


@dataclass(frozen=True, slots=True)
class Column:
    """Sizes of one column of rows, or of a block of columns whose products are summed (a trace).

    Attributes:
        scatter: Σ (z − z̄)², summed over the block.
        largest: M, the largest magnitude; over a block the root of the sum of squares of the columns' own.
        mean_error: Bound of `mean_error`; over a block the root of the sum of squares.
    """

    scatter: float
    largest: float
    mean_error: float

    def __post_init__(self) -> None:
        _check_sizes(scatter=self.scatter, largest=self.largest, mean_error=self.mean_error)


def scatter_error(merges: Merges, n: int, first: Column, second: Column, *, width: int = 1) -> float:
    """Bound on the error of a merged centred cross-product Σ (a − ā)(b − b̄).

    1.1 times the sum of: h ((b + 2 k) w + 10) u sqrt(S_a S_b), products and additions; sqrt(h n) (μ_a sqrt S_b +
    μ_b sqrt S_a), rounded means of the parts; n (4 h μ_a μ_b + (b u)² M_a M_b), centring on a rounded mean. Relative to
    sqrt(S_a S_b) the means bring u M / sd: the condition number of a variance, the textbook formula has its square.

    Args:
        merges: How it was formed.
        n: Rows, at least 1.
        first: The one column, or block.
        second: The other; the same for a sum of squares.
        width: w, columns in a block.

    Returns:
        The bound, in units of the product (proofs/01_moments.md).

    Raises:
        InputError: Less than one row or column, or so many operations that the bound would exceed 1 %.
    """
    if n < 1 or width < 1:
        raise InputError(f"n and width are {n!r} and {width!r}, expected at least 1: an empty sum has no error")
    h, b = merges.depth, merges.block
    count = h * ((b + 2 * merges.parts) * width + 10)
    _check_count(count)
    products = count * UNIT * math.sqrt(first.scatter * second.scatter)
    means = first.mean_error * math.sqrt(second.scatter) + second.mean_error * math.sqrt(first.scatter)
    squares = 4.0 * h * first.mean_error * second.mean_error + (b * UNIT) ** 2 * first.largest * second.largest
    return _SECOND_ORDER * (products + math.sqrt(h * n) * means + n * squares)


def textbook_error(n: int, mean: float, scatter: float) -> float:
    """Bound on the error of Σx² − n x̄² computed as it stands, 1.1 (3 n + 4) u Σx² with Σx² = S + n x̄².

    Relative to S this is the *square* of the condition number sqrt(1 + n x̄² / S) times (3 n + 4) u.

    Args:
        n: Numbers, at least 1.
        mean: Their mean.
        scatter: S = Σ (x − x̄)².

    Returns:
        The bound, in squared units of x (proofs/01_moments.md).

    Raises:
        InputError: No numbers, or sizes that are not finite.
    """
    if n < 1:
        raise InputError(f"n is {n!r}, expected at least 1: an empty sum has no error")
    _check_sizes(mean=abs(mean), scatter=scatter)
    _check_count(3 * n + 4)
    return _SECOND_ORDER * (3 * n + 4) * UNIT * (scatter + n * mean**2)


def _check_sizes(**sizes: float) -> None:
    for name, value in sizes.items():
        if not 0.0 <= value < math.inf:
            raise InputError(
                f"{name} is {value!r}, expected a finite number of at least 0: pass sizes, not signed sums"
            )


def _check_count(count: int) -> None:
    if count * UNIT > 0.01:
        raise InputError(
            f"{count} roundings in a row, expected at most {0.01 / UNIT:.0e}: merge as a tree, not a chain"
        )
