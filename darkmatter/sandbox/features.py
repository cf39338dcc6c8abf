"""True sparse features: how often they fire, and how topics gather them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError
from darkmatter.sandbox.seeding import generator
from darkmatter.sandbox.table import Table

FIRING_LAWS = ("zipf", "constant", "linear")

FIRING_CAP = 0.5
"""No feature fires on more than this share of all tokens."""

TOPIC_CAP = 0.95
"""No feature fires on more than this share of the tokens of its topic."""

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def firing_rates(firing: str | Table, n_features: int, *, l0: float, zipf: float) -> Floats:
    """Firing rates of the features, summing to L0.

    Args:
        firing: "zipf" (rates fall like (i + 1)^-zipf), "constant", "linear" (like m − i), each capped; or a table (m,)
            of relative rates, scaled as a whole.
        n_features: m.
        l0: Mean number of features that fire on a token, 0 < l0 ≤ m · cap.
        zipf: Exponent ≥ 0, for "zipf".

    Returns:
        (m,) rates in (0, cap]; not increasing, unless they come from a table.

    Raises:
        InputError: An unknown law, or a table of another shape, with an entry that is not positive, or with a rate
            above the cap.
    """
    if isinstance(firing, Table):
        return _given_rates(firing, n_features, l0)
    rank = np.arange(1, n_features + 1, dtype=np.float64)
    if firing not in FIRING_LAWS:
        raise InputError(f"firing is {firing!r}, expected one of {', '.join(FIRING_LAWS)}, or a table of rates (m,)")
    weight = {"zipf": rank**-zipf, "constant": np.ones(n_features), "linear": rank[::-1].copy()}[firing]
    return capped_rates(weight, l0=l0)


def _given_rates(table: Table, n_features: int, l0: float) -> Floats:
    if table.shape != (n_features,):
        raise InputError(f"firing has shape {table.shape}, expected (n_features,) = ({n_features},)")
    weight = table.array.astype(np.float64)
    if weight.min() <= 0.0:
        i = int(np.argmin(weight))
        raise InputError(f"firing[{i}] is {weight[i]:g}, expected a positive rate: leave out features that never fire")
    rates: Floats = weight * (l0 / weight.sum())
    if rates.max() > FIRING_CAP * (1 + 1e-12):
        i = int(np.argmax(rates))
        raise InputError(
            f"feature {i} would fire on {rates[i]:.0%} of the tokens, expected at most {FIRING_CAP:.0%}: lower l0, or "
            "flatten the rates"
        )
    return rates


def capped_rates(weight: Floats, *, l0: float) -> Floats:
    """Scale falling weights to rates that sum to L0, none above the cap.

    p_i = min(cap, a weight_i), with a such that Σ p_i = l0. The weights decrease, so the capped features come first:
    with k of them a = (l0 − k cap) / Σ_{i≥k} weight_i, and the right k is the smallest for which the next feature
    stays within the cap.

    Args:
        weight: (m,) positive, not increasing.
        l0: Their sum after scaling, 0 < l0 ≤ m · cap.

    Returns:
        (m,) rates in (0, cap], not increasing.
    """
    m = len(weight)
    rest = np.cumsum(weight[::-1])[::-1]  # Σ_{i≥k} weight_i, small terms first
    scale = (l0 - FIRING_CAP * np.arange(m)) / rest
    fits = np.flatnonzero(scale * weight <= FIRING_CAP)
    if not len(fits):  # l0 = m · cap up to rounding: every feature is capped
        return np.full(m, l0 / m)
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


def feature_topics(n_units: int, *, topics: int, seed: int) -> Integers:
    """Draw the topic that each unit (a feature, a tree or a group of exclusive features) belongs to.

    Args:
        n_units: u.
        topics: T.
        seed: The world's seed.

    Returns:
        (u,) topics in [0, T), uniform and independent.
    """
    return generator("feature topics", seed).integers(0, topics, size=n_units)


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


def row_norms(rows: npt.NDArray[Any]) -> Floats:
    """Euclidean norm of every row, accumulated in float64.

    Args:
        rows: (m, d).

    Returns:
        (m,).
    """
    norms: Floats = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return norms
