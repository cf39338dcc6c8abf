"""T1: the nonlinear error is the part of the SAE's map that is not affine (proofs/04_residual_identity.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from hypothesis import strategies as st

from darkmatter.adapters.arrays import from_arrays
from darkmatter.claims.claim import AnyClaim, Claim, Margin, at_most, equals, worst
from darkmatter.claims.strategies import Floats, Population, populations, seeds
from darkmatter.decomposition import decompose
from darkmatter.theory.population import covariance, cross, predicted, residual, variance

_PAGE = "04_residual_identity"
_ROUNDING = 1e-12  # projections of at most 8 outcomes: a few hundred roundings of 1e-16


def _size(population: Population) -> float:
    return float(np.abs(population.x).max() + np.abs(population.recon).max() + 1.0)


def _identity(population: Population, *, sign: float = -1.0, intercept: bool = True) -> Margin:
    x, e, recon = population.x, population.error, population.recon
    if intercept:
        left, right = residual(e, x), residual(recon, x)
    else:  # a fit through the origin
        left, right = residual(e, x), recon - x @ np.linalg.pinv(x) @ recon
    return equals(left, sign * right, scale=_size(population), rounding=_ROUNDING)


def _affine(population: Population, *, of: str = "x") -> Margin:
    source = population.x if of == "x" else population.learned
    recon = source @ population.introduced[:1].T @ population.rest[:1] + 1.0
    scale = float(np.abs(recon).max() + 1.0) * _size(population)
    return equals(residual(population.x - recon, population.x), 0.0, scale=scale, rounding=_ROUNDING)


def _code(population: Population) -> Population:
    """Nothing introduced."""
    return replace(population, introduced=np.zeros_like(population.introduced))


def _perfect(population: Population, *, learned_is_affine: bool = False) -> Margin:
    if variance(population.x) == 0.0:  # a cheap counterexample; a filter would make the search slow
        return Margin(1.0)
    # S1 as it is, or as its best affine prediction from x
    recon = predicted(population.learned, population.x) if learned_is_affine else population.learned
    nonlinear = variance(residual(population.x - recon, population.x))
    return at_most(nonlinear, 0.0, scale=variance(population.learned) + 1.0, rounding=_ROUNDING)


@dataclass(frozen=True, slots=True)
class _Stream:
    """Activations with mean 3, a thresholded reconstruction, and a map to add to it."""

    d: int
    gain: float
    seed: int

    def arrays(self) -> tuple[Floats, Floats, Floats]:
        """x, Sae(x) and an affine function of x."""
        rng = np.random.default_rng(self.seed)
        x = rng.standard_normal((40 * self.d, self.d)) @ rng.standard_normal((self.d, self.d)) + 3.0
        recon = np.maximum(x - 3.0, 0.0)
        return x, recon, self.gain * (x @ rng.standard_normal((self.d, self.d))) + rng.standard_normal(self.d)


_streams = st.builds(_Stream, d=st.integers(1, 4), gain=st.floats(-2.0, 2.0), seed=seeds())


def _measured(stream: _Stream, *, added: str = "affine") -> Margin:
    x, recon, more = stream.arrays()
    if added == "square":
        more = more**2
    docs = np.arange(len(x))
    first, second = (
        decompose(from_arrays(x, {"sae": r}, docs), folds=4).fvu_nonlinear.value for r in (recon, recon + more)
    )
    # relative error of the scatter in its narrowest direction: the mean counts, for x is read with it
    condition = float((x**2).sum(axis=1).mean() / np.linalg.eigvalsh(cross(x, x))[0])
    scale = (variance(recon) + variance(more)) / variance(x)
    return equals(first, second, scale=scale, rounding=100 * np.finfo(np.float64).eps * condition)


def _orthogonal(population: Population, *, sign: float = -1.0) -> Margin:
    r, scale = residual(population.error, population.x), _size(population) ** 2
    return worst(
        equals(cross(r, population.x), 0.0, scale=scale, rounding=_ROUNDING),
        equals(covariance(r, population.recon), sign * variance(r), scale=scale, rounding=_ROUNDING),
    )


CLAIMS: tuple[AnyClaim, ...] = (
    Claim(
        theorem="T1",
        name="residual-identity",
        page=_PAGE,
        statement="r = (I - P) e = -(I - P) Sae(x)",
        assumptions="none",
        cases=populations(shrinkage=True),
        margin=_identity,
        show=str,
        twins={
            "swapped sign": partial(_identity, sign=1.0),
            "regression without an intercept": partial(_identity, intercept=False),
        },
    ),
    Claim(
        theorem="T1",
        name="residual-of-sae",
        page=_PAGE,
        statement="Cov(r, x) = 0 and Cov(r, Sae) = -Var r",
        assumptions="none",
        cases=populations(shrinkage=True),
        margin=_orthogonal,
        twins={"swapped sign": partial(_orthogonal, sign=1.0)},
    ),
    Claim(
        theorem="T1",
        name="affine-sae-has-none",
        page=_PAGE,
        statement="an SAE that is affine on the tokens has Var r = 0, whatever its error",
        assumptions="Sae(x) = x A + b on every outcome",
        cases=populations(),
        margin=_affine,
        twins={"affine in the learned part instead of x": partial(_affine, of="learned")},
    ),
    Claim(
        theorem="T1",
        name="measured-share-ignores-affine-maps",
        page=_PAGE,
        statement="decompose gives the same fvu_nonlinear for Sae(x) and for Sae(x) + x A + b",
        assumptions="none; the product's estimate, with its folds, not the population's value",
        cases=_streams,
        margin=_measured,
        every=5,
        twins={"a quadratic map": partial(_measured, added="square")},
    ),
    Claim(
        theorem="T1",
        name="a-perfect-code-has-no-nonlinear-error",
        page=_PAGE,
        statement="an SAE that outputs its learned features exactly has no nonlinear error",
        assumptions="Sae(x) = S1, nothing introduced; x varies",
        cases=populations(readable=True).map(_code),
        margin=_perfect,
        false=True,
        known=Population(
            learned=np.array([[0.0], [0.0], [1.0], [1.0]]),
            rest=np.array([[0.0], [1.0], [0.0], [1.0]]),
            linear=np.zeros((4, 1)),
            introduced=np.zeros((4, 1)),
        ),
        twins={"S1 affine in x added to the assumptions": partial(_perfect, learned_is_affine=True)},
    ),
)
