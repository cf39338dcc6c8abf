"""The `pursuit` command: the SAE's decoder with other inference."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console
from rich.table import Table
from torch import Tensor

from darkmatter.adapters import ModelSource
from darkmatter.adapters.caches import CachedSource
from darkmatter.analyses.controls import is_control
from darkmatter.analyses.pursuit import Coding, Pursuit, SaePursuit, TokensOnly, pursue
from darkmatter.batch import BatchSource
from darkmatter.cli_data import DataOptions
from darkmatter.commands.analyses.data import Data, open_data
from darkmatter.commands.analyses.finish import finish
from darkmatter.commands.console import say, steps
from darkmatter.errors import InputError
from darkmatter.plots_analyses.pursuit import save_pursuit_figure
from darkmatter.report import percent_interval
from darkmatter.sandbox.source import PairSource

_LABELS = {"encoder": "the encoder", "refit": "a re-fit", "gp": "gradient pursuit", "omp": "OMP"}
_WORTH_SAYING = 10.0
"""Seconds of inference below which no estimate is printed."""


def run_pursuit(
    options: DataOptions, *, methods: str, l0: int | None, ks: str | None, shortlist: int | None, exact: bool
) -> None:
    """Run the analysis, write report and figure, and print.

    Args:
        options: The shared options.
        methods: Codes, comma-separated.
        l0: Latents per token.
        ks: Numbers of latents for the curve, comma-separated.
        shortlist: Candidates on the first list of a token.
        exact: All latents are candidates.

    Raises:
        InputError: An SAE whose weights are not known, or options that contradict each other.
    """
    numbers = _numbers(ks)
    with steps() as bars:
        data = open_data(options, bars, known=("world", "model", "cache"))
        unknown = [name for name in data.source.names if name not in data.saes and not is_control(name)]
        if unknown:
            raise InputError(f"pursuit needs the weights of {unknown[0]!r}, which are not known: give --sae")

        def announce(seconds: float) -> None:
            if data.n_tokens and seconds * data.n_tokens > _WORTH_SAYING:
                whole = seconds * data.n_tokens
                bars.say(
                    f"Sparse coding takes {1e3 * seconds:.2g} ms a token: about {_duration(whole)} for "
                    f"{data.n_tokens:,} tokens, beside the model."
                )

        with bars.stage("pursuit", data.n_tokens) as stage:
            result = pursue(
                _tokens(data),
                data.saes,
                folds=data.folds,
                methods=tuple(part.strip() for part in methods.split(",")),
                l0=l0,
                ks=numbers,
                shortlist=shortlist,
                exact=exact,
                device=data.device,
                progress=stage,
                announce=announce,
            )
    finish(
        "pursuit",
        result,
        data,
        draw=lambda path: save_pursuit_figure(path, result),
        show=lambda: show_pursuit(result),
    )


def _tokens(data: Data) -> BatchSource:
    """The tokens alone, since the analysis runs every SAE itself and once is enough; controls need the error."""
    if isinstance(data.source, CachedSource | ModelSource | PairSource):
        return TokensOnly(replace(data.source, saes=dict.fromkeys(data.source.names, _nothing)))
    return data.source


def _nothing(x: Tensor) -> Tensor:
    return x


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        raise InputError(f"--ks is {text!r}, expected numbers of latents such as 8,16,32") from None


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def show_pursuit(result: Pursuit) -> None:
    """Print a table for every SAE, its warnings and a sentence."""
    console = Console(highlight=False)
    for name, sae in result.saes.items():
        console.print(_table(name, sae, result))
        for warning in sae.warnings:
            console.print(f"Warning: {warning}", style="yellow", markup=False)
        console.print(verdict(name, sae), style="bold", markup=False)
    for warning in result.warnings:
        say(f"Warning: {warning}")


def _table(name: str, sae: SaePursuit, result: Pursuit) -> Table:
    table = Table(title=f"{name}: codes of one decoder, shares of the variance of x", title_justify="left")
    for column in ("codes", "L0", "error (FVU)", "change", "nonlinear part", "change"):
        table.add_column(column, justify="left" if column == "codes" else "right", no_wrap=column == "codes")
    for label, coding in sae.codings.items():
        table.add_row(*_row(label, coding))
    if sae.curve:
        table.add_section()
    for coding in sae.curve:
        table.add_row(*_row(f"{coding.method}@{coding.steps}", coding))
    table.caption = (
        f"{result.n_tokens:,} tokens, {result.n_groups:,} documents, {result.n_folds} folds; 95 % intervals; "
        f"{sae.d_sae:,} latents, "
        + (
            "all candidates"
            if sae.shortlist is None
            else f"candidates listed by what is left, {sae.shortlist} at first"
        )
    )
    table.caption_justify = "left"
    return table


def _row(label: str, coding: Coding) -> tuple[str, ...]:
    error, change = coding.error, coding.change
    return (
        label,
        f"{coding.l0.value:.2f}",
        percent_interval(error.fvu),
        "" if change is None else percent_interval(change.fvu),
        percent_interval(error.fvu_nonlinear),
        "" if change is None else percent_interval(change.fvu_nonlinear),
    )


def verdict(name: str, sae: SaePursuit) -> str:
    """Say in one sentence what better inference changes.

    Args:
        name: The SAE.
        sae: Its codes.

    Returns:
        The sentence.
    """
    removed = sae.codings[sae.best].removed
    if removed is None or sae.encoder_error.low <= 0:
        return f"{name}: none of these codes is shown to be better than the encoder's at the same L0."
    contrast = removed.contrast
    if contrast.low > 0:
        more = "the nonlinear part shrinks more than the linear one"
    elif contrast.high < 0:
        more = "the linear part shrinks more than the nonlinear one"
    else:
        more = "which part shrinks more is not settled"
    return (
        f"{name}: at least {percent_interval(sae.encoder_share)} of its error is the encoder's; {_LABELS[sae.best]} "
        f"removes {percent_interval(removed.linear)} of the linear and {percent_interval(removed.nonlinear)} of the "
        f"nonlinear part{' (which is to say that it grows)' if removed.nonlinear.high < 0 else ''}: {more}."
    )
