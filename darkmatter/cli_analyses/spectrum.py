"""`darkmatter spectrum`."""

from __future__ import annotations

from typing import Annotated

import typer

from darkmatter.cli_analyses.app import app
from darkmatter.cli_data import DataOptions, data_command

_PANEL = "Analysis"


@data_command(app, "spectrum")
def spectrum(
    options: DataOptions,
    rank: Annotated[
        int | None, typer.Option(help="Directions k that count as leading; d/8 by default.", rich_help_panel=_PANEL)
    ] = None,
    active_tokens: Annotated[
        int,
        typer.Option(
            help="Tokens on which spans of active latents are measured, in a second pass; 0 for none.",
            rich_help_panel=_PANEL,
        ),
    ] = 4096,
) -> None:
    """Geometry of the error: how many directions it occupies, which, and how much the SAE's own directions hold.

    Eigenvalues, participation ratio and effective rank of x, of the error and of its linear and nonlinear part, free of
    sampling noise; overlap of leading subspaces between SAEs; shares along the decoder and inside each token's active
    latents. One pass with one more product per SAE, a short second one for active latents; two to three times the
    plain decomposition.
    """
    from darkmatter.commands.analyses.spectrum import run_spectrum

    run_spectrum(options, rank=rank, active_tokens=active_tokens)
