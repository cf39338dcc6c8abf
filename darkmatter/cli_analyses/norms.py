"""`darkmatter norms`."""

from __future__ import annotations

from typing import Annotated

import typer

from darkmatter.cli_analyses.app import app
from darkmatter.cli_data import DataOptions, data_command


@data_command(app, "norms")
def norms(
    options: DataOptions,
    loss: Annotated[
        bool,
        typer.Option(
            "--loss/--no-loss",
            help="With --model: the model's loss as a baseline; costs a whole forward pass more.",
            rich_help_panel="Analysis",
        ),
    ] = True,
) -> None:
    """How well can |v|^2 be read off x linearly, for x, Sae(x), the error and its parts?

    R2 of the squared norms, as they are and about the mean, beside what Gaussian data would give and what the token,
    the activation's norm, L0, position and the model's loss predict. Two passes over the tokens.
    """
    from darkmatter.commands.analyses.norms import run_norms

    run_norms(options, loss=loss)
