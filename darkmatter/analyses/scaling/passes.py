"""The pass of a scaling analysis: moments of all SAEs, and the L0 of each, measured on its first tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from darkmatter.analyses.scaling.analyse import DRAWS, MARGIN, scaling_law
from darkmatter.analyses.scaling.result import ScalingLaw
from darkmatter.batch import Batch, BatchSource, iterate_from
from darkmatter.decomposition import DEFAULT_FOLDS
from darkmatter.errors import InputError
from darkmatter.sae import SAE
from darkmatter.stream import Progress, accumulate

L0_TOKENS = 65_536
"""Tokens on which L0 is counted: its relative error is then some tenths of a per cent, and FVU's a quarter of that."""


@dataclass(frozen=True, slots=True, eq=False)
class CountingSource:
    """A `ResumableSource`: another one, with active latents counted on its first tokens as they pass.

    A pass that is resumed reads those tokens again, so that L0 never depends on where it was interrupted.

    Attributes:
        source: The other.
        saes: Weights by SAE name, those to count.
        n_tokens: Tokens to count on, rounded up to whole batches.
        counts: (tokens, active latents by SAE) of the latest iteration; read it through `l0s`.
    """

    source: BatchSource
    saes: Mapping[str, SAE]
    n_tokens: int = L0_TOKENS
    counts: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.source.d_model

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the SAEs."""
        return self.source.names

    @property
    def description(self) -> Mapping[str, Any]:
        """The other's description."""
        return self.source.description

    def __iter__(self) -> Iterator[Batch]:
        """Yield every batch."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[Batch]:
        """Yield batch number `start` and those after it."""
        self.counts.clear()
        if start:
            for number, batch in enumerate(self.source):
                if number == start or not self._count(batch):
                    break
        for batch in iterate_from(self.source, start):
            self._count(batch)
            yield batch

    def _count(self, batch: Batch) -> bool:
        """Count, unless there were enough tokens; whether it did."""
        if self.counts.get("", 0) >= self.n_tokens:
            return False
        x = torch.as_tensor(batch.x)
        self.counts[""] = self.counts.get("", 0) + len(x)
        for name, sae in self.saes.items():
            active = int((sae.encode(x.to(sae.device)).values > 0).sum())
            self.counts[name] = self.counts.get(name, 0) + active
        return True

    @property
    def l0s(self) -> dict[str, float]:
        """Mean number of active latents per token, by SAE.

        Raises:
            InputError: Nothing was read yet.
        """
        if not self.counts:
            raise InputError("L0 is not known before the source was read: iterate over it first")
        return {name: self.counts[name] / self.counts[""] for name in self.saes}


@dataclass(frozen=True, slots=True)
class SomeSaes:
    """A `ResumableSource`: another one, with some of its SAEs only, for passes whose sums would not fit otherwise.

    Attributes:
        source: The other.
        names: The SAEs.
    """

    source: BatchSource
    names: tuple[str, ...]

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.source.d_model

    @property
    def description(self) -> Mapping[str, Any]:
        """The other's description."""
        return self.source.description

    def __iter__(self) -> Iterator[Batch]:
        """Yield every batch."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[Batch]:
        """Yield batch number `start` and those after it."""
        for batch in iterate_from(self.source, start):
            yield replace(batch, recons={name: batch.recons[name] for name in self.names})


def measure_scaling(
    source: BatchSource,
    saes: Mapping[str, SAE],
    *,
    folds: int = DEFAULT_FOLDS,
    device: str = "cpu",
    at_l0: Sequence[float] | None = None,
    margin: float = MARGIN,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Progress | None = None,
) -> ScalingLaw:
    """Make the one pass over a source, then fit the scaling law; widths and L0s are those of the SAEs.

    Args:
        source: Batches with the reconstructions of the SAEs.
        saes: Their weights by name, of all but null controls.
        folds: Document folds K.
        device: Where the sums live.
        at_l0: L0s to compare widths at, see `scaling_law`.
        margin: Slope below which a share counts as constant in width.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.
        progress: Called with the number of tokens after every batch.

    Returns:
        The analysis.
    """
    counted = CountingSource(source, saes)
    moments = accumulate(counted, folds=folds, device=device, progress=progress)
    widths = {name: sae.d_sae for name, sae in saes.items()}
    return scaling_law(moments, widths, counted.l0s, at_l0=at_l0, margin=margin, draws=draws, seed=seed)
