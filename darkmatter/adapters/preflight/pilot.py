"""The first documents of a run, with every position, and the model's loss on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from darkmatter.adapters.activations import ModelActivations
from darkmatter.adapters.backoff import BackOff
from darkmatter.adapters.hf import LoadedModel
from darkmatter.adapters.reading import capture, splice
from darkmatter.adapters.sequences import TokenSequence
from darkmatter.adapters.sites import Site
from darkmatter.errors import InputError

_LOGITS = 2**28
"""Most logits computed at once, 1 GiB in float32: a row of 1024 tokens at a vocabulary of 256k."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Sequences as the model takes them; all arrays are (rows, pos).

    Attributes:
        ids: Token ids; 0 where there is none.
        mask: Whether there is a token.
        starts: Whether a document begins here.
        counted: Whether the position counts.
        groups: Index of the document; -1 where there is none.
        positions: Position in the document; -1 where there is none.
    """

    ids: Tensor
    mask: Tensor
    starts: Tensor
    counted: Tensor
    groups: Tensor
    positions: Tensor

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence]) -> Rows:
        """Fill sequences up to one length."""
        ids = _filled([sequence.ids for sequence in sequences], 0)
        positions = _filled([sequence.positions for sequence in sequences], -1)
        return cls(
            ids=ids,
            mask=positions >= 0,
            starts=positions == 0,
            counted=_filled([sequence.counted for sequence in sequences], fill=False),
            groups=_filled([sequence.groups for sequence in sequences], -1),
            positions=positions,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Rows:
        """Some of the rows."""
        return Rows(
            ids=self.ids[part],
            mask=self.mask[part],
            starts=self.starts[part],
            counted=self.counted[part],
            groups=self.groups[part],
            positions=self.positions[part],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Pilot:
    """The first batches of a stream of activations.

    Attributes:
        loaded: The model.
        site: Where it is read.
        batches: The rows of every batch.
        limit: Norm above which an activation does not count; None counts all.
    """

    loaded: LoadedModel
    site: Site
    batches: tuple[Rows, ...]
    limit: float | None
    _parts: BackOff = field(repr=False)

    @property
    def n_documents(self) -> int:
        """Documents, of which the last may go on behind the pilot."""
        return sum(int(rows.starts.sum()) for rows in self.batches)

    def activations(self, rows: Rows, sites: Sequence[Site]) -> Iterator[tuple[Rows, Mapping[Site, Tensor]]]:
        """Read the model at some sites.

        Args:
            rows: A batch.
            sites: Where.

        Yields:
            Parts of the batch that fit in memory, with the activations at all positions, (rows, pos, width), float32.
        """
        model = self.loaded.model

        def read(part: slice) -> dict[Site, Tensor]:
            found = capture(model, sites, rows.ids[part], rows.mask[part].long())
            return {site: x.float() for site, x in found.items()}

        done = 0
        for found in self._parts.run(read, len(rows)):
            size = len(found[sites[0]])
            yield rows[done : done + size], found
            done += size

    def counts(self, rows: Rows, x: Tensor) -> Tensor:
        """Say which positions count, the filter on norms included.

        Args:
            rows: Rows.
            x: Their activations, (rows, pos, width).

        Returns:
            (rows, pos), on the device of x.
        """
        counted = rows.counted.to(x.device)
        return counted if self.limit is None else counted & (torch.linalg.vector_norm(x, dim=2) <= self.limit)

    def losses(self, rows: Rows, replace: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Cross-entropy of every next token, in nats, whatever it is worth: `targets` says where it means something.

        Args:
            rows: Rows.
            replace: Maps the activations at the counted positions, (n, width), to what the model goes on with; None
                leaves the model alone.

        Returns:
            (rows, pos − 1), float32, on the CPU.
        """
        model: Any = self.loaded.model
        device = next(model.parameters()).device

        def run(part: slice) -> Tensor:
            some = rows[part]
            hook = nullcontext() if replace is None else splice(model, self.site, _at(some.counted, replace))
            with torch.inference_mode(), hook:
                logits = model(
                    input_ids=some.ids.to(device), attention_mask=some.mask.long().to(device), use_cache=False
                ).logits
                labels = some.ids[:, 1:].to(logits.device)
                # row by row: the float32 copy of the logits is what takes memory
                losses = [
                    cross_entropy(z[:-1].float(), y, reduction="none") for z, y in zip(logits, labels, strict=True)
                ]
            return torch.stack(losses).cpu()

        vocabulary = int(model.get_input_embeddings().weight.shape[0])
        parts = BackOff(
            what=f"a whole forward pass of {self.loaded.name} on one sequence",
            remedy="lower the context length, or leave the preflight out",
            limit=max(1, _LOGITS // (rows.ids.shape[1] * vocabulary)),
        )
        return torch.cat(parts.run(run, len(rows)))


def read_pilot(activations: ModelActivations, site: Site, batches: int) -> Pilot:
    """Take the first documents of a stream.

    Args:
        activations: The stream.
        site: One of its sites.
        batches: Most batches to take.

    Returns:
        The pilot; nothing was run yet.

    Raises:
        InputError: Fewer than one batch, another site, or no document.
    """
    if batches < 1:
        raise InputError(f"batches is {batches}, expected at least 1")
    if site not in activations.sites:
        raise InputError(f"site {site} is not read, expected one of {', '.join(map(str, activations.sites))}")
    rows = iter(activations.sequences)
    taken = [Rows.of(batch) for _ in range(batches) if (batch := list(islice(rows, activations.batch_docs)))]
    if not taken:
        raise InputError("there is no document to check: this share of the text is empty")
    return Pilot(activations.loaded, site, tuple(taken), activations.limits.get(site), activations.parts)


def targets(rows: Rows) -> Tensor:
    """Where a loss of `Pilot.losses` is one of predicting text: a token of the same document follows.

    Args:
        rows: Rows.

    Returns:
        (rows, pos − 1).
    """
    return rows.mask[:, 1:] & ~rows.starts[:, 1:]


def _at(counted: Tensor, replace: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def exchange(x: Tensor) -> Tensor:
        keep = counted.to(x.device)
        out = x.clone()
        out[keep] = replace(x[keep]).to(x.dtype)
        return out

    return exchange


def _filled(parts: Sequence[npt.NDArray[Any]], fill: int) -> Tensor:
    out = np.full((len(parts), max(map(len, parts))), fill, dtype=parts[0].dtype)
    for row, part in enumerate(parts):
        out[row, : len(part)] = part
    return torch.from_numpy(out)
