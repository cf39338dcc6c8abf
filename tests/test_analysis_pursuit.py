"""Pursuit: sparse coding in batches against naive loops, laws, recovery of a planted encoder error, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from darkmatter import InputError, Surgical, World, decompose_many
from darkmatter.analyses.controls import with_controls
from darkmatter.analyses.pursuit import Pursuit, Shares, TokensOnly, pursue
from darkmatter.analyses.pursuit.dictionary import Dictionary
from darkmatter.analyses.pursuit.infer import Inference
from darkmatter.analyses.pursuit.shortlist import leaders
from darkmatter.results import to_plain
from darkmatter.sae import SAE, save_sae
from darkmatter.sae.input_norm import normalise
from darkmatter.sandbox.experiment import Experiment
from darkmatter.stream import accumulate
from tests.analyses import analyse, fewest_hits, model_options, small_world
from tests.cli_models import good, refused
from tests.helpers import ListSource, tiny_world

Matrix = npt.NDArray[np.float64]
STEPS = 5
ALL = ("refit", "gp", "omp")


def _sae(d: int, latents: int, *, seed: int = 0, activation: str = "topk", dtype: torch.dtype = torch.float64) -> SAE:
    """Rows of many lengths, some twice, one of zeros; an encoder that is not much good."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(latents, d, generator=generator, dtype=dtype)
    rows *= torch.rand(latents, 1, generator=generator, dtype=dtype) + 0.3
    rows[1] = 2.5 * rows[0]
    rows[2] = 0.0
    noise = torch.randn(d, latents, generator=generator, dtype=dtype)
    more: dict[str, Any] = {"k": STEPS} if activation == "topk" else {}
    if activation == "jumprelu":
        more["threshold"] = torch.full((latents,), 1.4, dtype=dtype)
    if activation == "gated":
        more = {name: torch.zeros(latents, dtype=dtype) for name in ("b_mag", "r_mag")}
        more["b_gate"] = torch.full((latents,), -1.2, dtype=dtype)
    return SAE(
        W_enc=rows.T / rows.square().sum(dim=1).clamp_min(0.1) + 0.1 * noise,
        b_enc=torch.full((latents,), 0.05, dtype=dtype),
        W_dec=rows,
        b_dec=0.2 * torch.randn(d, generator=generator, dtype=dtype),
        activation=activation,  # type: ignore[arg-type]
        **more,
    )


