"""`darkmatter train-sae`: a TopK SAE on one site of a Hugging Face model."""

from __future__ import annotations

from pathlib import Path

from darkmatter.adapters import training_activations
from darkmatter.commands.console import put, say, steps
from darkmatter.commands.model_options import ModelOptions
from darkmatter.commands.preflight import check_out
from darkmatter.errors import InputError
from darkmatter.sae import TrainConfig, save_sae, train_sae


def run_train_sae(options: ModelOptions, config: TrainConfig, *, out: Path) -> None:
    """Train an SAE on a model's activations and save it.

    Args:
        options: The model, its site and its text.
        config: How to train.
        out: Folder to write.

    Raises:
        InputError: The folder already holds an SAE, or cannot be a folder.
    """
    check_out(out)
    if (out / "cfg.json").exists():
        raise InputError(f"{out} already holds an SAE: choose another --out, or delete it")
    activations = options.activations()
    with steps() as bars, bars.stage("train SAE", config.n_tokens) as stage:
        stream = training_activations(activations, n_tokens=config.n_tokens, seed=config.seed)
        trained = train_sae(stream, config, progress=stage.loss)
    save_sae(trained.sae, out, metadata={"source": dict(activations.description), **trained.describe()})
    put(
        f"Trained {config.d_sae} latents, k = {config.k}, on {trained.n_tokens:,} tokens "
        f"({trained.n_tokens / activations.n_tokens:.1f} epochs): FVU {trained.history[-1][1]:.4f} at the end, "
        f"{trained.dead_share:.1%} of the latents dead."
    )
    say(f"Wrote cfg.json and sae.safetensors to {out}")
