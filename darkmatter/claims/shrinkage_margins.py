"""Cases and margins of the claims about gains and shrinkage (T6), and their wrong variants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.claim import Margin, at_most, equals, worst
from darkmatter.claims.strategies import Floats, Population, populations, seeds, small_matrices
from darkmatter.theory.population import covariance, predicted, residual, variance
from darkmatter.theory.shrinkage import best_gain, least_r2_error, uneven_shrinkage, uniform_shrinkage

_ROUNDING = 1e-11  # projections of at most 8 outcomes with entries below 10: some hundred roundings of 1e-14


Row = tuple[float, float, float, float]
_NONE: Row = (0, 0, 0, 0)


def _scale(population: Population) -> float:
    return variance(population.x) + variance(population.recon) + 1.0


def population(*, learned: Row, rest: Row = _NONE, linear: Row = _NONE, introduced: Row = _NONE) -> Population:
    """Four equally likely outcomes in one dimension, by their parts."""
    return Population(*(np.array(part, dtype=np.float64)[:, None] for part in (learned, rest, linear, introduced)))


@st.composite
def living(draw: st.DrawFn) -> Population:
    """Any population where x varies and Cov(x, Sae) ≥ Var x, for a multiple of x is added to N where it is less."""
    p = draw(populations(shrinkage=True))
    rest = p.rest.copy()
    if not variance(p.x) > 0.0:
        rest[0, 0] += 1.0
    x = p.learned + rest
    steps = np.ceil(max(0.0, 1.0 - covariance(x, p.recon) / variance(x)))
    return Population(p.learned, rest, p.linear, p.introduced + steps * x)


@st.composite
def assumed(draw: st.DrawFn) -> tuple[Population, float]:
    """A population under A1 and A2 with a learned part that varies, and its shrinkage."""
    p = draw(populations(uncorrelated=True))
    learned = p.learned.copy()
    if not variance(learned) > 0.0:
        learned[0, 0] += 1.0
    rest = residual(p.rest, learned)
    added = residual(p.introduced, np.hstack([learned, rest]))
    s = draw(st.floats(0.0, 0.9))
    return Population(learned, rest, -s * learned, added), s


def best(population: Population, *, by: str = "Sae") -> Margin:
    """The best gain, what it removes, and that no other gain leaves less."""
    x, recon = population.x, population.recon
    along, square = covariance(x, recon), variance(recon)
    if by == "x":  # regressed the other way round
        square = variance(x)
    if by == "uncentred":
        along, square = float((x * recon).sum() / len(x)), float((recon**2).sum() / len(x))
    found = best_gain(along, square)
    scale = _scale(population) * (1.0 + found.gain**2)
    removed = variance(x - recon) - variance(x - found.gain * recon)
    margins = [equals(removed, found.removed, scale=scale, rounding=_ROUNDING)]
    for g in (0.5, 1.0, 1.5):
        left = variance(x - found.gain * recon)
        margins.append(at_most(left, variance(x - g * recon), scale=scale, rounding=_ROUNDING))
    return worst(*margins)


def uniform(case: tuple[Population, float], *, power: int = 2, hidden: bool = True) -> Margin:
    """The gain and what it removes, from Var S1 and Var N alone."""
    p, s = case
    learned, introduced = variance(p.learned), variance(p.introduced)
    found = uniform_shrinkage(s, learned=learned, introduced=introduced if hidden else 0.0)
    if power == 1:
        found = best_gain((1.0 - s) * learned, (1.0 - s) * learned + introduced)
    true = best_gain(covariance(p.x, p.recon), variance(p.recon))
    # S1 varies by 7/64 at least and a tenth of it is kept, so that Var Sae is not below 1e-3
    got, want = (true.gain, true.removed), (found.gain, found.removed)
    return equals(got, want, scale=_scale(p) ** 2 * (1.0 + true.gain) ** 2, rounding=_ROUNDING * 1e3)


def shares(case: tuple[Population, float], *, nonlinear_stays: bool = False, power: int = 2) -> Margin:
    """What uniform shrinkage does to the error and to its nonlinear part."""
    p, s = case
    rest, learned, introduced = variance(p.rest), variance(p.learned), variance(p.introduced)
    hidden = variance(residual(p.learned, p.x))
    error = rest + s**power * learned + introduced
    nonlinear = (1.0 if nonlinear_stays else (1.0 - s) ** 2) * hidden + introduced
    return worst(
        equals(variance(p.error), error, scale=_scale(p), rounding=_ROUNDING),
        equals(variance(residual(p.error, p.x)), nonlinear, scale=_scale(p), rounding=_ROUNDING),
    )


def removable(population: Population, *, sign: float = 1.0) -> Margin:
    """What rescaling removes, against the linear and the nonlinear error."""
    x, recon = population.x, population.recon
    found = best_gain(covariance(x, recon), variance(recon))
    nonlinear = variance(residual(recon, x))
    linear = variance(x - recon) - nonlinear
    scale = _scale(population) * (1.0 + found.gain**2)
    limit = linear + sign * (1.0 - found.gain**2) * nonlinear
    return at_most(found.removed, limit, scale=scale, rounding=_ROUNDING)


def at_most_linear(population: Population, *, shrunken: bool = False) -> Margin:
    """What rescaling removes, against the linear error alone."""
    x, recon = population.x, population.recon
    if shrunken:  # rescaled, so that its gain is 1.25
        recon = 0.8 * best_gain(covariance(x, recon), variance(recon)).gain * recon
    found = best_gain(covariance(x, recon), variance(recon))
    scale = variance(x) + variance(recon) + 1.0
    return at_most(found.removed, variance(predicted(x - recon, x)), scale=scale, rounding=_ROUNDING)


def least(population: Population, *, power: float = 1.0) -> Margin:
    """The least R² of an SAE, as drawn and scaled to gain one."""
    x, recon = population.x, population.recon
    total = variance(x)
    recons = (recon, best_gain(covariance(x, recon), variance(recon)).gain * recon)
    margins = []
    for sae in recons:
        error, nonlinear = variance(x - sae), variance(residual(sae, x))
        scale = (total + variance(sae) + 1.0) ** 2
        # R² ≥ 1 − (Var Sae / Var x)^power, without the quotients that vanish
        limit = error * (variance(sae) / total) ** power * total
        margins.append(at_most(nonlinear * total, limit, scale=scale, rounding=_ROUNDING))
    return worst(*margins)


@dataclass(frozen=True, slots=True)
class _Mixed:
    """Sae = c x + N with N uncorrelated with x, in d dimensions."""

    keep: float
    d: int
    seed: int

    def arrays(self) -> tuple[Floats, Floats]:
        """x, of variance one, and N, of variance one, on 4 d + 4 outcomes."""
        rng = np.random.default_rng(self.seed)
        x, n = rng.standard_normal((2, 4 * self.d + 4, self.d))
        n = residual(n, x)
        return x / np.sqrt(variance(x)), n / np.sqrt(variance(n))


mixed = st.builds(_Mixed, keep=st.floats(0.01, 0.99), d=st.integers(1, 4), seed=seeds())


def attained(case: _Mixed, *, known: bool = True) -> Margin:
    """SAEs whose R² is the least possible one."""
    x, n = case.arrays()
    margins = []
    for noise in (case.keep * (1.0 - case.keep), 0.3):
        recon = case.keep * x + np.sqrt(noise) * n
        error = variance(x - recon)
        r2 = 1.0 - variance(residual(recon, x)) / error
        bound = least_r2_error(variance(recon), fvu=error if known else None)
        # the error is (1 − keep)² at least, so 1e-4 of the variance
        margins.append(equals(r2, bound, scale=1.0 / error, rounding=_ROUNDING))
    gain_one = case.keep * x + np.sqrt(case.keep * (1.0 - case.keep)) * n
    f = variance(x - gain_one)
    r2 = 1.0 - variance(residual(gain_one, x)) / f
    margins.append(equals((r2, r2), (f, least_r2_error(variance(gain_one))), scale=1.0 / f, rounding=_ROUNDING))
    return worst(*margins)


@dataclass(frozen=True, slots=True)
class _Uneven:
    """Features with uncorrelated amplitudes, each shrunken by itself."""

    m: int
    d: int
    noise: float
    seed: int

    def parts(self) -> tuple[Floats, Floats, Floats]:
        """Directions (m, d), variances (m,) and shrinkages (m,)."""
        rng = np.random.default_rng(self.seed)
        rows = rng.standard_normal((self.m, self.d))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows, rng.exponential(1.0, self.m) + 0.01, rng.uniform(0.0, 0.9, self.m)


uneven = st.builds(
    _Uneven, m=st.integers(1, 12), d=st.integers(1, 6), noise=st.sampled_from([0.0, 0.1, 2.0]), seed=seeds()
)


def remainder(case: _Uneven, *, weighted: bool = True, normalised: bool = True) -> Margin:
    """What one gain leaves where features shrink by themselves."""
    rows, v, s = case.parts()
    t = 1.0 - s
    # covariances of S1 and Sae as matrices: the directions are not orthogonal, and only traces count
    learned, both = (rows.T * v) @ rows, (rows.T * (v * t)) @ rows
    sae = (rows.T * (v * t**2)) @ rows + np.eye(case.d) * case.noise / case.d
    gain = np.trace(both) / np.trace(sae)
    left = float(np.trace(learned - 2.0 * gain * both + gain**2 * sae))
    want = uneven_shrinkage(v if weighted else np.full_like(v, v.mean()), s, introduced=case.noise)
    if not normalised and not case.noise:  # c² for c²/(1 + c²)
        mean = v @ t / v.sum()
        want = float(v @ (t - mean) ** 2) / mean**2
    return equals(left, want, scale=float(v.sum()), rounding=_ROUNDING)


def gain_is_shrinkage(case: tuple[Population, float], *, introduced: bool = True) -> Margin:
    """The gain read as the shrinkage."""
    p, s = case
    recon = p.recon if introduced else p.learned + p.linear
    found = best_gain(covariance(p.x, recon), variance(recon)).gain
    return equals(found, 1.0 / (1.0 - s), scale=1.0 / (1.0 - s), rounding=_ROUNDING * _scale(p) * 1e3)


def linear_missing(case: tuple[Population, float], *, shrunken: bool = True) -> Margin:
    """The R² of the error read as that of the missing part."""
    p, s = case
    kept = 1.0 - s if shrunken else 1.0  # nothing introduced
    error = p.x - kept * p.learned
    hidden, missing = variance(residual(p.rest, p.x)), variance(p.rest)
    # R² of e ≤ R² of the missing part: Var r / Var e ≥ Var q / Var U, multiplied out
    left, right = hidden * variance(error), variance(residual(error, p.x)) * missing
    return at_most(left, right, scale=_scale(p) ** 2, rounding=_ROUNDING)


def better(case: tuple[Population, Population], *, equal_linear: bool = False) -> Margin:
    """The order of two SAEs by R² and by FVU."""
    x = case[0].x
    errors = [x - case[0].recon, x - case[1].recon]
    if equal_linear:
        errors[1] = predicted(errors[0], x) + residual(errors[1], x)
    total = [variance(e) for e in errors]
    linear = [variance(predicted(e, x)) for e in errors]
    scale = (variance(x) + sum(total) + 1.0) ** 2
    # R² = linear / total, multiplied out: the order of R² and that of FVU are opposite
    r2 = (linear[0] * total[1] - linear[1] * total[0]) / scale
    fvu = (total[0] - total[1]) / scale
    worse = min(abs(r2), abs(fvu)) if r2 * fvu > 0.0 else 0.0
    return Margin(-worse, _ROUNDING)


@st.composite
def two_saes(draw: st.DrawFn) -> tuple[Population, Population]:
    """Two SAEs on one law of x."""
    p = draw(living())
    other = draw(small_matrices(*p.x.shape))
    return p, Population(p.learned, p.rest, np.zeros_like(p.x), other)


def show_two(case: tuple[Population, Population]) -> str:
    """Two SAEs on one population."""
    return f"{case[0]}; and {case[1]}"


def show(case: tuple[Population, float]) -> str:
    """A population and its shrinkage."""
    return f"{case[0]}, s = {case[1]:.3g}"
