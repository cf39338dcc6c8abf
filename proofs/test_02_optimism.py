"""Symmetric optimism, attacked; its closed forms by algebra, by enumeration and by Monte Carlo; the page's numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import lgamma

import numpy as np
import pytest
import sympy as sp

from darkmatter import InputError
from darkmatter.claims import AnyClaim
from darkmatter.claims.optimism import CLAIMS
from darkmatter.sandbox import Surgical, World
from darkmatter.theory.optimism import (
    customary_biases,
    first_order,
    gaussian_design,
    heteroscedastic_design,
    second_order,
)
from proofs.checks import check_claim, check_twin

__all__ = ["CLAIMS"]


def test_claim(claim: AnyClaim) -> None:
    check_claim(claim)


def test_twin(claim: AnyClaim, twin: str) -> None:
    check_twin(claim, twin)


def test_the_three_tokens_of_the_page() -> None:
    x, e = np.array([[0.0], [0.0], [1.0]]), np.array([[0.0], [1.0], [0.0]])
    theory = first_order(e, x)
    assert (theory.variance, theory.optimism, theory.parameters) == (pytest.approx(1 / 6), pytest.approx(1 / 4), 2)
    assert theory.leverage_covariance == pytest.approx(1 / 4 - 2 / 6)
    # the same law with the first two outcomes merged into a repeated one
    weighted = first_order([[0.0], [1.0], [0.0], [0.0]], [[0.0], [0.0], [1.0], [1.0]], [2, 2, 1, 1])
    assert weighted.optimism == pytest.approx(1 / 4)


def test_the_algebra_of_the_gaussian_design() -> None:
    n, d = sp.symbols("n d", positive=True)
    s, c = (n - d - 1) / n, (1 + 1 / n) * (1 + d / (n - d - 2))
    assert sp.simplify(c - (n + 1) * (n - 2) / (n * (n - d - 2))) == 0
    product = 1 + ((d - 1) * n + 2 * (d + 1)) / (n**2 * (n - d - 2))
    assert sp.simplify(s * c - product) == 0
    got = gaussian_design(30, 4)
    values = {n: 30, d: 4}
    assert got.insample == pytest.approx(float(s.subs(values)))
    assert got.heldout == pytest.approx(float(c.subs(values)))
    assert got.root_bias == pytest.approx(float(sp.sqrt(product.subs(values)) - 1))


def test_the_algebra_of_the_heteroscedastic_design() -> None:
    n, d, a, b = sp.symbols("n d a b", positive=True)
    variance = a + b * d
    # the sums of the page, part (c): leverage times |x|², and the same through the inverse Wishart matrix
    leverage = (n - 1) * d / n + (n - 1) ** 2 * d * (d + 2) / (n * (n + 1)) + d * (d + 1) / n
    s = (a * (n - d - 1) + b * (n * d - leverage)) / n
    inverse = (n - 1) * (n - 3) * d * (d + 2) / (n * (n + 1) * (n - d - 2))
    trace = d / (n - d - 2)
    slope = (a + b * d / n) * trace + b * inverse
    mean = (a / n + b * (d + 2) / n**2) * trace + b * inverse / n
    c = variance * (1 + 1 / n) - 4 * b * d / n**2 + slope + mean
    assert sp.simplify(n * s / (n - d - 1) - variance + 2 * b * d * (n - 1) / (n * (n + 1))) == 0
    assert sp.limit(n * (c - variance), n, sp.oo).expand() == (a * (d + 1) + b * d * (d + 3)).expand()
    assert sp.limit(n * (variance - s), n, sp.oo).expand() == (a * (d + 1) + b * d * (d + 3)).expand()
    got = heteroscedastic_design(25, 3, a=0.5, b=2.0)
    values = {n: 25, d: 3, a: sp.Rational(1, 2), b: 2}
    assert got.insample == pytest.approx(float(s.subs(values)))
    assert got.heldout == pytest.approx(float(c.subs(values)))


def monte_carlo(n: int, d: int, noise: Callable[[np.ndarray], np.ndarray], draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard errors of S and C, C in its conditional expectation given the fit."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(draws // 20_000):
        x = rng.standard_normal((20_000, n, d))
        e = rng.standard_normal((20_000, n)) * np.sqrt(noise((x**2).sum(axis=2)))
        design = np.concatenate([np.ones((20_000, n, 1)), x], axis=2)
        h = np.einsum("rnp,rn->rp", design, e)
        fit = np.linalg.solve(np.einsum("rnp,rnq->rpq", design, design), h[..., None])[..., 0]
        found.append(np.column_stack([((e**2).sum(axis=1) - (h * fit).sum(axis=1)) / n, (fit**2).sum(axis=1)]))
    values = np.concatenate(found)
    return values.mean(axis=0), values.std(axis=0) / np.sqrt(len(values))


@pytest.mark.parametrize("draws", [60_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.5, 1.0)])
def test_closed_forms_by_monte_carlo(a: float, b: float, draws: int) -> None:
    n, d = 20, 3
    mean, error = monte_carlo(n, d, lambda size: a + b * size, draws)
    theory = heteroscedastic_design(n, d, a=a, b=b)
    truth = np.array([theory.insample, theory.heldout - theory.variance])
    # four standard errors: a false alarm once in 16,000 for each of two numbers, the seed is fixed
    assert (np.abs(mean - truth) < 4 * error).all()
    wrong_s = theory.insample * (n - d) / (n - d - 1)  # no intercept
    wrong_c = theory.heldout * (n - d - 2) / (n - d) - theory.variance  # n − d of the Wishart mean
    assert (np.abs(mean - [wrong_s, wrong_c]) > 4 * error).all()
    if b:
        flat = gaussian_design(n, d)
        wrong = theory.variance * np.array([flat.insample, flat.heldout - 1])
        assert (np.abs(mean - wrong) > 4 * error).all()


def compositions(n: int, k: int) -> np.ndarray:
    if k == 1:
        return np.array([[n]])
    parts = [compositions(n - first, k - 1) for first in range(n + 1)]
    return np.vstack([np.insert(part, 0, first, axis=1) for first, part in enumerate(parts)])


def exact(x: np.ndarray, e: np.ndarray, w: np.ndarray, n: int) -> np.ndarray:
    """E S, E C and E sqrt(SC) with two folds of n tokens each, by enumerating all samples of a finite law."""
    counts = compositions(n, len(w))
    logs = np.array([lgamma(i + 1) for i in range(n + 1)])
    chance = np.exp(logs[n] - logs[counts].sum(axis=1) + counts @ np.log(w))
    share = counts / n
    mean_x, mean_e = share @ x, share @ e
    spread = share @ x**2 - mean_x**2
    slope = np.divide(share @ (x * e) - mean_x * mean_e, spread, out=np.zeros_like(spread), where=spread > 1e-12)
    losses = (e - mean_e[:, None] - slope[:, None] * (x - mean_x[:, None])) ** 2
    s, c, crossed = (share * losses).sum(axis=1), losses @ w, losses @ share.T
    both = np.sqrt(np.maximum(0.0, (s[:, None] + s) * (crossed + crossed.T) / 4))
    return np.array([chance @ s, chance @ c, chance @ both @ chance])


def test_the_second_order_by_enumeration() -> None:
    x, e, w = np.array([-1.0, 0.0, 2.0]), np.array([1.0, -1.0, 0.5]), np.array([0.4, 0.35, 0.25])
    law, theory = first_order(e, x, w), second_order(e, x, folds=2, weights=w)
    truth = np.array([theory.insample, theory.heldout, theory.root * law.variance])

    def left(n: int) -> np.ndarray:
        """n² times what the first order misses, less what the second order says: O(1/n)."""
        missing = exact(x, e, w, n) - law.variance - np.array([-1, 1, 0]) * law.optimism / n
        return n**2 * missing - truth

    def halves(wrong: float = 0.0) -> bool:
        # a right second order leaves 1/n, which halves up to terms in 1/n²; a wrong one leaves a constant
        ratio = (left(60) - wrong * truth) / (left(30) - wrong * truth)
        return bool((np.abs(ratio - 0.5) < 0.25).all())

    assert halves()
    assert not halves(0.5)
    assert not halves(-0.5)


def test_the_second_order_of_a_gaussian_design() -> None:
    # four Gauss-Hermite nodes have the Gaussian's moments up to order 7, and the formula needs no more than six
    d, q, folds = 2, 2, 5
    nodes, chances = np.polynomial.hermite_e.hermegauss(4)
    signs = np.array([-1.0, 1.0])
    x1, x2, e1, e2 = (a.ravel() for a in np.meshgrid(nodes, nodes, signs, signs, indexing="ij"))
    weights = np.multiply.outer(np.multiply.outer(chances, chances), np.ones((2, 2))).ravel()
    theory = second_order(np.column_stack([e1, e2]), np.column_stack([x1, x2]), folds=folds, weights=weights)
    assert theory.root == pytest.approx((d - 1) / 2 - (d + 1) / (q * (folds - 1)), rel=1e-12)
    n = 10**5
    exact_form = gaussian_design(n, d)  # in units of σ² = q
    assert theory.insample == pytest.approx(q * n**2 * (exact_form.insample - 1 + (d + 1) / n), abs=1e-4)
    assert theory.heldout == pytest.approx(q * n**2 * (exact_form.heldout - 1 - (d + 1) / n), rel=1e-3)


@pytest.mark.parametrize("draws", [40_000, pytest.param(400_000, marks=pytest.mark.slow)])
def test_one_split_pays_jensen_and_the_pooled_halves_do_not(draws: int) -> None:
    n, rng = 40, np.random.default_rng(5)
    e = rng.standard_normal((draws, 2, n))  # two folds of n tokens; intercept only
    mean, square = e.mean(axis=2), (e**2).mean(axis=2)
    s = square - mean**2
    c = square - 2 * mean * mean[:, ::-1] + mean[:, ::-1] ** 2  # fold k predicted from the other
    one = np.sqrt(s[:, 1] * c[:, 0])
    pooled = np.sqrt(s.mean(axis=1) * c.mean(axis=1))
    errors = [v.std() / np.sqrt(draws) for v in (one, pooled)]
    # Var|r|² = 2σ⁴: −(1/n' + 1/n)/4 to order 1/n; what is left is of order 1/n²
    assert abs(one.mean() - 1 + (1 / n + 1 / n) / 4) < 4 * errors[0] + 2 / n**2
    assert abs(pooled.mean() - 1) < 4 * errors[1] + 2 / n**2
    assert abs(one.mean() - 1) > 4 * errors[0] + 2 / n**2


def test_the_biases_of_the_page() -> None:
    rows = {
        4: (-0.254, 1.048, 0.395, 0.0007),
        10: (-0.102, 0.256, 0.127, 0.0001),
        40: (-0.025, 0.054, 0.029, 0.00000),
    }
    for ratio, (insample, half, cross, root) in rows.items():
        got = customary_biases(64 * ratio, 64)
        assert got.adjusted == 0.0
        assert (got.insample, got.half, got.cross_validation) == pytest.approx((insample, half, cross), abs=6e-4)
        assert got.root == pytest.approx(root, abs=5e-5)


@pytest.mark.slow
def test_the_base_world_of_the_page() -> None:
    world = World(n_features=1024, d_model=64, dense_dim=6, l0=16.0, dense_share=0.1, topic_strength=0.0, doc_tokens=1)
    base = Surgical(learned=512, shrinkage=0.1, introduced="independent", introduced_share=0.04)
    cases = [
        (base, 84, -0.004),
        (replace(base, introduced="heteroscedastic"), 90, -0.011),
        (replace(base, introduced="affine"), 92, -0.014),
    ]
    for surgical, effective, bias in cases:
        batch = next(iter(world.pair(surgical, n_tokens=4000, batch_size=4000, stream="x")))
        x, recon = (np.asarray(a, dtype=np.float64) for a in (batch.x, *batch.recons.values()))
        law, theory = first_order(x - recon, x), second_order(x - recon, x, folds=20)
        assert law.parameters == 65
        assert law.optimism / law.variance == pytest.approx(effective, abs=0.5)
        assert theory.root / (0.95 * 4 * 64) ** 2 == pytest.approx(bias, abs=1e-3)


def test_errors_of_input() -> None:
    calls: list[Callable[[], object]] = [
        lambda: gaussian_design(5, 3),
        lambda: gaussian_design(50, 0),
        lambda: heteroscedastic_design(50, 3, a=0.0, b=0.0),
        lambda: heteroscedastic_design(50, 3, a=1.0, b=-1.0),
        lambda: customary_biases(200, 10, folds=1),
        lambda: first_order([[1.0], [2.0]], [[1.0], [2.0], [0.0]]),
        lambda: first_order([[1.0], [2.0]], [[1.0], [2.0]], [1.0, 0.0]),
        lambda: second_order([[1.0], [2.0]], [[1.0], [2.0]], folds=4),
        lambda: second_order([[1.0], [2.0]], [[1.0], [1.0]], folds=1),
    ]
    for call in calls:
        with pytest.raises(InputError, match="expected") as caught:
            call()
        assert "\n" not in str(caught.value)
