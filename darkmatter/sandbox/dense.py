"""The dense part of an activation: coordinates with a known law, in a random subspace, at a share of the variance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from darkmatter.errors import InputError
from darkmatter.sandbox import dense_shapes
from darkmatter.sandbox.config import check_int, check_number
from darkmatter.sandbox.dense_shapes import Floats, Shape, Singles
from darkmatter.sandbox.features import orthonormal_rows
from darkmatter.sandbox.seeding import generator

DIVISORS = {"gaussian": 1, "student": 1, "sphere": 1, "circles": 2, "torus": 3, "swiss-roll": 3}
"""Kinds of dense coordinates, and what their number must be a multiple of."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseLaw:
    """Law of the dense coordinates g of a token, independent from token to token, with E g = 0 and Cov g = I_k.

    Attributes:
        kind: What the configuration calls it.
        dense_dim: k.
        square_variance: Var |g|², |g|² being the square norm.
        shape: How blocks of coordinates are drawn and integrated.
    """

    kind: str
    dense_dim: int
    square_variance: float
    shape: Shape

    def draw(self, rng: np.random.Generator, n: int) -> Singles:
        """Draw the coordinates of n tokens.

        Args:
            rng: The generator.
            n: Tokens.

        Returns:
            (n, k).
        """
        return self.shape.sample(rng, n, self.dense_dim)

    @property
    def skew(self) -> Floats:
        """E[g |g|²], (k,): zero for a symmetric law, else that of a block, for the others are independent of it."""
        nodes, weights = self.shape.nodes, self.shape.weights
        if self.shape.symmetric:
            return np.zeros(self.dense_dim)
        block = weights * (nodes**2).sum(axis=1) @ nodes
        return np.tile(block, self._blocks)

    def odd_moments(self, function: Callable[[Floats], Floats]) -> tuple[Floats, Floats, Floats]:
        """Second moments of h_j = function(g_j), by quadrature.

        Two coordinates of different blocks are independent, or, for "student" and "sphere", change sign one by one
        without changing the law; then E[h_i h_j] and E[h_i g_j] vanish because h is odd.

        Args:
            function: An odd function of a float64 array, entry by entry, smooth, with finite E h².

        Returns:
            E[h h'] (k, k), E[h g'] (k, k) and E h (k,).

        Raises:
            InputError: The function is not odd, or not finite.
        """
        nodes, weights = self.shape.nodes, self.shape.weights
        values, mirrored = function(nodes), function(-nodes)
        if not np.isfinite(values).all():
            raise InputError("function of the dense coordinates gives NaN or infinity, expected finite values")
        if not np.allclose(mirrored, -values, rtol=1e-9, atol=1e-12 * float(np.abs(values).max())):
            raise InputError("function of the dense coordinates is not odd, expected function(-g) = -function(g)")
        mean = np.tile(weights @ values, self._blocks)
        root = np.sqrt(weights)[:, None] * values
        within_square = root.T @ root  # exactly symmetric
        within_cross = values.T @ (weights[:, None] * nodes)
        square = np.outer(mean, mean)
        cross = np.zeros_like(square)  # E g = 0
        for first in range(0, self.dense_dim, nodes.shape[1]):
            block = slice(first, first + nodes.shape[1])
            square[block, block], cross[block, block] = within_square, within_cross
        return square, cross, mean

    @property
    def _blocks(self) -> int:
        return self.dense_dim // self.shape.nodes.shape[1] if self.dense_dim else 0


def dense_law(kind: str, dense_dim: int, df: float = 5.0) -> DenseLaw:
    """Make the law of a kind of dense coordinates.

    * "gaussian": independent standard normals.
    * "student": elliptical multivariate t with `df` degrees of freedom, scaled to covariance I.
    * "circles": k / 2 independent circles of radius √2.
    * "sphere": uniform on the sphere of radius √k.
    * "torus": k / 3 independent tori, "swiss-roll": k / 3 independent swiss rolls, both standardised exactly.

    Args:
        kind: One of these.
        dense_dim: k ≥ 0; even for circles, a multiple of 3 for torus and swiss-roll, not 1 for sphere.
        df: ν of "student", above 4 so that |g|² has a variance.

    Returns:
        The law.

    Raises:
        InputError: An unknown kind, a dimension that does not fit, or too few degrees of freedom.
    """
    if kind not in DIVISORS:
        raise InputError(f"dense is {kind!r}, expected one of {', '.join(DIVISORS)}")
    check_int(dense_dim, "dense_dim", 0)
    if dense_dim % DIVISORS[kind]:
        raise InputError(f"dense_dim is {dense_dim}, expected a multiple of {DIVISORS[kind]} for dense={kind!r}")
    if kind == "sphere" and dense_dim == 1:
        raise InputError("dense_dim is 1, expected at least 2 for dense='sphere': in one dimension it is two points")
    if kind == "student":
        check_number(df, "dense_df", 4.0, 1e6)
        if df == 4.0:
            raise InputError("dense_df is 4, expected above 4: at 4 the square of a coordinate has no variance")
    shape = _shape(kind, dense_dim, float(df)) if dense_dim else dense_shapes.gaussian()
    spread = _square_variance(kind, dense_dim, float(df), shape) if dense_dim else 0.0
    return DenseLaw(kind=kind, dense_dim=dense_dim, square_variance=spread, shape=shape)


def _shape(kind: str, k: int, df: float) -> Shape:
    """Shape of a checked kind."""
    if kind == "student":
        return dense_shapes.student(df)
    if kind == "sphere":
        return dense_shapes.sphere(k)
    plain = {
        "gaussian": dense_shapes.gaussian,
        "circles": dense_shapes.circles,
        "torus": dense_shapes.torus,
        "swiss-roll": dense_shapes.swiss_roll,
    }
    return plain[kind]()


def _square_variance(kind: str, k: int, df: float, shape: Shape) -> float:
    """Var |g|²: closed forms, or k / b times that of one of the independent blocks."""
    if kind in {"circles", "sphere"}:
        return 0.0
    if kind == "gaussian":
        return 2.0 * k
    if kind == "student":  # |g|² = |z|² (ν − 2) / χ²_ν, E|z|⁴ = k (k + 2), E χ⁻⁴ = 1 / ((ν − 2)(ν − 4))
        return k * (k + 2.0) * (df - 2.0) / (df - 4.0) - float(k) ** 2
    width = int(shape.nodes.shape[1])
    square = (shape.nodes**2).sum(axis=1)
    return k // width * float(np.dot(shape.weights, (square - width) ** 2))


def dense_map(dense_dim: int, *, d_model: int, share: float, sparse_variance: float, seed: int) -> Singles:
    """Map F from dense coordinates g, with covariance I_k, to activations.

    F = a Q with orthonormal rows Q, so Var(g F) = k a². The share is of the whole, hence
    k a² = share / (1 − share) · Var S, with S the sparse part.

    Args:
        dense_dim: k; 0 gives an empty map.
        d_model: d.
        share: Var(g F) / Var x, in [0, 1).
        sparse_variance: Var S, the trace of the sparse part's population covariance.
        seed: The world's seed.

    Returns:
        F, (k, d).
    """
    if dense_dim == 0:
        return np.zeros((0, d_model), dtype=np.float32)
    frame = orthonormal_rows(generator("dense map", seed), rows=dense_dim, width=d_model)
    scale = float(np.sqrt(share / (1.0 - share) * sparse_variance / dense_dim))
    return (scale * frame).astype(np.float32)
