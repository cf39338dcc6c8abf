"""A model's activations joined with SAEs: sources of batches, for one site or for several in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darkmatter.adapters.activations import ModelActivations, model_activations
from darkmatter.adapters.documents import open_text
from darkmatter.adapters.hf import load_model
from darkmatter.adapters.positions import PositionPolicy
from darkmatter.adapters.run_saes import Sae, SaeRunner, check_saes, joined
from darkmatter.adapters.sites import Site, parse_site
from darkmatter.adapters.tokens import Bos
from darkmatter.batch import Batch, check_header
from darkmatter.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class ModelSource:
    """A `ResumableSource`: a model's activations at one site and what each SAE makes of them.

    An SAE that says where it is (`device`, or a module's parameters) is moved to the device of the site's module.
    Where an SAE does not fit in memory with all tokens of a batch, it is given fewer at a time.

    Attributes:
        activations: The stream of activations.
        saes: SAEs by name; each maps x (n, d_model) to its reconstruction.
        notes: Facts about the SAEs for the report.

    Raises:
        InputError: No SAE, a bad name, something that cannot be called, or an SAE of another width.
    """

    activations: ModelActivations
    saes: Mapping[str, Sae]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_saes(self.saes, self.d_model, f"{self.activations.site} of {self.activations.loaded.name}")
        check_header(self)

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.activations.d_model

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the SAEs."""
        return tuple(self.saes)

    @property
    def description(self) -> Mapping[str, Any]:
        """The activations' description, and `notes` under ``saes``."""
        return {**self.activations.description, "saes": dict(self.notes)}

    @property
    def outcome(self) -> Mapping[str, int]:
        """Documents and positions kept and dropped in the last whole pass; empty before one."""
        return self.activations.outcome

    def __iter__(self) -> Iterator[Batch]:
        """Yield every batch, from the first document on."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[Batch]:
        """Yield batch number `start` and those after it; no forward pass is run for earlier ones."""
        runner = SaeRunner(self.saes)
        for found in self.activations.batches_from(start):
            yield joined(found, runner)


@dataclass(frozen=True, slots=True, eq=False)
class ModelSitesSource:
    """A `SitesSource`: activations at several sites, read in one forward pass, and what each site's SAEs make of them.

    Attributes:
        activations: The stream of activations.
        saes: SAEs by site (as `str(site)` writes it) and name.
        notes: Facts about the SAEs for the report, by site and name.

    Raises:
        InputError: Other sites than the activations', no SAE at one, a bad name, something that cannot be called, or
            an SAE of another width.
    """

    activations: ModelActivations
    saes: Mapping[str, Mapping[str, Sae]]
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.saes) != set(self.sites):
            raise InputError(f"SAEs are given for {sorted(self.saes)}, expected for {sorted(self.sites)}")
        for site in self.activations.sites:
            saes = self.saes[str(site)]
            if not saes or not all(isinstance(name, str) and name for name in saes):
                raise InputError(f"{site} has SAEs {list(saes)!r}, expected at least one, each with a name")
            check_saes(saes, self.activations.widths[site], f"{site} of {self.activations.loaded.name}")

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(map(str, self.activations.sites))

    @property
    def widths(self) -> Mapping[str, int]:
        """Activation width by site."""
        return {str(site): self.activations.widths[site] for site in self.activations.sites}

    @property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the SAEs by site."""
        return {site: tuple(self.saes[site]) for site in self.sites}

    @property
    def description(self) -> Mapping[str, Any]:
        """The activations' description, and `notes` under ``saes``."""
        return {**self.activations.description, "saes": {site: dict(notes) for site, notes in self.notes.items()}}

    @property
    def outcome(self) -> Mapping[str, int]:
        """Documents and positions kept and dropped in the last whole pass; empty before one."""
        return self.activations.outcome

    def __iter__(self) -> Iterator[Mapping[str, Batch]]:
        """Yield every batch, from the first document on."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[Mapping[str, Batch]]:
        """Yield batch number `start` of every site and those after it; no forward pass is run for earlier ones."""
        runners = {site: SaeRunner(self.saes[str(site)]) for site in self.activations.sites}
        for found in self.activations.site_batches_from(start):
            yield {str(site): joined(found[site], runner) for site, runner in runners.items()}


def model_source(
    model_dir: Path | str,
    site: Site | str,
    text_path: Path | str,
    saes: Mapping[str, Sae],
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    context_length: int = 128,
    batch_docs: int = 16,
    skip_first: int | None = None,
    positions: PositionPolicy | None = None,
    max_tokens: int | None = None,
    bos: Bos = "prepend",
    notes: Mapping[str, Any] | None = None,
) -> ModelSource:
    """Make a source from a model folder (or hub id), a site, a text and SAEs; see the functions it calls.

    Args:
        model_dir: Folder or hub id, for `load_model`.
        site: Where to read the model, such as ``resid_post:2``.
        text_path: The text, for `open_text`.
        saes: SAEs by name.
        revision: Revision of the model on the hub.
        dtype: Precision of the model.
        device: Torch device of the model.
        context_length: Longest sequence, in tokens, BOS included.
        batch_docs: Documents in a batch.
        skip_first: Positions to drop at the start of every document; None drops BOS.
        positions: Which positions count, instead of `skip_first`.
        max_tokens: Keep exactly this many tokens, if there are as many.
        bos: Whether to prepend BOS.
        notes: Facts about the SAEs for the report.

    Returns:
        The source.
    """
    place = parse_site(site) if isinstance(site, str) else site
    documents = open_text(text_path)  # before the model: a bad path should fail at once
    activations = model_activations(
        load_model(model_dir, revision=revision, dtype=dtype, device=device),
        place,
        documents,
        context_length=context_length,
        batch_docs=batch_docs,
        skip_first=skip_first,
        positions=positions,
        max_tokens=max_tokens,
        bos=bos,
    )
    return ModelSource(activations=activations, saes=saes, notes=notes or {})
