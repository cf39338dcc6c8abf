"""First two moments of the true sparse factors, with a covariance that is never a dense matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from darkmatter.sandbox.contexts import Contexts
from darkmatter.sandbox.features import Floats
from darkmatter.sandbox.forest import Forest


@dataclass(frozen=True, slots=True, eq=False)
class FactorMoments:
    """Mean and covariance of the sparse channels f, from the way they are drawn.

    A feature that fires gives each of its q channels a value; with one channel f is the codes w, (m,). Coefficient
    tables hold the channels one after the other, (q·m, j). Cov f is the sum of three parts, by conditioning on the
    context, then on which events happen: values given that the feature fires, innovations of the events given the
    context (`Forest`), and what the context predicts (`Contexts`).

    Attributes:
        forest: Which firings depend on which.
        contexts: Firing probabilities of the forest's roots.
        value_mean: (q, m) mean of a channel's value given that the feature fires.
        value_covariance: (q, q, m) covariance of the channels' values given that the feature fires.
    """

    forest: Forest
    contexts: Contexts
    value_mean: Floats
    value_covariance: Floats

    @property
    def n_channels(self) -> int:
        """Number of channels, c = q·m."""
        return self.value_mean.size

    @property
    def mean(self) -> Floats:
        """E f, (c,)."""
        mean: Floats = (self._firing * self.value_mean).reshape(-1)
        return mean

    @property
    def variance(self) -> Floats:
        """Var f_i, (c,)."""
        within = np.einsum("qqm->qm", self.value_covariance)
        variance: Floats = self._firing * (within + (1.0 - self._firing) * self.value_mean**2)
        return variance.reshape(-1)

    def rows(self, coefficients: npt.ArrayLike) -> Iterator[Floats]:
        """Blocks of rows R with Σ R'R = Cov(Σ_i f_i B_i).

        Since every block is linear in B, Σ R(A)'R(B) is the covariance of two such sums. A covariance that is built
        from squares cannot turn negative by cancellation.

        Args:
            coefficients: B, (c, j).

        Yields:
            (rows, j), float64, always the same number of rows in the same order.
        """
        by_channel = self._by_channel(coefficients)
        root = _cholesky(self.value_covariance) * np.sqrt(self._firing)
        for column in range(len(root)):  # L'B, one column of L at a time
            yield np.einsum("qm,qmj->mj", root[:, column], by_channel)
        gathered = self.forest.gather(np.einsum("qm,qmj->mj", self.value_mean, by_channel))
        roots = self.forest.roots
        yield np.sqrt(self._unit_variance)[:, None] * gathered[roots]
        if not self.forest.trivial:
            yield self.forest.innovation_rows(gathered)
        yield from self.contexts.rows(gathered[roots])

    def apply(self, coefficients: npt.ArrayLike) -> Floats:
        """Multiply by the covariance: Cov(f) @ B.

        Args:
            coefficients: B, (c, j).

        Returns:
            (c, j), float64.
        """
        by_channel = self._by_channel(coefficients)
        gathered = self.forest.gather(np.einsum("qm,qmj->mj", self.value_mean, by_channel))
        events = self.forest.innovation_product(gathered)
        roots = self.forest.roots
        units = gathered[roots]
        events[roots] = self._unit_variance[:, None] * units + self.contexts.product(units)
        spread = self.forest.spread(events)
        values = self._firing[:, None] * np.einsum("pqm,qmj->pmj", self.value_covariance, by_channel)
        found: Floats = values + self.value_mean[:, :, None] * spread
        return found.reshape(self.n_channels, -1)

    @property
    def _firing(self) -> Floats:
        return self.forest.rate[: self.forest.n_features]

    @property
    def _unit_variance(self) -> Floats:
        """E[p(t, z)(1 − p(t, z))] of the roots."""
        return self.contexts.rate - self.contexts.mean_square()

    def _by_channel(self, coefficients: npt.ArrayLike) -> Floats:
        table: Floats = np.asarray(coefficients, dtype=np.float64)
        return table.reshape(*self.value_mean.shape, table.shape[1])


def _cholesky(covariance: Floats) -> Floats:
    """Lower Cholesky factors of m small covariances (q, q, m), q ≤ 2; a constant channel gives zeros."""
    root = np.zeros_like(covariance)
    root[0, 0] = np.sqrt(np.maximum(covariance[0, 0], 0.0))
    if len(covariance) == 2:
        safe = np.where(root[0, 0] > 0.0, root[0, 0], 1.0)
        root[1, 0] = covariance[1, 0] / safe
        root[1, 1] = np.sqrt(np.maximum(covariance[1, 1] - root[1, 0] ** 2, 0.0))
    return root
