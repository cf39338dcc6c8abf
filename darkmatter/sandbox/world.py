"""A world whose every activation is known: sparse features in superposition plus a dense part, in documents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from darkmatter.errors import InputError
from darkmatter.sandbox.chunk import WorldChunk, rebatch, sparse_product
from darkmatter.sandbox.config import check_int, check_number, check_stream
from darkmatter.sandbox.dense import dense_map
from darkmatter.sandbox.factors import FactorMoments, combine_rows, factor_moments
from darkmatter.sandbox.features import (
    EXPONENTIAL,
    FIRING_CAP,
    AmplitudeLaw,
    Floats,
    Singles,
    feature_topics,
    firing_probabilities,
    orthonormal_directions,
    random_directions,
    row_norms,
    topic_concentration,
)
from darkmatter.sandbox.sampling import FiringLaw, draw_codes
from darkmatter.sandbox.seeding import MAX_DOCUMENTS, first_document, generator
from darkmatter.sandbox.source import PairSource, Sae, open_pair
from darkmatter.sandbox.truth import Truth, true_shares

FORMAT = "darkmatter.world"
VERSION = 1
CHUNK_TOKENS = 4096
"""Tokens per chunk, up to a whole number of documents; part of the format, since it decides the draws."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A distribution of activations x = Σ_i w_i y_i + g F, with everything in it known.

    A document has one topic, drawn uniformly from T. Given the topic, feature i fires on a token with probability
    p_i(t) = p_i ((1 − c_i) + c_i T 1[t = topic_i]), independently of all else, with an Exp(1) amplitude w_i; hence
    p_i on average over topics. Equal fields give the same world, token for token (on one numpy version).

    Attributes:
        n_features: Sparse features m.
        d_model: Activation width d.
        dense_dim: Dense dimensions k, 0 ≤ k ≤ d; with 0, `dense_share` must be 0.
        l0: Mean number of features that fire on a token, 0 < l0 ≤ m/2 (no feature fires on more than half of them).
        zipf: Firing probabilities fall like (i + 1)^-zipf until capped; in [0, 10].
        dense_share: Variance of the dense part over Var x, in [0, 1).
        dictionary: "random" (unit rows, uniform on the sphere) or "orthonormal" (needs m ≤ d).
        topics: T ≥ 1.
        topic_strength: Wanted c_i in [0, 1]; 0 makes tokens independent.
        doc_tokens: Tokens per document.
        seed: Non-negative int.
    """

    n_features: int = 4096
    d_model: int = 256
    dense_dim: int = 32
    l0: float = 32.0
    zipf: float = 1.0
    dense_share: float = 0.1
    dictionary: Literal["random", "orthonormal"] = "random"
    topics: int = 16
    topic_strength: float = 0.2
    doc_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        lowest = {"n_features": 1, "d_model": 1, "dense_dim": 0, "topics": 1, "doc_tokens": 1, "seed": 0}
        for name, low in lowest.items():
            check_int(getattr(self, name), name, low)
        check_number(self.l0, "l0", 0.0, math.inf)
        check_number(self.zipf, "zipf", 0.0, 10.0)  # beyond, the rarest feature's weight underflows
        check_number(self.dense_share, "dense_share", 0.0, 1.0, closed=False)
        check_number(self.topic_strength, "topic_strength", 0.0, 1.0)
        if self.dictionary not in {"random", "orthonormal"}:
            raise InputError(f"dictionary is {self.dictionary!r}, expected 'random' or 'orthonormal'")
        if self.dense_dim > self.d_model:
            raise InputError(f"dense_dim is {self.dense_dim}, expected at most d_model = {self.d_model}")
        if self.dense_dim == 0 and self.dense_share > 0.0:
            raise InputError(f"dense_share is {self.dense_share:g} with dense_dim = 0: pass dense_share=0")
        if self.dictionary == "orthonormal" and self.n_features > self.d_model:
            raise InputError(
                f"an orthonormal dictionary holds at most d_model = {self.d_model} features, got "
                f"n_features = {self.n_features}: use dictionary='random' for superposition"
            )
        most = FIRING_CAP * self.n_features
        if not 0.0 < self.l0 <= most:
            raise InputError(
                f"l0 is {self.l0:g}, expected above 0 and at most {most:g}: none of the {self.n_features} features "
                f"fires on more than {FIRING_CAP:.0%} of the tokens"
            )

    @property
    def amplitude(self) -> AmplitudeLaw:
        """Law of the amplitudes: Exp(1)."""
        return EXPONENTIAL

    @cached_property
    def firing(self) -> Floats:
        """Firing probabilities p_i, (m,), not increasing, summing to `l0`."""
        return firing_probabilities(self.n_features, l0=self.l0, zipf=self.zipf)

    @cached_property
    def firing_law(self) -> FiringLaw:
        """Firing probabilities given the topic."""
        c = topic_concentration(self.firing, topics=self.topics, strength=self.topic_strength)
        topic = feature_topics(self.n_features, topics=self.topics, seed=self.seed)
        other = self.firing * (1.0 - c)
        return FiringLaw(own=other + self.firing * c * self.topics, other=other, topic=topic, n_topics=self.topics)

    @cached_property
    def dictionary_matrix(self) -> Singles:
        """Feature directions, (m, d), rows of unit norm."""
        draw = orthonormal_directions if self.dictionary == "orthonormal" else random_directions
        return draw(self.n_features, d_model=self.d_model, seed=self.seed)

    @cached_property
    def dense_map(self) -> Singles:
        """F, (k, d), orthogonal rows of one length."""
        return dense_map(
            self.dense_dim,
            d_model=self.d_model,
            share=self.dense_share,
            sparse_variance=self.sparse_variance,
            seed=self.seed,
        )

    @cached_property
    def factor_moments(self) -> FactorMoments:
        """Population mean and covariance of the sparse factors."""
        return factor_moments(self.firing_law, self.amplitude)

    @cached_property
    def within_variance(self) -> Floats:
        """Variance that each feature gives x when the topic is known: diagonal_i ‖y_i‖², (m,)."""
        within: Floats = self.factor_moments.diagonal * row_norms(self.dictionary_matrix) ** 2
        return within

    @cached_property
    def topic_directions(self) -> Floats:
        """What topics do to x: rows (E[x | t] − E x) / √T, (T, d)."""
        return combine_rows(self.factor_moments.low_rank, self.dictionary_matrix)

    @cached_property
    def sparse_variance(self) -> float:
        """Var S, the trace of the sparse part's covariance."""
        return float(self.within_variance.sum() + (self.topic_directions**2).sum())

    @cached_property
    def dense_variance(self) -> float:
        """Var D = ‖F‖²."""
        return float((row_norms(self.dense_map) ** 2).sum())

    @property
    def variance(self) -> float:
        """Var x, the trace of the population covariance."""
        return self.sparse_variance + self.dense_variance

    @cached_property
    def mean(self) -> Floats:
        """E x, (d,)."""
        mean: Floats = combine_rows(self.factor_moments.mean[:, None], self.dictionary_matrix)[0]
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
        first = index * self.chunk_documents
        if first + self.chunk_documents > MAX_DOCUMENTS:
            raise InputError(f"chunk {index} is beyond a stream's {MAX_DOCUMENTS} documents: use a second stream name")
        rng = generator("stream", self.seed, stream, index)
        topics = np.repeat(rng.integers(0, self.topics, size=self.chunk_documents), self.doc_tokens)
        codes = draw_codes(rng, self.firing_law, self.amplitude, topics)
        coords = rng.standard_normal((len(topics), self.dense_dim), dtype=np.float32)
        x = sparse_product(codes, self.dictionary_matrix)
        if self.dense_dim:
            x += coords @ self.dense_map
        documents = first_document(stream) + first + np.arange(self.chunk_documents, dtype=np.int64)
        return WorldChunk(
            stream=stream,
            index=index,
            first_row=0,
            codes=codes,
            dense_coords=coords,
            x=x,
            groups=np.repeat(documents, self.doc_tokens),
            topics=topics,
            dictionary=self.dictionary_matrix,
            dense_map=self.dense_map,
        )

    def activations(self, n_tokens: int, *, stream: str = "train", batch_size: int = 4096) -> Iterator[Tensor]:
        """Stream activations, for training an SAE.

        Args:
            n_tokens: How many tokens.
            stream: Train on one stream, evaluate on another.
            batch_size: Tokens per batch; it changes the cuts, never the content.

        Returns:
            An iterator over (n, d) float32 tensors; only the last may be shorter than `batch_size`.

        Raises:
            InputError: A count below 1, or a stream that is not a non-empty string.
        """
        check_int(n_tokens, "n_tokens", 1)
        check_int(batch_size, "batch_size", 1)
        check_stream(stream)
        chunks = (self.chunk(i, stream=stream) for i in range(-(-n_tokens // self.chunk_tokens)))
        pieces = ((torch.from_numpy(c.x[: n_tokens - c.index * self.chunk_tokens]),) for c in chunks)
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
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> World:
        """Rebuild a world from `to_dict`.

        Args:
            data: What `to_dict` gave, perhaps through JSON.

        Returns:
            An equal world.

        Raises:
            InputError: Another format or version, or fields missing or unknown.
        """
        values = dict(data)
        got = (values.pop("format", None), values.pop("version", None))
        if got != (FORMAT, VERSION):
            raise InputError(f"world has format {got[0]!r} version {got[1]!r}, expected {FORMAT!r} version {VERSION}")
        known = {field.name for field in fields(World)}
        if set(values) != known:
            raise InputError(
                f"world lacks {sorted(known - set(values))} and has unknown {sorted(set(values) - known)}: "
                "expected exactly the fields that to_dict writes"
            )
        return World(**values)
