"""Definitions of R² and FVU: exact differences between them, and what each depends on (proofs/13_definitions.md)."""

from __future__ import annotations

from functools import partial

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.claim import AnyClaim, Claim, Margin, at_most, equals, worst
from darkmatter.claims.definitions_cases import EPS, Pair, pairs, rounding
from darkmatter.claims.definitions_weights import WEIGHTING
from darkmatter.claims.strategies import seeds
from darkmatter.theory.definitions import DEFINITIONS, token_fvu
from darkmatter.theory.population import centred, variance

_PAGE = "13_definitions"


def _pooled(case: tuple[Pair, int], *, name: str = "r2", shear: bool = False) -> Margin:
    pair, seed = case
    rng = np.random.default_rng(seed)
    d = pair.x.shape[1]
    # whole-number shears, so that any invertible map is tried and none is badly conditioned
    maps = [np.tril(rng.integers(-2, 3, (d, d)), -1) + np.eye(d) for _ in range(2)]
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0] if not shear else maps[1]
    scale, shift = rng.uniform(0.1, 10.0), rng.integers(-3, 4, (2, d))
    moved = Pair(pair.x @ maps[0] @ maps[1].T + shift[0], scale * pair.e @ rotation + shift[1])
    turned = Pair(scale * pair.x @ rotation + shift[0], scale * pair.e @ rotation + shift[1])
    own, other = pair.moments, moved.moments
    r2, fvu = DEFINITIONS[name].value, variance(turned.e) / variance(turned.x)
    return worst(
        equals(r2(other), r2(own), scale=1.0, rounding=2 * rounding(own, other)),
        equals(fvu / DEFINITIONS["fvu"].value(own), 1.0, scale=1.0, rounding=1e4 * EPS),
    )


def _origin(pair: Pair, *, absorbed: bool = True, of: str = "intercept") -> Margin:
    left, values, _ = np.linalg.svd(pair.x, full_matrices=False)
    basis = left[:, values > 1e-10 * values[0]]
    r = pair.e - basis @ (basis.T @ pair.e)
    moments = pair.moments
    constant = moments.intercept if of == "intercept" else moments.mean_e
    share = 1.0 / (1.0 + moments.mean_as_intercept) if absorbed else 1.0
    formula = np.diag(moments.residual_covariance) + share * constant**2
    return equals((r**2).mean(axis=0), formula, scale=float((pair.e**2).mean()) + 1.0, rounding=rounding(moments))


def _mean_zero(pair: Pair, *, centre_error: bool = False) -> Margin:
    if centre_error:
        pair = Pair(pair.x, centred(pair.e))
    moments = pair.moments
    found, r2 = (DEFINITIONS[name].value(moments) for name in ("r2-no-intercept", "r2"))
    return equals(found, r2, scale=1.0, rounding=rounding(moments))


def _mediant(pair: Pair, *, always_smaller: bool = False) -> Margin:
    found = float((pair.e**2).sum() / (pair.x**2).sum())
    fvu = variance(pair.e) / variance(pair.x)
    mean_x, mean_e = (float((a.mean(axis=0) ** 2).sum()) for a in (pair.x, pair.e))
    of_means = mean_e / mean_x if mean_x else np.inf if mean_e else fvu
    formula = (fvu + mean_e / variance(pair.x)) / (1.0 + mean_x / variance(pair.x))
    scale = found + fvu
    return worst(
        equals(found, formula, scale=scale, rounding=1e3 * EPS),
        at_most(min(fvu, of_means), found, scale=scale, rounding=1e3 * EPS),
        at_most(found, fvu if always_smaller else max(fvu, of_means), scale=scale, rounding=1e3 * EPS),
    )


def _means(pair: Pair, *, centre: bool = False) -> Margin:
    x, e = (centred(pair.x), centred(pair.e)) if centre else (pair.x, pair.e)
    found = float((e**2).sum() / (x**2).sum())
    fvu = variance(pair.e) / variance(pair.x)
    return equals(found, fvu, scale=found + fvu, rounding=1e3 * EPS)


def _cosine(pair: Pair, *, unit: bool = False) -> Margin:
    x = pair.x.copy()
    x[:, 0] += (x == 0.0).all(axis=1)  # no token is zero
    recon = pair.e  # any reconstruction
    left = float((((x - recon) ** 2).sum(axis=1) / (x**2).sum(axis=1)).mean())
    parts = token_fvu(x, recon)
    gain = parts.gain
    if unit:  # the length compared with 1 instead of the cosine
        gain = float(((np.linalg.norm(recon, axis=1) / np.linalg.norm(x, axis=1) - 1.0) ** 2).mean())
    return equals(left, parts.angle + gain, scale=1.0 + left, rounding=1e3 * EPS)


CLAIMS: tuple[AnyClaim, ...] = (
    *WEIGHTING,
    Claim(
        theorem="definitions",
        name="pooled-r2-ignores-the-basis",
        page=_PAGE,
        statement="R2 is unchanged by any invertible affine map of x and by rotation, scale and shift of e; so is FVU",
        assumptions="none; for FVU one rotation and scale for x and e",
        cases=st.tuples(pairs(), seeds()),
        margin=_pooled,
        twins={
            "mean over coordinates": partial(_pooled, name="r2-coordinate-mean"),
            "an oblique map of e": partial(_pooled, shear=True),
        },
    ),
    Claim(
        theorem="definitions",
        name="fit-through-the-origin",
        page=_PAGE,
        statement="without intercept E r0_j^2 = Var r_j + b_j^2 / (1 + tau), tau = E x Cov(x)^+ (E x)'",
        assumptions="none; tau is infinite where E x leaves the range of Cov x",
        cases=pairs(),
        margin=_origin,
        twins={
            "the mean of x replaces no part of the intercept": partial(_origin, absorbed=False),
            "the mean of e for the intercept": partial(_origin, of="mean"),
        },
    ),
    Claim(
        theorem="definitions",
        name="centred-x-needs-no-intercept",
        page=_PAGE,
        statement="if x has mean zero, the R2 of a fit through the origin is that of a fit with an intercept",
        assumptions="E x = 0",
        cases=pairs(mirrored=True),
        margin=_mean_zero,
        false=True,
        known=Pair(np.array([[1.0], [-1.0]]), np.array([[1.0], [0.0]])),
        twins={"E e = 0 added to the assumptions": partial(_mean_zero, centre_error=True)},
    ),
    Claim(
        theorem="definitions",
        name="uncentred-fvu-is-a-mediant",
        page=_PAGE,
        statement="E|e|^2 / E|x|^2 lies between FVU and |E e|^2 / |E x|^2, weighted Var x : |E x|^2",
        assumptions="x varies",
        cases=pairs(),
        margin=_mediant,
        twins={"never above FVU": partial(_mediant, always_smaller=True)},
    ),
    Claim(
        theorem="definitions",
        name="a-mean-does-not-matter",
        page=_PAGE,
        statement="FVU is the same whether or not the means are subtracted first",
        assumptions="x varies",
        cases=pairs(),
        margin=_means,
        false=True,
        known=Pair(np.array([[3.0], [1.0]]), np.array([[1.0], [-1.0]])),
        twins={"both means zero added to the assumptions": partial(_means, centre=True)},
    ),
    Claim(
        theorem="definitions",
        name="cosine-drops-the-gain",
        page=_PAGE,
        statement="mean of |e|^2 / |x|^2 = mean of sin^2 + mean of (|Sae|/|x| - cos)^2, token by token",
        assumptions="no token is zero",
        cases=pairs(),
        margin=_cosine,
        twins={"length compared with 1": partial(_cosine, unit=True)},
    ),
)
