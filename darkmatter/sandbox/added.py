"""What a surgical SAE adds to its learned features: terms of several kinds, at scale one, drawn from a chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from darkmatter.errors import InputError
from darkmatter.sandbox.chunk import WorldChunk, sparse_product
from darkmatter.sandbox.features import row_norms
from darkmatter.sandbox.population import population_covariance
from darkmatter.sandbox.seeding import generator

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Floats, Integers, Singles
    from darkmatter.sandbox.world import World

KINDS = ("none", "independent", "heteroscedastic", "dense", "function", "interference", "affine")

GAIN = 3.0
"""Slope of the tanh of kind "function", per standard deviation of its argument."""

DENSE_GAIN = 2.0
"""Slope of the tanh of kind "dense", per standard deviation of a dense coordinate."""

READ_ROWS = 16_384
"""Firings whose directions are gathered at a time."""

Term = Callable[[WorldChunk], "Singles"]
"""The added term of some tokens at scale one, (n, d), float32; of a cut chunk, the rows that the whole chunk has."""


@dataclass(frozen=True, slots=True)
class GaussianTerm:
    """Kinds "independent", g ~ N(0, I_d), and "heteroscedastic", ‖x‖ g.

    Attributes:
        seed: Seeds the draws, together with stream and chunk.
        chunk_tokens: Tokens of a whole chunk of the world, which are drawn at once.
        by_norm: Whether g is multiplied by ‖x‖.
    """

    seed: int
    chunk_tokens: int
    by_norm: bool

    def __call__(self, chunk: WorldChunk) -> Singles:
        """Draw the noise of some tokens."""
        rng = generator("surgical", self.seed, chunk.stream, chunk.index)
        noise: Singles = rng.standard_normal((self.chunk_tokens, chunk.x.shape[1]), dtype=np.float32)
        noise = noise[chunk.first_row : chunk.first_row + len(chunk)]
        if self.by_norm:
            noise *= row_norms(chunk.x)[:, None].astype(np.float32)
        return noise


@dataclass(frozen=True, slots=True)
class DenseTerm:
    """Kind "dense": Σ_j tanh(2 g_j) u_j, a curved function of the dense coordinates.

    Attributes:
        frame: Rows u_j, the unit rows of F, (k, d).
    """

    frame: Singles

    def __call__(self, chunk: WorldChunk) -> Singles:
        """Apply to the dense coordinates of some tokens."""
        squashed: Singles = np.tanh(np.float32(DENSE_GAIN) * chunk.dense_coords)
        return squashed @ self.frame


@dataclass(frozen=True, slots=True)
class Squash:
    """Kind "function": a bounded continuous function of x, Σ_j tanh(slope_j y_j·(x − mean)) y_j.

    Attributes:
        mean: (d,).
        directions: Rows y_j, (j, d).
        slopes: (j,).
    """

    mean: Singles
    directions: Singles
    slopes: Singles

    def __call__(self, chunk: WorldChunk) -> Singles:
        """Apply to the activations of some tokens."""
        squashed: Singles = np.tanh((chunk.x - self.mean) @ self.directions.T * self.slopes)
        return squashed @ self.directions


@dataclass(frozen=True, slots=True)
class Interference:
    """Kind "interference": Σ_{i learned, active} (y_i·x − w_i) y_i, what an encoder without inhibition misreads.

    Attributes:
        learned: Which features the SAE knows, (m,).
    """

    learned: np.ndarray[tuple[int], np.dtype[np.bool_]]

    def __call__(self, chunk: WorldChunk) -> Singles:
        """Read every active learned feature of some tokens by its own direction."""
        codes, y = chunk.codes, chunk.dictionary
        token = np.repeat(np.arange(len(chunk)), np.diff(codes.indptr))
        read = np.empty_like(codes.data)
        for start in range(0, len(read), READ_ROWS):
            part = slice(start, start + READ_ROWS)
            read[part] = np.einsum("jd,jd->j", chunk.x[token[part]], y[codes.indices[part]])
        misread = np.where(self.learned[codes.indices], read - codes.data, np.float32(0.0))
        return sparse_product(csr_array((misread, codes.indices, codes.indptr), shape=codes.shape), y)


@dataclass(frozen=True, slots=True)
class AffineTerm:
    """Kind "affine": (x − E x) M, which is no introduced error at all.

    Attributes:
        mean: E x, (d,).
        matrix: M, (d, d).
    """

    mean: Singles
    matrix: Singles

    def __call__(self, chunk: WorldChunk) -> Singles:
        """Apply to the activations of some tokens."""
        centred: Singles = chunk.x - self.mean
        return centred @ self.matrix


def make_term(world: World, kind: str, features: Integers, seed: int) -> Term:
    """Make the added term of a kind at scale one.

    Args:
        world: The world.
        kind: One of `KINDS` but "none".
        features: Indices of the learned features.
        seed: Seeds the Gaussian draws and the matrix of kind "affine".

    Returns:
        The term.

    Raises:
        InputError: The kind needs a dense part, or learned features, that are not there.
    """
    mean = world.mean.astype(np.float32)
    if kind in {"independent", "heteroscedastic"}:
        return GaussianTerm(seed, world.chunk_tokens, kind == "heteroscedastic")
    if kind == "dense":
        return DenseTerm(dense_frame(world).astype(np.float32))
    if kind == "function":
        return squash(world)
    if kind == "interference":
        if not len(features):
            raise InputError("introduced='interference' with no learned feature: there is nothing to misread")
        learned = np.zeros(world.n_features, dtype=bool)
        learned[features] = True
        return Interference(learned)
    assert kind == "affine", kind
    return AffineTerm(mean, affine_matrix(world.d_model, seed))


def dense_frame(world: World) -> Floats:
    """Unit rows u_j of F, (k, d), float64.

    Raises:
        InputError: The world has no dense part.
    """
    if world.dense_dim == 0 or world.dense_share == 0.0:
        raise InputError(
            f"introduced='dense' needs a dense part, got dense_dim = {world.dense_dim} and dense_share = "
            f"{world.dense_share:g}: pass both above 0, or choose another kind"
        )
    frame: Floats = world.dense_map.astype(np.float64) / row_norms(world.dense_map)[:, None]
    return frame


def affine_matrix(d_model: int, seed: int) -> Singles:
    """M of kind "affine", (d, d): independent normals of variance 1/d."""
    draws = generator("surgical affine", seed).standard_normal((d_model, d_model), dtype=np.float32)
    return draws / np.float32(np.sqrt(d_model))


def squash(world: World) -> Squash:
    """The field of kind "function", over the first min(m, d) features."""
    directions = world.dictionary_matrix[: world.d_model]
    wide: Floats = directions.astype(np.float64)
    deviation = np.sqrt(np.einsum("jd,jd->j", wide @ population_covariance(world), wide))
    return Squash(world.mean.astype(np.float32), directions, (GAIN / deviation).astype(np.float32))
