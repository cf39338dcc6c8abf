"""A model's activations joined with SAEs: a source of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darkmatter.adapters.activations import ModelActivations, model_activations
from darkmatter.adapters.hf import load_model
from darkmatter.adapters.sites import Site, parse_site
from darkmatter.adapters.text import read_documents
from darkmatter.batch import Batch, check_header
from darkmatter.errors import InputError

Sae = Callable[[Tensor], Tensor]
"""Anything that maps activations (n, d_model) to reconstructions (n, d_model)."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelSource:
    """A `ResumableSource`: a model's activations and what each SAE makes of them.

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
        for name, sae in self.saes.items():
            if not callable(sae):
                raise InputError(f"SAE {name!r} is a {type(sae).__name__}, expected a callable x -> reconstruction")
            width = getattr(sae, "d_model", None)
            if isinstance(width, int) and width != self.d_model:
                raise InputError(
                    f"SAE {name!r} has d_model {width}, but {self.activations.site} of {self.activations.loaded.name} "
                    f"has {self.d_model}: choose the SAE of this model and site"
                )
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

    def __iter__(self) -> Iterator[Batch]:
        """Yield every batch, from the first document on."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[Batch]:
        """Yield batch number `start` and those after it; no forward pass is run for earlier ones."""
        for batch in self.activations.batches_from(start):
            with torch.no_grad():
                recons = {name: sae(batch.x) for name, sae in self.saes.items()}
            yield Batch(x=batch.x, recons=recons, groups=batch.groups)


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
    skip_first: int = 1,
    max_tokens: int | None = None,
    bos: bool = True,
    notes: Mapping[str, Any] | None = None,
) -> ModelSource:
    """Make a source from a model folder (or hub id), a site, a text file and SAEs; see the functions it calls.

    Args:
        model_dir: Folder or hub id, for `load_model`.
        site: Where to read the model, such as ``resid_post:2``.
        text_path: The text, for `read_documents`.
        saes: SAEs by name.
        revision: Revision on the hub.
        dtype: Precision of the model.
        device: Torch device of the model; the SAEs must live there too.
        context_length: Longest sequence, in tokens, BOS included.
        batch_docs: Documents per forward pass.
        skip_first: Positions to drop at the start of every document.
        max_tokens: Keep exactly this many tokens, if there are as many.
        bos: Whether to prepend BOS.
        notes: Facts about the SAEs for the report.

    Returns:
        The source.
    """
    place = parse_site(site) if isinstance(site, str) else site
    documents = read_documents(text_path)  # before the model: a bad path should fail at once
    activations = model_activations(
        load_model(model_dir, revision=revision, dtype=dtype, device=device),
        place,
        documents,
        context_length=context_length,
        batch_docs=batch_docs,
        skip_first=skip_first,
        max_tokens=max_tokens,
        bos=bos,
        text=Path(text_path).name,
    )
    return ModelSource(activations=activations, saes=saes, notes=notes or {})
