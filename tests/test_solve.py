"""The solve: factors, cross-fits and condition numbers against numpy, on matrices that are not kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkmatter import Batch, InputError
from darkmatter.accumulate import MomentAccumulator
from darkmatter.folds import FoldAccumulator, FoldMoments
from darkmatter.moments import Layout, Moments
from darkmatter.solve import Factor, check_enough_tokens, condition_number, cross_fit, factor
from tests.helpers import Matrix, tiny_world
from tests.oracle import fold_numbers

EPS = float(np.finfo(np.float64).eps)


def moments_of(x: Matrix, recon: Matrix | None = None) -> Moments:
    accumulator = MomentAccumulator(Layout(x.shape[1], ("s",)), torch.device("cpu"))
    accumulator.add(torch.from_numpy(x), {"s": torch.from_numpy(x / 2 if recon is None else recon)})
    return accumulator.finish()


def factor_of(x: Matrix) -> Factor:
    moments = moments_of(x)
    return factor(moments.xx, moments.mean_x, moments.n)


def with_spectrum(values: Matrix, n: int, seed: int) -> Matrix:
    """Rows whose centred scatter has exactly these eigenvalues, in a random basis."""
    rng = np.random.default_rng(seed)
    d = len(values)
    rows = rng.standard_normal((n, d))
    left = np.linalg.qr(rows - rows.mean(axis=0))[0]
    right = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return np.asarray((left * np.sqrt(values)) @ right.T)


@given(st.integers(0, 999), st.integers(1, 12), st.floats(0, 8), st.floats(-100, 100))
def test_a_regular_scatter_is_solved(seed: int, d: int, decades: float, mean: float) -> None:
    rng = np.random.default_rng(seed)
    x = with_spectrum(np.logspace(0, -decades, d), 200, seed) + mean
    rhs = rng.standard_normal((d, 3))
    fit, scatter = factor_of(x), moments_of(x).xx.numpy()
    assert (fit.triangular, fit.rank) == (True, d)
    solution = fit.solve(torch.from_numpy(rhs)).numpy()
    # residual of a backward stable solve, in units of |G| |A|
    residual = abs(scatter @ solution - rhs).max()
    assert residual <= 100 * d * EPS * abs(scatter).max() * abs(solution).max()


@given(st.integers(0, 999), st.integers(2, 10), st.floats(0, 8), st.data())
def test_a_singular_scatter_is_solved_on_its_range(seed: int, d: int, decades: float, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, d - 1))
    values = np.concatenate([np.logspace(0, -decades, rank), np.zeros(d - rank)])
    x = with_spectrum(values, 200, seed)
    fit, scatter = factor_of(x), moments_of(x).xx.numpy()
    assert (fit.triangular, fit.rank) == (False, rank)
    rhs = scatter @ np.random.default_rng(seed).standard_normal((d, 3))  # in the range, as X'E always is
    solution = fit.solve(torch.from_numpy(rhs)).numpy()
    scale = 1 / np.sqrt(np.diag(scatter))
    want = scale[:, None] * np.linalg.lstsq(scatter * scale[:, None] * scale, rhs * scale[:, None], rcond=1e-13)[0]
    # both have the smallest norm in scaled coordinates, where the condition number may grow by 1e2
    assert np.allclose(solution, want, rtol=0, atol=1e2 * 10**decades * d * EPS * abs(want).max())


@given(st.integers(0, 999), st.floats(0, 12), st.booleans())
def test_scales_of_coordinates_do_not_matter(seed: int, decades: float, singular: bool) -> None:
    x = tiny_world(200, 6, seed=seed).x
    if singular:
        x = np.hstack([x, x[:, :1] - x[:, 1:2]])
    scales = np.random.default_rng(seed).permutation(np.logspace(-decades / 2, decades / 2, x.shape[1]))
    plain, scaled = factor_of(x), factor_of(x * scales)
    assert (plain.rank, plain.triangular) == (scaled.rank, scaled.triangular) == (6, not singular)
    rhs = moments_of(x).xx.numpy() @ np.ones((x.shape[1], 1))
    first = plain.solve(torch.from_numpy(rhs)).numpy()
    second = scaled.solve(torch.from_numpy(rhs * scales[:, None])).numpy() * scales[:, None]
    # scaling to unit diagonal undoes the scales before anything is factored
    assert np.allclose(first, second, rtol=0, atol=1e4 * EPS * abs(first).max())


@given(st.integers(0, 999), st.lists(st.sampled_from([0.0, 0.1, 1e-7, -3e5]), min_size=1, max_size=3))
def test_constant_coordinates_get_no_coefficient(seed: int, constants: list[float]) -> None:
    x = tiny_world(300, 4, seed=seed).x
    wide = np.hstack([np.tile(constants, (300, 1)), x])
    fit = factor_of(wide)
    assert fit.rank == 4
    rhs = moments_of(wide).xe
    solution = fit.solve(rhs).numpy()
    assert np.all(solution[: len(constants)] == 0.0)
    regular = factor_of(x).solve(moments_of(x).xe).numpy()
    assert np.allclose(solution[len(constants) :, len(constants) :], regular, rtol=0, atol=1e3 * EPS)


@given(st.integers(0, 999), st.booleans())
def test_the_root_is_a_root(seed: int, singular: bool) -> None:
    x = tiny_world(200, 5, seed=seed).x
    x = np.hstack([x, x[:, :1] + 1]) if singular else x
    fit, d = factor_of(x), x.shape[1]
    rhs = torch.from_numpy(np.random.default_rng(seed).standard_normal((d, 2)))
    assert torch.allclose(fit.root(fit.root_transposed(rhs)), fit.solve(rhs), rtol=0, atol=1e-12)
    whitened = fit.root_transposed(moments_of(x).xx).numpy()
    kept = fit.root_transposed(torch.from_numpy(whitened.T.copy())).numpy()  # W' G W: the identity on what is kept
    assert np.allclose(kept, np.eye(len(kept)), rtol=0, atol=1e5 * EPS)


def test_a_null_direction_that_hides_from_the_pivots_is_found() -> None:
    # null vector with a small last entry v: its rounding shows up as a pivot ε / v², above any cut-off on pivots
    rng = np.random.default_rng(0)
    for size in (1e-1, 1e-2, 1e-3):
        core = rng.standard_normal((400, 9))
        null = np.concatenate([rng.standard_normal(9), [size]])
        null /= np.linalg.norm(null)
        x = np.hstack([core, rng.standard_normal((400, 1))])
        x -= np.outer(x @ null, null)
        assert factor_of(x).rank == 9


@given(st.integers(0, 999), st.integers(1, 40), st.floats(0, 9))
def test_the_condition_number_is_near_and_never_too_high(seed: int, d: int, decades: float) -> None:
    x = with_spectrum(np.logspace(0, -decades, d), 300, seed)
    moments = moments_of(x)
    got = condition_number(moments, factor(moments.xx, moments.mean_x, moments.n))
    want = float(np.linalg.cond(moments.xx.numpy()))
    # a Rayleigh quotient never exceeds the top eigenvalue; after 50 steps it is 0.871 ln d / 49 short of it at most,
    # on average over starts (Kuczynski, Wozniakowski 1992): 6.5 % at d = 40, both ends together 13 %; allow 30 %
    assert 0.7 * want <= got <= want * (1 + 1e3 * EPS * want)


def test_the_condition_number_of_a_clear_spectrum_is_exact() -> None:
    # with a gap of 2 at both ends the power iteration has converged: 2⁻¹⁰⁰
    moments = moments_of(with_spectrum(np.array([8.0, 4.0, 2.0, 1.0, 0.5]), 100, 1))
    assert condition_number(moments, factor(moments.xx, moments.mean_x, 100)) == pytest.approx(16.0, rel=1e-9)
    one = moments_of(with_spectrum(np.array([3.0]), 100, 1))
    assert condition_number(one, factor(one.xx, one.mean_x, 100)) == pytest.approx(1.0, rel=1e-12)
    # singular, and with a coordinate that repeats another at 1e6 times its size
    flat = with_spectrum(np.array([1.0, 1.0, 0.0, 0.0]), 100, 1)
    for x, want in ((flat, 1.0), (np.outer(flat[:, 0], [1.0, 1e6]), 1.0)):
        moments = moments_of(x)
        assert condition_number(moments, factor(moments.xx, moments.mean_x, 100)) == pytest.approx(want, rel=1e-9)


def folds_of(x: Matrix, recon: Matrix, groups: object, folds: int) -> FoldMoments:
    accumulator = FoldAccumulator(Layout(x.shape[1], ("s",)), folds=folds)
    accumulator.update(Batch(x, {"s": recon}, np.asarray(groups, dtype=np.int64)))
    return accumulator.finish()


@given(st.integers(0, 999), st.floats(0, 6), st.floats(-100, 100), st.integers(2, 8))
def test_cross_fit_equals_lstsq_fold_by_fold(seed: int, decades: float, mean: float, folds: int) -> None:
    rng = np.random.default_rng(seed)
    x = with_spectrum(np.logspace(0, -decades, 6), 240, seed) * 10
    recon = np.maximum(x, 0.05) + 0.02 * rng.standard_normal(x.shape)
    x, recon = x + mean, recon + mean
    groups = np.arange(240) // 4
    moments = folds_of(x, recon, groups, folds)
    got = cross_fit(moments, moments.total())
    numbers = fold_numbers(groups, folds)
    e = x - recon
    for i, k in enumerate(np.unique(numbers)):
        inside, out = numbers != k, numbers == k
        rows, errors = x - x[inside].mean(axis=0), e - e[inside].mean(axis=0)
        weight = np.linalg.lstsq(rows[inside], errors[inside], rcond=None)[0]
        residual = ((errors - rows @ weight) ** 2).sum(axis=1)
        # normal equations lose cond(Cov x) ε = 10**decades ε of the fit, the mean another |mean| ε
        tolerance = 1e4 * EPS * (10**decades + abs(mean))
        assert float(got.train[i, 0, 0]) == pytest.approx(residual[inside].sum(), rel=tolerance)
        assert float(got.heldout[i, 0, 0]) == pytest.approx(residual[out].sum(), rel=tolerance)
        assert (float(got.n[i]), float(got.n_train[i])) == (out.sum(), inside.sum())
    centred = x - x.mean(axis=0)
    weight = np.linalg.lstsq(centred, e - e.mean(axis=0), rcond=None)[0]
    gap = abs(centred @ (got.weight[0].numpy() - weight)).max()
    assert gap <= 1e4 * EPS * (10**decades + abs(mean)) * abs(centred).max()
    assert got.min_train_rank == got.factor.rank == 6


def test_a_huge_token_costs_the_other_folds_nothing() -> None:
    # total minus fold would leave ε · 1e16 = 2 of rounding in every sum of the folds without the token
    rng = np.random.default_rng(3)
    x = rng.standard_normal((300, 4))
    recon = np.maximum(x, 0.0)
    groups = np.arange(300)
    calm = cross_fit(m := folds_of(x, recon, groups, 5), m.total())
    x[17] = [1e8, -1e8, 1e8, 1e8]
    recon[17] = x[17]
    wild = cross_fit(m := folds_of(x, recon, groups, 5), m.total())
    home = int(fold_numbers(groups, 5)[17])
    # the training sets that lack it hold exactly the same tokens in both runs
    assert float(wild.train[home, 0, 0]) == pytest.approx(float(calm.train[home, 0, 0]), rel=1e3 * EPS)


def test_too_few_tokens_are_refused() -> None:
    check_enough_tokens(12, 10)
    with pytest.raises(
        InputError, match=r"11 training tokens for 10 directions of x, expected more than 11 \(at least 40"
    ):
        check_enough_tokens(11, 10)
    world = tiny_world(14, 12, per_document=1)
    moments = folds_of(world.x, world.recons["sae0"], world.groups, 3)
    with pytest.raises(InputError, match="training tokens"):
        cross_fit(moments, moments.total())
