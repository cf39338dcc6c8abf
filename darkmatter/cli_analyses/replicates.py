"""`darkmatter replicates`."""

from __future__ import annotations

from typing import Annotated

import typer

from darkmatter.cli_analyses.app import app
from darkmatter.cli_data import DataOptions, data_command

_PANEL = "Analysis"


@data_command(app, "replicates")
def replicates(
    options: DataOptions,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Seeds such as 0,1,2: train the SAE of --world once per seed, into OUT/saes/seed-N, and compare them.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=LABEL: SAEs with equal labels are replicates; repeatable. Else width, activation and L0 decide.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
) -> None:
    """Bracket introduced error from several SAEs on the same tokens (T8): seeds, widths or L0.

    One SAE cannot bound the error that it introduces from below; two can, under conditions that are named beside every
    number and tested where they can be. Needs two SAEs at least (--sae a --sae b, or --world with --seeds). One pass of
    the plain decomposition; SAEs that --seeds names are trained first, unless an earlier run left them.
    """
    from darkmatter.commands.analyses.replicates import run_replicates

    run_replicates(options, seeds=seeds, recipes=recipe or [])
