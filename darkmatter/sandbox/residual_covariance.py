"""Covariances of a surgical SAE's error and of its linear and nonlinear part, in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from darkmatter.sandbox.factor_space import FactorSpace
from darkmatter.sandbox.population import pseudo_inverse

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Floats
    from darkmatter.sandbox.surgical import Surgical
    from darkmatter.sandbox.world import World

_ISOTROPIC = ("none", "independent", "heteroscedastic", "affine")
"""Introduced errors whose covariance is a multiple of the identity, or 0."""


def residual_covariances(world: World, surgical: Surgical) -> dict[str, Floats] | None:
    """Cov x, Cov e, and of e's best affine prediction from x and of the rest.

    With Sae = f B + N, x = f A: Cov e = Cov f (A − B) + Cov N and Cov r = Cov f (B − A M) + Cov N,
    M = Cov(x)⁺ Cov(x, f B). Cov N = (Var N / d) I for the Gaussian kinds.

    Args:
        world: The world.
        surgical: The SAE.

    Returns:
        "x", "error", "linear" and "nonlinear", (d, d) each; None where there is no closed form.
    """
    if surgical.introduced not in _ISOTROPIC or not surgical.closed_form(world):
        return None
    bound = surgical.bind(world)
    response = bound.response
    assert response is not None, "closed_form has said so"
    space, d = FactorSpace.of(world), world.d_model
    added = np.eye(d) * (bound.introduced_share * world.variance / d)
    joint = space.covariance(np.hstack([space.true, response]))
    matrix = pseudo_inverse(joint[:d, :d]) @ joint[:d, d:]
    error = space.covariance(space.true - response) + added
    nonlinear = space.covariance(response - space.true @ matrix) + added
    return {"x": joint[:d, :d], "error": error, "linear": error - nonlinear, "nonlinear": nonlinear}
