"""One optimisation step: loss, gradients and firing counts of every architecture, derived by hand.

Notation: n tokens of mean squared norm V; g = 2·error/(n·V) is the gradient of the FVU by the reconstruction, and
δ = ⟨g, dec⟩ that by a code. In unit tokens a code is 1/sqrt(V) of what it is in training units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.sae.config import SELECTING, TrainConfig
from darkmatter.sae.encode import above, pre_activations, split
from darkmatter.sae.layouts import Layout
from darkmatter.sae.parameters import Parameters
from darkmatter.sae.selection import per_batch, per_token
from darkmatter.sae.workspace import Workspace


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """What a step minimises.

    Attributes:
        config: Settings.
        variance: V, which makes loss and gradients free of scale.
        price: Price of sparsity, in the unit of `config.price`.
        cut: Smallest code that the previous batch kept, batchtopk and matryoshka; only a hint.
        workspace: Memory to reuse.
    """

    config: TrainConfig
    variance: float
    price: float
    cut: float | None
    workspace: Workspace


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What one batch says about the current parameters.

    Attributes:
        loss: Σ|error|² / (n·V), one number without penalties: the FVU where V is this batch's.
        gradient: d objective / d parameters.
        error: recon − x, (n, d_model).
        fired: How often each latent was above zero, (d_sae,), int64.
        cut: Smallest code kept, in units of unit decoder rows; None where nothing is cut across the batch.
    """

    loss: float
    gradient: Parameters
    error: Tensor
    fired: Tensor
    cut: float | None = None


def evaluate(parameters: Parameters, x: Tensor, objective: Objective) -> Step:
    """Run a batch forward and backward.

    All but the encoder's forward product cost about L0/d_sae of their dense form while codes are sparse.

    Args:
        parameters: Current parameters.
        x: Activations in training units, (n, d_model).
        objective: What to minimise.

    Returns:
        Loss, gradients, errors and firing counts.
    """
    kind = objective.config.architecture
    if kind in SELECTING:
        return _selecting(parameters, x, objective)
    if kind == "jumprelu":
        return _jumprelu(parameters, x, objective)
    return _gated(parameters, x, objective) if kind == "gated" else _relu(parameters, x, objective)


def _selecting(parameters: Parameters, x: Tensor, objective: Objective) -> Step:
    """Step of topk, batchtopk and matryoshka: the mean FVU over the nested prefixes of latents.

    A latent of group m serves every prefix from m on, so the gradient that reaches it is Σ_{m' ≥ m} g_m'. Latents
    compete by code times decoder norm unless `rank_by_norm` is off, and their gradient is that of the plain code
    (SAELens' ``rescale_acts_by_decoder_norm``).
    """
    config, k = objective.config, objective.config.k or 0
    norms = parameters.dec.norm(dim=1) if config.folds_norms else None
    pre = pre_activations(parameters, x, config, norms=norms, workspace=objective.workspace)
    cut = None
    if config.architecture == "topk":
        layout = per_token(pre, k, x.dtype, objective.workspace)
    else:
        layout, cut = per_batch(pre, k, x.dtype, guess=objective.cut, workspace=objective.workspace)
    parts = split(layout, config.prefixes)
    error, upstreams, decoded = parameters.b_dec - x, [], []
    for latents, part in parts:
        codes = part.pre.relu() if norms is None else part.pre.relu() / part.spread(norms[latents])
        recon, pullback = part.decode(codes, parameters.dec[latents])
        error = recon.add_(error)
        upstreams.append(error * (2.0 / (len(x) * objective.variance * len(parts))))
        decoded.append((latents, part, codes, pullback))
    gradients: list[Parameters] = []
    fired: list[Tensor] = []
    later: Tensor | None = None
    for (_, part, codes, pullback), upstream in zip(reversed(decoded), reversed(upstreams), strict=True):
        later = upstream if later is None else later + upstream
        delta = pullback(later).mul_(codes > 0)
        gradients.insert(0, _backward(x, part, codes=codes, upstream=later, delta=delta))
        fired.insert(0, part.counts(codes > 0))
    gradient = gradients[0]  # its b_dec is that of all: the first prefix's bias serves every other
    if len(parts) > 1:
        gradient.enc = torch.cat([part.enc for part in gradients])
        gradient.b_enc = torch.cat([part.b_enc for part in gradients])
        gradient.dec = torch.cat([part.dec for part in gradients])
    _tie(gradient, gradient.b_enc, parameters, config)
    return _step(error, gradient, torch.cat(fired), objective, cut)


def _relu(parameters: Parameters, x: Tensor, objective: Objective) -> Step:
    """Step of relu: FVU + price · Σ code·|dec| / (n·sqrt(V))."""
    config = objective.config
    pre = pre_activations(parameters, x, config, norms=None, workspace=objective.workspace)
    layout = above(pre, 0.0, x.dtype, objective.workspace)
    codes = layout.pre.relu_()
    active = codes > 0
    recon, pullback = layout.decode(codes, parameters.dec)
    error = recon.add_(parameters.b_dec).sub_(x)
    upstream = error * (2.0 / (len(x) * objective.variance))
    norms, rate = parameters.dec.norm(dim=1), _rate(objective, x)
    delta = pullback(upstream).add_(layout.spread(norms * rate)).mul_(active)
    gradient = _backward(x, layout, codes=codes, upstream=upstream, delta=delta)
    _tie(gradient, gradient.b_enc, parameters, config)
    if not config.normalise_decoder:
        gradient.dec += (rate * layout.totals(codes) / norms)[:, None] * parameters.dec
    return _step(error, gradient, layout.counts(active), objective)


