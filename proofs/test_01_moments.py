"""The monoid, attacked; the update with symbols, a chain of full blocks, and the page's examples."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import sympy
import torch

from darkmatter import InputError
from darkmatter.accumulate import MomentAccumulator
from darkmatter.claims import AnyClaim
from darkmatter.claims.merging import moments_of, of_activations
from darkmatter.claims.moments import CLAIMS
from darkmatter.moments import Layout, Moments
from darkmatter.theory.exact_sums import exact_sums
from darkmatter.theory.rounding import UNIT, Column, Merges, mean_error, scatter_error, textbook_error
from proofs.checks import check_claim, check_twin

__all__ = ["CLAIMS"]


def test_claim(claim: AnyClaim) -> None:
    check_claim(claim)


def test_twin(claim: AnyClaim, twin: str) -> None:
    check_twin(claim, twin)


def test_the_update_with_symbols() -> None:
    """Sums of three sets from their raw sums: S = Q − T²/n, mean T/n; both groupings and the direct formula agree."""
    counts = sympy.symbols("n_a n_b n_c", positive=True)
    raw = zip(counts, sympy.symbols("T_a T_b T_c"), sympy.symbols("Q_a Q_b Q_c"), strict=True)
    a, b, c = ((n, t / n, q - t**2 / n) for n, t, q in raw)

    def merge(first: tuple[sympy.Expr, ...], second: tuple[sympy.Expr, ...]) -> tuple[sympy.Expr, ...]:
        (m, x, s), (k, y, r) = first, second
        return m + k, x + k / (m + k) * (y - x), s + r + m * k / (m + k) * (y - x) ** 2

    n = sum(counts)
    total = sum(m * x for m, x, _ in (a, b, c))
    squares = sum(s + m * x**2 for m, x, s in (a, b, c))
    direct = (n, total / n, squares - total**2 / n)
    for way in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(merge(c, a), b)):
        assert all(sympy.simplify(got - want) == 0 for got, want in zip(way, direct, strict=True))
    wrong = merge((a[0], a[1], a[2]), (b[0], -b[1], b[2]))
    assert sympy.simplify(wrong[2] - merge(a, b)[2]) != 0


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e7])
def test_a_chain_of_full_blocks_and_a_tree_of_shards(offset: float) -> None:
    layout = Layout(1, ("a",))
    b = layout.block_rows
    rng = np.random.default_rng(0)
    x = offset + rng.standard_normal((4 * b + 100, 1))
    whole = moments_of([(x, np.zeros((1, *x.shape)))], layout)
    shards = [of_activations(part) for part in np.array_split(x, 7)]
    exact = exact_sums(x)
    for result, merges in ((whole, Merges(5, 2, b)), (Moments.union(shards), Merges(2, 7, b))):
        mu = mean_error(merges, largest=float(np.abs(x).max()), spread=float(np.ptp(x)))
        column = Column(float(exact.scatter(0, 0)), float(np.abs(x).max()), mu)
        bound = scatter_error(merges, len(x), column, column)
        assert abs(Fraction(float(result.mean[0])) - exact.mean(0)) <= mu
        assert abs(Fraction(float(result.cross[0, 0])) - exact.scatter(0, 0)) <= bound
        # worth having: eleven digits are left, and a mean costs its own size in standard deviations, not the square
        assert bound / column.scatter < 3e-11 + 1e-14 * offset


def test_the_textbook_formula_reaches_its_bound_and_no_further() -> None:
    rng = np.random.default_rng(1)
    for power in range(9):
        x = 10.0**power + rng.standard_normal(100)
        exact = exact_sums(x[:, None])
        # plain loops, as the formula is written: library sums are pairwise and lose less
        squares, total = 0.0, 0.0
        for value in x.tolist():
            squares, total = squares + value * value, total + value
        got = squares - 100 * (total / 100) ** 2
        error = float(abs(Fraction(got) - exact.scatter(0, 0)))
        assert error <= textbook_error(100, float(exact.mean(0)), float(exact.scatter(0, 0)))
        if power >= 6:  # it grows with the square of the mean: one part in 1e16 of n mean²
            assert error >= 0.01 * UNIT * 100 * 10.0 ** (2 * power)


def test_the_examples_of_the_page() -> None:
    x = np.array([[1e8], [1e8 + 1.0]])
    assert float((x**2).sum() - 2 * x.mean() ** 2) != 0.5
    assert float(of_activations(x).xx) == 0.5
    parts = [of_activations(np.array([[v]])) for v in (1.0, 0.0, 1.0, 1.0)]
    kept = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    assert (float(kept.far_x), float(kept.mean_x)) == (1.0, 0.75)
    # ties keep the first, so the order of two rows is visible in far_x and in nothing else
    assert (float(parts[0].merge(parts[1]).far_x), float(parts[1].merge(parts[0]).far_x)) == (1.0, 0.0)
    # the laws alone prove nothing: sums without the term for the means obey them as well
    assert float(parts[0].cross[0, 0] + parts[1].cross[0, 0]) == 0.0 != float(parts[0].merge(parts[1]).cross[0, 0])


def test_a_fixed_centre_makes_far_x_a_maximum() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        half = rng.standard_normal((12, 3))
        parts = [of_activations(np.vstack([p, -p])) for p in np.array_split(half, 4)]
        norms = [float(Moments.union([parts[i] for i in rng.permutation(4)]).far_x.norm()) for _ in range(3)]
        assert norms == pytest.approx([np.linalg.norm(half, axis=1).max()] * 3, rel=1e-14)


def test_no_tokens_is_the_identity_bit_for_bit() -> None:
    layout = Layout(2, ("a",))
    zero = Moments.zero(layout, torch.device("cpu"))
    assert zero.merge(zero).n == 0
    empty = MomentAccumulator(layout, torch.device("cpu")).finish()
    some = moments_of([(np.ones((3, 2)), np.zeros((1, 3, 2)))], layout)
    for merged in (some.merge(zero), zero.merge(some), Moments.union([zero, empty, some])):
        assert torch.equal(merged.cross, some.cross) and torch.equal(merged.mean, some.mean)


def test_exact_sums_are_exact() -> None:
    rows = np.array([[0.1, -3e10], [0.2, 5e-7], [0.3, 0.0]])
    sums = exact_sums(rows)
    a, b = ([Fraction(v) for v in column] for column in rows.T.tolist())
    mean_a, mean_b = sum(a, Fraction(0)) / 3, sum(b, Fraction(0)) / 3
    assert (sums.mean(0), sums.mean(1)) == (mean_a, mean_b)
    assert sums.scatter(0, 1) == sum((u - mean_a) * (v - mean_b) for u, v in zip(a, b, strict=True))
    with pytest.raises(InputError, match="expected"):
        exact_sums(np.zeros((0, 2)))
    with pytest.raises(InputError, match="finite"):
        exact_sums([[math.nan]])
    with pytest.raises(InputError, match="expected"):
        exact_sums([1.0, 2.0])


def test_bad_sizes_are_refused() -> None:
    merges, column = Merges(1, 2, 1), Column(1.0, 1.0, 0.0)
    for fields in ({"depth": 0}, {"parts": 1}, {"block": 0}):
        with pytest.raises(InputError, match="expected at least"):
            Merges(**{"depth": 1, "parts": 2, "block": 1, **fields})
    with pytest.raises(InputError, match="spread is -1"):
        mean_error(merges, largest=1.0, spread=-1.0)
    with pytest.raises(InputError, match="scatter is nan"):
        Column(math.nan, 1.0, 0.0)
    for n, width in ((0, 1), (1, 0)):
        with pytest.raises(InputError, match="empty sum"):
            scatter_error(merges, n, column, column, width=width)
    with pytest.raises(InputError, match="merge as a tree"):
        scatter_error(Merges(10**9, 2, 10**6), 10, column, column)
    with pytest.raises(InputError, match="empty sum"):
        textbook_error(0, 0.0, 1.0)
    with pytest.raises(InputError, match="mean is inf"):
        textbook_error(1, math.inf, 1.0)
