"""`darkmatter ladder`."""

from __future__ import annotations

from typing import Annotated

import typer

from darkmatter.cli_analyses.app import app
from darkmatter.cli_data import DataOptions, data_command

_PANEL = "Ladder"


@data_command(app, "ladder")
def ladder(
    options: DataOptions,
    ranks: Annotated[
        str, typer.Option(help="Ranks that are rungs of their own, with commas.", rich_help_panel=_PANEL)
    ] = "1,8,64",
    trained: Annotated[
        bool,
        typer.Option(
            "--trained/--no-trained",
            help="Also train a wide ReLU network and a small MLP; says beforehand what that costs.",
            rich_help_panel=_PANEL,
        ),
    ] = False,
    hidden: Annotated[
        int | None,
        typer.Option(
            help="Width of the wide network; by default the SAE's latents, else 8 d_model.", rich_help_panel=_PANEL
        ),
    ] = None,
    passes: Annotated[int, typer.Option(help="Most passes of training over the tokens.", rich_help_panel=_PANEL)] = 8,
    latent_memory: Annotated[
        str, typer.Option(help="Memory for refitting the scales of latents.", rich_help_panel=_PANEL)
    ] = "4GB",
) -> None:
    """How much of the error ever richer predictors explain: gains, ranks, an affine map, networks.

    One pass gives the share of Var e that is explained, out of fold, by a scalar gain of Sae(x), a gain per coordinate,
    a gain per latent, the best map of x of every rank, and the affine map of x, with intervals of the differences.
    With --trained, networks follow: lower bounds on what some function of x explains, in several further passes.
    """
    from darkmatter.commands.analyses.ladder import run_ladder

    run_ladder(options, ranks=ranks, trained=trained, hidden=hidden, passes=passes, latent_memory=latent_memory)