def _tokens(n: int, d: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 1.5 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _infer(sae: SAE, *, gram_bytes: int = 2**30, **options: Any) -> Inference:
    return Inference(sae, Dictionary.of(sae, gram_bytes=gram_bytes), **options)


def _unit(rows: Matrix) -> Matrix:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def naive_omp(rows: Matrix, y: Matrix, steps: int) -> Matrix:
    chosen: list[int] = []
    left = y
    for _ in range(steps):
        scores = rows @ left
        scores[chosen] = -np.inf
        if scores.max() <= 1e-9:
            break
        chosen.append(int(scores.argmax()))
        left = y - nnls(rows[chosen].T, y)[0] @ rows[chosen]
    return y - left


def naive_gp(rows: Matrix, y: Matrix, steps: int) -> Matrix:
    code, chosen = np.zeros(len(rows)), np.zeros(len(rows), dtype=bool)
    for _ in range(steps):
        scores = rows @ (y - code @ rows)
        best = int(np.where(chosen, -np.inf, scores).argmax())
        chosen[best] |= scores[best] > 1e-9
        gradient = np.where(chosen & ((code > 0) | (scores > 0)), scores, 0.0)
        image = gradient @ rows
        if image @ image == 0:
            break
        goal = code + (gradient @ gradient) / (image @ image) * gradient
        if (goal < 0).any():
            way = goal.clip(0) - code
            image = way @ rows
            goal = code + min(1.0, (way @ scores) / (image @ image)) * way
        code = goal.clip(0)
    return code @ rows


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu", "gated"])
@pytest.mark.parametrize("norm", [None, "layer_norm", "constant_norm"])
def test_codes_are_those_of_naive_loops(activation: str, norm: Any) -> None:
    sae = replace(_sae(10, 30, activation=activation), input_norm=norm)
    x = _tokens(40, 10)
    found = _infer(sae)(x)
    scaled, scale, shift = (x, torch.ones(40, 1), torch.zeros(40, 1)) if norm is None else normalise(x, norm)
    rows, bias = _unit(sae.W_dec.numpy()), sae.b_dec.numpy()
    codes = sae.encode(x).dense().numpy()
    for i in range(len(x)):
        y = scaled[i].numpy() - bias
        active = np.flatnonzero(codes[i] > 0)
        solved = nnls(rows[active].T, y)[0] @ rows[active] if len(active) else np.zeros(10)
        expected = {"refit": solved} | {n: f(rows, y, len(active)) for n, f in (("omp", naive_omp), ("gp", naive_gp))}
        for name, recon in expected.items():
            want = (recon + bias) * float(scale[i]) + float(shift[i])
            np.testing.assert_allclose(found.recons[name][i], want, atol=1e-6, err_msg=f"{name} {i}")
            assert found.l0[name][i] <= len(active)
    assert found.l0["encoder"].tolist() == (codes > 0).sum(axis=1).tolist()


@given(seed=st.integers(0, 200), wide=st.booleans())
@settings(max_examples=15)
def test_errors_never_grow_with_steps_and_refitting_never_hurts(seed: int, wide: bool) -> None:
    dtype = torch.float64 if wide else torch.float32
    sae = _sae(12, 40, seed=seed, activation="relu", dtype=dtype)
    x = _tokens(24, 12, seed, dtype)
    found = _infer(sae, ks=tuple(range(1, 16)))(x)
    slack = 1e-9 if wide else 1e-4
    for method in ("gp", "omp"):
        left = torch.stack([(x - found.recons[f"{method}@{k}"]).norm(dim=1) for k in range(1, 16)])
        assert (left.diff(dim=0) < slack).all()
        assert (left[0] <= (x - sae.b_dec).norm(dim=1) + slack).all()
    assert ((x - found.recons["refit"]).norm(dim=1) <= (x - sae(x)).norm(dim=1) + slack).all()


def _orthonormal(d: int, seed: int, k: int) -> SAE:
    rows = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    return SAE(
        W_enc=rows.T,
        b_enc=torch.zeros(d).double(),
        W_dec=3 * rows,
        b_dec=torch.zeros(d).double(),
        k=k,
        activation="topk",
    )


@given(seed=st.integers(0, 200), k=st.integers(1, 10))
@settings(max_examples=10)
def test_an_orthonormal_dictionary_keeps_the_largest_projections(seed: int, k: int) -> None:
    sae, x = _orthonormal(10, seed, k), _tokens(16, 10, seed)
    projections = (x @ sae.W_dec.T / 3).relu()
    kept = projections * (projections >= projections.sort(dim=1).values[:, 10 - k, None])
    found = _infer(sae, l0=k)(x)
    for name in ("gp", "omp"):
        torch.testing.assert_close(found.recons[name], kept @ sae.W_dec / 3, atol=1e-9, rtol=0)


def test_neither_batches_nor_tables_change_a_code() -> None:
    sae, x = _sae(16, 150, activation="jumprelu"), _tokens(120, 16)
    whole = _infer(sae, shortlist=6, ks=(3, 9))(x)
    parts = [_infer(sae, shortlist=6, ks=(3, 9), gram_bytes=0)(part) for part in x.split(37)]
    every, listed = _infer(sae)(x), _infer(sae, shortlist=150)(x)
    products = _infer(sae, gram_bytes=0)(x)
    assert len(set(whole.l0["encoder"].tolist())) > 4
    for name, recon in whole.recons.items():
        torch.testing.assert_close(torch.cat([part.recons[name] for part in parts]), recon, atol=1e-8, rtol=0)
    for name, recon in every.recons.items():
        torch.testing.assert_close(listed.recons[name], recon, atol=1e-8, rtol=0)
        torch.testing.assert_close(products.recons[name], recon, atol=1e-8, rtol=0)


def test_lists_find_most_of_what_all_latents_give_and_ask_for_no_more_steps_than_needed() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.nn.functional.normalize(torch.randn(2048, 64, generator=generator), dim=1)
    sae = SAE(W_enc=rows.T, b_enc=torch.zeros(2048), W_dec=rows, b_dec=torch.zeros(64), activation="topk", k=12)
    x = _tokens(150, 64, dtype=torch.float32)
    whole = _infer(sae, ks=(24,))(x)
    for gram_bytes in (0, 2**30):  # with tables, or a product for every list
        listed = _infer(sae, gram_bytes=gram_bytes, shortlist=16, ks=(24,))(x)
        for method in ("gp", "omp", "gp@24"):
            none, some, every = (
                float((x - found.recons[name]).square().sum())
                for found, name in ((whole, "encoder"), (listed, method), (whole, method))
            )
            assert (none - some) / (none - every) > 0.93, method
        alone = _infer(sae, gram_bytes=gram_bytes, shortlist=16, chosen=("gp",))(x)
        assert list(alone.recons) == ["encoder", "gp"]
        torch.testing.assert_close(alone.recons["gp"], listed.recons["gp"], atol=1e-4, rtol=0)


@given(seed=st.integers(0, 500), count=st.integers(1, 9), width=st.sampled_from([16, 40, 64, 640, 648]))
@settings(max_examples=20)
def test_leaders_are_large_entries(seed: int, count: int, width: int) -> None:
    scores = torch.randn(7, width, generator=torch.Generator().manual_seed(seed))
    found, columns = leaders(scores, count)
    assert torch.equal(scores.gather(1, columns), found)
    assert all(len(set(row)) == count for row in columns.tolist())
    assert torch.equal(found.amax(dim=1), scores.amax(dim=1))
    second = scores.topk(2 * count, dim=1).values[:, -1] if 2 * count <= width else scores.amin(dim=1)
    assert (found.amin(dim=1) >= second).float().mean() > 0.5


def test_an_sae_that_the_source_does_not_run_is_run_here() -> None:
    world, sae = _planted()
    for one in (sae, replace(sae, input_norm="layer_norm")):
        source = world.pair({"sae": one}, n_tokens=2048)
        given_recons, own = (pursue(some, {"sae": one}, folds=6) for some in (source, TokensOnly(source)))
        a, b = (run.saes["sae"].codings for run in (given_recons, own))
        assert list(b) == ["encoder", "gp"]
        for name in b:
            assert a[name].error.fvu.value == pytest.approx(b[name].error.fvu.value, rel=1e-5)


def test_float32_is_good_enough() -> None:
    sae, x = _sae(24, 100, activation="relu"), _tokens(60, 24)
    fine, coarse = _infer(sae, l0=12)(x), _infer(sae.to(dtype=torch.float32), l0=12)(x.float())
    for name in ("refit", "omp", "gp"):
        a, b = ((x - found.recons[name].double()).square().sum() for found in (fine, coarse))
        assert float(a) == pytest.approx(float(b), rel=1e-3, abs=1e-3)


def test_tokens_without_latents_and_more_steps_than_directions() -> None:
    silent = replace(_sae(8, 20, activation="relu"), b_enc=torch.full((20,), -99.0).double())
    x = _tokens(9, 8)
    found = _infer(silent)(x)
    assert set(found.l0) == {"encoder", *found.recons}
    for name, recon in found.recons.items():
        assert int(found.l0[name].sum()) == 0
        torch.testing.assert_close(recon, silent.b_dec.expand(9, 8))
    greedy = _infer(silent, l0=50)(x)
    assert int(greedy.l0["omp"].max()) <= 8  # more rows than directions cannot all be needed
    assert (greedy.l0["gp"] <= 20).all() and all(recon.isfinite().all() for recon in greedy.recons.values())


def test_shares_agree_with_the_decomposition() -> None:
    source = tiny_world(n=2000, n_saes=2)
    shares, plain = Shares.of(accumulate(source, folds=8)), decompose_many(source, folds=8)
    for name, result in plain.items():
        split = shares.split(name)
        for field in ("fvu", "linear_share", "fvu_nonlinear", "r2_error"):
            a, b = getattr(split, field), getattr(result, field)
            assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), rel=1e-9)
    same = shares.difference("sae0", "sae0")
    assert same.fvu == pytest.approx(same.r2_error) and same.fvu.low == same.fvu.high == 0
    apart = shares.difference("sae1", "sae0")
    assert apart.fvu.value == pytest.approx(plain["sae1"].fvu.value - plain["sae0"].fvu.value, abs=1e-12)
    width = apart.fvu.high - apart.fvu.low  # far less than of two separate runs
    assert width < 0.8 * (plain["sae0"].fvu.high - plain["sae0"].fvu.low)


