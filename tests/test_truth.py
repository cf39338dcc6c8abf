"""Ground truth by regression on the true factors: closed forms, a naive dense transcription, identities, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from darkmatter.decomposition import decompose
from darkmatter.errors import InputError
from darkmatter.folds import fold_of
from darkmatter.inference import Estimate
from darkmatter.sandbox import Surgical, World
from darkmatter.sandbox.budget import LEARNED
from darkmatter.sandbox.chunk import WorldChunk
from darkmatter.sandbox.factor_fit import check_memory
from darkmatter.sandbox.factor_gram import Absorbed, Tokens
from darkmatter.sandbox.factor_space import FactorSpace, groups
from darkmatter.sandbox.factor_sums import FactorSums, collect_sums, merged
from darkmatter.sandbox.source import Sae, recon_chunks
from darkmatter.sandbox.truth import TRUTH_FOLDS, Truth, _from_sums, true_shares
from darkmatter.solve import factor

EPS32 = float(np.finfo(np.float32).eps)
SHARES = ("fvu", "nonlinear", "introduced", "interference", "absent", "dense", "linear", "cross")
WORLD = World(n_features=48, d_model=12, dense_dim=3, l0=5.0, topics=4, topic_strength=0.0, doc_tokens=16, seed=5)
TOPICAL = replace(WORLD, topic_strength=0.8)
DEPENDENT = {
    "copula": replace(TOPICAL, correlation=0.4, factors=3, dense="torus"),
    "trees": replace(TOPICAL, roots=6, branching=2, depth=2, siblings="exclusive", dense="swiss-roll"),
    "codes": replace(TOPICAL, dense="codes", dense_share=0.3),
}
ORTHONORMAL = World(
    n_features=12, d_model=16, dense_dim=4, l0=4.0, dictionary="orthonormal", topics=3, doc_tokens=16, seed=2
)

Matrix = npt.NDArray[np.float64]
Rows = npt.NDArray[Any]
Ends = tuple[float, float, float]


def fold_sums(
    world: World, sae: Sae, n_tokens: int, folds: int = TRUTH_FOLDS, stream: str = "truth"
) -> list[FactorSums]:
    pieces = recon_chunks(world, {"sae": sae}, n_tokens=n_tokens, stream=stream)
    return collect_sums(world, ((chunk, recons["sae"]) for chunk, recons in pieces), folds)


def monte_carlo(world: World, sae: Sae, *, n_tokens: int, stream: str = "truth") -> Truth:
    """The regression path, also where `true_shares` would take the closed form."""
    return _from_sums(world, fold_sums(world, sae, n_tokens, stream=stream), "Monte Carlo")


def gated(d: int, latents: int, *, seed: int = 3) -> Callable[[torch.Tensor], torch.Tensor]:
    """Half of x plus a random ReLU network: nonlinear, and with responses on both sides of "learned"."""
    draw = torch.Generator().manual_seed(seed)
    encoder = torch.randn(d, latents, generator=draw) / math.sqrt(d)
    decoder = torch.randn(latents, d, generator=draw) / math.sqrt(latents)
    return lambda x: x / 2 + (x @ encoder - 0.3).relu() @ decoder


# (a) the closed form and the regression agree


REPEATS = 40
LEAST_COVERED = int(stats.binom.ppf(1e-5, REPEATS, 0.9))
"""Coverage at or below this in 40 repeats happens once in 1e5 if the intervals cover 90 % (nominally 95 %)."""


@pytest.mark.parametrize("world", [WORLD, TOPICAL], ids=["independent tokens", "topics"])
@pytest.mark.parametrize("kind", ["independent", "heteroscedastic"])
def test_the_closed_form_lies_in_the_monte_carlo_intervals(world: World, kind: str) -> None:
    # Per quantity: coverage at least LEAST_COVERED, and the mean error below 5 standard errors of itself plus 2 % of
    # the value for what sqrt(S C) and the ratios leave at second order (both vanish with n; 32 tokens per factor here).
    # 32 quantities in all: false alarm below 32 (1e-5 + 3e-5) = 1.3e-3 over all seeds; the seed is fixed.
    sae = Surgical(learned=20, shrinkage=0.15, introduced=kind, introduced_share=0.05)  # type: ignore[arg-type]
    exact = world.truth(sae)
    assert exact.method == "closed form" and exact.n_learned == 20
    found = [monte_carlo(world, sae, n_tokens=1632, stream=f"truth {i}") for i in range(REPEATS)]
    assert {truth.n_learned for truth in found} == {20}
    for name in SHARES:
        truth = getattr(exact, name)
        assert truth.low == truth.value == truth.high
        estimates = [getattr(one, name) for one in found]
        # without topics `cross` is zero by construction, and its interval as narrow as the rounding
        covered = sum(one.low - 1e-14 <= truth.value <= one.high + 1e-14 for one in estimates)
        errors = np.array([estimate.value for estimate in estimates]) - truth.value
        assert covered > LEAST_COVERED, f"{name}: {covered} of {REPEATS} intervals cover"
        allowed = 5 * errors.std(ddof=1) / math.sqrt(REPEATS) + 0.02 * abs(truth.value) + 1e-14
        assert abs(errors.mean()) <= allowed, f"{name}: {errors.mean():.2e} off, {allowed:.2e} allowed"


KINDS = {
    "dense": WORLD,
    "interference": replace(WORLD, dense="circles", dense_dim=2, amplitude="half-normal", amplitude_last=1.5),
    "affine": DEPENDENT["codes"],
    "independent": DEPENDENT["codes"],
    "heteroscedastic": DEPENDENT["copula"],
    "none": DEPENDENT["trees"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_form_agrees_with_the_regression_for_every_kind(kind: str) -> None:
    world = KINDS[kind]
    share = 0.0 if kind == "none" else 0.05
    sae = Surgical(learned=20, shrinkage=0.1, tilt=20.0, introduced=kind, introduced_share=share)  # type: ignore[arg-type]
    exact, found = world.truth(sae), monte_carlo(world, sae, n_tokens=60_000)
    assert exact.method == "closed form" and found.n_learned == exact.n_learned == 20
    for name in SHARES:
        want, estimate = getattr(exact, name).value, getattr(found, name)
        # 3.5 times the 95 % half-width is 9 standard errors with 5 degrees of freedom: false alarm 3e-4 each, 48
        # values, fixed seed; 1e-8 for float32 directions where N = 0
        assert abs(estimate.value - want) < 3.5 * _half(estimate) + 1e-8, name
        assert _half(estimate) < 0.05 * max(abs(want), 0.02) + 0.001, name
    # and it would be seen if the affine part of the added term were forgotten
    if kind in {"dense", "interference", "affine"}:
        plain = world.truth(replace(sae, introduced="none", introduced_share=0.0))
        assert abs(found.dense.value - plain.dense.value) > 10 * _half(found.dense)


def test_the_monte_carlo_intervals_are_not_so_wide_that_they_cover_anything() -> None:
    # 16 times the tokens, a quarter of the width. A width from 6 folds scatters by a third, so the ratio of the means
    # of 12 and of 6 widths by 18 %: a factor of 2 either way is four standard deviations
    sae = Surgical(learned=20, shrinkage=0.15, introduced="independent", introduced_share=0.05)
    few, many = (
        [monte_carlo(WORLD, sae, n_tokens=n, stream=f"truth {i}") for i in range(repeats)]
        for n, repeats in ((1632, 12), (16 * 1632, 6))
    )
    for name in ("fvu", "nonlinear", "introduced", "absent", "dense", "linear"):
        wide, narrow = (
            np.mean([getattr(one, name).high - getattr(one, name).low for one in found]) for found in (few, many)
        )
        assert 2 < wide / narrow < 8, name
        assert narrow < 0.2 * getattr(many[0], name).value, name


# (b) a naive dense transcription


def _regress(f: Matrix, s: Matrix, rows: Rows, others: Rows) -> tuple[float, Matrix]:
    """In-sample residual sum of squares on `rows`, and squared residual norms of `others`, by lstsq with intercept."""
    design = np.column_stack([np.ones(rows.sum()), f[rows]])
    weight = np.linalg.lstsq(design, s[rows], rcond=None)[0]
    outside = s[others] - np.column_stack([np.ones(others.sum()), f[others]]) @ weight
    return float(((s[rows] - design @ weight) ** 2).sum()), (outside**2).sum(axis=1)


def _half_width(influence: Matrix, n: Matrix) -> float:
    weight = n / n.sum()
    spread = weight @ (influence - weight @ influence) ** 2 / (len(n) - 1)
    return float(stats.t.ppf(0.975, len(n) - 1) * math.sqrt(spread))


def naive_truth(world: World, chunks: list[tuple[WorldChunk, dict[str, torch.Tensor]]]) -> dict[str, Ends]:
    """Everything `Truth` holds, from dense arrays of all tokens; (value, low, high) by name."""
    f = np.vstack([np.hstack([c.codes.toarray(), c.dense_coords]) for c, _ in chunks]).astype(np.float64)
    x = np.vstack([c.x for c, _ in chunks]).astype(np.float64)
    s = np.vstack([r["sae"].numpy() for _, r in chunks]).astype(np.float64)
    fold = fold_of(np.concatenate([c.groups for c, _ in chunks]), TRUTH_FOLDS)
    numbers = np.unique(fold)
    n = np.array([(fold == j).sum() for j in numbers], dtype=float)

    def per_fold(squares: Matrix) -> Matrix:
        return np.array([squares[fold == j].sum() for j in numbers])

    def centred(a: Matrix) -> Matrix:
        return np.asarray(a - a.mean(axis=0))

    var_x = (centred(x) ** 2).sum(axis=1).mean()
    psi_x = per_fold((centred(x) ** 2).sum(axis=1)) / n / var_x - 1
    var_e = (centred(x - s) ** 2).sum(axis=1).mean()
    psi_e = per_fold((centred(x - s) ** 2).sum(axis=1)) / n / var_e - 1
    shares, psi = {}, {}
    for key, design in (("f", f), ("x", x)):
        fits = [_regress(design, s, fold != j, fold == j) for j in numbers]
        inside = sum(train for train, _ in fits) / (n.sum() - n).sum()
        outside = np.array([squares.sum() for _, squares in fits])
        shares[key] = math.sqrt(inside * outside.sum() / n.sum()) / var_x
        widened = math.sqrt(n.sum() / (n.sum() - design.shape[1] - 1))
        psi[key] = (outside / n / (outside.sum() / n.sum()) - 1) * widened - psi_x

    def logarithmic(value: float, influence: Matrix) -> Ends:
        half = _half_width(influence, n)
        return value, value * math.exp(-half), value * math.exp(half)

    def symmetric(value: float, influence: Matrix) -> Ends:
        half = _half_width(influence, n)
        return value, value - half, value + half

    found = {
        "fvu": logarithmic(var_e / var_x, psi_e - psi_x),
        "nonlinear": logarithmic(shares["x"], psi["x"]),
        "introduced": logarithmic(shares["f"], psi["f"]),
        "interference": symmetric(shares["x"] - shares["f"], shares["x"] * psi["x"] - shares["f"] * psi["f"]),
    }
    for name, (value, influence) in _naive_budget(world, f, s, fold, numbers).items():
        found[name] = symmetric(value / world.variance, influence / world.variance)
    return found


def _naive_covariance(world: World) -> Matrix:
    """Covariance of all factors as a matrix."""
    m, k, law = world.n_features, world.dense_dim, world.contexts
    if world.correlation or world.roots or world.dense == "codes":  # test_factors.py holds these to samples
        return FactorSpace.of(world).apply(np.eye(m + k))
    # law of total covariance, topic by topic, for Exp(1) amplitudes: E w = p, E w² = 2 p
    at_topic = [np.where(law.topic == t, law.own, law.other) for t in range(world.topics)]
    covariance = np.eye(m + k)
    covariance[:m, :m] = np.mean([np.diag(2 * p - p**2) for p in at_topic], axis=0) + np.cov(
        np.array(at_topic).T, bias=True
    )
    return covariance


def _naive_budget(world: World, f: Matrix, s: Matrix, fold: Rows, numbers: Rows) -> dict[str, tuple[float, Matrix]]:
    """(Y - B)'f among absent, learned and dense factors, with the full population covariance of the factors."""
    m, k = world.n_features, world.dense_dim
    covariance = _naive_covariance(world)
    true = np.vstack([world.dictionary_matrix, world.dense_map]).astype(np.float64)

    def coefficients(rows: Rows) -> Matrix:
        design = np.column_stack([np.ones(rows.sum()), f[rows]])
        return np.asarray(np.linalg.lstsq(design, s[rows], rcond=None)[0][1:])

    whole = coefficients(np.ones(len(f), dtype=bool))
    learned = np.concatenate([(whole[:m] * true[:m]).sum(axis=1) >= LEARNED, np.zeros(k, dtype=bool)])
    sparse = np.arange(m + k) < m
    masks = {"absent": sparse & ~learned, "linear": learned, "dense": ~sparse, "all": sparse | ~sparse}
    halves = [true - coefficients(np.isin(fold, numbers[start::2])) for start in (0, 1)]
    deviation, response = f - f.mean(axis=0), s - s.mean(axis=0)
    residual = response - deviation @ whole
    gram = deviation.T @ deviation / len(f)
    found: dict[str, tuple[float, Matrix]] = {}
    for name, mask in masks.items():
        inside = covariance * mask[:, None] * mask
        value = float(np.trace(halves[0].T @ inside @ halves[1]))
        adjoint = np.linalg.solve(gram, inside @ (true - whole))
        per_token = -2 * ((deviation @ adjoint) * residual).sum(axis=1)
        found[name] = (value, np.array([per_token[fold == j].mean() for j in numbers]))
    value, influence = found.pop("all")
    found["cross"] = (
        value - sum(part[0] for part in found.values()),
        influence - np.sum([part[1] for part in found.values()], axis=0),
    )
    return found


