"""Cases of the interval theorem: worlds whose folds all have the same best map, and derivatives by complex step.

With one best map in every fold, leave-one-out fits equal the fit to all tokens. The product's fold influences are then
exactly the derivatives along a re-weighting of the folds, which a complex step takes from the whole functional, fit
included, without the envelope theorem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from scipy import stats

from darkmatter.claims.merging import moments_of
from darkmatter.claims.strategies import Floats, seeds
from darkmatter.folds import FoldMoments
from darkmatter.inference import LEVEL, Estimate
from darkmatter.moments import Layout
from darkmatter.theory.population import residual

Complex = npt.NDArray[np.complex128]
_STEP = 1e-30
KINDS = ("shares", "pair", "norms")


@dataclass(frozen=True, slots=True)
class FoldWorld:
    """Folds of tokens with SAEs whose errors, or squared norms of the error, have one best map in all folds.

    Attributes:
        extra: Tokens of every fold beyond d + 3.
        d: Width of x.
        unequal: How different the folds are in the size of x and of the residuals.
        kind: "shares" of one SAE, a "pair" of SAEs, or "norms" of one: then |e|² instead of e has one best map.
        seed: Seed of everything.
    """

    extra: tuple[int, ...]
    d: int
    unequal: float
    kind: str
    seed: int

    @property
    def n(self) -> npt.NDArray[np.int64]:
        """Tokens per fold, (K,)."""
        return np.array(self.extra) + self.d + 3

    def arrays(self) -> tuple[Floats, Floats]:
        """Activations, (n, d), and errors, (S, n, d)."""
        rng, s = np.random.default_rng(self.seed), 2 if self.kind == "pair" else 1
        xs, residuals = [], []
        for n in self.n:
            size_x, *sizes = np.exp(self.unequal * rng.standard_normal(1 + s))
            x = size_x * rng.standard_normal((n, self.d)) + 0.3 * rng.standard_normal(self.d)
            common, *own = rng.standard_normal((1 + s, n, self.d))
            xs.append(x)
            residuals.append(np.stack([size * residual(common + o, x) for size, o in zip(sizes, own, strict=True)]))
        x, r = np.vstack(xs), np.concatenate(residuals, axis=1)
        # small maps: Cov(x, Sae), by which some ratios divide, stays above 40 % of Var x
        maps, bias = rng.uniform(-0.3, 0.3, (s, self.d, self.d)), rng.standard_normal((s, 1, self.d))
        if self.kind != "norms":
            return x, x @ maps + bias + r
        # |e|² affine in x but for a residual that is orthogonal to (1, x) in every fold, in any direction
        squares = (x @ maps[:, :, :1] + r[:, :, :1])[..., 0]
        directions = rng.standard_normal(r.shape)
        directions /= np.linalg.norm(directions, axis=2, keepdims=True)
        return x, np.sqrt(squares - squares.min(axis=1, keepdims=True) + 0.5)[..., None] * directions

    def moments(self) -> FoldMoments:
        """What the product sums."""
        x, errors = self.arrays()
        layout, cuts = Layout(self.d, ("a", "b")[: len(errors)]), np.cumsum(self.n)[:-1]
        pieces = zip(np.split(x, cuts), np.split(x - errors, cuts, axis=1), strict=True)
        documents = tuple(np.array([k], dtype=np.uint64) for k in range(len(self.n)))
        return FoldMoments(layout, tuple(moments_of([piece], layout) for piece in pieces), documents)


def fold_worlds() -> st.SearchStrategy[FoldWorld]:
    """Two or three folds of different sizes."""
    return st.builds(
        FoldWorld,
        extra=st.lists(st.integers(0, 6), min_size=2, max_size=3).map(tuple),
        d=st.integers(1, 2),
        unequal=st.floats(0.0, 1.0),
        kind=st.sampled_from(KINDS),
        seed=seeds(),
    )


@dataclass(frozen=True, slots=True)
class Second:
    """Second moments under complex weights: traces over the coordinates, and residual ones after the best map."""

    x: Any
    xe: Complex
    ee: Complex
    rr: Complex

    @classmethod
    def of(cls, weights: Complex, x: Floats, targets: Floats) -> Second:
        """Moments of x and of targets, (S, n, q), with the best affine map for these very weights."""
        w = weights / weights.sum()
        xc = x - w @ x
        tc = targets - (w @ targets)[:, None, :]
        gram, cross = (xc.T * w) @ xc, (xc.T * w) @ tc
        ee = np.einsum("n,anj,bnj->ab", w, tc, tc)
        explained = np.einsum("aij,bij->ab", cross, np.linalg.solve(gram, cross))
        xe = np.einsum("aii->a", cross) if targets.shape[2] == x.shape[1] else np.zeros(len(targets))
        return cls(gram.diagonal().sum(), np.asarray(xe), ee, ee - explained)

    def widened(self, factor: float) -> Second:
        """The same with the derivatives of residual moments widened."""
        return Second(self.x, self.xe, self.ee, self.rr.real + 1j * factor * self.rr.imag)


def fold_derivatives(functional: Callable[[Complex], Complex], n: npt.NDArray[np.int64]) -> Floats:
    """Derivatives of functions of token weights along (1 − t) P + t P_k for every fold k, by complex step.

    Args:
        functional: Takes weights of all tokens, (n,), and returns several numbers, (m,).
        n: Tokens per fold.

    Returns:
        ψ, (K, m), exact to rounding.
    """
    total, fold = n.sum(), np.repeat(np.arange(len(n)), n)
    everyone = np.full(total, 1.0 / total)
    rows = [functional(everyone + 1j * _STEP * ((fold == k) / n[k] - everyone)) for k in range(len(n))]
    return np.asarray(np.array(rows).imag / _STEP)


def error_of(influence: Floats, n: npt.NDArray[np.int64]) -> Floats:
    """Standard errors of several numbers from their influences, (K, m), by the formula of the page."""
    w = n[:, None] / n.sum()
    return np.asarray(np.sqrt((w * (influence - (w * influence).sum(axis=0)) ** 2).sum(axis=0) / (len(n) - 1)))


def errors_reported(estimates: Sequence[Estimate], scales: Sequence[str], folds: int) -> Floats:
    """The standard errors behind reported intervals, on the scales on which they are symmetric; NaN where cut at 0."""
    halves = [_HALF[scale](estimate) for estimate, scale in zip(estimates, scales, strict=True)]
    return np.array(halves) / stats.t.ppf((1.0 + LEVEL) / 2.0, folds - 1)


_HALF: dict[str, Callable[[Estimate], float]] = {
    "identity": lambda e: e.high - e.value,
    "identity, cut at 0": lambda e: e.high - e.value if e.value > 0.0 else math.nan,
    "log": lambda e: math.log(e.high / e.value),
    "log of 1 - R2": lambda e: math.log((1.0 - e.low) / (1.0 - e.value)),
    "signed root": lambda e: math.sqrt(e.high) - math.sqrt(e.value),
}
