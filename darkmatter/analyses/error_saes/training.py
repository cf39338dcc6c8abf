"""Training one SAE per target, kept on disk as soon as it is done, and what that will cost."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darkmatter.analyses.error_saes.parts import HELDOUT_EVERY, Target
from darkmatter.analyses.error_saes.stream import TargetStream, checked
from darkmatter.batch import BatchSource
from darkmatter.errors import FileFormatError, InputError
from darkmatter.sae import SAE, TrainCheckpoint, TrainConfig, load_sae, load_sae_metadata, save_sae, train_sae

Stages = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress bar: title, tokens → called with the number of tokens after every batch."""

_PILOT_STEPS = 4


def silent(_: str, __: int | None) -> AbstractContextManager[Callable[[int], None]]:
    """No progress bar."""
    return nullcontext(lambda _: None)


@dataclass(frozen=True, slots=True, eq=False)
class ErrorSae:
    """A trained SAE in the units of its part: it takes rows of the raw linear or nonlinear error, or of x.

    Attributes:
        sae: The SAE.
        history: (tokens seen, FVU of the tokens since the previous point), in prepared units.
        n_tokens: Tokens trained on.
        dead_share: Share of latents that were silent for the last `config.dead_window` tokens of training.
    """

    sae: SAE
    history: tuple[tuple[int, float], ...]
    n_tokens: int
    dead_share: float


def in_units_of(sae: SAE, target: Target) -> SAE:
    """Rewrite an SAE of prepared rows p = (t − mean) F as one of the rows t themselves.

    pre = (t − mean) F W_enc + b_enc − b_pre W_enc; Sae(t) = mean + (codes W_dec + b_dec) F⁺. The codes are the same;
    what a projection drops is not reconstructed.

    Args:
        sae: SAE of prepared rows.
        target: Their target.

    Returns:
        The SAE of rows t, float32.
    """
    device = sae.device
    forward, backward = target.forward.to(device), target.backward.to(device)
    mean, wide = target.mean.to(device), {name: value.double() for name, value in sae.tensors().items()}
    shift = wide["b_pre"] @ wide["W_enc"] if "b_pre" in wide else 0.0
    return replace(
        sae,
        W_enc=(forward @ wide["W_enc"]).float(),
        b_enc=(wide["b_enc"] - shift).float(),
        W_dec=(wide["W_dec"] @ backward).float(),
        b_dec=(wide["b_dec"] @ backward + mean).float(),
        b_pre=mean.float(),
    )


def train_target(
    stream: TargetStream,
    config: TrainConfig,
    *,
    folder: Path | None,
    recipe: Mapping[str, Any],
    stages: Stages,
    checkpoint_seconds: float = 60.0,
) -> ErrorSae:
    """Train the SAE of one target, or take the one that the same command left.

    Args:
        stream: Its rows.
        config: Settings.
        folder: Holds ``saes/TARGET`` when done and ``training/TARGET`` meanwhile; None keeps nothing.
        recipe: What tells two runs apart, as JSON.
        stages: Progress.
        checkpoint_seconds: Least time between two saves.

    Returns:
        The SAE.

    Raises:
        InputError: The folder holds an SAE of another run.
    """
    name = stream.target.name
    known = None if folder is None else _finished(folder / "saes" / name, {**recipe, "target": name})
    if known is not None:
        return known
    checkpoint = None
    if folder is not None:
        identity = {"digest": digest(recipe), "target": name}
        checkpoint = TrainCheckpoint(folder / "training" / name, every_seconds=checkpoint_seconds, source=identity)
    with stages(f"SAE on {name}", config.n_tokens) as advance:
        seen = 0

        def report(tokens: int, _: float) -> None:
            nonlocal seen
            advance(tokens - seen)
            seen = tokens

        trained = train_sae(stream, config, progress=report, checkpoint=checkpoint)
    made = ErrorSae(in_units_of(trained.sae, stream.target), trained.history, trained.n_tokens, trained.dead_share)
    if folder is not None:
        about = {**trained.describe(), "recipe": {**recipe, "target": name}, "history": _plain(made.history)}
        save_sae(made.sae, folder / "saes" / name, metadata=about)
    if checkpoint is not None:
        checkpoint.clear()
        parent = checkpoint.folder.parent
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
    return made


