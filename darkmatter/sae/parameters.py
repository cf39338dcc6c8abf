"""What training changes: weights, biases and, per architecture, thresholds or gates."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import normalize

from darkmatter.sae.config import Architecture, TrainConfig

START = 2.0
"""How far a fresh latent of relu, gated or jumprelu is from firing, in standard deviations of its pre-activation under
isotropic data: sparse codes from the first step on learn as well as dense ones and cost a tenth."""

_EXTRA: dict[Architecture, tuple[str, ...]] = {"jumprelu": ("threshold",), "gated": ("b_mag", "r_mag")}


@dataclass(slots=True)
class Parameters:
    """What is trained, or the gradients of it; the encoder is stored transposed, one row per latent like the decoder.

    Attributes:
        enc: Encoder rows, (d_sae, d_model).
        b_enc: (d_sae,); of a gated autoencoder the gate's bias.
        dec: Decoder rows, (d_sae, d_model).
        b_dec: (d_model,).
        threshold: (d_sae,), per unit token; jumprelu only.
        b_mag: Bias of the magnitude, (d_sae,); gated only.
        r_mag: Logarithm of the magnitude's scale, (d_sae,); gated only.
    """

    enc: Tensor
    b_enc: Tensor
    dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None = None
    b_mag: Tensor | None = None
    r_mag: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """List the tensors that are present, in a fixed order."""
        present = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in present.items() if value is not None}

    def all(self) -> tuple[Tensor, ...]:
        """List the tensors that are present, in the same order."""
        return tuple(self.named().values())

    def to(self, device: torch.device) -> Parameters:
        """Move to a device."""
        return Parameters(**{name: value.to(device) for name, value in self.named().items()})


def fresh(name: str, config: TrainConfig, *, d_model: int, variance: float) -> float:
    """Give the start of a per-latent parameter: 0, but for the bias or threshold that makes codes sparse.

    Args:
        name: Field of `Parameters`.
        config: Settings.
        d_model: Activation width.
        variance: Mean squared norm of the activations in training units.

    Returns:
        The value for a new or revived latent.
    """
    if name == "threshold":
        return START / math.sqrt(d_model)
    if name == "b_enc" and config.architecture in {"relu", "gated"}:
        return -START * config.decoder_init_norm * math.sqrt(variance / d_model)
    return 0.0


def initialise(d_model: int, config: TrainConfig, variance: float, generator: torch.Generator) -> Parameters:
    """Draw random decoder rows of norm `decoder_init_norm`; the encoder starts as their transpose.

    Args:
        d_model: Activation width.
        config: Settings.
        variance: Mean squared norm of the activations in training units.
        generator: Source of randomness, on the CPU.

    Returns:
        Float32 parameters on the CPU.
    """
    dec = normalize(torch.randn(config.d_sae, d_model, generator=generator), dim=1) * config.decoder_init_norm
    extra = _EXTRA.get(config.architecture, ())
    latents = {
        name: torch.full((config.d_sae,), fresh(name, config, d_model=d_model, variance=variance))
        for name in ("b_enc", *extra)
    }
    return Parameters(enc=dec.clone(), dec=dec, b_dec=torch.zeros(d_model), **latents)


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
