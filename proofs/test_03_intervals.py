"""Intervals, attacked; the expansion with symbols, and the laws by Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import sympy
from scipy import stats

from darkmatter import InputError
from darkmatter.claims import AnyClaim
from darkmatter.claims.intervals import CLAIMS
from darkmatter.theory.influence import design_effect, fold_variance, residual_spread, reweighted_variance
from proofs.checks import check_claim, check_twin

__all__ = ["CLAIMS"]

Floats = npt.NDArray[np.float64]

BLOCKS = 20
LIMIT = 4.0
"""Standard errors of a mean over 20 blocks: about one false alarm in 1,300 per comparison; the seeds are fixed."""


def test_claim(claim: AnyClaim) -> None:
    check_claim(claim)


def test_twin(claim: AnyClaim, twin: str) -> None:
    check_twin(claim, twin)


def z_score(blocks: list[float], truth: float) -> float:
    return abs(float(np.mean(blocks)) - truth) / float(stats.sem(blocks))


def test_slope_and_curvature_with_symbols() -> None:
    t, variance, square, kappa = sympy.symbols("t sigma2 r2 kappa", positive=True)
    value = (1 - t) * (variance + t * square / (1 - t + t * kappa))
    assert sympy.simplify(sympy.diff(value, t).subs(t, 0) - (square - variance)) == 0
    assert sympy.simplify(sympy.diff(value, t, 2).subs(t, 0) + 2 * kappa * square) == 0
    # it is the minimum of F: put the stationary point in
    rho = (1 - t) * sympy.sqrt(square) / (1 - t + t * kappa)
    held = (1 - t) * variance + (t**2 * kappa / (1 - t) + t) * rho**2
    assert sympy.simplify(held - value) == 0
    # leaving an outcome of weight p out gives the deleted residual of regression, h = p kappa
    p = sympy.symbols("p", positive=True)
    deleted = value.subs(t, -p / (1 - p))
    assert sympy.simplify(deleted - (variance - p * square / (1 - p * kappa)) / (1 - p)) == 0


def test_an_outcome_in_a_new_direction_costs_nothing() -> None:
    assert reweighted_variance(2.0, 5.0, math.inf, 0.25) == 0.75 * 2.0
    assert reweighted_variance(2.0, 5.0, math.inf, 0.0) == 2.0


@pytest.mark.parametrize(("n", "rank", "targets"), [(12, 5, 1), (12, 5, 3), (20, 0, 1)])
def test_a_residual_variance_rests_on_its_degrees_of_freedom(n: int, rank: int, targets: int) -> None:
    """Nearly a million draws; Gaussian noise, and Laplace noise (excess kurtosis 3) with the page's correction."""
    rng = np.random.default_rng(n + rank + targets)
    basis = np.linalg.qr(np.hstack([np.ones((n, 1)), rng.standard_normal((n, rank))]))[0]
    nu = n - rank - 1
    heavy = 2 / nu + 3 * float(((1 - (basis**2).sum(axis=1)) ** 2).sum()) / nu**2
    laws = {"normal": (1.0, residual_spread(n, rank, targets)), "laplace": (math.sqrt(2.0), heavy / targets)}
    for law, (scale, truth) in laws.items():
        blocks = []
        for _ in range(BLOCKS):
            noise = getattr(rng, law)(size=(n, 48_000)) / scale
            left = (noise**2).sum(axis=0) - ((basis.T @ noise) ** 2).sum(axis=0)
            blocks.append(float(((left.reshape(-1, targets).mean(axis=1) / nu - 1.0) ** 2).mean()))
        assert z_score(blocks, truth) < LIMIT
        if rank:  # what the influence alone says
            assert z_score(blocks, truth * nu / n) > 10 * LIMIT


