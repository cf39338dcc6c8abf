"""Pooled ratios against means of ratios: over coordinates, rotations and batches (proofs/13_definitions.md)."""

from __future__ import annotations

from functools import partial

import numpy as np

from darkmatter.claims.claim import AnyClaim, Claim, Margin, at_most, equals
from darkmatter.claims.definitions_cases import (
    EPS,
    TURN,
    Covariances,
    Pair,
    Tokens,
    Whole,
    covariance_pairs,
    pairs,
    rounding,
    tokens,
    whole_covariances,
)
from darkmatter.claims.strategies import Floats
from darkmatter.theory.definitions import DEFINITIONS
from darkmatter.theory.population import centred, residual
from darkmatter.theory.ratios import (
    batch_ratio_bias,
    equalising_rotation,
    mean_ratio,
    pooled_ratio,
    rotation_gap_limit,
    weighting_gap,
)

_PAGE = "13_definitions"


def _weighting(pair: Pair, *, sign: float = 1.0, sample: bool = False) -> Margin:
    moments = pair.moments
    pooled, mean = (DEFINITIONS[name].value(moments) for name in ("r2", "r2-coordinate-mean"))
    r, e = residual(pair.e, pair.x), centred(pair.e)  # not through the moments
    wholes = (e**2).sum(axis=0)
    gap = weighting_gap(wholes - (r**2).sum(axis=0), wholes)
    d = len(wholes)
    return equals(
        pooled - mean, sign * gap * (d / max(d - 1, 1) if sample else 1.0), scale=1.0, rounding=rounding(moments)
    )


def _in_basis(matrix: Floats, basis: Floats) -> Floats:
    return np.asarray((basis @ matrix * basis).sum(axis=1))


def _attained(case: Covariances, *, rotate: bool = True) -> Margin:
    part, whole, _ = case.matrices()
    basis = equalising_rotation(whole) if rotate else np.linalg.eigh(whole)[1].T
    found = mean_ratio(_in_basis(part, basis), _in_basis(whole, basis))
    # variances lie in [0.01, 1.01], so a ratio of them carries a hundred roundings of each plane rotation
    return equals(found, pooled_ratio(np.diag(part), np.diag(whole)), scale=1.0, rounding=1e4 * EPS)


def _limited(case: Covariances, *, power: int = 1) -> Margin:
    part, whole, basis = case.matrices()
    pooled = pooled_ratio(np.diag(part), np.diag(whole))
    gap = abs(pooled - mean_ratio(_in_basis(part, basis), _in_basis(whole, basis)))
    limit = rotation_gap_limit(part, whole)
    scale = max(limit, 1e-6)  # equal variances or equal shares: nothing but rounding on both sides
    return at_most(gap, limit**power, scale=scale, rounding=1e4 * EPS / scale)


def _extreme(case: Covariances, *, rising: bool = False) -> Margin:
    part, whole, basis = case.matrices(rising=rising)
    axes = np.linalg.eigh(whole)[1].T
    own = 1.0 - mean_ratio(_in_basis(part, axes), _in_basis(whole, axes))
    other = 1.0 - mean_ratio(_in_basis(part, basis), _in_basis(whole, basis))
    return at_most(other, own, scale=1.0, rounding=1e4 * EPS)


def _basis(case: Whole, *, white: bool = False) -> Margin:
    part, whole = case.part, case.whole
    if white:  # Cov e proportional to the identity
        values, vectors = np.linalg.eigh(whole)
        root = vectors / np.sqrt(values)
        part, whole = root.T @ part @ root, np.eye(2)
    turned = [np.diag(TURN @ a @ TURN.T) for a in (part, whole)]
    # entries below 2 · 2 · 9 + 1, variances at least 1
    return equals(
        mean_ratio(np.diag(part), np.diag(whole)), mean_ratio(turned[0], turned[1]), scale=1.0, rounding=1e3 * EPS
    )


