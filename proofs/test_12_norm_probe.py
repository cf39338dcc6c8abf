"""A, attacked; the table of amplitude laws by sympy; samples; and the page's numbers, recomputed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import sympy as sp

from darkmatter.claims import AnyClaim
from darkmatter.claims.norm_probe import CLAIMS
from darkmatter.claims.norm_random import probes
from darkmatter.errors import InputError
from darkmatter.theory.amplitudes import gated_moments, mean_one_moments, square_r2
from darkmatter.theory.norm_probe import Factors, Vector, code_probe, gaussian_norm_r2, norm_probe
from darkmatter.theory.population import predicted, variance
from darkmatter.theory.random_directions import random_directions
from proofs.checks import check_claim, check_twin

__all__ = ["CLAIMS"]

Floats = npt.NDArray[np.float64]
K, L, P = sp.symbols("k lambda p", positive=True)
Z = sp.Symbol("z", positive=True)


def test_claim(claim: AnyClaim) -> None:
    check_claim(claim)


def test_twin(claim: AnyClaim, twin: str) -> None:
    check_twin(claim, twin)


def _moments(density: sp.Expr, low: object, high: object) -> list[sp.Expr]:
    return [sp.simplify(sp.integrate(Z**r * density, (Z, low, high))) for r in range(1, 5)]


def _poisson(rate: sp.Expr) -> list[sp.Expr]:
    t = sp.Symbol("t")
    generating = sp.exp(rate * (sp.exp(t) - 1))
    return [sp.expand(sp.diff(generating, t, r).subs(t, 0)) for r in range(1, 5)]


ROWS: dict[str, tuple[list[sp.Expr], sp.Expr, sp.Expr]] = {
    # raw moments of the law in any scale; R² at p = 1 and as p → 0, as the page has them
    "uniform": (_moments(sp.Integer(1), 0, 1), sp.Rational(15, 16), sp.Rational(15, 16)),
    "half-normal": (
        _moments(sp.sqrt(2 / sp.pi) * sp.exp(-(Z**2) / 2), 0, sp.oo),
        1 / (sp.pi - 2),
        8 / (3 * sp.pi),
    ),
    "exponential": (_moments(L * sp.exp(-L * Z), 0, sp.oo), sp.Rational(4, 5), sp.Rational(3, 4)),
    "gamma": ([sp.rf(K, r) for r in range(1, 5)], 2 * (K + 1) / (2 * K + 3), (K + 2) / (K + 3)),
    "poisson": (
        _poisson(L),
        (1 + 2 * L) ** 2 / (1 + 6 * L + 4 * L**2),
        (1 + 3 * L + L**2) ** 2 / ((1 + L) * (1 + 7 * L + 6 * L**2 + L**3)),
    ),
    "lognormal": (
        [sp.exp(K**2 * r**2 / 2) for r in range(1, 5)],
        (sp.exp(K**2) + 1) / (sp.exp(2 * K**2) + 1),
        sp.exp(-(K**2)),
    ),
}


@pytest.mark.parametrize("law", ROWS)
def test_table_by_symbols(law: str) -> None:
    (one, two, three, four), always, rare = ROWS[law]
    full = (three - P * one * two) ** 2 / ((two - P * one**2) * (four - P * two**2))
    assert sp.simplify(full.subs(P, 1) - always) == 0
    assert sp.simplify(sp.limit(full, P, 0) - rare) == 0
    assert sp.simplify(full.subs(P, 1) - rare) != 0 or law == "uniform"  # the columns are not mixed up


@pytest.mark.parametrize(
    ("law", "shape"),
    [
        ("uniform", 1.0),
        ("half-normal", 1.0),
        ("exponential", 1.0),
        ("gamma", 3.0),
        ("poisson", 1.0),
        ("lognormal", 1.0),
    ],
)
def test_table_in_code(law: str, shape: float) -> None:
    raw, always, rare = ROWS[law]
    at = {K: sp.Rational(shape), L: sp.Integer(1)}
    moments = mean_one_moments(law, shape)
    mean = float(raw[0].subs(at))
    assert moments == pytest.approx([float(m.subs(at)) / mean ** (r + 1) for r, m in enumerate(raw)], rel=1e-13)
    assert square_r2(moments) == pytest.approx(float(always.subs(at)), rel=1e-12)
    assert square_r2(moments, 0.0) == pytest.approx(float(rare.subs(at)), rel=1e-13)


def test_constant_amplitudes() -> None:
    moments = mean_one_moments("constant")
    assert all(square_r2(moments, p) == pytest.approx(1.0, rel=1e-12) for p in (0.0, 0.3, 0.99))
    assert math.isnan(square_r2(moments, 1.0))  # a constant: the table's 1 is the limit


def test_the_columns_of_the_table_do_not_bracket_what_lies_between() -> None:
    for law, p, value in (("uniform", 0.75, 45 / 49), ("half-normal", 0.5, 0.8405), ("gamma", 0.5, 0.81667)):
        shape = 3.0 if law == "gamma" else 1.0
        moments = mean_one_moments(law, shape)
        assert square_r2(moments, p) == pytest.approx(value, abs=5e-5)
        assert square_r2(moments, p) < min(square_r2(moments, 0.0), square_r2(moments, 1.0))
    uniform = [square_r2(mean_one_moments("uniform"), p) for p in np.linspace(0.0, 1.0, 401)]
    assert min(uniform) == pytest.approx(45 / 49, rel=1e-12) and uniform.index(min(uniform)) == 300
    full = (3 - P) ** 2 / ((2 - P) * (6 - P))  # exponential: rises all the way
    assert sp.simplify(sp.diff(full, P) - 2 * P * (3 - P) / ((2 - P) ** 2 * (6 - P) ** 2)) == 0


def test_poisson_is_lowest_at_one_half() -> None:
    always = ROWS["poisson"][1]
    assert sp.solve(sp.diff(always, L), L) == [sp.Rational(1, 2)]
    assert always.subs(L, sp.Rational(1, 2)) == sp.Rational(4, 5)


def test_reconstruction_of_rho() -> None:
    mean, two, three, four = (sp.factorial(r) / L**r for r in range(1, 5))
    covariance = three - mean * two  # Cov(w, (w + n)²), n independent of w
    total = (four - two**2) + 4 * two + 2  # Var w² + 4 E w² + Var n²
    rho = covariance / sp.sqrt((two - mean**2) * total)
    assert sp.simplify(rho - 4 / sp.sqrt(20 + 8 * L**2 + 2 * L**4)) == 0
    assert sp.simplify(rho.subs(L, 1) - sp.sqrt(sp.Rational(8, 15))) == 0
    assert float(rho.subs(L, 1)) == pytest.approx(0.7303, abs=5e-5)
    assert float(rho.subs(L, 1)) ** 2 == pytest.approx(0.53, abs=5e-3)
    # with the noise in x as well another number comes out
    seen = (covariance + 2 * mean) ** 2 / ((two - mean**2 + 1) * total)
    assert seen.subs(L, 1) == sp.Rational(3, 5)


@pytest.mark.parametrize(("m", "value"), [(3584, 0.746), (7168, 0.377), (16_384, 0.166), (131_072, 0.021)])
def test_numbers_in_superposition(m: int, value: float) -> None:
    code = gated_moments(mean_one_moments("exponential"), 60 / m)[:, 0]
    found = random_directions(code, n_features=m, d_model=3584)
    assert found.ratio == pytest.approx(value, abs=5e-4)
    assert found.error < 4e-4  # |E R² − ratio|
    assert 3584 / m * 0.75 == pytest.approx(found.ratio, rel=0.02)


def _sphere(n: int, m: int, d: int, seed: int) -> Floats:
    rows = np.random.default_rng(seed).standard_normal((n, m, d))
    return np.asarray(rows / np.linalg.norm(rows, axis=2, keepdims=True))


@pytest.mark.parametrize(("m", "d", "p"), [(4, 3, 0.3), (7, 3, 1.0), (3, 5, 0.5)])
def test_random_directions_by_sampling(m: int, d: int, p: float) -> None:
    code = gated_moments(mean_one_moments("exponential"), p)[:, 0]
    want = random_directions(code, n_features=m, d_model=d)
    explained, total = probes(_sphere(60_000, m, d, seed=1), code)
    blocks = [
        explained.reshape(60, -1).mean(axis=1),
        total.reshape(60, -1).mean(axis=1),
        ((total - want.total) ** 2).reshape(60, -1).mean(axis=1),
    ]
    for values, truth in zip(blocks, (want.explained, want.total, want.deviation**2), strict=True):
        error = float(values.std(ddof=1)) / math.sqrt(60)
        # 9 values within 4 standard errors, t with 59 degrees of freedom: false alarm 2e-3, seed fixed
        assert abs(float(values.mean()) - truth) <= 4.0 * error + 1e-9 * truth
        assert error < 0.05 * truth


def test_one_dictionary_spreads_around_the_ratio() -> None:
    m, d = 256, 32
    code = gated_moments(mean_one_moments("exponential"), 1 / m)[:, 0]
    want = random_directions(code, n_features=m, d_model=d)
    explained, total = probes(_sphere(100, m, d, seed=2), code)
    r2 = explained / total
    spread = float(r2.std(ddof=1))
    assert abs(float(r2.mean()) - want.ratio) < want.error + 4.0 * spread / 10.0  # false alarm below 1e-4
    # of Gaussian directions: √(2 (1 − d/m) / d) = .23; the standard deviation of 100 is known to 7 %
    assert spread / want.ratio == pytest.approx(math.sqrt(2 * (1 - d / m) / d), rel=0.3)


def test_one_dense_gaussian() -> None:
    s = np.diag(1 / np.arange(1.0, 31.0))
    mean = 2.0 * math.sqrt(float(np.trace(s)) / 30) * np.ones(30)  # |μ|² = 4 tr S
    assert gaussian_norm_r2(mean, s) == pytest.approx(0.725, abs=5e-4)
    assert gaussian_norm_r2(2.0 * np.ones(30), np.eye(30)) == pytest.approx(8 / 9)
    assert gaussian_norm_r2(np.zeros(30), s) == 0.0


def test_three_values_of_the_page() -> None:
    x = np.array([[-1.0], [0.0], [1.0]])
    for moved, value in ((x, 0.0), (x + 1.0, 12 / 13)):
        norms = moved**2
        assert variance(predicted(norms, moved)) / variance(norms) == pytest.approx(value, abs=1e-12)


def test_three_directions_of_the_page() -> None:
    y = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    raw = gated_moments(mean_one_moments("exponential"), np.full(3, 0.05))
    (probe,) = norm_probe(factors := Factors.sparse(y, raw), factors.itself)
    assert probe.r2 == pytest.approx(0.736, abs=5e-4)
    assert code_probe(y, raw).r2 == pytest.approx(0.754, abs=5e-4)


Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]
DRAWS: dict[str, tuple[float, Draw]] = {
    "exponential": (1.0, lambda rng, size: rng.exponential(1.0, size)),
    "uniform": (1.0, lambda rng, size: rng.uniform(0.0, 2.0, size)),
    "half-normal": (1.0, lambda rng, size: math.sqrt(math.pi / 2) * np.abs(rng.standard_normal(size))),
    "gamma": (3.0, lambda rng, size: rng.gamma(3.0, 1 / 3, size)),
    "poisson": (1.0, lambda rng, size: rng.poisson(1.0, size).astype(np.float64)),
    "lognormal": (0.5, lambda rng, size: rng.lognormal(-0.125, 0.5, size)),
}


def _sampled(law: str, n: int) -> tuple[float, float, Factors]:
    """R² in a sample, its standard error from the influence function, and the factors."""
    shape, draw = DRAWS[law]
    rng = np.random.default_rng(3)
    m, d, p = 10, 4, 0.3
    y = _sphere(1, m, d, seed=4)[0]
    x = (draw(rng, (n, m)) * (rng.random((n, m)) < p)) @ y
    norms = (x**2).sum(axis=1)
    design = np.column_stack([np.ones(n), x])
    left = (norms - design @ np.linalg.solve(design.T @ design, design.T @ norms)) ** 2
    total = (norms - norms.mean()) ** 2
    ratio = float(left.mean() / total.mean())
    influence = (left - ratio * total) / total.mean()
    factors = Factors.sparse(y, gated_moments(mean_one_moments(law, shape), np.full(m, p)))
    return 1.0 - ratio, float(influence.std()) / math.sqrt(n), factors


def _check_sample(law: str, n: int) -> None:
    found, error, factors = _sampled(law, n)
    (probe,) = norm_probe(factors, factors.itself)
    # 4 standard errors: false alarm 6e-5 for each of 6 laws; the bias of a sample R² is below d / n
    assert abs(found - probe.r2) < 4.0 * error + 4 / n
    assert error < 0.01
    codes = code_probe(factors.directions, factors.moments)
    assert abs(found - codes.r2) > 4.0 * error  # as if there were no superposition
    assert abs(found - square_r2(factors.moments[:, 0])) > 4.0 * error  # as if directions were orthonormal


@pytest.mark.parametrize("law", DRAWS)
def test_samples_agree(law: str) -> None:
    _check_sample(law, 100_000)


@pytest.mark.slow
@pytest.mark.parametrize("law", DRAWS)
def test_a_million_samples_agree(law: str) -> None:
    _check_sample(law, 1_000_000)


Y = np.eye(2)
RAW = np.array([[1.0, 1.0], [2.0, 2.0], [6.0, 6.0], [24.0, 24.0]])
ONE_DENSE = replace(Factors.sparse(Y, RAW), dense_map=np.eye(2), skew=np.zeros(2), square_variance=4.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_one_moments("cauchy"), "law is 'cauchy', expected one of exponential"),
        (lambda: mean_one_moments("uniform", 2.0), "'uniform' has no shape"),
        (lambda: mean_one_moments("gamma", 0.0), "shape is 0.0, expected 1e-60"),
        (lambda: mean_one_moments("lognormal", 11.0), "the fourth moment overflows"),
        (lambda: gated_moments([1.0, 2.0], 0.5), r"moments have shape \(2,\)"),
        (lambda: gated_moments(RAW[:, 0], -0.1), "p is -0.1, expected firing rates"),
        (lambda: gated_moments(RAW[:, 0], 0.5, scale=math.inf), "scale is inf"),
        (lambda: square_r2(RAW), r"moments have shape \(4, 2\)"),
        (lambda: square_r2(RAW[:, 0], 1.5), "p is 1.5"),
        (lambda: square_r2([1.0, 0.5, 1.0, 1.0]), "belong to no law"),
        (lambda: code_probe(Y, RAW[:3]), r"raw moments have shape \(3, 2\)"),
        (lambda: code_probe(np.eye(3), RAW), "do not fit"),
        (lambda: code_probe(math.nan * Y, RAW), "NaN or infinity"),
        (lambda: norm_probe(ONE_DENSE, Vector(Y, np.eye(3), 0.0)), r"expected \(2, 2\), \(2, 2\)"),
        (lambda: norm_probe(ONE_DENSE, Vector(Y, Y, -1.0)), "noise is -1.0"),
        (lambda: norm_probe(ONE_DENSE, Vector(Y, np.diag([1.0, 2.0]), 0.0)), "not a multiple of I"),
        (lambda: gaussian_norm_r2(np.zeros(2), np.eye(3)), r"shapes are \(2,\) and \(3, 3\)"),
        (lambda: random_directions(RAW, n_features=2, d_model=2), r"moments have shape \(4, 2\)"),
        (lambda: random_directions(RAW[:, 0], n_features=0, d_model=2), "n_features and d_model are 0 and 2"),
        (lambda: random_directions(np.ones(4), n_features=2, d_model=2), "the code does not vary"),
    ],
)
def test_impossible_inputs_are_refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_edges() -> None:
    nothing = np.zeros((4, 2))
    (probe,) = norm_probe(factors := Factors.sparse(Y, nothing), factors.itself)
    assert math.isnan(probe.r2) and math.isnan(code_probe(Y, nothing).r2)
    assert math.isnan(gaussian_norm_r2(np.ones(2), np.zeros((2, 2))))
    alone = random_directions(RAW[:, 0], n_features=1, d_model=3)
    assert alone.ratio == pytest.approx(0.8) and alone.error == 0.0
