"""TopK training, data generation included, beside SAELens' trainer on the same distribution of activations.

Run with ``make bench``, or ``python -m benchmarks.training --json`` (needs the `bench` extra). Both sides train 4096
latents, k 32, on 512 dimensions in batches of 4096 that they generate themselves, from the same dictionary and firing
rates with constant amplitudes, with SAELens' hyper-parameters: Adam at a constant 3e-4, gradient norm clipped at 1,
decoder rows of norm .1 at the start, loss mean Σ error². Their steps are interleaved, and after as many steps each side
is evaluated on the same tokens: speed counts only at equal loss. SAELens is timed in its default and its sparse mode.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

import torch
from sae_lens import LoggingConfig, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.synthetic import ActivationGenerator, FeatureDictionary, SyntheticActivationIterator
from torch import Tensor

from benchmarks.peers import MatrixProduct, Record, show, under_every_allocator
from darkmatter.sae import TrainConfig, train_sae
from darkmatter.sandbox import World

BATCH, LATENTS, K, LR = 4096, 4096, 32, 3e-4
WORLD = World(
    n_features=4096,
    d_model=512,
    dense_dim=0,
    dense_share=0.0,
    l0=32.0,
    zipf=0.5,
    amplitude="constant",
    topics=1,
    topic_strength=0.0,
    doc_tokens=1,
)
EVALUATION_TOKENS = 16_384


def peer_trainer(steps: int, *, sparse: bool) -> SAETrainer:  # type: ignore[type-arg]
    """SAELens' trainer, with its own generator of the same activations."""
    torch.manual_seed(0)
    features = FeatureDictionary(WORLD.n_features, WORLD.d_model, initializer=None, seed=0)
    features.feature_vectors.data = torch.from_numpy(WORLD.dictionary_matrix.copy())
    generator = ActivationGenerator(
        WORLD.n_features, torch.from_numpy(WORLD.firing_rates).float(), use_sparse_tensors=sparse
    )
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=WORLD.d_model,
            d_sae=LATENTS,
            k=K,
            decoder_init_norm=0.1,
            use_sparse_activations=sparse,
            rescale_acts_by_decoder_norm=not sparse,  # its sparse mode has no backward pass for that
        )
    )
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=steps * BATCH,
        device="cpu",
        autocast=False,
        lr=LR,
        lr_end=LR,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=BATCH,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=1000,
    )
    return SAETrainer(cfg=config, sae=sae, data_provider=SyntheticActivationIterator(features, generator, BATCH))


@dataclass
class Interleaved:
    """Our stream of activations; between two batches the peer takes a step, and neither waits on the other's clock.

    Attributes:
        peer: Takes one step of the peer, its own data included.
        steps: Steps to take.
        ours_seconds: Time of every step of ours, from one batch to the next, generation included.
        peer_seconds: Time of every step of the peer.
    """

    peer: Callable[[], object]
    steps: int
    ours_seconds: list[float] = field(default_factory=list)
    peer_seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.product = MatrixProduct(2048, torch.float32)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield our batches.

        Yields:
            (n, d) activations.
        """
        source = WORLD.activations(self.steps * BATCH, batch_size=BATCH)
        for number in range(self.steps):
            start = time.perf_counter()
            self.peer()
            self.peer_seconds.append(time.perf_counter() - start)
            if number % 10 == 0:
                self.product.sample()
            start = time.perf_counter()
            yield next(source)
            self.ours_seconds.append(time.perf_counter() - start)


def loss(reconstruct: Callable[[Tensor], Tensor]) -> float:
    """Mean Σ error² over tokens that neither side has seen."""
    with torch.no_grad():
        parts = [(reconstruct(x) - x).square().sum() for x in WORLD.activations(EVALUATION_TOKENS, stream="eval")]
    return float(sum(parts)) / EVALUATION_TOKENS


def measure(steps: int, *, sparse: bool) -> list[Record]:
    """Train both sides and compare speed and loss.

    Args:
        steps: Steps of each side.
        sparse: SAELens' sparse mode instead of its default.

    Returns:
        A record of steps per second and one of final losses.
    """
    trainer = peer_trainer(steps, sparse=sparse)

    def peer_step() -> None:
        with torch.enable_grad():  # it runs inside our training, which differentiates by hand
            trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1

    stream = Interleaved(peer_step, steps)
    ours = train_sae(
        stream,
        TrainConfig(
            d_sae=LATENTS,
            k=K,
            n_tokens=steps * BATCH,
            batch_size=BATCH,
            lr=LR,
            warmup_share=0.0,
            decay_share=0.0,
            max_grad_norm=1.0,
            standardise=False,
            normalise_decoder=False,
            decoder_init_norm=0.1,
            rank_by_norm=not sparse,
            tie_b_dec=True,
            encode_dtype="bfloat16",
            dead_after=1000 * BATCH,  # when SAELens' auxiliary loss would set in
            report_every=steps,
        ),
    )
    mode = "sparse mode" if sparse else "default"
    label = f"TopK training, d 512, {LATENTS} latents, k {K}, batch {BATCH}, data included, against SAELens ({mode})"
    # the first steps warm the caches up
    rate = [1 / median(seconds[2:]) for seconds in (stream.ours_seconds, stream.peer_seconds)]
    losses = [loss(ours.sae), loss(trainer.sae.eval())]
    gflops = stream.product.gflops()
    found = [
        (label, rate, "steps/s"),
        (f"{label}: final loss after {steps} steps", losses, "mean squared error per token"),
    ]
    return [
        {"name": name, "ours": a, "peer": b, "ratio": a / b, "unit": unit, "matmul_gflops": gflops}
        for name, (a, b), unit in found
    ]


def main() -> None:
    """Print speed and loss per mode and allocator setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        json.dump([record for sparse in (False, True) for record in measure(options.steps, sparse=sparse)], sys.stdout)
        return
    show(under_every_allocator("benchmarks.training", ["--steps", str(options.steps)]), as_json=options.json)


if __name__ == "__main__":
    main()
