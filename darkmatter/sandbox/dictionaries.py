"""Where features point: random, orthonormal, low-coherence, clustered, hierarchical, or a user's own directions."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError
from darkmatter.sandbox.coherence import low_coherence
from darkmatter.sandbox.config import check_int, check_number
from darkmatter.sandbox.features import Floats, Integers, Singles, orthonormal_rows, row_norms
from darkmatter.sandbox.seeding import generator
from darkmatter.sandbox.table import Table

KINDS = ("random", "orthonormal", "low-coherence", "clustered", "hierarchical")
"""Dictionaries that have a name."""

UNIT = 1e-4
"""How far from 1 the norm of a user's direction may be."""


def dictionary(
    kind: str | Table,
    *,
    n_features: int,
    d_model: int,
    seed: int,
    clusters: int = 64,
    similarity: float = 0.5,
    parent: npt.NDArray[np.integer] | None = None,
) -> Singles:
    """Make the feature directions.

    * "random": independent, uniform on the sphere.
    * "orthonormal": an orthonormal frame, m ≤ d.
    * "low-coherence": random, then spread; see `darkmatter.sandbox.coherence.low_coherence`.
    * "clustered": feature i has cosine `similarity` with the random centre of cluster i mod `clusters`.
    * "hierarchical": a child has cosine `similarity` with its parent; roots are random.
    * a `Table` (m, d) of unit rows.

    Args:
        kind: One of these.
        n_features: m.
        d_model: d.
        seed: The world's seed.
        clusters: Number of clusters; only "clustered" reads it.
        similarity: Cosine in [0, 1] with the centre or the parent; only "clustered" and "hierarchical" read it.
        parent: (m,) index of each feature's parent, smaller than its own, −1 for a root; "hierarchical" needs it.

    Returns:
        (m, d) rows of unit norm.

    Raises:
        InputError: An unknown kind, or options that do not fit it.
    """
    if isinstance(kind, Table):
        return _own(kind, n_features, d_model)
    rng = generator("dictionary", seed)
    if kind == "random":
        return _random(rng, n_features, d_model)
    if kind == "orthonormal":
        if n_features > d_model:
            raise InputError(
                f"an orthonormal dictionary holds at most d_model = {d_model} features, got "
                f"n_features = {n_features}: use dictionary='random' for superposition"
            )
        return orthonormal_rows(rng, rows=n_features, width=d_model).astype(np.float32)
    if kind == "low-coherence":
        return low_coherence(_random(rng, n_features, d_model))
    if kind not in KINDS:
        raise InputError(f"dictionary is {kind!r}, expected a Table or one of {', '.join(KINDS)}")
    check_number(similarity, "similarity", 0.0, 1.0)
    if d_model == 1 and similarity < 1.0:
        raise InputError(f"d_model is 1, expected at least 2 for a similarity of {similarity:g} below 1")
    if kind == "clustered":
        check_int(clusters, "clusters", 1)
        centres = _random(rng, min(clusters, n_features), d_model)
        return _towards(centres[np.arange(n_features) % clusters], similarity, rng)
    return _hierarchical(rng, d_model, similarity, _checked_parent(parent, n_features))


def _random(rng: np.random.Generator, n: int, d: int) -> Singles:
    rows = rng.standard_normal((n, d), dtype=np.float32)
    rows /= row_norms(rows)[:, None].astype(np.float32)
    return rows


def _towards(centres: Singles, similarity: float, rng: np.random.Generator) -> Singles:
    """Draw unit rows whose cosine with their centre is `similarity`: s c + √(1 − s²) e, e a unit vector ⊥ c."""
    c = centres.astype(np.float64)
    e: Floats = rng.standard_normal(c.shape)
    for _ in range(2):  # the second time removes what rounding left of the first, as in Gram–Schmidt
        e -= np.einsum("ij,ij->i", e, c)[:, None] / np.einsum("ij,ij->i", c, c)[:, None] * c
    e /= row_norms(e)[:, None]
    rows = similarity / row_norms(c)[:, None] * c + math.sqrt(1.0 - similarity**2) * e
    return rows.astype(np.float32)


def _hierarchical(rng: np.random.Generator, d: int, similarity: float, parent: Integers) -> Singles:
    """Draw level by level, since a child needs its parent's direction."""
    rows = np.empty((len(parent), d), dtype=np.float32)
    level = np.flatnonzero(parent < 0)
    rows[level] = _random(rng, len(level), d)
    while len(level):
        level = np.flatnonzero(np.isin(parent, level))
        rows[level] = _towards(rows[parent[level]], similarity, rng)
    return rows


def _checked_parent(parent: npt.NDArray[np.integer] | None, n: int) -> Integers:
    """Require a forest whose parents come before their children.

    Raises:
        InputError: No forest, another shape, or a parent that is not an earlier feature.
    """
    if parent is None:
        raise InputError("dictionary='hierarchical' needs a hierarchy: set roots, branching and depth")
    if parent.shape != (n,) or not (parent < np.arange(n)).all() or parent.min() < -1:
        raise InputError(f"parent has shape {parent.shape}, expected ({n},) indices of earlier features, or -1")
    return parent.astype(np.int64)


def _own(table: Table, n: int, d: int) -> Singles:
    """Check a user's directions, and make their norms exactly 1 where rounding moved them.

    Raises:
        InputError: Another shape, or a row that is not a unit vector.
    """
    if table.shape != (n, d):
        raise InputError(f"dictionary has shape {table.shape}, expected (n_features, d_model) = ({n}, {d})")
    norms = row_norms(table.array)
    worst = int(np.abs(norms - 1.0).argmax())
    if abs(norms[worst] - 1.0) > UNIT:
        raise InputError(
            f"dictionary row {worst} has norm {norms[worst]:g}, expected unit rows: divide each row by its norm "
            "(the strength of a feature belongs in its amplitude)"
        )
    return (table.array / norms[:, None]).astype(np.float32)
