"""Which firings depend on which: parents and children, and groups of which at most one member fires."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from darkmatter.errors import InputError
from darkmatter.sandbox.features import Flags, Floats, Integers

GROUP_CAP = 0.95
"""No group of mutually exclusive root features fires on more than this share of all tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """Events of which each can only happen if its parent does: P(v) = P(parent of v) q_v.

    Events 0 … m − 1 are the firings of the m features. Further events are groups of exclusive root features: a group
    happens, then picks one member. Roots ("units") depend on nothing but the token's topic and latent factors.

    Attributes:
        n_features: m.
        parent: (v,) event that an event depends on, −1 for roots.
        share: (v,) q_v = P(event | parent); 1 for roots.
        rate: (v,) P(event).
        exclusive: (v,) whether the children of an event exclude one another, instead of being independent given it.
        roots: (u,) events without a parent.
        levels: Events by depth, below the roots; a parent is always on an earlier level.
    """

    n_features: int
    parent: Integers
    share: Floats
    rate: Floats
    exclusive: Flags
    roots: Integers = field(init=False)
    levels: tuple[Integers, ...] = field(init=False)

    def __post_init__(self) -> None:
        depth = np.zeros(len(self.parent), dtype=np.int64)
        above = self.parent
        while (above >= 0).any():
            depth += above >= 0
            above = np.where(above >= 0, self.parent[above], -1)
        object.__setattr__(self, "roots", np.flatnonzero(depth == 0))
        levels = tuple(np.flatnonzero(depth == level) for level in range(1, int(depth.max(initial=0)) + 1))
        object.__setattr__(self, "levels", levels)

    @property
    def n_events(self) -> int:
        """Features plus groups."""
        return len(self.parent)

    @property
    def trivial(self) -> bool:
        """Whether no event depends on another."""
        return not self.levels

    def gather(self, table: Floats) -> Floats:
        """Fold what an event entails into it: Z_v = T_v + Σ_{c child of v} q_c Z_c.

        With T the coefficients of the features in x, the sparse part is Σ_v (innovation of v) Z_v.

        Args:
            table: (m, j) rows of the features; groups have none of their own.

        Returns:
            (v, j) rows of all events.
        """
        out = np.zeros((self.n_events, table.shape[1]))
        out[: self.n_features] = table
        for level in reversed(self.levels):
            out += self._inclusion(level) @ out[level]
        return out

    def spread(self, table: Floats) -> Floats:
        """Pass rows of events down to the features, the adjoint of `gather`: Y_v = T_v + q_v Y_parent.

        Args:
            table: (v, j) rows of all events.

        Returns:
            (m, j) rows of the features.
        """
        out = table.copy()
        for level in self.levels:
            out[level] += self.share[level, None] * out[self.parent[level]]
        return out[: self.n_features]

    def innovation_rows(self, gathered: Floats) -> Floats:
        """Rows R with R'R = Z' Cov(innovations below the roots) Z.

        Given that the parent happens, an event's innovation is its indicator minus q_v. Independent children: variance
        P(parent) q (1 − q). Exclusive children: covariance P(parent) (diag q − q q'), whose root is
        diag(√q)(I − a √q √q'), with σ = Σ q and a = (1 − √(1 − σ)) / σ.

        Args:
            gathered: Z, (v, j).

        Returns:
            (events below the roots, j).
        """
        below = self._below()
        parent, q = self.parent[below], self.share[below]
        z = gathered[below]
        apart = self.exclusive[parent]
        total = np.zeros(self.n_events)
        np.add.at(total, parent, q)  # σ of every parent
        sigma = np.minimum(total, 1.0)[parent]
        pull = np.where(apart, (1.0 - np.sqrt(1.0 - sigma)) / np.where(apart, sigma, 1.0), 0.0)
        rows = z - pull[:, None] * self._siblings(below, q, z)
        weight = self.rate[parent] * np.where(apart, q, q * (1.0 - q))
        scaled: Floats = np.sqrt(weight)[:, None] * rows
        return scaled

    def innovation_product(self, gathered: Floats) -> Floats:
        """Cov(innovations below the roots) @ Z, zero on the roots.

        Args:
            gathered: Z, (v, j).

        Returns:
            (v, j).
        """
        below = self._below()
        parent, q = self.parent[below], self.share[below]
        z = gathered[below]
        apart = self.exclusive[parent]
        centred = z - np.where(apart, 1.0, q)[:, None] * np.where(apart[:, None], self._siblings(below, q, z), z)
        out = np.zeros_like(gathered)
        out[below] = (self.rate[parent] * q)[:, None] * centred
        return out

    def _below(self) -> Integers:
        return np.concatenate([np.zeros(0, dtype=np.int64), *self.levels])

    def _siblings(self, below: Integers, q: Floats, z: Floats) -> Floats:
        """Σ over an event's siblings, itself included, of q Z."""
        size = (self.n_events, len(below))
        member = csr_array((np.ones(len(below)), (self.parent[below], np.arange(len(below)))), shape=size)
        total = np.asarray(member @ (q[:, None] * z))
        return total[self.parent[below]]

    def _inclusion(self, level: Integers) -> Any:
        where = (self.parent[level], np.arange(len(level)))
        return csr_array((self.share[level], where), shape=(self.n_events, len(level)))


