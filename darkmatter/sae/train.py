"""Train a sparse autoencoder from a stream of activations, reproducibly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from darkmatter.errors import InputError
from darkmatter.sae.checkpoint import TrainCheckpoint
from darkmatter.sae.config import TrainConfig
from darkmatter.sae.optimise import Optimiser
from darkmatter.sae.record import SAE
from darkmatter.sae.stream import Activations, Restartable, rebatch, skip
from darkmatter.sae.units import Units, calibrate, fold, raw_units

_CALIBRATION_TOKENS = 2048
"""Tokens from which centre and scale are estimated, at least; they are trained on as well."""

Progress = Callable[[int, float], None]


@dataclass(frozen=True, slots=True, eq=False)
class TrainedSAE:
    """A trained SAE and how the training went.

    Attributes:
        sae: The SAE, on raw activations, float32, unit decoder rows (but see `TrainConfig.rank_by_norm`).
        history: (tokens seen, FVU of the tokens since the previous point), pooled and centred on their own mean.
        n_tokens: Tokens trained on; less than planned when the stream ended early.
        l0: Codes above zero per token at the last point of the history, under the activation used in training.
        dead_share: Share of latents that did not fire in the last `config.dead_window` tokens, or in all if fewer.
        config: The settings.
    """

    sae: SAE
    history: tuple[tuple[int, float], ...]
    n_tokens: int
    l0: float
    dead_share: float
    config: TrainConfig

    def describe(self) -> dict[str, Any]:
        """Summarise as JSON, for `save_sae(metadata=...)` and reports."""
        tokens, fvu = self.history[-1]
        return {
            "trainer": "darkmatter.train_sae",
            "config": asdict(self.config),
            "n_tokens": tokens,
            "final_fvu": fvu if math.isfinite(fvu) else None,
            "l0": self.l0,
            "dead_share": self.dead_share,
        }


def train_sae(
    batches: Activations | Restartable,
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    checkpoint: TrainCheckpoint | None = None,
) -> TrainedSAE:
    """Minimise Σ|x − Sae(x)|² and the price of sparsity by Adam.

    The stream is cut anew into batches of `config.batch_size`, so only the order of the tokens matters, not how the
    caller batched them. The same stream, seed, machine and number of threads give the same bits, whether or not the
    run was interrupted and resumed. Activations are centred by their mean and scaled by a power of two; both are
    folded back into the record's biases. A latent that has not fired for `config.dead_window` tokens is pointed at the
    residual of a token drawn with probability ∝ |error|². Training runs in float32 on the device of the first batch.

    Args:
        batches: Activations (n, d_model), any n, torch or numpy, any floating dtype. Drop extreme outlier tokens
            (attention sinks, BOS) before: they dominate the squared error.
        config: Settings.
        progress: Called with (tokens seen, FVU since the last call) at every point of the history.
        checkpoint: Saves the run as it goes. If it holds one, training goes on from there: pass the same stream, which
            is skipped up to that token, at no cost if it is `Restartable`.

    Returns:
        The SAE with its history. A stream shorter than `config.n_tokens` ends training early.

    Raises:
        InputError: The stream ends before one full batch, changes width, or holds a value that is not finite; or the
            checkpoint belongs to another run.
        DegenerateError: The activations do not vary.
        FileFormatError: The checkpoint is damaged.
    """
    with torch.inference_mode(mode=False), torch.no_grad():
        run, stream = _begin(batches, config, checkpoint)
        for x in stream:
            run.step(x)
            if run.optimiser.n_tokens // config.batch_size % config.report_every == 0:
                run.report(progress)
            if checkpoint is not None and checkpoint.due():
                run.save(checkpoint)
        if not run.history or run.history[-1][0] < run.optimiser.n_tokens:
            run.report(progress)
        return run.result()


@dataclass(slots=True, eq=False)
class _Run:
    """A run under way."""

    config: TrainConfig
    units: Units
    optimiser: Optimiser
    history: list[tuple[int, float]]
    l0: float

    def step(self, x: Tensor) -> None:
        self.optimiser.step(self.units.convert(x))

    def report(self, progress: Progress | None) -> None:
        fvu, self.l0 = self.optimiser.window.take()
        self.history.append((self.optimiser.n_tokens, fvu))
        if progress is not None:
            progress(*self.history[-1])

    def save(self, checkpoint: TrainCheckpoint) -> None:
        tensors, numbers = self.optimiser.state()
        numbers |= {"scale": self.units.scale, "variance": self.units.variance, "l0": self.l0}
        # JSON has no NaN, the FVU of tokens that are all equal
        numbers["history"] = [(n, fvu if math.isfinite(fvu) else None) for n, fvu in self.history]
        step = self.optimiser.n_tokens // self.config.batch_size
        checkpoint.save(self.config, {"centre": self.units.centre, **tensors}, numbers, step)

    def result(self) -> TrainedSAE:
        optimiser, config = self.optimiser, self.config
        silent = optimiser.silent >= min(config.dead_window, optimiser.n_tokens)
        return TrainedSAE(
            sae=fold(optimiser.parameters, self.units, config, optimiser.cut),
            history=tuple(self.history),
            n_tokens=optimiser.n_tokens,
            l0=self.l0,
            dead_share=float(silent.double().mean()),
            config=config,
        )


def _begin(
    batches: Activations | Restartable, config: TrainConfig, checkpoint: TrainCheckpoint | None
) -> tuple[_Run, Iterator[Tensor]]:
    """Start a run, or take up a saved one, with the batches that it still has to see.

    Raises:
        InputError: The stream ends before one full batch.
    """
    saved = None if checkpoint is None else checkpoint.load(config)
    if saved is not None:
        return _resume(batches, config, *saved)
    stream = rebatch(batches, config.batch_size)
    wanted = min(math.ceil(_CALIBRATION_TOKENS / config.batch_size), config.n_steps)
    first = list(islice(stream, wanted))
    if not first:
        raise InputError(
            f"the stream ended before one batch of {config.batch_size} tokens: "
            "pass more activations or lower batch_size"
        )
    d_model, device = first[0].shape[1], first[0].device
    units = calibrate(first) if config.standardise else raw_units(d_model, device)
    optimiser = Optimiser(config, d_model=d_model, variance=units.variance, device=device)
    return _Run(config, units, optimiser, [], 0.0), islice(chain(first, stream), config.n_steps)


def _resume(
    batches: Activations | Restartable, config: TrainConfig, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> tuple[_Run, Iterator[Tensor]]:
    """Take up a saved run on the device of the stream; one that has seen all its tokens asks for no more."""
    seen = numbers["n_tokens"]
    left = config.n_steps - seen // config.batch_size
    rest = islice(rebatch(skip(batches, seen), config.batch_size, first_token=seen), left) if left else iter(())
    first = list(islice(rest, 1))
    device = first[0].device if first else torch.device("cpu")
    units = Units(tensors["centre"].to(device), numbers["scale"], numbers["variance"])
    optimiser = Optimiser(config, d_model=len(units.centre), variance=units.variance, device=device)
    optimiser.restore(tensors, numbers)
    history = [(n, math.nan if fvu is None else fvu) for n, fvu in numbers["history"]]
    return _Run(config, units, optimiser, history, numbers["l0"]), chain(first, rest)
