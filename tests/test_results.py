"""The record of a decomposition: the split of an error, and JSON there and back."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from darkmatter import Decomposition, Estimate, InputError, decompose, decompose_many
from darkmatter.inference import UNDEFINED
from darkmatter.report import Report, verdict
from tests.helpers import Matrix, tiny_world

EPS = float(np.finfo(np.float64).eps)


def result_of(seed: int = 0, mean: float = 0.0) -> tuple[Decomposition, Matrix, Matrix]:
    world = tiny_world(600, 6, seed=seed, mean=mean)
    return decompose(world, folds=5), world.x, world.recons["sae0"]


@given(st.integers(0, 999), st.sampled_from([0.0, 10.0, 1e4]))
def test_the_split_is_the_regression_on_the_training_tokens(seed: int, mean: float) -> None:
    result, x, recon = result_of(seed, mean)
    linear, nonlinear = result.split(x, recon)
    assert isinstance(linear, np.ndarray) and isinstance(nonlinear, np.ndarray)
    error = x - recon
    # prediction x W + b at |x| = mean: d products, each rounded at the size of |x| |W|
    size = 1.0 + abs(x).max()
    assert abs(linear + nonlinear - error).max() <= 16 * EPS * size
    centred = x - x.mean(axis=0)
    scale = np.linalg.norm(centred) * np.linalg.norm(nonlinear)
    # normal equations: the gradient vanishes to cond(Cov x) ε; the split itself is rounded at ε |x|, n times
    tolerance = 64 * EPS * (result.condition + size * len(x) ** 0.5)
    assert abs(centred.T @ nonlinear).max() <= tolerance * scale
    assert abs(nonlinear.mean(axis=0)).max() <= 64 * EPS * size
    # in sample: just below the estimate, which adds back what fitting took away
    share = (nonlinear**2).sum() / (centred**2).sum()
    assert result.insample <= share * (1 + 1e-9) and share < result.heldout
    assert (linear.dtype, nonlinear.dtype) == (np.float64, np.float64)


def test_a_worse_map_is_noticed() -> None:
    # the optimality check above can fail: any other map leaves a gradient
    result, x, recon = result_of()
    assert result.linear_map is not None
    other = replace(result, linear_map=replace(result.linear_map, weight=result.linear_map.weight * 1.01))
    _, nonlinear = other.split(x, recon)
    centred = x - x.mean(axis=0)
    assert abs(centred.T @ nonlinear).max() > 1e-4 * np.linalg.norm(centred) * np.linalg.norm(nonlinear)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_split_returns_what_it_was_given(dtype: torch.dtype) -> None:
    result, x, recon = result_of()
    tx, tr = torch.from_numpy(x).to(dtype), torch.from_numpy(recon).to(dtype)
    linear, nonlinear = result.split(tx, tr)
    assert isinstance(linear, torch.Tensor) and isinstance(nonlinear, torch.Tensor)
    assert linear.dtype == nonlinear.dtype == torch.float64
    assert float((linear + nonlinear - (tx.double() - tr.double())).abs().max()) <= 64 * EPS
    mixed = result.split(tx.double().numpy(), tr)
    assert isinstance(mixed[0], np.ndarray) and np.array_equal(mixed[1], nonlinear.numpy())
    new, _ = result.split(x[:3], recon[:3])  # any tokens, also a few
    assert new.shape == (3, 6)


@pytest.mark.parametrize(
    ("x", "recon", "match"),
    [
        (np.ones((4, 5)), np.ones((4, 5)), r"x has shape \(4, 5\), expected \(4, 6\)"),
        (np.ones((6, 4)), np.ones((6, 4)), "x has shape"),
        (np.ones((4, 6)), np.ones((3, 6)), r"recon has shape \(3, 6\), expected \(4, 6\)"),
        (np.ones((4, 6)), np.ones((6, 4)), "looks transposed"),
        (np.ones(6), np.ones(6), "flatten batch and position"),
        (np.ones((4, 6), int), np.ones((4, 6)), "dtype int64"),
        ([[1.0] * 6], np.ones((1, 6)), "x is a list"),
    ],
)
def test_the_split_refuses_other_shapes(x: Any, recon: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        result_of()[0].split(x, recon)


def test_a_record_without_its_map_says_so() -> None:
    result, x, recon = result_of()
    read = Decomposition.from_json(result.to_json())
    with pytest.raises(InputError, match="read from JSON has no linear map: run decompose again"):
        read.split(x, recon)


def with_dead(seed: int) -> dict[str, Decomposition]:
    world = tiny_world(300, 4, seed=seed, n_saes=2)
    return decompose_many(
        replace(world, recons={**world.recons, "dead": np.zeros_like(world.x), "half": world.x / 2}, names=()), folds=4
    )


@given(st.integers(0, 9999))
def test_json_there_and_back(seed: int) -> None:
    for result in with_dead(seed).values():
        text = result.to_json()
        read = Decomposition.from_json(text)
        assert read == result
        assert (read.linear_map, read.to_json(), read.degenerate) == (None, text, result.degenerate)
        assert [type(getattr(read, f.name)) for f in fields(read)][:-1] == [
            type(getattr(result, f.name)) for f in fields(result)
        ][:-1]


ESTIMATES = st.tuples(*[st.floats(allow_infinity=False) | st.just(math.nan)] * 3)


@given(ESTIMATES, ESTIMATES)
def test_undefined_numbers_are_written_as_null(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    result = replace(result_of()[0], gain=Estimate(*first), shrinkage=Estimate(*second), r2_norm=UNDEFINED)
    text = result.to_json()
    assert "NaN" not in text
    read = Decomposition.from_json(text)
    for name, want in (("gain", first), ("shrinkage", second), ("r2_norm", (math.nan,) * 3)):
        got = getattr(read, name)
        assert np.array_equal([got.value, got.low, got.high], want, equal_nan=True)
    assert read.to_json() == text


TEXT = result_of()[0].to_json()


@given(st.integers(0, len(TEXT) - 1))
def test_a_truncated_record_is_refused(length: int) -> None:
    with pytest.raises(InputError, match="not JSON"):
        Decomposition.from_json(TEXT[:length])


@given(st.text() | st.sampled_from(["", "null", "[]", "3", '"a"', "{}", "[" * 100_000, '{"format": 1}', "\x00", "NaN"]))
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        Decomposition.from_json(text)
    assert "\n" not in str(caught.value)


FIELDS = sorted(set(json.loads(TEXT)) - {"format", "version"})
BAD_VALUES = [None, "text", [1], {"value": 1.0}, {"a": 1}]


@given(st.sampled_from(FIELDS))
def test_a_record_without_a_field_is_refused(name: str) -> None:
    value = json.loads(TEXT)
    del value[name]
    with pytest.raises(InputError, match=f"not a complete decomposition.*{name}"):
        Decomposition.from_dict(value)


@given(st.sampled_from(FIELDS), st.sampled_from(BAD_VALUES))
def test_a_record_with_a_foreign_value_is_refused(name: str, bad: Any) -> None:
    value = json.loads(TEXT)
    assume(not isinstance(bad, type(value[name])))
    assume(bad is not None or name not in {"degenerate", "condition", "max_token_share", "max_leverage"})
    assume(bad is not None or name not in {"insample", "heldout"})  # null is NaN
    with pytest.raises(InputError, match="not a complete decomposition"):
        Decomposition.from_dict({**value, name: bad})


@pytest.mark.parametrize("name", ["unshared", "corrected", "instrument", "assumptions"])
def test_a_pair_without_a_field_is_refused(name: str) -> None:
    value = with_dead(1)["half"].to_dict()
    # a dead SAE is no instrument: undefined, and written as null
    assert value["replicates"]["dead"]["instrument"] == {"value": None, "low": None, "high": None}
    assert (
        Decomposition.from_dict(value).replicates["dead"].corrected == with_dead(1)["half"].replicates["dead"].corrected
    )
    del value["replicates"]["sae0"][name]
    with pytest.raises(InputError, match=f"not a complete decomposition.*{name}"):
        Decomposition.from_dict(value)


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"version": None}, {"format": "darkmatter-report"}, {"format": None}]
)
def test_another_version_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"expected \('darkmatter-decomposition', 1\)"):
        Decomposition.from_dict({**json.loads(TEXT), **change})


def test_a_report_is_plain_and_repeats_itself() -> None:
    results = with_dead(3)
    report = Report(results, {"file": "x.npy", "dropped": 3, "rate": math.nan}, truth={"sae0": {"fvu": 0.1}})
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["verdicts"]["dead"] == verdict(results["dead"])
    assert plain["source"] == {"file": "x.npy", "dropped": 3, "rate": None}
    assert plain["truth"]["sae0"] == {"fvu": 0.1} and "training" not in plain
    assert json.dumps(report.to_dict()) == json.dumps(Report(with_dead(3), report.source, report.truth).to_dict())
    sentence = verdict(results["sae0"])
    assert sentence.startswith("sae0 misses") and "interference" in sentence and "%" in sentence