def test_student_t_covers_with_unequal_folds() -> None:
    n = np.array([3.0, 10.0, 1.0, 40.0, 7.0])
    w, rng = n / n.sum(), np.random.default_rng(5)
    covers: dict[str, list[float]] = {"t": [], "normal": [], "unweighted": []}
    for _ in range(BLOCKS):
        psi = rng.standard_normal((50_000, 5)) / np.sqrt(n)
        mean = psi @ w
        error = np.sqrt((psi - mean[:, None]) ** 2 @ w / 4)
        plain = psi.std(axis=1, ddof=1) / math.sqrt(5)
        covers["t"].append(float((np.abs(mean) < stats.t.ppf(0.975, 4) * error).mean()))
        covers["normal"].append(float((np.abs(mean) < 1.96 * error).mean()))
        covers["unweighted"].append(float((np.abs(mean) < stats.t.ppf(0.975, 4) * plain).mean()))
    assert z_score(covers["t"], 0.95) < LIMIT
    assert z_score(covers["normal"], 0.95) > 10 * LIMIT
    assert z_score(covers["unweighted"], 0.95) > 10 * LIMIT


def test_fold_variances_and_the_jackknife() -> None:
    rng = np.random.default_rng(6)
    n, v = np.array([9.0, 1.0, 5.0]), np.array([1.0, 0.2, 3.0])
    w, closed = n / n.sum(), fold_variance(n, v)
    true, expected, jackknife = [], [], []
    for _ in range(BLOCKS):
        psi = rng.standard_normal((50_000, 3)) * np.sqrt(v)
        mean = psi @ w
        true.append(float((mean**2).mean()))
        expected.append(float(((psi - mean[:, None]) ** 2 @ w / 2).mean()))
        psi = rng.standard_normal((50_000, 3)) / np.sqrt(n)
        mean = psi @ w
        left_out = (n.sum() * mean[:, None] - n * psi) / (n.sum() - n)
        jackknife.append(float(((left_out - mean[:, None]) ** 2 @ (1 - w)).mean()))
    assert z_score(true, closed.true) < LIMIT
    assert z_score(expected, closed.expected) < LIMIT
    assert z_score(expected, closed.true) > 10 * LIMIT
    assert z_score(jackknife, 1.0 / n.sum()) < LIMIT
    # the jackknife of equal folds is our formula
    psi = rng.standard_normal(6)
    left_out = (psi.sum() - psi) / 5
    assert ((left_out - psi.mean()) ** 2).sum() * 5 / 6 == pytest.approx(stats.sem(psi) ** 2, rel=1e-12)
    wide = fold_variance([9, 1], [1, 0])
    assert (wide.true, wide.expected) == pytest.approx((0.81, 0.09))


def test_clustered_tokens_have_the_design_effect() -> None:
    rng, lengths, rho = np.random.default_rng(7), np.array([1, 4, 10]), 0.3
    doc = np.repeat(np.arange(3), lengths)
    n, blocks, tokens = int(lengths.sum()), [], []
    for _ in range(BLOCKS):
        common, own = rng.standard_normal((50_000, 3)), rng.standard_normal((50_000, n))
        psi = math.sqrt(rho) * common[:, doc] + math.sqrt(1 - rho) * own
        blocks.append(float((psi.mean(axis=1) ** 2).mean()) * n)
        tokens.append(float(psi.var(axis=1, ddof=1).mean()))
    effect = design_effect(lengths, rho)
    assert z_score(blocks, effect) < LIMIT
    assert z_score(tokens, 1 - (effect - 1) / (n - 1)) < LIMIT
    assert z_score(blocks, 1 + (lengths.mean() - 1) * rho) > 10 * LIMIT  # unequal documents are not their mean
    assert design_effect(np.full(7, 50), 0.1) == pytest.approx(5.9)
    assert math.sqrt(5.9) == pytest.approx(2.4, abs=0.05)


