"""Draw sparse codes at a cost that grows with what fires, not with tokens × features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array

from darkmatter.sandbox.features import AmplitudeLaw, Floats, Integers

OFTEN = 0.25
"""A feature that fires more often than this is drawn token by token: at most 1 / OFTEN draws per firing."""


@dataclass(frozen=True, slots=True)
class FiringLaw:
    """When features fire, given the topic of a token.

    Attributes:
        own: (m,) probability of firing on a token of the feature's own topic.
        other: (m,) probability of firing on any other token.
        topic: (m,) the feature's topic, in [0, n_topics).
        n_topics: T.
    """

    own: Floats
    other: Floats
    topic: Integers
    n_topics: int


def distinct_rows(rng: np.random.Generator, counts: Integers, sizes: Integers) -> tuple[Integers, Integers]:
    """For every urn j, draw counts[j] distinct rows out of sizes[j], uniformly without replacement.

    Args:
        rng: The generator.
        counts: (u,) how many rows each urn gives, 0 ≤ counts ≤ sizes; cheap while it is a small part of the urn.
        sizes: (u,) how many rows each urn holds.

    Returns:
        (urn, row), each (Σ counts,), every pair once, in no useful order.
    """
    # Each urn reads independent uniform rows one after the other and keeps those not seen before, until it holds
    # counts[j]: a round reads exactly as many as are missing, so it can never overshoot. The result is the set of the
    # first c distinct values of an i.i.d. uniform sequence. Renaming the rows by any permutation leaves the law of
    # that sequence unchanged, hence also the law of the set, and permutations carry any c-subset to any other: all
    # c-subsets are equally likely, exactly.
    shape = (int(sizes.max(initial=1)), len(counts))
    held = csr_array(shape, dtype=np.int32)
    missing = counts
    while missing.any():
        urn = np.repeat(np.arange(len(counts), dtype=np.int32), missing)
        row = rng.integers(0, sizes[urn], dtype=np.int64)
        # a sparse matrix is a set of (row, urn) pairs that is built by counting, several times faster than by sorting
        held = held + csr_array((np.ones(len(urn), dtype=np.int32), (row, urn)), shape=shape)
        missing = counts - np.bincount(held.indices, minlength=len(counts))
    rows, urns = held.nonzero()
    return urns.astype(np.int64), rows.astype(np.int64)


def _every_row(rng: np.random.Generator, firing: Floats, sizes: Integers) -> tuple[Integers, Integers]:
    """Decide every row of every urn by its own coin, (urn, row) of those that fire."""
    place = np.flatnonzero(rng.random(int(sizes.sum())) < np.repeat(firing, sizes))
    urn = np.repeat(np.arange(len(sizes)), sizes)[place]
    return urn, place - (np.cumsum(sizes) - sizes)[urn]


def draw_codes(rng: np.random.Generator, law: FiringLaw, amplitude: AmplitudeLaw, topics: Integers) -> csr_array:
    """Draw the codes of some tokens whose topics are known.

    Given its topic, every (token, feature) pair fires independently. So a feature's number of firings over its own
    topic's tokens is Binomial(n_own, own_i), over the others Binomial(n − n_own, other_i), and given these numbers
    the tokens are uniform without replacement. Features that fire often are drawn token by token instead, which is
    then the cheaper way to the same law.

    Args:
        rng: The generator.
        law: Firing probabilities by topic, m features.
        amplitude: Law of the amplitudes.
        topics: (n,) topic of every token.

    Returns:
        (n, m) codes, float32, column indices sorted in every row.
    """
    n, m = len(topics), len(law.topic)
    by_topic = np.argsort(topics, kind="stable")  # a topic's tokens are one run of this order
    size = np.bincount(topics, minlength=law.n_topics)
    begin = (np.cumsum(size) - size)[law.topic]
    own = size[law.topic]
    sizes = np.stack([own, n - own], axis=1).reshape(-1)  # urn 2i: the feature's own topic, urn 2i + 1: the others
    firing = np.stack([law.own, law.other], axis=1).reshape(-1)
    often = np.flatnonzero(firing > OFTEN)
    seldom = np.where(firing > OFTEN, 0.0, firing)
    rare_urn, rare_row = distinct_rows(rng, rng.binomial(sizes, seldom), sizes)
    often_urn, often_row = _every_row(rng, firing[often], sizes[often])
    urn, row = np.concatenate([rare_urn, often[often_urn]]), np.concatenate([rare_row, often_row])
    feature = urn >> 1
    shift = np.where(urn & 1, own[feature] * (row >= begin[feature]), begin[feature])
    values = amplitude.draw(rng, len(urn))
    codes = coo_array((values, (by_topic[row + shift], feature)), shape=(n, m))
    codes.has_canonical_format = True  # no pair twice, so nothing to sort and merge
    return csr_array(codes.tocsc().tocsr())  # by way of columns: two counting passes leave every row sorted
