"""`darkmatter presets`: the named experiments, in a table."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from darkmatter.commands.console import put
from darkmatter.sandbox import Surgical
from darkmatter.sandbox.experiment import Experiment
from darkmatter.sandbox.presets import PRESETS


def show_presets(*, as_json: bool) -> None:
    """List the presets on stdout.

    Args:
        as_json: Print every experiment, complete, by name.
    """
    if as_json:
        plain = {name: {"summary": p.summary, "experiment": p.experiment.to_dict()} for name, p in PRESETS.items()}
        put(json.dumps(plain, indent=2, allow_nan=False))
        return
    table = Table(header_style="bold", show_lines=True)
    table.add_column("preset", no_wrap=True)
    table.add_column("what it is")
    for name, preset in PRESETS.items():
        world = preset.experiment.world
        sizes = f"m {world.n_features:,}, d {world.d_model}, k {world.dense_dim}, L0 {world.l0:g}"
        table.add_row(name, f"{preset.summary}\n{sizes}; {_sae(preset.experiment)}")
    Console(highlight=False).print(table)


def _sae(experiment: Experiment) -> str:
    sae = experiment.sae
    if isinstance(sae, Surgical):
        return f"surgical, {sae.introduced}"
    return f"{sae.architecture}, {sae.d_sae:,} latents"