def cross_fitted(d: int, n: int, folds: int, q: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Logarithms of sqrt(SC), and se² without widening, of 500 Gaussian worlds of noise variance 1."""
    fold = np.arange(n) % folds
    size = np.bincount(fold)
    x, e = rng.standard_normal((500, n, d)), rng.standard_normal((500, n, q))
    train, heldout = np.zeros(500), np.zeros((500, folds))
    for k in range(folds):
        mine = fold == k
        mean_x, mean_e = x[:, ~mine].mean(axis=1, keepdims=True), e[:, ~mine].mean(axis=1, keepdims=True)
        xc, ec = x - mean_x, e - mean_e
        others = xc[:, ~mine].transpose(0, 2, 1)
        squares = (ec - xc @ np.linalg.solve(others @ xc[:, ~mine], others @ ec[:, ~mine])) ** 2
        train += squares[:, ~mine].sum(axis=(1, 2))
        heldout[:, k] = squares[:, mine].sum(axis=(1, 2))
    s, c = train / (n * (folds - 1)), heldout.sum(axis=1) / n
    psi, w = heldout / size / c[:, None] - 1, size / n
    return np.log(s * c) / 2, ((psi - (psi @ w)[:, None]) ** 2 @ w) / (folds - 1)


TABLE = {
    (16, 64, 8, 1): (1.43, 0.66, 0.90),
    (16, 64, 16, 16): (1.42, 0.80, 1.09),
    (8, 80, 8, 1): (1.12, 0.85, 0.96),
    (8, 80, 8, 8): (1.15, 0.88, 1.00),
    (8, 320, 8, 8): (1.05, 0.96, 0.99),
}


def check_row(row: tuple[int, int, int, int], worlds: int) -> None:
    """The page's numbers, from other draws: the ratio of two variances of `worlds` draws, each sqrt(2 / worlds)."""
    d, n, folds, q = row
    rng = np.random.default_rng(1)
    parts = [cross_fitted(d, n, folds, q, rng) for _ in range(worlds // 500)]
    value, squared_error = (np.concatenate(part) for part in zip(*parts, strict=True))
    spread, plain, widened = TABLE[row]
    tolerance = LIMIT * math.sqrt(2 / worlds + 2 / 4000)
    variance = float(value.var())
    assert variance * n * q / 2 == pytest.approx(spread, rel=tolerance)
    assert float(squared_error.mean()) / variance == pytest.approx(plain, rel=tolerance)
    assert float(squared_error.mean()) / variance * n / (n - d - 1) == pytest.approx(widened, rel=tolerance)


def test_a_row_of_the_measured_table() -> None:
    check_row((8, 80, 8, 8), 1000)


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE, ids=str)
def test_the_measured_table(row: tuple[int, int, int, int]) -> None:
    check_row(row, 4000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0, 1.0, 1.0, 0.1), "variance is -1.0"),
        ((1.0, math.nan, 1.0, 0.1), "squared residual is nan"),
        ((1.0, 1.0, 0.5, 0.1), "leverage is 0.5"),
        ((1.0, 1.0, 2.0, 1.0), "step is 1.0"),
        ((1.0, 1.0, 3.0, -0.5), "step is -0.5"),
    ],
)
def test_impossible_outcomes_are_refused(arguments: tuple[float, float, float, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reweighted_variance(*arguments)


def test_impossible_folds_and_documents_are_refused() -> None:
    for n, v in (([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([[1.0, 2.0]], [[1.0, 1.0]])):
        with pytest.raises(InputError, match="expected"):
            fold_variance(n, v)
    for n, v in (([0.0, 1.0], [1.0, 1.0]), ([1.0, 1.0], [-1.0, 1.0]), ([1.0, math.nan], [1.0, 1.0])):
        with pytest.raises(InputError, match="impossible values"):
            fold_variance(n, v)
    for lengths in ([], [0, 3], [[1]], [math.inf]):
        with pytest.raises(InputError, match="at least one token"):
            design_effect(lengths, 0.5)
    with pytest.raises(InputError, match=r"correlation is 1\.5"):
        design_effect([2, 2], 1.5)
    for arguments in ((3, 2, 1), (5, -1, 1), (5, 2, 0)):
        with pytest.raises(InputError, match="more tokens"):
            residual_spread(*arguments)
