"""`darkmatter cross-site`."""

from __future__ import annotations

from typing import Annotated

import typer

from darkmatter.cli_analyses.app import app
from darkmatter.cli_data import DataOptions, data_command

Target = Annotated[
    str | None,
    typer.Option(help="Site whose error is explained; the last --site by default.", rich_help_panel="Analysis"),
]

Beside = Annotated[
    str,
    typer.Option(
        help="Explain what is not linear in x of the target (x), or in the activations of all sites (all).",
        rich_help_panel="Analysis",
    ),
]


@data_command(app, "cross-site")
def cross_site(options: DataOptions, target: Target = None, beside: Beside = "x") -> None:
    """How much of an SAE's error is linear in SAE outputs of earlier sites, against matched controls.

    Give the earlier sites and the target as --site, each with an SAE. Controls here are of the earlier SAEs' outputs:
    the raw activations always, random features and shuffled documents unless --control says otherwise, Gaussian noise
    with --control all. With --beside all the activations of all sites are given, so that only what the SAEs do
    nonlinearly is left to explain. One pass; about three times the cost of decomposing the same SAEs, and more memory:
    sums grow with the square of the width of all earlier sites together, times --folds.

    A --world is seen at three sites, "early" and "write" that add up to "late", with surgical SAEs (not the preset's
    own) and known truth.
    """
    from darkmatter.commands.analyses.cross_site import run_cross_site

    run_cross_site(options, target=target, beside=beside)
