"""The inference record: naive oracles per activation, laws of codes, and the errors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from darkmatter.errors import InputError
from darkmatter.sae import SAE, Codes, record
from darkmatter.sae.kernels import bag_sum, top_k

D, S = 7, 40
KINDS = ("relu", "topk", "jumprelu", "gated")


def make(activation: Any, *, seed: int = 0, integer: bool = False, d_sae: int = S, k: Any = -1, **fields: Any) -> SAE:
    """Random SAE; `integer` makes every product and sum exact, so that results can be compared bit for bit."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        if integer:
            return torch.randint(-4, 5, shape, generator=g).double()
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    values: dict[str, Any] = {
        "W_enc": draw(D, d_sae),
        "b_enc": draw(d_sae),
        "W_dec": draw(d_sae, D),
        "b_dec": draw(D),
        "b_pre": draw(D),
        "activation": activation,
        "k": k if k != -1 else 5 if activation == "topk" else None,
        "threshold": draw(d_sae).abs() if activation == "jumprelu" else None,
    }
    if activation == "gated":  # exp(0) is exact
        values |= {"b_gate": draw(d_sae), "b_mag": draw(d_sae), "r_mag": draw(d_sae) * (0 if integer else 0.3)}
    return SAE(**(values | fields))


def tokens(n: int, *, seed: int = 1, integer: bool = False) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    if integer:
        return torch.randint(-3, 4, (n, D), generator=g).double()
    return torch.randn(n, D, generator=g, dtype=torch.float64)