def tree_parents(n_features: int, *, roots: int, branching: int, depth: int) -> Integers:
    """Lay complete trees over the features, level by level: the frequent features are the parents.

    Args:
        n_features: m.
        roots: Number of trees; 0 for none.
        branching: Children per parent.
        depth: Levels below the roots.

    Returns:
        (m,) parents, −1 for roots and for features in no tree.

    Raises:
        InputError: The trees hold more features than there are.
    """
    parent = np.full(n_features, -1, dtype=np.int64)
    size = sum(roots * branching**level for level in range(depth + 1))
    if size > n_features:
        raise InputError(
            f"{roots} trees with {branching} children per parent and depth {depth} hold {size} features, expected at "
            f"most n_features = {n_features}: lower roots, branching or depth"
        )
    first, count = 0, roots
    for _ in range(depth if roots else 0):
        children = first + count + np.arange(count * branching)
        parent[children] = first + np.arange(count * branching) // branching
        first, count = first + count, count * branching
    return parent


def build_forest(rates: Floats, parent: Integers, *, roots: int, exclusive_siblings: bool, exclusion: int) -> Forest:
    """Join trees and exclusive groups into one forest whose features fire exactly at the given rates.

    Args:
        rates: (m,) firing rates.
        parent: (m,) parents by `tree_parents`.
        roots: Number of trees; features 0 … roots − 1 are their roots.
        exclusive_siblings: Whether children of one parent exclude one another.
        exclusion: Size of the groups, drawn from the features in no tree, of which at most one fires; 1 for none.

    Returns:
        The forest.

    Raises:
        InputError: A child would have to fire more often than its parent, or exclusive features more often together
            than their parent or than tokens allow.
    """
    m = len(rates)
    children = np.flatnonzero(parent >= 0)
    in_tree = np.zeros(m, dtype=bool)
    in_tree[:roots] = True
    in_tree[children] = True
    loose = np.flatnonzero(~in_tree) if exclusion > 1 else np.zeros(0, dtype=np.int64)
    n_groups = len(loose) // exclusion
    # dealt out, so that every group has one frequent member and the rest are rarer
    member = loose[: n_groups * exclusion]
    group = m + np.arange(len(member)) % max(n_groups, 1)
    everyone = np.concatenate([parent, np.full(n_groups, -1, dtype=np.int64)])
    everyone[member] = group
    rate = np.concatenate([rates, np.zeros(n_groups)])
    np.add.at(rate, group, rates[member])
    _check_rates(rate, everyone, children, m, exclusive_siblings=exclusive_siblings)
    share = np.ones(len(rate))
    below = np.flatnonzero(everyone >= 0)
    share[below] = rate[below] / rate[everyone[below]]
    exclusive = np.full(len(rate), exclusive_siblings)
    exclusive[m:] = True
    return Forest(n_features=m, parent=everyone, share=share, rate=rate, exclusive=exclusive)


def _check_rates(rate: Floats, parent: Integers, children: Integers, m: int, *, exclusive_siblings: bool) -> None:
    too_often = children[rate[children] > rate[parent[children]] * (1 + 1e-12)]
    if len(too_often):
        child = int(too_often[0])
        raise InputError(
            f"feature {child} fires on {rate[child]:.3g} of the tokens and its parent {parent[child]} on "
            f"{rate[parent[child]]:.3g}, expected at most as often: make rates fall with the index"
        )
    if exclusive_siblings:
        total = np.zeros(len(rate))
        np.add.at(total, parent[children], rate[children])
        crowded = np.flatnonzero(total > rate * (1 + 1e-12))
        if len(crowded):
            v = int(crowded[0])
            raise InputError(
                f"the exclusive children of feature {v} fire on {total[v]:.3g} of the tokens together, expected at "
                f"most its own {rate[v]:.3g}: lower branching, raise zipf, or use siblings='independent'"
            )
    if len(rate) > m and rate[m:].max() > GROUP_CAP:
        raise InputError(
            f"a group of exclusive features would fire on {rate[m:].max():.3g} of the tokens, expected at most "
            f"{GROUP_CAP:g}: lower l0, zipf or exclusion"
        )
