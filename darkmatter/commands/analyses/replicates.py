"""`darkmatter replicates`: several SAEs on the same tokens, those of other seeds trained where they are missing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from darkmatter.analyses.replicates import ReplicateBracket, bracket_moments
from darkmatter.analyses.replicates.bracket import check_count, read_recipes
from darkmatter.analyses.replicates.recipes import check_recipes
from darkmatter.cli_data import DataOptions
from darkmatter.commands.analyses.data import Data, kind_of, open_data
from darkmatter.commands.analyses.finish import finish
from darkmatter.commands.analyses.worlds import find_experiment
from darkmatter.commands.console import Steps, say, steps
from darkmatter.commands.training import trained_sae
from darkmatter.errors import InputError
from darkmatter.report import percent, percent_interval
from darkmatter.sae import TrainConfig
from darkmatter.sandbox.truth import Truth, true_shares, truth_tokens

_PRODUCTS = 8
"""Products of a training step in units of the encoder's, roughly: encode, decode, their gradients, the optimiser."""


def run_replicates(options: DataOptions, *, seeds: str | None, recipes: Sequence[str]) -> None:
    """Compare SAEs, and write replicates.json and replicates.png.

    Args:
        options: The shared options.
        seeds: Seeds to train the SAE of a world with.
        recipes: ``NAME=LABEL``.

    Raises:
        InputError: Fewer than two SAEs, or options that contradict each other.
    """
    with steps() as bars:
        if seeds is not None:
            options = _with_seeds(options, _parse_seeds(seeds), bars)
        data = open_data(options, bars)
        labels = _labels(recipes)
        check_count(data.source.names)
        check_recipes(labels, data.source.names)
        read = read_recipes(data.source, data.saes)
        result = bracket_moments(data.moments(bars), read=read, recipes=labels)
        truth = _truth(data, bars) if data.world is not None else {}

    def draw(path: Path) -> None:
        from darkmatter.plots_analyses.replicates import save_replicates_figure

        save_replicates_figure(path, result, truth)

    more = {"truth": truth} if truth else {}
    finish("replicates", result, data, draw=draw, show=lambda: _show(result, truth), more=more)


def _parse_seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--seeds is {text!r}, expected whole numbers such as 0,1,2") from None
    if len(seeds) < 2 or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(f"--seeds is {text!r}, expected at least two different seeds of 0 or more, such as 0,1,2")
    return seeds


