"""Population values of a world and of a surgical SAE on it, in closed form: an oracle without sampling error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from darkmatter.errors import DegenerateError, InputError
from darkmatter.sandbox.factors import combine_rows, row_blocks

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Floats
    from darkmatter.sandbox.surgical import Surgical
    from darkmatter.sandbox.world import World


@dataclass(frozen=True, slots=True)
class PopulationShares:
    """What a surgical SAE's error is made of, each a share of Var x (the trace of x's covariance).

    With Sae = (1 − s) S1 + N, e = x − Sae and P the best affine predictor from x (T1 and T3 in docs/concepts.md):
    fvu = introduced + absent + dense + linear + cross and fvu_nonlinear = introduced + interference, exactly.

    Attributes:
        introduced: Var N.
        absent: Var S2, the sparse part that the SAE has not learned.
        dense: Var D.
        linear: s² Var S1, shrinkage.
        cross: 2 s tr Cov(S1, S2), which shared topics make nonzero; it can have either sign.
        interference: (1 − s)² Var((I − P) S1), what superposition hides from every linear probe.
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
    """Covariance of x: Y'(diag(diagonal) + low_rank low_rank')Y + F'F, rows y_i in Y.

    Args:
        world: The world.

    Returns:
        (d, d), float64; the mean is `world.mean`, the trace `world.variance`.
    """
    dense = world.dense_map.astype(np.float64)
    topic = world.topic_directions
    return _weighted_gram(world, world.factor_moments.diagonal) + topic.T @ topic + dense.T @ dense


def population_shares(world: World, surgical: Surgical) -> PopulationShares:
    """Closed-form shares of a surgical SAE whose introduced error is uncorrelated with every factor.

    With z the whitened factors (one per feature, one per topic, one per dense coordinate), x − E x = A'z and
    S1 − E S1 = B'z. The best predictor of S1 has matrix M = (A'A)⁺ A'B and Var((I − P) S1) = ‖B − A M‖²: a sum of
    squares, so it cannot turn negative by cancellation. N adds Var N to fvu and to fvu_nonlinear alike, since
    E[N | x, factors] = 0 for both Gaussian kinds.

    Args:
        world: The world.
        surgical: The SAE, with introduced "none", "independent" or "heteroscedastic".

    Returns:
        The shares.

    Raises:
        InputError: introduced="function", which has no closed form; or the SAE does not fit the world.
    """
    if surgical.introduced == "function":
        raise InputError(
            "introduced='function' has no closed-form population shares: estimate them by regression on the true "
            "factors, or use 'none', 'independent' or 'heteroscedastic'"
        )
    learned = np.zeros(world.n_features)
    learned[surgical.features(world.n_features)] = 1.0
    within = world.within_variance
    low_rank = world.factor_moments.low_rank
    first = combine_rows(low_rank * learned[:, None], world.dictionary_matrix)  # topic part of S1, (T, d)
    second = combine_rows(low_rank * (1.0 - learned)[:, None], world.dictionary_matrix)
    total, s = world.variance, surgical.shrinkage
    return PopulationShares(
        introduced=surgical.introduced_share,
        absent=(float(within @ (1.0 - learned)) + _square(second)) / total,
        dense=world.dense_variance / total,
        linear=s**2 * (float(within @ learned) + _square(first)) / total,
        # different features are independent given the topic, so only the topic links S1 with S2
        cross=2.0 * s * float((first * second).sum()) / total,
        interference=(1.0 - s) ** 2 * _unpredictable(world, learned, first) / total,
    )


def _weighted_gram(world: World, weight: Floats) -> Floats:
    """Sum of weight_i y_i y_i', (d, d)."""
    total = np.zeros((world.d_model, world.d_model))
    for rows, y in row_blocks(world.dictionary_matrix):
        total += (y * weight[rows, None]).T @ y
    return total


def _unpredictable(world: World, learned: Floats, first: Floats) -> float:
    """Var((I − P) S1): the squared residual of regressing B on A over the whitened factors."""
    diagonal = world.factor_moments.diagonal
    shared = _weighted_gram(world, diagonal * learned) + world.topic_directions.T @ first  # A'B = Cov(x, S1)
    matrix = _pseudo_inverse(population_covariance(world)) @ shared
    residual = _square(first - world.topic_directions @ matrix) + _square(world.dense_map @ matrix)
    for rows, y in row_blocks(world.dictionary_matrix):
        miss = y * learned[rows, None] - y @ matrix
        residual += float(diagonal[rows] @ (miss**2).sum(axis=1))
    return residual


def _pseudo_inverse(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    # x may fill a subspace only (m + k < d): directions below rounding carry no variance
    real = values > len(values) * np.finfo(np.float64).eps * values[-1]
    inverse: Floats = (vectors[:, real] / values[real]) @ vectors[:, real].T
    return inverse


def _square(value: npt.NDArray[Any]) -> float:
    return float((value**2).sum())