@pytest.mark.parametrize("world", [WORLD, TOPICAL, replace(TOPICAL, dense_dim=0, dense_share=0.0), *DEPENDENT.values()])
@pytest.mark.parametrize(
    "sae",
    [
        gated(12, 40),
        Surgical(learned=20, shrinkage=0.15, introduced="heteroscedastic", introduced_share=0.05),
        Surgical(learned=20, shrinkage=0.15, introduced="function", introduced_share=0.05),
    ],
    ids=["function", "surgical", "surgical function"],
)
def test_streamed_sums_equal_a_naive_dense_transcription(world: World, sae: Sae) -> None:
    # 5000 tokens: two chunks, the second cut. Both sides are float64 and the condition number of the factors' scatter
    # is below 1e3, so rounding is below 1e-11: 1e-10 is above it, and below anything that a float32 step would leave.
    found = monte_carlo(world, sae, n_tokens=5000)
    naive = naive_truth(world, list(recon_chunks(world, {"sae": sae}, n_tokens=5000, stream="truth")))
    assert set(naive) == set(SHARES)
    for name, want in naive.items():
        got = getattr(found, name)
        np.testing.assert_allclose((got.value, got.low, got.high), want, rtol=1e-10, atol=1e-10, err_msg=name)


def test_merging_folds_gives_the_sums_of_all_tokens() -> None:
    whole, other = (merged(fold_sums(TOPICAL, gated(12, 40), 3000, folds)) for folds in (2, 13))
    assert whole.n == other.n == 3000
    blocks = [(getattr(whole, name), getattr(other, name)) for name in ("fs", "xx", "xs")]
    for a, b in [*blocks, (whole.scatter("f"), other.scatter("f"))]:
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11 * float(a.abs().max()))
    assert whole.ss == pytest.approx(other.ss, rel=1e-12) and whole.ee == pytest.approx(other.ee, rel=1e-12)