def _batches(case: Tokens, *, sign: float = 1.0, per_token: bool = False) -> Margin:
    k, n, w = case.batch, case.n, case.w
    grid = np.stack(np.meshgrid(*[np.arange(len(n))] * k, indexing="ij")).reshape(k, -1)  # every batch there is
    top, bottom = n[grid].mean(axis=0), w[grid].mean(axis=0)
    ratio = pooled_ratio(n, w)
    bias = batch_ratio_bias(
        ratio=ratio,
        mean=float(w.mean()),
        variance=float(w.var()),
        covariance=float(((n - n.mean()) * (w - w.mean())).mean()),
        batch=1 if per_token else k,
    )
    left_out = np.abs(top - ratio * bottom) * (bottom / w.mean() - 1.0) ** 2
    gap = abs(float((top / bottom).mean()) - ratio - sign * bias)
    return at_most(gap, float(left_out.mean() / w.min()), scale=ratio + 1.0, rounding=1e3 * EPS)


WEIGHTING: tuple[AnyClaim, ...] = (
    Claim(
        theorem="definitions",
        name="coordinate-mean-gap",
        page=_PAGE,
        statement="pooled R2 - mean over coordinates of R2_j = Cov_j(Var e_j, R2_j) / mean_j Var e_j",
        assumptions="every coordinate of e varies",
        cases=pairs(),
        margin=_weighting,
        twins={
            "swapped sign": partial(_weighting, sign=-1.0),
            "covariance with divisor d - 1": partial(_weighting, sample=True),
        },
    ),
    Claim(
        theorem="definitions",
        name="some-basis-gives-the-pooled-r2",
        page=_PAGE,
        statement="some orthonormal basis gives all e_j one variance; there the mean over coordinates is pooled R2",
        assumptions="0 <= Cov r <= Cov e, Cov e not singular",
        cases=covariance_pairs,
        margin=_attained,
        twins={"the axes of Cov e as that basis": partial(_attained, rotate=False)},
    ),
    Claim(
        theorem="definitions",
        name="coordinate-mean-gap-is-limited",
        page=_PAGE,
        statement="|pooled - coordinate mean| <= half the range of eigenvalues of Cov(e)^-1 Cov r, times sd / mean",
        assumptions="any orthonormal basis; Cov e not singular; sd and mean are those of the eigenvalues of Cov e",
        cases=covariance_pairs,
        margin=_limited,
        twins={"a variance for a standard deviation": partial(_limited, power=2)},
    ),
    Claim(
        theorem="definitions",
        name="own-axes-are-extreme",
        page=_PAGE,
        statement="no rotation gives a larger mean over coordinates of R2_j than the common axes do",
        assumptions="Cov r and Cov e have common axes, along which R2_j falls as the variance rises",
        cases=covariance_pairs,
        margin=_extreme,
        twins={"R2_j rises with the variance": partial(_extreme, rising=True)},
    ),
    Claim(
        theorem="definitions",
        name="coordinate-mean-ignores-the-basis",
        page=_PAGE,
        statement="the mean over coordinates of R2_j is the same in every orthonormal basis",
        assumptions="every coordinate of e varies",
        cases=whole_covariances,
        margin=_basis,
        false=True,
        known=Whole(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 2.0]])),
        twins={"Cov e proportional to the identity added to the assumptions": partial(_basis, white=True)},
    ),
    Claim(
        theorem="definitions",
        name="batch-ratios-are-biased",
        page=_PAGE,
        statement="E[N/W] of a batch = rho + (rho Var w - Cov(n, w)) / (B E[w]^2), up to the stated remainder",
        assumptions="a batch is B independent tokens, w > 0; all batches enumerated",
        cases=tokens(),
        margin=_batches,
        twins={
            "swapped sign": partial(_batches, sign=-1.0),
            "not divided by B": partial(_batches, per_token=True),
        },
    ),
)
