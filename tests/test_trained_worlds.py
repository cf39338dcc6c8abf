"""Every trained architecture on an easy world: it finds the features, and its true nonlinear share is where we say."""

from __future__ import annotations

import pytest

from darkmatter import World, decompose
from darkmatter.sae import TrainConfig, train_sae
from darkmatter.sandbox import recover

# twice as many dimensions as features: nothing interferes, so a good SAE can be nearly perfect
WORLD = World(
    n_features=64,
    d_model=128,
    dense_dim=0,
    dense_share=0.0,
    l0=6.0,
    zipf=0.5,
    topic_strength=0.0,
    doc_tokens=16,
    seed=7,
)
# a selecting SAE whose k is the world's mean L0 spends what rare tokens leave over on splitting: k is below it
SPARSITY = {
    "topk": {"k": 4},
    "batchtopk": {"k": 4},
    "matryoshka": {"k": 4},
    "relu": {"l0": 6.0},
    "jumprelu": {"l0": 6.0},
    "gated": {"l0": 6.0},
}
MCC = 0.95


@pytest.mark.parametrize("architecture", list(SPARSITY))
def test_every_architecture_finds_the_features_and_its_truth_lies_in_the_interval(architecture: str) -> None:
    config = TrainConfig(
        architecture=architecture,  # type: ignore[arg-type]
        d_sae=80,
        n_tokens=400_000,
        batch_size=512,
        **SPARSITY[architecture],  # type: ignore[arg-type]
    )
    trained = train_sae(WORLD.activations(config.n_tokens), config)
    found = recover(WORLD, trained.sae, n_tokens=8192)
    assert found.mcc > MCC
    result = decompose(WORLD.pair(trained.sae, n_tokens=16_384)).fvu_nonlinear
    truth = WORLD.truth(trained.sae, probe_tokens=131_072).nonlinear
    # 1.6 half-widths are 3.3 standard errors: false alarm 6e-3 over the six, and seeds make the run repeatable
    centre, half = (result.high + result.low) / 2, (result.high - result.low) / 2
    assert abs(truth.value - centre) < 1.6 * half
    # the interval says something: half the share would be outside
    assert abs(truth.value / 2 - centre) > 1.6 * half