def test_kept_tokens_and_their_gram_matrix_are_the_same_sums() -> None:
    # 13 folds of 77 tokens are smaller than their Gram matrices, 2 folds of 32,000 are not
    kept, absorbed = fold_sums(TOPICAL, gated(12, 40), 1000, 13), fold_sums(TOPICAL, gated(12, 40), 64_000, 2)
    assert {type(part) for fold in kept for part in fold.gram} == {Tokens}
    assert [[type(part) for part in fold.gram] for fold in absorbed] == [[Absorbed], [Absorbed]]
    for folds, n_tokens in ((kept, 1000), (absorbed, 64_000)):
        pieces = recon_chunks(TOPICAL, {"sae": gated(12, 40)}, n_tokens=n_tokens, stream="truth")
        f = np.vstack([np.hstack([c.codes.toarray(), c.dense_coords]) for c, _ in pieces]).astype(np.float64)
        whole = merged(folds)
        deviation = f - f.mean(axis=0)
        want = torch.from_numpy(deviation.T @ deviation)
        weight = torch.from_numpy(np.random.default_rng(0).standard_normal((51, 4)))
        scale = float(want.abs().max())
        torch.testing.assert_close(whole.scatter("f"), want, rtol=1e-11, atol=1e-11 * scale)
        torch.testing.assert_close(whole.scattered("f", weight), want @ weight, rtol=1e-11, atol=1e-10 * scale)


