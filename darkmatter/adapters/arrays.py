"""Arrays that somebody already has (numpy, torch or memory-mapped) as a source of batches.

A memory map is never read whole: rows are sliced batch by batch, and the up-front checks look at shapes, dtypes and
a handful of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.adapters.group_ids import as_group_ids
from darkmatter.batch import Array, Batch, check_header
from darkmatter.checks import as_float_tensor, check_matrix
from darkmatter.errors import InputError

FINGERPRINT_ROWS = 16
"""Rows, evenly spaced from the first to the last, that stand for an array in its fingerprint."""


@dataclass(frozen=True, slots=True, eq=False)
class ArraySource:
    """Batches of consecutive rows of arrays that are already there; build it with `from_arrays`.

    The arrays are held, not copied: do not write to them while a pass is running.

    Attributes:
        x: Activations, (n_tokens, d_model).
        recons: Reconstructions by SAE name, each (n_tokens, d_model).
        groups: Document id of every row, (n_tokens,), int64; None when every row is its own document.
        batch_size: Rows per batch.
        description: What goes into the report, see `from_arrays`.
    """

    x: Array
    recons: Mapping[str, Array]
    groups: npt.NDArray[np.int64] | None
    batch_size: int
    description: Mapping[str, Any] = field(repr=False)

    @property
    def d_model(self) -> int:
        """Activation width."""
        return int(self.x.shape[1])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the SAEs, in the order they were given."""
        return tuple(self.recons)

    def __iter__(self) -> Iterator[Batch]:
        """Yield every batch, from the first row on."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[Batch]:
        """Yield batch number `start` and those after it; earlier rows are not touched."""
        n = len(self.x)
        for low in range(start * self.batch_size, n, self.batch_size):
            high = min(low + self.batch_size, n)
            yield Batch(
                x=_rows(self.x, low, high),
                recons={name: _rows(recon, low, high) for name, recon in self.recons.items()},
                groups=np.arange(low, high, dtype=np.int64) if self.groups is None else self.groups[low:high].copy(),
            )


def from_arrays(
    x: Array,
    recon: Array | Mapping[str, Array],
    groups: Any = None,
    *,
    batch_size: int = 4096,
    name: str = "sae",
    description: Mapping[str, Any] | None = None,
) -> ArraySource:
    """Make a source of activations x and reconstructions Sae(x) that are held in memory or memory-mapped.

    The description holds the number of tokens, the dtype, whether document ids were given, the batch size, and a
    fingerprint of the contents, so that a checkpoint made from other data is recognised.

    Args:
        x: Activations, (n_tokens, d_model); float16, bfloat16, float32 or float64.
        recon: Reconstructions Sae(x) of the same shape, or one such array per SAE name. Not errors x − Sae(x).
        groups: Document id of every row, (n_tokens,): ints, or strings (each becomes the first 8 bytes of its
            BLAKE2b hash). None makes each token its own document, which is right only for independent tokens.
        batch_size: Rows per batch; it changes no result.
        name: Name of the SAE when `recon` is a single array.
        description: Facts to add to the description (model, site, …): plain numbers and strings.

    Returns:
        A source over the same memory, not a copy.

    Raises:
        InputError: A wrong shape, dtype, name, id or option; or a reconstruction that is x itself.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}, expected an int of at least 1")
    recons = dict(recon) if isinstance(recon, Mapping) else {name: recon}
    if not recons:
        raise InputError("recon is an empty mapping, expected at least one SAE name with its array")
    for key in recons:
        if not isinstance(key, str) or not key:
            raise InputError(f"SAE name {key!r} is not a non-empty str: name every reconstruction with a string")
    n, d = _check_array(x, "x")
    for key, value in recons.items():
        _check_array(value, f"recon {key!r}", n=n, d=d)
        if _same_memory(x, value):
            raise InputError(
                f"recon {key!r} is the same array as x: did you pass x twice? Expected the reconstruction Sae(x)"
            )
    ids = None if groups is None else as_group_ids(groups)
    if ids is not None and len(ids) != n:
        hint = "x looks transposed: pass `.T`" if len(ids) == d else "one document id per row of x"
        raise InputError(f"groups has shape ({len(ids)},), expected ({n},): {hint}")
    facts: dict[str, Any] = {
        "kind": "arrays",
        "n_tokens": n,
        "d_model": d,
        "dtype": _dtype_name(x),
        "documents": "each token is its own document" if ids is None else "ids given",
        "n_documents": n if ids is None else len(np.unique(ids)),
        "batch_size": batch_size,
        "fingerprint": _fingerprint(x, recons, ids),
    }
    clash = sorted(set(facts) & set(description or {}))
    if clash:
        raise InputError(f"description has the keys {clash}, which are measured from the arrays: rename them")
    source = ArraySource(
        x=x, recons=recons, groups=ids, batch_size=batch_size, description={**facts, **(description or {})}
    )
    check_header(source)
    return source


def _check_array(value: Any, name: str, *, n: int | None = None, d: int | None = None) -> tuple[int, int]:
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{name} is a masked array, whose mask would be ignored: drop the masked rows first")
    if not isinstance(value, np.ndarray | Tensor):
        as_float_tensor(value, name)  # raises, in the words that every array check uses
    # A tensor without memory carries the shape, so that a memory map is not read to be checked.
    check_matrix(torch.empty(tuple(value.shape), device="meta"), name, n=n, d=d)
    as_float_tensor(value[:0], name)  # no rows, but the dtype
    if 0 in value.shape:
        raise InputError(f"{name} has shape {tuple(value.shape)}, expected at least one token and one coordinate")
    return int(value.shape[0]), int(value.shape[1])


def _same_memory(a: Array, b: Array) -> bool:
    return a is b or (_address(a) == _address(b) and tuple(a.shape) == tuple(b.shape))


def _address(value: Array) -> tuple[str, int]:
    if isinstance(value, Tensor):
        return str(value.device), value.data_ptr()
    return "cpu", int(value.__array_interface__["data"][0])


def _rows(value: Array, low: int, high: int) -> Array:
    rows = value[low:high]
    # Copying a mapped slice reads the file once and at a known place; the checks and sums would fault it in piecemeal.
    return np.array(rows, subok=False) if isinstance(rows, np.memmap) else rows


def _dtype_name(value: Array) -> str:
    return str(value.dtype).removeprefix("torch.")


def _fingerprint(x: Array, recons: Mapping[str, Array], groups: npt.NDArray[np.int64] | None) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for label, value in (("x", x), *recons.items()):
        digest.update(repr((label, tuple(value.shape), _dtype_name(value))).encode())
        picked = np.unique(np.linspace(0, len(value) - 1, num=FINGERPRINT_ROWS).astype(np.int64))
        for row in picked:
            sample = as_float_tensor(value[int(row) : int(row) + 1], label)
            digest.update(sample.to("cpu", torch.float64).numpy().tobytes())
    if groups is not None:
        digest.update(groups.tobytes())
    return digest.hexdigest()
