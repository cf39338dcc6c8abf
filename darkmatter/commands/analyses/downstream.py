"""`darkmatter downstream`: losses with a site replaced, their tables and their figure."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from darkmatter.adapters.spliced import ModelLosses
from darkmatter.analyses.controls import is_control
from darkmatter.analyses.downstream import (
    DEFAULT_VARIANTS,
    DownstreamLosses,
    PartLosses,
    SplicedLoss,
    check_variants,
    downstream_losses,
    n_forward,
)
from darkmatter.cli_data import DataOptions
from darkmatter.commands.analyses.data import Data, open_data
from darkmatter.commands.analyses.finish import finish
from darkmatter.commands.console import steps
from darkmatter.errors import InputError
from darkmatter.inference import Estimate
from darkmatter.plots_analyses.downstream import LABELS, save_downstream_figure
from darkmatter.report import percent, percent_interval
from darkmatter.sandbox.readout import Readout, ReadoutTruth

_PARTS = ("linear", "nonlinear")
FEWEST = 400
"""Documents whose losses are measured at least, where there are as many: twenty for each of twenty folds."""


def run_downstream(options: DataOptions, *, variants: str | None, loss_documents: str | None) -> None:
    """Run the analysis.

    Args:
        options: The shared options.
        variants: Names of replacements with commas; None takes the default ones.
        loss_documents: Documents whose losses are measured, or "all"; None takes one for every pass over the losses.

    Raises:
        InputError: Anything wrong with the options or the data.
    """
    chosen = check_variants(
        DEFAULT_VARIANTS if variants is None else [name.strip() for name in variants.split(",") if name.strip()]
    )
    wanted = _wanted(loss_documents)
    with steps() as bars:
        data = open_data(options, bars, known=("world", "model"))
        readout = None if data.world is None else Readout(world=data.world, leading=min(4, data.world.d_model))
        source: SplicedLoss
        passes = n_forward(chosen, len(data.source.names))
        if readout is not None:
            source = readout.losses(data.source)
        else:
            assert data.activations is not None, "a model has activations"
            source = ModelLosses(data.activations, data.source)
            bars.say(_cost(source, chosen, data, wanted))
        moments = data.moments(bars)
        # a world's losses are cheap
        documents = None if readout is not None and wanted is None else _documents(wanted, passes, moments.n_groups)
        total = None if documents is not None else moments.n_tokens
        with bars.stage("losses", total) as stage:
            result = downstream_losses(
                source, moments, variants=chosen, documents=documents, seed=data.seed, progress=stage
            )
    truth = None if readout is None or data.surgical is None else readout.truth(data.surgical)
    more: dict[str, Any] = {}
    if readout is not None:
        more["readout"] = readout.to_dict()
        more["truth"] = None if truth is None else {"surgical": truth.to_dict()}
    finish(
        "downstream",
        result,
        data,
        draw=lambda path: save_downstream_figure(path, result, _plain(truth)),
        show=lambda: _show(result, truth),
        more=more,
    )


def _wanted(documents: str | None) -> int | None:
    """Read ``--loss-documents``: None leaves it to the number of passes, 0 takes all.

    Raises:
        InputError: Neither a number of at least 2 nor "all".
    """
    if documents is None or documents == "all":
        return None if documents is None else 0
    if not documents.isdecimal() or int(documents) < 2:
        raise InputError(f"--loss-documents is {documents!r}, expected a number, at least 2, or all")
    return int(documents)


def _documents(wanted: int | None, passes: int, n_documents: int) -> int | None:
    """Documents whose losses are measured; None for all."""
    number = max(FEWEST, -(-n_documents // passes)) if wanted is None else wanted
    return None if number == 0 or number >= n_documents else number


def _cost(source: ModelLosses, variants: tuple[str, ...], data: Data, wanted: int | None) -> str:
    """What the losses will take, timed on the first batch."""
    passes, name = n_forward(variants, len(source.names)), source.activations.loaded.name
    first = next(iter(source))
    start = time.perf_counter()
    first.clean()
    seconds = passes * (time.perf_counter() - start)
    n, n_documents = len(first.batch.groups), len(np.unique(first.batch.groups))
    batches = None if data.n_tokens is None else -(-data.n_tokens // n)
    documents = wanted or None
    if batches is not None:
        documents = _documents(wanted, passes, batches * n_documents)
    if documents is not None:
        batches = -(-documents // n_documents)
    whole = f"a batch of {n:,} tokens takes about {_spell(seconds)}"
    if batches is not None:
        whole += f", at most {batches:,} of them {_spell(batches * seconds)}"
    return (
        f"downstream runs {passes} whole forward passes of {name} on every batch whose losses it measures, beside the "
        f"one for the moments: {whole} on this machine. --variants and --loss-documents make it less."
    )


def _spell(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _plain(truth: ReadoutTruth | None) -> dict[str, dict[str, Any]]:
    return {} if truth is None else {"surgical": truth.to_dict()}


def _show(result: DownstreamLosses, truth: ReadoutTruth | None) -> None:
    console = Console(highlight=False)
    for name, sae in result.saes.items():
        known = truth if name == "surgical" else None
        table = Table(title=f"{name}: increase of the loss, nats per token", title_justify="left", header_style="bold")
        table.add_column("x is replaced by", no_wrap=True)
        for column in ("increase [95 %]", "recovered [95 %]"):
            table.add_column(column, justify="right", no_wrap=True)
        if known is not None:
            table.add_column("truth", justify="right")
        for variant, found in {**result.variants, **sae.variants}.items():
            true = [] if known is None else [f"{known.increases[variant]:.3f}"]
            table.add_row(LABELS[variant], f"{found.increase:z.3f}", _share(found.recovered), *true)
        table.caption = (
            f"clean loss {result.clean:.3f}; {result.n_losses:,} losses of {result.n_documents:,} documents, "
            f"{result.n_folds} folds; recovered: of what mean ablation costs; "
            f"interaction of the two parts {sae.interaction:.4f} nats"
        )
        table.caption_justify = "left"
        console.print(table)
        console.print(_parts_table(name, sae.linear, sae.nonlinear, known))
        if not is_control(name):
            console.print(_sentence(name, sae.nonlinear), style="bold", markup=False)
    for warning in result.warnings:
        console.print(f"Warning: {warning}", style="yellow", markup=False)


def _parts_table(name: str, linear: PartLosses, nonlinear: PartLosses, truth: ReadoutTruth | None) -> Table:
    table = Table(title=f"{name}: the two parts of the error", title_justify="left", header_style="bold")
    table.add_column("share", no_wrap=True)
    for part in _PARTS:
        table.add_column(f"{part} [95 %]", justify="right")
        if truth is not None:
            table.add_column("truth", justify="right", no_wrap=True)
    rows = {
        "error_share": "of the squared error",
        "recovered": "of the increase: undone",
        "alone": "of the increase: alone",
        "relative": "undone / squared error",
        "versus_random": "alone / random as long",
    }
    for key, label in rows.items():
        cells = []
        for part, found in zip(_PARTS, (linear, nonlinear), strict=True):
            cells.append(_number(key, getattr(found, key)))
            if truth is not None:
                cells.append(_true(key, part, truth))
        table.add_row(label, *cells)
    return table


def _number(key: str, value: Estimate) -> str:
    if value.value != value.value:
        return "–"
    return f"{value:.3f}" if key in ("relative", "versus_random") else percent_interval(value)


def _true(key: str, part: str, truth: ReadoutTruth) -> str:
    if key == "versus_random":
        random = truth.increases[f"random-{part}"]
        return f"{truth.increases[f'{part}-left'] / random:.3f}" if random > 0 else "–"
    if key == "relative":
        return f"{truth.relative(part):.3f}" if truth.error_share(part) > 0 else "–"
    return percent(truth.error_share(part) if key == "error_share" else truth.recovered(part))


def _share(value: Estimate) -> str:
    return "–" if value.value != value.value else percent_interval(value)


def _sentence(name: str, part: PartLosses) -> str:
    size = f"{name}: nonlinear error is {percent(part.error_share.value)} of the squared error"
    if part.relative.value != part.relative.value:
        return f"{size}; what it costs is not told apart from nothing."
    low, high = part.relative.low, part.relative.high
    how = "more than" if low > 1 else "less than" if high < 1 else "no more or less, as far as can be told, than"
    return (
        f"{size}; adding it back undoes {percent_interval(part.recovered)} of the increase of the loss and it is "
        f"{percent(part.alone.value)} of it alone. Added back it matters {how} its size says "
        f"({part.relative:.2f} times)."
    )
