"""A world whose every activation is known: sparse features in superposition plus a dense part, in documents."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darkmatter.errors import InputError
from darkmatter.sandbox.amplitudes import AmplitudeLaw, amplitude_law
from darkmatter.sandbox.chunk import WorldChunk, rebatch
from darkmatter.sandbox.code_dense import CodeDense, make_code_dense, value_moments
from darkmatter.sandbox.config import check_int, check_stream
from darkmatter.sandbox.contexts import Contexts
from darkmatter.sandbox.dense import DenseLaw, dense_law, dense_map
from darkmatter.sandbox.dictionaries import dictionary
from darkmatter.sandbox.drawing import draw_chunk
from darkmatter.sandbox.factor_space import FactorSpace
from darkmatter.sandbox.factors import FactorMoments
from darkmatter.sandbox.features import (
    Floats,
    Integers,
    Singles,
    feature_topics,
    firing_rates,
    row_norms,
    topic_concentration,
)
from darkmatter.sandbox.forest import Forest, build_forest, tree_parents
from darkmatter.sandbox.sampling import FiringSampler
from darkmatter.sandbox.seeding import generator
from darkmatter.sandbox.source import PairSource, Sae, open_pair
from darkmatter.sandbox.table import Table
from darkmatter.sandbox.truth import Truth, true_shares
from darkmatter.sandbox.world_config import check_world, parse_world, world_options, world_to_dict

CHUNK_TOKENS = 4096
"""Tokens per chunk, up to a whole number of documents; part of the format, since it decides the draws."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A distribution of activations x = Σ_i w_i y_i + g F, with everything in it known.

    Feature i fires with probability p_i, Σ p_i = L0, whatever its dependence on others: a document's topic, latent
    Gaussian factors of the token, its parent in a tree, its rivals in a group. All these leave p_i as it is. Equal
    fields give the same world, token for token (on one numpy version).

    Attributes:
        n_features: Sparse features m.
        d_model: Activation width d.
        dense_dim: Dense dimensions k, 0 ≤ k ≤ d; with 0, `dense_share` must be 0.
        l0: Mean number of features that fire on a token, 0 < l0 ≤ m/2 (no feature fires on more than half of them).
        firing: Firing law: "zipf" (p_i falls like (i + 1)^-zipf), "constant", "linear" (like m − i), each capped at
            one half; or a `Table` (m,) of relative rates.
        zipf: Exponent for "zipf"; in [0, 10].
        amplitude: Law of w_i given that feature i fires, of mean one: "exponential", "constant", "uniform",
            "half-normal", "gamma" or "lognormal".
        amplitude_shape: k of the gamma law, σ of the lognormal law; 1 for the others.
        amplitude_first: Scale of the first feature's amplitude; the scale goes linearly to `amplitude_last`.
        amplitude_last: Scale of the last feature's amplitude.
        dictionary: Directions y_i: "random" (uniform on the sphere), "orthonormal" (needs m ≤ d), "low-coherence"
            (optimised), "clustered", "hierarchical" (child near parent), or a `Table` (m, d) of unit rows.
        clusters: Number of clusters, for "clustered".
        similarity: Cosine of a direction with its cluster's centre or its parent, in [0, 1).
        topics: T ≥ 1; a document has one, drawn uniformly.
        topic_strength: Share of a feature's firing that is reserved for its own topic, in [0, 1]; lowered for frequent
            features, so that none fires on more than 95 % of its topic's tokens. 0 makes tokens independent.
        doc_tokens: Tokens per document.
        correlation: Latent correlation ±ρ of two features of one factor (Gaussian copula), in [0, 0.9].
        factors: Number of latent factors, the rank of the correlation; every feature loads on one, with a random sign.
        roots: Number of trees; features 0 … roots − 1 are their roots. A child fires only if its parent does.
        branching: Children per parent.
        depth: Levels below the roots.
        siblings: Children of one parent are "independent" given it, or "exclusive" (at most one fires).
        exclusion: Size of groups of features in no tree, of which at most one fires; 1 for none.
        dense: Law of g, of mean 0 and covariance I: "gaussian", "student" (heavy tails), "circles", "torus", "sphere",
            "swiss-roll", or "codes" (a continuous function of the codes, correlated with them).
        dense_share: Variance of the dense part over Var x, in [0, 1).
        dense_df: Degrees of freedom of "student", above 4.
        seed: Non-negative int.

    Raises:
        InputError: An option out of range, or options that contradict each other.
    """

    n_features: int = 4096
    d_model: int = 256
    dense_dim: int = 32
    l0: float = 32.0
    firing: str | Table = "zipf"
    zipf: float = 1.0
    amplitude: str = "exponential"
    amplitude_shape: float = 1.0
    amplitude_first: float = 1.0
    amplitude_last: float = 1.0
    dictionary: str | Table = "random"
    clusters: int = 64
    similarity: float = 0.5
    topics: int = 16
    topic_strength: float = 0.2
    doc_tokens: int = 128
    correlation: float = 0.0
    factors: int = 25
    roots: int = 0
    branching: int = 4
    depth: int = 0
    siblings: str = "independent"
    exclusion: int = 1
    dense: str = "gaussian"
    dense_share: float = 0.1
    dense_df: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_world(self)
        _ = (self.amplitude_law, self.dense_law, self.forest)  # each checks what only it can see

    @cached_property
    def amplitude_law(self) -> AmplitudeLaw:
        """Law of a firing feature's amplitude, before scaling: mean one."""
        return amplitude_law(self.amplitude, self.amplitude_shape)

    @cached_property
    def amplitude_scales(self) -> Floats:
        """Scale of every feature's amplitude, (m,)."""
        return np.linspace(self.amplitude_first, self.amplitude_last, self.n_features)

    @cached_property
    def firing_rates(self) -> Floats:
        """Firing rates p_i, (m,), summing to `l0`."""
        return firing_rates(self.firing, self.n_features, l0=self.l0, zipf=self.zipf)

    @cached_property
    def parent(self) -> Integers:
        """Parent of every feature, (m,), −1 for roots and features in no tree."""
        return tree_parents(self.n_features, roots=self.roots, branching=self.branching, depth=self.depth)

    @cached_property
    def forest(self) -> Forest:
        """Which firings depend on which."""
        return build_forest(
            self.firing_rates,
            self.parent,
            roots=self.roots,
            exclusive_siblings=self.siblings == "exclusive",
            exclusion=self.exclusion,
        )

    @cached_property
    def contexts(self) -> Contexts:
        """Firing probabilities of the forest's roots given topic and latent factors."""
        rate = self.forest.rate[self.forest.roots]
        c = topic_concentration(rate, topics=self.topics, strength=self.topic_strength)
        other = rate * (1.0 - c)
        rng = generator("copula", self.seed)
        correlated = self.correlation > 0.0
        return Contexts(
            own=other + rate * c * self.topics,
            other=other,
            topic=feature_topics(len(rate), topics=self.topics, seed=self.seed),
            n_topics=self.topics,
            factor=rng.integers(0, self.factors, size=len(rate)),
            loading=np.sqrt(self.correlation) * (2.0 * rng.integers(0, 2, size=len(rate)) - 1.0),
            n_factors=self.factors if correlated else 0,
        )

    @property
    def independent(self) -> bool:
        """Whether all features fire independently of each other and of the document."""
        return self.forest.trivial and not self.contexts.topical and not self.contexts.n_factors

    @cached_property
    def sampler(self) -> FiringSampler:
        """Draws firings."""
        return FiringSampler(self.forest, self.contexts)

    @cached_property
    def dictionary_matrix(self) -> Singles:
        """Feature directions, (m, d), rows of unit norm."""
        return dictionary(
            self.dictionary,
            n_features=self.n_features,
            d_model=self.d_model,
            seed=self.seed,
            clusters=self.clusters,
            similarity=self.similarity,
            parent=self.parent,
        )

    @cached_property
    def dense_law(self) -> DenseLaw | None:
        """Law of the dense coordinates; None where there are none or where they are a function of the codes."""
        if self.dense == "codes" or self.dense_dim == 0:
            return None
        return dense_law(self.dense, self.dense_dim, self.dense_df)

    @cached_property
    def factor_moments(self) -> FactorMoments:
        """Population mean and covariance of the sparse channels: the codes, with dense="codes" also φ of the codes."""
        mean, covariance = value_moments(self.amplitude_law, self.amplitude_scales, squashed=self.dense == "codes")
        return FactorMoments(forest=self.forest, contexts=self.contexts, value_mean=mean, value_covariance=covariance)

    @cached_property
    def code_dense(self) -> CodeDense | None:
        """The dense part as a function of the codes, with dense="codes"."""
        if self.dense != "codes":
            return None
        return make_code_dense(
            self.factor_moments,
            self.amplitude_scales,
            self.dictionary_matrix,
            dense_dim=self.dense_dim,
            share=self.dense_share,
            seed=self.seed,
        )

    @property
    def dense_codes(self) -> Floats | None:
        """C of g = φ(w) C − E, (m, k), with dense="codes"; else None."""
        return None if self.code_dense is None else self.code_dense.mixing

    @cached_property
    def dense_map(self) -> Singles:
        """F, (k, d), orthogonal rows of one length."""
        if self.code_dense is not None:
            return self.code_dense.dense_map
        return dense_map(
            self.dense_dim,
            d_model=self.d_model,
            share=self.dense_share,
            sparse_variance=self.sparse_variance,
            seed=self.seed,
        )

    @cached_property
    def sparse_variance(self) -> float:
        """Var S, the trace of the sparse part's covariance."""
        table = np.zeros((self.factor_moments.n_channels, self.d_model))
        table[: self.n_features] = self.dictionary_matrix
        return math.fsum(float((block**2).sum()) for block in self.factor_moments.rows(table))

    @cached_property
    def dense_variance(self) -> float:
        """Var D."""
        if self.dense_codes is None:
            return float((row_norms(self.dense_map) ** 2).sum())
        space = FactorSpace.of(self)
        alone = space.true.copy()
        alone[: self.n_features] = 0.0
        return space.variance(alone)

    @cached_property
    def variance(self) -> float:
        """Var x, the trace of the population covariance."""
        if self.dense_codes is None:
            return self.sparse_variance + self.dense_variance
        space = FactorSpace.of(self)
        return space.variance(space.true)

    @cached_property
    def mean(self) -> Floats:
        """E x, (d,); the dense part has none."""
        mean: Floats = self.factor_moments.mean[: self.n_features] @ self.dictionary_matrix.astype(np.float64)
        return mean

    @property
    def chunk_documents(self) -> int:
        """Documents per chunk."""
        return max(1, CHUNK_TOKENS // self.doc_tokens)

    @property
    def chunk_tokens(self) -> int:
        """Tokens per chunk: a whole number of documents, 4096 or a little fewer (one document where longer)."""
        return self.chunk_documents * self.doc_tokens

    def chunk(self, index: int, *, stream: str = "train") -> WorldChunk:
        """Draw one chunk of a stream; any chunk costs the same, in any order, and always has the same content.

        Args:
            index: Number of the chunk, from 0.
            stream: Any name; streams of different names are independent.

        Returns:
            `chunk_tokens` tokens with their parts.

        Raises:
            InputError: A negative or too large index, or a stream that is not a non-empty string.
        """
        check_stream(stream)
        check_int(index, "chunk index", 0)
        return draw_chunk(self, index, stream)

    def activations(
        self, n_tokens: int, *, stream: str = "train", batch_size: int = 4096, start: int = 0
    ) -> Iterator[Tensor]:
        """Stream activations, for training an SAE.

        Args:
            n_tokens: Tokens from the start of the stream to the end.
            stream: Train on one stream, evaluate on another.
            batch_size: Tokens per batch; it changes the cuts, never the content.
            start: First token wanted; those before it are not drawn, which is how a resumed run goes on.

        Returns:
            An iterator over (n, d) float32 tensors; only the last may be shorter than `batch_size`.

        Raises:
            InputError: A count below 1, a start at or beyond the end, or a stream that is not a non-empty string.
        """
        check_int(n_tokens, "n_tokens", 1)
        check_int(batch_size, "batch_size", 1)
        check_int(start, "start", 0)
        check_stream(stream)
        if start >= n_tokens:
            raise InputError(f"start is {start}, expected below n_tokens = {n_tokens}")
        size = self.chunk_tokens
        chunks = (self.chunk(i, stream=stream) for i in range(start // size, -(-n_tokens // size)))
        pieces = ((torch.from_numpy(c.x[max(0, start - c.index * size) : n_tokens - c.index * size]),) for c in chunks)
        return (batch for (batch,) in rebatch(pieces, batch_size))

    def pair(
        self,
        sae: Sae | Mapping[str, Sae],
        *,
        n_tokens: int,
        batch_size: int = 4096,
        stream: str = "eval",
        name: str | None = None,
    ) -> PairSource:
        """Join this world with one or more SAEs into a source of batches.

        Args:
            sae: A `Surgical`, a function from (n, d) float32 to a reconstruction (n, d), or several by name.
            n_tokens: Length of the source, exactly.
            batch_size: Tokens per batch; it changes the cuts, never the content.
            stream: Name of the stream.
            name: Name of a single SAE; "surgical" or "sae" by default. A mapping brings its own names.

        Returns:
            A resumable `darkmatter.batch.BatchSource`.

        Raises:
            InputError: A count below 1, no SAE, something that is not an SAE, or a surgical SAE that does not fit.
        """
        return open_pair(self, sae, n_tokens=n_tokens, batch_size=batch_size, stream=stream, name=name)

    def truth(
        self,
        sae: Sae,
        *,
        n_tokens: int | None = None,
        probe_tokens: int | None = None,
        stream: str = "truth",
        progress: Callable[[int], None] | None = None,
    ) -> Truth:
        """What an SAE's error is really made of; see `darkmatter.sandbox.truth.true_shares`.

        Args:
            sae: A `Surgical`, or a function from (n, d) float32 to a reconstruction (n, d).
            n_tokens: Tokens of the Monte Carlo where there is no closed form; 20 per true factor by default.
            probe_tokens: Tokens of a separate, larger sample for fvu and nonlinear.
            stream: Name of the stream to draw from; keep it apart from the one being decomposed.
            progress: Called with the number of tokens after every chunk.

        Returns:
            The shares, each with an interval.
        """
        return true_shares(self, sae, n_tokens=n_tokens, probe_tokens=probe_tokens, stream=stream, progress=progress)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON types, with the format's name and version."""
        return world_to_dict(self)

    def to_json(self) -> str:
        """The configuration as JSON: with a seed, all that an experiment needs."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> World:
        """Rebuild a world from `to_dict`.

        Args:
            data: What `to_dict` gave, perhaps through JSON.

        Returns:
            An equal world.

        Raises:
            InputError: Another format or version, fields missing or unknown, or options that cannot be.
        """
        return World(**world_options(data, {field.name for field in fields(World)}))

    @staticmethod
    def from_json(text: str) -> World:
        """Rebuild a world from `to_json`.

        Args:
            text: JSON.

        Returns:
            An equal world.

        Raises:
            InputError: Not JSON, or not a world.
        """
        return World.from_dict(parse_world(text))
