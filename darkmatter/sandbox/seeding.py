"""One way to make random generators: from a path of names and numbers, so that no two purposes share draws."""

from __future__ import annotations

import hashlib
import json

import numpy as np

MAX_DOCUMENTS = 1 << 32
"""Documents a stream can hold before its ids would run into those of another stream."""


def generator(*path: int | str) -> np.random.Generator:
    """Make the generator of one purpose, for example ``("stream", seed, "train", chunk)``.

    The path is hashed as JSON, which is injective. numpy's own entropy lists are not: they are padded with zeros, so
    [1, 2] and [1, 2, 0] seed the same draws.

    Args:
        *path: Ints and strings that name the purpose.

    Returns:
        A fresh PCG64-DXSM generator; equal paths give equal draws (for one numpy version, as numpy promises no more).
    """
    digest = hashlib.blake2b(json.dumps(path).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64DXSM(int.from_bytes(digest, "little")))


def first_document(stream: str) -> int:
    """Document id that a stream starts from: 31 hashed bits above the 32 that count documents.

    Args:
        stream: Name of the stream.

    Returns:
        A non-negative int64; two names collide with probability 2^-31.
    """
    digest = hashlib.blake2b(stream.encode(), digest_size=4).digest()
    return (int.from_bytes(digest, "little") >> 1) * MAX_DOCUMENTS
