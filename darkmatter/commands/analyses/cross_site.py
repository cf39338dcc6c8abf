"""`darkmatter cross-site`: several sites of a model, or a world seen at three, in; report and figure out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from darkmatter.adapters import parse_site
from darkmatter.analyses.cross_site import Beside, CrossSite, ErrorExplained, Kind, cross_site_errors
from darkmatter.analyses.cross_site.run import DEFAULT_CONTROLS
from darkmatter.batch import OneSite, SitesSource
from darkmatter.cli_data import DataOptions
from darkmatter.commands.analyses.data import Data, SitesData, kind_of, open_sites
from darkmatter.commands.analyses.finish import finish
from darkmatter.commands.analyses.worlds import find_experiment
from darkmatter.commands.console import steps
from darkmatter.commands.decompose import alone
from darkmatter.commands.preflight import check_choice, check_run
from darkmatter.errors import InputError
from darkmatter.inference import Estimate
from darkmatter.plots_analyses.cross_site import save_cross_site_figure
from darkmatter.report import percent, percent_interval
from darkmatter.sae import SAE
from darkmatter.sandbox.sites import Sites, SitesTruth
from darkmatter.sandbox.sites_source import TARGET

_STAGES = ("resid_pre", "attn_z", "mlp_out", "resid_post")
"""Kinds of site in the order in which a block computes them."""

_SAE_OPTIONS = ("sae", "sae-glob", "family")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What the command works on.

    Attributes:
        data: For the report.
        source: The sites.
        target: The site whose error is explained.
        saes: Weights by site and name, of a model.
        world: The sites with their population values, of a world.
    """

    data: Data | SitesData
    source: SitesSource
    target: str
    saes: Mapping[str, Mapping[str, SAE]]
    world: Sites | None = None


def run_cross_site(options: DataOptions, *, target: str | None, beside: str) -> None:
    """Open the sites, explain the error at the target, write and print.

    Args:
        options: The shared options.
        target: Site whose error is explained; None for the last.
        beside: "x" or "all".

    Raises:
        InputError: Options that contradict each other, or anything that the analysis refuses.
    """
    check_choice("beside", beside, get_args(Beside))
    base: Beside = "all" if beside == "all" else "x"
    controls = _controls(options["control"] or ())
    opened = (
        _of_world(options, target) if kind_of(options, ("world", "model")) == "world" else _of_model(options, target)
    )
    data = opened.data
    with (
        steps() as bars,
        bars.stage("products", data.n_tokens) as stage,
        bars.stage("fits", data.folds, unit="folds") as fits,
    ):
        result = cross_site_errors(
            opened.source,
            target=opened.target,
            saes=opened.saes,
            controls=controls,
            beside=base,
            folds=data.folds,
            seed=data.seed,
            device=data.device,
            progress=stage,
            fitted=fits,
        )
    truth = None if opened.world is None else opened.world.population(beside=base)
    finish(
        "cross-site",
        result,
        data,
        draw=lambda path: save_cross_site_figure(path, result, None if truth is None else truth.rows),
        show=lambda: show_cross_site(result, truth),
        more={} if truth is None else {"truth": truth},
    )


def show_cross_site(result: CrossSite, truth: SitesTruth | None = None) -> None:
    """Print a table per SAE of the target, then warnings and a sentence.

    Args:
        result: The result.
        truth: Population values, where they are known.
    """
    console = Console(highlight=False)
    for found in result.saes.values():
        console.print(_table(result, found, truth))
        if len(result.kinds) > 1:
            console.print(_contrasts(result, found))
        console.print(_sentence(result, found), style="bold", markup=False)
    for warning in result.warnings:
        console.print(f"Warning: {warning}", style="yellow", markup=False)


def _controls(names: Sequence[str]) -> tuple[Kind, ...]:
    """Raw activations, and the controls that are asked for."""
    for name in names:
        check_choice("control", name, ("shuffled", "noise", "random", "all"))
    if not names:
        return DEFAULT_CONTROLS
    known: tuple[Kind, ...] = ("random", "shuffled", "noise")
    return ("raw", *(kind for kind in known if kind in names or "all" in names))


