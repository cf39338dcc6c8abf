"""A small stream of activations to write to disk, and what the tests of caches do with streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from darkmatter.adapters.caches import (
    StoredBatch,
)

D = 6
SIZES = (5, 0, 7, 4, 9, 3, 1)


class Stream:
    """Seeded activations in batches of uneven sizes, one of them empty; it counts the batches that it makes."""

    d_model = D

    def __init__(self, *, seed: int = 0, scale: float = 1.0, bare: bool = False, die_at: int | None = None) -> None:
        self.seed, self.scale, self.bare, self.die_at = seed, scale, bare, die_at
        self.made: list[int] = []
        self.description: Mapping[str, Any] = {
            "kind": "test",
            "model": "m",
            "site": "resid_post:2",
            "seed": seed,
            "pair": (1, 2),
            "n_tokens": sum(SIZES),
        }

    def batches_from(self, start: int) -> Iterator[StoredBatch]:
        for number in range(start, len(SIZES)):
            if number == self.die_at:
                raise KeyboardInterrupt
            self.made.append(number)
            n, first = SIZES[number], sum(SIZES[:number])
            x = np.random.default_rng([self.seed, number]).standard_normal((n, D)).astype("f4") * self.scale
            rows = np.arange(first, first + n)
            beside = {} if self.bare else {"positions": rows % 4, "token_ids": rows * 3}
            yield StoredBatch(x=torch.from_numpy(x), groups=rows // 4, **beside)


def joined(stream: Any, start: int = 0) -> dict[str, Any]:
    """All batches of a stream as one."""
    batches = list(stream.batches_from(start))
    found: dict[str, Any] = {"x": torch.cat([b.x for b in batches])}
    for column in ("groups", "positions", "token_ids"):
        parts = [getattr(b, column) for b in batches]
        found[column] = None if parts[0] is None else np.concatenate(parts)
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
