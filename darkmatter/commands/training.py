"""The trained SAE of an experiment: the one an earlier run of the same settings left, or a new one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from darkmatter.commands.console import Steps, say
from darkmatter.errors import FileFormatError, InputError
from darkmatter.results import to_plain
from darkmatter.sae import SAE, TrainCheckpoint, TrainConfig, load_sae, load_sae_metadata, save_sae, train_sae
from darkmatter.sandbox import World

STREAM = "train"


def trained_sae(world: World, config: TrainConfig, *, folder: Path, bars: Steps) -> tuple[SAE, dict[str, Any]]:
    """Take the SAE in a folder if the same world and settings made it, and train it otherwise.

    Args:
        world: The world.
        config: How to train.
        folder: Holds `sae/`, and `training/` while the training lasts, from which it can go on.
        bars: Progress.

    Returns:
        The SAE, and how it was trained as plain JSON types.

    Raises:
        InputError: The folder's SAE is damaged or not ours.
    """
    target = folder / "sae"
    recipe = to_plain({"world": world.to_dict(), "config": asdict(config)})
    if (target / "cfg.json").exists():
        known = _recipe_of(target)
        if {key: known.get(key) for key in recipe} == recipe:
            say(f"Using the SAE that this same command trained before, in {target}")
            return load_sae(target), known
    checkpoint = TrainCheckpoint(folder / "training", source={"world": world.to_dict(), "stream": STREAM})
    with bars.stage("train SAE", config.n_tokens) as stage:
        trained = train_sae(_Tokens(world, config.n_tokens), config, progress=stage.loss, checkpoint=checkpoint)
    history = [[tokens, fvu if math.isfinite(fvu) else None] for tokens, fvu in trained.history]
    training = {**recipe, **trained.describe(), "history": history}
    save_sae(trained.sae, target, metadata=training)  # before anything else can fail
    checkpoint.clear()
    return trained.sae, training


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The training tokens of a world, from the first or from any other: a resumed run draws only what is left."""

    world: World
    n_tokens: int

    def __iter__(self) -> Iterator[Tensor]:
        return self.starting_at(0)

    def starting_at(self, token: int) -> Iterator[Tensor]:
        if token >= self.n_tokens:
            return iter(())
        return self.world.activations(self.n_tokens, stream=STREAM, start=token)


def _recipe_of(folder: Path) -> dict[str, Any]:
    try:
        return load_sae_metadata(folder)
    except FileFormatError as error:
        raise InputError(f"{error}; or choose another --out, or delete {folder}") from None