def _of_world(options: DataOptions, target: str | None) -> _Opened:
    alone(f"darkmatter {options.command}")
    check_run(folds=options["folds"], out=options["out"])
    mine = sorted(set(options.given) & set(_SAE_OPTIONS))
    if mine:
        raise InputError(
            f"--{mine[0]} has no meaning with --world here: its three sites have surgical SAEs; leave it out"
        )
    if target not in (None, TARGET):
        raise InputError(f"--target is {target}, expected {TARGET} on a world: leave it out")
    experiment, _ = find_experiment(options["world"])
    sites = Sites(world=experiment.world, seed=options["seed"])
    n_tokens = options["max_tokens"] or experiment.n_tokens
    source = sites.pair(n_tokens=n_tokens)
    data = Data(
        source=OneSite(source, TARGET),
        saes={},
        folds=options["folds"],
        seed=options["seed"],
        out=options["out"],
        as_json=options["as_json"],
        n_tokens=n_tokens,
        world=experiment.world,
    )
    return _Opened(data=data, source=source, target=TARGET, saes={}, world=sites)


def _of_model(options: DataOptions, target: str | None) -> _Opened:
    given = options["site"] or []
    if len(given) < 2:
        raise InputError(f"got {len(given)} --site, expected the target and at least one earlier site")
    places = [str(parse_site(site)) for site in given]
    place = places[-1] if target is None else str(parse_site(target))
    if place not in places:
        raise InputError(f"--target is {place}, expected one of the sites {', '.join(places)}")
    for other in places:
        if other != place and not _before(other, place):
            raise InputError(
                f"{other} is not before {place} in the model: give the target with --target, or another site"
            )
    data = open_sites(options)
    return _Opened(data=data, source=data.source, target=place, saes=data.saes)


def _before(first: str, second: str) -> bool:
    """Whether a site can be computed before another; of modules by path nothing is known."""
    a, b = parse_site(first), parse_site(second)
    if "module" in {a.kind, b.kind}:
        return True
    return (a.layer, _STAGES.index(a.kind)) < (b.layer, _STAGES.index(b.kind))


def _table(result: CrossSite, found: ErrorExplained, truth: SitesTruth | None) -> Table:
    table = Table(
        title=f"{result.target}, {found.name}: how much of the error e, and of its nonlinear part r, is linear in B",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("B", no_wrap=True)
    table.add_column("of", no_wrap=True)
    for name in ("% of e, B alone", f"% of r, beside {'x' if result.beside == 'x' else 'all x'}"):
        table.add_column(name, justify="right", no_wrap=True)
    if truth is not None:
        table.add_column("truth", justify="right", no_wrap=True)
    for row in found.rows:
        true = None if truth is None else truth.rows.get(f"{row.kind} {row.regressors}")
        known = [] if truth is None else ["–" if true is None else percent(true["share_nonlinear"])[:-2]]
        style = None if row.kind == "sae" else "dim"
        cells = [_shown(value) for value in (row.r2_alone, row.share_nonlinear)]
        table.add_row(_NAMES[row.kind], row.regressors, *cells, *known, style=style)
    table.caption = (
        f"FVU {percent_interval(found.fvu)}, R² of e on x {found.r2_x:.3f}"
        f"{'' if result.beside == 'x' else f', on x of all sites {found.r2_base:.3f}'}; {result.n_tokens:,} tokens, "
        f"{result.n_groups:,} documents, {result.n_folds} folds"
    )
    table.caption_justify = "left"
    return table


_NAMES: dict[Kind, str] = {
    "sae": "SAE outputs",
    "raw": "raw x",
    "random": "random",
    "shuffled": "shuffled",
    "noise": "noise",
}


def _contrasts(result: CrossSite, found: ErrorExplained) -> Table:
    table = Table(title="SAE outputs less a control: % of r", title_justify="left", header_style="bold")
    table.add_column("of", no_wrap=True)
    for kind in result.kinds[1:]:
        table.add_column(_NAMES[kind], justify="right")
    for row in found.rows:
        if row.over:
            table.add_row(row.regressors, *(_shown(row.over[kind].share_nonlinear) for kind in result.kinds[1:]))
    return table


def _shown(estimate: Estimate) -> str:
    return "–" if math.isnan(estimate.value) else percent_interval(estimate).replace(" %", "", 1)


def _sentence(result: CrossSite, found: ErrorExplained) -> str:
    """What was found about all earlier sites together."""
    row = next(row for row in reversed(found.rows) if row.kind == "sae")
    if math.isnan(row.share_nonlinear.value):
        return f"{found.name} has no nonlinear error to explain on these tokens."
    text = (
        f"SAE outputs of {' and '.join(result.earlier)} explain {percent_interval(row.share_nonlinear)} of the "
        f"nonlinear error of {found.name} at {result.target} beside x{'' if result.beside == 'x' else ' of all sites'}"
    )
    against: list[Any] = [
        f"{_NAMES[kind]} {percent(found.row(row.regressors, kind).share_nonlinear.value)}" for kind in result.kinds[1:]
    ]
    return text + (f"; in their place, {', '.join(against)}." if against else ".")
