"""From the shared options of an analysis to a source: a world, a model, stored activations, or arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from darkmatter.adapters import LoadedSae, ModelActivations, ModelSitesSource, ModelSource, files_source
from darkmatter.adapters.caches import CachedSource, open_activations
from darkmatter.analyses.controls import CONTROLS, Control, with_controls
from darkmatter.batch import BatchSource, SitesSource
from darkmatter.cli_data import DataOptions
from darkmatter.commands.analyses.worlds import find_experiment, world_saes
from darkmatter.commands.console import Steps, say
from darkmatter.commands.decompose import alone
from darkmatter.commands.decompose_model import remark
from darkmatter.commands.model_options import ModelOptions
from darkmatter.commands.named_paths import named_paths
from darkmatter.commands.preflight import check_choice, check_run
from darkmatter.commands.preflight_model import run_preflight
from darkmatter.commands.sae_choice import by_site, choose_saes, load_saes, notes_of
from darkmatter.errors import InputError
from darkmatter.folds import FoldMoments
from darkmatter.sae import SAE
from darkmatter.sandbox import Surgical, World
from darkmatter.store import Checkpoint
from darkmatter.stream import accumulate

_KINDS = {"world": "--world", "model": "--model", "cache": "--cache", "acts": "--acts"}
_WHERE = ("sae", "sae-glob", "family")
_TEXT: tuple[str, ...] = ("tokens", "pad-id", "column", "subset", "split", "text", "text-revision", "protocol")
_KEPT: tuple[str, ...] = ("context-length", "bos", "skip-first", "skip-last", "keep-special", "norm-filter")
_KEPT += ("min-length", "max-documents", "pack")
_MODEL = (*_TEXT, *_KEPT, "site", "sae-site", "revision", "dtype", "batch-docs", "preflight", "force")
_MEANINGLESS = {
    "world": (*_MODEL, "recon", "docs", "device"),
    "model": ("recon", "docs"),
    "cache": (*_MODEL, "recon", "max-tokens"),
    "acts": (*_MODEL, *_WHERE, "max-tokens", "device"),
}
"""Options that each kind of data would ignore."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Data:
    """What an analysis works on.

    Attributes:
        source: Tokens with the reconstructions of every SAE and control.
        saes: Weights of the SAEs, of the random control too, where they are known (not of arrays, not of a surgical
            SAE).
        folds: Document folds.
        seed: Seed of what the analysis draws.
        out: Folder to write.
        as_json: Print the report instead of tables.
        device: Where sums live.
        n_tokens: Tokens of one pass, where they are known.
        activations: The model's stream, of a model.
        world: The world, of a world.
        surgical: The surgical SAE, where the world's is one.
        notes: Further keys of the report, such as ``preflight``.
    """

    source: BatchSource
    saes: Mapping[str, SAE]
    folds: int
    seed: int
    out: Path
    as_json: bool
    device: str = "cpu"
    n_tokens: int | None = None
    activations: ModelActivations | None = None
    world: World | None = None
    surgical: Surgical | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the sums of a first pass are saved while it runs; removed by `finish`."""
        return Checkpoint(self.out / "checkpoint")

    def moments(self, bars: Steps) -> FoldMoments:
        """The first pass of every analysis that needs moments, resumable, with its bar."""
        with bars.stage("moments", self.n_tokens) as stage:
            return accumulate(
                self.source, folds=self.folds, device=self.device, checkpoint=self.checkpoint, progress=stage
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SitesData:
    """What an analysis of several sites works on; see `Data`."""

    source: SitesSource
    saes: Mapping[str, Mapping[str, SAE]]
    folds: int
    seed: int
    out: Path
    as_json: bool
    device: str
    n_tokens: int | None
    activations: ModelActivations
    notes: Mapping[str, Any] = field(default_factory=dict)


def kind_of(options: DataOptions, known: Sequence[str] = tuple(_KINDS)) -> str:
    """Which kind of data the options name.

    Args:
        options: The options.
        known: Kinds that this command takes.

    Returns:
        "world", "model", "cache" or "acts".

    Raises:
        InputError: None or several of them, one that this command does not take, or an option that it would ignore.
    """
    named = [kind for kind in _KINDS if options[kind] is not None]
    wanted = ", ".join(_KINDS[kind] for kind in known)
    if len(named) != 1:
        got = " and ".join(_KINDS[kind] for kind in named) or "none of them"
        raise InputError(f"got {got}, expected one of {wanted}: it says where the activations come from")
    if named[0] not in known:
        raise InputError(f"{options.command} cannot work on {_KINDS[named[0]]}, expected one of {wanted}")
    meaningless = sorted(set(options.given) & set(_MEANINGLESS[named[0]]))
    if meaningless:
        raise InputError(f"--{meaningless[0]} has no meaning with {_KINDS[named[0]]}: leave it out")
    return named[0]


def open_data(
    options: DataOptions, bars: Steps, *, known: Sequence[str] = tuple(_KINDS), weights: bool = False
) -> Data:
    """Open what the options name; everything that can be checked is checked before any long work.

    Args:
        options: The shared options.
        bars: Progress, for an SAE that has to be trained on a preset's world.
        known: Kinds of data that this command takes.
        weights: The analysis needs the weights of every SAE.

    Returns:
        The data.

    Raises:
        InputError: Options that contradict each other, or something that cannot be opened.
    """
    alone(f"darkmatter {options.command}")
    kind = kind_of(options, known)
    spread = options["device"] == "auto"
    check_run(folds=options["folds"], out=options["out"], device="cpu" if spread else options["device"])
    kinds = _controls(options["control"] or ())
    made = {"world": _of_world, "model": _of_model, "cache": _of_cache, "acts": _of_arrays}[kind](options, bars)
    unknown = sorted(set(made.source.names) - set(made.saes))
    if weights and unknown:
        raise InputError(f"{options.command} needs the weights of {unknown[0]!r}, which are not known: give --sae")
    if "all" in (options["control"] or ()) and made.source.names[0] not in made.saes:
        kinds = tuple(kind for kind in kinds if kind != "random")
        say(f"No random control: the weights of {made.source.names[0]} are not known.")
    if not kinds:
        return made
    source, saes = with_controls(made.source, made.saes, kinds, seed=made.seed)
    return replace(made, source=source, saes=saes)


def open_sites(options: DataOptions) -> SitesData:
    """Open several sites of a model, read in one forward pass.

    Args:
        options: The shared options; every site has at least one SAE.

    Returns:
        The data.

    Raises:
        InputError: Options that contradict each other, or something that cannot be opened.
    """
    alone(f"darkmatter {options.command}")
    kind_of(options, ("model",))
    check_run(folds=options["folds"], out=options["out"], device=options["device"])
    sites = options["site"] or ()
    loaded, activations = _open_model(options, sites)
    sorted_saes = by_site(loaded, [str(site) for site in activations.sites], options["sae_site"] or ())
    saes = {site: {name: sae.sae for name, sae in members.items()} for site, members in sorted_saes.items()}
    notes = {site: notes_of(members) for site, members in sorted_saes.items()}
    source = ModelSitesSource(activations=activations, saes=saes, notes=notes)
    return SitesData(
        source=source,
        saes=saes,
        folds=options["folds"],
        seed=options["seed"],
        out=options["out"],
        as_json=options["as_json"],
        device=options["device"],
        n_tokens=activations.n_tokens or options["max_tokens"],
        activations=activations,
        notes=_checked(options, source),
    )


def _controls(names: Sequence[str]) -> tuple[Control, ...]:
    for name in names:
        check_choice("control", name, (*CONTROLS, "all"))
    return CONTROLS if "all" in names else tuple(kind for kind in CONTROLS if kind in names)


def _common(options: DataOptions) -> dict[str, Any]:
    return {name: options[name] for name in ("folds", "seed", "out", "as_json")}


def _of_world(options: DataOptions, bars: Steps) -> Data:
    experiment, folder = find_experiment(options["world"])
    given = choose_saes(options["sae"] or (), options["sae_glob"]) if options["sae"] or options["sae_glob"] else {}
    saes: dict[str, Any] = {
        name: sae.sae for name, sae in load_saes(given, family=options["family"], device="cpu").items()
    }
    surgical = None
    if not saes:
        saes, surgical = world_saes(experiment, folder, out=options["out"], bars=bars)
    n_tokens = options["max_tokens"] or experiment.n_tokens
    return Data(
        source=experiment.world.pair(saes, n_tokens=n_tokens),
        saes={name: sae for name, sae in saes.items() if isinstance(sae, SAE)},
        n_tokens=n_tokens,
        world=experiment.world,
        surgical=surgical,
        **_common(options),
    )


def _of_model(options: DataOptions, _: Steps) -> Data:
    sites: list[str] = options["site"] or []
    if len(sites) > 1:
        raise InputError(f"{options.command} is for one site, but {len(sites)} are given: start one run per --site")
    loaded, activations = _open_model(options, sites)
    by_site(loaded, sites, options["sae_site"] or ())
    remark(loaded, None if options["preflight"] else sites[0])
    saes = {name: sae.sae for name, sae in loaded.items()}
    source = ModelSource(activations=activations, saes=saes, notes=notes_of(loaded))
    return Data(
        source=source,
        saes=saes,
        device="cpu" if options["device"] == "auto" else options["device"],
        n_tokens=activations.n_tokens or options["max_tokens"],
        activations=activations,
        notes=_checked(options, source),
        **_common(options),
    )


def _open_model(options: DataOptions, sites: Sequence[str]) -> tuple[dict[str, LoadedSae], ModelActivations]:
    if not sites or (options["text"] is None and options["tokens"] is None):
        raise InputError("--model needs --site, --sae, and --text or --tokens")
    if not (options["sae"] or options["sae_glob"]):
        raise InputError("no SAE is given, expected --sae or --sae-glob")
    if options["bos"] is not None:
        check_choice("bos", options["bos"], ("prepend", "auto", "none"))
    names = ModelOptions.__dataclass_fields__
    values = {name: options[name] for name in names if name != "site"}
    values["keep_special"] = values["keep_special"] or None  # the protocol decides where nothing is said
    places = choose_saes(options["sae"] or (), options["sae_glob"])
    device = "cpu" if options["device"] == "auto" else options["device"]
    loaded = load_saes(places, family=options["family"], device=device)
    return loaded, ModelOptions(site=sites[0], **values).activations(sites)


def _checked(options: DataOptions, source: ModelSource | ModelSitesSource) -> dict[str, Any]:
    return {"preflight": [run_preflight(source, force=options["force"])]} if options["preflight"] else {}


def _of_cache(options: DataOptions, _: Steps) -> Data:
    stream = open_activations(options["cache"], docs=options["docs"])
    if not (options["sae"] or options["sae_glob"]):
        raise InputError("no SAE is given, expected --sae or --sae-glob")
    places = choose_saes(options["sae"] or (), options["sae_glob"])
    loaded = load_saes(places, family=options["family"], device=options["device"])
    saes = {name: sae.sae for name, sae in loaded.items()}
    remark(loaded, stream.description.get("site"))
    known = stream.description.get("n_tokens")
    return Data(
        source=CachedSource(stream, saes, notes_of(loaded), device=options["device"]),
        saes=saes,
        device=options["device"],
        n_tokens=known if isinstance(known, int) else None,
        **_common(options),
    )


def _of_arrays(options: DataOptions, _: Steps) -> Data:
    source = files_source(options["acts"], named_paths(options["recon"] or (), "--recon"), options["docs"])
    known = source.description.get("n_tokens")
    return Data(source=source, saes={}, n_tokens=known if isinstance(known, int) else None, **_common(options))
