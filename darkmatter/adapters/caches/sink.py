"""Writing a cache: streamed, atomic shard by shard, and resumed where it was killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from darkmatter.adapters.caches.plan import new_index
from darkmatter.adapters.caches.shards import CachedActivations, cached_activations
from darkmatter.adapters.caches.stream import ActivationStream, TokenBatch
from darkmatter.adapters.caches.writer import ShardWriter
from darkmatter.adapters.sites import Site
from darkmatter.stream import Progress


class SiteStreams(Protocol):
    """Activations of several sites, read together; a model's stream is one."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites."""
        ...

    @property
    def widths(self) -> Mapping[Site, int]:
        """Activation width by site."""
        ...

    @property
    def description(self) -> Mapping[str, Any]:
        """What decides which tokens these are, as JSON."""
        ...

    def site_batches_from(self, start: int) -> Iterator[Mapping[Site, TokenBatch]]:
        """Yield batch number `start` of every site and those after it."""
        ...


def write_cache(
    activations: ActivationStream,
    folder: Path | str,
    *,
    dtype: str = "bfloat16",
    shard_tokens: int | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> CachedActivations:
    """Write activations to disk, and open what was written.

    A shard holds whole batches and is written once it has `shard_tokens` tokens or more; at most one is in memory. A
    write that was killed goes on after its last shard, and a cache that is finished already is opened as it is.

    Args:
        activations: What to write.
        folder: Where; created if it does not exist.
        dtype: Precision of x on disk: ``bfloat16``, ``float16`` or ``float32``.
        shard_tokens: Tokens per shard; None makes shards of about 256 MB.
        progress: Called with the number of tokens after every batch (and once for what was written before).
        announce: Given one sentence on the size on disk before anything is written.

    Returns:
        The finished cache.

    Raises:
        InputError: An impossible option, too little space, a folder with another cache, activations that the dtype
            cannot hold, or none at all.
    """
    place = Path(folder)
    writer = ShardWriter(place, new_index(activations.description, activations.d_model, dtype), shard_tokens)
    if announce:
        announce(writer.plan.sentence)
    if not writer.finished:
        writer.start()
        if progress and writer.index.n_tokens:
            progress(writer.index.n_tokens)
        for number, batch in enumerate(activations.batches_from(writer.index.n_batches), writer.index.n_batches):
            writer.add(number, batch)
            if progress:
                progress(len(batch.groups))
        writer.finish()
    return cached_activations(place)


def write_site_caches(
    activations: SiteStreams,
    folder: Path | str,
    *,
    dtype: str = "bfloat16",
    shard_tokens: int | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> dict[Site, CachedActivations]:
    """Write the activations of several sites in one pass, each site to a cache of its own.

    Args:
        activations: What to write.
        folder: Where; the cache of ``resid_post:2`` is in its folder `resid_post-2`.
        dtype: Precision of x on disk: ``bfloat16``, ``float16`` or ``float32``.
        shard_tokens: Tokens per shard; None makes shards of about 256 MB.
        progress: Called with the number of tokens of one site after every batch (and once for what was written).
        announce: Given one sentence per site on the size on disk before anything is written.

    Returns:
        The finished caches by site.

    Raises:
        InputError: As for `write_cache`, for any of the sites.
    """
    places = {site: Path(folder) / str(site).replace(":", "-") for site in activations.sites}
    writers = {}
    for site, place in places.items():
        index = new_index(_of_site(activations.description, site), activations.widths[site], dtype)
        writers[site] = ShardWriter(place, index, shard_tokens)
        if announce:
            announce(f"{site}: {writers[site].plan.sentence}")
    open_ones = {site: writer for site, writer in writers.items() if not writer.finished}
    together = sum(writer.missing_bytes or 0 for writer in open_ones.values())
    for writer in open_ones.values():
        writer.start(together)
    if open_ones:
        # where sites drop different tokens their shards end at different batches: go back to the one that is behind
        behind = min(open_ones, key=lambda site: open_ones[site].index.n_batches)
        start = open_ones[behind].index.n_batches
        if progress and start:
            progress(open_ones[behind].index.n_tokens)
        for number, batches in enumerate(activations.site_batches_from(start), start):
            for site, writer in open_ones.items():
                writer.add(number, batches[site])
            if progress:
                progress(len(batches[behind].groups))
        for writer in open_ones.values():
            writer.finish()
    return {site: cached_activations(place) for site, place in places.items()}


def _of_site(description: Mapping[str, Any], site: Site) -> dict[str, Any]:
    facts = {**description, "site": str(site)}
    for key in ("d_model", "norm_limits"):
        if isinstance(facts.get(key), dict):
            facts[key] = facts[key].get(str(site)) if key == "d_model" else {str(site): facts[key].get(str(site))}
    return facts
