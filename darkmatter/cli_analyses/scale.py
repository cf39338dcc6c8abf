"""`darkmatter scale`."""

from __future__ import annotations

from typing import Annotated

import typer

from darkmatter.cli_analyses.app import app
from darkmatter.cli_data import DataOptions, data_command

_OWN = "Analysis"
_GRID = "Grid to train on a world"


@data_command(app, "scale")
def scale(
    options: DataOptions,
    at_l0: Annotated[
        str | None,
        typer.Option(
            help="L0s to compare widths at, such as 32,64; those that all reach by default.", rich_help_panel=_OWN
        ),
    ] = None,
    margin: Annotated[
        float,
        typer.Option(help="Slope over log width below which nonlinear error counts as constant.", rich_help_panel=_OWN),
    ] = 0.05,
    memory: Annotated[
        str | None,
        typer.Option(help="What the sums of one pass may take, such as 24GB: more passes.", rich_help_panel=_OWN),
    ] = None,
    draws: Annotated[int, typer.Option(help="Bootstrap draws over folds of documents.", rich_help_panel=_OWN)] = 400,
    widths: Annotated[
        str | None, typer.Option(help="Latents of SAEs to train, such as 32,64,128,256.", rich_help_panel=_GRID)
    ] = None,
    k: Annotated[
        str | None, typer.Option(help="Their active latents per token, such as 4,8.", rich_help_panel=_GRID)
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Their seeds, such as 0,1: replicated runs.", rich_help_panel=_GRID)
    ] = None,
    train_tokens: Annotated[int | None, typer.Option(help="Tokens to train each on.", rich_help_panel=_GRID)] = None,
) -> None:
    """Error over width and L0: which part of it no width removes, and is nonlinear error constant in width?

    Takes many SAEs of one site in one pass, matches them at the same L0 by interpolation, and fits
    FVU(w) = c + a w^-m with an interval for the asymptote c (from 4 widths on), a test of the slope of the nonlinear
    error (from 3), and the surface over width and L0. On a world, --widths and --k train the SAEs first, and say what
    that costs.
    """
    from darkmatter.commands.analyses.scale import run_scale
    from darkmatter.commands.analyses.scale_grid import GridOptions

    grid = GridOptions(widths=widths, k=k, seeds=seeds, train_tokens=train_tokens)
    run_scale(options, grid, at_l0=at_l0, margin=margin, draws=draws, memory=memory)
