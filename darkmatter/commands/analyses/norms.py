"""`darkmatter norms`: squared norms regressed on x."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from darkmatter.adapters import ModelActivations
from darkmatter.adapters.next_tokens import Rows, loss_parts, next_token_losses, targets
from darkmatter.analyses.controls import is_control
from darkmatter.analyses.norms import BothProbes, NormProbe, NormProbes, TokenValues, norm_probes
from darkmatter.cli_data import DataOptions
from darkmatter.commands.analyses.data import open_data
from darkmatter.commands.analyses.finish import finish
from darkmatter.commands.analyses.norm_truth import Truth, norm_truth
from darkmatter.commands.console import steps
from darkmatter.errors import InputError
from darkmatter.inference import Estimate
from darkmatter.plots_analyses.norms import save_norms_figure

_SHORT = {
    "x": "x",
    "recon": "Sae",
    "error": "e",
    "linear": "linear",
    "nonlinear": "r",
    "recon_minus_nonlinear": "Sae + r",
    "activation_norm": "|x|",
    "position": "place",
    "token": "token",
    "loss": "loss",
    "l0": "L0",
}


@dataclass(frozen=True, slots=True, eq=False)
class ModelLosses:
    """The model's loss on the token after each, in the batches of its activations; NaN where none follows.

    Attributes:
        activations: The stream.
    """

    activations: ModelActivations

    def __iter__(self) -> Iterator[TokenValues]:
        """Run the whole model on every batch.

        Yields:
            The loss of every token of the batch.
        """
        loaded, rows = self.activations.loaded, iter(self.activations.sequences)
        while sequences := list(islice(rows, self.activations.batch_docs)):
            batch = Rows.of(sequences)
            parts = loss_parts(loaded, batch.ids.shape[1], remedy="lower the context length, or pass --no-loss")
            losses = next_token_losses(loaded, batch, lambda _: nullcontext(), parts)
            values = np.full(batch.ids.shape, np.nan)
            values[:, :-1] = np.where(targets(batch), losses.double(), np.nan)
            there = batch.mask.numpy()
            yield TokenValues(batch.groups.numpy()[there], batch.positions.numpy()[there], values[there])


def run_norms(options: DataOptions, *, loss: bool) -> None:
    """Run the analysis.

    Args:
        options: The shared options.
        loss: Whether a model's loss is wanted.

    Raises:
        InputError: --loss without a model.
    """
    if not loss and options["model"] is None:
        raise InputError("--no-loss has no meaning without --model: leave it out")
    with steps() as bars:
        data = open_data(options, bars)
        wanted = loss and data.activations is not None and data.activations.loaded.has_head
        losses = ModelLosses(data.activations) if wanted and data.activations is not None else None
        moments = data.moments(bars)
        with bars.stage("norms", moments.n_tokens) as stage:
            result = norm_probes(data.source, saes=data.saes, losses=losses, moments=moments, progress=stage)
    truth = norm_truth(data.world, data.surgical) if data.world is not None else {}
    finish(
        "norms",
        result,
        data,
        draw=lambda path: save_norms_figure(path, result, truth),
        show=lambda: _show(result, truth),
        more={"truth": truth} if truth else None,
    )


def _show(result: NormProbes, truth: Truth) -> None:
    console = Console(highlight=False)
    _put(console, "x", {"x": result.x}, truth.get("", {}))
    for name, probes in result.saes.items():
        _put(console, f"{name} (null control)" if is_control(name) else name, probes, truth.get(name, {}))
    if result.saes:
        console.print(
            "e = linear + r; the nonlinear part of Sae(x) is -r, so Sae + r is Sae(x) without it. Gauss: Gaussian data "
            "of the same mean and covariance.",
            style="dim",
            markup=False,
        )
    for warning in result.warnings:
        console.print(f"Warning: {warning}", style="yellow", markup=False)
    console.print(_sentence(result), style="bold", markup=False)


def _put(console: Console, name: str, probes: Mapping[str, BothProbes], truth: Mapping[str, Any]) -> None:
    table = Table(title=f"{name}: R2 of squared norms", title_justify="left", header_style="bold", box=box.SIMPLE)
    table.add_column("norm", no_wrap=True)
    baselines = list(dict.fromkeys(key for both in probes.values() for key in both.uncentred.baselines))
    shown = ["on x [95 %]", *(["truth"] if truth else []), "Gauss", *(_SHORT[key] for key in baselines)]
    for column in shown:
        table.add_column(column, justify="right", no_wrap=True)
    for kind, both in probes.items():
        for about in ("uncentred", "centred"):
            probe: NormProbe = getattr(both, about)
            row = ["  centred" if about == "centred" else _SHORT[kind], _interval(probe.r2)]
            if truth:
                row.append(f"{truth[kind][about]:.3f}" if about in truth.get(kind, {}) else "")
            row += [_number(probe.gaussian)]
            row += [_number(probe.baselines[key]) if key in probe.baselines else "" for key in baselines]
            table.add_row(*row)
    console.print(table)


def _interval(estimate: Estimate) -> str:
    return "–" if estimate.value != estimate.value else f"{estimate:z.3f}"


def _number(estimate: Estimate) -> str:
    return "–" if estimate.value != estimate.value else f"{estimate.value:z.2f}"


def _sentence(result: NormProbes) -> str:
    both: BothProbes = result.x
    plain, centred, gaussian = both.uncentred.r2, both.centred.r2, both.uncentred.gaussian
    if plain.value != plain.value:
        return "The norm of x does not vary, so there is nothing to read off."
    return (
        f"A linear probe of x explains {plain.value:.1%} of |x|^2, {centred.value:.1%} about the mean. Gaussian data, "
        f"without any sparse feature, of the same mean and covariance would give {_number(gaussian)} and 0."
    )
