"""Dense laws: standardised exactly, on their manifolds, with the moments they state."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from darkmatter.errors import InputError
from darkmatter.sandbox import dense_shapes
from darkmatter.sandbox.dense import DIVISORS, dense_law, dense_map
from darkmatter.sandbox.dense_shapes import ROLL, TUBE, roll_whitening
from darkmatter.sandbox.seeding import generator

CASES = [("gaussian", 4), ("student", 4), ("circles", 4), ("sphere", 2), ("sphere", 5), ("torus", 6), ("swiss-roll", 6)]
DF = 13.0  # |g|⁸ has a mean, so that the Monte Carlo's own standard errors exist
ROWS = 200_000


@cache
def _draws(kind: str, k: int, n: int = ROWS) -> np.ndarray:
    points = dense_law(kind, k, DF).draw(generator("dense test", kind, k), n)
    assert points.dtype == np.float32 and points.shape == (n, k)
    return points.astype(np.float64)


def _largest_z(sample: np.ndarray, expected: np.ndarray | float) -> float:
    """Largest distance of a column mean from what is expected, in standard errors; float32 may cost 1e-6."""
    error = sample.std(axis=0) / math.sqrt(len(sample)) + 1e-6
    return float((np.abs(sample.mean(axis=0) - expected) / error).max())


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ni,nj->nij", a, b).reshape(len(a), -1)


# at most 36 columns: 6.5 standard errors for a family is a false alarm of 3e-9, and the kurtosis of the products
# leaves room; a shift of 0.03 in a standardised moment is about 10 of them
LIMIT = 6.5


@pytest.mark.parametrize(("kind", "k"), CASES)
def test_mean_is_zero_and_covariance_is_the_identity(kind: str, k: int) -> None:
    law = dense_law(kind, k, DF)
    g = _draws(kind, k)
    square, cross, mean = law.odd_moments(lambda values: values)
    for moment in (square, cross):
        assert np.abs(moment - np.eye(k)).max() < 1e-12
    assert np.abs(mean).max() < 1e-12
    assert _largest_z(g, 0.0) < LIMIT
    assert _largest_z(_products(g, g), np.eye(k).ravel()) < LIMIT
    assert _largest_z(g + 0.03, 0.0) > LIMIT and _largest_z(_products(g, g) * 1.05, np.eye(k).ravel()) > LIMIT


@pytest.mark.parametrize(("kind", "k"), CASES)
def test_square_variance_and_skew_are_those_of_the_draws(kind: str, k: int) -> None:
    law = dense_law(kind, k, DF)
    g = _draws(kind, k)
    square = (g**2).sum(axis=1)
    assert _largest_z((square - k) ** 2, law.square_variance) < LIMIT
    assert _largest_z((square - k) ** 2, 1.3 * law.square_variance + 0.2) > LIMIT
    assert _largest_z(g * square[:, None], law.skew) < LIMIT
    assert _largest_z(g * square[:, None], law.skew + 0.3) > LIMIT
    assert (np.abs(law.skew).max() > 0.1) == (kind == "swiss-roll")


@pytest.mark.parametrize("function", [np.tanh, np.sin, lambda g: g / (1 + g**2)])
@pytest.mark.parametrize(("kind", "k"), CASES)
def test_odd_moments_are_those_of_the_draws(kind: str, k: int, function: object) -> None:
    law = dense_law(kind, k, DF)
    g = _draws(kind, k)
    h = function(g)  # type: ignore[operator]
    square, cross, mean = law.odd_moments(function)  # type: ignore[arg-type]
    assert square.shape == cross.shape == (k, k) and mean.shape == (k,)
    assert np.array_equal(square, square.T)
    assert _largest_z(_products(h, h), square.ravel()) < LIMIT
    assert _largest_z(_products(h, g), cross.ravel()) < LIMIT
    assert _largest_z(h, mean) < LIMIT
    assert _largest_z(_products(h, h), (square + 0.03).ravel()) > LIMIT
    assert _largest_z(_products(h, g), (cross + 0.03).ravel()) > LIMIT


def test_marginals_agree_with_scipy_to_ten_digits() -> None:
    student = stats.t(5.0, scale=math.sqrt(3.0 / 5.0))
    for law, density in (
        (dense_law("gaussian", 1), stats.norm.pdf),
        (dense_law("student", 1, 5.0), student.pdf),
        (dense_law("sphere", 7), lambda x: stats.beta.pdf((1 + x / math.sqrt(7)) / 2, 3, 3) / (2 * math.sqrt(7))),
    ):
        reach = math.sqrt(7) if law.kind == "sphere" else math.inf
        want, error = integrate.quad(lambda x, p=density: np.tanh(x) ** 2 * p(x), -reach, reach, epsabs=1e-12)  # type: ignore[misc]
        assert abs(law.odd_moments(np.tanh)[0][0, 0] - want) < 1e-10 + error
        assert abs(law.odd_moments(lambda g: np.tanh(1.001 * g))[0][0, 0] - want) > 1e-6


@pytest.mark.parametrize(("kind", "k"), [*CASES, ("sphere", 3), ("sphere", 64), ("sphere", 63), ("sphere", 2000)])
def test_a_finer_quadrature_changes_nothing(kind: str, k: int) -> None:
    law = dense_law(kind, k, 4.5)
    nodes, weights = law.shape.nodes, law.shape.weights
    assert abs(weights.sum() - 1) < 1e-13 and np.abs((weights[:, None] * nodes**2).sum(axis=0) - 1).max() < 1e-11
    if nodes.shape[1] == 1:  # a trapezoid rule: every second node is the rule of twice the step
        coarse = replace(law.shape, nodes=nodes[::2], weights=weights[::2] / weights[::2].sum())
        for function in (np.tanh, np.sin):
            fine = law.odd_moments(function)[0][0, 0]
            if kind == "student" and function is np.sin:
                continue  # oscillation in a power-law tail: the docstring excludes it
            assert abs(replace(law, shape=coarse).odd_moments(function)[0][0, 0] - fine) < 1e-11


def test_square_variance_agrees_with_closed_forms() -> None:
    assert dense_law("gaussian", 7).square_variance == 14.0
    # |g|² of a torus: a² (1 + r cos v)² + 2 sin² v
    law = dense_law("torus", 9)
    wide = 2.0 / (1.0 + TUBE**2 / 2.0)

    def square(v: float) -> float:
        return float(wide * (1 + TUBE * math.cos(v)) ** 2 + 2 * math.sin(v) ** 2)

    second = integrate.quad(lambda v: square(v) ** 2 / (2 * math.pi), 0, 2 * math.pi, epsabs=1e-12)[0]
    assert abs(law.square_variance - 3 * (second - 9)) < 1e-10
    # |g|² / k of a student is an F variable with (k, ν) degrees of freedom times (ν − 2) / ν
    k, df = 6, 9.0
    want = (k * (df - 2) / df) ** 2 * stats.f(k, df).var()
    assert abs(dense_law("student", k, df).square_variance - want) < 1e-9 * want
    assert math.isclose(dense_law("student", 6, 1e6).square_variance, 12.0, rel_tol=1e-4)  # a Gaussian in the limit


def test_the_roll_is_whitened_by_its_exact_moments() -> None:
    low, high = ROLL
    parts = [lambda t: t * math.cos(t), lambda t: t * math.sin(t)]

    def mean_of(f: object) -> float:
        return float(integrate.quad(f, low, high, epsabs=1e-11)[0] / (high - low))

    want = np.array([mean_of(p) for p in parts])
    second = np.array([[mean_of(lambda t, p=p, q=q: p(t) * q(t)) for p in parts] for q in parts])
    mean, whiten = roll_whitening()
    assert np.abs(mean - want).max() < 1e-10
    assert np.abs(whiten @ (second - np.outer(want, want)) @ whiten.T - np.eye(2)).max() < 1e-10
    assert abs(second[0, 1] - want[0] * want[1]) > 1.0  # so a diagonal scaling would not whiten it


def _distance(kind: str, g: np.ndarray) -> np.ndarray:
    """How far points are from the manifold, after undoing the affine map."""
    if kind == "circles":
        return np.abs(np.linalg.norm(g.reshape(len(g), -1, 2), axis=2) - math.sqrt(2))
    if kind == "sphere":
        return np.abs(np.linalg.norm(g, axis=1) - math.sqrt(g.shape[1]))
    block = g.reshape(len(g), -1, 3)
    if kind == "torus":
        x, y = (block[..., j] * math.sqrt((1 + TUBE**2 / 2) / 2) for j in (0, 1))
        z = block[..., 2] * TUBE / math.sqrt(2)
        return np.abs(np.hypot(np.hypot(x, y) - 1, z) - TUBE)
    mean, whiten = roll_whitening()
    raw = block[..., [0, 2]] @ np.linalg.inv(whiten).T + mean
    radius = np.linalg.norm(raw, axis=2)
    turn = np.abs(raw - radius[..., None] * np.stack([np.cos(radius), np.sin(radius)], axis=-1)).max(axis=2)
    outside = np.maximum(0, np.maximum(ROLL[0] - radius, radius - ROLL[1]))
    return np.maximum(turn, np.maximum(outside, np.abs(block[..., 1]) - math.sqrt(3)))


@pytest.mark.parametrize(("kind", "k"), [c for c in CASES if c[0] not in {"gaussian", "student"}])
def test_points_lie_on_their_manifold(kind: str, k: int) -> None:
    g = _draws(kind, k, 20_000)
    # float32 keeps a radius of up to 14.1 to 1e-6, and the roll turns it into an angle: radius² eps
    assert _distance(kind, g).max() < 2e-4
    assert _distance(kind, 1.01 * g).max() > 2e-3
    assert _distance(kind, _draws("gaussian", k, 20_000)).max() > 0.1


@pytest.mark.parametrize(("kind", "k", "dimension"), [("circles", 2, 1), ("circles", 4, 2), ("sphere", 4, 3),
    ("torus", 3, 2), ("swiss-roll", 3, 2), ("gaussian", 3, 3), ("student", 3, 3)])  # fmt: skip
def test_neighbourhoods_have_the_manifolds_dimension(kind: str, k: int, dimension: int) -> None:
    g = _draws(kind, k, 50_000)
    ranks = []
    for centre in g[:15]:
        near = g[np.argpartition(((g - centre) ** 2).sum(axis=1), 60)[:60]]
        spread = np.linalg.svd(near - near.mean(axis=0), compute_uv=False)
        ranks.append(int((spread > 0.2 * spread[0]).sum()))  # curvature over a radius ρ gives ρ/R, flat parts give 1
    assert np.median(ranks) == dimension


@pytest.mark.parametrize(("kind", "k"), [("circles", 6), ("torus", 9), ("swiss-roll", 9)])
def test_blocks_are_independent(kind: str, k: int) -> None:
    g = _draws(kind, k, 100_000)
    b = DIVISORS[kind]
    square = g**2
    for first in range(0, k - b, b):
        mine, others = square[:, first : first + b] - 1, square[:, first + b :] - 1
        assert _largest_z(_products(mine, others), 0.0) < LIMIT
    assert _largest_z(_products(square[:, :2] - 1, square[:, :2] - 1), 0.0) > LIMIT


@given(kind=st.sampled_from(sorted(DIVISORS)), blocks=st.integers(0, 5), df=st.floats(4.001, 1e6), n=st.integers(0, 9))
def test_any_law_that_is_accepted_draws_and_integrates(kind: str, blocks: int, df: float, n: int) -> None:
    k = blocks * DIVISORS[kind]
    if kind == "sphere" and k == 1:
        return
    law = dense_law(kind, k, df)
    points = law.draw(np.random.default_rng(0), n)
    assert points.shape == (n, k) and points.dtype == np.float32 and np.isfinite(points).all()
    assert law.square_variance >= 0 and law.skew.shape == (k,)
    square, cross, mean = law.odd_moments(np.tanh)
    assert square.shape == cross.shape == (k, k) and mean.shape == (k,)
    if k:
        joint = np.block([[square - np.outer(mean, mean), cross], [cross.T, np.eye(k)]])
        assert np.linalg.eigvalsh(joint).min() > -1e-10  # a covariance of (h, g)
    again = copy.deepcopy(law)
    assert np.array_equal(again.draw(np.random.default_rng(0), n), points)


def test_gaussian_keeps_its_draws() -> None:
    want = np.random.default_rng(3).standard_normal((7, 5), dtype=np.float32)
    assert np.array_equal(dense_law("gaussian", 5).draw(np.random.default_rng(3), 7), want)


def test_even_and_infinite_functions_are_refused() -> None:
    for kind, k in CASES:
        with pytest.raises(InputError, match="is not odd"):
            dense_law(kind, k).odd_moments(np.cos)
        with pytest.raises(InputError, match="NaN or infinity"):
            dense_law(kind, k).odd_moments(lambda g: g * np.nan)


@pytest.mark.parametrize(
    ("kind", "k", "df", "message"),
    [
        ("cube", 4, 5.0, "dense is 'cube', expected one of gaussian, student, sphere, circles, torus, swiss-roll"),
        ("gaussian", -1, 5.0, "dense_dim is -1"),
        ("gaussian", 2.0, 5.0, "dense_dim is 2.0"),
        ("circles", 3, 5.0, "dense_dim is 3, expected a multiple of 2 for dense='circles'"),
        ("torus", 4, 5.0, "a multiple of 3"),
        ("swiss-roll", 2, 5.0, "a multiple of 3"),
        ("sphere", 1, 5.0, "at least 2 for dense='sphere'"),
        ("student", 4, 4.0, "dense_df is 4, expected above 4"),
        ("student", 4, 3.0, "dense_df is 3.0"),
        ("student", 4, float("inf"), "dense_df is inf"),
        ("student", 4, float("nan"), "dense_df is nan"),
    ],
)
def test_impossible_laws_are_refused_in_one_line(kind: str, k: int, df: float, message: str) -> None:
    with pytest.raises(InputError) as caught:
        dense_law(kind, k, df)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["circles", "torus", "swiss-roll"])
def test_shapes_are_alike_in_every_block(kind: str) -> None:
    # a law of several blocks is that of one block, tiled
    b = DIVISORS[kind]
    one, three = dense_law(kind, b), dense_law(kind, 3 * b)
    assert three.square_variance == pytest.approx(3 * one.square_variance, rel=1e-12)
    assert np.allclose(three.skew, np.tile(one.skew, 3), rtol=0, atol=1e-12)
    assert dense_shapes.torus().nodes.shape[1] == 3


@given(k=st.integers(0, 8), share=st.floats(0.0, 0.99), variance=st.floats(0.01, 1e3))
def test_the_map_has_orthogonal_rows_of_the_right_length(k: int, share: float, variance: float) -> None:
    mapped = dense_map(k, d_model=8, share=share, sparse_variance=variance, seed=1).astype(np.float64)
    assert mapped.shape == (k, 8)
    if k:
        size = share / (1 - share) * variance
        assert np.abs(mapped @ mapped.T - size / k * np.eye(k)).max() <= 1e-5 * size
