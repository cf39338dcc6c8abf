"""What benchmarks compare with: this machine's matrix product, and runs under one allocator setting for both sides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

Record = dict[str, float | str]

ALLOCATORS: dict[str, dict[str, str]] = {
    "default allocator": {},
    # the C library hands large blocks back to the system at every free; each new one costs a page fault per 4 KiB
    "allocator keeps freed memory": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36)},
}


class MatrixProduct:
    """This machine's square matrix product, timed between the steps of what it is compared with.

    The load of a shared machine changes by the second; only interleaved timings give a ratio that means something.
    """

    def __init__(self, size: int, dtype: torch.dtype = torch.float64) -> None:
        self._a = torch.randn(size, size, dtype=dtype)
        self._out = torch.empty_like(self._a)
        self._seconds: list[float] = []
        torch.mm(self._a, self._a, out=self._out)

    def sample(self) -> None:
        """Time one product."""
        start = time.perf_counter()
        torch.mm(self._a, self._a, out=self._out)
        self._seconds.append(time.perf_counter() - start)

    def gflops(self) -> float:
        """Rate over all products so far."""
        return 2 * len(self._a) ** 3 * len(self._seconds) / sum(self._seconds) / 1e9


@dataclass
class Contest:
    """Two or more ways to do the same, timed in turn with the matrix product.

    Attributes:
        sides: What to time, by name.
        seconds: Times of every side.
    """

    sides: Mapping[str, Callable[[], object]]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def run(self, rounds: int) -> float:
        """Time every side once a round, after one round that does not count.

        Args:
            rounds: How many.

        Returns:
            The matrix product's rate in GFLOP/s, float32.
        """
        product = MatrixProduct(2048, torch.float32)
        for number in range(rounds + 1):
            for name, side in self.sides.items():
                start = time.perf_counter()
                side()
                if number:
                    self.seconds.setdefault(name, []).append(time.perf_counter() - start)
            product.sample()
        return product.gflops()

    def typical(self, name: str) -> float:
        """Median time of a side, in seconds."""
        return median(self.seconds[name])


def under_every_allocator(module: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Run a benchmark module once per allocator setting, in a process of its own, and collect its records.

    Args:
        module: Name of the module; with ``--worker`` it prints its records as JSON.
        arguments: Further arguments.

    Returns:
        All records, the setting appended to the names.
    """
    records = []
    for setting, variables in ALLOCATORS.items():
        command = [sys.executable, "-m", module, "--worker", *arguments]
        done = subprocess.run(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, check=True, text=True)
        records += [{**record, "name": f"{record['name']}; {setting}"} for record in json.loads(done.stdout)]
    return records


def show(records: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print records: one JSON list, or two lines each."""
    if as_json:
        json.dump(list(records), sys.stdout, indent=2)
        return
    for record in records:
        print(
            f"{record['name']}\n    ours {record['ours']:.4g}  peer {record['peer']:.4g} {record['unit']}"
            f"  ratio {record['ratio']:.3g}  (matrix product {record['matmul_gflops']:.0f} GFLOP/s)"
        )