def _finished(folder: Path, recipe: Mapping[str, Any]) -> ErrorSae | None:
    if not (folder / "cfg.json").exists():
        return None
    try:
        about = load_sae_metadata(folder)
        sae = load_sae(folder)
    except FileFormatError as error:
        raise InputError(f"{error}; or choose another --out, or delete {folder}") from None
    if about.get("recipe") != json.loads(json.dumps(recipe)):
        raise InputError(f"{folder} holds an SAE of another run: choose another --out, or delete {folder.parent}")
    history = tuple((tokens, math.nan if fvu is None else fvu) for tokens, fvu in about["history"])
    return ErrorSae(sae, history, about["n_tokens"], about["dead_share"])


def _plain(history: tuple[tuple[int, float], ...]) -> list[list[float | int | None]]:
    return [[tokens, fvu if math.isfinite(fvu) else None] for tokens, fvu in history]


def digest(value: Mapping[str, Any]) -> str:
    """A short hash of JSON."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class TrainingEstimate:
    """What training will take, from a short pilot.

    Attributes:
        n_targets: SAEs to train.
        n_tokens: Tokens for each.
        read_rate: Tokens per second of the source, with all its SAEs.
        train_rate: Tokens per second of the trainer.
        passes: Passes over the source beside training.
        source_tokens: Tokens of one pass; None where it is not known.
    """

    n_targets: int
    n_tokens: int
    read_rate: float
    train_rate: float
    passes: int
    source_tokens: int | None

    @property
    def seconds(self) -> float:
        """Expected time of training and of the other passes; of training alone where a pass's length is not known."""
        read = self.n_tokens / (1 - 1 / HELDOUT_EVERY) / self.read_rate  # held-out documents are read in passing
        trained = self.n_targets * (read + self.n_tokens / self.train_rate)
        return trained + self.passes * (self.source_tokens or 0) / self.read_rate

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds), 60)
        time = f"{minutes} min {seconds} s" if minutes else f"{max(1, seconds)} s"
        return (
            f"This trains {self.n_targets} SAEs on {self.n_tokens:,} tokens each and reads the data {self.passes} more "
            f"times: about {time} in all (pilot: {self.read_rate:,.0f} tokens/s read, {self.train_rate:,.0f} trained)"
        )


def estimate_training(source: BatchSource, config: TrainConfig, n_targets: int) -> TrainingEstimate:
    """Time the first batches of a source and a few steps of training on their x.

    Args:
        source: The tokens.
        config: Settings.
        n_targets: SAEs to train.

    Returns:
        The estimate.
    """
    wanted, rows, start = _PILOT_STEPS * config.batch_size, list[Tensor](), time.perf_counter()
    for _, batch in islice(checked(source), 64):
        rows.append(torch.as_tensor(batch.x).float())
        if sum(len(row) for row in rows) >= wanted:
            break
    n_read = sum(len(row) for row in rows)
    read = n_read / max(time.perf_counter() - start, 1e-9)
    x = torch.cat(rows)
    size = min(config.batch_size, n_read)
    train_sae([x[:size]], replace(config, batch_size=size, n_tokens=size))  # the first step warms up
    start = time.perf_counter()
    pilot = replace(config, batch_size=size, n_tokens=max(size, min(n_read, wanted) // size * size))
    done = train_sae([x], pilot).n_tokens
    known = source.description.get("n_tokens")
    return TrainingEstimate(
        n_targets=n_targets,
        n_tokens=config.n_tokens,
        read_rate=read,
        train_rate=done / max(time.perf_counter() - start, 1e-9),
        passes=3,
        source_tokens=known if isinstance(known, int) else None,
    )


def check_memory(n_targets: int, d_model: int, d_sae: int) -> None:
    """Refuse SAEs that this machine cannot hold: all of them while they are evaluated, one five times while it trains.

    Args:
        n_targets: SAEs.
        d_model: Width.
        d_sae: Latents.

    Raises:
        InputError: They need more than the machine has.
    """
    if not hasattr(os, "sysconf"):
        return
    needed = (n_targets + 5) * 2 * d_model * d_sae * 4 + 20 * 8 * d_model**2
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise InputError(
            f"{n_targets} SAEs of {d_sae:,} latents at width {d_model:,} need about {needed / 2**30:.0f} GiB, expected "
            f"at most the {there / 2**30:.0f} GiB of this machine: name fewer targets, or fewer latents"
        )


def described(config: TrainConfig) -> dict[str, Any]:
    """Settings as plain JSON types."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain
