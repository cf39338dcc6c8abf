"""T1, attacked; and the page's example, recomputed."""

from __future__ import annotations

import numpy as np
import pytest

from darkmatter.claims import AnyClaim
from darkmatter.claims.residual_identity import CLAIMS
from darkmatter.theory.population import residual, variance
from proofs.checks import check_claim, check_twin

__all__ = ["CLAIMS"]


def test_claim(claim: AnyClaim) -> None:
    check_claim(claim)


def test_twin(claim: AnyClaim, twin: str) -> None:
    check_twin(claim, twin)


def test_the_two_coins_of_the_page() -> None:
    s1, u = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([[0.0], [1.0], [0.0], [1.0]])
    x = s1 + u
    assert variance(x) == pytest.approx(1 / 2)
    assert variance(residual(x - s1, x)) == pytest.approx(1 / 8)
