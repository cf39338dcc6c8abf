"""How much of a squared norm a linear probe of x reads off, in closed form: an oracle for the norm tests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from darkmatter.errors import InputError
from darkmatter.sandbox.population import population_covariance, pseudo_inverse

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Floats
    from darkmatter.sandbox.surgical import Surgical
    from darkmatter.sandbox.world import World

KINDS = ("none", "independent")
"""Kinds of introduced error for which the squared norms have a closed form."""


@dataclass(frozen=True, slots=True)
class NormProbe:
    """Population R² of squared norms regressed on x with an intercept; NaN where a norm does not vary.

    Attributes:
        x: Of ‖x‖², what `r2_norm_x` estimates.
        error: Of ‖e‖², what `r2_norm` estimates.
        recon: Of ‖Sae(x)‖², what `r2_norm_recon` estimates.
    """

    x: float
    error: float
    recon: float


@dataclass(frozen=True, slots=True)
class _Vector:
    """A vector v = Σ_i w_i U_i + g V + σ n with n ~ N(0, I_d), independent of the factors.

    Attributes:
        sparse: U, (m, d).
        dense: V, (k, d), orthogonal rows of one length.
        noise: σ.
    """

    sparse: Floats
    dense: Floats
    noise: float


def norm_probe(world: World, surgical: Surgical) -> NormProbe:
    """Population R² of ‖x‖², ‖e‖² and ‖Sae(x)‖² regressed on x: section 4 (appendix A), with a dense part and noise.

    Let v = Σ_i w_i U_i + g V + σ n with all w_i, g and n independent, E g = 0, Cov g = I and V V' = α I. Write
    μ_i, v_i for mean and variance of w_i, k_i = Cov(w_i, w_i²), t_i = Var w_i², H = U U', b_i = Σ_{j≠i} H_ij μ_j,
    a = V Σ_i μ_i U_i. Up to a constant, ‖v‖² is the sum of uncorrelated terms
        H_ii (w_i² − E w_i²) + 2 b_i (w_i − μ_i)          variance H_ii² t_i + 4 H_ii b_i k_i + 4 b_i² v_i,
        2 Σ_{j<i} H_ij (w_i − μ_i)(w_j − μ_j)             4 Σ_{j<i} H_ij² v_i v_j,
        2 Σ_i (w_i − μ_i) U_i·(g V)                       4 Σ_i v_i |V U_i|²,
        α (|g|² − k) + 2 g·a                              α² Var|g|² + 4 α a·E[g |g|²] + 4 |a|²,
        σ² (|n|² − d) + 2 σ n·(v − σ n)                   2 d σ⁴ + 4 σ² E|v − σ n|².
    Only the first and the fourth are correlated with x = Σ_i w_i y_i + g F:
        q = Cov(x, ‖v‖²) = Σ_i (H_ii k_i + 2 b_i v_i) y_i + F'(α E[g |g|²] + 2 a),   R² = q' Cov(x)⁺ q / Var ‖v‖².
    For x itself U = Y and V = F; for the reconstruction U holds the SAE's directions, V = 0 and σ² d = Var N; for the
    error U is the difference, V = F, and σ the same.

    Args:
        world: A world whose features are independent and whose dense part does not depend on them.
        surgical: An SAE with introduced "none" or "independent" that is linear in the codes.

    Returns:
        The three R².

    Raises:
        InputError: Another world or SAE: there is no closed form.
    """
    if not world.independent or world.dense_codes is not None:
        raise InputError(
            "the norm probe has a closed form only where features are independent of each other and of the dense part: "
            "pass topic_strength=0, correlation=0, roots=0, exclusion=1 and another dense than 'codes', or measure it "
            "with decompose"
        )
    bound = surgical.bind(world)
    response = bound.response
    if response is None or (surgical.introduced_share and surgical.introduced not in KINDS):
        raise InputError(
            f"the norm probe has no closed form for introduced={surgical.introduced!r}, splitting "
            f"{surgical.splitting:g}, absorption {surgical.absorption:g}, expected {' or '.join(KINDS)} without either"
        )
    m = world.n_features
    y, f = world.dictionary_matrix.astype(np.float64), world.dense_map.astype(np.float64)
    inverse = pseudo_inverse(population_covariance(world))
    known = response[:m]
    return NormProbe(
        x=_r2(world, inverse, _Vector(y, f, 0.0)),
        error=_r2(world, inverse, _Vector(y - known, f, bound.scale)),
        recon=_r2(world, inverse, _Vector(known, np.zeros_like(f), bound.scale)),
    )


def _r2(world: World, inverse: Floats, v: _Vector) -> float:
    first, second, third, fourth = _amplitude_moments(world)
    variance = second - first**2
    k, t = third - first * second, fourth - second**2
    own = (v.sparse**2).sum(axis=1)  # H_ii
    centre = first @ v.sparse
    b = v.sparse @ centre - own * first
    spread = (v.sparse * variance[:, None]).T @ v.sparse
    pairs = float((spread**2).sum() - (own**2) @ variance**2)  # Σ_{i≠j} H_ij² v_i v_j
    total = float((own**2) @ t + 4.0 * (own * b) @ k + 4.0 * b**2 @ variance) + 2.0 * pairs
    seen = ((own * k + 2.0 * b * variance) @ world.dictionary_matrix).astype(np.float64)
    size = float(np.trace(spread) + centre @ centre)
    if world.dense_law is not None:
        alpha = float((v.dense**2).sum()) / world.dense_dim
        a, skew = v.dense @ centre, world.dense_law.skew
        total += 4.0 * float((v.dense @ spread * v.dense).sum())
        total += alpha**2 * world.dense_law.square_variance + 4.0 * float(alpha * a @ skew + a @ a)
        seen += (alpha * skew + 2.0 * a) @ world.dense_map
        size += alpha * world.dense_dim
    total += 2.0 * world.d_model * v.noise**4 + 4.0 * v.noise**2 * size
    return float(seen @ inverse @ seen) / total if total > 0.0 else math.nan


def _amplitude_moments(world: World) -> tuple[Floats, Floats, Floats, Floats]:
    """Raw moments of the codes, E w_i^r for r = 1 … 4, each (m,)."""
    p, s = world.firing_rates, world.amplitude_scales
    one, two, three, four = (p * moment * s ** (r + 1) for r, moment in enumerate(world.amplitude_law.moments))
    return one, two, three, four