def test_a_regression_that_cannot_fit_into_memory_is_refused() -> None:
    check_memory(10_000)
    with pytest.raises(InputError, match=r"on 10000000 true factors needs 2400000 GB .* use a smaller world"):
        check_memory(10_000_000)


def test_the_progress_counts_every_token_once() -> None:
    seen: list[int] = []
    WORLD.truth(gated(12, 40), n_tokens=5000, progress=seen.append)
    assert sum(seen) == 5000 and len(seen) == 2


# (c) identities


@pytest.mark.parametrize("world", [WORLD, TOPICAL], ids=["independent tokens", "topics"])
@pytest.mark.parametrize("latents", [4, 40, 400])
def test_the_parts_add_up(world: World, latents: int) -> None:
    truth = world.truth(gated(12, latents), n_tokens=40_000)
    assert truth.nonlinear.value == pytest.approx(truth.introduced.value + truth.interference.value, rel=1e-12)
    # fvu comes from the sample, the parts of the affine error from the population covariance: they agree within the
    # sum of their half-widths (0.1 % of all seeds would not, since the errors would have to conspire)
    parts = [truth.introduced, truth.absent, truth.dense, truth.linear, truth.cross]
    slack = sum((part.high - part.low) / 2 for part in [truth.fvu, *parts])
    assert abs(truth.fvu.value - sum(part.value for part in parts)) <= slack
    assert slack < 0.1 * truth.fvu.value  # else the line above could not fail


