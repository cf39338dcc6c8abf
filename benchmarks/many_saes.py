"""What one more SAE costs the pass, in units of one n d² float64 product of torch, timed in turn in the same process.

Run with ``python -m benchmarks.many_saes --d-model 768 --saes 1 60``. SAEs are not run: reconstructions are given.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
import torch

from benchmarks.peers import Record, show
from darkmatter.batch import Batch
from darkmatter.folds import FoldAccumulator
from darkmatter.moments import Layout
from darkmatter.products import Precision

BATCH = 4096
DOCUMENT = 128
DISTINCT = 4


def measure(d_model: int, saes: tuple[int, int], folds: int, rounds: int, precision: Precision) -> Record:
    """Time the pass with few and with many SAEs.

    Args:
        d_model: Width d.
        saes: Two numbers of SAEs.
        folds: Number K of folds.
        rounds: Batches that count, after one that does not.
        precision: How blocks are multiplied.

    Returns:
        `ours`, seconds that one more SAE costs a batch; `peer`, seconds of one product of (d, n) by (n, d).
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, d_model, generator=generator)
    recons = [0.8 * x + 0.1 * torch.randn(BATCH, d_model, generator=generator) for _ in range(DISTINCT)]
    groups = np.arange(BATCH, dtype=np.int64) // DOCUMENT
    sides = []
    for p in saes:
        names = tuple(f"s{i}" for i in range(p))
        accumulator = FoldAccumulator(Layout(d_model, names), folds=folds, precision=precision)
        sides.append((accumulator, Batch(x, {name: recons[i % DISTINCT] for i, name in enumerate(names)}, groups)))
    left, right = (torch.randn(BATCH, d_model, dtype=torch.float64, generator=generator) for _ in range(2))
    out = torch.zeros(d_model, d_model, dtype=torch.float64)
    seconds: list[list[float]] = [[], [], []]
    for _ in range(rounds + 1):
        for i, (accumulator, batch) in enumerate(sides):
            start = time.perf_counter()
            accumulator.update(batch)
            seconds[i].append(time.perf_counter() - start)
            start = time.perf_counter()
            out.addmm_(left.T, right)
            seconds[2].append(time.perf_counter() - start)
    few, many = (median(times[1:]) for times in seconds[:2])
    ours, peer = (many - few) / (saes[1] - saes[0]), median(seconds[2][2:])
    return {
        "name": f"one more SAE, {saes[0]} to {saes[1]}, d={d_model}, {folds} folds, {precision}",
        "ours": ours,
        "peer": peer,
        "ratio": ours / peer,
        "unit": f"seconds for {BATCH} tokens against one n d² float64 product",
        "matmul_gflops": 2 * BATCH * d_model**2 / peer / 1e9,
    }


def main() -> None:
    """Print the ratio for every width."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-model", type=int, nargs="+", default=[768])
    parser.add_argument("--saes", type=int, nargs=2, default=[1, 60])
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["float64", "split"], default="float64")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    few, many = options.saes
    show(
        [measure(d, (few, many), options.folds, options.rounds, options.precision) for d in options.d_model],
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
