"""The step of every architecture: gradients against autograd, bfloat16 encoding, and which codes are selected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from darkmatter.sae import Architecture, TrainConfig
from darkmatter.sae import encode as encode_module
from darkmatter.sae.encode import pre_activations
from darkmatter.sae.layouts import SparseLayout
from darkmatter.sae.parameters import Parameters, initialise
from darkmatter.sae.selection import per_batch, per_token
from darkmatter.sae.step import Objective, evaluate
from darkmatter.sae.workspace import Workspace
from tests.helpers import KINDS, SELECTING, configure

# gradients


class _Step(torch.autograd.Function):
    """[z > t] and its straight-through derivative by t, transcribed from Rajamanoharan et al. (2024b), eq. 12."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(z, t)
        ctx.width = width
        return (z > t).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, None]:
        z, t = ctx.saved_tensors
        return None, -(upstream * ((z - t).abs() < ctx.width / 2)).sum(0) / ctx.width, None


class _JumpReLU(torch.autograd.Function):
    """z·[z > t] and its derivatives, ibid. eq. 11."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(z, t)
        ctx.width = width
        return z * (z > t)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        z, t = ctx.saved_tensors
        near = (z - t).abs() < ctx.width / 2
        return upstream * (z > t), -(upstream * t * near).sum(0) / ctx.width, None


def rank_by_norm(config: TrainConfig) -> bool:
    return config.rank_by_norm and not config.normalise_decoder


def dense_objective(
    p: Parameters, x: Tensor, config: TrainConfig, variance: float, price: float
) -> tuple[Tensor, Tensor]:
    """The objective of every architecture, transcribed densely for autograd, and its codes."""
    scale = len(x) * variance

    def loss(codes: Tensor, dec: Tensor, b_dec: Tensor) -> Tensor:
        return (codes @ dec + b_dec - x).square().sum() / scale

    pre = (x - p.b_dec if config.tie_b_dec else x) @ p.enc.T + p.b_enc
    norms = p.dec.norm(dim=1)
    penalised = norms.detach() if config.normalise_decoder else norms  # unit rows: the norm is no variable
    if config.architecture in SELECTING:
        assert config.k is not None
        score = (pre * norms if rank_by_norm(config) else pre).detach()
        kept = torch.zeros_like(pre)
        if config.architecture == "topk":
            kept.scatter_(1, score.topk(config.k, dim=1).indices, 1.0)
        else:
            kept.view(-1)[score.flatten().topk(len(x) * config.k).indices] = 1.0
        codes = pre.relu() * kept
        parts = [loss(codes[:, :size], p.dec[:size], p.b_dec) for size in config.prefixes]
        return torch.stack(parts).mean(), codes
    if config.architecture == "relu":
        codes = pre.relu()
        return loss(codes, p.dec, p.b_dec) + price * (codes * penalised).sum() / (len(x) * variance**0.5), codes
    if config.architecture == "gated":
        assert p.b_mag is not None
        assert p.r_mag is not None
        gates = pre.relu()
        codes = ((pre - p.b_enc) * p.r_mag.exp() + p.b_mag).relu() * (pre > 0).detach()
        auxiliary = loss(gates, p.dec.detach(), p.b_dec.detach())
        penalty = price * (gates * penalised).sum() / (len(x) * variance**0.5)
        return loss(codes, p.dec, p.b_dec) + auxiliary + penalty, codes
    assert p.threshold is not None
    threshold, width = p.threshold * variance**0.5, config.kernel_width * variance**0.5
    codes = _JumpReLU.apply(pre, threshold, width)  # type: ignore[no-untyped-call]
    l0 = _Step.apply(pre, threshold, width).sum() / len(x)  # type: ignore[no-untyped-call]
    return loss(codes, p.dec, p.b_dec) + price * l0, codes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dense_pays", [-1.0, 2.0])  # always full matrices, always lists
@pytest.mark.parametrize(("normalise", "rank"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_equal_autograd(
    kind: Architecture, dense_pays: float, normalise: bool, rank: bool, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_module, "_DENSE_PAYS", dense_pays)
    extra: dict[str, Any] = {"normalise_decoder": normalise, "rank_by_norm": rank, "tie_b_dec": tied}
    if kind == "jumprelu":
        extra["bandwidth"] = 0.7
    config = configure(kind, d_sae=30, n_tokens=10_000, **extra)
    g = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    p = Parameters(draw(30, 9), draw(30), draw(30, 9), draw(9))
    if kind == "jumprelu":
        p.threshold = draw(30).abs() * 0.3
    if kind == "gated":
        p.b_mag, p.r_mag = draw(30), draw(30) * 0.3
    x = draw(50, 9)
    leaves = {name: value.clone().requires_grad_() for name, value in p.named().items()}
    loss, codes = dense_objective(Parameters(**leaves), x, config, 2.5, 0.3)
    expected = torch.autograd.grad(loss, list(leaves.values()))
    with torch.no_grad():
        step = evaluate(p, x, Objective(config, 2.5, 0.3, None, Workspace()))
    for name, want in zip(leaves, expected, strict=True):
        got = step.gradient.named()[name]
        # a dot product over 50 tokens or 30 latents rounds by less than 1e2 eps of its largest terms; 1e-10 leaves room
        assert float((got - want).abs().max()) <= 1e-10 * float(want.abs().max()), name
    assert torch.equal(step.fired, (codes > 0).sum(0))
    recon = codes @ leaves["dec"] + leaves["b_dec"]
    assert step.loss == pytest.approx(float((recon - x).detach().square().sum()) / (50 * 2.5), rel=1e-12)


def test_bfloat16_encoding_keeps_the_bias_exact_and_everything_else_close() -> None:
    g = torch.Generator().manual_seed(0)
    config = configure("topk", d_sae=200, n_tokens=10_000, encode_dtype="bfloat16")
    p = initialise(32, config, 32.0, g)
    p.b_enc.normal_(generator=g)
    zeros = pre_activations(p, torch.zeros(3, 32), config, norms=None, workspace=Workspace())
    assert zeros.dtype == torch.bfloat16
    assert torch.equal(zeros, p.b_enc.bfloat16().expand(3, -1))  # only the result is rounded
    x = torch.randn(100, 32, generator=g)
    half = pre_activations(p, x, config, norms=None, workspace=Workspace()).float()
    full = pre_activations(p, x, replace(config, encode_dtype="float32"), norms=None, workspace=Workspace())
    # each factor and the result are rounded by at most 2^-9 of themselves
    bound = 3 * 2.0**-9 * (x.abs() @ p.enc.abs().T + p.b_enc.abs())
    assert bool(((half - full).abs() <= bound).all())
    assert not torch.equal(half, full)


# selection


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 8),
    d_sae=st.integers(1, 120),
    share=st.floats(0.001, 1),
    guess=st.one_of(st.none(), st.floats(-5, 40)),
)
@settings(max_examples=150, deadline=None)
def test_batch_selection_equals_a_full_sort_whatever_the_guess(
    seed: int, n: int, d_sae: int, share: float, guess: float | None
) -> None:
    k = max(1, int(share * d_sae))
    pre = torch.randint(-20, 30, (n, d_sae), generator=torch.Generator().manual_seed(seed)).float()  # many ties
    layout, cut = per_batch(pre, k, torch.float32, guess=guess, workspace=Workspace())
    want = pre.flatten().sort(descending=True).values[: n * k]
    want = want[want > 0]
    assert torch.equal(layout.pre.sort(descending=True).values, want)
    assert cut == (float(want[-1]) if len(want) else 0.0)
    check_layout(layout, pre)


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 6),
    d_sae=st.integers(1, 200),
    share=st.sampled_from([0.001, 0.02, 0.04, 0.06, 0.1, 0.5, 1.0]),
    half=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_token_selection_equals_a_full_sort_of_what_is_positive(
    seed: int, n: int, d_sae: int, share: float, half: bool
) -> None:
    k = max(1, int(share * d_sae))
    pre = torch.randint(-30, 30, (n, d_sae), generator=torch.Generator().manual_seed(seed)).float()  # many ties
    layout = per_token(pre.bfloat16() if half else pre, k, torch.float32, Workspace())
    assert int(layout.offsets.diff().max()) <= k
    for cut in range(1, n):  # a row's choice depends on that row alone
        alone = per_token(pre[cut - 1 : cut], k, torch.float32, Workspace())
        assert torch.equal(alone.latents, layout.latents[layout.offsets[cut - 1] : layout.offsets[cut]])
    best = pre.sort(dim=1, descending=True).values[:, :k].relu()
    for row, want in enumerate(best):
        got = layout.pre[layout.offsets[row] : layout.offsets[row + 1]].relu().sort(descending=True).values
        assert torch.equal(got[got > 0], want[want > 0])
    check_layout(layout, pre)


def check_layout(layout: SparseLayout, pre: Tensor) -> None:
    tokens = torch.arange(len(pre)).repeat_interleave(layout.offsets.diff())
    assert torch.equal(layout.pre, pre[tokens, layout.latents])
    assert len(set(zip(tokens.tolist(), layout.latents.tolist(), strict=True))) == len(tokens)
