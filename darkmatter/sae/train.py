"""Train a TopK sparse autoencoder from a stream of activations, reproducibly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

import torch

from darkmatter.errors import InputError
from darkmatter.sae.config import TrainConfig
from darkmatter.sae.optimise import Optimiser
from darkmatter.sae.record import SAE
from darkmatter.sae.stream import Activations, rebatch
from darkmatter.sae.units import calibrate, fold

_CALIBRATION_TOKENS = 2048
"""Tokens from which centre and scale are estimated, at least; they are trained on as well."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainedSAE:
    """A trained SAE and how the training went.

    Attributes:
        sae: The SAE, on raw activations, float32, unit decoder rows.
        history: (tokens seen, FVU of the tokens since the previous point), pooled and centred on their own mean.
        n_tokens: Tokens trained on; less than planned when the stream ended early.
        dead_share: Share of latents that did not fire in the last `config.dead_window` tokens, or in all if fewer.
        config: The settings.
    """

    sae: SAE
    history: tuple[tuple[int, float], ...]
    n_tokens: int
    dead_share: float
    config: TrainConfig

    def describe(self) -> dict[str, Any]:
        """Summarise as JSON, for `save_sae(metadata=...)` and reports."""
        tokens, fvu = self.history[-1]
        return {
            "trainer": "darkmatter.train_topk",
            "config": asdict(self.config),
            "n_tokens": tokens,
            "final_fvu": fvu if math.isfinite(fvu) else None,
            "dead_share": self.dead_share,
        }


def train_topk(
    batches: Activations, config: TrainConfig, *, progress: Callable[[int, float], None] | None = None
) -> TrainedSAE:
    """Minimise Σ|x − Sae(x)|² over a TopK SAE by Adam, with unit decoder rows.

    The stream is cut anew into batches of `config.batch_size`, so only the order of the tokens matters, not how the
    caller batched them. The same stream, seed, machine and number of threads give the same bits. Activations are
    centred by their mean and scaled by a power of two; both are folded back into the record's biases. A latent that
    has not fired for `config.dead_window` tokens is pointed at the residual of a token drawn with probability
    ∝ |error|², much as in Bricken et al. (2023), "Towards Monosemanticity". Training runs in float32 on the device of
    the first batch.

    Args:
        batches: Activations (n, d_model), any n, torch or numpy, any floating dtype. Drop extreme outlier tokens
            (attention sinks, BOS) before: they dominate the squared error.
        config: Settings.
        progress: Called with (tokens seen, FVU since the last call) at every point of the history.

    Returns:
        The SAE with its history. A stream shorter than `config.n_tokens` ends training early.

    Raises:
        InputError: The stream ends before one full batch, changes width, or holds a value that is not finite.
        DegenerateError: The activations do not vary.
    """
    history: list[tuple[int, float]] = []
    with torch.inference_mode(mode=False), torch.no_grad():
        stream = rebatch(batches, config.batch_size)
        wanted = min(math.ceil(_CALIBRATION_TOKENS / config.batch_size), config.n_steps)
        first = list(islice(stream, wanted))
        if not first:
            raise InputError(
                f"the stream ended before one batch of {config.batch_size} tokens: "
                "pass more activations or lower batch_size"
            )
        units = calibrate(first)
        run = Optimiser(config, d_model=first[0].shape[1], variance=units.variance, device=first[0].device)
        for number, x in enumerate(islice(chain(first, stream), config.n_steps), start=1):
            run.step(units.convert(x))
            if number % config.report_every == 0:
                _report(run, history, progress)
        if not history or history[-1][0] < run.n_tokens:
            _report(run, history, progress)
    return TrainedSAE(
        sae=fold(run.parameters, units, config.k),
        history=tuple(history),
        n_tokens=run.n_tokens,
        dead_share=float((run.silent >= min(config.dead_window, run.n_tokens)).double().mean()),
        config=config,
    )


def _report(run: Optimiser, history: list[tuple[int, float]], progress: Callable[[int, float], None] | None) -> None:
    history.append((run.n_tokens, run.take_fvu()))
    if progress is not None:
        progress(*history[-1])
