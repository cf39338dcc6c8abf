"""The first documents of a run, with every position, and the model's loss on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from darkmatter.adapters.activations import ModelActivations
from darkmatter.adapters.backoff import BackOff
from darkmatter.adapters.hf import LoadedModel
from darkmatter.adapters.next_tokens import Rows, loss_parts, next_token_losses
from darkmatter.adapters.reading import capture, splice
from darkmatter.adapters.sites import Site
from darkmatter.errors import InputError


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
        model = self.loaded.model

        def hook(part: slice) -> AbstractContextManager[None]:
            if replace is None:
                return nullcontext()
            return splice(model, self.site, _at(rows[part].counted, replace))

        parts = loss_parts(
            self.loaded, rows.ids.shape[1], remedy="lower the context length, or leave the preflight out"
        )
        return next_token_losses(self.loaded, rows, hook, parts)


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


def _at(counted: Tensor, replace: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def exchange(x: Tensor) -> Tensor:
        keep = counted.to(x.device)
        out = x.clone()
        out[keep] = replace(x[keep]).to(x.dtype)
        return out

    return exchange
