"""T7: what the original paper's synthetic test attributes to what (proofs/10_synthetic_test.md)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.claim import AnyClaim, Claim, Margin, at_most, equals, worst
from darkmatter.claims.strategies import Floats, seeds
from darkmatter.theory.population import predicted, residual, variance
from darkmatter.theory.synthetic_test import SyntheticTest, synthetic_test

_PAGE = "10_synthetic_test"
_ROUNDING = 1e-11  # sums of at most 8 terms of one sign, and projections of at most 40 outcomes with condition ≤ 1e4


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigenvalues of Cov S, scale · j^−decay with the last ones 0, and the two noises.

    Attributes:
        d: Dimensions.
        rank: Eigenvalues above 0.
        scale: The largest eigenvalue.
        decay: 0 for a flat spectrum.
        a: Standard deviation of the activation noise per coordinate.
        r: Standard deviation of the introduced error per coordinate.
    """

    d: int
    rank: int
    scale: float
    decay: float
    a: float
    r: float

    @property
    def values(self) -> Floats:
        """s_j, (d,)."""
        j = np.arange(self.d)
        return np.asarray(self.scale * (1.0 + j) ** -self.decay * (j < self.rank))

    @property
    def test(self) -> SyntheticTest:
        """What the test reports."""
        return synthetic_test(self.values, a=self.a, r=self.r)


@st.composite
def spectra(draw: st.DrawFn, *, least_dims: int = 1) -> Spectrum:
    """Flat and steep spectra, full and of low rank, with signal below and above the noise."""
    d = draw(st.integers(least_dims, 8))
    return Spectrum(
        d=d,
        rank=draw(st.integers(1, d)),
        scale=10.0 ** draw(st.floats(-2.0, 2.0)),
        decay=draw(st.floats(0.0, 3.0)),
        a=draw(st.floats(0.2, 5.0)),
        r=draw(st.floats(0.0, 5.0)),
    )


@dataclass(frozen=True, slots=True)
class _Sample:
    """A finite law of S, g and g': uncorrelated, with Cov g = Cov g' = I, but neither Gaussian nor independent."""

    spectrum: Spectrum
    power: int
    seed: int

    def outcomes(self, *, overlap: float = 0.0) -> tuple[Floats, Floats]:
        """Activations x' and errors e; `overlap` adds that much of S to g."""
        rng = np.random.default_rng(self.seed)
        d = self.spectrum.d
        raw = rng.standard_normal((4 * d + 4, 3 * d)) ** self.power
        white = np.linalg.qr(raw - raw.mean(axis=0))[0] * np.sqrt(len(raw))
        axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
        s = (white[:, :d] * np.sqrt(self.spectrum.values)) @ axes
        g = (white[:, d : 2 * d] + overlap * white[:, :d]) / np.hypot(1.0, overlap) @ axes
        noise = self.spectrum.a * g
        return s + noise, noise - self.spectrum.r * white[:, 2 * d :]


def _shares(case: _Sample, *, wrong: str = "") -> Margin:
    x, e = case.outcomes(overlap=0.3 if wrong == "correlated" else 0.0)
    test, total = case.spectrum.test, variance(x)
    linear, nonlinear = test.linear, test.nonlinear
    if wrong == "attribution":  # the test's own reading
        linear, nonlinear = test.noise, test.introduced
    if wrong == "deviations":  # √s_j in the place of s_j
        other = synthetic_test(np.sqrt(case.spectrum.values), a=case.spectrum.a, r=case.spectrum.r)
        linear, nonlinear = other.recovered * test.noise, test.fvu - other.recovered * test.noise
    found = variance(predicted(e, x)) / total, variance(residual(e, x)) / total, variance(e) / total
    return equals(found, (linear, nonlinear, test.fvu), scale=1.0 + test.fvu, rounding=_ROUNDING)


def _monotone(case: Spectrum, *, share: str = "recovered") -> Margin:
    grown = synthetic_test(case.values, a=1.5 * case.a, r=case.r)
    louder = synthetic_test(case.values + case.scale * (np.arange(case.d) == 0), a=case.a, r=case.r)
    other = synthetic_test(case.values, a=case.a, r=case.r + 1.0)
    if share == "missed":  # the noise that is called nonlinear, as a share of Var x'
        return at_most(case.test.noise - case.test.linear, grown.noise - grown.linear, scale=1.0, rounding=_ROUNDING)
    here = case.test.recovered
    return worst(
        at_most(here, grown.recovered, scale=1.0, rounding=_ROUNDING),
        at_most(case.test.linear, grown.linear, scale=1.0, rounding=_ROUNDING),
        at_most(louder.recovered, here, scale=1.0, rounding=_ROUNDING),
        equals(other.recovered, here, scale=1.0, rounding=_ROUNDING),
    )


def _trace(case: Spectrum, *, swapped: bool = False) -> Margin:
    test, d = case.test, case.d
    noise = test.noise
    low, high = noise, 1.0 - (1.0 - noise) / (d * (1.0 - noise) + noise)
    flat = synthetic_test(np.full(d, case.values.mean()), a=case.a, r=case.r).recovered
    one = synthetic_test(case.values.sum() * (np.arange(d) == 0), a=case.a, r=case.r).recovered
    ends = equals((flat, one), (low, high), scale=1.0, rounding=_ROUNDING)
    if swapped:  # a flat spectrum taken for the best one
        low, high = 0.0, flat
    return worst(
        at_most(low, test.recovered, scale=1.0, rounding=_ROUNDING),
        at_most(test.recovered, high, scale=1.0, rounding=_ROUNDING),
        ends,
    )


