"""Populations of the model of T2 and T4, Sae = S1 + L + N with L affine in x, and what their margins share."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.strategies import Floats, Population, small_matrices
from darkmatter.theory.population import centred, covariance, predicted, residual, variance
from darkmatter.theory.upper_bound import UpperBoundTerms, upper_bound_terms


@st.composite
def affine_models(
    draw: st.DrawFn,
    *,
    linear: bool = True,
    introduced: Literal["free", "x", "x and S1"] = "free",
    aligned: bool = False,
    uncorrelated: bool = False,
    readable: bool = False,
) -> Population:
    """Finite laws of x = S1 + U and Sae(x) = S1 + L + N with L affine in x, the model of T2 and T4.

    Args:
        draw: Supplied by hypothesis.
        linear: L = x A with a matrix of whole numbers; else L = 0.
        introduced: What N is uncorrelated with.
        aligned: Cov(S1, U) is not negative, as a trace.
        uncorrelated: U is uncorrelated with S1.
        readable: Shrink every entry by itself, for counterexamples that are shown.

    Returns:
        The population.
    """
    d = draw(st.integers(1, 3))
    n = draw(st.integers(2, 8))
    block = draw(small_matrices(3 * n + (d if linear else 0), d, readable=readable))
    learned, rest, added = block[: 3 * n].reshape(3, n, d)
    if uncorrelated:
        rest = residual(rest, learned)
    elif aligned and covariance(learned, rest) < 0.0:
        rest = -rest
    x = learned + rest
    if introduced != "free":
        added = residual(added, x if introduced == "x" else np.hstack([x, learned]))
    rest, added = (np.where(np.abs(part) < 1e-14, 0.0, part) for part in (rest, added))  # rounding is no outcome
    return Population(learned, rest, x @ block[3 * n :] if linear else np.zeros_like(x), added)


@st.composite
def optimal_models(draw: st.DrawFn, *, aligned: bool = False) -> Population:
    """Finite laws with Sae(x) = E[S1 | x], the SAE of least error: outcomes share values of x, x varies, L = 0.

    Args:
        draw: Supplied by hypothesis.
        aligned: Cov(S1, U) is not negative, as a trace, and often 0: x is as long as that takes.

    Returns:
        The population.
    """
    d = draw(st.integers(1, 2))
    n = draw(st.integers(2, 8))
    values, learned, labels = np.split(draw(small_matrices(4 + 2 * n, d)), [4, 4 + n])
    which = labels[:, 0].astype(np.int64) % 4
    # two values of x at least
    which[:2] = 0, 1
    values[1, 0] += float((values[0] == values[1]).all())
    x = values[which]
    if aligned:
        overlap = covariance(x, learned)
        if overlap == 0.0:
            learned = np.zeros_like(x)
        else:
            # Cov(S1, U) = Cov(S1, x) - Var S1, which is 0 at the first factor
            x = x * variance(learned) / overlap * draw(st.sampled_from([1.0, 1.0, 1.5]))
    inverse = np.unique(x, axis=0, return_inverse=True)[1].ravel()
    same = (inverse[:, None] == inverse[None, :]).astype(np.float64)
    recon = same @ learned / same.sum(axis=1, keepdims=True)
    return Population(learned, x - learned, np.zeros_like(x), recon - learned)


def projection_rounding(x: Floats) -> float:
    """Relative rounding of (I − P) a: that of the singular vectors of x, ε times their condition."""
    values = np.linalg.svd(centred(x), compute_uv=False)
    kept = values[values > 1e-10 * max(float(values.max(initial=0.0)), np.finfo(np.float64).tiny)]
    condition = float(kept[0] / kept[-1]) if len(kept) else 1.0
    return 100.0 * float(np.finfo(np.float64).eps) * condition  # some ten roundings per entry, squares doubled


def size(model: Population) -> float:
    """What rounding of variances is proportional to."""
    parts = (model.x, model.learned, model.recon, model.introduced)
    return 1.0 + sum(float((part**2).mean(axis=0).sum()) for part in parts)


def terms(model: Population) -> UpperBoundTerms:
    """The terms of T2."""
    return upper_bound_terms(model.x, model.learned, model.introduced)


def measured(model: Population) -> float:
    """R as it is measured, from e and x alone."""
    return variance(residual(model.error, model.x))


def readable_part(model: Population) -> Population:
    """S1 replaced by its best affine prediction from x, U by the rest of the same x; Sae = S1 + L + N follows."""
    learned = predicted(model.learned, model.x)
    return replace(model, learned=learned, rest=model.x - learned)


def residual_frame(d: int, seed: int) -> tuple[Floats, Floats, Floats]:
    """X, and two directions of unit variance that are uncorrelated with it and orthogonal to each other; 8 outcomes."""
    # x takes d + 1 of the 8 dimensions per coordinate, d at most 3
    x, first, second = np.random.default_rng(seed).standard_normal((3, 8, d))
    first = residual(first, x)
    first /= math.sqrt(variance(first))
    second = residual(second, x)
    second -= covariance(second, first) * first
    return x, first, second / math.sqrt(variance(second))
