"""Monoid: means and centred cross-products of float64 rows in whole numbers, with no rounding at all."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError


@dataclass(frozen=True, slots=True)
class ExactSums:
    """Sums of n rows of w columns: float64 numbers are multiples of a power of two, so whole numbers hold them.

    Attributes:
        n: Rows.
        totals: Σ z of every column in units of its step, (w,), Python integers.
        products: n Σ z z' − Σz Σz', (w, w), Python integers, in units of the two steps.
        steps: Denominator of every column, a power of two, (w,).
    """

    n: int
    totals: npt.NDArray[np.object_]
    products: npt.NDArray[np.object_]
    steps: tuple[int, ...]

    def mean(self, column: int) -> Fraction:
        """Mean of one column."""
        return Fraction(self.totals[column], self.n * self.steps[column])

    def scatter(self, first: int, second: int) -> Fraction:
        """Centred cross-product Σ (a − ā)(b − b̄) of two columns."""
        return Fraction(self.products[first, second], self.n * self.steps[first] * self.steps[second])


def exact_sums(rows: npt.ArrayLike) -> ExactSums:
    """Means and centred cross-products, n Σ a b − Σa Σb over n, without rounding.

    Args:
        rows: Rows z, (n, w), n ≥ 1.

    Returns:
        The sums (proofs/01_moments.md).

    Raises:
        InputError: Not a matrix of at least one row, or not finite.
    """
    values = np.asarray(rows, dtype=np.float64)
    if values.ndim != 2 or not len(values) or not np.isfinite(values).all():
        raise InputError(f"rows have shape {values.shape}, expected (n, w) with finite entries and n of at least 1")
    ratios = [[value.as_integer_ratio() for value in column] for column in values.T.tolist()]
    steps = tuple(max(below for _, below in column) for column in ratios)
    whole = np.array(
        [[above * (step // below) for above, below in column] for column, step in zip(ratios, steps, strict=True)],
        dtype=object,
    ).reshape(values.shape[::-1])
    totals = whole.sum(axis=1)
    return ExactSums(len(values), totals, len(values) * (whole @ whole.T) - np.outer(totals, totals), steps)
