"""The seam: whatever is wrong with a source or a batch is an InputError in one line, and nothing was accumulated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkmatter import Batch, InputError, check_source, decompose
from darkmatter.batch import check_batch, check_header, iterate_from
from darkmatter.folds import FoldAccumulator
from darkmatter.moments import Layout
from tests.helpers import ListSource, tiny_world

N, D = 40, 5
NAMES = ("a", "b")


def valid(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, D))
    return Batch(x, {name: x + rng.standard_normal((N, D)) for name in NAMES}, np.arange(N, dtype=np.int64) // 4)


def check(batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return check_batch(batch, d_model=D, names=NAMES)


def with_entry(array: Any, value: float, row: int = 7) -> Any:
    changed = np.array(array)
    changed[row, 2] = value
    return changed


def with_recon(batch: Batch, name: str, value: Any) -> Batch:
    return replace(batch, recons={**batch.recons, name: value})


def half_with_overflow(batch: Batch) -> Batch:
    with np.errstate(over="ignore"):
        return replace(batch, x=with_entry(batch.x, 1e6).astype(np.float16))


BAD: dict[str, tuple[Callable[[Batch], Any], str]] = {
    "x transposed": (lambda b: replace(b, x=b.x.T), r"x has shape \(5, 40\), expected \(5, 5\)"),
    "x too wide": (lambda b: replace(b, x=np.ones((N, D + 1))), r"x has shape \(40, 6\), expected \(40, 5\)"),
    "x with a batch axis": (lambda b: replace(b, x=np.ones((4, 10, D))), "flatten batch and position first"),
    "x a vector": (lambda b: replace(b, x=np.ones(N)), r"expected \(n_tokens, d_model\)"),
    "x a scalar": (lambda b: replace(b, x=torch.tensor(1.0)), r"expected \(n_tokens, d_model\)"),
    "x a list": (lambda b: replace(b, x=b.x.tolist()), "x is a list, expected a numpy array or a torch tensor"),
    "x None": (lambda b: replace(b, x=None), "x is a NoneType"),
    "x int64": (lambda b: replace(b, x=np.ones((N, D), np.int64)), r"x has dtype int64.*astype\('float32'\)"),
    "x torch int": (lambda b: replace(b, x=torch.ones(N, D, dtype=torch.int32)), r"torch.int32.*\.float\(\)"),
    "x bool": (lambda b: replace(b, x=np.ones((N, D), bool)), "x has dtype bool"),
    "x complex": (lambda b: replace(b, x=b.x.astype(complex)), "x has dtype complex128"),
    "x torch complex": (lambda b: replace(b, x=torch.ones(N, D, dtype=torch.complex64)), "torch.complex64"),
    "x longdouble": (lambda b: replace(b, x=b.x.astype(np.longdouble)), "expected float16, float32 or float64"),
    "x objects": (lambda b: replace(b, x=b.x.astype(object)), "x has dtype object"),
    "x strings": (lambda b: replace(b, x=b.x.astype("U4")), "x has dtype <U4"),
    "x float8": (lambda b: replace(b, x=torch.ones(N, D).to(torch.float8_e4m3fn)), "float8"),
    "x sparse": (lambda b: replace(b, x=torch.eye(N, D).to_sparse()), r"sparse.*to_dense\(\)"),
    "x on the meta device": (lambda b: replace(b, x=torch.empty(N, D, device="meta")), "meta.*no values"),
    "x masked": (lambda b: replace(b, x=np.ma.masked_array(b.x, mask=b.x > 1)), r"masked.*drop the masked rows"),
    "x NaN": (lambda b: replace(b, x=with_entry(b.x, np.nan)), r"x has 1 entries.*row 7.*drop its document"),
    "x -inf": (lambda b: replace(b, x=with_entry(b.x, -np.inf)), "row 7"),
    "x 2e60": (lambda b: replace(b, x=with_entry(b.x, 2e60)), "beyond 1e60"),
    "x float32 inf": (lambda b: replace(b, x=with_entry(b.x, np.inf).astype(np.float32)), "row 7"),
    "x float16 overflow": (half_with_overflow, "float16 overflows at 65504: cache activations in bfloat16 or float32"),
    "x bfloat16 NaN": (lambda b: replace(b, x=torch.from_numpy(with_entry(b.x, np.nan)).bfloat16()), "row 7"),
    "recons None": (lambda b: replace(b, recons=None), "recons is a NoneType, expected a mapping"),
    "recons a list": (lambda b: replace(b, recons=list(b.recons.values())), "recons is a list, expected a mapping"),
    "recons an array": (lambda b: replace(b, recons=b.x), "recons is a ndarray, expected a mapping"),
    "a SAE missing": (lambda b: replace(b, recons={"a": b.recons["a"]}), r"\['a'\], expected \['a', 'b'\]"),
    "a SAE too many": (lambda b: with_recon(b, "c", b.x), r"\['a', 'b', 'c'\], expected \['a', 'b'\]"),
    "a SAE with a number for a name": (lambda b: with_recon(b, 3, b.x), "expected"),  # type: ignore[arg-type]
    "recon transposed": (lambda b: with_recon(b, "b", b.x.T), r"recon 'b' has shape \(5, 40\).*transposed"),
    "recon one row short": (lambda b: with_recon(b, "b", b.x[1:]), r"\(39, 5\), expected \(40, 5\): every array"),
    "recon too wide": (lambda b: with_recon(b, "a", np.ones((N, D + 1))), r"recon 'a' has shape \(40, 6\)"),
    "recon NaN": (lambda b: with_recon(b, "a", with_entry(b.x, np.nan)), "recon 'a' has 1 entries that are NaN"),
    "recon ints": (lambda b: with_recon(b, "a", np.ones((N, D), np.int8)), "recon 'a' has dtype int8"),
    "recon None": (lambda b: with_recon(b, "a", None), "recon 'a' is a NoneType"),
    "groups int32": (lambda b: replace(b, groups=b.groups.astype(np.int32)), "groups is int32, expected a numpy int64"),
    "groups float": (lambda b: replace(b, groups=b.groups.astype(float)), "groups is float64"),
    "groups big-endian": (lambda b: replace(b, groups=b.groups.astype(">i8")), "groups is >i8"),
    "groups torch": (lambda b: replace(b, groups=torch.from_numpy(b.groups)), "groups is Tensor"),
    "groups a list": (lambda b: replace(b, groups=b.groups.tolist()), "groups is list"),
    "groups None": (lambda b: replace(b, groups=None), "groups is NoneType"),
    "groups short": (lambda b: replace(b, groups=b.groups[1:]), r"groups has shape \(39,\), expected \(40,\)"),
    "groups a column": (lambda b: replace(b, groups=b.groups[:, None]), r"groups has shape \(40, 1\)"),
    "a tuple for a batch": (lambda b: (b.x, b.recons, b.groups), "tuple, expected a Batch"),
    "None for a batch": (lambda b: None, "NoneType, expected a Batch"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_batch_is_named_in_one_line(case: str) -> None:
    corrupt, match = BAD[case]
    check(valid())  # the batch was good before
    with pytest.raises(InputError, match=match) as caught:
        check(corrupt(valid()))
    assert "\n" not in str(caught.value)


@given(st.sampled_from(sorted(BAD)), st.integers(0, 3), st.integers(0, 99))
def test_a_bad_batch_leaves_the_accumulator_as_it_was(case: str, good: int, seed: int) -> None:
    accumulator = FoldAccumulator(Layout(D, NAMES), folds=3)
    for i in range(good):
        accumulator.update(valid(i))
    before = {name: tensor.clone() for name, tensor in accumulator.state().items()}
    with pytest.raises(InputError):
        accumulator.update(BAD[case][0](valid(seed)))
    after = accumulator.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@given(st.data())
def test_one_random_bad_entry_anywhere_is_found(data: st.DataObject) -> None:
    batch = valid(data.draw(st.integers(0, 99)))
    where = data.draw(st.sampled_from(["x", *NAMES]))
    row, column = data.draw(st.integers(0, N - 1)), data.draw(st.integers(0, D - 1))
    value = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e60, -1e61, 1e300]))
    changed = np.array(batch.x if where == "x" else batch.recons[where])
    changed[row, column] = value
    bad = replace(batch, x=changed) if where == "x" else with_recon(batch, where, changed)
    with pytest.raises(InputError, match=f"first in row {row}"):
        check(bad)


def big_endian(array: Any) -> Any:
    return array.astype(">f8")


def every_second_row(array: Any) -> Any:
    wide = np.zeros((2 * len(array), array.shape[1]))
    wide[::2] = array
    return wide[::2]


def reversed_columns(array: Any) -> Any:
    return array[:, ::-1].copy()[:, ::-1]


def read_only(array: Any) -> Any:
    frozen = array.copy()
    frozen.flags.writeable = False
    return frozen


def needs_gradient(array: Any) -> Any:
    return torch.from_numpy(array.copy()).requires_grad_()


FORMS: dict[str, tuple[Callable[[Any], Any], float]] = {  # how an array may come, and its relative rounding
    "float64": (lambda a: a, 0.0),
    "float32": (lambda a: a.astype(np.float32), 2.0**-24),
    "float16": (lambda a: a.astype(np.float16), 2.0**-11),
    "big-endian": (big_endian, 0.0),
    "fortran": (np.asfortranarray, 0.0),
    "strided": (every_second_row, 0.0),
    "negative strides": (reversed_columns, 0.0),
    "read-only": (read_only, 0.0),
    "torch": (torch.from_numpy, 0.0),
    "torch transposed view": (lambda a: torch.from_numpy(a.T.copy()).T, 0.0),
    "torch bfloat16": (lambda a: torch.from_numpy(a).bfloat16(), 2.0**-8),
    "torch float16": (lambda a: torch.from_numpy(a).half(), 2.0**-11),
    "torch with gradient": (needs_gradient, 0.0),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_array_form_is_read_and_left_alone(form: str) -> None:
    make, rounding = FORMS[form]
    batch = valid()
    given_x = make(batch.x)
    x, recons = check(replace(batch, x=given_x, recons={name: make(r) for name, r in batch.recons.items()}))
    assert tuple(recons) == NAMES
    assert np.all(np.abs(x.double().numpy() - batch.x) <= rounding * np.abs(batch.x) + 2.0**-25 * (rounding > 0))
    assert not x.requires_grad
    accumulator = FoldAccumulator(Layout(D, NAMES), folds=3)
    accumulator.update(replace(batch, x=given_x))
    now = given_x.detach().double().numpy() if isinstance(given_x, torch.Tensor) else np.asarray(given_x, float)
    assert np.array_equal(now, x.double().numpy())  # accumulating did not write into the caller's array


def test_a_memory_map_is_read(tmp_path: Path) -> None:
    batch = valid()
    np.save(tmp_path / "x.npy", batch.x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False)
    x, _ = check(replace(batch, x=mapped))
    assert np.array_equal(x.numpy(), batch.x)


def test_an_empty_batch_is_a_batch_of_no_tokens() -> None:
    empty = np.empty((0, D))
    accumulator = FoldAccumulator(Layout(D, NAMES), folds=3)
    assert accumulator.update(Batch(empty, dict.fromkeys(NAMES, empty), np.empty(0, dtype=np.int64))) == 0
    assert accumulator.n_tokens == 0


@dataclass
class Changing:
    """A source that yields, at its k-th iteration, the k-th of some lists of batches (then the last one for ever)."""

    passes: list[list[Batch]]
    d_model: int = D
    names: tuple[str, ...] = NAMES
    description: Mapping[str, Any] = field(default_factory=dict)
    _count: int = 0

    def __iter__(self) -> Iterator[Batch]:
        batches = self.passes[min(self._count, len(self.passes) - 1)]
        self._count += 1
        return iter(batches)


@dataclass
class Resumable(Changing):
    later: list[Batch] = field(default_factory=list)

    def batches_from(self, start: int) -> Iterator[Batch]:
        return iter(self.later)


def test_a_good_source_is_counted() -> None:
    source = tiny_world(600, D, per_document=10)
    checked = check_source(source)
    assert (checked.n_batches, checked.n_tokens, checked.n_groups, checked.dtype) == (3, 600, 60, "float64")
    assert check_source(source, max_batches=1).n_tokens == 256
    half = ListSource(torch.from_numpy(source.x).bfloat16(), source.recons, source.groups)
    assert check_source(half).dtype == "bfloat16"


def test_a_source_that_can_start_later_is_asked_to() -> None:
    batches = [valid(i) for i in range(3)]
    good = Resumable([batches], later=batches[1:])
    assert check_source(good).n_batches == 3
    assert list(iterate_from(good, 1)) == batches[1:]
    assert [b is c for b, c in zip(iterate_from(Changing([batches]), 1), batches[1:], strict=True)] == [True, True]


@dataclass
class Once(Changing):
    """Iterable only once: hands out one and the same iterator every time."""

    def __post_init__(self) -> None:
        self._only = iter(self.passes[0])

    def __iter__(self) -> Iterator[Batch]:
        return self._only


first, second = valid(0), valid(1)
other_recon = with_recon(first, "b", np.array(first.recons["b"]) + 1e-9)
BAD_SOURCES: dict[str, tuple[Callable[[], Any], str]] = {
    "not a source": (lambda: [first], "list is not a BatchSource: it needs d_model, names, description"),
    "d_model 0": (lambda: Changing([[first]], d_model=0), "d_model is 0, expected a positive int"),
    "d_model a float": (lambda: Changing([[first]], d_model=5.0), "d_model is 5.0"),  # type: ignore[arg-type]
    "names a list": (lambda: Changing([[first]], names=list(NAMES)), "expected a non-empty tuple"),  # type: ignore[arg-type]
    "names a string": (lambda: Changing([[first]], names="ab"), "expected a non-empty tuple"),  # type: ignore[arg-type]
    "no names": (lambda: Changing([[first]], names=()), "expected a non-empty tuple"),
    "an empty name": (lambda: Changing([[first]], names=("a", "")), "expected a non-empty tuple"),
    "a name twice": (lambda: Changing([[first]], names=("a", "b", "a")), r"\['a'\] appear more than once"),
    "description unserialisable": (
        lambda: Changing([[first]], description={"seed": {1, 2}}),
        "description cannot be written as JSON",
    ),
    "description NaN": (lambda: Changing([[first]], description={"p": float("nan")}), "cannot be written as JSON"),
    "description unsortable": (lambda: Changing([[first]], description={1: 2, "a": 3}), "cannot be written as JSON"),  # type: ignore[dict-item]
    "description None": (lambda: Changing([[first]], description=None), "cannot be written as JSON"),  # type: ignore[arg-type]
    "empty": (lambda: Changing([[]]), "yields no batch: check the input files and the token filter"),
    "not batches": (lambda: Changing([[(first.x, first.recons, first.groups)]]), "expected a Batch"),  # type: ignore[list-item]
    "wrong width": (lambda: Changing([[first]], d_model=6), r"x has shape \(40, 5\), expected \(40, 6\)"),
    "other tokens the second time": (lambda: Changing([[first], [second]]), "a second iteration starts with different"),
    "another recon the second time": (lambda: Changing([[first], [other_recon]]), "a second iteration starts with"),
    "another dtype the second time": (
        lambda: Changing([[first], [replace(first, x=first.x.astype(np.float32))]]),
        "a second iteration starts with",
    ),
    "nothing the second time": (lambda: Changing([[first], []]), "a second iteration starts with"),
    "an iterator": (lambda: Once([[first]]), "a second iteration starts with"),
    "starts later elsewhere": (lambda: Resumable([[first, second]], later=[first]), r"batches_from\(1\) starts with"),
    "starts later with nothing": (lambda: Resumable([[first, second]]), r"batches_from\(1\) starts with"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_bad_source_is_named_in_one_line(case: str) -> None:
    make, match = BAD_SOURCES[case]
    with pytest.raises(InputError, match=match) as caught:
        check_source(make())
    assert "\n" not in str(caught.value)


def test_a_pass_checks_the_header_and_names_the_bad_batch() -> None:
    with pytest.raises(InputError, match="more than once"):
        check_header(Changing([[first]], names=("a", "a")))
    with pytest.raises(InputError, match="cannot be written as JSON"):
        decompose(replace(tiny_world(100, D), description={"when": object()}))
    source = tiny_world(600, D)
    source.x[300] = np.nan
    with pytest.raises(InputError, match="batch 2: x has 5 entries that are NaN"):
        decompose(source)
    with pytest.raises(InputError, match="yields no tokens"):
        decompose(replace(source, x=source.x[:0]))
