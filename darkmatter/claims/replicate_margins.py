"""Margins of the claims about pairs of SAEs (T8), and their wrong variants."""

from __future__ import annotations

import numpy as np

from darkmatter.claims.claim import Margin, at_most, equals, worst
from darkmatter.claims.replicate_laws import (
    Family,
    Nested,
    Pair,
    Reading,
    Replicates,
)
from darkmatter.claims.strategies import Floats
from darkmatter.theory.population import covariance, cross, predicted, residual, variance
from darkmatter.theory.replicates import between_variance, corrected, instrument, lower_ends, most_interference

_ALIKE = 1e-8  # residuals whose difference has less than this share of the variance are equal
_ROUNDING = 1e-11  # projections of at most 13 outcomes with entries below 100: some hundred roundings of 1e-14


def identities(pair: Pair, *, factors: int | None = None, half: float = 0.5) -> Margin:
    """The two identities and the upper end; N may miss the factors from `factors` on."""
    known = Pair(pair.factors[:, :factors], pair.true[:factors], pair.a, pair.b)
    (_, q_a, n_a), (_, q_b, n_b) = known.parts(pair.a), known.parts(pair.b)
    r_a, r_b = (pair.parts(recon)[0] for recon in (pair.a, pair.b))
    unshared = 0.5 * variance(r_a - r_b)
    scale = pair.scale
    return worst(
        equals(unshared, half * variance(q_a - q_b) + half * variance(n_a - n_b), scale=scale, rounding=_ROUNDING),
        equals(covariance(r_a, r_b), covariance(q_a, q_b) + covariance(n_a, n_b), scale=scale, rounding=_ROUNDING),
        at_most(variance(n_a), variance(r_a), scale=scale, rounding=_ROUNDING),
    )


def condition(pair: Pair, *, half: float = 0.5) -> Margin:
    """By how much the unshared part exceeds the mean introduced error."""
    (r_a, q_a, n_a), (r_b, q_b, n_b) = pair.parts(pair.a), pair.parts(pair.b)
    excess = 0.5 * variance(r_a - r_b) - 0.5 * (variance(n_a) + variance(n_b))
    return equals(excess, half * variance(q_a - q_b) - covariance(n_a, n_b), scale=pair.scale, rounding=_ROUNDING)


def no_sign(pair: Pair, *, share: float = 0.5) -> Margin:
    """What equal interference alone gives."""
    (r_a, _, n_a), (r_b, _, n_b) = pair.parts(pair.a), pair.parts(pair.b)
    unshared, mean = 0.5 * variance(r_a - r_b), 0.5 * (variance(n_a) + variance(n_b))
    margins = [at_most(share * unshared, mean, scale=pair.scale, rounding=_ROUNDING)]
    if unshared > _ALIKE * pair.scale:
        own = covariance(r_a, r_a - r_b)
        alone = own**2 / (2.0 * unshared)
        gram = [[variance(r_a), covariance(r_a, r_b)], [covariance(r_a, r_b), variance(r_b)]]
        # a rounding error of `own` is multiplied by sqrt(Var N_a / unshared) at most
        rounding = _ROUNDING / np.sqrt(_ALIKE)
        margins.append(at_most(alone, variance(n_a), scale=pair.scale, rounding=rounding))
        margins.append(equals(alone, lower_ends(gram, signs=False)[0], scale=pair.scale, rounding=rounding))
    return worst(*margins)


def correction(case: Nested, *, sign: float = 1.0, probe: str = "x") -> Margin:
    """The corrected value of a nested pair, and the interference that it takes away."""
    z, e, _, _, n_a, n_b = case.parts
    difference, x = case.a - case.b, case.x
    against = x if probe == "x" else case.a  # correlated with the difference instead of the activation
    trace = covariance(against, difference)
    d = cross(against, difference)
    interference = np.trace(d) - np.trace(d.T @ np.linalg.pinv(cross(x, x), rcond=1e-10, hermitian=True) @ d)
    hidden = variance(residual(z + e, x) - residual(z, x))
    found = corrected(variance(difference), sign * trace) if sign > 0 else 0.5 * (variance(difference) + trace)
    return worst(
        equals(found, 0.5 * variance(n_a - n_b), scale=case.scale, rounding=_ROUNDING),
        # the inverse of Cov x is cut at 1e-10 of its largest entry: the product keeps six digits
        equals(interference, hidden, scale=case.scale, rounding=1e-5),
    )


