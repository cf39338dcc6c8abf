"""T3: what superposition hides from every affine probe, in closed form."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError

Floats = npt.NDArray[np.float64]


def interference(factors: npt.ArrayLike, true: npt.ArrayLike, response: npt.ArrayLike) -> float:
    """Var((I − P) f B) for x = f A: the affine response to the factors that no affine function of x predicts.

    With Σ = Cov f and Cov x = A' Σ A, the best predictor of f B from x is x M, M = (A' Σ A)⁺ A' Σ B, and the rest
    f (B − A M) has variance tr (B − A M)' Σ (B − A M), a sum of squares that cannot cancel.

    Args:
        factors: Σ, covariance of the true factors, (m, m), positive semidefinite.
        true: A, coefficients of x on the factors, (m, d).
        response: B, coefficients of the affine part of Sae(x) on the factors, (m, d).

    Returns:
        The variance, in squared activation units. Source: proofs/06.

    Raises:
        InputError: Shapes that do not fit.
    """
    sigma, a, b = (np.asarray(value, dtype=np.float64) for value in (factors, true, response))
    if a.ndim != 2 or sigma.shape != (len(a), len(a)) or b.ndim != 2 or len(b) != len(a):
        raise InputError(
            f"shapes are {sigma.shape}, {a.shape} and {b.shape}, expected (m, m), (m, d) and (m, d): one row of "
            "coefficients per factor"
        )
    # through a root of Σ: projecting onto the columns of (root A) never squares a condition number
    values, vectors = np.linalg.eigh(sigma)
    root = vectors * np.sqrt(np.clip(values, 0.0, None))
    left, singular, _ = np.linalg.svd(root.T @ a, full_matrices=False)
    basis = left[:, singular > 1e-10 * max(float(singular.max(initial=0.0)), np.finfo(np.float64).tiny)]
    image = root.T @ b
    return float(((image - basis @ (basis.T @ image)) ** 2).sum())
