"""Closed forms of what a surgical SAE adds: its variance beyond the affine, and its affine response to the factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from darkmatter.sandbox.added import DENSE_GAIN, affine_matrix, dense_frame
from darkmatter.sandbox.population import population_covariance

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Floats, Integers
    from darkmatter.sandbox.world import World

BLOCK = 512
"""Rows of the features' Gram matrix at a time."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AddedMoments:
    """Moments of an added term A at scale one, A − E A = f B + N with N uncorrelated with the factors f.

    B is the sum of three tables, each zero where it is None.

    Attributes:
        variance: What the asked share fixes: Var N, the introduced error; for kind "affine", Var A.
        through_x: (d, d), B = (coefficients of x) @ through_x.
        own: (m,) multiple of y_i on w_i.
        on_dense: (k, d) rows of B on the dense coordinates.
    """

    variance: float
    through_x: Floats | None = None
    own: Floats | None = None
    on_dense: Floats | None = None

    def response(self, true: Floats, n_features: int) -> Floats:
        """The affine response.

        Args:
            true: Coefficients of x on the factors, (m + k, d).
            n_features: m.

        Returns:
            B, (m + k, d), float64.
        """
        found = np.zeros_like(true) if self.through_x is None else true @ self.through_x
        if self.own is not None:
            found[:n_features] += self.own[:, None] * true[:n_features]
        if self.on_dense is not None:
            found[n_features:] += self.on_dense
        return found


def has_moments(world: World, kind: str) -> bool:
    """Whether a kind has closed-form moments in a world."""
    if kind == "dense":
        return world.dense_codes is None
    if kind == "interference":
        return world.independent and world.dense_codes is None
    return kind != "function"


def added_moments(world: World, kind: str, features: Integers, seed: int) -> AddedMoments:
    """Moments of an added term where `has_moments`.

    Both Gaussian kinds have E[N | x, f] = 0, so no response; Var N = d, and d E‖x‖² for the heteroscedastic one.

    Args:
        world: The world.
        kind: One of `darkmatter.sandbox.added.KINDS` but "none".
        features: Indices of the learned features.
        seed: The SAE's seed.

    Returns:
        The moments.
    """
    if kind == "independent":
        return AddedMoments(variance=float(world.d_model))
    if kind == "heteroscedastic":
        return AddedMoments(variance=world.d_model * (world.variance + float(world.mean @ world.mean)))
    if kind == "dense":
        return dense_moments(world)
    if kind == "interference":
        return interference_moments(world, features)
    assert kind == "affine", kind
    matrix = affine_matrix(world.d_model, seed).astype(np.float64)
    spread = matrix.T @ population_covariance(world) @ matrix
    return AddedMoments(variance=float(np.trace(spread)), through_x=matrix)


def dense_moments(world: World) -> AddedMoments:
    """Moments of Σ_j h(g_j) u_j, h = tanh(2 ·), for dense coordinates that are independent of the codes.

    With Cov g = I the affine part of h is Γ g, Γ = Cov(h, g) = E h g', and Cov(h − Γ g) = E h h' − E h E h' − Γ Γ'.
    So B has the rows Γ'U on g and zeros on w, and Var N = tr U'(E h h' − E h E h' − Γ Γ')U.

    Args:
        world: A world whose dense part is a `DenseLaw`.

    Returns:
        The moments.
    """
    frame = dense_frame(world)
    assert world.dense_law is not None, "dense_frame and has_moments have checked"
    square, cross, mean = world.dense_law.odd_moments(lambda g: np.tanh(DENSE_GAIN * g))
    left = square - np.outer(mean, mean) - cross @ cross.T
    return AddedMoments(variance=float((left * (frame @ frame.T)).sum()), on_dense=cross.T @ frame)


def interference_moments(world: World, features: Integers) -> AddedMoments:
    """Moments of A = Σ_{i∈L} f_i (y_i·x − w_i) y_i, f_i = 1[w_i > 0], where all factors are independent.

    Write p_i = E f_i, μ_i = E w_i, v_i = Var w_i, κ_i = Cov(f_i, w_i) = (1 − p_i) μ_i, G_ij = y_i·y_j and
    h_i = Σ_{j≠i} G_ij w_j + (g F)·y_i, which is independent of f_i, with mean η_i. Then f_i h_i splits (Hoeffding) into
        p_i η_i + (f_i − p_i) η_i + p_i (h_i − η_i) + (f_i − p_i)(h_i − η_i),
    whose terms are uncorrelated. The third is affine in the factors. Of the second, f_i − p_i = (κ_i/v_i)(w_i − μ_i) +
    ρ_i, with ρ_i uncorrelated with w_i and Var ρ_i = p_i(1 − p_i) − κ_i²/v_i. The last is a sum over pairs of
    independent factors, hence uncorrelated with every single factor. So N = Σ_i [η_i ρ_i + (f_i − p_i)(h_i − η_i)] y_i,
        Var N = Σ_i η_i² Var ρ_i + Σ_i p_i(1 − p_i)(Σ_{j≠i} G_ij² v_j + |F y_i|²) + Σ_{i≠j} G_ij³ κ_i κ_j,
    sums over L, but j over all features where it stands under one i. The last sum is the covariance of the terms (i, j)
    and (j, i) of one pair, E[(f_i − p_i)(w_i − μ_i)] E[(w_j − μ_j)(f_j − p_j)] G_ij² y_i·y_j. The response is
        on w_j: Σ_{i∈L, i≠j} p_i G_ij y_i + 1[j∈L] η_j (κ_j/v_j) y_j,    on g: F Σ_{i∈L} p_i y_i y_i'.

    Args:
        world: A world with independent features and dense coordinates that are independent of them.
        features: L, at least one.

    Returns:
        The moments; the directions are taken to have unit norm, which float32 holds to 1e-7.
    """
    p, mean, variance = firing_moments(world)
    y = world.dictionary_matrix.astype(np.float64)
    dense = world.dense_map.astype(np.float64)
    mine, rate, kappa = y[features], p[features], ((1.0 - p) * mean)[features]
    eta = mine @ (mean @ y) - mean[features]
    slope = kappa / variance[features]
    flicker = rate * (1.0 - rate)
    others = np.einsum("jd,jd->j", mine @ ((y * variance[:, None]).T @ y), mine) - variance[features]
    pairs = 0.0
    for start in range(0, len(mine), BLOCK):
        rows = slice(start, start + BLOCK)
        gram = mine[rows] @ mine.T
        gram[np.arange(len(gram)), np.arange(start, start + len(gram))] = 0.0
        pairs += float(kappa[rows] @ gram**3 @ kappa)
    total = eta**2 @ (flicker - kappa * slope) + flicker @ (others + ((mine @ dense.T) ** 2).sum(axis=1)) + pairs
    seen = (mine * rate[:, None]).T @ mine  # Σ p_i y_i y_i'
    own = np.zeros(len(y))
    own[features] = eta * slope - rate
    return AddedMoments(variance=float(total), through_x=seen, own=own)


def firing_moments(world: World) -> tuple[Floats, Floats, Floats]:
    """P(w_i > 0), E w_i and Var w_i of a world with independent features, each (m,)."""
    first, second = world.amplitude_law.moments[:2]
    p, scale = world.firing_rates, world.amplitude_scales
    mean: Floats = p * first * scale
    variance: Floats = p * second * scale**2 - mean**2
    return p, mean, variance
