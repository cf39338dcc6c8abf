"""How fast the one pass and the solve are, as shares of this machine's own matrix-product rate, in the same run.

Run with ``make bench``, or ``python -m benchmarks.moments --d-model 2304 --json``.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from benchmarks.peers import MatrixProduct, Record, show
from darkmatter.batch import Batch
from darkmatter.folds import FoldAccumulator
from darkmatter.moments import Layout
from darkmatter.solve import cross_fit

BATCH = 4096
DOCUMENT = 128


def measure(d_model: int, tokens_per_dim: int, folds: int) -> list[Record]:
    """Time the pass over tokens_per_dim · d tokens and the solve that follows.

    Args:
        d_model: Width d.
        tokens_per_dim: n / d.
        folds: Number K of folds.

    Returns:
        One record per ratio: `ours` beside `peer` (the matrix product, or the pass), both from this run. The second
        ratio is in units of matrix products, so that a change of load between the two stages cancels.
    """
    layout = Layout(d_model, ("sae",))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, d_model, generator=generator)
    recon = 0.8 * x + 0.1 * torch.randn(BATCH, d_model, generator=generator)
    batches = max(1, round(tokens_per_dim * d_model / BATCH))
    accumulator = FoldAccumulator(layout, folds=folds)
    beside_pass, beside_solve = MatrixProduct(d_model), MatrixProduct(d_model)
    pass_seconds = 0.0
    for number in range(batches):
        groups = np.arange(number * BATCH, (number + 1) * BATCH, dtype=np.int64) // DOCUMENT
        batch = Batch(x + 0.01 * number, {"sae": recon}, groups)
        start = time.perf_counter()
        accumulator.update(batch)
        pass_seconds += time.perf_counter() - start
        beside_pass.sample()
    start = time.perf_counter()
    moments = accumulator.finish()
    pass_seconds += time.perf_counter() - start
    n = moments.n_tokens
    pass_gflops = 2 * n * d_model * layout.width / pass_seconds / 1e9
    total = moments.total()
    for _ in range(3):
        beside_solve.sample()
    start = time.perf_counter()
    cross_fit(moments, total)
    solve_seconds = time.perf_counter() - start
    for _ in range(3):
        beside_solve.sample()
    peer, later = beside_pass.gflops(), beside_solve.gflops()
    return [
        {
            "name": f"moments pass, d={d_model}, n={n}, {folds} folds, float64",
            "ours": pass_gflops,
            "peer": peer,
            "ratio": pass_gflops / peer,
            "unit": "GFLOP/s against one square float64 product",
            "matmul_gflops": peer,
        },
        {
            "name": f"solve ({folds} exact leave-one-fold-out fits) against the pass, d={d_model}, n={n}",
            "ours": solve_seconds * later,
            "peer": pass_seconds * peer,
            "ratio": solve_seconds * later / (pass_seconds * peer),
            "unit": "GFLOP of matrix product in the same time",
            "matmul_gflops": later,
        },
    ]


def main() -> None:
    """Print the two ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-model", type=int, default=2304)
    parser.add_argument("--tokens-per-dim", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--folds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    records = [r for t in options.tokens_per_dim for r in measure(options.d_model, t, options.folds)]
    show(records, as_json=options.json)


if __name__ == "__main__":
    main()