BAD = {"scale": 0.6, "bias": -0.3, "noise": 0.15, "norm": 1.3}


@cache
def _planted() -> tuple[World, SAE]:
    """The true dictionary as decoder, with an encoder that shrinks, misses small amplitudes, and is noisy."""
    world = small_world(n_features=24, dictionary="orthonormal", l0=3.0)
    rows = torch.from_numpy(world.dictionary_matrix)
    noise = torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
    sae = SAE(
        W_enc=BAD["scale"] * (rows.T + BAD["noise"] * noise / 24**0.5).contiguous(),
        b_enc=torch.full((24,), BAD["bias"]),
        W_dec=BAD["norm"] * rows,
        b_dec=torch.zeros(24),
    )
    return world, sae


@cache
def _truth(n: int) -> dict[str, dict[str, float]]:
    """Shares of encoder, best and re-fitted codes: of orthonormal rows these are projections; no pursuit involved."""
    world, sae = _planted()
    rows = world.dictionary_matrix.astype(np.float64)
    products = {name: np.zeros((25 + 24, 25 + 24)) for name in ("encoder", "refit", "omp")}
    for batch in world.activations(n, stream="truth"):
        x = batch.double().numpy()
        pre = (x @ sae.W_enc.double().numpy() + sae.b_enc.double().numpy()).clip(0)
        projections = (x @ rows.T).clip(0)
        kept = np.zeros_like(projections)
        order = np.argsort(-projections, axis=1)
        counts = (pre > 0).sum(axis=1)
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(24)[None, :], axis=1)
        kept = projections * (rank < counts[:, None])
        recons = {"encoder": BAD["norm"] * pre @ rows, "refit": projections * (pre > 0) @ rows, "omp": kept @ rows}
        for name, recon in recons.items():
            z = np.concatenate([np.ones((len(x), 1)), x, x - recon], axis=1)
            products[name] += z.T @ z / n
    found = {}
    for name, product in products.items():
        mean = product[0, 1:]
        covariance = product[1:, 1:] - np.outer(mean, mean)
        xx, xe, ee = covariance[:24, :24], covariance[:24, 24:], covariance[24:, 24:]
        residual = np.trace(ee) - np.trace(xe.T @ np.linalg.solve(xx, xe))
        found[name] = {"fvu": np.trace(ee) / np.trace(xx), "fvu_nonlinear": residual / np.trace(xx)}
    return found


