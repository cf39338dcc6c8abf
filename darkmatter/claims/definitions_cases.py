"""Cases for the claims about definitions: outcomes of (x, e), pairs of covariances, tokens in batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.strategies import Floats, seeds, small_matrices
from darkmatter.theory.definitions import PairMoments
from darkmatter.theory.ratios import mean_ratio

EPS = float(np.finfo(np.float64).eps)

TURN = np.array([[3.0, 4.0], [-4.0, 3.0]]) / 5.0
"""A rotation in whole-number fifths."""


def _rows(a: Floats) -> str:
    return "[" + "; ".join(" ".join(f"{v:.4g}" for v in row) for row in np.atleast_2d(a)) + "]"


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Equally likely outcomes of x and e, both (n, d), every coordinate of which varies."""

    x: Floats
    e: Floats

    @property
    def moments(self) -> PairMoments:
        """Moments of the two."""
        return PairMoments.of(self.x, self.e)

    def __str__(self) -> str:
        return f"{len(self.x)} equally likely outcomes: x = {_rows(self.x)}, e = {_rows(self.e)}"


def rounding(*moments: PairMoments) -> float:
    """Relative error of what is solved from moments of at most 8 outcomes: c · eps · condition of Cov x, the worst."""
    spectra = (np.linalg.eigvalsh(m.cov_x) for m in moments)
    return max(1e3 * EPS * float(v[-1] / v[v > 1e-9 * v[-1]][0]) for v in spectra)


def varying(a: Floats) -> Floats:
    """Move the first outcome of every constant column by 1."""
    a = a.copy()
    a[0] += (a == a[0]).all(axis=0)
    return a


@st.composite
def pairs(draw: st.DrawFn, *, mirrored: bool = False) -> Pair:
    """A few outcomes with whole-number coordinates; mirrored ones have E x = 0, while e has a mean."""
    n, d = draw(st.integers(2, 7)), draw(st.integers(1, 3))
    x, e = draw(small_matrices(2 * n, d)).reshape(2, n, d)
    if mirrored:
        half = np.where((x == 0.0).all(axis=0), 1.0, x)
        return Pair(np.vstack([half, -half]), varying(np.vstack([e, np.zeros_like(e)])))
    return Pair(varying(x), varying(e))


@dataclass(frozen=True, slots=True)
class Covariances:
    """Cov r ≤ Cov e, (d, d), with eigenvalues of a power law, and a basis."""

    d: int
    decay: float
    commute: bool
    basis: str
    seed: int

    def matrices(self, *, rising: bool | None = None) -> tuple[Floats, Floats, Floats]:
        """Cov r, Cov e and the basis; with `rising`, R² rises or falls with the variance of the common axes."""
        rng = np.random.default_rng(self.seed)
        values = np.sort(rng.uniform(0.1, 1.0, self.d) ** self.decay) + 0.01
        shares = rng.uniform(0.0, 1.0, self.d)  # Var r / Var e along the common axes
        if rising is not None:
            shares = np.sort(shares)[::-1] if rising else np.sort(shares)
        axes = np.linalg.qr(rng.standard_normal((self.d, self.d)))[0]
        turn, random = (np.linalg.qr(rng.standard_normal((self.d, self.d)))[0] for _ in range(2))
        root = axes * np.sqrt(values)
        inner = root if self.commute or rising is not None else root @ turn
        part = (inner * shares) @ inner.T
        return (part + part.T) / 2, root @ root.T, axes.T if self.basis == "axes" else random


covariance_pairs = st.builds(
    Covariances,
    d=st.integers(2, 6),
    decay=st.floats(0.0, 4.0),
    commute=st.booleans(),
    basis=st.sampled_from(["axes", "random"]),
    seed=seeds(),
)


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """Cov r and Cov e of two coordinates, whole numbers; Cov e − Cov r is a covariance, Cov r is not singular."""

    part: Floats
    whole: Floats

    def __str__(self) -> str:
        turned = TURN @ self.whole @ TURN.T, TURN @ self.part @ TURN.T
        first = 1.0 - mean_ratio(np.diag(self.part), np.diag(self.whole))
        second = 1.0 - mean_ratio(np.diag(turned[1]), np.diag(turned[0]))
        return (
            f"Cov e = {_rows(self.whole)}, Cov r = {_rows(self.part)}: mean R² {first:.4g}, and {second:.4g} in the "
            "basis (3, 4)/5, (-4, 3)/5"
        )


def _whole(tables: Floats) -> Whole:
    first, second = tables.reshape(2, 2, 2)
    part = first @ first.T + np.eye(2)
    return Whole(part, part + second @ second.T)


whole_covariances = small_matrices(4, 2).map(_whole)


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Equally likely tokens with numerator n and denominator w > 0, and a batch of B independent ones."""

    n: Floats
    w: Floats
    batch: int

    def __str__(self) -> str:
        return f"tokens with |e|² = {_rows(self.n)}, |x|² = {_rows(self.w)}, batches of {self.batch}"


@st.composite
def tokens(draw: st.DrawFn) -> Tokens:
    """A few kinds of token, in batches of at most three."""
    n, w = draw(small_matrices(2, draw(st.integers(2, 5)))) + 3.0
    return Tokens(n, w + draw(st.integers(1, 20)), draw(st.integers(1, 3)))
