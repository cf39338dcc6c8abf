"""Population values of a world and of a surgical SAE on it, in closed form: an oracle without sampling error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from darkmatter.errors import DegenerateError, InputError
from darkmatter.sandbox.factor_space import FactorSpace, groups

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Floats
    from darkmatter.sandbox.surgical import Surgical
    from darkmatter.sandbox.world import World


@dataclass(frozen=True, slots=True)
class PopulationShares:
    """What a surgical SAE's error is made of, each a share of Var x (the trace of x's covariance).

    With Sae = f B + N, f the true factors, N uncorrelated with them, e = x − Sae and P the best affine predictor from
    x (T1 and T3 in docs/concepts.md): fvu = introduced + absent + dense + linear + cross and
    fvu_nonlinear = introduced + interference, exactly.

    Attributes:
        introduced: Var N.
        absent: Variance of the affine error on the features that the SAE has not learned.
        dense: Variance of the affine error on the dense coordinates.
        linear: Variance of the affine error on the learned features: shrinkage, wrong directions.
        cross: Twice the covariances between those three, which dependent factors make nonzero, of either sign.
        interference: Var((I − P) f B), what superposition hides from every linear probe.
    """

    introduced: float
    absent: float
    dense: float
    linear: float
    cross: float
    interference: float

    @property
    def fvu(self) -> float:
        """Var e / Var x."""
        return self.introduced + self.absent + self.dense + self.linear + self.cross

    @property
    def fvu_nonlinear(self) -> float:
        """Var((I − P) e) / Var x."""
        return self.introduced + self.interference

    @property
    def r2_error(self) -> float:
        """Pooled R² of e regressed on x: 1 − fvu_nonlinear / fvu.

        Raises:
            DegenerateError: The SAE makes no error, so there is nothing to explain.
        """
        if self.fvu == 0.0:
            raise DegenerateError("r2_error does not exist: this SAE reconstructs x exactly", {"fvu": 0.0})
        return 1.0 - self.fvu_nonlinear / self.fvu


def population_covariance(world: World) -> Floats:
    """Covariance of x: A' Cov(f) A with A the true coefficients of the factors f.

    Args:
        world: The world.

    Returns:
        (d, d), float64; the mean is `world.mean`, the trace `world.variance`.
    """
    space = FactorSpace.of(world)
    return space.covariance(space.true)


def population_shares(world: World, surgical: Surgical) -> PopulationShares:
    """Closed-form shares of a surgical SAE whose response to the factors is known.

    With A and B the coefficients of x and Sae on the factors f, e = f (A − B) − N. The best predictor of f B from x has
    matrix M = Cov(x)⁺ A' Cov(f) B and Var((I − P) f B) = Var f (B − A M), computed as a sum of squares, so that it
    cannot turn negative by cancellation. N is uncorrelated with f, hence with x, and adds Var N to fvu and to
    fvu_nonlinear alike (T3).

    Args:
        world: The world.
        surgical: The SAE; `surgical.closed_form(world)` says whether it has a closed form.

    Returns:
        The shares.

    Raises:
        InputError: There is no closed form, or the SAE does not fit the world.
    """
    bound = surgical.bind(world)
    response = bound.response
    if response is None:
        raise InputError(
            f"this surgical SAE (introduced={surgical.introduced!r}, splitting {surgical.splitting:g}, absorption "
            f"{surgical.absorption:g}) has no closed-form population shares in this world: estimate them by regression "
            "on the true factors with world.truth(sae)"
        )
    space = FactorSpace.of(world)
    learned = np.zeros(world.n_features, dtype=bool)
    learned[bound.features] = True
    parts = {name: mask * (space.true - response) for name, mask in groups(learned, world.dense_dim).items()}
    images = {name: space.apply(part) for name, part in parts.items()}
    total = world.variance
    return PopulationShares(
        introduced=bound.introduced_share,
        **{name: space.variance(part) / total for name, part in parts.items()},
        cross=space.covariances(parts, images)["cross"] / total,
        interference=_unpredictable(space, response) / total,
    )


def _unpredictable(space: FactorSpace, response: Floats) -> float:
    """Var((I − P) f B): what is left of f B after the best affine predictor from x."""
    d = space.true.shape[1]
    joint = space.covariance(np.hstack([space.true, response]))
    matrix = pseudo_inverse(joint[:d, :d]) @ joint[:d, d:]
    return space.variance(response - space.true @ matrix)


def pseudo_inverse(covariance: Floats) -> Floats:
    """Inverse of a covariance on the directions that vary.

    Args:
        covariance: (d, d), symmetric and positive semidefinite.

    Returns:
        (d, d).
    """
    values, vectors = np.linalg.eigh(covariance)
    # x may fill a subspace only (m + k < d): directions below rounding carry no variance
    real = values > len(values) * np.finfo(np.float64).eps * values[-1]
    inverse: Floats = (vectors[:, real] / values[real]) @ vectors[:, real].T
    return inverse
