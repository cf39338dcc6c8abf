"""T5e: why one trained SAE has no lower end (proofs/08_one_sae.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.claim import AnyClaim, Claim, Margin, at_most, equals, worst
from darkmatter.claims.one_sae_cases import ROUNDING, world_rounding, written
from darkmatter.claims.strategies import Floats, small_matrices
from darkmatter.errors import InputError
from darkmatter.theory.one_sae_moments import SecondMoments, alternative, symmetric
from darkmatter.theory.population import centred, cross, predicted, residual, variance

_PAGE = "08_one_sae"


@dataclass(frozen=True, slots=True, eq=False)
class _Codes:
    """A finite law of activations and of the codes that some encoder gives them; rows are equally likely.

    Attributes:
        x: Activations, (n, d).
        codes: Latents z ≥ 0, (n, m).
    """

    x: Floats
    codes: Floats

    @property
    def recon(self) -> Floats:
        """Sae(x) − E Sae(x) with the decoder and bias that minimise the mean squared error."""
        found = predicted(self.x, self.codes)
        # codes that are uncorrelated with x leave rounding, which must not pass for features
        return found if variance(found) > 1e-12 * (variance(self.x) + 1.0) else np.zeros_like(found)

    def __str__(self) -> str:
        return f"{len(self.x)} equally likely outcomes: x = {written(self.x)}, codes = {written(self.codes)}"


@st.composite
def _encoded(draw: st.DrawFn, *, latents: int = 3) -> _Codes:
    n, d, m = draw(st.integers(2, 8)), draw(st.integers(1, 3)), draw(st.integers(1, latents))
    block = draw(small_matrices(n, d + m))
    x, codes = block[:, :d], np.abs(block[:, d:])
    x[0, 0] += x[0, 0] == x[1, 0]  # x varies
    return _Codes(x, codes)


def _optimal(case: _Codes, *, bias: bool = True, shrink: float = 1.0) -> Margin:
    recon = case.recon if bias else case.codes @ np.linalg.pinv(case.codes) @ case.x
    recon = shrink * recon
    scale = float(np.abs(case.x).max() + 1.0) ** 2
    return equals(cross(recon, recon), cross(case.x, recon), scale=scale, rounding=ROUNDING)


def _unit_row(case: _Codes, *, gain: bool = False) -> Margin:
    z = case.codes[:, :1]
    slope = cross(z, case.x)  # least squares is slope / Var z; on the unit sphere only its direction is left
    length = float(np.linalg.norm(slope))
    row = slope / length if length > 0.0 else np.eye(1, case.x.shape[1])
    if gain:
        row = row * (length / variance(z) if length > 0.0 else 0.0)
    recon = centred(z) @ row
    scale = float(np.abs(case.x).max() + np.abs(z).max() + 1.0) ** 2
    return equals(cross(recon, recon), cross(case.x, recon), scale=scale, rounding=ROUNDING)


def _two_worlds(case: _Codes, *, gain: float = 1.0) -> Margin:
    recon = gain * case.recon
    moments = SecondMoments(
        x=cross(case.x, case.x), cross=symmetric(cross(case.x, recon)), recon=symmetric(cross(recon, recon))
    )
    nonlinear = cross(residual(case.x - recon, case.x), residual(case.x - recon, case.x))
    scale = variance(case.x) + variance(recon) + 1.0
    margins = []
    for introduced in (np.zeros_like(nonlinear), symmetric(nonlinear)):
        try:
            world = alternative(moments, introduced)
        except InputError:  # there is no such world
            return Margin(-1.0)
        found, rounding = world.moments, world_rounding(moments, world)
        pairs = ((found.x, moments.x), (found.cross, moments.cross), (found.recon, moments.recon))
        margins += [equals(a, b, scale=scale, rounding=rounding) for a, b in pairs]
        margins += [
            equals(world.introduced, introduced, scale=scale, rounding=ROUNDING),
            at_most(0.0, float(np.linalg.eigvalsh(world.rest)[0]), scale=scale, rounding=rounding),
            at_most(float(world.retained.max(initial=0.0)), 1.0, scale=1.0, rounding=ROUNDING),
        ]
    return worst(*margins)


@dataclass(frozen=True, slots=True)
class _Step:
    """x = gap b + u, P(b = 1) = ones / of, u uniform on a symmetric grid of width `width`; Sae(x) = gap b.

    Attributes:
        ones: Numerator of P(b = 1).
        of: Denominator.
        gap: Step, > 0.
        width: Width of the grid; below the gap, x gives b away.
        points: Points of the grid.
    """

    ones: int
    of: int
    gap: float
    width: float
    points: int

    def parts(self) -> tuple[Floats, Floats]:
        """Outcomes of gap b and of u, each (n, 1)."""
        grid = np.linspace(-self.width / 2.0, self.width / 2.0, self.points)
        b = np.repeat(np.arange(self.of) < self.ones, self.points)[:, None]
        return np.asarray(self.gap * b, dtype=np.float64), np.tile(grid, self.of)[:, None]


@st.composite
def _steps(draw: st.DrawFn) -> _Step:
    of = draw(st.integers(2, 10))
    gap = draw(st.integers(1, 8)) / 2
    share = draw(st.integers(1, 19)) / 20
    return _Step(draw(st.integers(1, of - 1)), of, gap, share * gap, draw(st.integers(2, 9)))


def _two_truths(case: _Step, *, formula: str = "harmonic") -> Margin:
    recon, u = case.parts()
    x = recon + u
    r = residual(x - recon, x)
    by_parts, by_whole = residual(recon, np.hstack([recon, u])), residual(recon, x)
    v, w = variance(recon), variance(u)
    expected = {"harmonic": v * w / (v + w), "all of u": w}[formula]
    scale = variance(x)
    return worst(
        # Sae is a function of x: the two values of b lie apart
        at_most(float(x[recon == 0.0].max()), float(x[recon > 0.0].min()), scale=case.gap),
        equals(variance(by_parts), 0.0, scale=scale, rounding=ROUNDING),
        equals([variance(by_whole), variance(r)], expected, scale=scale, rounding=ROUNDING),
        equals(cross(by_whole, x), 0.0, scale=scale, rounding=ROUNDING),
    )


def _wide(case: _Step) -> Margin:
    return _two_truths(replace(case, width=3.0 * case.gap))


LIMITS: tuple[AnyClaim, ...] = (
    Claim(
        theorem="T5e",
        name="an-optimal-decoder-hides-introduced-error",
        page=_PAGE,
        statement="Cov Sae = Cov(x, Sae), as matrices: the lower ends of T5b and T5c are 0",
        assumptions="decoder rows and bias minimise the mean squared error, given any codes",
        cases=_encoded(),
        margin=_optimal,
        twins={
            "no bias": partial(_optimal, bias=False),
            "a decoder a tenth too short": partial(_optimal, shrink=0.9),
        },
    ),
    Claim(
        theorem="T5e",
        name="a-decoder-of-unit-rows-hides-it-too",
        page=_PAGE,
        statement="Cov Sae = Cov(x, Sae) also where decoder rows are kept at unit norm",
        assumptions="row and bias minimise the mean squared error at unit norm, given the codes of one latent",
        cases=_encoded(latents=1),
        margin=_unit_row,
        false=True,
        known=_Codes(np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])),
        twins={"the gain of the codes optimal as well": partial(_unit_row, gain=True)},
    ),
    Claim(
        theorem="T5e",
        name="one-sae-says-nothing-from-below",
        page=_PAGE,
        statement="Var N = 0 and Var N = Var r both belong to worlds with the same Cov x, Cov(x, Sae) and Cov Sae",
        assumptions="decoder rows and bias minimise the mean squared error, given any codes",
        cases=_encoded(),
        margin=_two_worlds,
        twins={"Sae over-scaled by a tenth": partial(_two_worlds, gain=1.1)},
    ),
    Claim(
        theorem="T5e",
        name="one-function-two-truths",
        page=_PAGE,
        statement="one function Sae of one x has Var N = 0 with factors (b, u) and Var N = Var r with the factor x",
        assumptions="x = gap b + u, u narrower than the gap and symmetric, Sae(x) = gap b",
        cases=_steps(),
        margin=_two_truths,
        twins={
            "u wider than the gap": _wide,
            "Var r = Var u": partial(_two_truths, formula="all of u"),
        },
    ),
)
