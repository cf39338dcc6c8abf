"""Closed-form population values against a naive transcription, against samples, and against their own identities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from darkmatter.errors import DegenerateError, InputError
from darkmatter.sandbox import PopulationShares, Surgical, World, population_covariance, population_shares
from darkmatter.sandbox.added import affine_matrix
from darkmatter.sandbox.factor_space import FactorSpace

EPS = np.finfo(np.float64).eps
WORLD = World(
    n_features=60, d_model=12, dense_dim=3, l0=5.0, dense_share=0.2, topics=4, topic_strength=0.8, doc_tokens=16, seed=5
)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    d = draw(st.integers(1, 16))
    dictionary = draw(st.sampled_from(["random", "orthonormal"]))
    m = draw(st.integers(1, d if dictionary == "orthonormal" else 60))
    k = draw(st.integers(0, d))
    return World(
        n_features=m,
        d_model=d,
        dense_dim=k,
        l0=draw(st.floats(0.01, 1.0)) * m / 2,
        zipf=draw(st.floats(0.0, 2.0)),
        dense_share=draw(st.one_of(st.just(0.0), st.floats(1e-4, 0.9))) if k else 0.0,
        dictionary=dictionary,  # type: ignore[arg-type]
        topics=draw(st.integers(1, 5)),
        topic_strength=draw(st.floats(0.0, 1.0)),
        seed=draw(st.integers(0, 99)),
    )


@st.composite
def pairs(draw: st.DrawFn) -> tuple[World, Surgical]:
    world = draw(worlds())
    kind = draw(st.sampled_from(["none", "independent", "heteroscedastic"]))
    whole = st.integers(0, world.n_features)
    chosen = st.sets(st.integers(0, world.n_features - 1)).map(sorted)
    surgical = Surgical(
        learned=draw(st.one_of(whole, st.floats(0.01, 1.0), chosen)),
        shrinkage=draw(st.floats(0.0, 0.95)),
        introduced=kind,  # type: ignore[arg-type]
        introduced_share=0.0 if kind == "none" else draw(st.floats(0.0, 0.5)),
    )
    return world, surgical


def _naive_factor_covariance(world: World) -> np.ndarray:
    """Cov w as a dense matrix, by the law of total covariance, topic by topic."""
    law, m = world.contexts, world.n_features
    means, within = [], np.zeros((m, m))
    for t in range(world.topics):
        p = np.array([law.own[i] if law.topic[i] == t else law.other[i] for i in range(m)])
        means.append(p)  # E a = 1
        within += np.diag(2 * p - p**2) / world.topics  # E a² = 2
    return within + np.cov(np.array(means).T, bias=True).reshape(m, m)


def _naive_shares(world: World, surgical: Surgical) -> dict[str, float]:
    """Every share from dense covariances of the factors (w, g), by definition."""
    m, k = world.n_features, world.dense_dim
    y, f = world.dictionary_matrix.astype(np.float64), world.dense_map.astype(np.float64)
    cov = np.zeros((m + k, m + k))
    cov[:m, :m], cov[m:, m:] = _naive_factor_covariance(world), np.eye(k)
    whole = np.vstack([y, f])
    mask = np.zeros(m + k)
    mask[surgical.features(m)] = 1
    first = whole * mask[:, None]
    second = np.vstack([y, 0 * f]) - first
    var_x = np.trace(whole.T @ cov @ whole)
    error = whole - (1 - surgical.shrinkage) * first
    noise = surgical.introduced_share * var_x
    seen = first.T @ cov @ whole
    hidden = np.trace(first.T @ cov @ first) - np.trace(
        seen @ np.linalg.pinv(whole.T @ cov @ whole, rcond=16 * EPS, hermitian=True) @ seen.T
    )
    return {
        "var_x": var_x,
        "fvu": (np.trace(error.T @ cov @ error) + noise) / var_x,
        "absent": np.trace(second.T @ cov @ second) / var_x,
        "dense": np.square(f).sum() / var_x,
        "linear": surgical.shrinkage**2 * np.trace(first.T @ cov @ first) / var_x,
        "cross": 2 * surgical.shrinkage * np.trace(first.T @ cov @ second) / var_x,
        "interference": (1 - surgical.shrinkage) ** 2 * hidden / var_x,
    }


DEPENDENT = {
    "copula": replace(WORLD, correlation=0.5, factors=3, amplitude="uniform"),
    "trees": replace(WORLD, roots=5, branching=2, depth=2, amplitude_last=2.0),
    "exclusive": replace(WORLD, roots=5, branching=2, depth=2, siblings="exclusive", exclusion=3, dense="torus"),
    "codes": replace(WORLD, dense="codes"),
    "codes in trees": replace(WORLD, roots=5, branching=2, depth=2, dense="codes", correlation=0.2),
}
SAES = {
    "plain": Surgical(learned=25, shrinkage=0.3, introduced="independent", introduced_share=0.04),
    "tilted": Surgical(learned=25, tilt=35.0, introduced="heteroscedastic", introduced_share=0.04),
    "affine": Surgical(learned=25, introduced="affine", introduced_share=0.3),
}


@pytest.mark.parametrize("name", DEPENDENT)
@pytest.mark.parametrize("sae", SAES)
def test_shares_of_dependent_worlds_agree_with_dense_algebra(name: str, sae: str) -> None:
    world, surgical = DEPENDENT[name], SAES[sae]
    space, m = FactorSpace.of(world), world.n_features
    cov = space.apply(np.eye(m + world.dense_dim))
    assert np.allclose(cov, cov.T, rtol=0, atol=100 * EPS * np.abs(cov).max())
    assert np.allclose(space.covariance(np.eye(m + world.dense_dim)), cov, rtol=0, atol=100 * EPS * np.abs(cov).max())
    whole = np.vstack([world.dictionary_matrix, world.dense_map]).astype(np.float64)
    assert np.allclose(population_covariance(world), whole.T @ cov @ whole, rtol=0, atol=1e-12 * world.variance)
    response, bound = np.zeros_like(whole), surgical.bind(world)
    rows = np.arange(25)
    directions = whole if bound.part is None else bound.part.decoder.astype(np.float64)
    response[rows] = (1 - surgical.shrinkage) * directions[rows]
    if sae == "affine":
        matrix = affine_matrix(world.d_model, 0).astype(np.float64)
        spread = np.trace(matrix.T @ whole.T @ cov @ whole @ matrix)
        response += np.sqrt(0.3 * world.variance / spread) * whole @ matrix
    got, miss, share = population_shares(world, surgical), whole - response, 0.0 if sae == "affine" else 0.04
    var_x = np.trace(whole.T @ cov @ whole)
    hidden = response.T @ cov @ response - (response.T @ cov @ whole) @ np.linalg.solve(
        whole.T @ cov @ whole, whole.T @ cov @ response
    )
    masks = {"linear": rows, "absent": np.arange(25, m), "dense": np.arange(m, m + world.dense_dim)}
    parts = {key: np.trace(miss[i].T @ cov[np.ix_(i, i)] @ miss[i]) / var_x for key, i in masks.items()}
    # float64 sums of (m + k)² terms; the covariance of x is conditioned better than 1e4
    for key, value in parts.items():
        assert getattr(got, key) == pytest.approx(value, rel=1e-9, abs=1e-14), key
    assert got.fvu == pytest.approx(np.trace(miss.T @ cov @ miss) / var_x + share, rel=1e-9)
    assert got.interference == pytest.approx(np.trace(hidden) / var_x, rel=1e-8)
    if name != "copula" or sae == "affine":
        assert abs(got.cross) > 1e-4  # dependence matters here


@pytest.mark.parametrize("name", DEPENDENT)
def test_sampled_covariance_of_dependent_worlds(name: str) -> None:
    world = DEPENDENT[name]
    x = np.concatenate([world.chunk(i).x for i in range(12)]).astype(np.float64).reshape(-1, 16, 12)
    centred = x - world.mean
    products = np.einsum("gti,gtj->gij", centred, centred) / 16
    assert _worst_z(x.mean(axis=1), world.mean) < 5.5
    assert _worst_z(products, population_covariance(world)) < 5.5
    independent = replace(
        world, topic_strength=0.0, correlation=0.0, roots=0, depth=0, siblings="independent", exclusion=1
    )
    assert _worst_z(products, population_covariance(independent)) > 5.5


def _well_conditioned(world: World) -> bool:
    """Whether every direction that x uses stands clear of rounding, which an oracle cannot tell from variance."""
    n_directions = min(world.d_model, world.n_features + world.dense_dim * (world.dense_share > 0))
    used = np.linalg.eigvalsh(population_covariance(world))[-n_directions:]
    return bool(used[0] > 1e-9 * used[-1])


@given(pairs())
def test_shares_agree_with_their_definitions(pair: tuple[World, Surgical]) -> None:
    world, surgical = pair
    assume(_well_conditioned(world))
    got, want = population_shares(world, surgical), _naive_shares(world, surgical)
    # sums of at most (m + k)² ≈ 6,000 products of the size of Var x, in another order
    bound = 6000 * EPS
    assert abs(world.variance / want["var_x"] - 1) < bound
    for name in ("fvu", "absent", "dense", "linear", "cross"):
        assert abs(getattr(got, name) - want[name]) < bound, name
    # the naive subtraction loses what the spectrum spans: a direction of relative variance v is known to eps / v,
    # and weighs v, so both ways of cutting off at d · eps disagree by at most about (m + k) · d · eps in all
    assert abs(got.interference - want["interference"]) < 100 * 16 * 76 * EPS


@given(pairs())
def test_identities_of_the_shares(pair: tuple[World, Surgical]) -> None:
    world, surgical = pair
    s = population_shares(world, surgical)
    assert s.fvu == s.introduced + s.absent + s.dense + s.linear + s.cross
    assert s.fvu_nonlinear == s.introduced + s.interference
    assert s.introduced == surgical.introduced_share
    assert min(s.introduced, s.absent, s.dense, s.linear, s.interference) >= 0.0
    assert s.interference <= (1 - surgical.shrinkage) ** 2 * (1 + 1e-12) * _variance_of_learned(world, surgical)
    assert s.fvu_nonlinear <= s.fvu * (1 + 1e-9) + 1e-12  # the best predictor never does worse than the mean


@st.composite
def any_pairs(draw: st.DrawFn) -> tuple[World, Surgical]:
    world = draw(worlds())
    if world.dense_share > 0.0:
        fits = {"circles": 2, "torus": 3, "swiss-roll": 3}
        kinds = ["gaussian", "student", "codes", *(kind for kind, by in fits.items() if world.dense_dim % by == 0)]
        world = replace(world, dense=draw(st.sampled_from(kinds)))
    world = replace(
        world,
        correlation=draw(st.sampled_from([0.0, 0.3])),
        amplitude=draw(st.sampled_from(["exponential", "constant", "uniform", "half-normal"])),
        amplitude_last=draw(st.floats(0.1, 3.0)),
    )
    surgical = Surgical(
        learned=draw(st.one_of(st.integers(0, world.n_features), st.floats(0.01, 1.0))),
        shrinkage=draw(st.floats(0.0, 0.95)),
        tilt=draw(st.floats(0.0, 90.0)) if world.d_model > 1 else 0.0,
        introduced=draw(st.sampled_from(["independent", "heteroscedastic", "dense", "interference", "affine"])),
        introduced_share=draw(st.floats(1e-4, 0.5)),
        seed=draw(st.integers(0, 9)),
    )
    assume(surgical.closed_form(world))
    return world, surgical


@given(any_pairs())
def test_any_closed_form_adds_up(pair: tuple[World, Surgical]) -> None:
    world, surgical = pair
    assume(_well_conditioned(world))
    try:
        s = population_shares(world, surgical)
    except InputError as error:  # nothing to misread, or nothing dense: said in one line
        assert "introduced='" in str(error) and "\n" not in str(error)
        return
    assert min(s.introduced, s.absent, s.dense, s.linear, s.interference) >= 0.0
    assert s.fvu_nonlinear <= s.fvu * (1 + 1e-9) + 1e-12  # the best predictor never does worse than the mean
    assert s.introduced == (0.0 if surgical.introduced == "affine" else surgical.introduced_share)
    chunk = world.chunk(0).rows(0, 64)
    assert np.isfinite(surgical.bind(world).recon(chunk)).all()


def _variance_of_learned(world: World, surgical: Surgical) -> float:
    shrunk = Surgical(learned=surgical.features(world.n_features), shrinkage=0.5)
    return 4 * population_shares(world, shrunk).linear


@given(pairs())
def test_without_superposition_there_is_no_interference(pair: tuple[World, Surgical]) -> None:
    world, surgical = pair
    if world.n_features + world.dense_dim > world.d_model:
        world = World.from_dict({**world.to_dict(), "d_model": world.n_features + world.dense_dim})
    assume(_well_conditioned(world))
    # at most d directions lie under the cut-off d · eps of the largest variance
    assert population_shares(world, surgical).interference <= 10 * world.d_model**2 * EPS


def test_superposition_makes_interference() -> None:
    assert population_shares(WORLD, Surgical(learned=0.5)).interference > 0.05


def _worst_z(values: np.ndarray, want: np.ndarray) -> float:
    """Largest |z| of document means against their expectation; documents are independent of each other."""
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return float(np.abs((values.mean(axis=0) - want) / error).max())


def test_sampled_moments_agree_with_the_population() -> None:
    x = np.concatenate([WORLD.chunk(i).x for i in range(12)]).astype(np.float64).reshape(-1, 16, 12)
    mean, covariance = WORLD.mean, population_covariance(WORLD)
    assert abs(np.trace(covariance) / WORLD.variance - 1) < 1e-12
    # 3,072 documents, 12 means and 78 distinct products about the *known* mean, |z| < 5.5: false alarm 3e-6
    centred = x - mean
    products = np.einsum("gti,gtj->gij", centred, centred) / 16
    assert _worst_z(x.mean(axis=1), mean) < 5.5
    assert _worst_z(products, covariance) < 5.5
    # the same check sees it when the topics are forgotten
    forgotten = population_covariance(replace(WORLD, topic_strength=0.0))
    assert _worst_z(products, forgotten) > 5.5


def test_factor_moments_agree_with_samples() -> None:
    moments = WORLD.factor_moments
    assert np.allclose(moments.apply(np.eye(60)), _naive_factor_covariance(WORLD), rtol=0, atol=100 * EPS)
    codes = np.concatenate([WORLD.chunk(i).codes.toarray() for i in range(12)]).astype(np.float64)
    by_document = codes.reshape(-1, 16, 60).mean(axis=1)
    frequent = WORLD.firing_rates > 0.03  # ≥ 1,400 firings each, so that the mean is near normal
    assert frequent.sum() > 20
    assert _worst_z(by_document[:, frequent], moments.mean[frequent]) < 5.5  # at most 60 means: false alarm 2e-6


def test_no_closed_form_for_a_function_of_x() -> None:
    with pytest.raises(InputError, match="has no closed-form population shares"):
        population_shares(WORLD, Surgical(learned=5, introduced="function", introduced_share=0.1))


def test_a_sae_that_does_not_fit_the_world_is_refused() -> None:
    with pytest.raises(InputError, match="learned is 61, expected at most the world's 60"):
        population_shares(WORLD, Surgical(learned=61))


def test_r2_error_of_extreme_saes() -> None:
    dead = population_shares(WORLD, Surgical(learned=0))
    assert dead.fvu == pytest.approx(1.0, abs=1e-12) and dead.fvu_nonlinear == 0.0 and dead.r2_error == 1.0
    sparse = World(n_features=60, d_model=12, dense_dim=0, dense_share=0.0, l0=5.0)
    perfect = population_shares(sparse, Surgical(learned=1.0))
    assert perfect.fvu == 0.0
    with pytest.raises(DegenerateError, match="reconstructs x exactly") as caught:
        _ = perfect.r2_error
    assert caught.value.evidence == {"fvu": 0.0}
    made = PopulationShares(introduced=0.1, absent=0.2, dense=0.1, linear=0.0, cross=0.0, interference=0.1)
    assert made.r2_error == pytest.approx(0.5)
