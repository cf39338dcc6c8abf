"""Training units: activations centred and scaled, and the way back to raw activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.errors import DegenerateError
from darkmatter.sae.record import SAE
from darkmatter.sae.step import Parameters


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Training units: x' = (x − centre) / scale.

    Attributes:
        centre: Mean activation, (d_model,).
        scale: The power of two nearest to the root mean square coordinate, so that scaling rounds nothing.
        variance: Mean squared norm of x'.
    """

    centre: Tensor
    scale: float
    variance: float

    def convert(self, x: Tensor) -> Tensor:
        """Express raw activations (n, d_model) in training units."""
        return (x - self.centre) / self.scale


def calibrate(batches: Sequence[Tensor]) -> Units:
    """Measure centre and scale of activations.

    Args:
        batches: Float32 tensors (n, d_model), at least one.

    Returns:
        The units.

    Raises:
        DegenerateError: All activations are equal.
    """
    x = torch.cat(list(batches)).double()
    centre = x.mean(dim=0).float()
    power = float((x - centre).square().mean())
    spread = math.sqrt(power)
    if spread <= torch.finfo(torch.float32).eps * float(centre.abs().max()):  # what rounding alone leaves
        raise DegenerateError(
            f"the first {len(x)} activations do not vary (root mean square deviation {spread:.3g}): "
            "there is nothing to learn; check the source",
            {"rms_deviation": spread},
        )
    scale = 2.0 ** round(math.log2(spread))
    return Units(centre, scale, power / scale**2 * x.shape[1])


def fold(parameters: Parameters, units: Units, k: int) -> SAE:
    """Rewrite parameters in training units as a record for raw activations.

    relu and top-k commute with a positive factor, so with b_pre = centre, b_enc' = scale·b_enc and unchanged matrices
    the raw codes are scale times the training codes, exactly; b_dec' = centre + scale·b_dec rounds once.

    Args:
        parameters: Trained parameters.
        units: The units they were trained in.
        k: Latents kept per token.

    Returns:
        The record, sharing no memory with `parameters`.
    """
    return SAE(
        W_enc=parameters.enc.T.contiguous(),
        b_enc=parameters.b_enc * units.scale,
        W_dec=parameters.dec.clone(),
        b_dec=parameters.b_dec * units.scale + units.centre,
        b_pre=units.centre.clone(),
        activation="topk",
        k=k,
    )
