"""Tilted, split and absorbed features: naive transcriptions, what they introduce, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from darkmatter.errors import InputError
from darkmatter.sandbox import Surgical, World, WorldChunk, population_shares
from darkmatter.sandbox.learned import Distorted, law_median
from darkmatter.sandbox.surgical import BoundSurgical

Matrix = npt.NDArray[np.float64]

PLAIN = World(
    n_features=30, d_model=10, dense_dim=2, l0=4.0, zipf=0.6, dense_share=0.2, topic_strength=0.0, doc_tokens=8, seed=5
)
TREES = replace(PLAIN, roots=4, branching=2, depth=2)
EXACT = 50 * 50 * np.finfo(np.float32).eps
"""Rounding of float32 sums of fewer than 50 terms, none above 50."""


def part_of(bound: BoundSurgical) -> Distorted:
    assert bound.part is not None
    return bound.part


def codes_of(chunk: WorldChunk) -> Matrix:
    return np.asarray(chunk.codes.toarray().astype(np.float64))


def test_without_distortions_nothing_changes() -> None:
    chunk = PLAIN.chunk(0)
    plain = Surgical(learned=12, shrinkage=0.2).bind(PLAIN)
    assert plain.part is None
    assert np.array_equal(plain.learned_part(chunk), chunk.sparse_part(range(12)))
    assert Surgical(learned=0, tilt=10.0, splitting=0.5, absorption=0.5).bind(PLAIN).part is None


def test_tilted_directions() -> None:
    bound = Surgical(learned=[3, 7, 11], tilt=25.0).bind(PLAIN)
    y = PLAIN.dictionary_matrix.astype(np.float64)
    decoder = part_of(bound).decoder
    cosine = (decoder * y).sum(axis=1)[[3, 7, 11]]
    np.testing.assert_allclose(cosine, math.cos(math.radians(25.0)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(decoder[[3, 7, 11]], axis=1), 1.0, atol=1e-6)
    assert not decoder[[0, 1, 29]].any()
    chunk = PLAIN.chunk(0)
    assert np.abs(bound.learned_part(chunk) - codes_of(chunk) @ decoder).max() < EXACT
    # the direction belongs to the feature and the seed, not to the learned set
    more, other = Surgical(learned=12, tilt=25.0).bind(PLAIN), Surgical(learned=12, tilt=25.0, seed=1).bind(PLAIN)
    assert np.array_equal(part_of(more).decoder[3], decoder[3])
    assert np.abs(part_of(other).decoder[3] - decoder[3]).max() > 0.05


def test_tilt_is_linear_error() -> None:
    straight, tilted = (population_shares(PLAIN, Surgical(learned=20, tilt=tilt)) for tilt in (0.0, 30.0))
    # |y − d|² = 2 − 2 cos for every learned feature, whose variance is `absent` of an SAE that has not learned it
    variance = population_shares(PLAIN, Surgical(learned=range(20, 30))).absent
    assert tilted.linear == pytest.approx((2 - 2 * math.cos(math.radians(30.0))) * variance, rel=1e-6)
    assert straight.linear == 0.0 and tilted.introduced == 0.0 and tilted.absent == straight.absent
    assert PLAIN.truth(Surgical(learned=20, tilt=30.0)).method == "closed form"


def test_split_features() -> None:
    sae = Surgical(learned=10, shrinkage=0.1, tilt=20.0, splitting=0.5, splitting_angle=35.0)
    bound = sae.bind(PLAIN)
    part = part_of(bound)
    assert part.splitting is not None
    split = np.flatnonzero(np.abs(part.splitting.offset).max(axis=1))
    assert len(split) == 5 and split.max() < 10
    tilted = part_of(replace(sae, splitting=0.0).bind(PLAIN)).decoder.astype(np.float64)
    chunk = PLAIN.chunk(0)
    codes, want = codes_of(chunk), np.zeros((len(chunk), 10))
    for i in range(10):
        if i not in split:
            want += np.outer(codes[:, i], tilted[i])
            continue
        below, above = (part.decoder[i] + sign * part.splitting.offset[i] for sign in (-1, 1))
        for direction in (below, above):
            assert direction @ tilted[i] == pytest.approx(math.cos(math.radians(35.0)), abs=1e-6)
            assert np.linalg.norm(direction) == pytest.approx(1.0, abs=1e-6)
        high = codes[:, i] >= math.log(2)  # the median of Exp(1)
        want += np.where(high[:, None], np.outer(codes[:, i], above), np.outer(codes[:, i], below))
    # the median comes from a quadrature: a token between the two medians may fall on the other side
    rows = np.abs(codes - math.log(2)).min(axis=1) > 1e-3
    assert rows.mean() > 0.98
    assert np.abs(bound.learned_part(chunk) - want)[rows].max() < EXACT
    assert np.abs(bound.recon(chunk) - 0.9 * want)[rows].max() < EXACT


@pytest.mark.parametrize(
    ("amplitude", "shape", "median"),
    [
        ("exponential", 1.0, math.log(2)),
        ("uniform", 1.0, 1.0),
        ("half-normal", 1.0, 0.6744897501960817 * math.sqrt(math.pi / 2)),
        ("lognormal", 0.7, math.exp(-(0.7**2) / 2)),
        ("gamma", 2.0, 1.6783469900166608 / 2),
    ],
)
def test_medians(amplitude: str, shape: float, median: float) -> None:
    law = replace(PLAIN, amplitude=amplitude, amplitude_shape=shape).amplitude_law
    assert law_median(law) == pytest.approx(median, rel=1e-3)


def test_splitting_introduces_what_the_amplitudes_say() -> None:
    sae = Surgical(learned=12, shrinkage=0.2, splitting=0.5, splitting_angle=50.0)
    part = part_of(sae.bind(PLAIN))
    assert part.splitting is not None
    split = np.flatnonzero(np.abs(part.splitting.offset).max(axis=1))
    # τ = w sign(a − ln 2) for Exp(1): E τ = p ln 2, E τ w = p (ln² 2 + 2 ln 2), E τ² = 2 p; what is not affine in w
    p, c = PLAIN.firing_rates[split], math.log(2)
    cross = p * (c**2 + 2 * c) - p**2 * c
    left = 2 * p - (p * c) ** 2 - cross**2 / (2 * p - p**2)
    want = 0.8**2 * math.sin(math.radians(50.0)) ** 2 * left.sum() / PLAIN.variance
    truth = PLAIN.truth(sae, n_tokens=40_000)
    assert truth.method == "Monte Carlo, 40000 tokens"
    # 2.5 times the 95 % half-width: false alarm 1.5e-3 with 5 degrees of freedom, fixed seed
    assert abs(truth.introduced.value - want) < 2.5 * (truth.introduced.high - truth.introduced.low) / 2
    assert truth.introduced.high - truth.introduced.low < 0.1 * want
    on_top = PLAIN.truth(replace(sae, introduced="independent", introduced_share=0.05), n_tokens=40_000)
    assert on_top.introduced.value == pytest.approx(want + 0.05, rel=0.05)


def _naive_absorbed(chunk: WorldChunk, decoder: Matrix, partner: npt.NDArray[np.int64], amount: Matrix) -> Matrix:
    """Feature by feature: silent where the partner fires; the partner carries amount_i of d_i per unit amplitude."""
    codes = codes_of(chunk)
    want = codes @ decoder
    for i in np.flatnonzero(partner >= 0):
        j = partner[i]
        want -= np.outer(codes[:, i] * (codes[:, j] > 0), decoder[i])
        want += np.outer(codes[:, j] * amount[i], decoder[i])
    return np.asarray(want)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_absorbed_features_without_a_hierarchy(share: float) -> None:
    world = replace(PLAIN, amplitude_last=2.0)
    learned = [20, 3, 0, 11, 7, 5, 29, 16]
    bound = Surgical(learned=learned, absorption=share, tilt=10.0).bind(world)
    part = part_of(bound)
    assert part.absorption is not None
    partner = part.absorption.partner
    absorbed = np.flatnonzero(partner >= 0)
    assert absorbed.tolist() == sorted(learned)[: round(8 * share)]  # rates fall with the index
    assert set(partner[absorbed]) <= set(learned) and (partner[absorbed] != absorbed).all()
    amount = world.firing_rates * world.amplitude_scales / world.amplitude_scales[partner]  # E w_i / E[w_j | j fires]
    chunk = world.chunk(1)
    want = _naive_absorbed(chunk, part.decoder.astype(np.float64), partner, amount)
    assert np.abs(bound.learned_part(chunk) - want).max() < 2 * EXACT
    assert np.abs(bound.learned_part(chunk.rows(7, 90)) - want[7:90]).max() < 2 * EXACT


def test_absorbed_features_in_a_hierarchy() -> None:
    bound = Surgical(learned=28, absorption=1.0).bind(TREES)
    part = part_of(bound)
    assert part.absorption is not None
    partner = part.absorption.partner
    absorbed = np.flatnonzero(partner >= 0)
    parents = np.unique(TREES.parent[:28][TREES.parent[:28] >= 0])
    assert np.array_equal(absorbed, parents) and len(absorbed) == 12
    assert (TREES.parent[partner[absorbed]] == absorbed).all()
    chunk = TREES.chunk(1)
    want = _naive_absorbed(chunk, part.decoder.astype(np.float64), partner, np.ones(30))
    assert np.abs(bound.learned_part(chunk) - want).max() < 2 * EXACT
    # the mean is kept: a parent fires whenever its child does
    few = part_of(Surgical(learned=28, absorption=0.4).bind(TREES)).absorption
    assert few is not None and (few.partner >= 0).sum() == 5
    x = np.concatenate([TREES.chunk(i, stream="mean").sparse_part(range(28)) for i in range(32)])
    recon = np.concatenate([bound.learned_part(TREES.chunk(i, stream="mean")) for i in range(32)])
    gap = (recon - x).astype(np.float64).reshape(-1, 8, 10).mean(axis=1)
    assert (np.abs(gap.mean(axis=0)) < 5 * gap.std(axis=0) / math.sqrt(len(gap))).all()  # 10 z: false alarm 6e-6


def test_absorption_introduces_what_the_firings_say() -> None:
    sae = Surgical(learned=12, absorption=0.25)
    part = part_of(sae.bind(PLAIN))
    assert part.absorption is not None
    partner = part.absorption.partner
    p, y = PLAIN.firing_rates, PLAIN.dictionary_matrix.astype(np.float64)
    # −w_i f_j = affine − μ_i ρ_j − (w_i − μ_i)(f_j − p_j), ρ_j what of f_j is not affine in w_j; Exp(1): μ = p,
    # v = 2 p − p², Cov(f, w) = p (1 − p). Terms of one partner add up before they are squared.
    rho = p * (1 - p) - (p * (1 - p)) ** 2 / (2 * p - p**2)
    want = 0.0
    for j in np.unique(partner[partner >= 0]):
        mine = np.flatnonzero(partner == j)
        want += rho[j] * float(np.square(p[mine] @ y[mine]).sum())
        want += float(((2 * p - p**2)[mine] * p[j] * (1 - p[j])).sum())
    pairs = {(i, partner[i]) for i in np.flatnonzero(partner >= 0)}
    assert not any((j, i) in pairs for i, j in pairs)  # mutual pairs would add a covariance
    want /= PLAIN.variance
    truth = PLAIN.truth(sae, n_tokens=40_000)
    assert abs(truth.introduced.value - want) < 2.5 * (truth.introduced.high - truth.introduced.low) / 2
    assert truth.introduced.high - truth.introduced.low < 0.15 * want


@pytest.mark.parametrize(
    ("world", "options", "words"),
    [
        (replace(PLAIN, d_model=1, dense_dim=1), {"tilt": 5.0}, "no direction can turn"),
        (replace(PLAIN, d_model=1, dense_dim=1), {"splitting": 0.5}, "no direction can turn"),
        (replace(PLAIN, amplitude="constant"), {"splitting": 0.5}, "all amplitudes of a feature are equal"),
        (PLAIN, {"learned": 1, "absorption": 0.5}, "absorption needs two learned features, got 1"),
        (TREES, {"learned": 4, "absorption": 0.5}, "needs a learned feature with a learned child"),
    ],
)
def test_distortions_without_room_are_refused(world: World, options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        world.truth(Surgical(**{"learned": 5, **options}))  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"splitting": 0.5}, {"absorption": 0.5}])
def test_what_bends_has_no_closed_form(options: dict[str, float]) -> None:
    sae = Surgical(learned=8, **options)  # type: ignore[arg-type]
    assert not sae.closed_form(PLAIN) and sae.bind(PLAIN).response is None
    with pytest.raises(InputError, match="no closed-form population shares"):
        population_shares(PLAIN, sae)
