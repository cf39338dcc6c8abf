"""A: three false statements about the norm test, with the counterexamples that the search finds."""

from __future__ import annotations

from functools import partial

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.claim import AnyClaim, Claim, Margin, at_most, equals
from darkmatter.claims.norm_cases import Features, Law, features, unread_share
from darkmatter.claims.strategies import Floats, small_matrices
from darkmatter.theory.norm_probe import gaussian_norm_r2, norm_probe
from darkmatter.theory.population import centred

_PAGE = "12_norm_probe"


def _linear(case: Features, *, superposed: bool = True) -> Margin:
    if not superposed:
        case = Features(np.eye(len(case.directions)), Law("uniform", 1.0), case.p)
    (probe,) = norm_probe(case.factors, case.factors.itself)
    return at_most(0.9, probe.r2, scale=1.0)


def _shown(case: Features) -> str:
    (probe,) = norm_probe(case.factors, case.factors.itself)
    return f"{case}: R² = {probe.r2:.3f}"


def _dense_only(block: Floats, *, about_the_mean: bool = False) -> Margin:
    return at_most(gaussian_norm_r2(0.0 * block[0] if about_the_mean else block[0], _spd(block)), 0.9, scale=1.0)


def _spd(block: Floats) -> Floats:
    return np.asarray(block[1:].T @ block[1:] + np.eye(block.shape[1]))


def _show_dense(block: Floats) -> str:
    return f"N(μ, S), no features: μ = {block[0].tolist()}, S = {_spd(block).tolist()}"


def _origin(block: Floats, *, about_the_mean: bool = False) -> Margin:
    x, moved = block[1:], block[1:] + block[0]
    if about_the_mean:
        x, moved = centred(x), centred(moved)
    return equals(unread_share(x), unread_share(moved), scale=1.0, rounding=1e-9)


def _show_origin(block: Floats) -> str:
    x = block[1:]
    shares = [1.0 - unread_share(a) for a in (x, x + block[0])]
    return f"x = {x.tolist()}, moved by {block[0].tolist()}: R² = {shares[0]:.3f} and {shares[1]:.3f}"


FALSE_CLAIMS: tuple[AnyClaim, ...] = (
    Claim(
        theorem="A",
        name="the-norm-is-linear-in-sparse-features",
        page=_PAGE,
        statement="a linear probe of x explains over 0.9 of |x|^2 where x is a sum of sparse features",
        assumptions="m > d independent features that fire with probability at most 0.1",
        cases=features(superposed=True, most_rate=0.1),
        margin=_linear,
        false=True,
        known=Features(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), Law("exponential", 1.0), 0.05),
        show=_shown,
        twins={"no superposition and uniform amplitudes added": partial(_linear, superposed=False)},
    ),
    Claim(
        theorem="A",
        name="a-high-norm-r2-means-sparse-features",
        page=_PAGE,
        statement="where |x|^2 is not read off a sum of sparse features, R^2 is at most 0.9",
        assumptions="x ~ N(m, S), dense: there are no features",
        cases=st.integers(1, 3).flatmap(lambda d: small_matrices(1 + d, d, readable=True)),
        margin=_dense_only,
        false=True,
        known=np.array([[3.0], [0.0]]),
        show=_show_dense,
        twins={"the norm is taken about the mean": partial(_dense_only, about_the_mean=True)},
    ),
    Claim(
        theorem="A",
        name="the-norm-test-has-no-origin",
        page=_PAGE,
        statement="R^2 of |x|^2 on x does not change when all activations are moved by one vector",
        assumptions="none",
        cases=st.tuples(st.integers(2, 6), st.integers(1, 2)).flatmap(
            lambda size: small_matrices(1 + size[0], size[1], readable=True)
        ),
        margin=_origin,
        false=True,
        known=np.array([[1.0], [-1.0], [0.0], [1.0]]),
        show=_show_origin,
        twins={"the norm is taken about the mean": partial(_origin, about_the_mean=True)},
    ),
)
