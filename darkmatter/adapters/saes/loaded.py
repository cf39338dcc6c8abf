"""What is known of an SAE that was read from files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from darkmatter.sae import SAE

Family = Literal["gemmascope", "saelens", "sparsify", "dictionary_learning", "openai", "darkmatter"]
FAMILIES: tuple[Family, ...] = get_args(Family)
"""Families that can be read; "gemmascope" is both Gemma Scope (.npz) and Gemma Scope 2 (.safetensors)."""


@dataclass(frozen=True, slots=True)
class SaeFiles:
    """The files of one SAE.

    Attributes:
        weights: The file with the weights (for shards, where it would be).
        path: Path in the repository or on disk, with slashes: some releases say site and L0 there and nowhere else.
        revision: Commit of the hub repository; None for local files.
    """

    weights: Path
    path: str
    revision: str | None = None

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.weights.parent


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """What a family's reader makes of its files.

    Attributes:
        fields: Arguments of `SAE`.
        hook: Where the files say that it reads the model, in their own words.
        site: The same as one of our sites, where that is certain.
        l0: Active latents per token that the files advertise.
        model: Name of the model that the files advertise.
        normalisation: What is done to the scale of x, in a sentence; None for nothing.
        scaled: Whether the weights belong to c·x with a constant c that is not folded into them yet.
        input_scale: That c, where the files say it.
        notes: What else was applied, in plain sentences.
    """

    fields: Mapping[str, Any]
    hook: str | None = None
    site: str | None = None
    l0: float | None = None
    model: str | None = None
    normalisation: str | None = None
    scaled: bool = False
    input_scale: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedSae:
    """An SAE with what its files say about it.

    Attributes:
        sae: The SAE.
        family: Whose files these are, one of `FAMILIES`.
        location: Where it was read, as it was given.
        revision: Commit of the hub repository; None for local files.
        stored_dtype: Precision of the weights in the files.
        site: Advertised site such as "resid_post:20", where it is certain.
        hook: Advertised hook in the files' own words.
        l0: Advertised number of active latents per token.
        model: Advertised name of the model.
        normalisation: What is done to the scale of x, in a sentence; None for nothing.
        notes: What else was applied, in plain sentences.
        training: How an SAE of our own format was trained; None for other families.
    """

    sae: SAE = field(repr=False)
    family: Family
    location: str
    revision: str | None
    stored_dtype: str
    site: str | None = None
    hook: str | None = None
    l0: float | None = None
    model: str | None = None
    normalisation: str | None = None
    notes: tuple[str, ...] = ()
    training: Mapping[str, Any] | None = None

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.sae.d_model

    def __call__(self, x: Tensor) -> Tensor:
        """Reconstruct x: ``sae(x)``."""
        return self.sae(x)

    def describe(self) -> dict[str, Any]:
        """Say in JSON what was read and applied, for reports; of a local path only the last part."""
        return {
            "family": self.family,
            "location": Path(self.location).name if self.revision is None else self.location,
            "revision": self.revision,
            "architecture": self.sae.activation,
            "d_model": self.sae.d_model,
            "d_sae": self.sae.d_sae,
            "k": self.sae.k,
            "dtype": str(self.sae.dtype).removeprefix("torch."),
            "stored_dtype": self.stored_dtype,
            "model": self.model,
            "hook": self.hook,
            "site": self.site,
            "l0": self.l0,
            "normalisation": self.normalisation,
            "notes": list(self.notes),
            "training": self.training,
            "fingerprint": self.sae.fingerprint(),
        }
