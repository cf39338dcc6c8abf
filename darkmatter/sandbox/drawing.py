"""One chunk of a world's stream: topics, firings, amplitudes, dense coordinates, activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from darkmatter.errors import InputError
from darkmatter.sandbox.chunk import WorldChunk, sparse_product
from darkmatter.sandbox.sampling import EDGE
from darkmatter.sandbox.seeding import MAX_DOCUMENTS, first_document, generator

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Integers, Singles
    from darkmatter.sandbox.world import World


def draw_chunk(world: World, index: int, stream: str) -> WorldChunk:
    """Draw a chunk; see `World.chunk`.

    Args:
        world: The world.
        index: Number of the chunk, from 0.
        stream: Name of the stream.

    Returns:
        `world.chunk_tokens` tokens with their parts.

    Raises:
        InputError: The stream is not that long.
    """
    first = index * world.chunk_documents
    if first + world.chunk_documents > MAX_DOCUMENTS:
        raise InputError(f"chunk {index} is beyond a stream's {MAX_DOCUMENTS} documents: use a second stream name")
    rng = generator("stream", world.seed, stream, index)
    topics = np.repeat(rng.integers(0, world.topics, size=world.chunk_documents), world.doc_tokens)
    codes = _draw_codes(world, rng, topics)
    coords = _draw_dense(world, rng, codes)
    x = sparse_product(codes, world.dictionary_matrix)
    if world.dense_dim:
        x += coords @ world.dense_map
    documents = first_document(stream) + first + np.arange(world.chunk_documents, dtype=np.int64)
    return WorldChunk(
        stream=stream,
        index=index,
        first_row=0,
        codes=codes,
        dense_coords=coords,
        x=x,
        groups=np.repeat(documents, world.doc_tokens),
        topics=topics,
        dictionary=world.dictionary_matrix,
        dense_map=world.dense_map,
    )


def _draw_codes(world: World, rng: np.random.Generator, topics: Integers) -> csr_array:
    factors = np.clip(rng.standard_normal((len(topics), world.contexts.n_factors)), -EDGE, EDGE)
    token, feature = world.sampler.draw(rng, topics, factors)
    values = world.amplitude_law.draw(rng, len(token))
    if world.amplitude_first != 1.0 or world.amplitude_last != 1.0:
        values *= world.amplitude_scales.astype(np.float32)[feature]
    offsets = np.zeros(len(topics) + 1, dtype=np.int32)
    np.cumsum(np.bincount(token, minlength=len(topics)), out=offsets[1:])
    codes = csr_array((values, feature.astype(np.int32), offsets), shape=(len(topics), world.n_features))
    codes.has_canonical_format = True  # drawn sorted and without repeats
    return codes


def _draw_dense(world: World, rng: np.random.Generator, codes: csr_array) -> Singles:
    if world.code_dense is not None:
        return world.code_dense.coords(codes)
    if world.dense_law is None:
        return np.zeros((codes.shape[0], 0), dtype=np.float32)
    return world.dense_law.draw(rng, codes.shape[0])