def naive(sae: SAE, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Transcribe the definition with Python loops: codes (n, d_sae) and reconstruction (n, d_model)."""
    codes = np.zeros((len(x), sae.d_sae))
    for i, row in enumerate(x.tolist()):
        centred = row if sae.b_pre is None else [a - b for a, b in zip(row, sae.b_pre.tolist(), strict=True)]
        pre = [
            sum(c * w for c, w in zip(centred, column, strict=True)) + bias
            for column, bias in zip(sae.W_enc.T.tolist(), sae.b_enc.tolist(), strict=True)
        ]
        if sae.b_gate is not None and sae.b_mag is not None and sae.r_mag is not None:
            gates = zip(pre, sae.b_gate.tolist(), sae.b_mag.tolist(), sae.r_mag.tolist(), strict=True)
            codes[i] = [max(math.exp(r) * p + mag, 0.0) if p + gate > 0 else 0.0 for p, gate, mag, r in gates]
            continue
        kept = set(sorted(range(sae.d_sae), key=lambda j: -pre[j])[: sae.k])  # [:None] keeps all
        for j in kept:
            threshold = 0.0 if sae.threshold is None else float(sae.threshold.expand(sae.d_sae)[j])
            if pre[j] > 0 and pre[j] > threshold:
                codes[i, j] = pre[j]
    return codes, codes @ sae.W_dec.numpy() + sae.b_dec.numpy()


@pytest.mark.parametrize("activation", KINDS)
@pytest.mark.parametrize("with_b_pre", [True, False])
def test_agrees_with_the_naive_transcription(activation: str, with_b_pre: bool) -> None:
    absent: dict[str, Any] = {} if with_b_pre else {"b_pre": None}
    sae = make(activation, **absent)
    x = tokens(23)
    codes, recon = naive(sae, x)
    # forward error of a dot product of length D plus the bias, then one of length S on top
    eps = np.finfo(np.float64).eps
    size = (x.abs() + (0 if sae.b_pre is None else sae.b_pre.abs())) @ sae.W_enc.abs() + sae.b_enc.abs()
    if sae.b_mag is not None and sae.r_mag is not None:  # three more roundings, scaled by exp(r_mag)
        size = size * sae.r_mag.exp() + sae.b_mag.abs()
    code_tol = (D + 6) * eps * float(size.max())
    recon_tol = 2 * (S + D + 4) * eps * float((size @ sae.W_dec.abs() + sae.b_dec.abs()).max())
    got = sae.encode(x)
    np.testing.assert_allclose(got.dense().numpy(), codes, rtol=0, atol=code_tol)
    np.testing.assert_allclose(sae.decode(got).numpy(), recon, rtol=0, atol=recon_tol)
    np.testing.assert_allclose(sae(x).numpy(), recon, rtol=0, atol=recon_tol)
    assert got.l0 == (codes > 0).sum() / 23
    assert got.n_tokens == 23


@pytest.mark.parametrize("d_sae", [4, 40, 163])
def test_sparse_and_dense_routes_are_the_same_function(d_sae: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = tokens(31, integer=True)
    for activation in KINDS:
        sae = make(activation, integer=True, d_sae=d_sae, **({"k": 3} if activation == "topk" else {}))
        results = []
        for share in (-1.0, 2.0):  # always dense, always sparse
            monkeypatch.setattr(record, "_DENSE_PAYS", share)
            results += [sae(x), sae.decode(sae.encode(x))]
        assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("activation", KINDS)
def test_wide_saes_are_run_in_chunks(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = make(activation, integer=True), tokens(17, integer=True)
    whole, recon = sae.encode(x), sae(x)
    monkeypatch.setattr(record, "_CHUNK", 3 * S)
    parts = sae.encode(x)
    assert torch.equal(parts.values, whole.values)
    assert torch.equal(parts.latents, whole.latents)
    assert torch.equal(parts.offsets, whole.offsets)
    assert torch.equal(sae(x), recon)


@given(seed=st.integers(0, 10_000), cut=st.integers(0, 12), activation=st.sampled_from(KINDS))
@settings(max_examples=40, deadline=None)
def test_batch_split_does_not_matter(seed: int, cut: int, activation: str) -> None:
    sae, x = make(activation, seed=seed, integer=True), tokens(12, seed=seed + 1, integer=True)
    assert torch.equal(torch.cat([sae(x[:cut]), sae(x[cut:])]), sae(x))
    assert torch.equal(torch.cat([sae.encode(x[:cut]).dense(), sae.encode(x[cut:]).dense()]), sae.encode(x).dense())


@given(seed=st.integers(0, 10_000), a=st.integers(-5, 5), b=st.integers(-5, 5))
@settings(max_examples=40, deadline=None)
def test_decode_is_linear_in_codes(seed: int, a: int, b: int) -> None:
    sae = make("topk", seed=seed, integer=True)
    one, two = sae.encode(tokens(6, seed=1, integer=True)), sae.encode(tokens(6, seed=2, integer=True))
    mixed = Codes.from_dense(a * one.dense() + b * two.dense())
    linear = a * (sae.decode(one) - sae.b_dec) + b * (sae.decode(two) - sae.b_dec)
    assert torch.equal(sae.decode(mixed) - sae.b_dec, linear)


@given(seed=st.integers(0, 10_000), shared=st.booleans())
@settings(max_examples=40, deadline=None)
def test_jumprelu_with_threshold_zero_is_relu(seed: int, shared: bool) -> None:
    zero = torch.zeros(() if shared else S, dtype=torch.float64)
    jump, relu = make("jumprelu", seed=seed, threshold=zero), make("relu", seed=seed)
    x = tokens(9, seed=seed + 1)
    assert torch.equal(jump.encode(x).dense(), relu.encode(x).dense())
    assert torch.equal(jump(x), relu(x))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_bias_of_a_gated_sae_can_be_folded_away(seed: int) -> None:
    sae, x = make("gated", seed=seed, integer=True), tokens(9, seed=seed + 1, integer=True)
    assert sae.b_gate is not None
    assert sae.b_mag is not None
    folded = dataclasses.replace(
        sae, b_enc=torch.zeros_like(sae.b_enc), b_gate=sae.b_gate + sae.b_enc, b_mag=sae.b_mag + sae.b_enc
    )
    assert torch.equal(folded(x), sae(x))
    assert bool((sae.encode(x).dense() > 0).any())


def test_jumprelu_is_strict() -> None:
    one = torch.ones(1, 1)
    sae = SAE(one, torch.zeros(1), one, torch.zeros(1), activation="jumprelu", threshold=torch.tensor(2.0))
    x = torch.tensor([[2.0], [np.nextafter(np.float32(2), np.float32(3)).item()], [-3.0]])
    assert (sae.encode(x).dense() > 0).flatten().tolist() == [False, True, False]


@given(seed=st.integers(0, 10_000), n=st.integers(1, 6), d_sae=st.integers(1, 200), share=st.floats(0.001, 1))
@settings(max_examples=150, deadline=None)
def test_two_stage_selection_equals_a_full_sort(seed: int, n: int, d_sae: int, share: float) -> None:
    k = max(1, int(share * d_sae))
    pre = torch.randint(-30, 30, (n, d_sae), generator=torch.Generator().manual_seed(seed)).float()  # many ties
    values, columns = top_k(pre, k)
    assert torch.equal(values.sort(dim=1).values, pre.sort(dim=1).values[:, d_sae - k :])
    assert torch.equal(values, pre.gather(1, columns))
    assert all(len(set(row)) == k for row in columns.tolist())


def test_two_stage_selection_is_used_and_needs_the_ungrouped_columns() -> None:
    pre = torch.arange(163.0).expand(2, -1)  # size 6, 27 groups: the largest column lies in no group
    values, columns = top_k(pre, 5)
    assert sorted(columns[0].tolist()) == [158, 159, 160, 161, 162]
    assert sorted(values[1].tolist()) == [158, 159, 160, 161, 162]


@given(seed=st.integers(0, 10_000), k=st.integers(1, S))
@settings(max_examples=40, deadline=None)
def test_topk_keeps_at_most_k(seed: int, k: int) -> None:
    codes = make("topk", seed=seed, k=k).encode(tokens(8, seed=seed))
    assert codes.l0 <= k
    assert (codes.dense() > 0).sum(dim=1).max() <= k
    assert len(codes.values) == 8 * k


def test_a_kept_negative_becomes_zero() -> None:
    sae = make("topk", k=S)  # keeps everything, so exactly the relu codes remain
    x = tokens(10)
    assert torch.equal(sae.encode(x).dense(), make("relu").encode(x).dense())
    assert sae.encode(x).l0 < S


@pytest.mark.parametrize("activation", KINDS)
def test_no_tokens(activation: str) -> None:
    sae = make(activation)
    codes = sae.encode(tokens(0))
    assert codes.n_tokens == 0
    assert np.isnan(codes.l0)
    assert codes.dense().shape == (0, S)
    assert sae(tokens(0)).shape == sae.decode(codes).shape == (0, D)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("activation", KINDS)
def test_computes_in_its_own_dtype(activation: str, dtype: torch.dtype) -> None:
    sae = make(activation).to(dtype=dtype)
    assert sae.dtype == dtype
    with torch.inference_mode():
        recon = sae(tokens(5))
    assert recon.dtype == sae.encode(tokens(5)).values.dtype == dtype
    assert torch.equal(recon, sae(tokens(5).to(dtype)))
    exact = make(activation).to(dtype=dtype).to(dtype=torch.float64)(tokens(5).to(dtype))
    error = float((recon.double() - exact).norm() / exact.norm())
    assert error < 40 * torch.finfo(dtype).eps  # ~D·S roundings, adding in quadrature, amplified by b_enc and b_dec


def test_the_record_is_frozen_and_free_of_autograd() -> None:
    W = torch.ones(D, S, dtype=torch.float64, requires_grad=True)
    sae = make("relu", W_enc=W)
    assert not sae(tokens(3)).requires_grad
    with pytest.raises(dataclasses.FrozenInstanceError):
        sae.k = 3  # type: ignore[misc]
    assert (sae.d_model, sae.d_sae, sae.device) == (D, S, torch.device("cpu"))


def test_the_fingerprint_tells_saes_apart() -> None:
    saes = [make(kind, seed=seed) for kind in KINDS for seed in (0, 1)]
    saes += [make("relu", b_pre=None), make("topk", k=6), make("jumprelu", threshold=torch.tensor(0.5).double())]
    saes += [sae.to(dtype=torch.bfloat16) for sae in saes]
    assert len({sae.fingerprint() for sae in saes}) == len(saes)
    tied = make("relu", W_dec=make("relu").W_enc.T)
    assert tied.fingerprint() == make("relu", W_dec=make("relu").W_enc.T.contiguous()).fingerprint()


NAN = torch.full((S,), torch.nan, dtype=torch.float64)


@pytest.mark.parametrize(
    ("activation", "fields", "message"),
    [
        ("relu", {"W_enc": torch.ones(S, D).double()}, r"W_enc has shape \(40, 7\), expected .*transposed"),
        ("relu", {"W_dec": torch.ones(D, S).double()}, r"W_dec has shape \(7, 40\), expected .*transposed"),
        ("relu", {"W_dec": torch.ones(S, D + 1).double()}, r"W_dec has shape \(40, 8\), expected .*= \(40, 7\)"),
        ("relu", {"W_enc": torch.ones(D).double()}, r"W_enc has shape \(7,\)"),
        ("relu", {"b_enc": torch.ones(S, 1).double()}, "b_enc has shape"),
        ("relu", {"b_enc": torch.ones(0).double()}, "b_enc has shape"),
        ("relu", {"b_dec": torch.tensor(1.0).double()}, "b_dec has shape"),
        ("relu", {"b_pre": torch.ones(D + 1).double()}, "b_pre has shape"),
        ("relu", {"b_enc": NAN}, "b_enc has 40 entries that are NaN"),
        ("jumprelu", {"threshold": NAN}, "threshold has 40 entries that are NaN"),
        ("jumprelu", {"threshold": NAN[0]}, "threshold has 1 entries that are NaN"),
        ("relu", {"b_enc": torch.ones(S)}, "b_enc is torch.float32 on cpu, expected torch.float64 on cpu"),
        ("relu", {"b_enc": torch.ones(S).long()}, "b_enc has dtype torch.int64"),
        ("relu", {"b_enc": [0.0] * S}, "b_enc is a list"),
        ("relu", {"W_enc": torch.ones(D, S).to(torch.float8_e4m3fn)}, "W_enc has dtype torch.float8_e4m3fn"),
        ("gelu", {}, "activation is 'gelu', expected one of relu, topk, groupmax, jumprelu"),
        ("relu", {"k": 3}, "k is 3 with activation 'relu'"),
        ("topk", {"k": None}, "k is None with activation 'topk'"),
        ("topk", {"k": 0}, "k is 0, expected an integer from 1 to d_sae = 40"),
        ("topk", {"k": S + 1}, "k is 41"),
        ("topk", {"k": 2.0}, "k is 2.0"),
        ("topk", {"k": True}, "k is True"),
        ("topk", {"threshold": torch.zeros(S).double()}, "threshold is given with activation 'topk'"),
        ("jumprelu", {"threshold": None}, "threshold is missing"),
        ("jumprelu", {"threshold": torch.zeros(1).double()}, r"threshold has shape \(1,\)"),
        ("gated", {"b_mag": None}, "b_mag is missing with activation 'gated'"),
        ("relu", {"r_mag": torch.zeros(S).double()}, "r_mag is given with activation 'relu', expected for gated"),
        ("gated", {"b_gate": torch.zeros(1).double()}, r"b_gate has shape \(1,\), expected \(d_sae,\) = \(40,\)"),
    ],
)
def test_wrong_fields_are_named(activation: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(activation, **fields)


def test_wrong_input_is_named() -> None:
    sae = make("topk")
    for bad, message in (
        (torch.ones(D, S), r"x has shape \(7, 40\), expected \(7, 7\)"),
        (torch.ones(2, 3, D), "flatten batch and position"),
        (torch.ones(3, D).long(), "x has dtype torch.int64"),
    ):
        with pytest.raises(InputError, match=message):
            sae(bad)
        with pytest.raises(InputError, match=message):
            sae.encode(bad)
    with pytest.raises(InputError, match="codes have 39 latents"):
        sae.decode(make("topk", d_sae=39).encode(tokens(3)))
    with pytest.raises(InputError, match=r"W_enc has .* float16 overflows"):
        make("relu", W_enc=torch.full((D, S), 1e30).double()).to(dtype=torch.float16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("activation", KINDS)
def test_another_device(activation: str) -> None:
    sae, x = make(activation, integer=True), tokens(20, integer=True)
    moved = sae.to(device="cuda")
    assert moved.device.type == "cuda"
    if activation != "topk":  # which of several equal entries is kept is the device's choice
        assert torch.equal(moved(x.cuda()).cpu(), sae(x))
    with pytest.raises(InputError, match="x is on cpu, expected cuda"):
        moved(x)
    with pytest.raises(InputError, match="codes have 40 latents on cuda"):
        sae.decode(moved.encode(x.cuda()))


@given(seed=st.integers(0, 10_000), n=st.integers(0, 5), d_sae=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_codes_round_trip_through_dense(seed: int, n: int, d_sae: int) -> None:
    dense = torch.randint(-1, 3, (n, d_sae), generator=torch.Generator().manual_seed(seed)).double()
    codes = Codes.from_dense(dense)
    assert torch.equal(codes.dense(), dense)
    assert n == 0 or codes.l0 == int((dense > 0).sum()) / n


def test_a_latent_listed_twice_counts_with_the_sum() -> None:
    sae = make("relu", integer=True)
    two = torch.tensor([2.0, 3.0], dtype=torch.float64)
    codes = Codes(two, torch.tensor([4, 4]), torch.tensor([0, 2]), S)
    assert codes.dense()[0, 4] == 5
    assert torch.equal(sae.decode(codes), (codes.dense() @ sae.W_dec) + sae.b_dec)


@pytest.mark.parametrize(
    ("values", "latents", "offsets", "message"),
    [
        (torch.ones(2), torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0, 2]), "expected torch.int64"),
        (torch.ones(3), torch.tensor([0, 1]), torch.tensor([0, 2]), "equal length"),
        (torch.ones(2), torch.tensor([0, 1]), torch.tensor([0, 1]), "nnz = 2"),
        (torch.ones(2), torch.tensor([0, 1]), torch.tensor([1, 2]), "nnz = 2"),
        (torch.ones(2), torch.tensor([0, 1]), torch.tensor([0, 2, 1, 2]), "nnz = 2"),
        (torch.ones(2), torch.tensor([0, 1]), torch.tensor([], dtype=torch.int64), "got ends None"),
        (torch.ones(2), torch.tensor([0, 5]), torch.tensor([0, 2]), r"latents span 0…5, expected 0…4"),
        (torch.ones(2), torch.tensor([-1, 0]), torch.tensor([0, 2]), r"latents span -1…0"),
    ],
)
def test_malformed_codes_are_refused(values: Tensor, latents: Tensor, offsets: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Codes(values, latents, offsets, 5)


def test_bag_sum_with_an_empty_bag() -> None:
    table = torch.eye(3)
    got = bag_sum(torch.tensor([2, 0]), torch.tensor([5.0, 7.0]), torch.tensor([0, 1, 1, 2]), table)
    assert got.tolist() == [[0, 0, 5], [0, 0, 0], [7, 0, 0]]


# groups of latents, and tokens that are rescaled


@pytest.mark.parametrize("k", [1, 4, 8, S])
def test_groupmax_keeps_the_largest_of_each_run(k: int) -> None:
    sae, x = make("groupmax", k=k), tokens(17)
    assert sae.b_pre is not None
    pre = ((x - sae.b_pre) @ sae.W_enc + sae.b_enc).numpy()
    codes = np.zeros_like(pre)
    for i, row in enumerate(pre):
        for start in range(0, S, S // k):
            best = max(range(start, start + S // k), key=row.__getitem__)
            codes[i, best] = max(row[best], 0)
    got = sae.encode(x)
    np.testing.assert_allclose(got.dense().numpy(), codes, rtol=0, atol=1e-13)
    assert len(got.values) == 17 * k
    np.testing.assert_allclose(sae(x).numpy(), codes @ sae.W_dec.numpy() + sae.b_dec.numpy(), rtol=0, atol=1e-12)
    assert torch.equal(sae(x), sae.decode(got))


def test_the_extremes_of_groupmax_are_topk_and_relu() -> None:
    x = tokens(9)
    assert torch.equal(make("groupmax", k=1)(x), make("topk", k=1)(x))
    assert torch.equal(make("groupmax", k=S).encode(x).dense(), make("relu").encode(x).dense())


@pytest.mark.parametrize("activation", [*KINDS, "groupmax"])
@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
def test_an_input_norm_rescales_and_scales_back(activation: Any, norm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    k: dict[str, Any] = {"k": 8} if activation == "groupmax" else {}
    plain, sae, x = make(activation, **k), make(activation, input_norm=norm, **k), tokens(11)
    if norm == "layer_norm":
        shift, scale = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
        inside = (x - shift) / (scale + 1e-5)
    else:
        scale = x.norm(dim=1, keepdim=True) / math.sqrt(D)
        shift, inside = 0 * scale, x / scale
    np.testing.assert_allclose(sae(x).numpy(), (plain(inside) * scale + shift).numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(sae.encode(x).dense().numpy(), plain.encode(inside).dense().numpy(), rtol=0, atol=1e-12)
    assert float((sae(x) - plain(x)).abs().max()) > 0.1
    whole = sae(x)
    monkeypatch.setattr(record, "_CHUNK", 3 * S)
    np.testing.assert_allclose(sae(x).numpy(), whole.numpy(), rtol=0, atol=1e-13)
    with pytest.raises(InputError, match=f"SAE with {norm} do not hold the scale of their token: call the SAE on x"):
        sae.decode(sae.encode(x))
    assert sae.to(dtype=torch.float32).input_norm == norm
    assert len({plain.fingerprint(), sae.fingerprint()}) == 2


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_a_constant_norm_makes_the_sae_homogeneous(seed: int, scale: float) -> None:
    sae, x = make("topk", seed=seed, input_norm="constant_norm"), tokens(6, seed=seed + 1)
    np.testing.assert_allclose(sae(scale * x).numpy(), scale * sae(x).numpy(), rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 10_000), shift=st.floats(-100, 100))
@settings(max_examples=40, deadline=None)
def test_a_layer_norm_lets_the_mean_pass(seed: int, shift: float) -> None:
    sae, x = make("topk", seed=seed, input_norm="layer_norm"), tokens(6, seed=seed + 1)
    np.testing.assert_allclose(sae(x + shift).numpy(), (sae(x) + shift).numpy(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
def test_tokens_without_a_scale_stay_finite(norm: Any) -> None:
    sae = make("relu", input_norm=norm)
    zero = sae(torch.zeros(2, D, dtype=torch.float64))
    assert torch.equal(zero, torch.zeros_like(zero))
    assert sae(tokens(0)).shape == (0, D)


@pytest.mark.parametrize(
    ("activation", "fields", "message"),
    [
        ("relu", {"input_norm": "batch_norm"}, "input_norm is 'batch_norm', expected None or one of layer_norm"),
        ("groupmax", {"k": 7}, "k is 7, expected a divisor of d_sae = 40"),
        ("groupmax", {"k": None}, "k is None with activation 'groupmax'"),
    ],
)
def test_wrong_settings_are_named(activation: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(activation, **fields)
    one = torch.ones(1, 1)
    with pytest.raises(InputError, match="one value has no spread"):
        SAE(one, torch.zeros(1), one, torch.zeros(1), input_norm="layer_norm")