def shrunken(case: Nested, *, use: str = "corrected") -> Margin:
    """The corrected value under shrinkage: exact, and below what is private."""
    difference = case.a - case.b
    bound = corrected(variance(difference), covariance(case.x, difference))
    if use == "unshared":
        bound = 0.5 * variance(residual(difference, case.x))
    s, t = case.shrinkages[0], case.shrinkages[1] - case.shrinkages[0]
    o = case.overlap
    gap = 0.5 * (s * (1.0 - s) * o.only_a + t * (1.0 - t) * o.common)
    exact = equals(bound, o.private - gap, scale=case.scale, rounding=_ROUNDING)
    limit = at_most(bound, o.private, scale=case.scale, rounding=_ROUNDING)
    return worst(exact, limit) if use == "corrected" else limit


def overlapping(case: Nested, *, nuclear_is: str = "upper") -> Margin:
    """The order of what is private, its sharper upper end and the corrected value."""
    difference, o = case.a - case.b, case.overlap
    nuclear = float(np.linalg.svd(cross(case.x, difference), compute_uv=False).sum())
    sharper = 0.5 * (variance(difference) - nuclear)
    found = corrected(variance(difference), covariance(case.x, difference))
    if nuclear_is == "lower":
        return at_most(sharper, o.private, scale=case.scale, rounding=_ROUNDING)
    return worst(
        at_most(o.private, sharper, scale=case.scale, rounding=_ROUNDING),
        at_most(sharper, found, scale=case.scale, rounding=_ROUNDING),
        equals(found, o.private + min(o.only_a, o.only_b), scale=case.scale, rounding=_ROUNDING),
    )


def _instrument_of(x: Floats, a: Floats, b: Floats) -> tuple[float, float, float]:
    """The instrument, Cov(x, a) / Cov(x, b), and the scale of its rounding."""
    cov_xa, cov_xb, cov_ab = covariance(x, a), covariance(x, b), covariance(a, b)
    scale = variance(x) + variance(a) + variance(b) + 1.0
    ratio = cov_xa / cov_xb
    value = instrument(variance(a), cov_xa=cov_xa, cov_xb=cov_xb, cov_ab=cov_ab)
    return value, ratio, scale * (1.0 + abs(ratio)) * (1.0 + abs(cov_ab) / cov_xb)


def general(pair: Pair, *, common: bool = True) -> Margin:
    """The instrument of any pair; `common` keeps the covariance of the introduced errors."""
    f_a, f_b = (predicted(recon, pair.factors) for recon in (pair.a, pair.b))
    n_a, n_b = (residual(recon, pair.factors) for recon in (pair.a, pair.b))
    found, ratio, scale = _instrument_of(pair.x, pair.a, pair.b)
    want = variance(n_a) + variance(f_a) - covariance(f_a, f_b) * ratio
    want -= covariance(n_a, n_b) * ratio if common else 0.0
    return equals(found, want, scale=scale, rounding=_ROUNDING)


def proportional(pair: Pair, *, use: str = "instrument") -> Margin:
    """The instrument where one affine part is a multiple of the other."""
    n_a, n_b = (residual(recon, pair.factors) for recon in (pair.a, pair.b))
    found, ratio, scale = _instrument_of(pair.x, pair.a, pair.b)
    if use == "half difference":  # forgets that the responses differ by a factor
        found = 0.5 * variance(pair.a - pair.b)
    want = variance(n_a) - covariance(n_a, n_b) * ratio
    return worst(
        equals(found, want, scale=scale, rounding=_ROUNDING),
        at_most(found, variance(n_a), scale=scale, rounding=_ROUNDING),
    )


def of_the_wider(case: Nested, *, excess: bool = True) -> Margin:
    """The instrument of the wider SAE of a nested pair, by means of a narrower one, evenly shrunken or not."""
    found, _, scale = _instrument_of(case.x, case.a, case.b)
    o = case.overlap
    want = o.introduced_a + (o.instrument_excess if excess else 0.0)
    other, ratio, other_scale = _instrument_of(case.x, case.a, case.uneven_b)
    return worst(
        equals(found, want, scale=scale, rounding=_ROUNDING),
        at_most(found, o.introduced_a, scale=scale, rounding=_ROUNDING),
        equals(other, o.introduced_a - o.introduced_ab * ratio, scale=other_scale, rounding=_ROUNDING),
    )


