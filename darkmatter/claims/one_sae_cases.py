"""Cases of T5: features that an SAE returns shrunk, and second moments of one SAE that obey its assumptions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.strategies import Floats, covariances, seeds, small_matrices
from darkmatter.theory.one_sae_moments import SecondMoments, ShrunkFeatures

EPS = float(np.finfo(np.float64).eps)
ROUNDING = 1e-12
"""Of traces of matrices of at most six rows: some hundred roundings of 1e-16."""


def written(rows: Floats) -> str:
    """A matrix on one line."""
    return "[" + "; ".join(" ".join(f"{v:.4g}" for v in row) for row in rows) + "]"


@dataclass(frozen=True, slots=True, eq=False)
class Shrunk:
    """X = Σ w_i y_i + U and Sae = Σ (1 − s_i) w_i y_i + N with white factors: A1 and A2 hold by construction.

    Attributes:
        directions: Rows y_i, of any length, (m, d).
        retained: 1 − s_i, (m,).
        rest: Cov U = rest' rest, (p, d).
        introduced: Cov N = introduced' introduced, (q, d).
        mixing: w = white @ mixing, (m, m); the identity for features that are uncorrelated with each other.
    """

    directions: Floats
    retained: Floats
    rest: Floats
    introduced: Floats
    mixing: Floats

    @property
    def true(self) -> Floats:
        """Coefficients of x on the white factors of w and U, (m + p, d)."""
        return np.vstack([self.mixing @ self.directions, self.rest])

    @property
    def response(self) -> Floats:
        """Coefficients of Sae − N on them, (m + p, d)."""
        kept = self.retained[:, None] * self.directions
        return np.vstack([self.mixing @ kept, np.zeros_like(self.rest)])

    @property
    def moments(self) -> SecondMoments:
        """Second moments of (x, Sae)."""
        noise = self.introduced.T @ self.introduced
        return SecondMoments(
            x=self.true.T @ self.true,
            cross=self.true.T @ self.response,
            recon=self.response.T @ self.response + noise,
        )

    @property
    def var_x(self) -> float:
        """Var x."""
        return squares(self.true)

    @property
    def var_recon(self) -> float:
        """Var Sae."""
        return squares(self.response) + self.var_n

    @property
    def var_error(self) -> float:
        """Var e."""
        return squares(self.true - self.response) + self.var_n

    @property
    def covariance(self) -> float:
        """Cov(x, Sae), the trace."""
        return float((self.true * self.response).sum())

    @property
    def var_n(self) -> float:
        """Var N, the truth."""
        return squares(self.introduced)

    @property
    def var_linear(self) -> float:
        """Var P e: squares of a projection on the columns of `true`, so without cancellation and without inverses."""
        left, values, _ = np.linalg.svd(self.true, full_matrices=False)
        basis = left[:, values > 1e-10 * values[0]]
        return squares(basis.T @ (self.true - self.response))

    @property
    def var_nonlinear(self) -> float:
        """R = Var r."""
        return max(0.0, self.var_error - self.var_linear)

    @property
    def rounding(self) -> float:
        """Relative rounding of what goes through the inverse of Cov x or Cov(x, Sae)."""
        return max(condition_rounding(m) for m in (self.moments.x, self.moments.kept))

    def __str__(self) -> str:
        parts = [f"features {written(self.directions)}", f"retained {written(self.retained[None])}"]
        if not np.array_equal(self.mixing, np.eye(len(self.mixing))):
            parts.append(f"Cov w = {written(self.mixing.T @ self.mixing)}")
        for name, rows in (("U", self.rest), ("N", self.introduced)):
            parts.append(f"Cov {name} = {written(rows.T @ rows)}")
        return ", ".join(parts)


def squares(rows: Floats) -> float:
    """Sum of squares: the trace of rows' rows."""
    return float((rows**2).sum())


def condition_rounding(covariance: Floats) -> float:
    """100 eps times the condition number on the directions that vary: solving loses that factor."""
    values = np.abs(np.linalg.eigvalsh(covariance))
    real = values[values > 1e-10 * values.max()]
    return 100 * EPS * float(real.max() / real.min()) if len(real) else ROUNDING


def world_rounding(moments: SecondMoments, world: ShrunkFeatures) -> float:
    """Relative rounding of `alternative`: shares are known to eps, and the features' variance is divided by them."""
    condition = condition_rounding(moments.x) + condition_rounding(moments.kept)
    return condition / float(world.retained.min(initial=1.0))


