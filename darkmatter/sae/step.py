"""One optimisation step of a TopK autoencoder, with gradients that touch active latents only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from darkmatter.sae.kernels import bag_sum, top_k, transpose, value_gradient


@dataclass(slots=True)
class Parameters:
    """What is trained, or the gradients of it; the encoder is stored transposed, one row per latent like the decoder.

    Attributes:
        enc: Encoder rows, (d_sae, d_model).
        b_enc: (d_sae,).
        dec: Decoder rows, (d_sae, d_model), of unit norm.
        b_dec: (d_model,).
    """

    enc: Tensor
    b_enc: Tensor
    dec: Tensor
    b_dec: Tensor

    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """List the four tensors in a fixed order."""
        return self.enc, self.b_enc, self.dec, self.b_dec

    def to(self, device: torch.device) -> Parameters:
        """Move to a device."""
        return Parameters(*(value.to(device) for value in self.all()))


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What one batch says about the current parameters.

    Attributes:
        loss: Σ|error|² / (n·variance), one number: the FVU where `variance` is this batch's.
        gradient: d loss / d parameters.
        error: recon − x, (n, d_model).
        fired: How often each latent was above zero, (d_sae,), int64.
    """

    loss: float
    gradient: Parameters
    error: Tensor
    fired: Tensor


def initialise(d_model: int, d_sae: int, generator: torch.Generator) -> Parameters:
    """Draw random unit decoder rows; the encoder starts as their transpose, both biases at 0.

    Args:
        d_model: Activation width.
        d_sae: Number of latents.
        generator: Source of randomness, on the CPU.

    Returns:
        Float32 parameters on the CPU.
    """
    dec = normalize(torch.randn(d_sae, d_model, generator=generator), dim=1)
    return Parameters(dec.clone(), torch.zeros(d_sae), dec, torch.zeros(d_model))


def evaluate(parameters: Parameters, x: Tensor, *, k: int, variance: float) -> Step:
    """Run a batch forward and backward: recon = relu(top-k(enc·x + b_enc)) @ dec + b_dec.

    With g = 2(recon − x)/(n·variance) and δ = ⟨g, dec⟩ on the latents above zero, the gradients are
    codesᵀg (dec), δᵀx (enc), Σδ (b_enc) and Σg (b_dec). All but the encoder's forward product cost k/d_sae of their
    dense form.

    Args:
        parameters: Current parameters.
        x: Activations in training units, (n, d_model).
        k: Latents kept per token.
        variance: Mean squared norm of x, which makes loss and gradients free of scale.

    Returns:
        Loss, gradients, errors and firing counts.
    """
    n, d_sae = len(x), len(parameters.enc)
    pre = torch.addmm(parameters.b_enc, x, parameters.enc.T)
    selected, columns = top_k(pre, k)
    values, latents = selected.relu().flatten(), columns.flatten()
    offsets = torch.arange(0, n * k + 1, k, device=x.device)
    error = bag_sum(latents, values, offsets, parameters.dec) + parameters.b_dec - x
    upstream = error * (2.0 / (n * variance))
    delta = value_gradient(latents, values, offsets, parameters.dec, upstream) * (values > 0)
    entries, tokens, ends = transpose(latents, n, d_sae)
    by_latent = delta[entries]
    gradient = Parameters(
        enc=bag_sum(tokens, by_latent, ends, x),
        b_enc=torch.segment_reduce(by_latent, "sum", offsets=ends),
        dec=bag_sum(tokens, values[entries], ends, upstream),
        b_dec=upstream.sum(dim=0),
    )
    fired = torch.bincount(latents[values > 0], minlength=d_sae)
    return Step(float(error.square().sum()) / (n * variance), gradient, error, fired)


def clip_gradient(gradient: Parameters, max_norm: float) -> float:
    """Scale the gradient, in place, to a joint norm of at most `max_norm`.

    Args:
        gradient: Changed.
        max_norm: Largest norm to let pass.

    Returns:
        The norm before.
    """
    norm = float(torch.stack([g.norm() for g in gradient.all()]).norm())
    if norm > max_norm:
        for g in gradient.all():
            g.mul_(max_norm / norm)
    return norm