def _spread(case: Spectrum, *, towards: float = 1.0) -> Margin:
    values = case.values
    move = 0.5 * values[-1] * towards
    values[0], values[-1] = values[0] + move, values[-1] - move
    after = synthetic_test(values, a=case.a, r=case.r).recovered
    return at_most(case.test.recovered, after, scale=1.0, rounding=_ROUNDING)


def _quarter(case: Spectrum, *, most: float = 0.25) -> Margin:
    test = case.test
    missed = test.nonlinear - test.introduced
    size = 1.0 + test.introduced
    peak = synthetic_test(np.full(case.d, case.a**2), a=case.a, r=0.0)
    return worst(
        at_most(missed, test.noise * (1.0 - test.noise), scale=size, rounding=_ROUNDING),
        at_most(missed, most, scale=size, rounding=_ROUNDING),
        at_most(peak.nonlinear, most, scale=1.0, rounding=_ROUNDING),
    )


@dataclass(frozen=True, slots=True)
class Grid:
    """A flat spectrum of variance s per coordinate, and the noise levels of the test's grid."""

    s: float
    first: float
    step: float
    levels: int

    @property
    def a(self) -> Floats:
        """Standard deviations of the activation noise."""
        return np.asarray(self.first + self.step * np.arange(self.levels))

    @property
    def tests(self) -> list[SyntheticTest]:
        """What the test reports at every pair of noise levels."""
        levels = self.a.tolist()
        return [synthetic_test([self.s], a=a, r=r) for a in levels for r in levels]

    @property
    def correlation(self) -> float:
        """Correlation of the share called linear with the true share of the noise, over the grid."""
        tests = self.tests
        return float(np.corrcoef([test.noise for test in tests], [test.linear for test in tests])[0, 1])

    @property
    def recovered(self) -> float:
        """The largest share of the noise that is called linear, over the grid."""
        return max(test.recovered for test in self.tests)

    def __str__(self) -> str:
        levels = ", ".join(f"{a:g}" for a in self.a)
        return (
            f"Cov S = {self.s:g} I, a and r in {levels}: correlation {self.correlation:.4f}, "
            f"yet at most {self.recovered:.4f} of the noise is called linear"
        )


def _validates(case: Grid, *, loud: bool = False) -> Margin:
    if loud:  # noise as strong as the signal
        case = Grid(min(case.s, case.first**2), case.first, case.step, case.levels)
    return at_most(min(case.correlation - 0.99, 0.05 - case.recovered), 0.0, scale=1.0, rounding=1e-6)


CLAIMS: tuple[AnyClaim, ...] = (
    Claim(
        theorem="T7",
        name="wiener-shares",
        page=_PAGE,
        statement="linear = sum a^4/(s_j + a^2), nonlinear = sum s_j a^2/(s_j + a^2) + d r^2, in shares of Var x'",
        assumptions="S, g, g' uncorrelated, Cov g = Cov g' = I; neither independent nor Gaussian",
        cases=st.builds(_Sample, spectrum=spectra(), power=st.sampled_from([1, 3]), seed=seeds()),
        margin=_shares,
        twins={
            "all noise linear, all introduced error nonlinear": partial(_shares, wrong="attribution"),
            "standard deviations for variances": partial(_shares, wrong="deviations"),
            "noise correlated with S": partial(_shares, wrong="correlated"),
        },
    ),
    Claim(
        theorem="T7",
        name="recovered-share-is-monotone",
        page=_PAGE,
        statement="the share of the noise that is called linear rises with a, falls with every s_j, ignores r",
        assumptions="those of the test",
        cases=spectra(),
        margin=_monotone,
        twins={"the share called nonlinear rises with a as well": partial(_monotone, share="missed")},
    ),
    Claim(
        theorem="T7",
        name="recovered-share-from-the-trace",
        page=_PAGE,
        statement="with v = noise share of Var x': v <= recovered <= 1 - (1-v)/(d(1-v) + v); flat and rank 1 attain it",
        assumptions="those of the test, a > 0; nothing but v and d is known",
        cases=spectra(),
        margin=_trace,
        twins={"a flat spectrum is the best": partial(_trace, swapped=True)},
    ),
    Claim(
        theorem="T7",
        name="spreading-the-spectrum-recovers-more",
        page=_PAGE,
        statement="moving variance from a smaller to a larger eigenvalue raises the recovered share",
        assumptions="those of the test, fixed trace",
        cases=spectra(least_dims=2),
        margin=_spread,
        twins={"from the larger to the smaller": partial(_spread, towards=-1.0)},
    ),
    Claim(
        theorem="T7",
        name="a-quarter-without-introduced-error",
        page=_PAGE,
        statement="nonlinear - introduced <= v (1 - v) <= 1/4 of Var x'; 1/4 is attained, with nothing introduced",
        assumptions="those of the test; v the noise share",
        cases=spectra(),
        margin=_quarter,
        twins={"an eighth": partial(_quarter, most=0.125)},
    ),
    Claim(
        theorem="T7",
        name="grid-correlation-validates-the-attribution",
        page=_PAGE,
        statement="a correlation over 0.99 on the grid means that somewhere 0.05 of the noise is called linear",
        assumptions="flat spectrum, a and r on an evenly spaced grid of at least 3 levels",
        cases=st.builds(
            Grid,
            s=st.integers(1, 10_000).map(float),
            first=st.integers(1, 9).map(float),
            step=st.integers(1, 4).map(float),
            levels=st.integers(3, 6),
        ),
        margin=_validates,
        false=True,
        known=Grid(1000.0, 3.0, 1.0, 3),
        twins={"noise at least as strong as S added": partial(_validates, loud=True)},
    ),
)