@pytest.mark.parametrize("kind", ["none", "independent", "heteroscedastic"])
def test_the_parts_of_a_closed_form_add_up_exactly(kind: str) -> None:
    sae = Surgical(
        learned=20,
        shrinkage=0.15,
        introduced=kind,  # type: ignore[arg-type]
        introduced_share=0.0 if kind == "none" else 0.05,
    )
    shares = {name: estimate.value for name, estimate in TOPICAL.truth(sae).shares().items()}
    assert set(shares) == set(SHARES)
    parts = ("introduced", "absent", "dense", "linear", "cross")
    assert shares["fvu"] == pytest.approx(sum(shares[name] for name in parts), rel=1e-12)
    assert shares["nonlinear"] == pytest.approx(shares["introduced"] + shares["interference"], rel=1e-12)
    assert shares["cross"] > 0 and shares["introduced"] == sae.introduced_share


@pytest.mark.parametrize("n_features", [12, 9], ids=["m + k = d", "m + k < d"])
def test_without_superposition_all_nonlinear_error_is_introduced(n_features: int) -> None:
    # m + k <= d independent directions: the factors are affine functions of x, so both regressions are the same one.
    # x is float32, which moves the answer by rounding of relative size EPS32 in x, amplified by the condition number
    # of the directions (below 100); one in 100 of the share is left as a bound for the unequal number of regressors
    # that the rounding noise adds where m + k < d (at 1000 tokens per direction it shifts sqrt(S C) at second order).
    world = replace(ORTHONORMAL, n_features=n_features)
    truth = world.truth(gated(16, 40), n_tokens=16_000)
    assert truth.introduced.value > 0.02
    share = 1e4 * EPS32 if n_features + world.dense_dim == world.d_model else 1e-2
    assert abs(truth.interference.value) <= share * truth.introduced.value
    assert truth.nonlinear.value == pytest.approx(truth.introduced.value, rel=share)
    measured = decompose(world.pair(gated(16, 40), n_tokens=16_000))
    assert measured.fvu_nonlinear.contains(truth.introduced.value)  # 95 %, fixed seed
    # the same SAE in superposition hides something from every linear probe
    crowded = replace(world, n_features=64, dictionary="random").truth(gated(16, 40), n_tokens=16_000)
    assert crowded.interference.low > 0.05 * crowded.nonlinear.value


# (d) SAEs that introduce nothing


def test_an_sae_that_is_affine_in_x_introduces_nothing_and_hides_nothing() -> None:
    matrix = torch.randn(12, 12, generator=torch.Generator().manual_seed(0)) / 4
    truth = WORLD.truth(lambda x: x @ matrix + 2.0, n_tokens=8000)
    # only float32 rounding is left, EPS32 per coordinate of a reconstruction of the size of x plus the constant 2
    size = (WORLD.variance + float(WORLD.mean @ WORLD.mean) + 4 * 12) / WORLD.variance
    assert 0 <= truth.introduced.value < 12 * EPS32**2 * size
    assert 0 <= truth.nonlinear.value < 12 * EPS32**2 * size
    assert truth.fvu.value > 0.1


