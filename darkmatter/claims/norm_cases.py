"""Cases of theorem A: finite laws of independent codes, dense parts and noise, exact in all the moments it needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.strategies import Floats, seeds
from darkmatter.theory.amplitudes import LAWS, Moments, gated_moments, mean_one_moments
from darkmatter.theory.norm_probe import Factors, Vector
from darkmatter.theory.population import predicted, residual, variance

_LIKE_A_NORMAL = np.array([-np.sqrt(3.0), 0.0, 0.0, 0.0, 0.0, np.sqrt(3.0)])
"""Equally likely values with the first five moments of N(0, 1): theorem A needs four."""


def grid(*laws: Floats) -> Floats:
    """All combinations of one row from every law, side by side: the law of independent vectors."""
    rows = np.meshgrid(*(np.arange(len(law)) for law in laws), indexing="ij")
    return np.hstack([law[index.ravel()] for law, index in zip(laws, rows, strict=True)])


def whole_numbers(seed: int, n: int, d: int) -> Floats:
    """Numbers from −3 to 3, many of them equal or zero, (n, d); quicker to draw than `small_matrices`, not readable."""
    return np.random.default_rng(seed).integers(-3, 4, (n, d)).astype(np.float64)


def square_norms(x: Floats) -> Floats:
    """‖x‖² of every outcome, (n, 1)."""
    return np.asarray((x**2).sum(axis=1, keepdims=True))


def explained_and_total(x: Floats, v: Floats) -> tuple[float, float]:
    """Var P‖v‖² and Var ‖v‖² on a finite population, P regressing on x with an intercept."""
    norms = square_norms(v)
    return variance(predicted(norms, x)), variance(norms)


def rounding_scale(x: Floats, v: Floats, weights: Floats) -> float:
    """What rounding errors of Var ‖v‖² and of q Cov(x)⁺ q' are proportional to: |v|⁴ and, for the inverse, |x|² |a|².

    A change δ of Cov(x) changes q Cov(x)⁺ q' by a δ a', with a = q Cov(x)⁺ the weights of the probe.
    """
    size = float((v**2).sum(axis=1).max())
    return size**2 + float((x**2).sum(axis=1).max() * (weights @ weights)) + 1.0


def unread_share(x: Floats) -> float:
    """1 − R² of ‖x‖² on x; 0 where the norm does not vary."""
    norms = square_norms(x)
    total = variance(norms)
    varies = total > 1e-24 * float(norms.max(initial=0.0)) ** 2  # else it is rounding
    return variance(residual(norms, x)) / total if varies else 0.0


def normal_outcomes(d: int) -> Floats:
    """Outcomes with the moments of N(0, I_d) up to the fifth order, (6^d, d)."""
    return grid(*[_LIKE_A_NORMAL[:, None]] * d)


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Independent codes and their directions.

    Attributes:
        outcomes: Column i holds the equally likely values of w_i, (o, m).
        directions: y_i, (m, d).
    """

    outcomes: Floats
    directions: Floats

    @property
    def factors(self) -> Factors:
        """What theorem A takes."""
        return Factors.sparse(self.directions, self.moments)

    @property
    def moments(self) -> Floats:
        """E w_i^r for r = 1 … 4, (4, m)."""
        return np.asarray((self.outcomes ** np.arange(1, 5)[:, None, None]).mean(axis=1))

    @property
    def w(self) -> Floats:
        """All combinations of values, (o^m, m)."""
        return grid(*self.outcomes.T[:, :, None])

    @property
    def x(self) -> Floats:
        """The activations, (o^m, d)."""
        return self.w @ self.directions


