"""The moments: a commutative monoid, exact to rounding, indifferent to batch size and order."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkmatter import Batch, InputError
from darkmatter.accumulate import MomentAccumulator
from darkmatter.folds import SKETCH_SIZE, FoldAccumulator, FoldMoments, document_hash, fold_of
from darkmatter.moments import Layout, Moments
from tests.helpers import ListSource, Matrix, tiny_world

EPS = np.finfo(np.float64).eps


def accumulate(source: ListSource, folds: int = 3) -> FoldMoments:
    accumulator = FoldAccumulator(Layout(source.d_model, source.names), folds=folds)
    for batch in source:
        accumulator.update(batch)
    return accumulator.finish()


def rows_of(source: ListSource) -> Matrix:
    """The rows z of all tokens, written out from their definition."""
    recons = [source.recons[name] for name in source.names]
    errors = [source.x - r for r in recons]
    norms = [(v**2).sum(axis=1, keepdims=True) for v in [source.x, *errors, *recons]]
    return np.hstack([source.x, *errors, *norms])


def two_pass(rows: Matrix, layout: Layout) -> dict[str, Matrix]:
    """Oracle: means first, deviations second, in extended precision."""
    z = rows.astype(np.longdouble)
    mean = z.mean(axis=0)
    z = z - mean
    d, s = layout.d_model, layout.n_saes
    errors = z[:, d : d * (1 + s)].reshape(len(z), s, d)
    return {
        "mean": mean.astype(np.float64),
        "cross": (z[:, :d].T @ z).astype(np.float64),
        "error_gram": np.einsum("nad,nbd->ab", errors, errors).astype(np.float64),
        "target_ss": (z[:, d * (1 + s) :] ** 2).sum(axis=0).astype(np.float64),
    }


def assert_close(moments: Moments, reference: dict[str, Matrix], tolerance: float) -> None:
    for name, want in reference.items():
        got = getattr(moments, name).numpy()
        # blocks of very different size share an array: compare entrywise against sqrt(row · column) scales
        if name == "cross":
            scale = np.sqrt(np.outer(np.diag(want[:, : len(want)]), column_squares(reference)))
        else:
            scale = np.abs(want).max()
        assert np.all(np.abs(got - want) <= tolerance * scale), name


def column_squares(reference: dict[str, Matrix]) -> Matrix:
    cross = reference["cross"]
    d = len(cross)
    s = len(reference["error_gram"])
    errors = np.repeat(np.diag(reference["error_gram"]), d)
    return np.concatenate([np.diag(cross[:, :d]), errors, reference["target_ss"]])[: d * (1 + s) + 1 + 2 * s]


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e4])
def test_moments_equal_a_two_pass_reference(mean: float) -> None:
    source = tiny_world(2500, 8, n_saes=2, mean=mean, seed=3)
    moments = accumulate(source)
    layout = moments.layout
    folds = fold_of(source.groups, 3)
    rows = rows_of(source)
    # |x|² has mean m² d and deviations of order m: its own rounding is ε m² d, not ours
    tolerance = 1e-12 if mean <= 1 else 1e-12 * (1 + EPS * mean**2 * 8 / 1e-12)
    for k in range(3):
        assert moments.folds[k].n == int((folds == k).sum())
        assert_close(moments.folds[k], two_pass(rows[folds == k], layout), tolerance)
    assert_close(moments.total(), two_pass(rows, layout), tolerance)


@given(st.integers(1, 700), st.integers(0, 5))
def test_batch_size_changes_nothing_at_all(batch_size: int, seed: int) -> None:
    source = tiny_world(600, 5, seed=seed)
    one = accumulate(source)
    other = accumulate(ListSource(source.x, source.recons, source.groups, batch_size=batch_size))
    for a, b in zip(one.folds, other.folds, strict=True):
        assert torch.equal(a.cross, b.cross)
        assert torch.equal(a.mean, b.mean)
        assert torch.equal(a.far_x, b.far_x)


@given(st.lists(st.integers(0, 60), min_size=3, max_size=3), st.sampled_from([0.0, 1e4]), st.integers(0, 99))
def test_merge_is_associative_commutative_and_has_an_identity(sizes: list[int], mean: float, seed: int) -> None:
    source = tiny_world(max(1, sum(sizes)), 4, seed=seed, mean=mean, n_saes=2)
    layout = Layout(4, source.names)
    edges = np.cumsum([0, *sizes])
    parts = [single(source, layout, slice(a, b)) for a, b in pairwise(edges)]
    a, b, c = parts
    whole = a.merge(b).merge(c)
    zero = Moments.zero(layout, torch.device("cpu"))
    same(a.merge(zero), a, whole, 0)
    same(zero.merge(a), a, whole, 0)
    same(a.merge(b), b.merge(a), whole, 64)
    same(whole, a.merge(b.merge(c)), whole, 64)


def single(source: ListSource, layout: Layout, part: slice) -> Moments:
    accumulator = MomentAccumulator(layout, torch.device("cpu"))
    accumulator.add(
        torch.from_numpy(source.x[part]), {name: torch.from_numpy(r[part]) for name, r in source.recons.items()}
    )
    return accumulator.finish()


def same(first: Moments, second: Moments, whole: Moments, roundings: int) -> None:
    """Equal within some roundings of the sums themselves, or of a mean: n · ε|mean| · sd = sqrt(n Σd²) ε|mean|."""
    assert first.n == second.n
    top = float(whole.mean.abs().max())
    for name in ("mean", "cross", "error_gram", "target_ss"):
        gap = float((getattr(first, name) - getattr(second, name)).abs().max())
        largest = float(getattr(whole, name).abs().max())
        scale = top * max(1, whole.n) if name == "mean" else largest + top * (whole.n * largest) ** 0.5
        assert gap <= roundings * EPS * scale, name


@given(st.permutations(range(6)), st.integers(0, 20))
def test_order_of_documents_and_of_merges_changes_only_rounding(order: list[int], seed: int) -> None:
    source = tiny_world(300, 4, seed=seed, per_document=10)
    whole = accumulate(source, folds=2)
    pieces = np.array_split(np.arange(300), 6)
    merged = None
    for i in order:
        p = pieces[i]
        piece = ListSource(source.x[p], {k: r[p] for k, r in source.recons.items()}, source.groups[p])
        part = accumulate(piece, folds=2)
        merged = part if merged is None else merged.merge(part)
    assert merged is not None
    assert merged.n_groups == whole.n_groups
    for a, b in zip(whole.folds, merged.folds, strict=True):
        same(a, b, whole.total(), 64)


def test_a_rejected_batch_changes_nothing() -> None:
    source = tiny_world(200, 5)
    accumulator = FoldAccumulator(Layout(5, source.names), folds=2)
    batches = list(source)
    accumulator.update(batches[0])
    before = {name: tensor.clone() for name, tensor in accumulator.state().items()}
    bad = np.array(source.recons["sae0"])
    bad[-1, -1] = np.nan
    with pytest.raises(InputError, match="NaN"):
        accumulator.update(Batch(source.x, {"sae0": bad}, source.groups))
    after = accumulator.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_frozen_moments_do_not_alias_the_accumulator() -> None:
    source = tiny_world(400, 5)
    accumulator = FoldAccumulator(Layout(5, source.names), folds=2)
    batch = next(iter(source))
    accumulator.update(batch)
    frozen = accumulator.freeze()
    kept = [fold.cross.clone() for fold in frozen.folds]
    accumulator.update(batch)
    assert all(torch.equal(a, f.cross) for a, f in zip(kept, frozen.folds, strict=True))
    assert accumulator.n_tokens == 2 * frozen.n_tokens


def test_merging_different_runs_is_refused() -> None:
    a = accumulate(tiny_world(100, 4), folds=2)
    with pytest.raises(InputError, match="same number of folds"):
        a.merge(accumulate(tiny_world(100, 4), folds=3))
    with pytest.raises(InputError, match="same SAEs"):
        a.merge(accumulate(tiny_world(100, 4, n_saes=2), folds=2))


def test_folds_are_uniform_and_fixed_for_ever() -> None:
    ids = np.arange(60_000, dtype=np.int64)
    counts = np.bincount(fold_of(ids, 20), minlength=20)
    # chi-square with 19 degrees of freedom exceeds 52 with probability 7e-5
    assert float(((counts - 3000) ** 2 / 3000).sum()) < 52
    # a stored checkpoint relies on these values; splitmix64 of 0 and 1, computed by its published reference
    assert [int(h) for h in document_hash(np.array([0, 1], dtype=np.int64))] == [
        16294208416658607535,
        10451216379200822465,
    ]


def test_documents_are_counted_exactly_then_estimated() -> None:
    def count(documents: int) -> int:
        accumulator = FoldAccumulator(Layout(1, ("s",)), folds=2)
        for start in range(0, documents, 5000):
            ids = np.arange(start, min(documents, start + 5000), dtype=np.int64)
            x = np.ones((len(ids), 1))
            accumulator.update(Batch(x, {"s": x}, ids))
            accumulator.update(Batch(x, {"s": x}, ids))
        return accumulator.freeze().n_groups

    assert count(3000) == 3000
    # relative standard error 1/sqrt(2 · 4096) = 1.1 %; five of them fail once in two million
    assert abs(count(15 * SKETCH_SIZE) / (15 * SKETCH_SIZE) - 1) < 0.055


def test_the_farthest_token_is_found() -> None:
    source = tiny_world(1000, 6, seed=1)
    x = source.x.copy()
    x[637] += 50.0
    moments = accumulate(ListSource(x, source.recons, source.groups))
    far = [fold.far_x.numpy() for fold in moments.folds]
    # the kept vector is the token itself up to the rounding of one subtraction and one addition of the mean
    assert any(np.allclose(f, x[637], rtol=0, atol=8 * EPS * 60) for f in far)
