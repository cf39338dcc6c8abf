"""`darkmatter downstream`: the loss with a site replaced."""

from __future__ import annotations

from typing import Annotated

import typer

from darkmatter.cli_analyses.app import app
from darkmatter.cli_data import DataOptions, data_command

_PANEL = "Analysis"
Variants = Annotated[
    str | None,
    typer.Option(
        help="Which replacements, with commas: identity, mean, zero, sae, nonlinear-left, linear-left, random, "
        "random-nonlinear, random-linear, shuffled; all but zero by default. sae is always run.",
        rich_help_panel=_PANEL,
    ),
]
LossDocuments = Annotated[
    str | None,
    typer.Option(
        help="Documents, the first ones, whose losses are measured (whole batches): a number, or all. By default one "
        "for every pass that the losses take, so that they cost about one more pass, but 400 at least. The linear maps "
        "use every token all the same.",
        rich_help_panel=_PANEL,
    ),
]


@data_command(app, "downstream")
def downstream(
    options: DataOptions,
    variants: Variants = None,
    loss_documents: LossDocuments = None,
) -> None:
    """What errors cost the model: its loss with the site replaced by Sae(x), by x less one part of the error, and more.

    Does nonlinear error matter more, or less, than its share of the squared error says? Controls: random errors of
    equal norm, the error of another document, mean ablation, and x itself. Takes --model, or --world with a loss that
    is known. Every replacement is a whole forward pass of the model: ten passes for one SAE, seven more for each
    further one or control; fewer with --variants and --loss-documents.
    """
    from darkmatter.commands.analyses.downstream import run_downstream

    run_downstream(options, variants=variants, loss_documents=loss_documents)
