"""Table: what it accepts, equality by content, and the way through JSON."""

from __future__ import annotations

import base64
import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from darkmatter.errors import InputError
from darkmatter.sandbox.table import MAX_ENTRIES, Table

ARRAYS = st.sampled_from([np.float32, np.float64]).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=1, max_dims=2, max_side=7),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
    )
)


@given(array=ARRAYS)
def test_json_gives_the_same_table_back(array: np.ndarray) -> None:
    table = Table(array)
    back = Table.from_plain(json.loads(json.dumps(table.to_plain())))
    assert back == table and hash(back) == hash(table)
    assert back.array.dtype == array.dtype and np.array_equal(back.array, array)
    assert back.to_plain() == table.to_plain()


@given(array=ARRAYS, data=st.data())
def test_tables_are_equal_exactly_when_their_content_is(array: np.ndarray, data: st.DataObject) -> None:
    other = array.copy()
    at = data.draw(st.integers(0, array.size - 1))
    other.flat[at] = np.nextafter(array.flat[at], array.dtype.type(np.inf), dtype=array.dtype)
    if np.isfinite(other).all() and other.flat[at] != array.flat[at]:
        assert Table(other) != Table(array)
    assert Table(array.copy()) == Table(array)
    assert Table(array.reshape(1, -1)) == Table(array) or array.shape != (1, array.size)
    assert Table(array) != array.tolist()


def test_shape_and_dtype_count_and_the_sign_of_zero_does_not() -> None:
    values = np.arange(6, dtype=np.float32)
    assert Table(values) != Table(values.reshape(2, 3))
    assert Table(values) != Table(values.astype(np.float64))
    assert Table(np.array([-0.0])) == Table(np.array([0.0]))
    assert Table(np.arange(3)).array.dtype == np.float64
    assert Table([[1.0, 2.0]]).shape == (1, 2)  # type: ignore[arg-type]
    assert Table(values[::2]) == Table(values[::2].copy())
    big_endian = values.astype(">f4")
    assert Table(big_endian) == Table(values) and Table(big_endian).to_plain() == Table(values).to_plain()


def test_a_table_is_a_read_only_copy_also_when_copied() -> None:
    values = np.ones(3)
    table = Table(values)
    values[0] = 5.0
    for same in (table, copy.copy(table), copy.deepcopy(table)):
        assert same == table and same.array[0] == 1.0
        with pytest.raises(ValueError, match="read-only"):
            same.array[0] = 2.0
    with pytest.raises(AttributeError):
        table.array = values  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([1.0, np.nan]), "NaN or infinity"),
        (np.array([1.0, np.inf], dtype=np.float32), "NaN or infinity"),
        (np.zeros((2, 2, 2)), "shape [2, 2, 2], expected 1 or 2 dimensions"),
        (np.float64(1.0), "shape []"),
        (np.zeros((0, 3)), "shape [0, 3]"),
        (np.broadcast_to(np.float32(1.0), (MAX_ENTRIES + 1,)), "100,000,000 entries"),
        (np.array([True]), "dtype bool"),
        (np.array([1j]), "dtype complex128"),
        (np.array(["a"]), "dtype <U1"),
        (np.array([object()]), "dtype object"),
        (np.zeros(2, dtype=np.float16), "dtype float16"),
        ([[1.0], [1.0, 2.0]], "no array"),
    ],
)
def test_arrays_that_are_no_table_are_refused(values: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Table(values)  # type: ignore[arg-type]
    assert message in str(caught.value) and "\n" not in str(caught.value)


GOOD = Table(np.arange(3.0)).to_plain()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float16"}, "dtype 'float16'"),
        ({"dtype": ["float64"]}, "dtype ['float64']"),
        ({"dtype": "float32"}, "expected 16 for float32"),
        ({"shape": [4]}, "expected 44"),
        ({"shape": [3, True]}, "a list of one or two ints"),
        ({"shape": [3.0]}, "a list of one or two ints"),
        ({"shape": 3}, "a list of one or two ints"),
        ({"shape": []}, "1 or 2 dimensions"),
        ({"shape": [1, 1, 3]}, "1 or 2 dimensions"),
        ({"shape": [10**9, 10**9]}, "1 to 100,000,000 entries"),
        ({"base64": GOOD["base64"][:-4]}, "has 28 base64 characters, expected 32"),
        ({"base64": 7}, "has int instead of base64 characters"),
        ({"base64": "*" * 32}, "does not decode"),
        ({"base64": "é" * 32}, "does not decode"),
        ({"base64": "A" * 31 + "="}, "holds 23 bytes, expected 24"),
        ({"base64": base64.b64encode(np.full(3, np.nan).tobytes()).decode()}, "NaN or infinity"),
        ({"extra": 1}, "exactly the fields"),
    ],
)
def test_edited_tables_are_refused_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Table.from_plain({**GOOD, **change})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_mapping_is_refused() -> None:
    for data in (None, [1.0], "float64"):
        with pytest.raises(InputError, match="expected exactly the fields"):
            Table.from_plain(data)
