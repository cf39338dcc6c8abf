"""Stored activations joined with SAEs: a source of batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from darkmatter.adapters.caches.stream import ActivationStream
from darkmatter.adapters.run_saes import Sae, SaeRunner, check_saes, joined
from darkmatter.batch import Batch, check_header


@dataclass(frozen=True, slots=True, eq=False)
class CachedSource:
    """A `ResumableSource`: stored activations and what each SAE makes of them.

    An SAE that says where it is (`device`, or a module's parameters) is moved to the device of the activations. Where
    an SAE does not fit in memory with all tokens of a batch, it is given fewer at a time.

    Attributes:
        activations: Any stream of activations.
        saes: SAEs by name; each maps x (n, d_model) to its reconstruction.
        notes: Facts about the SAEs for the report.
        device: Where x is put before an SAE sees it; None leaves it where the stream has it.

    Raises:
        InputError: No SAE, a bad name, something that cannot be called, or an SAE of another width.
    """

    activations: ActivationStream
    saes: Mapping[str, Sae]
    notes: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None

    def __post_init__(self) -> None:
        facts = self.activations.description
        where = " of ".join(str(facts[key]) for key in ("site", "model") if facts.get(key))
        check_saes(self.saes, self.d_model, where or "x")
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
        """Yield every batch, from the first on."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[Batch]:
        """Yield batch number `start` and those after it; earlier ones are not read."""
        runner = SaeRunner(self.saes)
        for found in self.activations.batches_from(start):
            yield joined(found, runner, device=self.device)