def test_an_sae_that_is_affine_in_the_factors_introduces_nothing_but_interferes() -> None:
    sae = Surgical(learned=20, shrinkage=0.3)
    truth = monte_carlo(WORLD, sae, n_tokens=8000)
    size = 1 + float(WORLD.mean @ WORLD.mean) / WORLD.variance
    assert 0 <= truth.introduced.value < 48 * EPS32**2 * size  # sums of up to l0 << 48 rounded products
    assert truth.interference.low > 0.02
    assert truth.n_learned == 20


def test_a_dead_sae_misses_everything_and_introduces_nothing() -> None:
    truth = TOPICAL.truth(lambda x: torch.full_like(x, 0.5), n_tokens=8000)
    shares = {name: estimate.value for name, estimate in truth.shares().items()}
    rounding = 1e-12  # the reconstruction is exact and constant, all sums are float64
    assert shares["fvu"] == pytest.approx(1, abs=rounding)
    for name in ("introduced", "nonlinear", "interference", "linear", "cross"):
        assert shares[name] == pytest.approx(0, abs=rounding), name
    assert shares["absent"] == pytest.approx(TOPICAL.sparse_variance / TOPICAL.variance, abs=rounding)
    assert shares["dense"] == pytest.approx(TOPICAL.dense_variance / TOPICAL.variance, abs=rounding)
    assert truth.n_learned == 0
    closed = TOPICAL.truth(Surgical(learned=0))
    for name, estimate in closed.shares().items():
        assert shares[name] == pytest.approx(estimate.value, abs=rounding), name


def test_a_perfect_sae_makes_no_error_but_superposition_hides_some_of_it() -> None:
    truth = monte_carlo(replace(WORLD, dense_dim=0, dense_share=0.0), Surgical(learned=1.0), n_tokens=8000)
    assert truth.fvu.value < 1e-12 and truth.introduced.value < 1e-12
    assert abs(truth.absent.value) < 1e-12 and truth.n_learned == 48


# (e) the estimator against the truth


@pytest.mark.parametrize("world", [WORLD, TOPICAL], ids=["independent tokens", "topics"])
def test_the_measured_nonlinear_share_contains_the_truth_for_error_that_depends_on_x(world: World) -> None:
    sae = Surgical(learned=20, shrinkage=0.1, introduced="function", introduced_share=0.05)
    truth = world.truth(sae, n_tokens=200_000)
    assert truth.method.startswith("Monte Carlo, 200000 tokens; introduced_share set to ± 0.")
    measured = decompose(world.pair(sae, n_tokens=20_000))
    assert measured.fvu_nonlinear.contains(truth.nonlinear.value)  # 95 %, fixed seed
    assert measured.fvu.contains(truth.fvu.value)
    # A is a function of x: what of it is affine in the factors is not introduced error by T3's definition
    error = math.hypot(sae.introduced_share * sae.bind(world).relative_error, _half(truth.introduced) / 2.57)
    assert abs(truth.introduced.value - sae.introduced_share) < 6 * error  # about 5 degrees of freedom: 2e-3
    assert error < 0.02 * sae.introduced_share
    assert truth.introduced.value < measured.fvu_nonlinear.low


def _half(estimate: Estimate) -> float:
    return (estimate.high - estimate.low) / 2


def test_a_probe_of_its_own_sharpens_what_needs_no_factors() -> None:
    sae = gated(12, 40)
    plain = WORLD.truth(sae, n_tokens=1632)
    sharp = WORLD.truth(sae, n_tokens=1632, probe_tokens=40_000)
    probe = decompose(WORLD.pair(sae, n_tokens=40_000, stream="truth-probe"))
    assert (sharp.fvu, sharp.nonlinear) == (probe.fvu, probe.fvu_nonlinear)
    assert sharp.method == "Monte Carlo, 1632 tokens; 40000 for fvu and nonlinear"
    for name in ("introduced", "absent", "dense", "linear", "cross", "n_learned"):
        assert getattr(sharp, name) == getattr(plain, name)
    assert sharp.nonlinear.value == pytest.approx(sharp.introduced.value + sharp.interference.value, rel=1e-12)
    # the two samples are independent, so their errors add as squares
    half = math.hypot(*(e.high - e.low for e in (probe.fvu_nonlinear, plain.introduced))) / 2
    assert sharp.interference.high - sharp.interference.value == pytest.approx(half, rel=1e-9)


