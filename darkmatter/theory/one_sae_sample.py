"""T5d in samples: the largest eigenvalue, from directions that the tokens they are judged by did not choose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError
from darkmatter.theory.one_sae_moments import inverse_root, symmetric

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutShare:
    """Estimates of λ, the largest eigenvalue of Cov(x, Sae) relative to Cov x.

    Attributes:
        value: Held out: every fold judged by the direction that the others chose; on average at most λ.
        plug_in: In sample: on average at least λ.
        influence: Influence of every fold on `value`, (K,), weighted mean 0.
    """

    value: float
    plug_in: float
    influence: Floats


def held_out_share(x: Floats, cross: Floats, n: Floats) -> HeldOutShare:
    """λ̂ = Σ_k u_k'C_k u_k / Σ_k u_k'G_k u_k, with u_k the best direction of all folds but k.

    G_k and C_k are the scatters of fold k, u_k has unit variance outside it. Every term tells of a direction that was
    fixed beforehand, and no fixed direction has u'Cu / u'Gu above λ. By the envelope theorem u_k drops out of the
    influence ψ_k = (u_k'C_k u_k − λ̂ u_k'G_k u_k) / n_k over the mean of u'Gu, as long as λ stands alone.

    Args:
        x: Scatter of x per fold about the means of all tokens, (K, d, d).
        cross: Scatter of x with Sae per fold, (K, d, d); the symmetric part counts.
        n: Tokens per fold, (K,).

    Returns:
        The estimates (T5d, proofs/08_one_sae.md).

    Raises:
        InputError: Shapes that do not fit, fewer than two folds, or an empty one.
    """
    shape = x.shape
    if len(shape) != 3 or cross.shape != shape or shape[1] != shape[2] or n.shape != shape[:1]:
        raise InputError(
            f"x, cross and n have shapes {shape}, {cross.shape} and {n.shape}, expected (K, d, d) twice and (K,)"
        )
    if len(n) < 2 or n.min() <= 0:
        raise InputError(f"n is {n.tolist()}, expected at least two folds with tokens: drop empty folds")
    all_x, all_cross, total = x.sum(axis=0), cross.sum(axis=0), float(n.sum())
    top, bottom = np.empty(len(n)), np.empty(len(n))
    for k in range(len(n)):
        direction = _best(all_x - x[k], all_cross - cross[k])[1] * np.sqrt(total - n[k])
        top[k], bottom[k] = direction @ symmetric(cross[k]) @ direction, direction @ x[k] @ direction
    value = float(top.sum() / bottom.sum())
    influence = (top - value * bottom) / n / (bottom.sum() / total)
    return HeldOutShare(value=value, plug_in=_best(all_x, all_cross)[0], influence=np.asarray(influence))


def _best(x: Floats, cross: Floats) -> tuple[float, Floats]:
    """Largest eigenvalue and its direction u, u'xu = 1."""
    root = inverse_root(x)
    values, vectors = np.linalg.eigh(root.T @ symmetric(cross) @ root)
    return float(values[-1]), np.asarray(root @ vectors[:, -1])
