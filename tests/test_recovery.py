"""Recovery of a world's features: planted SAEs with known answers, and a naive dense computation as oracle."""

from __future__ import annotations

import json
import math
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from darkmatter.errors import InputError
from darkmatter.inference import Estimate
from darkmatter.sae import SAE, TrainConfig, TrainedSAE, train_sae
from darkmatter.sandbox import World
from darkmatter.sandbox.matching import match_latents
from darkmatter.sandbox.recovery import Recovery, fvu_curve, recover
from darkmatter.sandbox.recovery_result import DEFINITION, KINDS

Doubles = npt.NDArray[np.float64]

CLEAN = World(
    n_features=24, d_model=24, dense_dim=0, dense_share=0.0, l0=3.0, dictionary="orthonormal", doc_tokens=16, topics=4
)
"""Orthonormal features and nothing else: y_i·x is w_i up to rounding."""
MIXED = World(n_features=40, d_model=16, dense_dim=2, l0=3.0, doc_tokens=16, topics=4)
FLOOR = 1e-3
"""Threshold above rounding (1e-6); an Exp(1) amplitude is below it once in 1000."""


def planted(
    rows: Doubles, *, encoder: Doubles | None = None, bias: float = 0.0, threshold: float | Doubles = FLOOR
) -> SAE:
    """A JumpReLU SAE that reads `encoder` rows and writes `rows`."""
    encoder = rows if encoder is None else encoder
    return SAE(
        W_enc=torch.from_numpy(encoder.T.astype(np.float32).copy()),
        b_enc=torch.full((len(rows),), bias),
        W_dec=torch.from_numpy(rows.astype(np.float32)),
        b_dec=torch.zeros(rows.shape[1]),
        activation="jumprelu",
        threshold=torch.from_numpy(np.broadcast_to(np.float32(threshold), (len(rows),)).copy()),
    )


def dictionary(world: World) -> Doubles:
    return world.dictionary_matrix.astype(np.float64)


def random_sae(world: World, *, d_sae: int = 50, seed: int = 0) -> SAE:
    rng = np.random.default_rng(seed)
    rows = dictionary(world)[rng.integers(0, world.n_features, d_sae)]
    rows = rows + 0.15 * rng.standard_normal(rows.shape)
    return planted(rows, threshold=rng.uniform(0.2, 1.0, d_sae))


