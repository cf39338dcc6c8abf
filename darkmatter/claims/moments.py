"""Monoid: moments merge associatively and commutatively, to within a bound on rounding (proofs/01_moments.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from hypothesis import strategies as st

from darkmatter.claims.claim import AnyClaim, Claim, Margin, at_most, equals, worst
from darkmatter.claims.merging import (
    Merge,
    Outlier,
    Pair,
    Split,
    merged,
    moments_of,
    of_activations,
    outliers,
    pairs,
    splits,
)
from darkmatter.claims.strategies import Floats, small_matrices
from darkmatter.moments import Moments
from darkmatter.theory.exact_sums import exact_sums
from darkmatter.theory.rounding import Column, Merges, mean_error, scatter_error

_PAGE = "01_moments"
_TINY = float(np.finfo(np.float64).tiny)
_ONCE = Merges(depth=1, parts=2, block=8)  # a few rows in one block
_GENEROUS = 1000.0  # so that a counterexample is no matter of constants


# --- the update in exact arithmetic


@dataclass(frozen=True, slots=True)
class _Sums:
    """Count, mean and scatter of whole numbers, without rounding."""

    n: int
    mean: Fraction
    scatter: Fraction

    @classmethod
    def of(cls, numbers: list[int]) -> _Sums:
        """By the two-pass formulas; no numbers have mean 0."""
        mean = Fraction(sum(numbers), max(1, len(numbers)))
        return cls(len(numbers), mean, sum(((x - mean) ** 2 for x in numbers), Fraction(0)))

    def merge(self, other: _Sums, how: str = "") -> _Sums:
        """The update; `how` names what is wrong with it."""
        n = self.n + other.n
        if not n:
            return self
        delta, share = other.mean - self.mean, Fraction(other.n, n)
        weight = {"no weight": Fraction(1), "no term": Fraction(0)}.get(how, self.n * share)
        step = {"wrong sign": -share, "plain mean": Fraction(1, 2)}.get(how, share)
        return _Sums(n, self.mean + step * delta, self.scatter + other.scatter + weight * delta**2)


_Lists = tuple[list[int], list[int], list[int]]
_numbers = st.lists(st.integers(-9, 9), max_size=5)


def _laws(lists: _Lists, *, how: str = "") -> Margin:
    a, b, c = (_Sums.of(numbers) for numbers in lists)
    whole, zero = _Sums.of([*lists[0], *lists[1], *lists[2]]), _Sums.of([])
    same = (
        (a.merge(b, how).merge(c, how), whole),
        (a.merge(b.merge(c, how), how), whole),
        (b.merge(a, how), a.merge(b, how)),
        (zero.merge(a, how), a),
        (a.merge(zero, how), a if a.n else zero),
    )
    gaps = [abs(u.n - v.n) + abs(u.mean - v.mean) + abs(u.scatter - v.scatter) for u, v in same]
    return Margin(-float(max(gaps)))


# --- the product in float64


def _within_bound(split: Split, *, merge: Merge = Moments.merge) -> Margin:
    layout, rows, merges = split.layout, split.rows(), split.merges
    exact, result = exact_sums(rows), merged(split.parts(), split.tree, merge)
    largest, spread = np.abs(rows).max(axis=0), np.ptp(rows, axis=0)
    means = [mean_error(merges, largest=float(m), spread=float(r)) for m, r in zip(largest, spread, strict=True)]
    columns = [
        Column(float(exact.scatter(i, i)), float(m), e) for i, (m, e) in enumerate(zip(largest, means, strict=True))
    ]

    def margin(got: float, want: Fraction, bound: float) -> Margin:
        return at_most(float(abs(Fraction(got) - want)), bound, scale=bound + _TINY)

    def product(got: float, pairs: list[tuple[int, int]]) -> Margin:
        first, second = (_block([columns[pair[side]] for pair in pairs]) for side in (0, 1))
        bound = scatter_error(merges, exact.n, first, second, width=len(pairs))
        return margin(got, sum((exact.scatter(i, j) for i, j in pairs), Fraction(0)), bound)

    d, width = layout.d_model, layout.width
    targets = range(width)[layout.targets]
    return worst(
        *(() if result.n == exact.n else (Margin(-1.0),)),
        *(margin(float(result.mean[i]), exact.mean(i), means[i]) for i in range(width)),
        *(product(float(result.cross[i, j]), [(i, j)]) for i in range(d) for j in range(width)),
        *(product(float(result.target_ss[i]), [(t, t)]) for i, t in enumerate(targets)),
        *(
            product(float(result.error_gram[a, b]), [(d * (1 + a) + i, d * (1 + b) + i) for i in range(d)])
            for a in range(2)
            for b in range(2)
        ),
    )


def _block(columns: list[Column]) -> Column:
    return Column(
        sum(column.scatter for column in columns),
        float(np.hypot.reduce([column.largest for column in columns])),
        float(np.hypot.reduce([column.mean_error for column in columns])),
    )


def _no_term(a: Moments, b: Moments) -> Moments:
    return replace(a.merge(b), cross=a.cross + b.cross)


def _no_weight(a: Moments, b: Moments) -> Moments:
    delta = b.mean - a.mean
    return replace(a.merge(b), cross=a.cross + b.cross + torch.outer(delta[a.layout.x], delta))


def _wrong_sign(a: Moments, b: Moments) -> Moments:
    right = a.merge(b)
    return replace(right, mean=a.mean - (b.mean - a.mean) * (b.n / max(1, right.n)))


def _bit_for_bit(split: Split, *, blocks: str = "fixed") -> Margin:
    zero, pieces = Moments.zero(split.layout, torch.device("cpu")), split.pieces()
    whole = moments_of([split.arrays()], split.layout)
    if blocks == "fixed":  # one accumulator, fed in pieces, and "no tokens" on either side
        other = zero.merge(moments_of(pieces, split.layout)).merge(zero)
    else:
        other = merged([moments_of([piece], split.layout) for piece in pieces], "from the left")
    names = ("mean", "cross", "error_gram", "target_ss", "far_x")
    gaps = (equals(getattr(whole, name), getattr(other, name), scale=1.0, rounding=0.0) for name in names)
    return worst(Margin(-float(abs(whole.n - other.n))), *gaps)


# --- what people do instead


def _against(got: float, rows: Floats) -> Margin:
    """A scatter against a generous multiple of the bound for rows that were summed at once."""
    exact = exact_sums(rows)
    largest, spread = float(np.abs(rows).max()), float(np.ptp(rows))
    column = Column(float(exact.scatter(0, 0)), largest, mean_error(_ONCE, largest=largest, spread=spread))
    bound = _GENEROUS * scatter_error(_ONCE, exact.n, column, column)
    return at_most(float(abs(Fraction(got) - exact.scatter(0, 0))), bound, scale=bound + _TINY)


def _textbook(two: Pair, *, first: str = "") -> Margin:
    rows = two.rest + 10.0**two.power
    x = rows - rows.mean() if first == "centre" else rows
    return _against(float((x**2).sum() - len(x) * x.mean() ** 2), rows)


def _subtracted(two: Pair, *, how: str = "subtract") -> Margin:
    fold = of_activations(two.fold * 10.0**two.power)
    rest = of_activations(two.rest)
    if how == "unite":
        return _against(float(rest.xx), two.rest)
    total = fold.merge(rest)
    n = total.n - fold.n
    mean = total.mean_x + (total.mean_x - fold.mean_x) * (fold.n / n)
    left = total.xx - fold.xx - (mean - fold.mean_x).square() * (fold.n * n / total.n)
    return _against(float(left), two.rest)


# --- the farthest token


def _farthest(rows: Floats, parts: list[Floats]) -> Margin:
    """Distance of the kept activation from the final mean against the largest distance there is."""
    result = merged([of_activations(part) for part in parts], "from the left")
    mean = rows.mean(axis=0)
    kept = float(np.linalg.norm(result.far_x.numpy() - mean))
    most = float(np.linalg.norm(rows - mean, axis=1).max())
    # far_x is stored through one subtraction and one addition of a mean
    return at_most(most, kept, scale=most + 1.0, rounding=16 * float(np.finfo(np.float64).eps))


def _far(numbers: Floats, *, one_mean: bool = False) -> Margin:
    parts = [numbers[i : i + 1] for i in range(len(numbers))]
    if one_mean:  # every part symmetric about 0
        parts = [np.vstack([part, -part]) for part in parts]
    return _farthest(np.vstack(parts), parts)


def _outlier(case: Outlier, *, alone: bool = False) -> Margin:
    parts = case.parts(alone=alone)
    return _farthest(np.vstack(parts), parts)


CLAIMS: tuple[AnyClaim, ...] = (
    Claim(
        theorem="monoid",
        name="update-is-exact-and-a-monoid",
        page=_PAGE,
        statement="A + B + (n_A n_B / n) dd' gives the two-pass sums, in any grouping and order, with identity",
        assumptions="none; exact rational arithmetic",
        cases=st.tuples(_numbers, _numbers, _numbers),
        margin=_laws,
        twins={
            "no weight n_A n_B / n": partial(_laws, how="no weight"),
            "no term for the means": partial(_laws, how="no term"),
            "mean moves the wrong way": partial(_laws, how="wrong sign"),
            "plain average of the means": partial(_laws, how="plain mean"),
        },
    ),
    Claim(
        theorem="monoid",
        name="merged-sums-stay-within-the-bound",
        page=_PAGE,
        statement="every sum, merged along any tree in any order, is within its rounding bound of the exact one",
        assumptions="none; rows in float64, counts of roundings times u below 1 %",
        cases=splits(),
        margin=_within_bound,
        twins={
            "no weight n_A n_B / n": partial(_within_bound, merge=_no_weight),
            "no term for the means": partial(_within_bound, merge=_no_term),
            "mean moves the wrong way": partial(_within_bound, merge=_wrong_sign),
        },
    ),
    Claim(
        theorem="monoid",
        name="batches-and-no-tokens-change-no-bit",
        page=_PAGE,
        statement="feeding the rows in other batches, or merging with no tokens, changes no bit of any sum",
        assumptions="one accumulator sees the rows in one order",
        cases=splits(),
        margin=_bit_for_bit,
        twins={"an accumulator per batch": partial(_bit_for_bit, blocks="own")},
    ),
    Claim(
        theorem="monoid",
        name="clear-outlier-is-kept",
        page=_PAGE,
        statement="far_x is the outlier, wherever in the order it comes",
        assumptions="all other rows within r of a point, the outlier beyond 7 r; its part has at least 3 rows",
        cases=outliers(),
        margin=_outlier,
        twins={"parts of one row": partial(_outlier, alone=True)},
    ),
    Claim(
        theorem="monoid",
        name="far-x-is-the-farthest-token",
        page=_PAGE,
        statement="the activation that merging keeps is the one farthest from the mean of all rows",
        assumptions="none",
        cases=small_matrices(3, 1),
        margin=_far,
        false=True,
        known=np.array([[0.0], [1.0], [0.0]]),
        show=lambda numbers: "parts of one row each, merged in turn: " + " ".join(f"{v:.0f}" for v in numbers[:, 0]),
        twins={"all parts have one mean": partial(_far, one_mean=True)},
    ),
    Claim(
        theorem="monoid",
        name="one-pass-sums-of-squares-are-as-good",
        page=_PAGE,
        statement="sum x^2 - n mean^2 in float64 is within 1000 times the same rounding bound",
        assumptions="none",
        cases=pairs(),
        margin=_textbook,
        false=True,
        known=Pair(np.array([[0.0], [1.0]]), np.array([[0.0]]), 9),
        show=lambda pair: " ".join(f"{v:.0f}" for v in pair.rest[:, 0]) + f", plus 1e{pair.power}",
        twins={"centred first": partial(_textbook, first="centre")},
    ),
    Claim(
        theorem="monoid",
        name="a-fold-can-be-subtracted",
        page=_PAGE,
        statement="total minus fold is within 1000 times the rounding bound of uniting the other folds",
        assumptions="none",
        cases=pairs(),
        margin=_subtracted,
        false=True,
        known=Pair(np.array([[0.0], [1.0]]), np.array([[1.0], [-1.0]]), 9),
        twins={"the others united": partial(_subtracted, how="unite")},
    ),
)