@st.composite
def codes(draw: st.DrawFn, *, independent: bool = False) -> Codes:
    """Whole-number codes, some of them constant; directions of whole numbers, linearly independent if asked for."""
    m, o = draw(st.integers(1, 4)), draw(st.integers(2, 3))
    d = draw(st.integers(m, 5) if independent else st.integers(1, 4))
    block = whole_numbers(draw(seeds()), o + d, m)
    outcomes, y = block[:o], block[o:].T
    if independent:  # ones on the diagonal, zeros above it, anything in the other columns
        y = np.hstack([np.tril(y[:, :m], -1) + np.eye(m), y[:, m:]])
    return Codes(outcomes, np.ascontiguousarray(y))


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """x = w Y + g F and v = w U + g V + σ n on a finite population.

    Attributes:
        codes: The codes w and their directions Y.
        other: U, (m, d).
        g: Equally likely dense coordinates with mean 0 and covariance I, dependent and skewed, (o, k).
        dense_map: F, (k, d).
        dense: V, (k, d), with V V' = α I.
        noise: σ.
    """

    codes: Codes
    other: Floats
    g: Floats
    dense_map: Floats
    dense: Floats
    noise: float

    @property
    def factors(self) -> Factors:
        """What theorem A takes."""
        size = (self.g**2).sum(axis=1)
        return replace(
            self.codes.factors,
            dense_map=self.dense_map,
            skew=size @ self.g / len(self.g),
            square_variance=variance(size),
        )

    @property
    def vector(self) -> Vector:
        """The vector v."""
        return Vector(self.other, self.dense, self.noise)

    def outcomes(self) -> tuple[Floats, Floats]:
        """All combinations: x (n, d) and v (n, d)."""
        m, k = self.other.shape[0], len(self.dense)
        d = self.other.shape[1]
        laws = [self.codes.w, self.g, *([normal_outcomes(d)] if self.noise else [])]
        rows = grid(*laws)
        w, g, n = rows[:, :m], rows[:, m : m + k], rows[:, m + k :]
        v = w @ self.other + g @ self.dense
        return w @ self.codes.directions + g @ self.dense_map, v + self.noise * n if self.noise else v


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    """Two codes, a dense part whose coordinates are uncorrelated but dependent, and noise like a normal one."""
    d = draw(st.integers(1, 2))
    k = draw(st.integers(1, d))
    rng = np.random.default_rng(draw(seeds()))
    o = draw(st.integers(k + 2, 6))
    raw = rng.standard_normal((o, k)) ** draw(st.sampled_from([1, 3]))
    g = np.linalg.qr(raw - raw.mean(axis=0))[0] * np.sqrt(o)
    frame = np.linalg.qr(rng.standard_normal((d, d)))[0][:k] * draw(st.floats(0.0, 2.0))
    block = whole_numbers(draw(seeds()), 3 + 2 * d, 2)
    return Mixture(
        codes=Codes(block[:3], np.ascontiguousarray(block[3 : 3 + d].T)),
        other=np.ascontiguousarray(block[3 + d :].T),
        g=g,
        dense_map=rng.standard_normal((k, d)),
        dense=frame,
        noise=draw(st.sampled_from([0.0, 0.5, 2.0])),
    )


@dataclass(frozen=True, slots=True)
class Law:
    """An amplitude law by name and shape, mean one."""

    name: str
    shape: float

    @property
    def moments(self) -> Moments:
        """Raw moments M1 … M4."""
        return mean_one_moments(self.name, self.shape)


def laws() -> st.SearchStrategy[Law]:
    """Every law of the table of theorem A."""
    shapes = {"gamma": (0.3, 9.0), "lognormal": (0.1, 1.2), "poisson": (0.1, 9.0)}
    return st.sampled_from(LAWS).flatmap(
        lambda name: st.builds(Law, st.just(name), st.floats(*shapes.get(name, (1, 1))))
    )


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Features that fire with one probability and have one amplitude law.

    Attributes:
        directions: Unit rows, (m, d).
        law: Law of the amplitude.
        p: Firing rate.
    """

    directions: Floats
    law: Law
    p: float

    @property
    def factors(self) -> Factors:
        """What theorem A takes."""
        return Factors.sparse(self.directions, gated_moments(self.law.moments, np.full(len(self.directions), self.p)))

    def __str__(self) -> str:
        m, d = self.directions.shape
        return f"{m} features in {d} dimensions, firing rate {self.p:.3g}, {self.law.name} amplitudes"


@st.composite
def features(draw: st.DrawFn, *, superposed: bool = False, most_rate: float = 0.9) -> Features:
    """Features in random directions, more of them than dimensions if asked for."""
    d = draw(st.integers(2, 4) if superposed else st.integers(1, 4))
    m = draw(st.integers(d + 1, 3 * d + 1) if superposed else st.integers(1, 8))
    rows = np.random.default_rng(draw(seeds())).standard_normal((m, d))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Features(rows, draw(laws()), draw(st.floats(0.01, most_rate)))
