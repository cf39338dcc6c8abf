"""Low-coherence dictionaries: time and cosines, beside SAELens' `orthogonalize_embeddings`.

Run with ``make bench``, or ``python -m benchmarks.dictionary --json`` (needs the `bench` extra). At the small size both
sides run to the end and their cosines are compared. At 16384 × 768 only ours does; SAELens' time is that of one of its
200 steps, times 200.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from sae_lens.synthetic.feature_dictionary import orthogonalize_embeddings

from benchmarks.peers import MatrixProduct, Record, show
from darkmatter.sandbox.dictionaries import dictionary
from darkmatter.sandbox.features import Singles

STEPS = 200
"""Steps that SAELens takes by default."""


def cosines(rows: Singles) -> tuple[float, float]:
    """Largest and root mean square |cosine| of two rows."""
    m, largest, total = len(rows), 0.0, 0.0
    for start in range(0, m, 2048):
        gram = np.abs(rows[start : start + 2048] @ rows.T)
        gram[np.arange(len(gram)), np.arange(start, start + len(gram))] = 0.0
        largest, total = max(largest, float(gram.max())), total + float((gram.astype(np.float64) ** 2).sum())
    return largest, float(np.sqrt(total / (m * (m - 1))))


def measure(n_features: int, d_model: int, steps: int) -> list[Record]:
    """Make one dictionary on both sides.

    Args:
        n_features: Rows m.
        d_model: Width d.
        steps: Steps that SAELens really takes; its time is scaled to 200.

    Returns:
        A record of the times and, where SAELens ran to the end, of the cosines.
    """
    product = MatrixProduct(2048, torch.float32)
    start = time.perf_counter()
    ours = dictionary("low-coherence", n_features=n_features, d_model=d_model, seed=0)
    seconds = time.perf_counter() - start
    product.sample()
    rows = torch.from_numpy(dictionary("random", n_features=n_features, d_model=d_model, seed=0))
    start = time.perf_counter()
    peer = orthogonalize_embeddings(rows, num_steps=steps).numpy()
    peer_seconds = (time.perf_counter() - start) * STEPS / steps
    product.sample()
    how = "" if steps == STEPS else f" (its time extrapolated from {steps} of {STEPS} steps)"
    label = f"low-coherence dictionary, {n_features} × {d_model}"
    found = [(f"{label}: time{how}", seconds, peer_seconds, "s")]
    if steps == STEPS:
        for name, a, b in zip(("largest", "root mean square"), cosines(ours), cosines(peer), strict=True):
            found.append((f"{label}: {name} |cosine|", a, b, "(lower is better)"))
    welch = float(np.sqrt((n_features - d_model) / (d_model * (n_features - 1))))
    found.append((f"{label}: root mean square |cosine| against the Welch bound", cosines(ours)[1], welch, ""))
    return [
        {"name": name, "ours": a, "peer": b, "ratio": a / b, "unit": unit, "matmul_gflops": product.gflops()}
        for name, a, b, unit in found
    ]


def main() -> None:
    """Print a small size in full and the large one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    show([*measure(2048, 128, STEPS), *measure(16384, 768, 1)], as_json=options.json)


if __name__ == "__main__":
    main()
