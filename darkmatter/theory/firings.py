"""How often two events of a forest happen together, and what topics do to it: pair by pair, without sampling error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError

Floats = npt.NDArray[np.float64]


def pair_probabilities(
    parent: npt.ArrayLike, share: npt.ArrayLike, exclusive: npt.ArrayLike, roots: npt.ArrayLike
) -> Floats:
    """P(u and v) of all events of a forest, from those of its roots.

    Of two events take the deeper one, v. Given its parent a, v happens with probability q_v whatever else happened that
    does not descend from v: P(u and v) = q_v P(u and a). Only an exclusive sibling u knows more, and then the
    probability is 0. So with common ancestor a, P(u and v) = P(u) P(v) / P(a), or 0 if their branches exclude each
    other at a.

    Args:
        parent: Parent of every event, (v,), −1 for roots.
        share: q_v = P(v | parent of v), (v,); not used for roots.
        exclusive: Whether the children of an event exclude each other, (v,).
        roots: P(both) of two roots, in the order of their numbers, (u, u); P(root) on the diagonal.

    Returns:
        (v, v), symmetric; P(v) on the diagonal (proofs/15).

    Raises:
        InputError: Sizes that do not fit, a parent that does not exist, or a cycle.
    """
    above, q = np.asarray(parent, dtype=np.int64), np.asarray(share, dtype=np.float64)
    apart, top = np.asarray(exclusive, dtype=bool), np.asarray(roots, dtype=np.float64)
    n, n_roots = len(above), int((above < 0).sum())
    if q.shape != (n,) or apart.shape != (n,) or top.shape != (n_roots, n_roots):
        raise InputError(
            f"share, exclusive and roots have shapes {q.shape}, {apart.shape} and {top.shape}, expected ({n},), ({n},) "
            f"and ({n_roots}, {n_roots})"
        )
    if n and above.max() >= n:
        raise InputError(f"a parent is event {above.max()}, expected below {n}")
    found = np.zeros((n, n))
    done = np.flatnonzero(above < 0)
    found[np.ix_(done, done)] = top
    while len(done) < n:
        waiting = np.ones(n, dtype=bool)
        waiting[done] = False
        level = np.flatnonzero(waiting & ~waiting[above])
        if not len(level):
            raise InputError("the parents form a cycle, expected a forest")
        a = above[level]
        before = q[level, None] * found[np.ix_(a, done)]
        found[np.ix_(level, done)] = before
        found[np.ix_(done, level)] = before.T
        same = q[level, None] * found[np.ix_(a, level)]
        same[(a[:, None] == a) & apart[a][:, None]] = 0.0
        np.fill_diagonal(same, q[level] * np.diag(found)[a])
        found[np.ix_(level, level)] = same
        done = np.concatenate([done, level])
    return found


def topic_covariance(rate: npt.ArrayLike, concentration: npt.ArrayLike, topic: npt.ArrayLike, topics: int) -> Floats:
    """Cov of features that are independent given the topic: p_u p_v c_u c_v (T 1[same topic] − 1).

    By the law of total covariance it is the covariance over topics of p_u(t) = p_u (1 − c_u + c_u T 1[t = topic of u]).

    Args:
        rate: p, (m,).
        concentration: c in [0, 1], (m,).
        topic: Topic of every feature, (m,).
        topics: T ≥ 1.

    Returns:
        (m, m); the diagonal is Var over topics of p_u(t), not the variance of the firing (proofs/15).

    Raises:
        InputError: Sizes that do not fit, or a topic that does not exist.
    """
    p, c, t = (np.asarray(a, dtype=np.float64) for a in (rate, concentration, topic))
    if p.ndim != 1 or p.shape != c.shape or p.shape != t.shape or topics < 1 or (len(t) and t.max() >= topics):
        raise InputError(
            f"rate, concentration and topic have shapes {p.shape}, {c.shape} and {t.shape} with {topics} topics, "
            "expected three of one length and topics below that number"
        )
    weight = p * c
    return np.asarray(np.outer(weight, weight) * (topics * (t[:, None] == t) - 1.0))
