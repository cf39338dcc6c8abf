"""T3, attacked; its closed form against algebra and against samples."""

from __future__ import annotations

import numpy as np
import pytest
import sympy

from darkmatter.claims import AnyClaim
from darkmatter.claims.introduced import CLAIMS
from darkmatter.errors import InputError
from darkmatter.theory.interference import interference
from darkmatter.theory.population import residual
from proofs.checks import check_claim, check_twin

__all__ = ["CLAIMS"]


def test_claim(claim: AnyClaim) -> None:
    check_claim(claim)


def test_twin(claim: AnyClaim, twin: str) -> None:
    check_twin(claim, twin)


def test_two_factors_in_one_dimension() -> None:
    v1, v2 = sympy.symbols("v1 v2", positive=True)
    b1, b2 = sympy.symbols("b1 b2", real=True)
    sigma, a, b = sympy.diag(v1, v2), sympy.Matrix([1, 1]), sympy.Matrix([b1, b2])
    m = (a.T * sigma * a).inv() * a.T * sigma * b
    rest = b - a * m
    exact = (rest.T * sigma * rest)[0]
    stated = v1 * v2 / (v1 + v2) * (b1 - b2) ** 2
    assert sympy.simplify(exact - stated) == 0
    assert sympy.simplify(exact - 2 * stated) != 0
    values = {v1: 2, v2: 3, b1: sympy.Rational(1, 2), b2: -1}
    found = interference(np.diag([2.0, 3.0]), [[1.0], [1.0]], [[0.5], [-1.0]])
    assert found == pytest.approx(float(stated.subs(values)), rel=1e-13)


def test_a_million_samples_agree_with_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    m, d, blocks, size = 6, 3, 50, 20_000
    true, response = rng.standard_normal((m, d)), rng.standard_normal((m, d))
    mix = rng.standard_normal((m, m))
    stated = interference(mix.T @ mix, true, response)
    wrong = interference(np.eye(m), true, response)
    found = []
    for _ in range(blocks):  # skewed, dependent factors: only their covariance matters
        f = (rng.exponential(size=(size, m)) - 1.0) @ mix
        rest = residual(f @ response, f @ true)
        found.append((rest**2).sum() / (size - d - 1))
    error = np.std(found, ddof=1) / np.sqrt(blocks)
    # t with 49 degrees of freedom: beyond 4 in 2 of 10,000 seeds; this one is fixed
    assert abs(np.mean(found) - stated) < 4 * error
    assert abs(np.mean(found) - wrong) > 4 * error


def test_singular_factors_and_activations() -> None:
    ones = np.ones((2, 2))
    assert interference(ones, [[1.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]]) == pytest.approx(0.0, abs=1e-14)
    assert interference(np.eye(2), np.zeros((2, 2)), np.eye(2)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    "arguments", [(np.eye(2), np.eye(3), np.eye(3)), (np.eye(2), np.eye(2), np.eye(3)), (np.eye(1), [1.0], [1.0])]
)
def test_shapes_that_do_not_fit(arguments: tuple[np.ndarray, ...]) -> None:
    with pytest.raises(InputError, match="expected"):
        interference(*arguments)
