"""The decomposition: equal to a naive transcription, and obeying the laws that its definition implies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from darkmatter import Decomposition, Estimate, InputError, decompose, decompose_many, decompose_moments
from darkmatter.results import Introduced, Replicate
from darkmatter.stream import accumulate
from tests.helpers import ListSource, tiny_world
from tests.oracle import Naive, permuted

EPS = float(np.finfo(np.float64).eps)
FOLDS = 7
SHARES = (
    "fvu",
    "fvu_nonlinear",
    "r2_error",
    "linear_share",
    "gain",
    "shrinkage",
    "r2_norm",
    "r2_norm_x",
    "r2_norm_recon",
)
PAIR = ("unshared", "shared", "correlation", "corrected", "instrument")


def three_saes(n: int = 1500, d: int = 10, *, mean: float = 0.0, dtype: Any = np.float64, seed: int = 1) -> ListSource:
    """Unequal SAEs: one of the tiny world, a noisier copy of its recipe, and a thresholding one."""
    world = tiny_world(n, d, n_saes=2, mean=mean, seed=seed)
    rng = np.random.default_rng(seed + 1000)
    recons = {
        "plain": world.recons["sae0"],
        "threshold": 0.8 * np.maximum(world.x - mean, 0.2) + 0.85 * mean,
        "noisy": world.recons["sae1"] + 0.1 * rng.standard_normal((n, d)),
    }
    return ListSource(world.x.astype(dtype), {k: r.astype(dtype) for k, r in recons.items()}, world.groups)


def triple(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def numbers(result: Decomposition) -> dict[str, tuple[float, ...]]:
    """Every number that does not count something, by name."""
    found: dict[str, tuple[float, ...]] = {name: triple(getattr(result, name)) for name in SHARES}
    bounds = result.introduced
    found |= {"insample": (result.insample,), "heldout": (result.heldout,), "lower_end": triple(bounds.lower_end)}
    found |= {"low": (bounds.low,), "high": (bounds.high,), "max_shrinkage": (bounds.max_shrinkage,)}
    for other, pair in result.replicates.items():
        found |= {f"{other}.{k}": triple(getattr(pair, k)) for k in PAIR}
    return found


def assert_same(got: Decomposition, want: Decomposition, tolerance: float, *, skip: tuple[str, ...] = ()) -> None:
    other = numbers(want)
    for name, values in numbers(got).items():
        if name not in skip:
            assert values == pytest.approx(other[name], rel=tolerance, abs=tolerance), name


def assert_equals_naive(source: ListSource, folds: int, tolerance: float) -> dict[str, Decomposition]:
    naive = Naive.of(source, folds)
    results = decompose_many(source, folds=folds)
    for name, result in results.items():
        want = naive.one(name)
        for other in result.replicates:
            want |= {f"{other}.{k}": v for k, v in naive.pair(name, other).items()}
        for key, got in numbers(result).items():
            # ARPACK stops at a relative 1e-4; on matrices this small it is far better
            slack = 1e-4 if key == "max_shrinkage" else tolerance
            assert got == pytest.approx(np.atleast_1d(want[key]), rel=slack, abs=slack * 1e-3), (name, key)
        for s, share in result.introduced.sensitivity:
            assert share == pytest.approx(want["sensitivity"](s), abs=tolerance)
        assert result.introduced.upper_end == result.fvu_nonlinear
        # "farthest" is judged by the running mean of a fold, so near ties may fall otherwise
        share, leverage = naive.leverages()
        token = np.abs(share - result.max_token_share).argmin()
        assert result.max_token_share == pytest.approx(share[token], rel=tolerance)
        assert result.max_leverage == pytest.approx(leverage[token], rel=tolerance)
        assert 0.8 * share.max() <= result.max_token_share
        assert (result.rank, result.n_folds, result.n_tokens) == (naive.rank, len(naive.used), len(source.x))
        assert result.n_groups == len(np.unique(source.groups))
    return results


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_every_number_equals_a_naive_transcription(mean: float, dtype: Any) -> None:
    # Both read the same float64 numbers. A share is a ratio of centred sums, each wrong by ε (1 + |mean| / sd) times
    # cond(Cov x) = 6 at most, with sd = 0.5; a shrinkage of 3e-5 is a difference of shares that keeps 4 digits less:
    # 1e-9 at mean 1e4 leaves a factor 50, 1e-11 at mean 0 a factor 30.
    source = three_saes(mean=mean, dtype=dtype)
    results = assert_equals_naive(source, FOLDS, 1e-9 if mean else 1e-11)
    assert {result.degenerate for result in results.values()} == {None}


def test_the_transcription_tells_definitions_apart() -> None:
    # otherwise the comparison above could not fail
    source = three_saes()
    result, naive = decompose_many(source, folds=FOLDS)["plain"], Naive.of(source, FOLDS)
    other = Naive.of(source, FOLDS + 1)
    assert result.fvu_nonlinear.value != pytest.approx(other.one("plain")["fvu_nonlinear"][0], rel=1e-6)
    assert result.insample != pytest.approx(result.heldout, rel=1e-3)
    uncentred = source.x - source.recons["plain"] + 1.0
    assert naive.residual_sums(uncentred)[0] == pytest.approx(naive.residual_sums(uncentred - 1.0)[0], rel=1e-12)
    assert naive.norm(uncentred)[0] != pytest.approx(result.r2_norm.value, rel=1e-3)


@given(st.integers(0, 2**16), st.integers(2, 9), st.integers(1, 12))
def test_small_worlds_equal_the_transcription(seed: int, folds: int, per_document: int) -> None:
    world = tiny_world(120, 3, seed=seed, n_saes=2, per_document=per_document)
    recons = {"sae0": world.recons["sae0"], "sae1": np.maximum(world.x, 0.1)}
    assert_equals_naive(replace(world, recons=recons, names=()), folds, 1e-8)


@dataclass(frozen=True)
class Recipe:
    """Three SAEs on a small world, by their parameters, so that a failing example prints short."""

    seed: int
    n: int
    d: int
    batch_size: int

    def source(self) -> ListSource:
        return replace(three_saes(self.n, self.d, seed=self.seed), batch_size=self.batch_size)


RECIPES = st.builds(
    Recipe, st.integers(0, 2**16), st.integers(120, 400), st.integers(3, 6), st.sampled_from([7, 64, 1000])
)


@given(RECIPES, st.integers(0, 99), st.floats(-3, 3), st.floats(-2, 2))
def test_rotation_scale_and_shift_of_both_change_no_share(
    recipe: Recipe, seed: int, log_scale: float, log_shift: float
) -> None:
    source, rng = recipe.source(), np.random.default_rng(seed)
    d = source.d_model
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0] * 10.0**log_scale
    shift = rng.standard_normal(d) * 10.0 ** (log_scale + log_shift)
    recons = {name: r @ rotation + shift for name, r in source.recons.items()}
    moved = replace(source, x=source.x @ rotation + shift, recons=recons)
    before, after = decompose_many(source, folds=4), decompose_many(moved, folds=4)
    # the shift costs |shift| / sd ≤ 1e2 · 3 / 0.4 of ε in every entry, a share that is a difference 1e3 more
    tolerance = 1e3 * EPS * (1 + 750) * before["plain"].condition
    norms = ("r2_norm_x", "r2_norm_recon")  # a squared norm is not invariant under shifts
    for name, result in after.items():
        # the scales of the coordinates change, so Lanczos starts elsewhere and stops at its own tolerance
        assert_same(result, before[name], tolerance, skip=(*norms, "max_shrinkage"))
        gap = result.introduced.max_shrinkage - before[name].introduced.max_shrinkage
        assert abs(gap) < 2e-4
        # 50 power steps from below fall short by 0.871 ln d / 49 on average (Kuczynski, Wozniakowski 1992), 3 % a side
        assert result.condition == pytest.approx(before[name].condition, rel=0.2)


@given(RECIPES, st.integers(0, 99), st.integers(1, 300))
def test_order_of_tokens_and_batch_size_change_only_rounding(recipe: Recipe, seed: int, size: int) -> None:
    source = recipe.source()
    before = decompose_many(source, folds=4)
    assert decompose_many(replace(source, batch_size=size), folds=4) == before  # not even that
    order = np.random.default_rng(seed).permutation(len(source.x))
    for name, result in decompose_many(permuted(source, order), folds=4).items():
        assert_same(result, before[name], 1e4 * EPS * result.condition)


@given(RECIPES)
def test_what_one_sae_gets_does_not_depend_on_the_others(recipe: Recipe) -> None:
    source = recipe.source()
    many = decompose_many(source, folds=4)
    backwards = dict(reversed(source.recons.items()))
    again = decompose_many(replace(source, recons=backwards, names=()), folds=4)
    assert list(many) == list(source.names) == list(reversed(again))
    for name, result in many.items():
        alone = decompose(replace(source, recons={name: source.recons[name]}, names=(name,)), folds=4)
        # other widths, other blocks: the sums are rounded differently
        tolerance = 1e4 * EPS * result.condition
        assert alone.replicates == {}
        assert_same(alone, result, tolerance)
        assert_same(again[name], result, tolerance)
        for other, pair in result.replicates.items():
            twin = many[other].replicates[name]
            for key in PAIR[:-1]:  # the instrument is about one SAE of the pair
                assert triple(getattr(pair, key)) == pytest.approx(triple(getattr(twin, key)), rel=tolerance)


@given(RECIPES)
def test_the_shares_add_up(recipe: Recipe) -> None:
    source = recipe.source()
    results = decompose_many(source, folds=4)
    for name, result in results.items():
        total, nonlinear = result.fvu.value, result.fvu_nonlinear.value
        assert total == pytest.approx(result.linear_share.value + nonlinear, rel=4 * EPS)
        assert np.sqrt(result.insample * result.heldout) == pytest.approx(nonlinear, rel=8 * EPS)
        assert 1 - result.r2_error.value == pytest.approx(nonlinear / total, rel=16 * EPS)
        assert result.insample < nonlinear < result.heldout
        for other, pair in result.replicates.items():
            mean = (nonlinear + results[other].fvu_nonlinear.value) / 2
            assert pair.unshared.value + pair.shared.value == pytest.approx(mean, rel=16 * EPS), name
            assert -1 <= pair.correlation.value <= 1 + 16 * EPS
        for estimate in (*(getattr(result, k) for k in SHARES), result.introduced.lower_end):
            assert estimate.low <= estimate.value <= estimate.high


@given(st.integers(0, 999), st.integers(120, 700), st.integers(3, 8))
def test_an_sae_and_its_copy_share_everything(seed: int, n: int, d: int) -> None:
    world = tiny_world(n, d, seed=seed)
    recon = world.recons["sae0"]
    pair = decompose_many(replace(world, recons={"a": recon, "b": recon.copy()}, names=()), folds=4)["a"]
    both = pair.replicates["b"]
    # Var(r_a − r_b) is a difference of four sums of Var r: a few ε of them
    assert both.unshared.value <= 16 * EPS * pair.fvu_nonlinear.value
    assert both.shared.value == pytest.approx(pair.fvu_nonlinear.value, rel=32 * EPS)
    assert both.correlation.value == pytest.approx(1.0, abs=32 * EPS)


@given(RECIPES, st.integers(1, 119), st.integers(2, 6))
def test_merged_halves_equal_one_pass(recipe: Recipe, cut: int, folds: int) -> None:
    source = recipe.source()
    halves = [
        replace(source, x=source.x[p], recons={k: r[p] for k, r in source.recons.items()}, groups=source.groups[p])
        for p in (slice(0, cut), slice(cut, None))  # a document may lie on both sides: its fold is the same
    ]
    first, second = (accumulate(half, folds=folds) for half in halves)
    merged, whole = decompose_moments(first.merge(second)), decompose_many(source, folds=folds)
    for name, result in merged.items():
        assert_same(result, whole[name], 1e4 * EPS * result.condition)
        assert (result.n_groups, result.n_tokens) == (whole[name].n_groups, whole[name].n_tokens)


def test_the_sensitivity_curve_is_a_line_between_the_ends() -> None:
    for result in decompose_many(three_saes(), folds=FOLDS).values():
        bounds: Introduced = result.introduced
        s, share = np.array(bounds.sensitivity).T
        assert s[0] == 0.0 and 0 <= s[-1] <= 1 and 0 <= bounds.max_shrinkage <= 1
        assert np.allclose(np.diff(share), np.diff(share)[0], rtol=1e-9)
        # it runs to the upper end (where that is above the lower one), for trained SAEs lie beyond max_shrinkage
        if bounds.upper_end.value > share[0] and s[-1] < 1:
            assert share[-1] == pytest.approx(bounds.upper_end.value, rel=1e-9)
        assert share[-1] <= max(share[0], bounds.upper_end.value) * (1 + 1e-12)
        assert bounds.low <= bounds.lower_end.value <= bounds.high == bounds.upper_end.high


def test_intervals_are_student_t_on_folds() -> None:
    # the half-width on the log scale over the naive standard error is the quantile, for every number of folds
    for folds in (2, 3, 20):
        result = decompose(tiny_world(400, 4, per_document=1), folds=folds)
        naive = Naive.of(tiny_world(400, 4, per_document=1), folds)
        half = np.log(result.fvu.high / result.fvu.value)
        centred = naive.x - naive.recons["sae0"]
        errors = ((centred - centred.mean(axis=0)) ** 2).sum(axis=1)
        norms = (naive.centred**2).sum(axis=1)
        psi = [
            errors[naive.fold == k].mean() / errors.mean() - norms[naive.fold == k].mean() / norms.mean()
            for k in naive.used
        ]
        weight = naive.n / naive.n.sum()
        error = np.sqrt((weight * (psi - weight @ psi) ** 2).sum() / (folds - 1))
        assert half / error == pytest.approx(scipy.stats.t.ppf(0.975, folds - 1), rel=1e-9)


def test_decompose_wants_exactly_one_sae() -> None:
    with pytest.raises(InputError, match=r"\['plain', 'threshold', 'noisy'\], expected one: use decompose_many"):
        decompose(three_saes(200, 4))
    with pytest.raises(InputError, match="folds is 1, expected at least 2"):
        decompose(tiny_world(200, 4), folds=1)


def test_replicates_of_independent_noise_are_unshared() -> None:
    # S1 is the same in both, so is q; N_a, N_b are independent with variance 0.04 d: ½ Var(N_a − N_b) = Var N
    world = tiny_world(20_000, 8, n_saes=2, seed=4)
    result = decompose_many(world)["sae0"]
    pair: Replicate = result.replicates["sae1"]
    share = 0.04 * 8 / float(world.x.var(axis=0).sum())
    # relative error of a variance of 8 · 20,000 normals: sqrt(2 / 160,000) = 0.4 %; six of them, once in 5e8
    assert pair.unshared.value == pytest.approx(share, rel=0.021)
    assert pair.unshared.high < result.fvu_nonlinear.low
