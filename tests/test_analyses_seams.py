"""What all analyses stand on: the table of numbers per token, out-of-fold maps, null controls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkmatter import InputError, decompose_many
from darkmatter.analyses.controls import CONTROLS, elsewhere, is_control, with_controls
from darkmatter.analyses.fold_table import FoldTable
from darkmatter.analyses.part_maps import part_maps
from darkmatter.batch import check_source
from darkmatter.folds import fold_of
from darkmatter.sae import SAE
from darkmatter.stream import accumulate
from tests.analyses import fewest_hits, hits, small_surgical, small_world
from tests.helpers import ListSource, tiny_world

FOLDS = 6


def _columns(seed: int, n: int = 240) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, n)) + 100.0
    return rng.integers(0, 40, n), {"a": a, "b": b, "t": 2 * a - b + rng.standard_normal(n)}


@given(seed=st.integers(0, 100), cut=st.integers(0, 240))
def test_a_table_does_not_depend_on_how_tokens_are_cut(seed: int, cut: int) -> None:
    groups, columns = _columns(seed)
    empty = FoldTable.empty(("a", "b", "t"), FOLDS)
    whole = empty.add(groups, columns)
    parts = empty.add(groups[:cut], {name: column[:cut] for name, column in columns.items()})
    parts = parts.add(groups[cut:], {name: column[cut:] for name, column in columns.items()})
    for name in ("n", "mean", "scatter"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-10, atol=1e-9)


def test_a_table_agrees_with_numpy() -> None:
    groups, columns = _columns(3)
    table = FoldTable.empty(("a", "b", "t"), FOLDS).add(groups, columns)
    assert table.average("a").value == pytest.approx(columns["a"].mean(), rel=1e-12)
    assert table.ratio("a", "b").value == pytest.approx(columns["a"].sum() / columns["b"].sum(), rel=1e-12)
    centred = columns["a"] - columns["a"].mean()
    assert float(table.squares("a").sum()) == pytest.approx((centred**2).sum(), rel=1e-9)
    train = heldout = n_train = 0.0
    fold = fold_of(groups, FOLDS)
    design = np.stack([np.ones(240), columns["a"], columns["b"]], axis=1)
    for k in np.unique(fold):
        mine = fold == k
        slope = np.linalg.lstsq(design[~mine], columns["t"][~mine], rcond=None)[0]
        residual = (columns["t"] - design @ slope) ** 2
        train, heldout, n_train = (
            train + residual[~mine].sum(),
            heldout + residual[mine].sum(),
            n_train + (~mine).sum(),
        )
    share = np.sqrt(train / n_train * heldout / 240) / columns["t"].var()
    assert table.r2("t", ("a", "b")).value == pytest.approx(1 - share, abs=1e-8)


def test_r2_and_its_difference_cover_the_truth() -> None:
    """A correct procedure falls below the bound in 1 of 1000 runs."""

    def covered(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        n = 2000
        a, b, noise = rng.standard_normal((3, n))
        table = FoldTable.empty(("a", "b", "t"), 12).add(np.arange(n) // 4, {"a": a, "b": b, "t": a + 0.5 * b + noise})
        r2, gain = table.r2_differences("t", ("a", "b"), ("a",))
        return r2.contains(1.25 / 2.25) and gain.contains(0.25 / 2.25)

    assert hits(covered, 60) >= fewest_hits(60, rate=0.90)


def test_a_table_refuses_what_it_cannot_hold() -> None:
    groups, columns = _columns(0)
    table = FoldTable.empty(("a",), FOLDS)
    with pytest.raises(InputError, match="columns are"):
        table.add(groups, columns)
    with pytest.raises(InputError, match="one number per token"):
        table.add(groups, {"a": columns["a"][:7]})
    with pytest.raises(InputError, match="NaN"):
        table.add(groups, {"a": np.where(groups == 3, np.nan, columns["a"])})
    with pytest.raises(InputError, match="no column"):
        table.average("b")
    with pytest.raises(InputError, match="one fold"):
        table.add(np.zeros(240, dtype=np.int64), {"a": columns["a"]}).r2("a", ("a",))


def test_part_maps_are_least_squares_without_the_own_part() -> None:
    source = tiny_world(n=1200)
    maps = part_maps(accumulate(source, folds=FOLDS), parts=3)
    part = fold_of(source.groups, FOLDS) % 3
    error = source.x - source.recons["sae0"]
    design = np.concatenate([source.x, np.ones((len(source.x), 1))], axis=1)
    linear = maps.linear("sae0", torch.from_numpy(source.x), source.groups)
    for p in range(3):
        solution = np.linalg.lstsq(design[part != p], error[part != p], rcond=None)[0]
        np.testing.assert_allclose(linear[part == p], design[part == p] @ solution, atol=1e-9)
    batch = next(iter(source))
    first, second = maps.split("sae0", batch)
    np.testing.assert_allclose(first + second, batch.x - batch.recons["sae0"], atol=1e-12)
    with pytest.raises(InputError, match="parts is"):
        part_maps(accumulate(source, folds=FOLDS), parts=FOLDS + 1)


def _sae(d: int, latents: int = 48) -> SAE:
    rows = torch.nn.functional.normalize(torch.randn(latents, d, generator=torch.Generator().manual_seed(0)), dim=1)
    return SAE(W_enc=rows.T.contiguous(), b_enc=torch.full((latents,), -0.3), W_dec=0.5 * rows, b_dec=torch.zeros(d))


def test_controls_have_the_answers_they_promise() -> None:
    """Nothing of a shuffled error or of noise is linear in x; a false alarm in 1 of 10^5."""
    world = small_world()
    source, saes = with_controls(world.pair({"sae": _sae(24)}, n_tokens=20_000), {"sae": _sae(24)}, CONTROLS)
    check_source(source)
    found = decompose_many(source, folds=16)
    assert [name for name in found if is_control(name)] == ["sae~shuffled", "sae~noise", "sae~random"]
    for name in ("sae~shuffled", "sae~noise"):
        assert found[name].fvu.value == pytest.approx(found["sae"].fvu.value, rel=0.02)
        half = found[name].r2_error.high - found[name].r2_error.value
        assert abs(found[name].r2_error.value) < 2.5 * half + 1e-3
    assert 0.2 < found["sae~random"].fvu.value < 1
    x = torch.from_numpy(np.asarray(next(iter(source)).x))
    assert saes["sae~random"].encode(x).l0 == pytest.approx(saes["sae"].encode(x).l0, abs=0.6)


def test_controls_of_a_surgical_sae_have_no_random_one() -> None:
    source = small_world().pair(small_surgical(), n_tokens=4096)
    with pytest.raises(InputError, match="needs the weights"):
        with_controls(source, {}, ["random"])
    assert with_controls(source, {}, ["noise"])[0].names == ("surgical", "surgical~noise")
    with pytest.raises(InputError, match="controls are"):
        with_controls(source, {}, ["noise", "noise"])


def test_a_batch_of_one_document_borrows_from_the_one_before() -> None:
    rng = np.random.default_rng(0)
    x, groups = rng.standard_normal((70, 3)), np.repeat(np.arange(7), 10)
    source = ListSource(x, {"a": 0 * x}, groups, batch_size=30)  # the last batch holds document 6 alone
    found, _ = with_controls(source, {}, ["shuffled"])
    errors = np.concatenate([batch.x - batch.recons["a~shuffled"] for batch in found])
    from_document = groups[[int(np.abs(x - error).sum(axis=1).argmin()) for error in errors]]
    assert (from_document != groups).all()
    torch.testing.assert_close(next(found.batches_from(2)).recons, list(found)[2].recons)
    alone, _ = with_controls(ListSource(x[:10], {"a": 0 * x[:10]}, groups[:10]), {}, ["shuffled"])
    with pytest.raises(InputError, match="one document only"):
        next(iter(alone))


@given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=12))
def test_elsewhere_is_another_document(lengths: list[int]) -> None:
    groups = np.repeat(np.arange(len(lengths)), lengths)
    partner = elsewhere(groups).numpy()
    assert (groups[partner] != groups).all()
    if max(lengths) <= len(groups) // 2:
        assert len(np.unique(partner)) == len(groups)


def test_elsewhere_needs_two_documents() -> None:
    with pytest.raises(InputError, match="one document only"):
        elsewhere(np.zeros(5, dtype=np.int64))
