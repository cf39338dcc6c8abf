"""Cases for the claims about leakage: laws of documents, nested groups and corpora."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from darkmatter.claims.strategies import Floats, covariances, seeds, small_matrices


@dataclass(frozen=True, slots=True)
class Documents:
    """Equally likely kinds of documents of T tokens, with offsets shared by the tokens of a document."""

    kinds: int
    tokens: int
    d: int
    q: int
    offset: float
    seed: int

    def arrays(self) -> tuple[Floats, Floats]:
        """Errors (kinds, T, q) and activations (kinds, T, d)."""
        rng = np.random.default_rng(self.seed)
        x = rng.standard_normal((self.kinds, self.tokens, self.d)) + rng.standard_normal((self.kinds, 1, self.d))
        e = rng.standard_normal((self.kinds, self.tokens, self.q)) + 0.3 * (x**2).sum(axis=2, keepdims=True)
        return e + self.offset * rng.standard_normal((self.kinds, 1, self.q)), x


document_laws = st.builds(
    Documents,
    kinds=st.integers(3, 6),
    tokens=st.integers(2, 4),
    d=st.integers(1, 2),
    q=st.integers(1, 2),
    offset=st.floats(0.0, 2.0),
    seed=seeds(),
)


@dataclass(frozen=True, slots=True, eq=False)
class Offsets:
    """Offsets u and g that take the values ±a with equal probability, and token parts, of d independent coordinates."""

    cov_u: Floats
    token: float
    g: float

    def documents(self) -> tuple[Floats, Floats]:
        """Every combination of offsets with two tokens z and −z, or z and z, so that z_1 and z_2 are uncorrelated."""
        d = len(self.cov_u)
        values, axes = np.linalg.eigh(self.cov_u)
        root = axes * np.sqrt(np.maximum(values, 0.0))
        signs = np.array(list(product([-1.0, 1.0], repeat=d)))
        z = math.sqrt(d) * self.token * np.eye(d)  # uniform over directions: covariance token² I
        rows = [
            ([s @ root.T + first, s @ root.T + second], [g, g])
            for s, g, direction in product(signs, (-self.g, self.g), z)
            for first in (direction, -direction)
            for second in (direction, -direction)
        ]
        return np.array([row[1] for row in rows])[:, :, None], np.array([row[0] for row in rows])


@st.composite
def offset_laws(draw: st.DrawFn) -> Offsets:
    """Offsets from small to large beside the token parts, singular ones among them.

    Args:
        draw: Supplied by hypothesis.

    Returns:
        The offsets.
    """
    cov = draw(covariances(most_dims=3))
    return Offsets(cov, math.sqrt(float(np.trace(cov))) * draw(st.floats(0.3, 3.0)), draw(st.floats(0.1, 3.0)))


@st.composite
def exchangeable(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """Kinds of documents, each a law of a few tokens (x, e) of which two are drawn.

    Args:
        draw: Supplied by hypothesis.

    Returns:
        Errors and activations, (kinds, tokens, 1) each.
    """
    kinds, values = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    both = draw(small_matrices(kinds * values, 2)).reshape(kinds, values, 2)
    return both[:, :, 1:], both[:, :, :1]


@dataclass(frozen=True, slots=True, eq=False)
class Nested:
    """Activations of tokens in documents in sources, all of equal size."""

    x: Floats
    sources: int
    documents: int
    tokens: int

    def level(self, name: str) -> npt.NDArray[np.int64]:
        """Number of every token's source, document or place in its document."""
        rows = np.arange(len(self.x))
        return {
            "source": rows // (self.documents * self.tokens),
            "document": rows // self.tokens,
            "token": rows % self.tokens,
        }[name]

    def __str__(self) -> str:
        rows = self.x.reshape(self.sources, self.documents, self.tokens, -1)

        def text(a: Floats) -> str:
            return "; ".join(" ".join(f"{v:g}" for v in row) for row in a)

        parts = [f"source {s + 1}: " + ", ".join(f"[{text(doc)}]" for doc in source) for s, source in enumerate(rows)]
        if self.documents == 1:
            parts = [f"[{text(source[0])}]" for source in rows]
        return f"x of the tokens of each document: {', '.join(parts)}"


@st.composite
def nested_documents(draw: st.DrawFn, *, shared: bool) -> Nested:
    """Small whole-number activations of tokens in documents in sources.

    Args:
        draw: Supplied by hypothesis.
        shared: A source has several documents; else one, of several tokens.

    Returns:
        The activations.
    """
    sources, documents = draw(st.integers(2, 4)), draw(st.integers(2, 3)) if shared else 1
    tokens, d = draw(st.integers(1 if shared else 2, 3)), draw(st.integers(1, 3))
    return Nested(draw(small_matrices(sources * documents * tokens, d, most=2)), sources, documents, tokens)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents whose tokens arrive in any order, in two streams of batches that are merged."""

    ids: tuple[int, ...]
    folds: int
    batch: int
    seed: int


corpora = st.builds(
    Corpus,
    ids=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 30), min_size=1, max_size=8, unique=True).map(
        tuple
    ),
    folds=st.integers(2, 20),
    batch=st.integers(1, 40),
    seed=seeds(),
)
