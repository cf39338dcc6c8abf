"""An array inside a configuration: frozen, hashable, equal by content, and plain JSON types when written."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError

MAX_ENTRIES = 100_000_000
"""Most entries of a table; 16,384 features of width 768 are an eighth of it."""

DTYPES = ("float32", "float64")
"""What a table stores."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Table:
    """A read-only copy of an array of numbers that a configuration can hold, compare, hash and write as JSON.

    float32 and float64 are kept, integers become float64, and −0 becomes 0 so that equal numbers are equal tables.

    Attributes:
        array: The numbers, one- or two-dimensional, read-only and contiguous. `Table(array)` copies.
        digest: 128-bit BLAKE2b hash of dtype, shape and bytes.
    """

    array: npt.NDArray[Any]
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        values = _numbers(self.array)
        kind = f"float{8 * values.dtype.itemsize}"  # whatever its byte order
        # adding zero copies and clears the sign of −0; "<" fixes the byte order that is hashed and written
        copy = np.ascontiguousarray(values + values.dtype.type(0), dtype=np.dtype(kind).newbyteorder("<"))
        if not np.isfinite(copy).all():
            raise InputError("table holds NaN or infinity, expected finite numbers: mend the array first")
        copy.flags.writeable = False
        header = f"{kind}{copy.shape}".encode()
        object.__setattr__(self, "array", copy)
        object.__setattr__(self, "digest", hashlib.blake2b(header + copy.tobytes(), digest_size=16).digest())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.digest == other.digest

    def __hash__(self) -> int:
        return int.from_bytes(self.digest[:8], "little", signed=True)

    def __repr__(self) -> str:
        return f"Table({self.array.dtype.name}, shape={self.shape}, {self.digest.hex()[:8]})"

    def __reduce__(self) -> tuple[type[Table], tuple[npt.NDArray[Any]]]:
        return Table, (self.array,)  # a copy is checked and read-only too

    def to_plain(self) -> dict[str, Any]:
        """The array as plain JSON types: dtype, shape and the little-endian bytes in base64."""
        data = base64.b64encode(self.array.tobytes()).decode("ascii")
        return {"dtype": self.array.dtype.name, "shape": list(self.shape), "base64": data}

    @staticmethod
    def from_plain(data: object) -> Table:
        """Rebuild a table from `to_plain`; all sizes are checked before anything is decoded.

        Args:
            data: What `to_plain` gave, perhaps through JSON.

        Returns:
            An equal table.

        Raises:
            InputError: Not such a mapping, another dtype, an impossible shape, or bytes that do not fit it.
        """
        if not isinstance(data, Mapping) or set(data) != {"dtype", "shape", "base64"}:
            got = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
            raise InputError(f"table is {got}, expected exactly the fields 'dtype', 'shape' and 'base64'")
        kind, shape, text = data["dtype"], data["shape"], data["base64"]
        if kind not in DTYPES:
            raise InputError(f"table has dtype {kind!r}, expected 'float32' or 'float64'")
        if not isinstance(shape, list | tuple) or not all(type(n) is int and n >= 1 for n in shape):
            raise InputError(f"table has shape {shape!r}, expected a list of one or two ints of at least 1")
        _check_shape(tuple(shape))
        dtype = np.dtype(kind).newbyteorder("<")
        size = math.prod(shape) * dtype.itemsize
        length = 4 * -(-size // 3)
        if not isinstance(text, str) or len(text) != length:
            got = f"{len(text)}" if isinstance(text, str) else f"{type(text).__name__} instead of"
            raise InputError(
                f"table has {got} base64 characters, expected {length} for {kind} of shape {list(shape)}: "
                "the file is cut off or was edited"
            )
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise InputError("table's base64 does not decode, expected what to_plain wrote") from None
        if len(raw) != size:
            raise InputError(f"table's base64 holds {len(raw)} bytes, expected {size}: the file was edited")
        return Table(np.frombuffer(raw, dtype=dtype).reshape(shape))


def _numbers(values: object) -> npt.NDArray[Any]:
    """View what a user gave as an array of float32 or float64.

    Raises:
        InputError: No array, not numbers, or a shape that no table has.
    """
    try:
        array = np.asarray(values)
    except (ValueError, TypeError):  # rows of unequal length, and objects that refuse
        raise InputError(f"table is a {type(values).__name__} that is no array, expected an array of numbers") from None
    if array.dtype.kind not in "iuf" or (array.dtype.kind == "f" and array.dtype.itemsize not in {4, 8}):
        raise InputError(f"table has dtype {array.dtype}, expected float32, float64 or integers: convert it first")
    _check_shape(array.shape)
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _check_shape(shape: tuple[int, ...]) -> None:
    """Require one or two dimensions and between 1 and MAX_ENTRIES entries.

    Raises:
        InputError: Another shape.
    """
    if len(shape) not in {1, 2} or not 1 <= math.prod(shape) <= MAX_ENTRIES:
        raise InputError(f"table has shape {list(shape)}, expected 1 or 2 dimensions and 1 to {MAX_ENTRIES:,} entries")
