"""Giving latents that stopped firing a new start."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from darkmatter.sae.config import TrainConfig
from darkmatter.sae.parameters import Parameters, fresh


def revive(
    parameters: Parameters,
    adam: torch.optim.Adam,
    dead: Tensor,
    error: Tensor,
    config: TrainConfig,
    *,
    variance: float,
    generator: torch.Generator,
) -> Tensor:
    """Point dead latents at what the reconstruction misses, each at another token drawn ∝ |error|².

    Encoder and decoder row become the missed direction, at the mean norm of the other rows; biases, thresholds and
    gates return to their start, and Adam forgets the latent (much as in Bricken et al. 2023, "Towards
    Monosemanticity").

    Args:
        parameters: Changed in place.
        adam: Its moments are changed in place.
        dead: Latents, (m,), int64.
        error: recon − x of the last batch, (n, d_model).
        config: Settings.
        variance: Mean squared norm of the activations in training units.
        generator: Source of randomness, on the CPU.

    Returns:
        The latents revived: all of `dead`, or as many as there are tokens with an error.
    """
    if len(dead) == 0:
        return dead
    weights = error.square().sum(dim=1).double().cpu()
    dead = dead[: int(weights.count_nonzero())]
    if len(dead) == 0:
        return dead
    tokens = torch.multinomial(weights, len(dead), replacement=False, generator=generator)
    directions = normalize(-error[tokens.to(error.device)], dim=1)
    for row in (parameters.dec, parameters.enc):
        row[dead] = directions * row.norm(dim=1).mean()
    if config.normalise_decoder:
        parameters.dec[dead] = directions
    for name, value in parameters.named().items():
        if value.ndim == 1 and name != "b_dec":
            value[dead] = fresh(name, config, d_model=error.shape[1], variance=variance)
        if name != "b_dec":
            for moment in ("exp_avg", "exp_avg_sq"):
                adam.state[value][moment][dead] = 0.0
    return dead