def unequal(case: Nested, *, by: str = "wider") -> Margin:
    """The instrument of one SAE of a nested pair as a lower bound, by means of the other."""
    first, second, own = (case.b, case.a, case.parts[5]) if by == "wider" else (case.a, case.b, case.parts[4])
    found, _, scale = _instrument_of(case.x, first, second)
    return at_most(found, variance(own), scale=scale, rounding=_ROUNDING)


def many(case: Replicates, *, shrink: bool = False) -> Margin:
    """The lower ends of J replicates."""
    introduced, residuals = case.introduced, case.residuals
    scale = float(np.trace(residuals)) + 1.0
    count = len(residuals)
    ends = np.diagonal(residuals) - residuals.mean() / count if shrink else lower_ends(residuals)
    gaps = np.diagonal(introduced) - ends
    bounds = at_most(0.0, float(gaps.min()), scale=scale, rounding=_ROUNDING * 100)
    if shrink:
        return bounds
    mean = at_most(between_variance(residuals), float(ends.mean()), scale=scale, rounding=_ROUNDING * 100)
    # a rounding error of the covariances is multiplied by the squared weights of the best combination, 1e6 at most
    exact = equals(gaps, most_interference(introduced), scale=scale, rounding=_ROUNDING * 100)
    return worst(bounds, mean, exact)


def between(case: Family, *, degrees: int = 1) -> Margin:
    """The between-replicate variance, in three ways."""
    gram = np.array([[covariance(u, v) for v in case.r] for u in case.r])
    count, centre = len(case.r), case.r.mean(axis=0)
    direct = sum(variance(r - centre) for r in case.r) / (count - degrees)
    halves = [0.5 * variance(case.r[i] - case.r[j]) for i in range(count) for j in range(i)]
    scale = float(np.trace(gram)) + 1.0
    return worst(
        equals(direct, between_variance(gram), scale=scale, rounding=_ROUNDING),
        equals(direct, float(np.mean(halves)), scale=scale, rounding=_ROUNDING),
    )


def reading(case: Reading, *, power: int = 1) -> Margin:
    """Introduced error by a list of factors that holds the residuals some of the time."""
    pair, share = case.pair, case.known / 4
    x, a, b = (np.tile(v, (4, 1)) for v in (pair.x, pair.a, pair.b))
    coin = np.repeat(np.arange(4) < case.known, len(pair.x))[:, None]  # independent of x, a and b
    r = np.hstack([residual(recon, x) for recon in (a, b)])
    factors = np.hstack([x, coin * r])
    found = [variance(residual(recon, factors)) for recon in (a, b)]
    want = [(1.0 - share) ** power * variance(residual(recon, x)) for recon in (a, b)]
    return equals(found, want, scale=pair.scale, rounding=_ROUNDING)


def determined(pair: Pair, *, affine: bool = False) -> Margin:
    """Introduced error by the shortest and by the longest list of factors."""
    x = pair.x
    recons = [predicted(recon, x) for recon in (pair.a, pair.b)] if affine else [pair.a, pair.b]
    r = np.hstack([residual(recon, x) for recon in recons])
    lists = (x, np.hstack([x, r]))
    first, second = ([variance(residual(recon, factors)) for recon in recons] for factors in lists)
    return equals(first, second, scale=pair.scale, rounding=_ROUNDING)


def unshared(pair: Pair, *, conditions: bool = False) -> Margin:
    """The unshared part as a lower bound, without conditions or with them."""
    a, b = pair.a, pair.b
    if conditions:  # b keeps the response of a, and of its own error what does not oppose that of a
        n_a, n_b = residual(a, pair.factors), residual(b, pair.factors)
        along = covariance(n_a, n_b)
        b = predicted(a, pair.factors) + n_b
        if along < 0.0:
            b = b - n_a * along / variance(n_a)
    (r_a, _, n_a), (r_b, _, n_b) = pair.parts(a), pair.parts(b)
    mean = 0.5 * (variance(n_a) + variance(n_b))
    return at_most(0.5 * variance(r_a - r_b), mean, scale=pair.scale + variance(b), rounding=_ROUNDING)
