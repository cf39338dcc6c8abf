"""True sparse features: how often they fire, how strongly, how topics gather them, and where they point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from darkmatter.sandbox.seeding import generator

FIRING_CAP = 0.5
"""No feature fires on more than this share of all tokens."""

TOPIC_CAP = 0.95
"""No feature fires on more than this share of the tokens of its topic."""

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AmplitudeLaw:
    """Law of a feature's amplitude given that it fires.

    Attributes:
        name: What reports call it.
        moments: Raw moments (M1, M2, M3, M4) of the amplitude, M_k = E[a^k].
        draw: ``draw(rng, size)`` gives `size` independent amplitudes, float32.
    """

    name: str
    moments: tuple[float, float, float, float]
    draw: Callable[[np.random.Generator, int], Singles]


def _draw_exponential(rng: np.random.Generator, size: int) -> Singles:
    return rng.standard_exponential(size, dtype=np.float32)


EXPONENTIAL = AmplitudeLaw(name="exponential", moments=(1.0, 2.0, 6.0, 24.0), draw=_draw_exponential)
"""Exp(1): M_k = k!."""


def firing_probabilities(n_features: int, *, l0: float, zipf: float) -> Floats:
    """Firing probabilities that follow a capped power law and sum to L0.

    p_i = min(cap, a (i + 1)^-zipf), with a such that Σ p_i = l0. The weights decrease, so the capped features come
    first: with k of them a = (l0 − k cap) / Σ_{i≥k} (i + 1)^-zipf, and the right k is the smallest for which the
    next feature stays within the cap.

    Args:
        n_features: m.
        l0: Mean number of features that fire on a token; the caller has checked 0 < l0 ≤ m · cap.
        zipf: Exponent ≥ 0; 0 makes all features equally frequent.

    Returns:
        (m,) probabilities in (0, cap], not increasing.
    """
    weight: Floats = np.arange(1, n_features + 1, dtype=np.float64) ** -zipf
    rest = np.cumsum(weight[::-1])[::-1]  # Σ_{i≥k} weight_i, small terms first
    scale = (l0 - FIRING_CAP * np.arange(n_features)) / rest
    fits = np.flatnonzero(scale * weight <= FIRING_CAP)
    if not len(fits):  # l0 = m · cap up to rounding: every feature is capped
        return np.full(n_features, l0 / n_features)
    capped = int(fits[0])
    firing: Floats = scale[capped] * weight
    firing[:capped] = FIRING_CAP
    return firing


def topic_concentration(firing: Floats, *, topics: int, strength: float) -> Floats:
    """How much of a feature's firing is reserved for its own topic.

    p_i(t) = p_i ((1 − c_i) + c_i T 1[t = topic_i]), whose mean over topics is p_i whatever c_i is;
    c_i = min(strength, the value that puts p_i(topic_i) at the cap).

    Args:
        firing: (m,) probabilities p_i.
        topics: T.
        strength: Wanted c in [0, 1].

    Returns:
        (m,) concentrations c_i; zero where there is a single topic, since then nothing can be reserved.
    """
    if topics == 1:
        return np.zeros_like(firing)
    limit = (TOPIC_CAP / firing - 1.0) / (topics - 1)
    return np.minimum(strength, limit)


def feature_topics(n_features: int, *, topics: int, seed: int) -> Integers:
    """Draw the topic that each feature belongs to.

    Args:
        n_features: m.
        topics: T.
        seed: The world's seed.

    Returns:
        (m,) topics in [0, T), uniform and independent.
    """
    return generator("feature topics", seed).integers(0, topics, size=n_features)


def random_directions(n_features: int, *, d_model: int, seed: int) -> Singles:
    """Draw feature directions, independent and uniform on the sphere.

    Args:
        n_features: m.
        d_model: d.
        seed: The world's seed.

    Returns:
        (m, d) rows of unit norm.
    """
    rows = generator("dictionary", seed).standard_normal((n_features, d_model), dtype=np.float32)
    rows /= row_norms(rows)[:, None].astype(np.float32)
    return rows


def orthonormal_rows(rng: np.random.Generator, *, rows: int, width: int) -> Floats:
    """Draw an orthonormal frame whose span is a uniformly random subspace.

    Args:
        rng: The generator.
        rows: Number of rows, at most `width`.
        width: Length of a row.

    Returns:
        (rows, width) with orthonormal rows.
    """
    frame, _ = np.linalg.qr(rng.standard_normal((width, rows)))
    return np.ascontiguousarray(frame.T)


def orthonormal_directions(n_features: int, *, d_model: int, seed: int) -> Singles:
    """Draw feature directions that do not interfere: an orthonormal frame.

    Args:
        n_features: m, at most d.
        d_model: d.
        seed: The world's seed.

    Returns:
        (m, d) orthonormal rows.
    """
    return orthonormal_rows(generator("dictionary", seed), rows=n_features, width=d_model).astype(np.float32)


def row_norms(rows: npt.NDArray[Any]) -> Floats:
    """Euclidean norm of every row, accumulated in float64.

    Args:
        rows: (m, d).

    Returns:
        (m,).
    """
    norms: Floats = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return norms
