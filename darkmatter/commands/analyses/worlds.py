"""The world and SAE that ``--world`` names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from darkmatter.commands.console import Steps
from darkmatter.commands.settings import read_config
from darkmatter.commands.training import trained_sae
from darkmatter.errors import InputError
from darkmatter.sae import load_sae
from darkmatter.sandbox import PRESETS, Surgical, preset
from darkmatter.sandbox.experiment import Experiment


def find_experiment(place: str) -> tuple[Experiment, Path | None]:
    """Find the experiment.

    Args:
        place: The folder of a `synth` run, its experiment.json, or the name of a preset.

    Returns:
        The experiment, and the folder of the run if it is one.

    Raises:
        InputError: None of the three.
    """
    if place in PRESETS and not Path(place).exists():
        return preset(place).experiment, None
    path = Path(place)
    file = path / "experiment.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"--world {place} is no run of synth (a folder with experiment.json), no file, and none of the presets "
            f"{', '.join(PRESETS)}"
        )
    return Experiment.from_dict(read_config(file)), file.parent


def world_saes(
    experiment: Experiment, folder: Path | None, *, out: Path, bars: Steps
) -> tuple[dict[str, Any], Surgical | None]:
    """The SAE of an experiment: surgical, the one its run left, or one that is trained now.

    Args:
        experiment: The experiment.
        folder: Its run.
        out: Where an SAE that is trained now is kept, for the next time.
        bars: Progress.

    Returns:
        The SAE by name, and the surgical one if it is.
    """
    if isinstance(experiment.sae, Surgical):
        return {"surgical": experiment.sae}, experiment.sae
    if folder is not None and (folder / "sae").is_dir():
        return {"sae": load_sae(folder / "sae")}, None
    return {"sae": trained_sae(experiment.world, experiment.sae, folder=out, bars=bars)[0]}, None
