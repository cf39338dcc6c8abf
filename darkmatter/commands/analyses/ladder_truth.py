"""The predictor ladder of a surgical SAE in the population, in closed form: an oracle without sampling error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from darkmatter.sandbox import Surgical, World
from darkmatter.sandbox.factor_space import FactorSpace
from darkmatter.sandbox.population import pseudo_inverse

ISOTROPIC = ("none", "independent", "heteroscedastic", "affine")
_SHARE = 0.9
_ROUNDING = 1e-12


def ladder_truth(world: World, surgical: Surgical, ranks: Sequence[int]) -> dict[str, float] | None:
    """Population values of the rungs.

    With Sae = f B + N, N uncorrelated with the factors f, every second moment of x and Sae is known; those of single
    coordinates too, where N has the same variance in all.

    Args:
        world: The world.
        surgical: The SAE.
        ranks: Ranks that are rungs.

    Returns:
        Shares of Var e by rung, and "r90"; None where there is no closed form.
    """
    bound = surgical.bind(world)
    response = bound.response
    if response is None:
        return None
    space, d = FactorSpace.of(world), world.d_model
    joint = space.covariance(np.hstack([space.true, response]))
    xx, xs, ss = joint[:d, :d], joint[:d, d:], joint[d:, d:]
    introduced = bound.introduced_share * world.variance
    xe = xx - xs
    total = float(np.trace(xx - 2 * xs + ss)) + introduced
    noise = introduced / d
    recon, crossed = np.diag(ss) + noise, np.diag(xs) - np.diag(ss) - noise  # Var Sae_j and Cov(Sae_j, e_j)
    by_rank = np.linalg.eigvalsh(xe.T @ pseudo_inverse(xx) @ xe)[::-1].clip(min=0).cumsum() / total
    found = {
        "x_gain": np.trace(xe) ** 2 / np.trace(xx) / total,
        "x_coordinate_gain": _each(np.diag(xe), np.diag(xx)) / total,
        **{f"rank_{r}": by_rank[r - 1] for r in ranks if r < d},
        "linear": by_rank[-1],
        "r90": 1.0 + np.argmax(by_rank >= (_SHARE - _ROUNDING) * by_rank[-1]),
    }
    if recon.sum() > 0:
        found["gain"] = crossed.sum() ** 2 / recon.sum() / total
        if surgical.introduced in ISOTROPIC:
            found["coordinate_gain"] = _each(crossed, recon) / total
    return {name: float(value) for name, value in found.items()}


def _each(top: npt.NDArray[np.float64], bottom: npt.NDArray[np.float64]) -> float:
    """Σ top² / bottom over coordinates that vary."""
    varies = bottom > _ROUNDING * bottom.max()
    return float((top[varies] ** 2 / bottom[varies]).sum())
