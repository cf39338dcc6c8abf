"""Least squares of a power law with asymptote on a log scale, for many data sets or many fixed values at once.

The curve is log f(t) = u + softplus(v − m t) with t = log(w / w_ref), c = e^u and a = e^(u + v) at the reference
width: f = c + a (w / w_ref)^−m. It bends little in (u, v, m), so that Levenberg and Marquardt's steps need no care;
c = 0, where u and v run away together, is log f = v − m t, a straight line, and is solved as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Fixed = Literal["c", "m"]

MAX_EXPONENT = 6.0
"""Largest exponent searched: at 6, doubling the width removes 98 % of what it can."""
_STEPS = 50
_NONE = 1e-12
"""Asymptote over the least share at or below which it is none."""
_LOWEST, _HIGHEST = -40.0, 60.0


@dataclass(frozen=True, slots=True)
class Curves:
    """B curves.

    Attributes:
        loss: Generalised sum of squares, (B,).
        c: Asymptotes, (B,).
        a: What a curve adds to its asymptote at the reference width, (B,).
        m: Exponents, (B,).
    """

    loss: Floats
    c: Floats
    a: Floats
    m: Floats

    def log_at(self, t: Floats) -> Floats:
        """Logarithm of f at T values of t, (B, T)."""
        found: Floats = np.log(self.c[:, None] + self.a[:, None] * np.exp(-self.m[:, None] * t))
        return found

    def pick(self, index: npt.NDArray[np.intp]) -> Curves:
        """Some of the curves."""
        return Curves(self.loss[index], self.c[index], self.a[index], self.m[index])


def fit_curves(y: Floats, t: Floats, root: Floats, *, fixed: Fixed, at: Floats) -> Curves:
    """Fit the two free parameters of B curves, the third being given; c ≥ 0, a ≥ 0, 0 ≤ m ≤ `MAX_EXPONENT`.

    Args:
        y: Logarithms of the shares, (B, n).
        t: Logarithms of width over the reference width, (n,).
        root: R with R'R the weight matrix, (n, n).
        fixed: Which parameter is given.
        at: Its values, (B,), at least 0.

    Returns:
        The best curves.
    """
    if fixed == "c":
        line = _lines(y, t, root)
        positive = at > _NONE * np.exp(y.min(axis=1))
        safe = np.where(positive, at, 1.0)
        excess = np.log(np.maximum(np.exp(y) / safe[:, None] - 1.0, 1e-4))
        start = _lines(excess, t, root)
        found = _descend(y - np.log(safe)[:, None], t, root, np.log(start.a), start.m, free=("v", "m"))
        bent = Curves(found.loss, safe, safe * found.a, found.m)
        return _choose(positive, bent, line)
    line = _lines(y, t, root, m=at)
    half = np.zeros(len(y))  # start where half of the level at the reference width can be lost
    bent = _descend(y, t, root, half, at, free=("u", "v"))
    return _choose(bent.loss < line.loss, bent, line)


def _choose(first: npt.NDArray[np.bool_], a: Curves, b: Curves) -> Curves:
    return Curves(*(np.where(first, getattr(a, name), getattr(b, name)) for name in ("loss", "c", "a", "m")))


def _lines(y: Floats, t: Floats, root: Floats, m: Floats | None = None) -> Curves:
    """Straight lines log f = v − m t, m ≥ 0 or given."""
    ones, slope = root.sum(axis=1), root @ t
    target = y @ root.T
    if m is None:
        x = slope - ones * (slope @ ones) / (ones @ ones)
        m = np.clip(-(target @ x) / (x @ x), 0.0, MAX_EXPONENT)
    rest = target + m[:, None] * slope
    v = rest @ ones / (ones @ ones)
    loss = np.square(rest - v[:, None] * ones).sum(axis=1)
    return Curves(loss, np.zeros(len(y)), np.exp(np.clip(v, _LOWEST, _HIGHEST)), m)


def _descend(y: Floats, t: Floats, root: Floats, v: Floats, m: Floats, *, free: tuple[str, str]) -> Curves:
    """Levenberg and Marquardt on (v, m) with u = 0, or on (u, v) with m given, for all rows at once."""
    moves_m = free == ("v", "m")
    u = np.zeros(len(y)) if moves_m else y.min(axis=1) - np.log(2.0)
    v, m = np.clip(v, _LOWEST, _HIGHEST), np.broadcast_to(m, v.shape).astype(np.float64)
    damping = np.full(len(y), 1e-2)
    residual = _residual(y, t, root, u, v, m)
    loss = np.square(residual).sum(axis=1)
    live = np.ones(len(y), dtype=bool)
    for _ in range(_STEPS):
        rows = np.flatnonzero(live)
        if not len(rows):
            break
        z = v[rows, None] - m[rows, None] * t
        share = 0.5 * (1.0 + np.tanh(0.5 * z))
        other = -share * t if moves_m else np.ones_like(share)
        first, other = share @ root.T, other @ root.T  # derivatives of log f by v and by the other parameter
        gradient = np.stack([(first * residual[rows]).sum(axis=1), (other * residual[rows]).sum(axis=1)], axis=1)
        a00, a11, a01 = ((p * q).sum(axis=1) for p, q in ((first, first), (other, other), (first, other)))
        second = m[rows] if moves_m else u[rows]
        if moves_m:  # a bound that the step would cross holds the exponent
            stuck = ((second <= 0) & (gradient[:, 1] < 0)) | ((second >= MAX_EXPONENT) & (gradient[:, 1] > 0))
            gradient[stuck, 1] = 0.0
            a01[stuck] = 0.0
        a00, a11 = (diagonal * (1 + damping[rows]) + 1e-300 for diagonal in (a00, a11))
        determinant = np.maximum(a00 * a11 - a01**2, 1e-300)
        step_v = (a11 * gradient[:, 0] - a01 * gradient[:, 1]) / determinant
        step = (a00 * gradient[:, 1] - a01 * gradient[:, 0]) / determinant
        new_v = np.clip(v[rows] + np.clip(step_v, -5, 5), _LOWEST, _HIGHEST)
        low, high = (0.0, MAX_EXPONENT) if moves_m else (_LOWEST, _HIGHEST)
        new = np.clip(second + np.clip(step, -2, 2), low, high)
        new_u, new_m = (u[rows], new) if moves_m else (new, m[rows])
        new_residual = _residual(y[rows], t, root, new_u, new_v, new_m)
        new_loss = np.square(new_residual).sum(axis=1)
        better = new_loss <= loss[rows]
        done = better & (loss[rows] - new_loss <= 1e-10 * loss[rows])
        damping[rows] = np.where(better, np.maximum(damping[rows] / 5, 1e-12), np.minimum(damping[rows] * 8, 1e12))
        done |= damping[rows] >= 1e12
        taken = rows[better]
        u[taken], v[taken], m[taken] = new_u[better], new_v[better], new_m[better]
        residual[taken], loss[taken] = new_residual[better], new_loss[better]
        live[rows[done]] = False
    return Curves(loss, np.exp(u), np.exp(u + v), m)


def _residual(y: Floats, t: Floats, root: Floats, u: Floats, v: Floats, m: Floats) -> Floats:
    return (y - u[:, None] - np.logaddexp(0.0, v[:, None] - m[:, None] * t)) @ root.T