def _run(seed: int, n: int = 8192) -> Pursuit:
    world, sae = _planted()
    return pursue(world.pair({"sae": sae}, n_tokens=n, stream=f"eval-{seed}"), {"sae": sae}, folds=16, methods=ALL)


@cache
def _covered(seed: int, truth_tokens: int) -> dict[str, bool]:
    truth, found = _truth(truth_tokens), _run(seed).saes["sae"]
    checks = {}
    for method in ("refit", "omp", "gp"):
        reference = truth["omp" if method == "gp" else method]  # equal for orthonormal rows
        change, removed = found.codings[method].change, found.codings[method].removed
        assert change is not None and removed is not None
        for field in ("fvu", "fvu_nonlinear"):
            after, before = reference[field], truth["encoder"][field]
            checks[f"{method} {field}"] = getattr(change, field).contains(after - before)
        checks[f"{method} removed"] = removed.nonlinear.contains(
            1 - reference["fvu_nonlinear"] / truth["encoder"]["fvu_nonlinear"]
        )
    encoder, best = truth["encoder"]["fvu"], truth["omp"]["fvu"]
    checks["encoder error"] = found.encoder_error.contains(encoder - best)
    checks["dictionary error"] = found.dictionary_error.contains(best)
    return checks


def _hits(seeds: int, truth_tokens: int) -> dict[str, int]:
    found = [_covered(seed, truth_tokens) for seed in range(seeds)]
    return {name: sum(bool(checks[name]) for checks in found) for name in found[0]}


