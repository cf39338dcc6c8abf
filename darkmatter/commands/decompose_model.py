"""`darkmatter decompose` on a model, or on its stored activations: from options to results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from darkmatter.adapters import LoadedSae, ModelActivations, ModelSitesSource, ModelSource
from darkmatter.adapters.caches import CachedActivations, CachedSource, open_activations, write_cache
from darkmatter.adapters.paper_sums import TRAIN_TOKENS
from darkmatter.adapters.protocol import PAPER, paper_protocol_source
from darkmatter.adapters.saes.hooks import same_place
from darkmatter.adapters.sites import device_of
from darkmatter.batch import BatchSource, SitesSource
from darkmatter.commands.console import say, steps
from darkmatter.commands.decompose import Run, alone, decompose_in_groups, decompose_source, finish, processes
from darkmatter.commands.model_options import ModelOptions
from darkmatter.commands.preflight_model import run_preflight
from darkmatter.commands.sae_choice import Sorted, by_site, choose_saes, load_saes, notes_of
from darkmatter.distributed import total
from darkmatter.errors import InputError

PAPER_SEED = 0
"""Seed of the paper's split of tokens."""

PAPER_TOKENS = 300 * 823
"""Tokens of the paper's 300 contexts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeOptions:
    """Which SAEs, and what is done before they are decomposed.

    Attributes:
        saes: ``NAME=LOCATION`` or ``LOCATION``.
        pattern: Pattern of locations.
        sites: ``NAME=SITE``, where one is to be said.
        family: Family of all of them; None recognises it.
        preflight: Check a few batches first.
        force: Go on where a check says stop.
        write_cache: Folder to write x to before anything else; the run then reads it from there.
    """

    saes: Sequence[str]
    pattern: str | None = None
    sites: Sequence[str] = ()
    family: str | None = None
    preflight: bool = True
    force: bool = False
    write_cache: Path | None = None


def run_cache(place: str, docs: Path | None, chosen: SaeOptions, run: Run) -> None:
    """Decompose SAEs on stored activations.

    Args:
        place: Folder of a cache, or array files.
        docs: Document ids of array files.
        chosen: The SAEs.
        run: How.
    """
    alone("--cache")
    places = choose_saes(chosen.saes, chosen.pattern)
    stream = open_activations(place, docs=docs)
    run = replace(run, total=_whole(stream.description.get("n_tokens")))
    notes: dict[str, Any] = {}

    def make(names: tuple[str, ...]) -> CachedSource:
        saes = load_saes({name: places[name] for name in names}, family=chosen.family, device=run.device)
        notes.update(notes_of(saes))
        source = CachedSource(stream, {name: sae.sae for name, sae in saes.items()}, notes_of(saes), device=run.device)
        remark(saes, stream.description.get("site"))
        return source

    names = tuple(places)
    if run.memory is None:
        results = decompose_source(make(names), run)
    else:
        results = decompose_in_groups(make, names, stream.d_model, run)
    finish(results, {**stream.description, "saes": notes}, run)


def run_model(options: ModelOptions, sites: Sequence[str], chosen: SaeOptions, run: Run) -> None:
    """Decompose SAEs on a model's activations, in one process or in those that torchrun started.

    Args:
        options: The model and its text.
        sites: Where to read it.
        chosen: The SAEs.
        run: How.

    Raises:
        InputError: Options that exclude each other.
    """
    places = choose_saes(chosen.saes, chosen.pattern)
    paper = options.protocol == PAPER.name
    for option, used in (("--memory", run.memory), ("--write-cache", chosen.write_cache), ("--protocol paper", paper)):
        if used and len(sites) > 1:
            raise InputError(f"{option} is for one site, but {len(sites)} are given: start one run per --site")
    if paper and run.memory is not None:
        raise InputError("--protocol paper needs all SAEs in one pass: leave --memory out, or give fewer SAEs")
    with processes(options.device) as (rank, size, device):
        if size > 1 and (chosen.write_cache is not None or paper):
            raise InputError("--write-cache and --protocol paper are for one process: start without torchrun")
        options = replace(options, device=device)
        activations = options.activations(sites, rank=rank, size=size)
        beside = str(device_of(activations.loaded.model, activations.sites[0])) if device == "auto" else device
        run = replace(run, device=beside, total=activations.n_tokens or options.max_tokens)
        model = _OnModel(activations, options, places, chosen, run, sharded=size > 1, quiet=rank > 0)
        results, source, more = model.results()
        if rank == 0:
            finish(results, source, run, more=more)


class _OnModel:
    """One run on a model: makes sources, checks them once, keeps what the report says about them."""

    def __init__(
        self,
        activations: ModelActivations,
        options: ModelOptions,
        places: Mapping[str, str],
        chosen: SaeOptions,
        run: Run,
        *,
        sharded: bool,
        quiet: bool,
    ) -> None:
        self._activations, self._options, self._places = activations, options, places
        self._chosen, self._run, self._sharded, self._quiet = chosen, run, sharded, quiet
        self._cached: CachedActivations | None = None
        self._notes: dict[str, Any] = {}
        self._more: dict[str, Any] = {"protocol": options.settings().description["protocol"]}

    def results(self) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
        """Decompositions, the description of the source, and further keys of the report."""
        names, site = tuple(self._places), self._activations.sites[0]
        if self._run.memory is not None:
            width = self._activations.widths[site]
            found = decompose_in_groups(self._one_site, names, width, self._run, sharded=self._sharded)
        else:
            source = self._one_site(names) if len(self._activations.sites) == 1 else self._all_sites()
            found = decompose_source(source, self._run, sharded=self._sharded)
            self._paper(source, next((result.n_tokens for result in found.values()), 0))
        return found, {**self._activations.description, **self._outcome(), "saes": self._notes}, self._more

    def _outcome(self) -> Mapping[str, int]:
        """Documents and positions kept and dropped, in the shares of all processes."""
        if not self._activations.outcome:  # finished groups, or a finished cache, spared this process the pass
            for _ in self._activations.sequences:
                pass
        return total(self._activations.outcome) if self._sharded else self._activations.outcome

    def _one_site(self, names: tuple[str, ...]) -> BatchSource:
        loaded = self._load(names)
        site = str(self._activations.sites[0])
        by_site(loaded, [site], self._chosen.sites)
        notes = notes_of(loaded)
        self._notes.update(notes)
        saes = {name: sae.sae for name, sae in loaded.items()}
        source = ModelSource(activations=self._activations, saes=saes, notes=notes)
        self._check(source, {site: loaded})
        self._cache()
        return source if self._cached is None else CachedSource(self._cached, saes, notes, device=self._run.device)

    def _all_sites(self) -> SitesSource:
        loaded = self._load(tuple(self._places))
        sites = [str(site) for site in self._activations.sites]
        sorted_saes = by_site(loaded, sites, self._chosen.sites)
        notes = {site: notes_of(saes) for site, saes in sorted_saes.items()}
        self._notes.update(notes)
        saes = {site: {name: sae.sae for name, sae in members.items()} for site, members in sorted_saes.items()}
        source = ModelSitesSource(activations=self._activations, saes=saes, notes=notes)
        self._check(source, sorted_saes)
        return source

    def _load(self, names: tuple[str, ...]) -> dict[str, LoadedSae]:
        places = {name: self._places[name] for name in names}
        return load_saes(places, family=self._chosen.family, device=self._run.device)

    def _check(self, source: ModelSource | ModelSitesSource, saes: Sorted) -> None:
        if self._quiet:
            return
        for site, members in saes.items():
            remark(members, None if self._chosen.preflight else site)  # the preflight speaks of sites itself
        if self._chosen.preflight:
            found = run_preflight(source, force=self._chosen.force)
            self._more.setdefault("preflight", []).append(found)

    def _cache(self) -> None:
        if self._chosen.write_cache is None or self._cached is not None:
            return
        with steps() as bars, bars.stage("write cache", self._run.total) as stage:
            self._cached = write_cache(self._activations, self._chosen.write_cache, progress=stage, announce=say)

    def _paper(self, source: BatchSource | SitesSource, n: int) -> None:
        """The authors' numbers on the same tokens, where their protocol was asked for."""
        if self._options.protocol != PAPER.name:
            return
        assert not isinstance(source, SitesSource), "refused before the pass"
        fitted = TRAIN_TOKENS
        if n <= fitted:  # the share of the tokens that the authors fitted on
            fitted = max(1, round(n * TRAIN_TOKENS / PAPER_TOKENS))
            say(f"Warning: {n:,} tokens are fewer than the paper's {PAPER_TOKENS:,}: {fitted:,} are fitted on.")
        found = paper_protocol_source(source, n_tokens=n, seed=PAPER_SEED, train_tokens=fitted)
        self._more["paper"] = found


def remark(saes: Mapping[str, LoadedSae], site: Any) -> None:
    """Say what is out of the ordinary of SAEs, once all is well: an error is to be one line.

    Args:
        saes: The SAEs.
        site: Where they are used; None where a preflight speaks of it.
    """
    for name, sae in saes.items():
        if isinstance(site, str) and sae.site is not None and not same_place(sae.site, site):
            say(f"Warning: {name} was made for {sae.site} according to its files, not for {site}.")
        if sae.sae.input_norm is not None:
            say(f"Note on {name}: {sae.normalisation}")


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None