def dense_codes(world: World, sae: SAE, n: int) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    """Amplitudes (n, m), latents (n, s), activations and reconstructions (n, d), all in memory."""
    chunks = [world.chunk(i, stream="recovery") for i in range(-(-n // world.chunk_tokens))]
    a = np.concatenate([chunk.codes.toarray() for chunk in chunks])[:n].astype(np.float64)
    x = np.concatenate([chunk.x for chunk in chunks])[:n]
    codes = sae.encode(torch.from_numpy(x))
    return a, codes.dense().double().numpy(), x.astype(np.float64), sae.decode(codes).double().numpy()


def exactly(estimate: Estimate, value: float, *, tolerance: float = 1e-9) -> bool:
    return abs(estimate.value - value) <= tolerance and estimate.low <= estimate.value <= estimate.high


def test_the_true_dictionary_is_perfect() -> None:
    result = recover(CLEAN, planted(dictionary(CLEAN)), n_tokens=8000)
    assert result.mcc == pytest.approx(1.0, abs=1e-12)
    assert result.weighted_mcc == pytest.approx(1.0, abs=1e-12)
    assert (result.recovered_share, result.dead_share.value, result.matched_share.value) == (1.0, 0.0, 1.0)
    assert np.array_equal(result.features.latent, np.arange(24))
    assert result.precision == Estimate(1.0, 1.0, 1.0)
    # 24,000 firings, each below the floor with probability 1e-3: 24 expected, above 60 with probability < 1e-9
    assert 1 - 60 / 24000 < result.recall.value < 1
    assert result.recall.contains(math.exp(-FLOOR))
    assert abs(result.shrinkage.value) < 1e-5
    assert result.fvu.value < 1e-5
    assert result.absorption.value == 0.0
    assert np.nanmin(result.features.correlation) > 1 - 1e-5
    assert result.l0.value == pytest.approx(3.0, abs=0.3)
    assert result.density.value == pytest.approx(result.l0.value / 24)
    assert result.world_l0 == pytest.approx(3.0)
    assert (result.n_tokens, result.n_groups, result.n_features, result.d_sae) == (8000, 500, 24, 24)


@given(order=st.permutations(range(50)))
def test_the_order_of_the_latents_changes_nothing(order: list[int]) -> None:
    sae = random_sae(MIXED)
    index = torch.tensor(order)
    assert sae.threshold is not None
    moved = SAE(
        W_enc=sae.W_enc[:, index],
        b_enc=sae.b_enc[index],
        W_dec=sae.W_dec[index],
        b_dec=sae.b_dec,
        activation="jumprelu",
        threshold=sae.threshold[index],
    )
    first, second = (recover(MIXED, each, n_tokens=600, folds=4) for each in (sae, moved))
    assert np.array_equal(index.numpy()[second.features.latent], first.features.latent)
    assert np.array_equal(second.latents.kind, first.latents.kind[index.numpy()])
    for name, value in first.summary().items():
        # sums of up to 600 · 50 terms in another order, and float32 reconstructions
        assert second.summary()[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("seed", range(3))
def test_everything_equals_a_naive_dense_computation(seed: int) -> None:
    n, sae = 1500, random_sae(MIXED, seed=seed)
    result = recover(MIXED, sae, n_tokens=n)
    a, latents, x, recon = dense_codes(MIXED, sae, n)
    Y, W = dictionary(MIXED), sae.W_dec.double().numpy()
    cosine = Y @ W.T / np.linalg.norm(Y, axis=1)[:, None] / np.linalg.norm(W, axis=1)
    pair = result.features.latent
    b = latents[:, pair]
    on, latent_on = a > 0, b > 0
    tp, fp, fn = (on & latent_on).sum(axis=0), (~on & latent_on).sum(axis=0), (on & ~latent_on).sum(axis=0)
    assert fp.sum() > 100
    assert fn.sum() > 100
    assert exactly(result.precision, tp.sum() / (tp + fp).sum())
    assert exactly(result.recall, tp.sum() / (tp + fn).sum())
    assert exactly(result.f1, 2 * tp.sum() / (2 * tp + fp + fn).sum())
    with np.errstate(invalid="ignore"):
        precision, recall, f1 = tp / (tp + fp), tp / (tp + fn), 2 * tp / (2 * tp + fp + fn)
    np.testing.assert_allclose(result.features.precision, precision, rtol=1e-12)
    np.testing.assert_allclose(result.features.recall, recall, rtol=1e-12)
    np.testing.assert_allclose(result.features.f1, f1, rtol=1e-12)
    assert exactly(result.macro_precision, float(np.nanmean(precision)))
    assert exactly(result.macro_recall, float(np.nanmean(recall)))
    assert exactly(result.macro_f1, float(np.nanmean(f1)))

    absorbed = np.zeros(40)
    for i in range(40):
        others = [j for j in range(50) if j != pair[i] and cosine[i, j] > result.near_cosine]
        absorbed[i] = (on[:, i] & ~latent_on[:, i] & (latents[:, others] > 0).any(axis=1)).sum()
    assert absorbed.sum() > 20
    assert exactly(result.absorption, absorbed.sum() / on.sum())
    np.testing.assert_allclose(result.features.absorption, absorbed / np.where(on.any(axis=0), on.sum(axis=0), np.nan))

    response = (W[pair] * Y).sum(axis=1)
    seen = np.flatnonzero(on.any(axis=0) & latent_on.any(axis=0))
    for i in seen:
        covariance = np.cov(a[:, i], b[:, i] * response[i])
        assert result.features.gain[i] == pytest.approx(covariance[0, 1] / covariance[0, 0], rel=1e-5, abs=1e-6)
        correlation = np.corrcoef(a[:, i], b[:, i])[0, 1]
        assert result.features.correlation[i] == pytest.approx(correlation, rel=1e-9, abs=1e-9)
    good = np.abs(cosine[np.arange(40), pair]) >= result.match_cosine
    assert 0 < good.sum() < 40
    centred, contribution = a - a.mean(axis=0), (b - b.mean(axis=0)) * response
    slope = (centred * contribution)[:, good].sum() / (centred**2)[:, good].sum()
    assert exactly(result.shrinkage, 1 - slope, tolerance=1e-5)

    error = x - recon
    fvu = ((error - error.mean(axis=0)) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
    assert exactly(result.fvu, fvu, tolerance=1e-5 * fvu)
    assert exactly(result.l0, (latents > 0).sum() / n)
    np.testing.assert_allclose(result.latents.rate, (latents > 0).mean(axis=0))
    np.testing.assert_allclose(result.features.measured_rate, on.mean(axis=0))
    np.testing.assert_allclose(result.features.latent_rate, latent_on.mean(axis=0))
    np.testing.assert_allclose(result.features.rate, MIXED.firing_rates)
    np.testing.assert_allclose(result.features.cosine, cosine[np.arange(40), pair], atol=1e-6)
    np.testing.assert_allclose(result.features.best_cosine, np.abs(cosine).max(axis=1), atol=1e-6)
    np.testing.assert_allclose(result.latents.best_cosine, np.abs(cosine).max(axis=0), atol=1e-6)
    weight = MIXED.firing_rates / MIXED.firing_rates.sum()
    matched = np.abs(cosine[np.arange(40), pair])
    assert result.mcc == pytest.approx(matched.mean(), abs=1e-6)
    assert result.weighted_mcc == pytest.approx(matched @ weight, abs=1e-6)
    assert result.recovered_share == good.mean()


def test_half_the_features_missing() -> None:
    half = np.arange(0, 24, 2)
    result = recover(CLEAN, planted(dictionary(CLEAN)[half]), n_tokens=8000)
    assert result.mcc == pytest.approx(1.0, abs=1e-12)
    assert result.recovered_share == 0.5
    rates = CLEAN.firing_rates
    assert result.weighted_mcc == pytest.approx(rates[half].sum() / rates.sum(), abs=1e-12)
    missing = np.setdiff1d(np.arange(24), half)
    assert (result.features.latent[missing] == -1).all()
    for name in ("cosine", "precision", "recall", "f1", "absorption", "latent_rate", "gain", "correlation"):
        column = getattr(result.features, name)
        assert np.isnan(column[missing]).all(), name
        assert np.isfinite(column[half]).all(), name
    assert result.precision.value == 1.0
    assert result.recall.value > 0.99
    assert result.best_cosine == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("gain", [0.5, 0.8, 1.3])
def test_known_shrinkage(gain: float) -> None:
    Y = dictionary(CLEAN)
    result = recover(CLEAN, planted(gain * Y, encoder=Y), n_tokens=4000)
    assert result.shrinkage.value == pytest.approx(1 - gain, abs=1e-5)
    assert result.shrinkage.high - result.shrinkage.low < 1e-4
    fired = result.features.measured_rate > 0
    np.testing.assert_allclose(result.features.gain[fired], gain, atol=1e-3)
    assert result.mcc == pytest.approx(1.0, abs=1e-12)
    assert result.fvu.value == pytest.approx((1 - gain) ** 2, abs=1e-5)


def test_a_split_feature_shows_as_a_duplicate_latent() -> None:
    # latent 0 stands for feature 0 above 1 only; latent 24 is a little off and covers the rest: P(w < 1) = 1 − 1/e
    Y = dictionary(CLEAN)
    rows = np.vstack([Y, 0.95 * Y[0] + math.sqrt(1 - 0.95**2) * Y[1]])
    threshold = np.full(25, FLOOR)
    threshold[0] = 1.0
    result = recover(CLEAN, planted(rows, encoder=np.vstack([Y, Y[0]]), threshold=threshold), n_tokens=16000)
    assert result.features.latent[0] == 0
    assert [KINDS[kind] for kind in result.latents.kind] == ["matched"] * 24 + ["duplicate"]
    assert result.duplicate_share.value == 1 / 25
    fired = result.features.measured_rate[0] * 16000
    bound = stats.norm.isf(5e-7) * math.sqrt(0.25 / fired)  # false alarm 1e-6
    assert result.features.recall[0] == pytest.approx(math.exp(-1), abs=bound)
    assert result.features.absorption[0] == pytest.approx(math.exp(-FLOOR) - math.exp(-1), abs=bound)
    assert (result.features.absorption[1:] == 0).all()


def test_planted_absorption() -> None:
    # latent 0 is silenced whenever feature 5 is active, and latent 5 writes both directions: cosine 1/√2 with each
    Y = dictionary(CLEAN)
    rows, encoder = Y.copy(), Y.copy()
    rows[5] = (Y[0] + Y[5]) / math.sqrt(2)
    encoder[0] = Y[0] - 1e4 * Y[5]
    sae = planted(rows, encoder=encoder)
    n = 8000
    result = recover(CLEAN, sae, n_tokens=n)
    a, latents, _, _ = dense_codes(CLEAN, sae, n)
    taken = (a[:, 0] > 0) & (latents[:, 0] <= 0) & (latents[:, 5] > 0)
    assert taken.sum() > 100
    assert result.features.absorption[0] == pytest.approx(taken.sum() / (a[:, 0] > 0).sum())
    assert result.absorption.value == pytest.approx(taken.sum() / (a > 0).sum())
    assert 0 < result.absorption.low < result.absorption.value < result.absorption.high
    assert KINDS[result.latents.kind[5]] == "false"  # it is neither feature: its cosine is below match_cosine
    stricter = recover(CLEAN, sae, n_tokens=n, near_cosine=0.75, match_cosine=0.7)
    assert stricter.absorption.value == 0.0
    assert KINDS[stricter.latents.kind[5]] == "matched"


def test_dead_and_false_latents() -> None:
    Y = dictionary(CLEAN)
    junk = (Y[:4] + Y[4:8] + Y[8:12] + Y[12:16]) / 2
    threshold = np.full(28, FLOOR)
    threshold[[3, 7]] = 1e6
    result = recover(CLEAN, planted(np.vstack([Y, junk]), threshold=threshold), n_tokens=4000)
    kinds = [KINDS[kind] for kind in result.latents.kind]
    assert kinds == ["dead" if i in {3, 7} else "matched" for i in range(24)] + ["false"] * 4
    assert (result.dead_share.value, result.false_share.value) == (2 / 28, 4 / 28)
    assert result.dead_share.low == result.dead_share.high  # every other latent fires in every fold
    assert (result.features.recall[[3, 7]] == 0).all()
    assert np.isnan(result.features.precision[[3, 7]]).all()
    assert (result.features.f1[[3, 7]] == 0).all()
    assert result.mcc == pytest.approx(1.0, abs=1e-12)
    shares = (result.dead_share, result.matched_share, result.duplicate_share, result.false_share)
    assert sum(share.value for share in shares) == pytest.approx(1.0)


def test_the_interval_of_the_dead_share_sees_latents_that_fire_in_one_fold_only() -> None:
    Y = dictionary(CLEAN)
    result = recover(CLEAN, planted(Y, threshold=6.0), n_tokens=2000)  # an amplitude is above 6 once in 403
    assert 0 < result.dead_share.value < 1
    assert result.dead_share.low < result.dead_share.value < result.dead_share.high


def test_a_dead_sae() -> None:
    sae = planted(np.zeros((10, 24)))
    result = recover(CLEAN, sae, n_tokens=1000)
    assert (result.mcc, result.best_cosine, result.dead_share.value, result.recall.value) == (0.0, 0.0, 1.0, 0.0)
    assert result.fvu.value == pytest.approx(1.0)
    assert math.isnan(result.precision.value)
    assert math.isnan(result.shrinkage.value)
    assert result.summary()["precision"] is None


def test_a_topk_sae_counts_only_what_is_above_zero() -> None:
    Y = dictionary(CLEAN)
    plain = planted(Y)
    sae = SAE(
        W_enc=plain.W_enc, b_enc=plain.b_enc - 0.01, W_dec=plain.W_dec, b_dec=plain.b_dec, activation="topk", k=12
    )
    result = recover(CLEAN, sae, n_tokens=2000)
    assert result.precision.value == 1.0
    assert result.recall.value > 0.97
    assert result.l0.value == pytest.approx(3.0, abs=0.5)


@given(m=st.integers(1, 6), s=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_the_matching_is_the_best_of_all(m: int, s: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    Y, W = (rng.standard_normal((rows, 3)).astype(np.float32) for rows in (m, s))
    cosine = Y @ W.T / np.linalg.norm(Y, axis=1)[:, None] / np.linalg.norm(W, axis=1)
    found = match_latents(Y, W, near=0.3)
    matched = np.flatnonzero(found.latent >= 0)
    assert len(matched) == len(set(found.latent[matched])) == min(m, s)
    table = np.abs(cosine if m <= s else cosine.T)
    best = max(table[np.arange(len(table)), list(order)].sum() for order in permutations(range(max(m, s)), min(m, s)))
    assert np.abs(found.cosine[matched]).sum() == pytest.approx(best, abs=1e-5)
    np.testing.assert_allclose(found.cosine[matched], cosine[matched, found.latent[matched]], atol=1e-5)
    assert np.isnan(found.cosine[found.latent < 0]).all()
    assert (found.latent[found.feature[found.feature >= 0]] == np.flatnonzero(found.feature >= 0)).all()
    near = (cosine > 0.3).T.astype(float)
    near[found.latent[matched], matched] = 0
    assert np.array_equal(found.near.toarray(), near)


def test_a_negated_decoder_row_matches_by_its_absolute_cosine() -> None:
    Y = dictionary(CLEAN).astype(np.float32)
    found = match_latents(Y, -Y, near=0.5)
    assert np.array_equal(found.latent, np.arange(24))
    np.testing.assert_allclose(found.cosine, -1.0)
    assert found.near.nnz == 0


def test_intervals_cover() -> None:
    """Recall of a threshold t on Exp(1) amplitudes is exp(−t) for every feature, whatever the topics do."""
    runs, truth = 300, math.exp(-0.5)
    sae = planted(dictionary(CLEAN), threshold=0.5)
    results = [recover(CLEAN, sae, n_tokens=640, stream=f"run {i}") for i in range(runs)]
    low, high = (stats.binom.ppf(q, runs, 0.95) for q in (1e-6, 1 - 1e-6))  # 264 and 299 of 300; false alarm 1e-6 each
    for name, true in {"recall": truth, "macro_recall": truth, "l0": 3 * truth, "density": 3 * truth / 24}.items():
        hits = sum(getattr(result, name).contains(true) for result in results)
        assert low <= hits <= high, (name, hits)
    halved = sum(abs(r.recall.value - truth) <= (r.recall.high - r.recall.value) / 2 for r in results)
    assert halved < low  # the check can fail


def test_n_tokens_is_met_and_progress_reported() -> None:
    seen: list[int] = []
    result = recover(CLEAN, planted(dictionary(CLEAN)), n_tokens=5000, progress=seen.append)
    assert seen == [4096, 904]
    assert result.n_tokens == sum(seen)
    assert result.n_folds == 20
    again = recover(CLEAN, planted(dictionary(CLEAN)), n_tokens=5000)
    assert again.to_dict() == result.to_dict()
    other = recover(CLEAN, planted(dictionary(CLEAN)), n_tokens=5000, stream="other")
    assert other.recall != result.recall


def test_the_record_is_plain_read_only_and_says_what_it_means() -> None:
    result = recover(MIXED, random_sae(MIXED, d_sae=30), n_tokens=1000)
    plain: dict[str, Any] = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (plain["format"], plain["version"], plain["definition"]) == ("darkmatter.recovery", 1, DEFINITION)
    assert {len(column) for column in plain["features"].values()} == {40}
    assert {len(column) for column in plain["latents"].values()} == {30}
    assert plain["features"]["latent"].count(-1) == 10
    assert plain["features"]["cosine"].count(None) == 10
    assert set(plain["latents"]["kind"]) <= set(KINDS)
    assert plain["recall"] == {
        "value": result.recall.value,
        "low": result.recall.low,
        "high": result.recall.high,
    }
    summary = result.summary()
    assert summary["recall_low"] == result.recall.low
    assert (summary["mcc"], summary["d_sae"]) == (result.mcc, 30)
    assert all(value is None or isinstance(value, int | float) for value in summary.values())
    assert set(result.estimates()) == {name.removesuffix("_low") for name in summary if name.endswith("_low")}
    for name in (*result.estimates(), "mcc", "weighted_mcc", "best_cosine", "recovered_share"):
        assert name in DEFINITION or name.startswith("macro_"), name
    for column in (result.features.recall, result.latents.rate):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 0
    with pytest.raises(AttributeError):
        result.mcc = 0.5  # type: ignore[misc]


def test_what_cannot_be_compared_is_refused() -> None:
    sae = planted(dictionary(CLEAN))
    with pytest.raises(InputError, match=r"sae is a function, expected a darkmatter\.sae\.SAE"):
        recover(CLEAN, lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="d_model = 24, expected the world's 16"):
        recover(MIXED, sae)
    with pytest.raises(InputError, match="n_tokens is 0"):
        recover(CLEAN, sae, n_tokens=0)
    with pytest.raises(InputError, match="folds is 1"):
        recover(CLEAN, sae, folds=1)
    with pytest.raises(InputError, match="match_cosine is 2"):
        recover(CLEAN, sae, match_cosine=2.0)
    with pytest.raises(InputError, match="near_cosine is -1"):
        recover(CLEAN, sae, near_cosine=-1.0)
    with pytest.raises(InputError, match="stream is ''"):
        recover(CLEAN, sae, stream="")
    with pytest.raises(InputError, match=r"the 16 tokens lie in 1 document\(s\) of one fold: pass more tokens"):
        recover(CLEAN, sae, n_tokens=16)
    broken = SAE(W_enc=sae.W_enc * 1e30, b_enc=sae.b_enc, W_dec=sae.W_dec * 1e30, b_dec=sae.b_dec)
    with pytest.raises(InputError, match=r"Sae\(x\) has .* NaN, infinite"):
        recover(CLEAN, broken, n_tokens=100)


def test_training_histories_join_into_one_table() -> None:
    config = TrainConfig(d_sae=24, k=3, n_tokens=4096, batch_size=256, report_every=4)
    runs = {name: train_sae(CLEAN.activations(4096, stream=name), config) for name in ("first", "second")}
    table = fvu_curve(runs)
    assert table["sae"] == ["first"] * 4 + ["second"] * 4
    assert table["n_tokens"] == [1024, 2048, 3072, 4096] * 2
    assert table["fvu"] == [fvu for run in runs.values() for _, fvu in run.history]
    assert fvu_curve({}) == {"sae": [], "n_tokens": [], "fvu": []}
    assert isinstance(recover(CLEAN, runs["first"].sae, n_tokens=1000), Recovery)
    assert all(isinstance(run, TrainedSAE) for run in runs.values())
