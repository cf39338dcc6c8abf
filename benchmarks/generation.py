"""Synthetic activations per second, beside SAELens' generator with the same firing rates.

Run with ``make bench``, or ``python -m benchmarks.generation --json`` (needs the `bench` extra). Both sides make
batches of 4096 activations in turn, in one process, under two settings of the C library's allocator. SAELens is timed
in its dense and in its sparse mode; the faster one counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator

import torch
from sae_lens.synthetic import (
    ActivationGenerator,
    FeatureDictionary,
    HierarchyConfig,
    generate_hierarchy,
    generate_random_low_rank_correlation_matrix,
)
from torch import Tensor

from benchmarks.peers import Contest, Record, show, under_every_allocator
from darkmatter.sandbox import World

BATCH = 4096
RANK = 25
PLAIN = {"dense_dim": 0, "dense_share": 0.0, "l0": 32.0, "zipf": 0.5, "topics": 1, "topic_strength": 0.0}
ALONE = {"doc_tokens": 1}
CORRELATED = {"correlation": 0.25, "factors": RANK}
TREES = {"roots": 128, "branching": 4, "depth": 3, "siblings": "exclusive", "zipf": 1.0, "l0": 34.0}

WORLDS = {
    "4096 features, d 512, L0 32": World(n_features=4096, d_model=512, **PLAIN, **ALONE),
    "16384 features, d 768, L0 32": World(n_features=16384, d_model=768, **PLAIN, **ALONE),
    "4096 features, d 512, L0 32, rank-25 correlation": World(
        n_features=4096, d_model=512, **PLAIN, **ALONE, **CORRELATED
    ),
    "16384 features, d 768, L0 32, rank-25 correlation": World(
        n_features=16384, d_model=768, **PLAIN, **ALONE, **CORRELATED
    ),
    "16384 features, d 768, L0 34, trees and rank-25 correlation": World(
        n_features=16384, d_model=768, **{**PLAIN, **TREES}, **ALONE, **CORRELATED
    ),
}


def peer(world: World, *, sparse: bool) -> Callable[[], Tensor]:
    """SAELens' generator with a world's firing rates, and correlation or trees of the same size where it has them."""
    hierarchy = None
    if world.roots:
        config = HierarchyConfig(
            total_root_nodes=world.roots,
            branching_factor=world.branching,
            max_depth=world.depth,
            mutually_exclusive_portion=1.0,
            compensate_probabilities=True,
        )
        hierarchy = generate_hierarchy(world.n_features, config, seed=0)
    rates = torch.from_numpy(world.firing_rates).float()
    if hierarchy is not None:
        # what its own model class does: raise the rates so that about as many firings survive the trees
        rates = (rates * hierarchy.compute_probability_correction_factors(rates)).clamp(max=1.0)
    generator = ActivationGenerator(
        world.n_features,
        rates,
        std_firing_magnitudes=0.5,
        modify_activations=None if hierarchy is None else hierarchy.modifier,
        correlation_matrix=(
            generate_random_low_rank_correlation_matrix(world.n_features, RANK, correlation_scale=0.1, seed=0)
            if world.correlation
            else None
        ),
        use_sparse_tensors=sparse,
    )
    features = FeatureDictionary(world.n_features, world.d_model, initializer=None, seed=0)

    def sample() -> Tensor:
        with torch.no_grad():
            return features(generator.sample(BATCH))

    return sample


def stream(world: World) -> Iterator[Tensor]:
    """Our activations, batch by batch, without end."""
    return world.activations(2**40, batch_size=BATCH)


def measure(name: str, world: World, rounds: int) -> Record:
    """Time both sides in turn.

    Args:
        name: What is generated.
        world: The world.
        rounds: Batches per side.

    Returns:
        The record, in thousands of activations per second.
    """
    ours = stream(world)
    contest = Contest({
        "ours": lambda: next(ours),
        "dense": peer(world, sparse=False),
        "sparse": peer(world, sparse=True),
    })
    gflops = contest.run(rounds)
    faster = min(("dense", "sparse"), key=contest.typical)
    rate = {side: BATCH / contest.typical(side) / 1e3 for side in ("ours", faster)}
    return {
        "name": f"generation, {name}, against SAELens ({faster} mode)",
        "ours": rate["ours"],
        "peer": rate[faster],
        "ratio": rate["ours"] / rate[faster],
        "unit": "thousand activations/s",
        "matmul_gflops": gflops,
    }


def main() -> None:
    """Print one record per world and allocator setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        json.dump([measure(name, world, options.rounds) for name, world in WORLDS.items()], sys.stdout)
        return
    show(under_every_allocator("benchmarks.generation", ["--rounds", str(options.rounds)]), as_json=options.json)


if __name__ == "__main__":
    main()
