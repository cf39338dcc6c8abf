"""Draw sparse codes exactly, at a cost that grows with what fires, not with tokens × features.

A coin with probability p is a Poisson process of rate −log(1 − p) that hits at least once. So all coins of a chunk are
one Poisson process over (unit, token) pairs: draw its points under an envelope, keep each with the ratio of true rate
to envelope, and drop pairs hit twice. The envelope is constant where the context is nearly so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import coo_array

from darkmatter.sandbox.contexts import Contexts, hazard
from darkmatter.sandbox.features import Flags, Floats, Integers
from darkmatter.sandbox.forest import Forest

CELL = 0.25
"""Width of a cell of factor values, in standard deviations: some 80 % of the points under the envelope are kept."""

FINE = 4.5
"""Cells are narrow up to here; the few tokens beyond share one wide cell on each side."""

EDGE = 8.0
"""Factor values beyond are moved here; a Gaussian lies beyond once in 8·10¹⁴ draws."""


@dataclass(frozen=True)
class FiringSampler:
    """Draws which features fire, given the topic and the latent factors of every token.

    Attributes:
        forest: Which firings depend on which.
        contexts: Firing probabilities of the forest's roots.
    """

    forest: Forest
    contexts: Contexts

    def draw(self, rng: np.random.Generator, topics: Integers, factors: Floats) -> tuple[Integers, Integers]:
        """Draw the firings of some tokens.

        Args:
            rng: The generator.
            topics: (n,) topic of every token.
            factors: (n, r) latent factors of every token.

        Returns:
            Token and feature of every firing, no pair twice, sorted by token and then by feature.
        """
        token, unit = self._draw_units(rng, topics, factors)
        if self.forest.trivial:
            return token, unit
        event = self.forest.roots[unit]
        found = [(token, event)]
        while len(token):
            token, event = self._draw_children(rng, token, event)
            found.append((token, event))
        token = np.concatenate([part for part, _ in found])
        event = np.concatenate([part for _, part in found])
        feature = event < self.forest.n_features
        return _sorted_pairs(token[feature], event[feature], (len(topics), self.forest.n_features))

    @cached_property
    def _envelope(self) -> tuple[Floats, Floats]:
        """Largest hazard of every unit in every cell of its factor, and the smallest as a share of it.

        Both (2, u, cells): own topic, other topics.
        """
        if not self.contexts.n_factors:
            most = np.stack([hazard(a)[:, None] for a, _ in self._curves])
            return most, np.ones_like(most)
        # the hazard rises or falls with z, so its extremes over a cell lie at the ends
        rates = np.stack([hazard(a[:, None] + b[:, None] * _edges()) for a, b in self._curves])
        low, high = rates[..., :-1], rates[..., 1:]
        most = np.maximum(low, high)
        return most, np.minimum(low, high) / np.maximum(most, np.finfo(np.float64).tiny)

    @cached_property
    def _curves(self) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        return self.contexts.curve(own=True), self.contexts.curve(own=False)

    @cached_property
    def _children(self) -> tuple[Integers, Integers, Integers, Floats, Floats]:
        """Events below the roots by parent: order, first child and number of children of an event, q, cumulative q."""
        forest = self.forest
        below = np.flatnonzero(forest.parent >= 0)
        order = below[np.argsort(forest.parent[below], kind="stable")]
        count = np.bincount(forest.parent[order], minlength=forest.n_events)
        first = np.cumsum(count) - count
        share = forest.share[order]
        # only exclusive children are looked up by their sum; others may add up to more than 1 and must not disturb it
        running = np.cumsum(np.where(forest.exclusive[forest.parent[order]], share, 0.0))
        before = np.concatenate([[0.0], running])[first]
        # cumulative within a parent, shifted by the parent's number: one sorted table for all parents
        return (
            order,
            first,
            count,
            share,
            running - np.repeat(before, count) + 2.0 * np.repeat(np.arange(forest.n_events), count),
        )

    def _draw_units(self, rng: np.random.Generator, topics: Integers, factors: Floats) -> tuple[Integers, Integers]:
        """Tokens and units that fire; the topics of a unit split the tokens in two urns, its own and the others."""
        contexts = self.contexts
        cells = _cells(factors)
        tables = [_Urns(cells, topics, contexts.n_topics, by_topic=True)] if contexts.topical else []
        tables.append(_Urns(cells, topics, contexts.n_topics, by_topic=False))
        hits = []
        for urns in tables:
            group = urns.group_of(contexts)
            mass = self._envelope[0][0 if urns.by_topic else 1] * urns.size[group]
            place = _poisson_points(rng, mass)
            unit, cell = np.divmod(place, mass.shape[1])
            token = urns.draw(rng, group[unit], cell)
            keep = self._keep(rng, place, unit, token, topics, factors, own=urns.by_topic)
            hits.append((token[keep], unit[keep]))
        token = np.concatenate([part for part, _ in hits])
        unit = np.concatenate([part for _, part in hits])
        return _sorted_pairs(token, unit, (len(topics), len(contexts.own)))

    def _keep(
        self,
        rng: np.random.Generator,
        place: Integers,
        unit: Integers,
        token: Integers,
        topics: Integers,
        factors: Floats,
        *,
        own: bool,
    ) -> Flags:
        """Which points under the envelope lie under the hazard itself; its minimum decides most."""
        contexts, table = self.contexts, 0 if own else 1
        keep: Flags = np.ones(len(unit), dtype=bool)
        if contexts.n_factors:
            height = rng.random(len(unit))
            keep = height < self._envelope[1][table].reshape(-1)[place]
            open_ = np.flatnonzero(~keep)
            intercept, slope = self._curves[table]
            u = unit[open_]
            rate = hazard(intercept[u] + slope[u] * factors[token[open_], contexts.factor[u]])
            keep[open_] = height[open_] * self._envelope[0][table].reshape(-1)[place[open_]] < rate
        if contexts.topical and not own:
            keep &= topics[token] != contexts.topic[unit]
        return keep

    def _draw_children(self, rng: np.random.Generator, token: Integers, event: Integers) -> tuple[Integers, Integers]:
        """Firings one level further down, given those of their parents."""
        order, first, count, share, ladder = self._children
        apart = self.forest.exclusive[event]
        alone = ~apart & (count[event] > 0)
        parent, where = event[alone], token[alone]
        child = np.repeat(first[parent], count[parent]) + _ranges(count[parent])
        fires = rng.random(len(child)) < share[child]
        chosen = apart & (count[event] > 0)
        parent = event[chosen]
        pick = np.searchsorted(ladder, rng.random(len(parent)) + 2.0 * parent, side="right")
        some = pick < first[parent] + count[parent]
        return (
            np.concatenate([np.repeat(where, count[event[alone]])[fires], token[chosen][some]]),
            order[np.concatenate([child[fires], pick[some]])],
        )


class _Urns:
    """Tokens sorted by (factor, topic, cell), so that a token of one cell is drawn by its place."""

    def __init__(self, cells: Integers, topics: Integers, n_topics: int, *, by_topic: bool) -> None:
        self.by_topic = by_topic
        self._n_topics = n_topics if by_topic else 1
        n_cells = _n_cells(cells.shape[1])
        key = (topics * n_cells if by_topic else 0) + (cells.T if cells.shape[1] else np.zeros((1, len(topics)), int))
        small = np.int16 if self._n_topics * n_cells < 2**15 else np.int32  # narrow keys sort by radix
        self._tokens = np.argsort(key.astype(small), axis=1, kind="stable")
        width = self._n_topics * n_cells
        offset = np.arange(len(key))[:, None] * width
        size = np.bincount((key + offset).reshape(-1), minlength=len(key) * width)
        self.size = size.reshape(len(key) * self._n_topics, n_cells).astype(np.float64)
        start = size.reshape(len(key), width)
        self._start = (np.cumsum(start, axis=1) - start).reshape(self.size.shape)

    def group_of(self, contexts: Contexts) -> Integers:
        """Row of `size` that every unit draws from."""
        factor = contexts.factor if contexts.n_factors else np.zeros_like(contexts.factor)
        group: Integers = factor * self._n_topics + (contexts.topic if self.by_topic else 0)
        return group

    def draw(self, rng: np.random.Generator, group: Integers, cell: Integers) -> Integers:
        """A uniform token of the given groups and cells."""
        place = self._start[group, cell] + (rng.random(len(group)) * self.size[group, cell]).astype(np.int64)
        token: Integers = self._tokens[group // self._n_topics, place]
        return token


def _edges() -> Floats:
    """Ends of the cells, (cells + 1,)."""
    fine = np.linspace(-FINE, FINE, round(2 * FINE / CELL) + 1)
    return np.concatenate([[-EDGE], fine, [EDGE]])


def _n_cells(n_factors: int) -> int:
    return len(_edges()) - 1 if n_factors else 1


def _cells(factors: Floats) -> Integers:
    """Cell of every factor value, (n, r)."""
    cells: Integers = np.clip(np.floor((factors + FINE) / CELL), -1, round(2 * FINE / CELL)).astype(np.int64) + 1
    return cells


def _poisson_points(rng: np.random.Generator, mass: Floats) -> Integers:
    """Points of a Poisson process over boxes of the given mass: the box of every point, rising."""
    running = np.cumsum(mass)
    total = float(running[-1]) if running.size else 0.0
    count = int(rng.poisson(total))
    gaps = np.cumsum(rng.standard_exponential(count + 1))
    place = np.searchsorted(running, gaps[:-1] * (total / gaps[-1]), side="right")
    inside: Integers = np.minimum(place, mass.size - 1)  # rounding may put the last point past the end
    return inside


def _ranges(counts: Integers) -> Integers:
    """0 … c − 1 for every c, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)


def _sorted_pairs(first: Integers, second: Integers, shape: tuple[int, int]) -> tuple[Integers, Integers]:
    """Distinct pairs, sorted by the first and then by the second: a sparse matrix is built by counting, not sorting."""
    narrow = (first.astype(np.int32), second.astype(np.int32))
    pairs = coo_array((np.ones(len(first), dtype=bool), narrow), shape=shape).tocsr()
    return np.repeat(np.arange(shape[0]), np.diff(pairs.indptr)), pairs.indices.astype(np.int64)
