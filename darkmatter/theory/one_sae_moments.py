"""T5c to T5e: what the matrices Cov x, Cov(x, Sae) and Cov Sae of one SAE say about introduced error, and what not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError
from darkmatter.theory.one_sae import Bracket

Floats = npt.NDArray[np.float64]

_CUTOFF = 1e-10
_TOLERANCE = 1e-8  # a bound that rounding alone breaks is not broken


@dataclass(frozen=True, slots=True, eq=False)
class SecondMoments:
    """Everything that second moments say about one SAE.

    Attributes:
        x: Cov x, (d, d).
        cross: Cov(x, Sae) = E (x − E x)'(Sae − E Sae), (d, d).
        recon: Cov Sae, (d, d).

    Raises:
        InputError: Not three finite square matrices of one size, or a covariance that is not symmetric.
    """

    x: Floats
    cross: Floats
    recon: Floats

    def __post_init__(self) -> None:
        """Check shapes and symmetry.

        Raises:
            InputError: See the class.
        """
        d = self.x.shape[0] if self.x.ndim == 2 else 0
        for name, matrix in (("x", self.x), ("cross", self.cross), ("recon", self.recon)):
            if matrix.shape != (d, d) or not d or not np.isfinite(matrix).all():
                raise InputError(f"{name} has shape {matrix.shape}, expected a finite (d, d) matrix like the others")
        for name, matrix in (("x", self.x), ("recon", self.recon)):
            if np.abs(matrix - matrix.T).max() > _TOLERANCE * (np.abs(matrix).max() + np.finfo(np.float64).tiny):
                raise InputError(
                    f"{name} is not symmetric, expected a covariance matrix: average it with its transpose"
                )

    @property
    def kept(self) -> Floats:
        """Symmetric part of Cov(x, Sae), (d, d); the whole of it if features only shrink."""
        return symmetric(self.cross)

    @property
    def nonlinear(self) -> Floats:
        """Cov r = Cov Sae − Cov(x, Sae)' Cov(x)⁺ Cov(x, Sae), (d, d), r the measured nonlinear error."""
        half = inverse_root(self.x).T @ self.cross
        return self.recon - half.T @ half


@dataclass(frozen=True, slots=True, eq=False)
class ShrunkFeatures:
    """A world of uncorrelated features that an SAE returns shrunk: x = Σ w_i y_i + U, Sae = Σ (1 − s_i) w_i y_i + N.

    Attributes:
        features: Rows sd(w_i) y_i, (m, d).
        retained: 1 − s_i, (m,).
        rest: Cov U, (d, d).
        introduced: Cov N, (d, d).
    """

    features: Floats
    retained: Floats
    rest: Floats
    introduced: Floats

    @property
    def moments(self) -> SecondMoments:
        """Second moments of (x, Sae)."""
        kept = self.retained[:, None] * self.features
        return SecondMoments(
            x=self.features.T @ self.features + self.rest,
            cross=self.features.T @ kept,
            recon=kept.T @ kept + self.introduced,
        )


@dataclass(frozen=True, slots=True)
class UniformBracket:
    """Var N where every learned feature shrinks alike, and the shrinkage that the moments allow.

    Attributes:
        low: Lower end of Var N, from the largest retained share.
        high: Upper end, from the smallest.
        least: Smallest 1 − s, the largest eigenvalue of Cov(x, Sae) relative to Cov x.
        most: Largest 1 − s ≤ 1 that leaves Cov N no negative eigenvalue; below `least` the moments refute the
            assumption.
    """

    low: float
    high: float
    least: float
    most: float


def symmetric(matrix: Floats) -> Floats:
    """(M + M') / 2.

    Args:
        matrix: (d, d).

    Returns:
        (d, d).
    """
    return np.asarray((matrix + matrix.T) / 2.0)


def inverse_root(covariance: Floats) -> Floats:
    """A root T of the pseudo-inverse, T T' = Cov⁺, on the directions that vary.

    Args:
        covariance: (d, d), symmetric and positive semidefinite.

    Returns:
        (d, rank).
    """
    values, vectors = np.linalg.eigh(covariance)
    real = values > _CUTOFF * max(float(values[-1]), np.finfo(np.float64).tiny)
    return np.asarray(vectors[:, real] / np.sqrt(values[real]))


def relative_eigenvalues(a: Floats, b: Floats) -> Floats:
    """Eigenvalues of A relative to B: of B^(−1/2) A B^(−1/2) on the directions in which B varies.

    Args:
        a: (d, d), symmetric.
        b: (d, d), symmetric and positive semidefinite.

    Returns:
        (rank of B,), ascending.
    """
    root = inverse_root(b)
    return np.asarray(np.linalg.eigvalsh(root.T @ a @ root))


