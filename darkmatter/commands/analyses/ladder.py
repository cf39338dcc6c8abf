"""`darkmatter ladder`: a predictor ladder, its table and its figure."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from rich.console import Console
from rich.table import Table

from darkmatter.analyses.controls import is_control
from darkmatter.analyses.ladder import Ladder, SaeLadder, Training, predictor_ladder
from darkmatter.cli_data import DataOptions
from darkmatter.commands.analyses.data import Data, open_data
from darkmatter.commands.analyses.finish import finish
from darkmatter.commands.analyses.ladder_truth import ladder_truth
from darkmatter.commands.console import say, steps
from darkmatter.commands.decompose import memory_bytes
from darkmatter.errors import InputError
from darkmatter.inference import Estimate
from darkmatter.plots_analyses.ladder import RUNGS, save_ladder_figure

_PROBE = 2**11


_WIDE = 112
"""Columns of a terminal that holds the differences from the affine map as well."""


def run_ladder(
    options: DataOptions, *, ranks: str, trained: bool, hidden: int | None, passes: int, latent_memory: str
) -> None:
    """Run the analysis.

    Args:
        options: The shared options.
        ranks: Ranks that are rungs, with commas.
        trained: Also train networks.
        hidden: Width of the wide network.
        passes: Most passes of training.
        latent_memory: Memory for the products of latents.

    Raises:
        InputError: Anything wrong with the options or the data.
    """
    chosen = _ranks(ranks)
    given = {"hidden": hidden is not None, "passes": passes != Training().passes}
    for name in (name for name, stands in given.items() if stands and not trained):
        raise InputError(f"--{name} has no meaning without --trained: leave it out, or train")
    training = Training(hidden=hidden, passes=passes) if trained else None
    budget = memory_bytes(latent_memory)
    with steps() as bars:
        data = open_data(options, bars)
        if training is not None:
            bars.say(_cost(training, data))
        further = None if data.n_tokens is None else data.n_tokens * ((training.passes + 1) if training else 0)
        with bars.stage("moments", data.n_tokens) as first, bars.stage("training", further) as second:
            result = predictor_ladder(
                data.source,
                data.saes,
                ranks=chosen,
                training=training,
                latent_memory=budget or 0,
                folds=data.folds,
                seed=data.seed,
                device=data.device,
                checkpoint=data.checkpoint,
                progress=first,
                training_progress=second,
            )
    truth = _truth(data, chosen)
    finish(
        "ladder",
        result,
        data,
        draw=lambda path: save_ladder_figure(path, result, truth),
        show=lambda: _show(result, truth),
        more={"truth": truth} if truth else None,
    )


def _ranks(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() and int(part) >= 1 for part in parts):
        raise InputError(f"--ranks is {text!r}, expected whole numbers of at least 1 with commas, such as 1,8,64")
    return tuple(sorted({int(part) for part in parts}))


def _cost(training: Training, data: Data) -> str:
    """What the trained rungs will cost, from the speed of a product on this machine."""
    d, names = data.source.d_model, data.source.names
    widths = [data.saes[name].d_sae if name in data.saes else None for name in names]
    passes = f"up to {training.passes} passes of training and one of use, each as long as the first, and"
    if data.n_tokens is None:
        return f"Training {2 * training.parts * len(names)} networks: {passes} their products."
    flops = sum(training.flops(d, width, data.n_tokens) for width in widths)
    a = torch.ones(_PROBE, d, device=data.device)
    b = torch.ones(d, _PROBE, device=data.device)
    start = time.perf_counter()
    float((a @ b)[0, 0])
    seconds = flops / (2 * _PROBE * _PROBE * d) * (time.perf_counter() - start)
    about = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return (
        f"Training {2 * training.parts * len(names)} networks on {data.n_tokens:,} tokens: {passes} at most "
        f"{flops:.1e} flops of products, about {about} here (more where networks are small)."
    )


def _truth(data: Data, ranks: tuple[int, ...]) -> Mapping[str, Mapping[str, float]]:
    if data.world is None or data.surgical is None:
        return {}
    found = ladder_truth(data.world, data.surgical, ranks)
    return {} if found is None else {data.source.names[0]: found}


def _show(result: Ladder, truth: Mapping[str, Mapping[str, float]]) -> None:
    console = Console(highlight=False)
    for name, ladder in result.saes.items():
        console.print(_table(ladder, truth.get(name), result, wide=console.width >= _WIDE))
    for warning in result.warnings:
        say(f"Warning: {warning}")


def _table(ladder: SaeLadder, truth: Mapping[str, float] | None, result: Ladder, *, wide: bool) -> Table:
    mark = " (null control)" if is_control(ladder.name) else ""
    table = Table(
        title=f"{ladder.name}{mark}: per cent of the error's variance explained",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("predictor", no_wrap=True)
    # differences from the affine map stand in ladder.json too
    columns = ["explained [95 %]", "over the rung\nbefore", *(["over the\naffine map"] if wide else [])]
    for column in [*columns, *(["truth"] if truth else [])]:
        table.add_column(column, justify="right")
    table.add_row("mean", "0")
    for section in (ladder.rungs, ladder.in_x):
        for rung in section:
            label = RUNGS.get(rung.name, rung.name.replace("_", " ")).replace("\n", " ")
            true = [] if truth is None else [f"{100 * truth[rung.name]:z.1f}" if rung.name in truth else ""]
            above = "≥ " if rung.heldout_only else ""
            over = [_over(rung.over_linear)] if wide else []
            table.add_row(label, above + _number(rung.r2), _number(rung.over_previous), *over, *true)
        table.add_section()
    r90 = ladder.curve.r90
    if math.isfinite(r90.value):
        true = [] if truth is None else [f"{truth['r90']:.0f}"]
        table.add_row("rank that reaches 90 %", f"{r90:.0f}", "", *([""] if wide else []), *true)
    table.caption = (
        f"FVU {ladder.fvu:.3f}; {result.n_tokens:,} tokens, {result.n_groups:,} documents, {result.n_folds} folds; "
        "rungs are not nested; nothing here says what the SAE introduced"
    )
    table.caption_justify = "left"
    return table


def _number(estimate: Estimate) -> str:
    if not math.isfinite(estimate.value):
        return "–"
    return f"{Estimate(100 * estimate.value, 100 * estimate.low, 100 * estimate.high):z.1f}"


def _over(estimate: Estimate) -> str:
    return "" if estimate.value == estimate.low == estimate.high == 0 else _number(estimate)
