"""Document ids: whatever labels the documents becomes one int64 per token."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from darkmatter.errors import InputError

_WANTED = "expected integer or string document ids: if they are ids all the same, convert them to int64 yourself"


def as_group_ids(groups: Any) -> npt.NDArray[np.int64]:
    """Turn document labels into int64 ids that are equal exactly where the labels are (up to 64-bit collisions).

    Integers keep their value (unsigned ones beyond 2^63 wrap, which keeps them distinct). A string becomes the
    little-endian integer of the 8-byte BLAKE2b digest of its UTF-8 bytes: the same in every process and version.

    Args:
        groups: Integer or string labels, (n_tokens,): a numpy array, a torch tensor, or a list.

    Returns:
        Ids, (n_tokens,), a new array.

    Raises:
        InputError: Not one-dimensional, or labels that are neither all integers nor all strings.
    """
    if isinstance(groups, np.ma.MaskedArray):
        raise InputError("groups is a masked array, whose mask would be ignored: drop the masked rows first")
    if isinstance(groups, Tensor) and (groups.is_floating_point() or groups.is_complex()):
        raise InputError(f"groups has dtype {groups.dtype}, {_WANTED}")
    labels = groups.detach().cpu().numpy() if isinstance(groups, Tensor) else groups
    if isinstance(labels, list | tuple) or (isinstance(labels, np.ndarray) and labels.dtype == object):
        labels = _from_objects(list(labels))
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise InputError(f"groups has shape {labels.shape}, expected (n_tokens,): one document id per token")
    if labels.dtype.kind in "iu":
        return labels.astype(np.int64)
    if labels.dtype.kind in "US":
        unique, inverse = np.unique(labels, return_inverse=True)
        hashed = np.array([_stable_hash(label) for label in unique.tolist()], dtype=np.int64)
        return hashed[inverse]
    raise InputError(f"groups has dtype {labels.dtype}, {_WANTED}")


def _from_objects(labels: list[Any]) -> npt.NDArray[Any]:
    kinds = {type(label).__name__ for label in labels}
    if all(isinstance(label, str) for label in labels):
        # numpy's fixed-width strings drop trailing NULs and would merge two ids, so hash before numpy sees them
        known = {label: _stable_hash(label) for label in set(labels)}
        return np.array([known[label] for label in labels], dtype=np.int64)
    if all(isinstance(label, int | np.integer) and not isinstance(label, bool) for label in labels):
        try:
            return np.array(labels, dtype=np.int64)
        except OverflowError:
            raise InputError("groups has an integer beyond 64 bits: use strings as document ids") from None
    raise InputError(f"groups mixes or holds {sorted(kinds)}, expected only integers or only strings as document ids")


def _stable_hash(label: str | bytes) -> int:
    data = label.encode("utf-8", "surrogatepass") if isinstance(label, str) else label
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)
