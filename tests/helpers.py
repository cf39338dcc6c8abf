"""What several test files share: a tiny source and world independent of the sandbox, and settings of trainers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from darkmatter import Batch
from darkmatter.sae import Architecture, TrainConfig
from darkmatter.sae.config import SELECTING

Matrix = npt.NDArray[np.float64]
KINDS: tuple[Architecture, ...] = get_args(Architecture)


@dataclass(frozen=True)
class ListSource:
    """Batches cut from arrays, with no checks of its own."""

    x: Any
    recons: Mapping[str, Any]
    groups: Any
    batch_size: int = 256
    description: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            object.__setattr__(self, "names", tuple(self.recons))

    @property
    def d_model(self) -> int:
        return int(self.x.shape[1])

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.x), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield Batch(self.x[part], {name: r[part] for name, r in self.recons.items()}, self.groups[part])


def tiny_world(
    n: int = 3000, d: int = 12, *, seed: int = 0, n_saes: int = 1, mean: float = 0.0, per_document: int = 10
) -> ListSource:
    """Superposed exponential features, half of them learned with 10 % shrinkage and independent introduced error."""
    rng = np.random.default_rng(seed)
    m = 4 * d
    dictionary = rng.standard_normal((m, d))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    codes = (rng.random((n, m)) < 0.1) * rng.exponential(1.0, (n, m))
    x = codes @ dictionary
    learned = codes[:, : m // 2] @ dictionary[: m // 2]
    recons = {f"sae{i}": 0.9 * learned + 0.2 * rng.standard_normal((n, d)) + 0.9 * mean for i in range(n_saes)}
    return ListSource(x + mean, recons, np.arange(n, dtype=np.int64) // per_document)


def configure(kind: Architecture, **fields: Any) -> TrainConfig:
    """Settings of an architecture, with a k where it needs one."""
    values: dict[str, Any] = {"k": 4} if kind in SELECTING else {}
    return TrainConfig(architecture=kind, **(values | fields))
