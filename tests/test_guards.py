"""Guards: what cannot be decomposed is refused, what must not be trusted is said, and singular x is handled exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkmatter import Decomposition, DegenerateError, InputError, decompose, decompose_many
from darkmatter.guards import degenerate_kind
from darkmatter.report import verdict
from tests.helpers import ListSource, Matrix, tiny_world
from tests.oracle import Naive, fold_numbers

EPS = float(np.finfo(np.float64).eps)


def changed(source: ListSource, *, x: Any = None, recon: Any = None) -> ListSource:
    recons = source.recons if recon is None else {"sae0": recon}
    return replace(source, x=source.x if x is None else x, recons=recons, names=())


def warned(result: Decomposition, words: str) -> bool:
    return any(words in sentence for sentence in result.warnings)


def test_a_healthy_run_warns_of_nothing() -> None:
    result = decompose(tiny_world(2000, 8))
    assert result.warnings == ()
    assert result.degenerate is None


@pytest.mark.parametrize("constant", [0.0, 1.0, -3e4, 1e-3])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_a_dead_sae_is_called_dead(constant: float, mean: float) -> None:
    source = tiny_world(600, 6, mean=mean)
    result = decompose(changed(source, recon=np.full_like(source.x, constant)), folds=5)
    assert result.degenerate == "dead"
    # e is x minus a constant: what is rounded is x itself, at ε (|mean| + |constant|)
    tolerance = 64 * EPS * (1 + mean + abs(constant))
    assert result.r2_error.value == pytest.approx(1.0, abs=tolerance)
    assert result.fvu.value == pytest.approx(1.0, abs=tolerance)
    assert result.fvu_nonlinear.value == pytest.approx(0.0, abs=tolerance)
    assert np.isnan(result.gain.value) and np.isnan(result.shrinkage.value)
    assert warned(result, "sae0 is dead") and not warned(result, "worse than predicting the mean")
    assert "is dead" in verdict(result) and "means nothing" in verdict(result)


def test_an_affine_sae_is_called_affine() -> None:
    source = tiny_world(600, 6, mean=2.0)
    rng = np.random.default_rng(0)
    for weight in (0.5 * np.eye(6), rng.standard_normal((6, 6)), np.outer(np.ones(6), np.arange(6.0))):
        result = decompose(changed(source, recon=source.x @ weight + 3.0), folds=5)
        assert result.degenerate == "affine"
        assert result.r2_error.value == pytest.approx(1.0, abs=1e-12)
        assert warned(result, "affine in x") and "means nothing" in verdict(result)
    # nearly affine is not affine: an introduced error of 1 % of the reconstruction counts
    nearly = source.x / 2 + 0.05 * rng.standard_normal(source.x.shape)
    assert decompose(changed(source, recon=nearly), folds=5).degenerate is None


def test_the_kinds_of_degeneracy() -> None:
    assert degenerate_kind(var_recon=0.0, var_nonlinear=0.0, var_x=1.0) == "dead"
    assert degenerate_kind(var_recon=0.5, var_nonlinear=0.0, var_x=1.0) == "affine"
    assert degenerate_kind(var_recon=0.5, var_nonlinear=1e-3, var_x=1.0) is None


@pytest.mark.parametrize("row", [np.zeros(6), np.full(6, 0.1), np.full(6, 1e4 + 0.1), np.logspace(-9, 9, 6)])
def test_a_constant_x_is_refused(row: Matrix) -> None:
    # 0.1 is no binary number: the mean of equal tokens is off by an ulp, and that must not pass for variance
    source = tiny_world(600, 6)
    with pytest.raises(DegenerateError, match="x is constant over 600 tokens") as caught:
        decompose(changed(source, x=np.tile(row, (600, 1))), folds=5)
    assert caught.value.evidence["var_x"] <= (8 * EPS) ** 2 * float(row @ row)


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_a_reconstruction_without_error_is_refused(mean: float) -> None:
    source = tiny_world(600, 6, n_saes=2, mean=mean)
    with pytest.raises(DegenerateError, match=r"sae1: Sae\(x\) equals x to rounding") as caught:
        decompose_many(replace(source, recons={**source.recons, "sae1": source.x.copy()}), folds=5)
    assert caught.value.evidence == {"fvu": 0.0}
    nearly = source.x - source.x.mean(axis=0)
    with pytest.raises(DegenerateError, match="check that x was not passed twice"):
        decompose(changed(source, x=nearly, recon=nearly * (1 - 4e-7)), folds=5)


def test_worse_than_the_mean_is_said() -> None:
    source = tiny_world(600, 6)
    result = decompose(changed(source, recon=-source.recons["sae0"]), folds=5)
    assert result.fvu.value > 1
    assert warned(result, "worse than predicting the mean: check the layer, the hook point and the input normalisation")


def test_few_documents_are_said() -> None:
    few = decompose(tiny_world(600, 6, per_document=20), folds=10)  # 30 documents for 10 folds
    assert warned(few, "only 30 documents for 10 folds")
    assert not warned(decompose(tiny_world(600, 6, per_document=12), folds=10), "documents")  # 50: five per fold
    empty = decompose(tiny_world(600, 6, per_document=200), folds=10)
    assert empty.n_folds <= 3 and warned(empty, "of them empty")


def test_one_document_is_refused() -> None:
    with pytest.raises(InputError, match=r"all 1 document\(s\) fall into one fold, expected at least 2 folds"):
        decompose(tiny_world(600, 6, per_document=600))


def test_too_few_tokens_are_refused_and_few_are_said() -> None:
    d = 20
    for n in (5, 20, 22):
        with pytest.raises(InputError, match=r"training tokens for \d+ directions of x, expected more than"):
            decompose(tiny_world(n, d, per_document=1), folds=5)
    few = decompose(tiny_world(70, d, per_document=1), folds=5)
    assert warned(few, "only 3.5 tokens per direction of x")
    assert not warned(decompose(tiny_world(80, d, per_document=1), folds=5), "tokens per direction")


def test_a_dominating_token_is_said_with_its_leverage() -> None:
    source = tiny_world(1000, 6, mean=3.0)
    x = source.x.copy()
    x[123] += np.array([200.0, 0.0, -100.0, 0.0, 50.0, 0.0])
    result = decompose(changed(source, x=x), folds=5)
    centred = x - x.mean(axis=0)
    share = (centred[123] ** 2).sum() / (centred**2).sum()
    rows = np.hstack([np.ones((1000, 1)), x])
    hat = rows[123] @ np.linalg.solve(rows.T @ rows, rows[123])
    assert result.max_token_share == pytest.approx(share, rel=1e-10)
    assert result.max_leverage == pytest.approx(hat, rel=1e-10)
    assert result.max_leverage <= 1
    assert warned(result, f"one token carries {share:.0%} of the variance of x (leverage {hat:.2f})")
    assert not warned(result, "of the tokens carry most")


def test_attention_sinks_are_said() -> None:
    source = tiny_world(5000, 6, per_document=50)  # 100 documents, the first token of each at 100 times the norm
    x = source.x.copy()
    x[::50] = 100 * np.abs(source.x).mean() * np.array([1.0, 1, 0, 0, 0, 0]) + source.x[::50]
    result = decompose(changed(source, x=x), folds=5)
    assert result.max_token_share < 0.05
    norms = (x**2).sum(axis=1)
    effective = norms.mean() ** 2 / (norms**2).mean()  # 1 where all norms are equal, 1/n where one token is all
    assert 0.02 < effective < 0.03
    assert warned(
        result, f"{effective:.1%} of the tokens carry most of the squared norm of x: likely the first position"
    )
    assert not warned(decompose(source, folds=5), "carry most")


def rank_deficient(kind: str, seed: int) -> tuple[Matrix, Matrix, int]:
    """An x that spans 6 directions, and a map to coordinates in which it is regular."""
    rng = np.random.default_rng(seed)
    core = tiny_world(500, 6, seed=seed).x
    if kind == "duplicate coordinates":
        return np.hstack([core, core[:, :2], -3 * core[:, 1:2]]), core, 6
    if kind == "constant coordinates":
        return np.hstack([np.full((500, 1), 0.1), core, np.full((500, 2), [0.0, 1e5])]), core, 6
    if kind == "a low-dimensional subspace":
        return core @ rng.standard_normal((6, 15)), core, 6
    if kind == "coordinates that sum to zero":
        centred = np.hstack([core, -core.sum(axis=1, keepdims=True)])
        return centred, core, 6
    return np.hstack([core * np.logspace(-6, 6, 6), core[:, :1] + core[:, 1:2]]), core, 6  # and badly scaled


KINDS = ["duplicate coordinates", "constant coordinates", "a low-dimensional subspace", "coordinates that sum to zero"]


@pytest.mark.parametrize("kind", [*KINDS, "badly scaled"])
def test_singular_activations_give_the_regression_on_what_varies(kind: str) -> None:
    for seed in range(5):
        x, core, rank = rank_deficient(kind, seed)
        rng = np.random.default_rng(seed + 100)
        recon = np.maximum(0.7 * x, 0.1) + 0.1 * rng.standard_normal(x.shape) * x.std(axis=0)
        source = ListSource(x, {"sae0": recon}, np.arange(500, dtype=np.int64) // 5)
        result = decompose(source, folds=5)
        assert result.rank == rank
        assert result.degenerate is None
        # the same regression in coordinates that are regular: only the span of x matters
        e = x - recon
        naive = Naive(core, {}, fold_numbers(source.groups, 5))
        residual, _, (insample, heldout) = naive.residual(e)
        var_x = float(x.var(axis=0).sum())
        # kept eigenvalues are at least 1e-3 of the largest of the scaled matrix
        assert result.fvu_nonlinear.value == pytest.approx(residual / var_x, rel=1e-9)
        assert (result.insample, result.heldout) == pytest.approx((insample / var_x, heldout / var_x), rel=1e-9)
        linear, _ = result.split(x, recon)
        rows = np.hstack([np.ones((500, 1)), core])
        fitted = rows @ np.linalg.lstsq(rows, e, rcond=None)[0]
        assert np.allclose(linear, fitted, rtol=0, atol=1e-9 * np.abs(x).max())


@given(st.integers(0, 2**16), st.floats(-3, 4), st.sampled_from([0.0, 1.0, 100.0]), st.booleans(), st.integers(0, 4))
def test_a_direction_of_one_fold_only_is_said_and_left_out(
    seed: int, log_size: float, offset: float, rotate: bool, home: int
) -> None:
    """The training sets that lack the direction must not take its rounding for variance."""
    rng = np.random.default_rng(seed)
    world = tiny_world(400, 5, seed=seed, per_document=5)
    extra = np.where(fold_numbers(world.groups, 5) == home, rng.standard_normal(400), 0.0) * 10.0**log_size + offset
    x = np.hstack([world.x, extra[:, None]])
    recon = np.hstack([world.recons["sae0"], np.abs(extra)[:, None] / 2])
    if rotate:
        rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
        x, recon = x @ rotation, recon @ rotation
    source = ListSource(x, {"sae0": recon}, world.groups)
    result = decompose(source, folds=5)
    assert result.rank == 6
    assert warned(result, "x spans 6 directions but only 5 when one fold is left out")
    want = Naive.of(source, 5).one("sae0")
    # a direction 1e4 times larger than the others leaves them 8 digits fewer, squared in the normal equations
    tolerance = 1e3 * EPS * (1 + 10.0 ** (2 * log_size) + offset)
    assert (result.insample, result.heldout) == pytest.approx((want["insample"], want["heldout"]), rel=tolerance)


def test_float32_moments_are_summed_in_float64() -> None:
    # float32 sums at mean 1e4 lose the variance altogether: 1e8 · 6e-8 = 6 against a variance of 0.3
    source = tiny_world(2000, 6, mean=1e4)
    tensors = ListSource(
        torch.from_numpy(source.x).float(),
        {"sae0": torch.from_numpy(source.recons["sae0"]).float()},
        source.groups,
    )
    result, reference = decompose(tensors, folds=5), decompose(source, folds=5)
    # what float32 storage itself costs: errors of 1e4 · 2⁻²⁵ in each entry, on errors of size 0.5
    assert result.fvu.value == pytest.approx(reference.fvu.value, rel=4 * 1e4 * 2.0**-25 / 0.5)
