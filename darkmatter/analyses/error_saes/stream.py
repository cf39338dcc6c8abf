"""A target as a training stream, and the pass that measures what the moments do not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.analyses.error_saes.parts import Maps, Split, Target
from darkmatter.batch import Batch, BatchSource, check_batch, iterate_from

Advance = Callable[[int], None]


def checked(source: BatchSource, start: int = 0) -> Iterator[tuple[int, Batch]]:
    """Number and checked content of every batch from one on.

    Args:
        source: The source.
        start: Number of the first batch.

    Yields:
        (number, batch with tensors).
    """
    for number, batch in enumerate(iterate_from(source, start), start=start):
        x, recons = check_batch(batch, d_model=source.d_model, names=source.names)
        yield number, Batch(x, recons, batch.groups, batch.positions, batch.token_ids)


def residual_scatters(
    source: BatchSource, maps: Maps, names: Sequence[str], split: Split, *, progress: Advance
) -> tuple[dict[str, Tensor], dict[str, Tensor], npt.NDArray[np.int64]]:
    """Second moments of nonlinear parts over the documents trained on, where their mean is zero, and over the others.

    Args:
        source: The tokens.
        maps: The maps, fitted to the same documents.
        names: SAEs.
        split: Which documents are trained on.
        progress: Called with the number of tokens after every batch.

    Returns:
        Σ rr'/n by name, (d, d), float64, over the documents trained on and over those held out; and the number of
        training tokens of every batch, 8 bytes for each.
    """
    d, counts, n_held = source.d_model, list[int](), 0
    sums = [{name: torch.zeros(d, d, dtype=torch.float64, device=maps.mean_x.device) for name in names} for _ in "ab"]
    for _, batch in checked(source):
        held = split.heldout(batch.groups)
        x = torch.as_tensor(batch.x)
        for scatters, mine in zip(sums, (~held, held), strict=True):
            rows = torch.from_numpy(np.flatnonzero(mine)).to(x.device)
            for name, scatter in scatters.items():
                part = maps.nonlinear(name, x[rows], torch.as_tensor(batch.recons[name])[rows]).to(scatter.device)
                scatter.addmm_(part.mT, part)
        counts.append(int((~held).sum()))
        n_held += int(held.sum())
        progress(len(x))
    train, heldout = (
        {name: scatter / n for name, scatter in scatters.items()}
        for scatters, n in zip(sums, (maps.n_train, n_held), strict=True)
    )
    return train, heldout, np.array(counts, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class TargetStream:
    """A `darkmatter.sae.stream.Restartable`: prepared rows of the training documents, pass after pass in one order.

    Attributes:
        source: The tokens.
        maps: The maps.
        target: What is trained on.
        split: Which documents are trained on.
        counts: Training tokens of every batch, so that a resumed run reads only what is left.
        n_tokens: Tokens in all; the passes are repeated until there are as many.
    """

    source: BatchSource
    maps: Maps
    target: Target
    split: Split
    counts: npt.NDArray[np.int64]
    n_tokens: int

    def __iter__(self) -> Iterator[Tensor]:
        """Yield prepared rows (n, d), float32."""
        return self.starting_at(0)

    def starting_at(self, token: int) -> Iterator[Tensor]:
        """Yield the same rows from a given one on.

        Args:
            token: Number of the first row wanted.

        Yields:
            Rows, (n, d), float32.
        """
        ends = np.cumsum(self.counts)
        rest = token % int(ends[-1])
        start = int(np.searchsorted(ends, rest, side="right"))
        skip, seen = rest - int(ends[start - 1] if start else 0), token
        while seen < self.n_tokens:
            for number, batch in checked(self.source, start):
                rows = self._rows(number, batch)[skip:][: self.n_tokens - seen]
                skip, seen = 0, seen + len(rows)
                if len(rows):
                    yield rows
                if seen >= self.n_tokens:
                    return
            start = 0

    def _rows(self, number: int, batch: Batch) -> Tensor:
        rows = self.target.rows(batch, self.maps, number)
        mine = torch.from_numpy(np.flatnonzero(~self.split.heldout(batch.groups))).to(rows.device)
        return self.target.prepare(rows[mine]).float()