@st.composite
def shrunk(
    draw: st.DrawFn,
    *,
    least: float = 0.0,
    most: float = 1.0,
    uniform: bool = False,
    correlated: bool = False,
    readable: bool = False,
) -> Shrunk:
    """Cases of small whole numbers; retained shares are multiples of a twentieth.

    Args:
        draw: Supplied by hypothesis.
        least: Smallest retained share 1 − s_i.
        most: Largest retained share.
        uniform: One share for all features.
        correlated: Features may be correlated with each other.
        readable: Draw every entry, so that a counterexample shrinks; else only a seed of them, which costs less.

    Returns:
        The case; x varies.
    """
    m, d, p, q = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(0, 3)), draw(st.integers(0, 2))
    if readable:
        block = draw(small_matrices(m + p + q, d, most=2))
    else:
        block = np.random.default_rng(draw(seeds())).integers(-2, 3, (m + p + q, d)).astype(np.float64)
    directions, rest, introduced = block[:m], block[m : m + p], block[m + p :]
    directions[0, 0] = directions[0, 0] or 1.0
    shares = st.integers(round(20 * least), round(20 * most)).map(lambda k: k / 20)
    retained = draw(st.lists(shares, min_size=1 if uniform else m, max_size=1 if uniform else m))
    mixing = np.eye(m)
    if correlated:
        mixing = mixing + np.triu(draw(small_matrices(m, m, most=2)), 1)  # never singular
    return Shrunk(directions, np.resize(np.array(retained), m), rest, introduced, mixing)


def apart(case: Shrunk) -> Shrunk:
    """The same features, in a space of their own: the rest of x lies in other dimensions."""
    d = case.directions.shape[1]
    return replace(
        case,
        directions=np.pad(case.directions, ((0, 0), (0, d))),
        rest=np.pad(case.rest, ((0, 0), (d, 0))),
        introduced=np.pad(case.introduced, ((0, 0), (0, d))),
    )


def orthogonal(case: Shrunk) -> Shrunk:
    """The same features turned at right angles to each other, the rest of x in other dimensions."""
    (m, d), p = case.directions.shape, len(case.rest)
    lengths = np.linalg.norm(case.directions, axis=1)
    return replace(
        case,
        directions=np.hstack([np.diag(lengths), np.zeros((m, d))]),
        rest=np.hstack([np.zeros((p, m)), case.rest]),
        introduced=np.pad(case.introduced, ((0, 0), (m, 0))),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """Second moments that feature-wise shrinkage can have, and a matrix X inside its interval for Cov N.

    Attributes:
        moments: Second moments.
        introduced: X with 0 ⪯ X ⪯ Cov r and X ⪰ Cov Sae − Cov(x, Sae).
    """

    moments: SecondMoments
    introduced: Floats

    def __str__(self) -> str:
        m = self.moments
        matrices = ((m.x, "Cov x"), (m.cross, "Cov(x, Sae)"), (m.recon, "Cov Sae"), (self.introduced, "Cov N"))
        return ", ".join(f"{name} = {written(matrix)}" for matrix, name in matrices)


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    """Moments with W = Cov(x)^(−1/2) Cov(x, Sae) Cov(x)^(−1/2) between 0 and 1, any Cov r, and any X that is possible.

    X = Cov r − Y with 0 ⪯ Y ⪯ Cov r and Y ⪯ H = Cov x^(1/2) (W − W²) Cov x^(1/2), the room that A1 leaves.
    """
    d = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(seeds()))
    rank = draw(st.integers(1, d))
    x = draw(covariances(d=d, singular=False))
    values, vectors = np.linalg.eigh(x)
    root = (vectors * np.sqrt(values)) @ vectors.T
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    # eigenvalues near 0 make features of near infinite variance; 0 itself is a direction that no feature has
    w = np.where(np.arange(d) < rank, rng.uniform(0.05, 1.0, d), 0.0)
    w[0] = draw(st.sampled_from([w[0], 1.0]))
    cross = root @ (axes * w) @ axes.T @ root
    linear = root @ (axes * w**2) @ axes.T @ root
    room = root @ (axes * np.sqrt(w - w**2)) @ axes.T  # H = room room'
    share = draw(st.floats(0.0, 1.0))
    if draw(st.booleans()):  # Cov r inside H, so that X = 0 is possible
        turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
        nonlinear = room @ (turn * rng.uniform(0.0, 1.0, d)) @ turn.T @ room.T
        taken = share * nonlinear
    else:
        noise = draw(covariances(d=d, singular=False))  # two that are nearly parallel would have no stable sum
        nonlinear = noise * np.trace(x) / np.trace(noise)
        taken = share * parallel_sum(room @ room.T, nonlinear)
    moments = SecondMoments(x, (cross + cross.T) / 2, linear + nonlinear)
    return Interval(moments, nonlinear - taken)


def parallel_sum(a: Floats, b: Floats) -> Floats:
    """A : B = A − A (A + B)⁺ A, which is below both."""
    return np.asarray(a - a @ np.linalg.pinv(a + b, rcond=1e-14, hermitian=True) @ a)
