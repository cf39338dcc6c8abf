"""`darkmatter train-sae`: an SAE of any architecture on one site of a Hugging Face model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from darkmatter.adapters import Site
from darkmatter.adapters.training import training_activations
from darkmatter.commands.console import put, say, steps
from darkmatter.commands.exports import check_exports, write_exports
from darkmatter.commands.model_options import ModelOptions
from darkmatter.commands.preflight import check_out
from darkmatter.commands.settings import with_options
from darkmatter.errors import InputError
from darkmatter.files import write_json
from darkmatter.results import to_plain
from darkmatter.sae import TrainCheckpoint, TrainConfig, TrainedSAE, save_sae, train_sae
from darkmatter.sandbox.experiment import Experiment

DEFAULTS: Mapping[str, Any] = {"d_sae": 512, "k": 16, "n_tokens": 1_000_000}
"""What `darkmatter train-sae` trains where nothing is said; all else is `TrainConfig`'s default."""

_TRANSFORMER_LENS = {
    "resid_post": "blocks.{}.hook_resid_post",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "attn_z": "blocks.{}.attn.hook_z",
}


def train_config(options: Mapping[str, Any]) -> TrainConfig:
    """Build the settings from what stands on the command line, by the rules of `darkmatter synth`.

    Another architecture keeps the sparsity: `k` becomes the L0 that a price is steered to, and back.

    Args:
        options: What was given explicitly, by the option names of `synth` without dashes in front (``latents``, ``k``,
            ``architecture``, ``target-l0``, ``train-tokens``, …, ``seed``).

    Returns:
        The settings, every value checked.

    Raises:
        InputError: A value out of range, or one without a meaning for the architecture.
    """
    plain = Experiment(sae=TrainConfig(**DEFAULTS)).to_dict()
    sae = dict(with_options(plain, options)["sae"])
    if sae.pop("kind") != "trained":
        raise InputError("a surgical SAE needs a world with known truth: use `darkmatter synth`")
    return TrainConfig(**sae)


def run_train_sae(
    options: ModelOptions,
    config: TrainConfig,
    *,
    out: Path,
    exports: Sequence[str] = (),
    checkpoint_seconds: float = 60.0,
    as_json: bool = False,
) -> None:
    """Train an SAE on a model's activations, and save it with its history; a killed run goes on where it was.

    Args:
        options: The model, its site and its text.
        config: How to train.
        out: Folder to write; it also holds `training/` while the training lasts.
        exports: Formats of other libraries to write the SAE in as well.
        checkpoint_seconds: Least time between two saves of the training.
        as_json: Print training.json instead of a sentence.

    Raises:
        InputError: The folder already holds an SAE, or cannot be a folder; or an export that cannot be written.
    """
    check_out(out)
    check_exports(exports, config.architecture)
    if (out / "cfg.json").exists():
        raise InputError(f"{out} already holds an SAE: choose another --out, or delete it")
    activations = options.activations()
    stream = training_activations(activations, n_tokens=config.n_tokens, seed=config.seed)
    source = to_plain(dict(activations.description))
    checkpoint = TrainCheckpoint(out / "training", every_seconds=checkpoint_seconds, source=_identity(source))
    with steps() as bars, bars.stage("train SAE", config.n_tokens) as stage:
        trained = train_sae(stream, config, progress=stage.loss, checkpoint=checkpoint)
    summary = {"source": source, **trained.describe()}
    history = {"history": [[tokens, fvu if math.isfinite(fvu) else None] for tokens, fvu in trained.history]}
    written = write_exports(trained.sae, out, exports, _metadata(activations.loaded.name, activations.site))
    write_json(out / "training.json", {**summary, **history})
    save_sae(trained.sae, out, metadata=summary)  # last: a folder with an SAE is complete
    checkpoint.clear()
    if as_json:
        put(json.dumps({**summary, **history}, indent=2, allow_nan=False))
    else:
        put(_sentence(trained, activations.n_tokens))
    say(f"Wrote {', '.join(['cfg.json', 'sae.safetensors', 'training.json', *written])} to {out}")


def _identity(source: Mapping[str, Any]) -> dict[str, Any]:
    """What tells two streams apart, short enough for a message."""
    digest = hashlib.blake2b(json.dumps(source, sort_keys=True).encode(), digest_size=8).hexdigest()
    return {"model": source["model"], "site": source["site"], "digest": digest}


def _metadata(model: str, site: Site) -> dict[str, str]:
    """Model and site in the words of SAELens."""
    hook = _TRANSFORMER_LENS.get(site.kind)
    return {"model_name": model, "hook_name": str(site) if hook is None else hook.format(site.layer)}


def _sentence(trained: TrainedSAE, tokens_of_text: int | None) -> str:
    config = trained.config
    sparsity = f"k = {config.k}" if config.k is not None else f"L0 = {trained.l0:.1f}"
    epochs = "" if tokens_of_text is None else f" ({trained.n_tokens / tokens_of_text:.1f} epochs)"
    kind = "" if config.architecture == "topk" else f" {config.architecture}"
    return (
        f"Trained {config.d_sae}{kind} latents, {sparsity}, on {trained.n_tokens:,} tokens{epochs}: FVU "
        f"{trained.history[-1][1]:.4f} at the end, {trained.dead_share:.1%} of the latents dead."
    )