def _labels(recipes: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in recipes:
        name, _, label = text.partition("=")
        if not name or not label or name in found:
            raise InputError(f"--recipe {text!r}, expected NAME=LABEL, every NAME once")
        found[name] = label
    return found


def _with_seeds(options: DataOptions, seeds: Sequence[int], bars: Steps) -> DataOptions:
    """Train what is missing, after saying what it costs, and name all of it as ``--sae``.

    Raises:
        InputError: No world, SAEs beside --seeds, or a surgical SAE.
    """
    if kind_of(options) != "world" or options["sae"] or options["sae_glob"]:
        raise InputError("--seeds trains the SAE of a --world, expected --world without --sae and --sae-glob")
    experiment, folder = find_experiment(options["world"])
    config = experiment.sae
    if not isinstance(config, TrainConfig):
        raise InputError(
            f"--seeds trains the SAE of a world, but the SAE of {options['world']} is surgical: choose another --world"
        )
    places = {seed: options["out"] / "saes" / f"seed-{seed}" for seed in seeds}
    if folder is not None and config.seed in places and (folder / "sae").is_dir():
        places[config.seed] = folder  # the run's own SAE
    missing = [seed for seed, place in places.items() if not (place / "sae" / "cfg.json").exists()]
    if missing:
        seconds = len(missing) * _seconds(config, experiment.world.d_model)
        say(
            f"Training {len(missing)} SAE(s), seeds {', '.join(map(str, missing))}, on {config.n_tokens:,} tokens "
            f"each: very roughly {max(1, round(seconds))} s here. They stay in {options['out'] / 'saes'}."
        )
    for seed, place in places.items():
        trained_sae(experiment.world, replace(config, seed=seed), folder=place, bars=bars)
    named = [f"seed-{seed}={place / 'sae'}" for seed, place in places.items()]
    return DataOptions(options.command, {**options.values, "sae": named}, options.given)


def _seconds(config: TrainConfig, d_model: int) -> float:
    """Rough training time, from one product of the encoder's size on this machine."""
    x, weight = torch.ones(config.batch_size, d_model), torch.ones(d_model, config.d_sae)
    best = float("inf")
    for _ in range(3):  # the first call starts threads; others share the machine
        start = time.perf_counter()
        x @ weight
        best = min(best, time.perf_counter() - start)
    return _PRODUCTS * best * config.n_tokens / config.batch_size


def _truth(data: Data, bars: Steps) -> Mapping[str, Any]:
    """True introduced share of every SAE and control that is a function of x, from the world's factors (T3)."""
    assert data.world is not None
    saes: dict[str, Any] = dict(data.saes)
    if data.surgical is not None:
        saes = {"surgical": data.surgical}
    n_tokens = truth_tokens(data.world, None)
    found: dict[str, Truth] = {}
    for name, sae in saes.items():
        with bars.stage(f"truth {name}", n_tokens) as stage:
            try:
                found[name] = true_shares(data.world, sae, n_tokens=n_tokens, progress=stage)
            except InputError as error:  # too many factors for this machine
                say(f"No truth for {name}: {error}")
    return {name: {"introduced": t.introduced, "interference": t.interference} for name, t in found.items()}


def _show(result: ReplicateBracket, truth: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table(title="introduced error of every SAE, shares of Var x", title_justify="left", header_style="bold")
    for column in ("SAE", "lower", "by", "upper", "bracket", *(["truth"] if truth else [])):
        table.add_column(column, justify="left" if column in {"SAE", "by"} else "right", no_wrap=True)
    for name, sae in result.saes.items():
        lower = "" if sae.lower_from == "none" else percent(sae.lower_end.value)
        source = {"none": "", "unshared": "replicates", "instrument": sae.with_saes[0] if sae.with_saes else ""}
        bracket = "control" if sae.control else f"[{percent(sae.low)[:-2]}, {percent(sae.high)[:-2]}] %"
        known = [percent(truth[name]["introduced"].value) if name in truth else ""] if truth else []
        row = [name, lower, source[sae.lower_from], percent(sae.upper_end.value), bracket, *known]
        table.add_row(*row, style="dim" if sae.control else None)
    table.caption = "lower end: under T8's conditions; upper end: always (T3)"
    table.caption_justify = "left"
    console.print(table)
    console.print(_pairs(result))
    for found in result.sets:
        console.print(
            f"{len(found.saes)} SAEs of one recipe ({found.recipe}): unshared {percent_interval(found.unshared)}, "
            f"correlation {found.correlation:.2f}. Unless their interferences differ by more than their introduced "
            f"errors have in common, they introduce on average between {percent(found.low)} and {percent(found.high)} "
            "of the variance.",
            style="bold",
            markup=False,
        )
    for warning in result.warnings:
        console.print(f"Warning: {warning}", style="yellow", markup=False)


def _pairs(result: ReplicateBracket) -> Table:
    table = Table(title="pairs", title_justify="left", header_style="bold")
    for column in ("pair", "kind", "corr.", "unshared", "corrected", "instruments"):
        table.add_column(column, justify="left" if column in {"pair", "kind"} else "right")
    for pair in result.pairs:
        if pair.kind == "control":
            continue
        kind = pair.kind if pair.wider is None else f"{pair.wider} is wider"
        shown = [percent(e.value) for e in (pair.unshared, pair.corrected)]
        both = [
            "–" if e.value != e.value else percent(e.value)[:-2]
            for e in (pair.instrument_first, pair.instrument_second)
        ]
        row = [f"{pair.first} | {pair.second}", kind, f"{pair.correlation.value:.2f}", *shown, f"{' | '.join(both)} %"]
        table.add_row(*row)
    table.caption = "which number is a lower end depends on the kind: replicates.json, pairs, read"
    table.caption_justify = "left"
    return table
