"""`darkmatter per-token`."""

from __future__ import annotations

from typing import Annotated

import typer

from darkmatter.cli_analyses.app import app
from darkmatter.cli_data import DataOptions, data_command

_PANEL = "Analysis"


@data_command(app, "per-token")
def per_token(
    options: DataOptions,
    small: Annotated[
        str | None,
        typer.Option(help="SAE whose error norms predict; the one with the fewest latents.", rich_help_panel=_PANEL),
    ] = None,
    large: Annotated[
        str | None,
        typer.Option(help="SAE whose error is predicted; the one with the most latents.", rich_help_panel=_PANEL),
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Tokens to list, with their contexts.", rich_help_panel=_PANEL)] = 10,
) -> None:
    """Errors token by token: predicted from a smaller SAE's, by position and kind of token, and where they are largest.

    R2 of a large SAE's error norm on a small one's, with and without the nonlinear norm; shares of the error by
    position, frequency and kind of token; the tokens with the most nonlinear error, as text. Two passes.
    """
    from darkmatter.commands.analyses.per_token import run_per_token

    run_per_token(options, small=small, large=large, top=top)
