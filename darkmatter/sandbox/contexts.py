"""What makes unrelated features fire together: the document's topic, and latent Gaussian factors of the token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.special import log_ndtr

from darkmatter.sandbox.features import Floats, Integers
from darkmatter.theory.copula import gate_coefficients, threshold

SERIES_ERROR = 1e-9
"""Relative size of the first neglected term of the Hermite series of a firing curve, times the correlation."""


@dataclass(frozen=True, slots=True, eq=False)
class Contexts:
    """Firing probabilities of u units given the token's context: its topic t and r independent N(0, 1) factors z.

    p_u(t, z) = Φ((τ_u(t) + λ_u z_{f(u)}) / √(1 − λ_u²)) with Φ(τ_u(t)) = p_u(t): a Gaussian copula whose latent
    correlation matrix has rank r. Averaging over z gives p_u(t) back, so marginals do not depend on λ.

    Attributes:
        own: (u,) p_u(t) on the unit's own topic.
        other: (u,) p_u(t) on any other topic.
        topic: (u,) the unit's topic, in [0, n_topics).
        n_topics: T.
        factor: (u,) the factor that a unit loads on, in [0, n_factors).
        loading: (u,) λ_u in (−1, 1); two units of one factor have latent correlation λ_u λ_v.
        n_factors: r; 0 where there is no copula.
    """

    own: Floats
    other: Floats
    topic: Integers
    n_topics: int
    factor: Integers
    loading: Floats
    n_factors: int

    @property
    def rate(self) -> Floats:
        """(u,) p_u, the mean over topics."""
        rate: Floats = (self.own + (self.n_topics - 1) * self.other) / self.n_topics
        return rate

    @property
    def topical(self) -> bool:
        """Whether topics matter."""
        return bool((self.own != self.other).any())

    def curve(self, *, own: bool) -> tuple[Floats, Floats]:
        """Intercept a and slope b of every unit's firing curve: p_u(t, z) = Φ(a_u + b_u z), on its own topic or others.

        Args:
            own: Whether the token has the unit's own topic.

        Returns:
            a and b, (u,) each.
        """
        tail = np.sqrt(1.0 - self.loading**2)
        return threshold(self.own if own else self.other) / tail, self.loading / tail

    def mean_square(self) -> Floats:
        """(u,) E[p_u(t, z)²] over contexts."""
        square = (self.own**2 + (self.n_topics - 1) * self.other**2) / self.n_topics
        for own, other in self._curves():
            square = square + (own**2 + (self.n_topics - 1) * other**2) / self.n_topics
        return square

    def rows(self, table: Floats) -> Iterator[Floats]:
        """Blocks of rows R with Σ R'R = Z' Cov(p(t, z)) Z.

        Args:
            table: Z, (u, j).

        Yields:
            The topics' block, then one for every term of the Hermite series.
        """
        if self.topical:
            yield self._by_topic(self.own - self.rate, self.other - self.rate, table)
        members = self._members()
        for own, other in self._curves():
            yield np.concatenate([self._by_topic(own[u], other[u], table[u], u) for u in members])

    def product(self, table: Floats) -> Floats:
        """Cov(p(t, z)) @ Z.

        Args:
            table: Z, (u, j).

        Returns:
            (u, j).
        """
        out = np.zeros_like(table)
        if self.topical:
            own, other = self.own - self.rate, self.other - self.rate
            out += self._from_topic(own, other, self._by_topic(own, other, table))
        members = self._members()
        for own, other in self._curves():
            for u in members:
                out[u] += self._from_topic(own[u], other[u], self._by_topic(own[u], other[u], table[u], u), u)
        return out

    def _members(self) -> list[Integers]:
        order = np.argsort(self.factor, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.factor, minlength=self.n_factors))[:-1])

    def _curves(self) -> list[tuple[Floats, Floats]]:
        """Hermite coefficients k = 1, 2, … of the firing curves, own and other topic, until they are negligible."""
        strongest = float(np.abs(self.loading).max(initial=0.0))
        if not self.n_factors or strongest == 0.0:
            return []
        terms = max(1, math.ceil(math.log(SERIES_ERROR) / (2 * math.log(strongest))))
        own, other = (gate_coefficients(threshold(p), self.loading, terms) for p in (self.own, self.other))
        return list(zip(own, other, strict=True))

    def _by_topic(self, own: Floats, other: Floats, table: Floats, units: Integers | None = None) -> Floats:
        """Rows √(1/T) Σ_u c_u(t) Z_u for every topic t, c_u(t) = own on the unit's topic, other elsewhere; (T, j)."""
        if not self.topical:
            return (other @ table)[None]
        topic = self.topic if units is None else self.topic[units]
        apart = csr_array((own - other, (topic, np.arange(len(topic)))), shape=(self.n_topics, len(topic)))
        rows = (other @ table + np.asarray(apart @ table)) / math.sqrt(self.n_topics)
        return np.asarray(rows, dtype=np.float64)

    def _from_topic(self, own: Floats, other: Floats, rows: Floats, units: Integers | None = None) -> Floats:
        """The adjoint of `_by_topic`: (T, j) rows to (u, j)."""
        found: Floats = other[:, None] * rows.sum(axis=0)
        if self.topical:
            topic = self.topic if units is None else self.topic[units]
            found += (own - other)[:, None] * rows[topic]
            found /= math.sqrt(self.n_topics)
        return found


def hazard(argument: Floats) -> Floats:
    """Rate −log(1 − Φ(s)) of a Poisson process that hits at least once with probability Φ(s).

    Args:
        argument: s, any shape.

    Returns:
        Rates of the same shape, accurate for small and for large probabilities.
    """
    return -np.asarray(log_ndtr(-argument), dtype=np.float64)
