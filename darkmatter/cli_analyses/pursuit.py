"""`darkmatter pursuit`."""

from __future__ import annotations

from typing import Annotated

import typer

from darkmatter.cli_analyses.app import app
from darkmatter.cli_data import DataOptions, data_command


@data_command(app, "pursuit")
def pursuit(
    options: DataOptions,
    methods: Annotated[
        str,
        typer.Option(
            help="Codes beside the encoder's, such as refit,gp,omp: its latents with amplitudes of least error, "
            "gradient pursuit, orthogonal matching pursuit.",
            rich_help_panel="Analysis",
        ),
    ] = "gp",
    l0: Annotated[
        int | None,
        typer.Option(
            help="Latents per token; by default as many as the encoder activates on it.", rich_help_panel="Analysis"
        ),
    ] = None,
    ks: Annotated[
        str | None,
        typer.Option(
            help="Numbers of latents for a curve of error against L0, such as 8,16,32,64.", rich_help_panel="Analysis"
        ),
    ] = None,
    shortlist: Annotated[
        int | None,
        typer.Option(
            help="Candidates for the first four latents of a token, twice as many or more for later ones; by default "
            "16, or all latents where these are at most 512.",
            rich_help_panel="Analysis",
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Choose among all latents: codes a little better, several times as slow for a wide SAE.",
            rich_help_panel="Analysis",
        ),
    ] = False,
) -> None:
    """What the SAE's decoder could do with better codes: sparse coding in place of the encoder, at the same L0.

    Latents are chosen anew by gradient pursuit, and with --methods by orthogonal matching pursuit; or the encoder's own
    latents get amplitudes of least squared error. How error, linear and nonlinear, changes on the same tokens says how
    much of it is the encoder's. Needs the weights. Costs about three times what `decompose` does beside the
    model's forward pass, more with --methods, a larger L0 or --exact; the time is estimated after the first batch.
    --max-tokens makes it cheaper.
    """
    from darkmatter.commands.analyses.pursuit import run_pursuit

    run_pursuit(options, methods=methods, l0=l0, ks=ks, shortlist=shortlist, exact=exact)
