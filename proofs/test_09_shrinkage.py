"""T6, attacked; the page's formulas by sympy, its numbers recomputed, and the closed forms against samples."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import sympy as sp

from darkmatter import InputError
from darkmatter.claims import AnyClaim
from darkmatter.claims.shrinkage import CLAIMS
from darkmatter.theory.population import covariance, residual, variance
from darkmatter.theory.shrinkage import (
    best_gain,
    hidden_shrinkages,
    least_r2_error,
    uneven_shrinkage,
    uniform_shrinkage,
)
from proofs.checks import check_claim, check_twin

__all__ = ["CLAIMS"]

Floats = npt.NDArray[np.float64]


def test_claim(claim: AnyClaim) -> None:
    check_claim(claim)


def test_twin(claim: AnyClaim, twin: str) -> None:
    check_twin(claim, twin)


def test_the_formulas_of_the_page() -> None:
    s, nu, rho, c = sp.symbols("s nu rho c", positive=True)
    v = (1 - s) ** 2 + nu  # in units of Var S1
    alpha = (1 - s) / v
    # gain one: shrinkage and introduced error in balance
    assert sp.solve(sp.Eq(alpha, 1), nu) == [s * (1 - s)]
    assert sp.simplify(alpha - 1 / (1 - s)).subs(nu, 0) == 0
    # rescaling removes s² exactly at Var N = s (2 − s), besides Var N = 0
    removed = sp.simplify((alpha - 1) ** 2 * v - s**2)
    assert sp.simplify(removed.subs(nu, s * (2 - s))) == 0
    assert sp.simplify(removed.subs(nu, 0)) == 0
    # T6e: the sharp bound on 1 − R² as a function of c = Cov(x, Sae) / Var x has its maximum ρ at c = ρ
    unexplained = (rho - c**2) / (1 + rho - 2 * c)
    assert set(sp.solve(sp.numer(sp.together(sp.diff(unexplained, c))), c)) == {1, rho}
    assert sp.simplify(unexplained.subs(c, rho) - rho) == 0
    f = 1 + rho - 2 * c
    assert sp.simplify((rho - (1 + rho - f) ** 2 / 4) / f - unexplained) == 0


def test_the_numbers_of_the_page() -> None:
    found = uniform_shrinkage(0.1, learned=1.0, introduced=0.05)
    assert round(found.gain, 3) == 1.047
    assert round(1 / 0.9, 3) == 1.111
    assert round(found.removed, 4) == 0.0019
    assert uniform_shrinkage(0.1, learned=1.0, introduced=0.09).gain == pytest.approx(1.0)
    # one feature whole, one halved
    assert uneven_shrinkage([0.5, 0.5], [0.0, 0.5]) == pytest.approx(0.1)
    assert best_gain(0.75, 0.625).gain == pytest.approx(1.2)
    assert best_gain(0.75, 0.625).removed == pytest.approx(0.125 / 5)
    # the two coins: all error is nonlinear and rescaling removes half of it
    x, n = np.array([0.0, 0.0, 2.0, 2.0]), np.array([-1.0, 1.0, -1.0, 1.0])
    found = best_gain(covariance(x, x + n), variance(x + n))
    assert variance(residual(n, x)) == pytest.approx(variance(n)) == pytest.approx(1.0)
    assert [found.gain, found.removed] == pytest.approx([0.5, 0.5])
    # the row of T8's table
    share = 0.1526 / 0.2289
    assert round(1 - share, 3) == 0.333


def test_hidden_shrinkages() -> None:
    assert hidden_shrinkages(0.0) == (0.0, 1.0)
    assert hidden_shrinkages(0.09) == pytest.approx((0.1, 0.9))
    assert hidden_shrinkages(0.25) == (0.5, 0.5)
    assert hidden_shrinkages(0.2501) is None
    first, _ = hidden_shrinkages(1e-20) or (0.0, 0.0)
    assert first == pytest.approx(1e-20)  # no cancellation
    for s in np.linspace(0.0, 0.99, 34):  # above a quarter no shrinkage brings the gain to one
        assert uniform_shrinkage(float(s), learned=1.0, introduced=0.2501).gain < 1.0


def sample(seed: int, *, n: int = 20_000, count: int = 50) -> tuple[Floats, Floats, Floats]:
    """Blocks of S1, U and N: gated exponential features, and an error that depends on S1 but not linearly."""
    rng = np.random.default_rng(seed)
    one, rest = ((rng.random((count, n)) < 0.2) * rng.exponential(1.0, (count, n)) for _ in range(2))
    sign = rng.integers(0, 2, (count, n)) * 2.0 - 1.0
    return one, rest, 0.4 * sign * one


def test_the_closed_forms_agree_with_a_million_samples() -> None:
    one, rest, introduced = sample(1)
    x, recon = one + rest, 0.8 * one + introduced

    def cov(a: Floats, b: Floats) -> Floats:
        return np.asarray(((a - a.mean(axis=1, keepdims=True)) * b).mean(axis=1))

    learned, added = 0.2 * 2 - 0.04, 0.16 * 0.2 * 2
    found = uniform_shrinkage(0.2, learned=learned, introduced=added)
    gain = cov(x, recon) / cov(recon, recon)
    removed = cov(x - recon, x - recon) - cov(x - gain[:, None] * recon, x - gain[:, None] * recon)
    # S1 and U have one law, so that q = (S1 − U) / 2
    nonlinear = cov(recon, recon) - cov(x, recon) ** 2 / cov(x, x)
    truths = (found.gain, found.removed, 0.64 * learned / 2 + added)
    wrong = (
        1 / 0.8,
        0.2**2 * learned,
        learned / 2 + added,
    )  # hidden shrinkage, s² Var S1, a nonlinear error that stays
    for values, truth, other in zip((gain, removed, nonlinear), truths, wrong, strict=True):
        error = values.std(ddof=1) / math.sqrt(len(values))
        # 49 degrees of freedom: false alarm 2e-4 each, fixed seed
        assert abs(values.mean() - truth) < 4 * error
        assert abs(values.mean() - other) > 4 * error


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.3, 1.0])
def test_an_sae_that_is_scaled_down_has_a_high_r2(scale: float) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((500, 6))
    recon = scale * np.maximum(x, 0.5)
    error = variance(x - recon)
    r2, f = 1 - variance(residual(recon, x)) / error, error / variance(x)
    rho = variance(recon) / variance(x)
    sharp = least_r2_error(rho, fvu=f)
    assert least_r2_error(rho) <= sharp + 1e-12
    assert sharp <= r2 + 1e-12
    if scale == 0.0:
        assert [r2, f, sharp] == pytest.approx([1.0, 1.0, 1.0])


def test_edges() -> None:
    assert least_r2_error(2.0) == 0.0
    assert least_r2_error(1.0, fvu=4.0) == 1.0  # Sae = −x is affine
    assert least_r2_error(0.25, fvu=0.25) == 1.0  # Sae = x / 2 as well
    assert uneven_shrinkage([1.0, 2.0], [0.3, 0.3]) < 1e-30
    assert uneven_shrinkage([0.0, 0.0], [0.1, 0.2], introduced=1.0) == 0.0
    assert uneven_shrinkage([1.0], [1.0], introduced=1.0) == 1.0  # nothing of S1 is there to be rescaled
    assert best_gain(-1.0, 2.0).gain == -0.5


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="a dead SAE has no gain"):
        best_gain(0.0, 0.0)
    with pytest.raises(InputError, match="expected finite numbers"):
        best_gain(math.nan, 1.0)
    with pytest.raises(InputError, match=r"shrinkage is 1\.0, expected below 1"):
        uniform_shrinkage(1.0, learned=1.0, introduced=0.0)
    with pytest.raises(InputError, match=r"Var S1 is 0\.0"):
        uniform_shrinkage(0.1, learned=0.0, introduced=0.0)
    with pytest.raises(InputError, match="expected a finite number of at least 0"):
        hidden_shrinkages(-0.1)
    with pytest.raises(InputError, match="two flat sequences of equal length"):
        uneven_shrinkage([1.0], [0.1, 0.2])
    with pytest.raises(InputError, match="expected a reconstruction that varies"):
        uneven_shrinkage([1.0], [1.0])
    with pytest.raises(InputError, match="Var Sae / Var x is nan"):
        least_r2_error(math.nan)
    with pytest.raises(InputError, match=r"FVU is 0\.1 with Var Sae / Var x = 4\.0"):
        least_r2_error(4.0, fvu=0.1)
