"""The grid of SAEs that `darkmatter scale` trains on a world: what it holds, what it costs, and training it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from darkmatter.commands.analyses.worlds import find_experiment
from darkmatter.commands.console import Steps
from darkmatter.commands.training import trained_sae
from darkmatter.errors import InputError
from darkmatter.sae import TrainConfig
from darkmatter.sae.config import SELECTING
from darkmatter.sandbox.experiment import Experiment

_PROBE = 512
_TIMES_ENCODER = 3
"""Products of the size of the encoder's in one step: forward, and gradients of weights and of codes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridOptions:
    """What the command line says of the grid; texts with commas, None where nothing is said.

    Attributes:
        widths: Latents.
        k: Active latents per token.
        seeds: Seeds.
        train_tokens: Tokens to train each SAE on.
    """

    widths: str | None
    k: str | None
    seeds: str | None
    train_tokens: int | None

    @property
    def asked(self) -> bool:
        """Whether a grid is asked for; without widths nothing else may be said of one.

        Raises:
            InputError: An option of the grid without widths.
        """
        rest = {"k": self.k, "seeds": self.seeds, "train-tokens": self.train_tokens}
        lone = [name for name, value in rest.items() if value is not None]
        if self.widths is None and lone:
            raise InputError(f"--{lone[0]} has no meaning without --widths: it is for SAEs that are trained now")
        return self.widths is not None


def train_grid(grid: GridOptions, *, world: str, out: Path, bars: Steps) -> list[str]:
    """Train the SAEs that an earlier run of the same grid did not leave.

    Args:
        grid: The grid.
        world: What ``--world`` says; the settings of its SAE hold for all that the grid does not say.
        out: SAEs are kept in OUT/saes.
        bars: Progress.

    Returns:
        ``NAME=FOLDER`` of every SAE.

    Raises:
        InputError: An impossible grid.
    """
    experiment, _ = find_experiment(world)
    configs = dict(_configs(grid, experiment))
    tokens = sum(config.n_tokens for config in configs.values())
    bars.say(
        f"Training {len(configs)} SAEs on {tokens:,} tokens in all, about {_seconds(configs, experiment):.0f} s here "
        f"for the products alone; those that are finished in {out / 'saes'} are used."
    )
    for name, config in configs.items():
        trained_sae(experiment.world, config, folder=out / "saes" / name, bars=bars)
    return [f"{name}={out / 'saes' / name / 'sae'}" for name in configs]


def _configs(grid: GridOptions, experiment: Experiment) -> Iterator[tuple[str, TrainConfig]]:
    widths = whole_numbers(grid.widths or "", "--widths", 1)
    given = experiment.sae
    base = given if isinstance(given, TrainConfig) else TrainConfig(d_sae=widths[0], k=1, n_tokens=200_000)
    own = base.k if base.architecture in SELECTING else base.l0
    if grid.k is None and (own is None or base is not given):
        raise InputError("the SAE of this world says no L0 to train with: give --k")
    levels: list[Any] = [own] if grid.k is None else whole_numbers(grid.k, "--k", 1)
    seeds = [base.seed] if grid.seeds is None else whole_numbers(grid.seeds, "--seeds", 0)
    tokens = base.n_tokens if grid.train_tokens is None else grid.train_tokens
    for width in widths:
        for level in levels:
            k, l0 = (level, None) if base.architecture in SELECTING else (None, level)
            for seed in seeds:
                name = f"w{width}-k{level:g}" + (f"-seed{seed}" if len(seeds) > 1 else "")
                yield name, replace(base, d_sae=width, groups=None, n_tokens=tokens, seed=seed, k=k, l0=l0)


def whole_numbers(text: str, what: str, least: int) -> list[int]:
    """Read whole numbers with commas.

    Args:
        text: The text.
        what: The option, for the message.
        least: The smallest allowed.

    Returns:
        The numbers, each once, in order of size.

    Raises:
        InputError: Another form, or a number below the smallest.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= least for part in parts) or len(set(parts)) < len(parts):
        raise InputError(f"{what} is {text!r}, expected different whole numbers from {least} on, such as 32,64,128")
    return sorted(map(int, parts))


def _seconds(configs: dict[str, TrainConfig], experiment: Experiment) -> float:
    """Time of the encoders' products, from the speed of one on this machine."""
    d = experiment.world.d_model
    a, b = torch.ones(_PROBE, d), torch.ones(d, _PROBE)
    a @ b
    start = time.perf_counter()
    a @ b
    each = (time.perf_counter() - start) / _PROBE**2
    return _TIMES_ENCODER * each * sum(config.n_tokens * config.d_sae for config in configs.values())
