"""Worlds as batch sources: activations with the reconstructions of any number of SAEs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from darkmatter.batch import Batch
from darkmatter.checks import check_matrix
from darkmatter.errors import InputError
from darkmatter.sandbox.chunk import WorldChunk, rebatch
from darkmatter.sandbox.config import check_int, check_stream
from darkmatter.sandbox.surgical import Surgical

if TYPE_CHECKING:
    from darkmatter.sandbox.world import World

Sae = Surgical | Callable[[Tensor], Tensor]

BLOCK = 1024
"""Rows that a reconstruction function gets at a time, counted from the start of a chunk. Matrix products round
differently for different shapes, so a fixed block is what keeps the content independent of the batch size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSource:
    """A world's stream with the reconstructions of some SAEs: a resumable `darkmatter.batch.BatchSource`.

    Attributes:
        world: The world.
        saes: SAEs by name.
        n_tokens: Length of the stream.
        batch_size: Tokens per batch; only the last batch may be shorter.
        stream: Name of the stream.
    """

    world: World
    saes: Mapping[str, Sae]
    n_tokens: int
    batch_size: int
    stream: str

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.world.d_model

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the SAEs."""
        return tuple(self.saes)

    @property
    def description(self) -> dict[str, Any]:
        """The world, the stream and every SAE, as plain JSON types."""
        return {
            "kind": "sandbox",
            "world": self.world.to_dict(),
            "stream": self.stream,
            "n_tokens": self.n_tokens,
            "saes": {name: _describe(sae, self.world) for name, sae in self.saes.items()},
        }

    def __iter__(self) -> Iterator[Batch]:
        """Start again from the first batch."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[Batch]:
        """Yield the batches from number `start` on, without drawing the chunks before it.

        Args:
            start: Number of the first batch wanted, from 0.

        Yields:
            Batches.
        """
        pieces = recon_chunks(
            self.world, self.saes, n_tokens=self.n_tokens, stream=self.stream, start=start * self.batch_size
        )
        rows = (
            (
                torch.from_numpy(chunk.x),
                torch.from_numpy(chunk.groups),
                torch.arange(chunk.first_row, chunk.first_row + len(chunk)) % self.world.doc_tokens,
                *(recons[name] for name in self.names),
            )
            for chunk, recons in pieces
        )
        for x, groups, positions, *recons in rebatch(rows, self.batch_size):
            yield Batch(
                x=x,
                recons=dict(zip(self.names, recons, strict=True)),
                groups=groups.numpy(),
                positions=positions.numpy(),
            )


def open_pair(
    world: World, sae: Sae | Mapping[str, Sae], *, n_tokens: int, batch_size: int, stream: str, name: str | None
) -> PairSource:
    """Check the arguments of `World.pair` and make its source.

    Args:
        world: The world.
        sae: One SAE, or several by name.
        n_tokens: Length of the source.
        batch_size: Tokens per batch.
        stream: Name of the stream.
        name: Name of a single SAE.

    Returns:
        The source.

    Raises:
        InputError: A count below 1, no SAE, a name for a mapping, or something that is not an SAE of this world.
    """
    check_int(n_tokens, "n_tokens", 1)
    check_int(batch_size, "batch_size", 1)
    check_stream(stream)
    if isinstance(sae, Mapping):
        if name is not None:
            raise InputError(f"name is {name!r} beside a mapping of SAEs: the mapping's keys are the names")
        saes = dict(sae)
    else:
        saes = {name or ("surgical" if isinstance(sae, Surgical) else "sae"): sae}
    if not saes or not all(isinstance(key, str) and key for key in saes):
        raise InputError(f"SAE names are {list(saes)}, expected at least one SAE, under a non-empty string")
    for key, value in saes.items():
        if isinstance(value, Surgical):
            value.features(world.n_features)
        elif not callable(value):
            raise InputError(
                f"SAE {key!r} is a {type(value).__name__}, expected a Surgical or a function from x to a reconstruction"
            )
    return PairSource(world=world, saes=saes, n_tokens=n_tokens, batch_size=batch_size, stream=stream)


def recon_chunks(
    world: World, saes: Mapping[str, Sae], *, n_tokens: int, stream: str = "eval", start: int = 0
) -> Iterator[tuple[WorldChunk, dict[str, Tensor]]]:
    """Walk through a stream with every true part at hand: chunks, with what each SAE makes of them.

    Args:
        world: The world.
        saes: SAEs by name.
        n_tokens: Tokens from the start of the stream to its end.
        stream: Name of the stream.
        start: First token wanted; earlier chunks are not drawn.

    Yields:
        (chunk, reconstructions by name, each (n, d)); the first and last chunk are cut to the wanted tokens.

    Raises:
        InputError: A reconstruction function returns something else than an (n, d) tensor.
    """
    makers = {name: _maker(world, sae, name) for name, sae in saes.items()}
    size = world.chunk_tokens
    for index in range(start // size, -(-n_tokens // size)):
        chunk = world.chunk(index, stream=stream)
        low, high = max(start - index * size, 0), min(n_tokens - index * size, size)
        recons = {name: make(chunk)[low:high] for name, make in makers.items()}
        yield chunk.rows(low, high), recons


def _maker(world: World, sae: Sae, name: str) -> Callable[[WorldChunk], Tensor]:
    if isinstance(sae, Surgical):
        bound = sae.bind(world)
        return lambda chunk: torch.from_numpy(bound.recon(chunk))

    def make(chunk: WorldChunk) -> Tensor:
        blocks = []
        with torch.no_grad():
            for start in range(0, len(chunk), BLOCK):
                x = torch.from_numpy(chunk.x[start : start + BLOCK])
                recon = sae(x)
                if not isinstance(recon, Tensor):
                    raise InputError(f"SAE {name!r} returned a {type(recon).__name__}, expected a torch tensor (n, d)")
                check_matrix(recon, f"recon {name!r}", n=len(x), d=world.d_model)
                blocks.append(recon)
        return torch.cat(blocks)

    return make


def _describe(sae: Sae, world: World) -> dict[str, Any]:
    """Of a surgical SAE its options and how precisely its share is met; else its type, and its own `description`."""
    if isinstance(sae, Surgical):
        return sae.describe(world)
    own = getattr(sae, "description", None)
    about: dict[str, Any] = {"kind": "function", "type": getattr(sae, "__qualname__", type(sae).__qualname__)}
    return {**about, "description": dict(own)} if isinstance(own, Mapping) else about
