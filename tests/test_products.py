"""Split products: within the stated bound of the exact product, and the same bits under every float32 setting."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkmatter import InputError, decompose_many
from darkmatter.products import EXACT_ROWS, SLICES, _slices, add_product, add_split
from darkmatter.stream import accumulate
from tests.helpers import tiny_world

EPS = float(np.finfo(np.float64).eps)


def matrix(n: int, q: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    """Columns of very different size, entries of very different size in each."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((n, q)) * np.exp(spread * rng.standard_normal((n, q)) * 3))


def bound(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """2⁻²⁷ n M M' and the rounding of a float64 sum per 256 rows, n M M' at most each time."""
    n = len(left)
    most = left.abs().amax(dim=0)[:, None] * right.abs().amax(dim=0)
    return n * most * (2.0**-27 + EPS * (2 + n / EXACT_ROWS))


@given(st.integers(1, 700), st.integers(0, 2**16), st.floats(0, 2), st.floats(-80, 80))
def test_the_error_stays_below_the_stated_bound(n: int, seed: int, spread: float, power: float) -> None:
    left, right = matrix(n, 3, seed, spread) * 10.0**power, matrix(n, 8, seed + 1, spread)
    right[:, 2] = 0.0
    start = matrix(3, 8, seed + 2)
    got = add_split(start.clone(), left, right)
    want = start + left.T @ right
    assert torch.all((got - want).abs() <= bound(left, right) + 4 * EPS * start.abs())
    assert torch.equal(got[:, 2], start[:, 2])


def test_the_bound_is_about_slices_and_not_about_luck() -> None:
    # three slices would break it: their rest is 2⁻²⁴ of the scale; four leave 2⁻³²
    values = torch.full((EXACT_ROWS, 1), 1.0 - 2.0**-25, dtype=torch.float64)
    slices, scale = _slices(values)
    exact = Fraction(float(values[0, 0])) ** 2 * EXACT_ROWS
    got = Fraction(float(add_split(torch.zeros(1, 1, dtype=torch.float64), values, values)[0, 0]))
    assert abs(got - exact) <= Fraction(2) ** -27 * EXACT_ROWS
    three = sum(slices[i].double() / 2.0 ** (7 + 8 * i) for i in range(SLICES - 1)) * scale
    rough = Fraction(float(three[0, 0])) ** 2 * EXACT_ROWS
    assert abs(rough - exact) > Fraction(2) ** -27 * EXACT_ROWS


@given(st.integers(0, 2**16))
def test_slices_are_small_integers_that_add_up(seed: int) -> None:
    values = matrix(50, 4, seed)
    slices, scale = _slices(values)
    assert torch.equal(slices, slices.round()) and float(slices.abs().max()) <= 128
    assert torch.equal(slices.bfloat16().float(), slices)
    assert torch.all((scale > values.abs().amax(dim=0)) & (scale <= 2 * values.abs().amax(dim=0)))
    total = sum(slices[i].double() / 2.0 ** (7 + 8 * i) for i in range(SLICES)) * scale
    assert torch.all((total - values).abs() <= 2.0**-32 * scale)


def test_the_largest_sums_are_exact() -> None:
    # every slice at its limit of 128: 4 · 256 products of 2¹⁴ fill float32's 24 bits exactly
    full = torch.full((SLICES * EXACT_ROWS, 2), 128.0)
    assert torch.all(full.T @ full == 2.0**24)
    wider = torch.full((SLICES * EXACT_ROWS + 1, 1), 128.0)
    wider[0] = 1.0  # one more product of 1 would be lost behind 2²⁴
    assert float(wider.T @ wider) != 2.0**24 + 1


def test_no_setting_of_torch_changes_a_bit() -> None:
    left, right = matrix(600, 40, 0), matrix(600, 120, 1)
    want = add_split(torch.zeros(40, 120, dtype=torch.float64), left, right)
    before = torch.get_float32_matmul_precision()
    try:
        for setting in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(setting)
            assert torch.equal(add_split(torch.zeros(40, 120, dtype=torch.float64), left, right), want)
    finally:
        torch.set_float32_matmul_precision(before)


def test_moments_and_results_agree_with_float64() -> None:
    source = tiny_world(6000, 12, n_saes=2, mean=10.0)
    exact, split = (accumulate(source, folds=3, precision=p) for p in ("float64", "split"))  # type: ignore[arg-type]
    for a, b in zip(exact.folds, split.folds, strict=True):
        assert torch.equal(a.mean, b.mean) and torch.equal(a.error_gram, b.error_gram)
        spread = torch.cat([a.xx.diagonal(), *(a.xx.diagonal() for _ in range(2))]).sqrt()
        gap = (a.cross - b.cross)[:, : 3 * 12].abs() / (spread[:12, None] * spread)
        assert 0 < float(gap.max()) < 1e-8  # not the same arithmetic, yet 8 digits are left
    one, two = decompose_many(source, folds=3), decompose_many(source, folds=3, precision="split")
    for name, result in one.items():
        assert two[name].fvu_nonlinear.value == pytest.approx(result.fvu_nonlinear.value, rel=1e-7)
        assert two[name].fvu.value == pytest.approx(result.fvu.value, rel=1e-7)


def test_an_unknown_precision_is_refused() -> None:
    bad: Any = "float16"
    with pytest.raises(InputError, match=r"precision is 'float16', expected 'float64', or 'split' for a device"):
        accumulate(tiny_world(100, 4), folds=2, precision=bad)
    out = torch.zeros(3, 8, dtype=torch.float64)
    left, right = matrix(20, 3, 0), matrix(20, 8, 1)
    assert add_product(out, left, right, "float64") is out
    assert torch.equal(out, torch.zeros_like(out).addmm_(left.T, right))
