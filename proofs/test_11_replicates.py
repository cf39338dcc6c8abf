"""T8, attacked; the page's formulas by sympy, its numbers recomputed, and the closed forms against samples."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import sympy as sp

from darkmatter import InputError
from darkmatter.claims import AnyClaim
from darkmatter.claims.replicates import CLAIMS
from darkmatter.theory.replicates import (
    Overlap,
    between_variance,
    corrected,
    instrument,
    lower_ends,
    most_interference,
)
from proofs.checks import check_claim, check_twin

__all__ = ["CLAIMS"]

Floats = npt.NDArray[np.float64]
PAGE = Overlap(
    common=6.0, only_a=3.0, shrinkage_a=0.1, shrinkage_b=0.2, introduced_a=1.0, introduced_b=1.0, introduced_ab=0.25
)


def test_claim(claim: AnyClaim) -> None:
    check_claim(claim)


def test_twin(claim: AnyClaim, twin: str) -> None:
    check_twin(claim, twin)


def swapped(pair: Overlap) -> Overlap:
    return Overlap(
        common=pair.common,
        only_a=pair.only_b,
        only_b=pair.only_a,
        shrinkage_a=pair.shrinkage_b,
        shrinkage_b=pair.shrinkage_a,
        introduced_a=pair.introduced_b,
        introduced_b=pair.introduced_a,
        introduced_ab=pair.introduced_ab,
    )


def test_the_worked_example_of_the_page() -> None:
    assert PAGE.private == pytest.approx(0.75)
    assert PAGE.corrected == pytest.approx(0.345)
    assert PAGE.instrument == pytest.approx(0.578125)
    back = swapped(PAGE)
    assert back.corrected == pytest.approx(PAGE.corrected)
    assert back.instrument == pytest.approx(1.0 + 0.64 * 6 * 3 / 9 - 0.25 * 4.8 / 8.1)
    assert round(back.instrument, 3) == 2.132
    for pair in (PAGE, back):
        assert pair.instrument == pytest.approx(pair.introduced_a + pair.instrument_excess)


def test_the_formulas_of_the_page() -> None:
    z, e_a, e_b, n_a, n_b, c = sp.symbols("z e_a e_b n_a n_b c", positive=True)
    u, w = sp.symbols("u w", positive=True)  # 1 − s_a and 1 − s_b
    s, t = 1 - u, u - w
    var_a, var_b = u**2 * (z + e_a) + n_a, w**2 * (z + e_b) + n_b
    x_a, x_b, ab = u * (z + e_a), w * (z + e_b), u * w * z + c
    difference, along = var_a + var_b - 2 * ab, x_a - x_b
    private = n_a + n_b - 2 * c
    delta = {z: u - w, e_a: u, e_b: -w}  # T8c: feature by feature
    general = difference - along + sum(d * (1 - d) * v for v, d in delta.items())
    assert sp.simplify(general - private) == 0
    nested = difference - along + s * (1 - s) * e_a + t * (1 - t) * z
    assert sp.simplify(nested.subs(e_b, 0) - private) == 0
    # both sides of |c| without shrinkage
    plain = {u: 1, w: 1}
    assert sp.simplify((difference - along).subs(plain) - private - 2 * e_b) == 0
    assert sp.simplify((difference + along).subs(plain) - private - 2 * e_a) == 0
    # T8d, both forms
    found = var_a - x_a * ab / x_b
    assert sp.simplify(found - (n_a + u**2 * (z + e_a) * e_b / (z + e_b) - c * x_a / x_b)) == 0
    # a decoder of gain one
    gains = sp.solve([var_a - x_a, var_b - x_b], [n_a, n_b], dict=True)[0]
    chi, one = sp.simplify((difference - along).subs(gains) / 2), sp.simplify(found.subs(gains))
    assert sp.simplify(chi - (x_b - ab)) == 0
    assert sp.simplify(one - chi * x_a / x_b) == 0


def test_uneven_shrinkage_of_one_and_of_both() -> None:
    v, u = np.array([1.0, 2.0, 0.5]), np.array([0.9, 0.6, 0.3])
    even = v @ u**2 - (v @ u) ** 2 / v.sum()
    assert instrument(v @ u**2, cov_xa=v @ u, cov_xb=float(v.sum()), cov_ab=v @ u) == pytest.approx(even)
    assert even == pytest.approx(v.sum() * np.average((u - np.average(u, weights=v)) ** 2, weights=v))
    assert instrument(v @ u**2, cov_xa=v @ u, cov_xb=v @ u, cov_ab=v @ u**2) == pytest.approx(0.0, abs=1e-15)


def blocks(pair: Overlap, seed: int, *, n: int = 20_000, count: int = 50) -> tuple[Floats, Floats]:
    """Corrected and instrument of blocks of sampled tokens, parts gated exponential, errors skewed and heavy-tailed."""
    rng = np.random.default_rng(seed)

    def part(variance: float) -> Floats:
        law = (rng.random((count, n)) < 0.2) * rng.exponential(1.0, (count, n))
        return math.sqrt(variance / (0.2 * 2 - 0.04)) * law

    z, e_a, e_b, rest = (part(v) for v in (pair.common, pair.only_a, pair.only_b, 2.0))
    both, one, two = part(pair.introduced_ab), part(pair.introduced_a - pair.introduced_ab), part(1.0)
    two *= math.sqrt(pair.introduced_b - pair.introduced_ab)
    x = z + e_a + e_b + rest
    a = (1 - pair.shrinkage_a) * (z + e_a) + both + one
    b = (1 - pair.shrinkage_b) * (z + e_b) + both + two

    def cov(u: Floats, w: Floats) -> Floats:
        return np.asarray(((u - u.mean(axis=1, keepdims=True)) * w).sum(axis=1) / (n - 1))

    chi = (cov(a - b, a - b) - np.abs(cov(x, a - b))) / 2
    return chi, cov(a, a) - cov(x, a) * cov(a, b) / cov(x, b)


@pytest.mark.parametrize(
    "pair", [PAGE, swapped(PAGE), replace(PAGE, only_b=1.0)], ids=["a wider", "b wider", "overlap"]
)
def test_the_closed_forms_agree_with_a_million_samples(pair: Overlap) -> None:
    for values, truth in zip(blocks(pair, 1), (pair.corrected, pair.instrument), strict=True):
        error = values.std(ddof=1) / math.sqrt(len(values))
        # four standard errors with 49 degrees of freedom: false alarm 2e-4, six comparisons with a fixed seed;
        # the bias of a ratio of moments of 20,000 tokens is a hundred times smaller than the limit
        assert abs(values.mean() - truth) < 4 * error
        # wrong forms are noticed: without the factor ½ or the common error, and the other SAE's number
        for wrong in (2 * truth, truth + pair.introduced_ab, pair.introduced_a + 0.3):
            assert abs(values.mean() - wrong) > 4 * error


def test_the_coin_of_the_page() -> None:
    rng = np.random.default_rng(2)
    coin, u = rng.integers(0, 2, (50, 20_000)), rng.uniform(-0.5, 0.5, (50, 20_000))
    x, recon = 2.0 * coin + u, 2.0 * coin
    xc, rc = x - x.mean(axis=1, keepdims=True), recon - recon.mean(axis=1, keepdims=True)
    left = (rc**2).mean(axis=1) - (xc * rc).mean(axis=1) ** 2 / (xc**2).mean(axis=1)
    error = left.std(ddof=1) / math.sqrt(50)
    assert abs(left.mean() - 1 / 13) < 4 * error  # false alarm 2e-4
    assert abs(left.mean() - 1 / 12) > 4 * error
    share = (1 / 13) / (1 + 1 / 12)
    assert share == pytest.approx(0.071, abs=5e-4)


def test_more_replicates() -> None:
    private, q = np.diag([1.0, 2.0, 3.0]), 0.5
    gram = private + q
    # uncorrelated errors: every end is the truth, and the between-replicate variance their mean
    assert lower_ends(gram) == pytest.approx([1.0, 2.0, 3.0])
    assert between_variance(gram) == pytest.approx(2.0)
    # errors in common: short by as much, the same for any number of replicates
    for count in (2, 3, 10):
        common = np.full((count, count), 0.25) + 0.75 * np.eye(count) + q
        assert between_variance(common) == pytest.approx(0.75)
        assert lower_ends(common) == pytest.approx([0.75] * count)
        # the best combination of J of them: Var q + 0.25 + 0.75 / J
        assert most_interference(common, signs=False) == pytest.approx(q + 0.25 + 0.75 / count)
    # two errors that are multiples of each other: the weights 2, −1 remove them, and nothing is left open
    multiples = np.outer([1.0, 2.0], [1.0, 2.0]) + q
    assert lower_ends(multiples) == pytest.approx([1.0, 4.0])
    # opposed errors: half of the unshared part, whatever the sign
    opposed = np.array([[1.0, -1.0], [-1.0, 1.0]]) + q
    assert lower_ends(opposed, signs=False) == pytest.approx([1.0, 1.0])
    assert between_variance(opposed) / 2 == pytest.approx(1.0)
    # a negative covariance refutes the conditions; the bound stays at zero
    assert most_interference(opposed) == 0.0


def test_equal_covariances_do_not_show_that_they_are_interference() -> None:
    # the test for J ≥ 3 passes for an error that all make, and fails for one that two of three make
    everyone = np.full((3, 3), 0.5) + np.eye(3)
    assert len(set(everyone[np.triu_indices(3, 1)].tolist())) == 1
    two = np.eye(3) + np.outer([1, 1, 0], [1, 1, 0]) * 0.5
    assert len(set(two[np.triu_indices(3, 1)].tolist())) > 1
    # Spearman's triad: proportional interference, uncorrelated errors
    kappa, q = np.array([1.0, 0.8, 1.3]), 0.7
    gram = q * np.outer(kappa, kappa) + np.diag([0.2, 0.3, 0.4])
    assert gram[0, 1] * gram[0, 2] / gram[1, 2] == pytest.approx(q)
    assert gram[0, 0] - q == pytest.approx(0.2)


def test_what_has_no_value() -> None:
    assert math.isnan(instrument(1.0, cov_xa=1.0, cov_xb=0.0, cov_ab=0.5))
    assert math.isnan(instrument(1.0, cov_xa=1.0, cov_xb=-0.1, cov_ab=0.5))
    nothing = Overlap(common=0.0, only_a=1.0, introduced_a=1.0)
    assert math.isnan(nothing.instrument) and math.isnan(nothing.instrument_excess)
    assert corrected(0.0, 0.0) == 0.0
    assert corrected(1.0, -1.5) == -0.25  # not cut here


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"Var\(a - b\) is -1.0"):
        corrected(-1.0, 0.0)
    with pytest.raises(InputError, match="expected finite numbers"):
        corrected(1.0, math.nan)
    with pytest.raises(InputError, match="expected finite numbers"):
        instrument(1.0, cov_xa=math.inf, cov_xb=1.0, cov_ab=1.0)
    with pytest.raises(InputError, match=r"common is -1\.0"):
        Overlap(common=-1.0)
    with pytest.raises(InputError, match=r"shrinkage_b is 1\.0, expected below 1"):
        Overlap(common=1.0, shrinkage_b=1.0)
    with pytest.raises(InputError, match=r"introduced_ab is 2\.0, expected at most 1"):
        Overlap(common=1.0, introduced_a=1.0, introduced_b=1.0, introduced_ab=2.0)
    with pytest.raises(InputError, match=r"shape \(1, 1\), expected \(J, J\)"):
        between_variance([[1.0]])
    with pytest.raises(InputError, match="not finite or not symmetric"):
        lower_ends([[1.0, 0.2], [0.3, 1.0]])