def _jumprelu(parameters: Parameters, x: Tensor, objective: Objective) -> Step:
    """Step of jumprelu: FVU + price · L0, with θ's gradient by a rectangular kernel of width ε around it.

    ∂code/∂θ ≈ −θ/ε and ∂[pre > θ]/∂θ ≈ −1/ε where |pre − θ| < ε/2 (Rajamanoharan et al. 2024b, eq. 11 and 12); the
    pre-activations get no such gradient.
    """
    config, size = objective.config, math.sqrt(objective.variance)
    assert parameters.threshold is not None
    threshold, width = parameters.threshold * size, config.kernel_width * size
    pre = pre_activations(parameters, x, config, norms=None, workspace=objective.workspace)
    layout = above(pre, threshold - width / 2, x.dtype, objective.workspace)
    cut = layout.spread(threshold)
    active = layout.pre > cut
    codes = layout.pre * active
    recon, pullback = layout.decode(codes, parameters.dec)
    error = recon.add_(parameters.b_dec).sub_(x)
    upstream = error * (2.0 / (len(x) * objective.variance))
    delta = pullback(upstream)
    near = (layout.pre - cut).abs_() < width / 2
    pull = layout.totals((delta * cut).add_(objective.price / len(x)).mul_(near))
    gradient = _backward(x, layout, codes=codes, upstream=upstream, delta=delta.mul_(active))
    _tie(gradient, gradient.b_enc, parameters, config)
    gradient.threshold = pull * (-size / width)
    return _step(error, gradient, layout.counts(active), objective)


def _gated(parameters: Parameters, x: Tensor, objective: Objective) -> Step:
    """Step of gated: FVU + price · Σ relu(gate)·|dec| / (n·sqrt(V)) + FVU of relu(gate) under a frozen decoder.

    gate = pre + b_gate, code = [gate > 0] · relu(exp(r_mag)·pre + b_mag) (Rajamanoharan et al. 2024a, eq. 6 to 8); the
    step function passes no gradient, so the gate learns from the last two terms only.
    """
    config = objective.config
    assert parameters.b_mag is not None
    assert parameters.r_mag is not None
    gate = pre_activations(parameters, x, config, norms=None, workspace=objective.workspace)  # b_enc is b_gate
    layout = above(gate, 0.0, x.dtype, objective.workspace)
    scale = parameters.r_mag.exp()
    pre = layout.pre - layout.spread(parameters.b_enc)
    opened = layout.pre > 0
    codes = (pre * layout.spread(scale)).add_(layout.spread(parameters.b_mag)).relu_().mul_(opened)
    recon, pullback = layout.decode(codes, parameters.dec)
    error = recon.add_(parameters.b_dec).sub_(x)
    upstream = error * (2.0 / (len(x) * objective.variance))
    by_code = (pullback(upstream) * (codes > 0)).clone()
    gates = layout.pre.relu_()
    recon, pullback = layout.decode(gates, parameters.dec)
    auxiliary = recon.add_(parameters.b_dec).sub_(x).mul_(2.0 / (len(x) * objective.variance))
    norms, rate = parameters.dec.norm(dim=1), _rate(objective, x)
    by_gate = pullback(auxiliary).add_(layout.spread(norms * rate)).mul_(opened)
    magnitude, bias = layout.totals(by_code * pre), layout.totals(by_code)
    gate_bias = layout.totals(by_gate)
    delta = by_code.mul_(layout.spread(scale)).add_(by_gate)
    gradient = _backward(x, layout, codes=codes, upstream=upstream, delta=delta)
    _tie(gradient, gradient.b_enc, parameters, config)
    gradient.b_enc, gradient.b_mag, gradient.r_mag = gate_bias, bias, magnitude * scale
    if not config.normalise_decoder:
        gradient.dec += (rate * layout.totals(gates) / norms)[:, None] * parameters.dec
    return _step(error, gradient, layout.counts(codes > 0), objective)


def _rate(objective: Objective, x: Tensor) -> float:
    """Price of one unit of activation in training units, per token."""
    return objective.price / (len(x) * math.sqrt(objective.variance))


def _backward(x: Tensor, layout: Layout, *, codes: Tensor, upstream: Tensor, delta: Tensor) -> Parameters:
    """Give the gradients of weights and biases from those by the reconstruction and by the pre-activations."""
    return Parameters(
        enc=layout.gather(delta, x),
        b_enc=layout.totals(delta),
        dec=layout.gather(codes, upstream),
        b_dec=upstream.sum(dim=0),
    )


def _tie(gradient: Parameters, by_bias: Tensor, parameters: Parameters, config: TrainConfig) -> None:
    """Add, in place, what reaches the parameters through pre = enc·(x − b_dec); by_bias is Σ_i ∂/∂pre_i, (d_sae,)."""
    if config.tie_b_dec:
        gradient.enc -= torch.outer(by_bias, parameters.b_dec)
        gradient.b_dec -= by_bias @ parameters.enc


def _step(error: Tensor, gradient: Parameters, fired: Tensor, objective: Objective, cut: float | None = None) -> Step:
    loss = float(torch.linalg.vector_norm(error).double().square()) / (len(error) * objective.variance)
    return Step(loss, gradient, error, fired, cut)