def feature_wise_bracket(moments: SecondMoments) -> Bracket:
    """Bracket tr (Cov Sae − Cov(x, Sae))₊ ≤ Var N ≤ Var r, for features that shrink by any s_i in [0, 1].

    As matrices: Cov Sae − Cov(x, Sae) ⪯ Cov N ⪯ Cov r and Cov N ⪰ 0, and every such matrix is possible. The subscript
    + keeps the positive eigenvalues.

    Args:
        moments: Second moments; of the cross-covariance the symmetric part counts for the lower end.

    Returns:
        The bracket, in squared units of x (T5c, proofs/08_one_sae.md).
    """
    values = np.linalg.eigvalsh(moments.recon - moments.kept)
    return Bracket(low=float(values[values > 0.0].sum()), high=float(np.trace(moments.nonlinear)))


def uniform_bracket(moments: SecondMoments, *, spread: float = 1.0) -> UniformBracket:
    """Var Sae − min(1, μ) Cov(x, Sae) ≤ Var N ≤ Var Sae − ρ λ Cov(x, Sae), for uniform shrinkage or nearly so.

    λ is the largest eigenvalue of Cov(x, Sae) relative to Cov x, 1 / μ the largest relative to Cov Sae. With ρ = 1 the
    upper end is at most Var r, and every value of the bracket is possible.

    Args:
        moments: Second moments; of the cross-covariance the symmetric part counts.
        spread: ρ in (0, 1], smallest over largest retained share 1 − s_i; below 1 the lower end uses min(1, μ / ρ).

    Returns:
        The bracket, in squared units of x (T5d, proofs/08_one_sae.md).

    Raises:
        InputError: A spread out of range.
    """
    if not 0.0 < spread <= 1.0:
        raise InputError(f"spread is {spread!r}, expected a number in (0, 1]: 1 is uniform shrinkage")
    kept = moments.kept
    least = float(relative_eigenvalues(kept, moments.x).max(initial=0.0))
    seen = spread * float(relative_eigenvalues(kept, moments.recon).max(initial=0.0))
    most = 1.0 / seen if seen > 1.0 else 1.0
    recon, covariance = float(np.trace(moments.recon)), float(np.trace(kept))
    return UniformBracket(
        low=recon - most * covariance, high=recon - spread * least * covariance, least=least, most=most
    )


def alternative(moments: SecondMoments, introduced: Floats) -> ShrunkFeatures:
    """A world with the same second moments in which Cov N is a chosen matrix X; X = 0 is a flawless SAE that shrinks.

    With Q = Cov Sae − X, the pair C = Cov(x, Sae) and Q are diagonalised together, C = Σ g_i'g_i and Q = Σ l_i g_i'g_i.
    The features are rows g_i / sqrt(l_i), retained at 1 − s_i = l_i. It exists exactly if 0 ⪯ X ⪯ Cov r and
    X ⪰ Cov Sae − C.

    Args:
        moments: Second moments, with a symmetric cross-covariance between 0 and Cov x.
        introduced: X, (d, d).

    Returns:
        The world (T5c and T5e, proofs/08_one_sae.md).

    Raises:
        InputError: Features that only shrink cannot have these moments, or not with this X.
    """
    scale = float(np.trace(moments.x) + np.trace(moments.recon))
    if np.abs(moments.cross - moments.kept).max() > _TOLERANCE * scale:
        raise InputError("cross is not symmetric, expected the cross-covariance of features that only shrink")
    kept, recon = moments.kept, moments.recon - symmetric(introduced)
    for name, matrix in (("cross", kept), ("introduced", introduced), ("cross - (recon - introduced)", kept - recon)):
        if np.linalg.eigvalsh(symmetric(matrix))[0] < -_TOLERANCE * scale:
            raise InputError(f"{name} has a negative eigenvalue, expected none: see T5c for what is possible")
    root = inverse_root(kept)
    values, axes = np.linalg.eigh(root.T @ recon @ root)
    values = np.minimum(values, 1.0)
    if values.min(initial=1.0) <= 0.0:
        raise InputError("introduced is too large, expected at most the covariance of the nonlinear error")
    features = (kept @ root @ axes / np.sqrt(values)).T
    world = ShrunkFeatures(features, values, moments.x - features.T @ features, symmetric(introduced))
    lost = np.abs(world.moments.recon - moments.recon).max()
    if np.linalg.eigvalsh(world.rest)[0] < -_TOLERANCE * scale or lost > _TOLERANCE * scale:
        raise InputError("introduced is too large, expected at most the covariance of the nonlinear error")
    return world