def test_a_planted_encoder_error_is_recovered() -> None:
    """A correct procedure falls below one of the bounds in at most 1 of 100 runs (11 numbers at 1 of 1000 each)."""
    found = _hits(8, 250_000)
    assert min(found.values()) >= fewest_hits(8), found


@pytest.mark.slow
def test_a_planted_encoder_error_is_recovered_in_100_seeds() -> None:
    """At least 90 of 100: a procedure that covers in 95 % fails with probability 3 % for one number."""
    found = _hits(100, 1_000_000)
    print(found)  # noqa: T201
    assert min(found.values()) >= 90, found


def test_the_same_run_gives_the_same_report_and_controls_without_weights_are_left_out() -> None:
    world, sae = _planted()
    source, saes = with_controls(world.pair({"sae": sae}, n_tokens=2048), {"sae": sae}, ["shuffled", "random"])
    first, second = (pursue(source, saes, folds=6, ks=(2,), methods=ALL) for _ in range(2))
    assert to_plain(first) == to_plain(second)
    assert list(first.saes) == ["sae", "sae~random"]
    assert any("sae~shuffled is left out" in warning for warning in first.warnings)
    random = first.saes["sae~random"].codings
    assert random["omp"].error.fvu.value < random["encoder"].error.fvu.value
    assert [coding.method for coding in first.saes["sae"].curve] == ["gp", "omp"]


def test_every_warning_is_given() -> None:
    world, sae = _planted()
    fixed = pursue(world.pair({"sae": sae}, n_tokens=2048), {"sae": sae}, folds=6, l0=1, shortlist=4)
    assert any("1 steps on every token" in warning for warning in fixed.saes["sae"].warnings)
    assert any("not among all" in warning for warning in fixed.saes["sae"].warnings)
    silent = replace(sae, b_enc=torch.full((24,), -99.0))
    dead = pursue(world.pair({"sae": silent}, n_tokens=2048), {"sae": silent}, folds=6)
    assert any("activates no latent" in warning for warning in dead.saes["sae"].warnings)
    assert dead.saes["sae"].best == "encoder" and dead.saes["sae"].encoder_error.value == 0
    tight = _orthonormal(24, 0, 24).to(dtype=torch.float32)
    tight = replace(tight, W_enc=tight.W_dec.T / 9, activation="relu", k=None)
    perfect = pursue(world.pair({"sae": tight}, n_tokens=2048), {"sae": tight}, folds=6)
    assert perfect.saes["sae"].best in ("encoder", "refit", "gp", "omp")


