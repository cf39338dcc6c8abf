"""The trainer on topk: determinism, units, the stream, learning, revival and settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from darkmatter import World
from darkmatter.errors import DegenerateError, InputError
from darkmatter.sae import SAE, TrainConfig, load_sae, load_sae_metadata, save_sae, train_sae
from darkmatter.sae.optimise import Optimiser
from darkmatter.sae.parameters import Parameters, clip_gradient, initialise
from darkmatter.sae.revive import revive
from darkmatter.sae.step import Objective, evaluate
from darkmatter.sae.stream import rebatch
from darkmatter.sae.units import Units, calibrate, fold
from darkmatter.sae.workspace import Workspace

SMALL = TrainConfig(d_sae=24, k=3, n_tokens=4096, batch_size=128, lr=1e-2, report_every=5)


def world(n: int, *, d: int = 16, m: int = 24, active: float = 2.0, seed: int = 0) -> Tensor:
    """Sparse non-negative combinations of m random unit features, off centre."""
    g = np.random.default_rng(seed)
    features = np.random.default_rng(99).standard_normal((m, d))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    codes = (g.random((n, m)) < active / m) * g.standard_exponential((n, m))
    return torch.from_numpy((codes @ features + 0.5).astype(np.float32))


def fvu(sae: SAE, x: Tensor) -> float:
    error = (sae(x) - x).double()
    return float(error.square().sum() / (x.double() - x.double().mean(0)).square().sum())


def identical(a: SAE, b: SAE) -> bool:
    left, right = a.tensors(), b.tensors()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_clipping_scales_the_joint_norm() -> None:
    both = Parameters(torch.full((1, 1), 3.0), torch.full((1,), 4.0), torch.zeros(1, 1), torch.zeros(1))
    assert clip_gradient(both, 10.0) == 5.0
    assert (float(both.enc), float(both.b_enc)) == (3.0, 4.0)
    clip_gradient(both, 1.0)
    assert (float(both.enc), float(both.b_enc)) == pytest.approx((0.6, 0.8))


# determinism and invariances


def test_same_seed_same_bits_and_another_seed_differs() -> None:
    x = world(4096)
    global_state = torch.get_rng_state()
    one, two = train_sae([x], SMALL), train_sae([x], SMALL)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert identical(one.sae, two.sae)
    assert one.history == two.history
    assert not torch.equal(one.sae.W_dec, train_sae([x], replace(SMALL, seed=1)).sae.W_dec)


@given(cuts=st.lists(st.integers(0, 1024), max_size=6), as_numpy=st.booleans())
@settings(max_examples=12, deadline=None)
def test_the_callers_batches_do_not_matter(cuts: list[int], as_numpy: bool) -> None:
    x, config = world(1024), replace(SMALL, n_tokens=1024, batch_size=100)
    edges = [0, *sorted(cuts), 1024]
    parts: list[Any] = [x[a:b] for a, b in pairwise(edges)]
    whole = train_sae([x], config)
    cut = train_sae([part.numpy() for part in parts] if as_numpy else iter(parts), config)
    assert identical(whole.sae, cut.sae)
    assert whole.history == cut.history


@given(power=st.integers(-20, 20))
@settings(max_examples=8, deadline=None)
def test_scaling_activations_by_a_power_of_two_scales_only_the_biases(power: int) -> None:
    x, config = world(1024), replace(SMALL, n_tokens=1024)
    base, scaled = train_sae([x], config).sae, train_sae([x * 2.0**power], config).sae
    assert torch.equal(base.W_enc, scaled.W_enc)
    assert torch.equal(base.W_dec, scaled.W_dec)
    for name in ("b_enc", "b_dec", "b_pre"):
        assert torch.equal(getattr(base, name) * 2.0**power, getattr(scaled, name))
    assert torch.equal(base(x) * 2.0**power, scaled(x * 2.0**power))


def test_folding_units_is_exact() -> None:
    x = world(300)
    units = calibrate([x[:100], x[100:]])
    assert np.log2(units.scale).is_integer()
    assert 0.5**0.5 <= float((x - x.mean(0)).square().mean().sqrt()) / units.scale <= 2**0.5
    assert units.variance == pytest.approx(float(units.convert(x.clone()).square().sum(1).mean()), rel=1e-5)
    g = torch.Generator().manual_seed(0)
    p = initialise(16, SMALL, 1.0, g)
    p.b_enc.normal_(generator=g)
    p.b_dec.normal_(generator=g)
    sae = fold(p, units, SMALL, None)
    with torch.no_grad():
        inner = evaluate(p, units.convert(x.clone()), Objective(SMALL, 1.0, 0.0, None, Workspace()))
    pre = torch.addmm(p.b_enc, units.convert(x.clone()), p.enc.T.contiguous())
    best = pre.topk(3, dim=1)
    expected = torch.zeros_like(pre).scatter_(1, best.indices, best.values.relu()) * units.scale
    assert torch.equal(sae.encode(x).dense(), expected)  # bit for bit: scaling by a power of two rounds nothing
    outer = (sae(x) - x) / units.scale
    size = float(inner.error.abs().max() + units.convert(x.clone()).abs().max() + (x / units.scale).abs().max())
    assert float((outer - inner.error).abs().max()) <= 6 * torch.finfo(torch.float32).eps * size  # b_dec' rounds


def test_trained_decoder_rows_have_unit_norm_and_the_record_is_float32() -> None:
    sae = train_sae([world(4096).double()], SMALL).sae
    assert sae.dtype == torch.float32
    assert float((sae.W_dec.norm(dim=1) - 1).abs().max()) < 8 * torch.finfo(torch.float32).eps
    assert (sae.activation, sae.k, sae.d_model, sae.d_sae) == ("topk", 3, 16, 24)


def test_works_under_inference_mode() -> None:
    with torch.inference_mode():
        inside = train_sae([world(1024)], replace(SMALL, n_tokens=1024))
    assert identical(inside.sae, train_sae([world(1024)], replace(SMALL, n_tokens=1024)).sae)


# learning


def test_learns_an_easy_world() -> None:
    config = TrainConfig(d_sae=32, k=4, n_tokens=30_000, batch_size=128, lr=1e-2)
    points: list[tuple[int, float]] = []
    trained = train_sae([world(30_000, d=32)], config, progress=lambda n, f: points.append((n, f)))
    test = world(5_000, d=32, seed=5)
    assert fvu(trained.sae, test) < 0.05
    assert (
        fvu(train_sae([world(30_000, d=32)], replace(config, n_tokens=128)).sae, test) > 0.15
    )  # one step is not enough
    assert points == list(trained.history)
    assert trained.n_tokens == points[-1][0] == 30_000 // 128 * 128
    assert [n for n, _ in points[:2]] == [32 * 128, 64 * 128]
    assert trained.dead_share <= 0.1


def test_history_is_the_pooled_fvu_of_its_window() -> None:
    x = world(640)
    config = replace(SMALL, n_tokens=640, report_every=2, lr=1e-12)  # the parameters stay where they started
    trained = train_sae([x], config)
    assert [n for n, _ in trained.history] == [256, 512, 640]
    for (end, got), start in zip(trained.history, (0, 256, 512), strict=True):
        assert got == pytest.approx(fvu(trained.sae, x[start:end]), rel=1e-4)


def silenced(dead_after: int) -> Optimiser:
    """A run, 60 steps long, in which half of the latents start far below threshold."""
    config = replace(SMALL, n_tokens=128 * 80, dead_after=dead_after)
    x = world(128 * 60)
    units = calibrate([x])
    run = Optimiser(config, d_model=16, variance=units.variance, device=torch.device("cpu"))
    run.parameters.b_enc[:12] = -100.0
    for batch in x.split(128):  # type: ignore[no-untyped-call]
        run.step(units.convert(batch.clone()))
    return run


def test_dead_latents_are_revived() -> None:
    without, revived = silenced(10**6), silenced(512)
    assert int((without.silent[:12] == 60 * 128).sum()) == 12  # it was dead, and stays so
    assert int((revived.silent[:12] < 512).sum()) >= 11
    assert without.window.take()[0] > revived.window.take()[0]


def test_a_revived_latent_points_at_an_error_and_starts_afresh() -> None:
    run = Optimiser(replace(SMALL, dead_after=256), d_model=16, variance=1.0, device=torch.device("cpu"))
    run.step(world(128))
    before = run.parameters.dec.clone()
    error = torch.zeros(128, 16)
    error[5], error[9] = world(2, seed=3)  # only two tokens can be drawn
    dead = torch.tensor([3, 7])
    config = replace(SMALL, dead_after=256)
    revived = revive(run.parameters, run._adam, dead, error, config, variance=1.0, generator=run._generator)
    assert torch.equal(revived, dead)
    found = run.parameters.dec[[3, 7]]
    want = -torch.nn.functional.normalize(error[[5, 9]], dim=1)
    assert torch.equal(found, want) or torch.equal(found, want.flip(0))
    assert torch.equal(run.parameters.b_enc[[3, 7]], torch.zeros(2))
    assert torch.allclose(torch.nn.functional.normalize(run.parameters.enc[[3, 7]], dim=1), found)
    assert (run.parameters.enc[[3, 7]].norm(dim=1) < 0.25 * run.parameters.enc.norm(dim=1).mean()).all()
    for parameter in (run.parameters.enc, run.parameters.b_enc, run.parameters.dec):
        state = run._adam.state[parameter]
        assert not state["exp_avg"][[3, 7]].any() and state["exp_avg"].any()
        assert torch.allclose(state["exp_avg_sq"][3], state["exp_avg_sq"].mean(dim=0), rtol=0.2)  # of before
    others = [i for i in range(24) if i not in {3, 7}]
    assert torch.equal(run.parameters.dec[others], before[others])


def test_reviving_many_latents_does_not_undo_what_was_learned() -> None:
    # three times as many latents as features: the spare ones die again and again
    world_ = World(n_features=64, d_model=32, dense_dim=0, dense_share=0.0, l0=4.0, topic_strength=0.0)
    config = TrainConfig(d_sae=192, k=6, n_tokens=300_000, batch_size=1024, dead_after=20_000, report_every=16)
    history = [fvu for _, fvu in train_sae(world_.activations(config.n_tokens), config).history]
    late = history[len(history) // 3 :]
    assert max(late) < 1.3 * late[0]


def test_reviving_needs_an_error_to_point_at() -> None:
    config = replace(SMALL, n_tokens=12_800, dead_after=128)
    run = Optimiser(config, d_model=16, variance=1.0, device=torch.device("cpu"))
    before = run.parameters.dec.clone()
    for _ in range(3):
        run.step(torch.zeros(128, 16))  # reconstructed perfectly by no latent at all
    assert torch.equal(run.silent, torch.full((24,), 384))
    assert torch.allclose(run.parameters.dec, before)
    assert np.isnan(run.window.take()[0])


# the stream


@given(sizes=st.lists(st.integers(0, 20), max_size=12), batch_size=st.integers(1, 17))
@settings(max_examples=60, deadline=None)
def test_rebatch_keeps_order_and_drops_only_the_remainder(sizes: list[int], batch_size: int) -> None:
    x = torch.arange(2.0 * sum(sizes)).reshape(-1, 2)
    out = list(rebatch(torch.split(x, sizes) if sizes else [], batch_size))
    assert all(batch.shape == (batch_size, 2) for batch in out)
    assert len(out) == len(x) // batch_size
    if out:
        assert torch.equal(torch.cat(out), x[: len(out) * batch_size])


def test_rebatch_yields_memory_of_its_own() -> None:
    x = torch.zeros(4, 2)
    first, second = rebatch([x], 2)
    first += 1
    assert float(x.sum()) == float(second.sum()) == 0


def test_training_reads_no_more_of_the_stream_than_it_needs() -> None:
    read = []

    def source() -> Iterator[Tensor]:
        for number, part in enumerate(world(4096).split(128)):  # type: ignore[no-untyped-call]
            read.append(number)
            yield part

    train_sae(source(), replace(SMALL, n_tokens=5 * 128))
    assert read == [0, 1, 2, 3, 4]


def test_a_short_stream_ends_training_and_is_recorded() -> None:
    trained = train_sae([world(1000)], SMALL)
    assert trained.n_tokens == 7 * 128
    assert [n for n, _ in trained.history] == [640, 896]
    assert trained.describe()["n_tokens"] == 896


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 16)], [torch.ones(127, 16)]])
def test_a_stream_without_one_batch_is_refused(batches: list[Tensor]) -> None:
    with pytest.raises(InputError, match="ended before one batch of 128 tokens: pass more"):
        train_sae(batches, SMALL)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_bad_token_is_named(bad: float) -> None:
    x = world(1000)
    x[700, 3] = bad
    with pytest.raises(InputError, match=r"token 700 of the stream: activation batch 2 has 1 entries that are NaN"):
        train_sae([x[:300], x[300:600], x[600:]], replace(SMALL, n_tokens=1000))


def test_wrong_streams_are_named() -> None:
    for batches, message in (
        ([world(200), torch.ones(200, 15)], r"activation batch 1 has shape \(200, 15\), expected \(200, 16\)"),
        ([torch.ones(2, 64, 16)], "flatten batch and position"),
        ([torch.ones(200, 16).long()], "activation batch 0 has dtype torch.int64"),
        ([[1.0]], "activation batch 0 is a list"),
        ([torch.full((200, 16), 1e300, dtype=torch.float64)], "token 0 of the stream"),
    ):
        with pytest.raises(InputError, match=message):
            train_sae(batches, SMALL)  # type: ignore[arg-type]


def test_constant_activations_are_degenerate() -> None:
    for value in (0.0, 1e4):
        with pytest.raises(DegenerateError, match="do not vary") as caught:
            train_sae([torch.full((4096, 16), value)], SMALL)
        assert caught.value.evidence["rms_deviation"] <= 1e-3


# settings and results


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 25}, "k is 25, expected at most d_sae = 24"),
        ({"k": 0}, "k is 0, expected an integer of at least 1"),
        ({"d_sae": 2.0}, "d_sae is 2.0"),
        ({"n_tokens": 100}, "n_tokens is 100, expected at least batch_size = 128"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"report_every": 0}, "report_every is 0"),
        ({"seed": -1}, "seed is -1, expected an integer of at least 0"),
        ({"seed": True}, "seed is True"),
        ({"dead_after": 0}, "dead_after is 0"),
        ({"lr": 0.0}, "lr is 0.0, expected a positive number"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm is inf"),
        ({"warmup_share": 1.5}, "warmup_share is 1.5"),
        ({"decay_share": -0.1}, "decay_share is -0.1"),
        ({"decay_share": None}, "decay_share is None"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


def test_the_learning_rate_rises_holds_and_falls_to_zero() -> None:
    config = TrainConfig(d_sae=8, k=1, n_tokens=100, batch_size=1, lr=1.0, warmup_share=0.1, decay_share=0.5)
    rates = [config.lr_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [1.0] * 42
    assert all(a > b > 0 for a, b in pairwise(rates[50:100]))
    assert rates[100] == 0
    assert replace(config, warmup_share=0.0, decay_share=0.0).lr_at(0) == 1.0


def test_the_dead_window_has_a_default() -> None:
    assert replace(SMALL, n_tokens=600_000).dead_window == 40_000
    assert replace(SMALL, n_tokens=10**9).dead_window == 10_000_000
    assert replace(SMALL, dead_after=7).dead_window == 7


def test_a_trained_sae_is_saved_with_its_description(tmp_path: Any) -> None:
    trained = train_sae([world(1024)], replace(SMALL, n_tokens=1024))
    save_sae(trained.sae, tmp_path, metadata=trained.describe())
    assert identical(load_sae(tmp_path), trained.sae)
    described = load_sae_metadata(tmp_path)
    assert described == json.loads(json.dumps(trained.describe()))
    assert TrainConfig(**described["config"]) == trained.config
    assert described["final_fvu"] == trained.history[-1][1]


def test_units_convert_is_the_stated_formula() -> None:
    units = Units(torch.tensor([1.0, 2.0]), 4.0, 1.0)
    assert units.convert(torch.tensor([[5.0, 0.0]])).tolist() == [[1.0, -0.5]]
