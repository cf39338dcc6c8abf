"""The one pass: a source in, the moments of its folds out, resumable at any batch; one site or several at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from darkmatter.batch import Batch, BatchSource, OneSite, SitesSource, check_header, iterate_from
from darkmatter.distributed import reduce_moments, world
from darkmatter.errors import InputError
from darkmatter.folds import FoldAccumulator, FoldMoments
from darkmatter.moments import Layout
from darkmatter.products import Precision
from darkmatter.store import Checkpoint, run_identity


class Progress(Protocol):
    """Anything that wants to know how far a pass is."""

    def __call__(self, tokens: int, /) -> None:
        """Take notice of some more tokens."""
        ...


def accumulate(
    source: BatchSource,
    *,
    folds: int,
    device: str = "cpu",
    precision: Precision = "float64",
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    sharded: bool = False,
) -> FoldMoments:
    """Stream a source into the moments of K folds.

    With a checkpoint, a run that was killed goes on from the last save; the result is the same, bit for bit, because
    rows that wait to be multiplied are saved as well.

    Args:
        source: Batches.
        folds: Number K of document folds.
        device: Where the sums live; it must support float64.
        precision: How blocks are multiplied, see `products`.
        checkpoint: Where and how often to save.
        progress: Called with the number of tokens after every batch (and once for what a checkpoint held).
        sharded: The source holds this process's share of the documents: unite the moments of all processes. Every
            process saves its own sums.

    Returns:
        The moments.

    Raises:
        InputError: A bad source or batch, or a source without tokens.
    """
    saves = checkpoint.part(f"rank-{world()[0]}") if checkpoint and sharded else checkpoint
    sums = _Sums.start(source, folds, device, precision, saves, sharded=sharded)
    if progress and sums.done:
        progress(sums.accumulator.n_tokens)
    for number, batch in enumerate(iterate_from(source, sums.done), start=sums.done + 1):
        tokens = sums.take(number, batch)
        if progress:
            progress(tokens)
        if saves and saves.due:
            sums.save(number)
    return sums.finish(sharded=sharded)


def accumulate_sites(
    source: SitesSource,
    *,
    folds: int,
    device: str = "cpu",
    precision: Precision = "float64",
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    sharded: bool = False,
) -> dict[str, FoldMoments]:
    """Stream several sites of a model into the moments of K folds each, in one pass; see `accumulate`.

    The sums of every site are saved in a folder of their own. A run that was killed between two of those saves goes on
    from the site that is furthest behind, and what a site already has is not added to it again.

    Args:
        source: Batches of every site.
        folds: Number K of document folds.
        device: Where the sums live; it must support float64.
        precision: How blocks are multiplied, see `products`.
        checkpoint: Where and how often to save.
        progress: Called with the number of tokens after every step (and once for what a checkpoint held).
        sharded: The source holds this process's share of the documents: unite the moments of all processes.

    Returns:
        The moments by site.

    Raises:
        InputError: A bad source or batch, or a site without tokens.
    """
    _check_sources(source)
    saves = checkpoint.part(f"rank-{world()[0]}") if checkpoint and sharded else checkpoint
    lines: dict[str, _Sums] = {}
    for i, site in enumerate(source.sites):
        place = saves.part(f"{i}-{site}") if saves else None
        lines[site] = _Sums.start(OneSite(source, site), folds, device, precision, place, sharded=sharded, label=site)
    behind = min(lines.values(), key=lambda sums: sums.done)
    start = behind.done
    if progress and start:
        progress(behind.accumulator.n_tokens)
    for number, batches in enumerate(iterate_from(source, start), start=start + 1):
        _check_sites(number, batches, source.sites)
        tokens = [sums.take(number, batches[site]) for site, sums in lines.items()]
        if progress:
            progress(tokens[0])
        if any(sums.checkpoint and sums.checkpoint.due for sums in lines.values()):
            for sums in lines.values():
                sums.save(number)
    return {site: lines.pop(site).finish(sharded=sharded) for site in source.sites}


def _check_sources(source: SitesSource) -> None:
    if not isinstance(source, SitesSource):
        raise InputError(
            f"{type(source).__name__} is not a SitesSource: it needs sites, widths, names, description and __iter__"
        )
    sites = source.sites
    if not sites or len(set(sites)) < len(sites):
        raise InputError(f"sites is {sites!r}, expected at least one site, each once")
    if {*source.widths} != {*sites} or {*source.names} != {*sites}:
        raise InputError(
            f"widths are given for {sorted(source.widths)} and names for {sorted(source.names)}, "
            f"expected both for {sorted(sites)}"
        )


def _check_sites(number: int, batches: Mapping[str, Batch], sites: tuple[str, ...]) -> None:
    if not isinstance(batches, Mapping) or set(batches) != set(sites):
        found = sorted(batches, key=str) if isinstance(batches, Mapping) else type(batches).__name__
        raise InputError(f"batch {number}: found {found}, expected one batch for each of the sites {sorted(sites)}")


@dataclass(slots=True)
class _Sums:
    """One site's sums on their way through a pass.

    Attributes:
        accumulator: The sums.
        identity: What a save must agree with.
        checkpoint: Where they are saved, if anywhere.
        done: Batches that were in them at the start.
        prefix: The site, for messages.
    """

    accumulator: FoldAccumulator
    identity: str
    checkpoint: Checkpoint | None
    done: int
    prefix: str

    @classmethod
    def start(
        cls,
        source: BatchSource,
        folds: int,
        device: str,
        precision: Precision,
        checkpoint: Checkpoint | None,
        *,
        sharded: bool,
        label: str = "",
    ) -> _Sums:
        """Begin, or go on from a save.

        Raises:
            InputError: A bad header.
        """
        prefix = f"{label}: " if label else ""
        try:
            check_header(source)
        except InputError as error:
            raise InputError(f"{prefix}{error}") from None
        layout = Layout(source.d_model, source.names)
        accumulator = FoldAccumulator(layout, folds=folds, device=device, precision=precision)
        identity = run_identity(source, folds, precision, world() if sharded else (0, 1))
        done = checkpoint.resume(accumulator, identity) if checkpoint else 0
        return cls(accumulator, identity, checkpoint, done, prefix)

    def take(self, number: int, batch: Batch) -> int:
        """Add batch `number`, counted from 1, unless the save held it; return its tokens.

        Raises:
            InputError: A bad batch.
        """
        if number <= self.done:
            return len(batch.groups)
        try:
            return self.accumulator.update(batch)
        except InputError as error:
            raise InputError(f"batch {number}: {self.prefix}{error}") from None

    def save(self, number: int) -> None:
        """Save what the first `number` batches gave."""
        if self.checkpoint and number > self.done:
            self.checkpoint.save(self.accumulator, self.identity, number)

    def finish(self, *, sharded: bool) -> FoldMoments:
        """Hand over the moments, united over all processes if each has a share.

        Raises:
            InputError: There are no tokens.
        """
        moments = self.accumulator.finish()
        if sharded:
            moments = reduce_moments(moments)
        if not moments.n_tokens:
            raise InputError(f"{self.prefix}the source yields no tokens: check the input files and the token filter")
        return moments