def test_bad_input_is_refused() -> None:
    world, sae = _planted()
    source = world.pair({"sae": sae}, n_tokens=1024)
    with pytest.raises(InputError, match="no weights"):
        pursue(source, {}, folds=4)
    with pytest.raises(InputError, match="do not give its reconstructions"):
        pursue(source, {"sae": replace(sae, W_dec=sae.W_dec.flip(0))}, folds=4)
    with pytest.raises(InputError, match="width 10"):
        pursue(source, {"sae": _orthonormal(10, 0, 2)}, folds=4)
    for options, message in (
        ({"l0": 0}, "l0 is 0"),
        ({"methods": ("gp", "mp")}, "expected some of refit, gp, omp"),
        ({"methods": ()}, "expected some of"),
        ({"ks": (4, 4)}, "different numbers"),
        ({"shortlist": 0}, "at least 1 candidate"),
        ({"shortlist": 8, "exact": True}, "leave one out"),
        ({"sum_bytes": 1000}, "GB"),
    ):
        with pytest.raises(InputError, match=message):
            pursue(source, {"sae": sae}, folds=4, **options)  # type: ignore[arg-type]
    x = np.random.default_rng(0).standard_normal((60, 24)).astype(np.float32)
    x[7, 3] = np.nan
    recon = sae(torch.from_numpy(x)).numpy()
    with pytest.raises(InputError, match="NaN"):
        pursue(ListSource(x, {"sae": recon}, np.arange(60, dtype=np.int64)), {"sae": sae}, folds=4)


def test_the_command_on_a_world(tmp_path: Path) -> None:
    world, sae = _planted()
    (tmp_path / "experiment.json").write_text(
        json.dumps(Experiment(world=world, sae=Surgical(learned=4), n_tokens=4096).to_dict())
    )
    save_sae(sae, tmp_path / "mine")
    options = ("--world", tmp_path / "experiment.json", "--sae", tmp_path / "mine", "--folds", 8)
    report = analyse("pursuit", tmp_path / "out", *options, "--l0", 3, "--shortlist", 5, "--methods", "refit,omp")
    found = report["result"]["saes"]["mine"]
    assert found["codings"]["omp"]["steps"] == 3 and found["codings"]["refit"]["steps"] is None
    assert found["shortlist"] == 5 and not found["curve"]
    refusal = refused("pursuit", *options[:2], "--out", tmp_path / "none")
    assert "needs the weights of 'surgical'" in refusal
    shown = good("pursuit", *options, "--ks", "2,4", "--exact", "--out", tmp_path / "shown").stdout
    assert "gp@4" in shown and "omp" not in shown and "of its error is the encoder's" in shown


@pytest.mark.models
def test_the_command_on_the_tiny_model(tmp_path: Path) -> None:
    options = model_options(tmp_path, "r1-64", documents=28)
    report = analyse(
        "pursuit", tmp_path / "out", *options, "--ks", "4,16", "--control", "all", "--methods", "refit,gp,omp"
    )
    found = report["result"]["saes"]
    assert list(found) == ["r1-64", "r1-64~random"]
    codings = found["r1-64"]["codings"]
    fvu = {name: coding["error"]["fvu"]["value"] for name, coding in codings.items()}
    assert fvu["omp"] < fvu["refit"] < fvu["encoder"]
    assert codings["omp"]["change"]["fvu"]["high"] < 0
    assert [(coding["method"], coding["steps"]) for coding in found["r1-64"]["curve"]] == [
        ("gp", 4),
        ("omp", 4),
        ("gp", 16),
        ("omp", 16),
    ]
    assert found["r1-64"]["encoder_share"]["low"] > 0.05


@pytest.mark.models
def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    options = model_options(tmp_path, "r1-64", documents=8)
    assert "--ks is '4,x'" in refused("pursuit", *options, "--ks", "4,x", "--out", tmp_path / "a")
    assert "l0 is 0" in refused("pursuit", *options, "--l0", 0, "--out", tmp_path / "b")
    assert "cannot work on --acts" in refused("pursuit", "--acts", "x.npy", "--out", tmp_path / "c")