# (f) the half-split budget


EVEN = replace(TOPICAL, zipf=0.3, topic_strength=0.3)
"""Every feature fires often enough for its coefficient to have a variance, also at 8 tokens per factor."""


@cache
def _small_samples() -> tuple[list[dict[str, float]], list[dict[str, float]], dict[str, float]]:
    """Half-split and plug-in shares of 60 streams of 8 tokens per factor, and the exact ones."""
    sae = Surgical(learned=20, shrinkage=0.1, introduced="independent", introduced_share=0.25)
    space = FactorSpace.of(EVEN)
    parts = groups(np.arange(48) < 20, 3)
    split, plug = [], []
    for i in range(60):
        folds = fold_sums(EVEN, sae, 8 * 51, stream=f"truth {i}")
        truth = _from_sums(EVEN, folds, "")
        assert truth.n_learned == 20
        split.append({name: getattr(truth, name).value for name in parts})
        total = merged(folds)
        miss = space.true - factor(total.scatter("f"), total.mean["f"], total.n).solve(total.fs).numpy()
        plug.append({name: space.variance(mask * miss) / EVEN.variance for name, mask in parts.items()})
    exact = {name: getattr(EVEN.truth(sae), name).value for name in parts}
    return split, plug, exact


@pytest.mark.parametrize("part", ["absent", "linear"])
def test_the_half_split_budget_is_unbiased_where_the_plug_in_is_not(part: str) -> None:
    split, plug, exact = _small_samples()

    def bias(rows: list[dict[str, float]]) -> tuple[float, float]:
        values = np.array([row[part] for row in rows])
        return float(values.mean() - exact[part]), float(values.std(ddof=1) / math.sqrt(len(values)))

    ours, error = bias(split)
    naive, naive_error = bias(plug)
    assert naive > 8 * naive_error, "the plug-in passes here, so this world cannot tell the two apart"
    assert abs(ours) <= 4.5 * error, f"biased by {ours / error:.1f} standard errors"  # false alarm 3e-5 (t, 59 df)
    assert error < naive / 4, "a bias like the plug-in's would go unseen"


# (g) refusals


def test_the_default_number_of_tokens_is_20_per_factor() -> None:
    assert WORLD.truth(gated(12, 4)).method == f"Monte Carlo, {20 * 51} tokens"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_tokens": 4 * 51 - 1}, "203 for 51 true factors, expected at least 204"),
        ({"n_tokens": 0}, "n_tokens is 0"),
        ({"n_tokens": -5}, "n_tokens is -5"),
        ({"stream": ""}, "stream"),
        ({"folds": 1}, "folds is 1, expected at least 2"),
        ({"folds": 0}, "folds is 0, expected at least 2"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        true_shares(WORLD, gated(12, 4), **options)  # type: ignore[arg-type]


def test_documents_that_all_fall_into_one_fold_are_refused() -> None:
    with pytest.raises(InputError, match="documents in 1 fold: pass more tokens"):
        replace(WORLD, doc_tokens=5000).truth(gated(12, 4), n_tokens=5000)


def test_too_few_tokens_outside_one_fold_are_refused() -> None:
    # two documents of 160 and 44 tokens: the second alone cannot carry the factors that fire in it
    with pytest.raises(InputError, match=r"44 training tokens .* pass more tokens"):
        true_shares(replace(WORLD, doc_tokens=160), gated(12, 4), n_tokens=4 * 51, folds=2)


@pytest.mark.parametrize(
    ("sae", "words"),
    [
        (Surgical(learned=49, introduced="function", introduced_share=0.1), "learned is 49"),
        (Surgical(learned=49), "learned is 49"),
        (3, "expected a Surgical or a function"),
        (lambda x: x.numpy(), "expected a torch tensor"),
        (lambda x: x[:, :5], "expected"),
        (lambda x: x.T, "transposed"),
        (lambda x: x / 0, "NaN, infinite"),
        (lambda x: x.log(), "NaN, infinite"),
    ],
)
def test_saes_that_do_not_fit_are_refused(sae: Sae, words: str) -> None:
    with pytest.raises(InputError, match=words):
        WORLD.truth(sae)
