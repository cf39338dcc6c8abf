"""Training units: activations centred and scaled, and the way back to raw activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.errors import DegenerateError
from darkmatter.sae.config import Architecture, TrainConfig
from darkmatter.sae.parameters import Parameters
from darkmatter.sae.record import SAE
from darkmatter.sae.record_checks import Activation

_ACTIVATIONS: dict[Architecture, Activation] = {
    "topk": "topk",
    "batchtopk": "jumprelu",
    "matryoshka": "jumprelu",
    "relu": "relu",
    "jumprelu": "jumprelu",
    "gated": "gated",
}


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
        """Express raw activations (n, d_model) in training units, in place."""
        return x.sub_(self.centre).div_(self.scale)


def raw_units(d_model: int, device: torch.device) -> Units:
    """Give the units that change nothing, with losses per token instead of per variance."""
    return Units(torch.zeros(d_model, device=device), 1.0, 1.0)


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


def fold(parameters: Parameters, units: Units, config: TrainConfig, cut: float | None) -> SAE:
    """Rewrite parameters in training units as a record for raw activations.

    Every activation function commutes with a positive factor on a latent's pre-activation, bias and threshold. So a
    decoder row's norm moves into its encoder row, and with b_pre = centre, biases and thresholds times the scale, and
    matrices as they are otherwise, the raw codes are scale times the training codes: exactly so for the scale, a power
    of two. b_dec' = centre + scale·b_dec rounds once. batchtopk and matryoshka become jumprelu with one threshold.

    Args:
        parameters: Trained parameters.
        units: The units they were trained in.
        config: The settings they were trained with.
        cut: Threshold of batchtopk and matryoshka in training units.

    Returns:
        The record, sharing no memory with `parameters`.
    """
    kind = config.architecture
    norms = parameters.dec.norm(dim=1) if config.folds_norms else torch.ones_like(parameters.b_enc)
    zero = torch.zeros_like(units.centre)
    bias = parameters.b_enc * norms * units.scale
    threshold = None
    if parameters.threshold is not None:
        threshold = parameters.threshold * (units.variance**0.5 * units.scale) * norms
    elif kind in {"batchtopk", "matryoshka"}:
        threshold = torch.full_like(bias, (cut or 0.0) * units.scale)
    return SAE(
        W_enc=(parameters.enc * norms[:, None]).T.contiguous(),
        b_enc=torch.zeros_like(bias) if kind == "gated" else bias,
        W_dec=parameters.dec / norms[:, None],
        b_dec=parameters.b_dec * units.scale + units.centre,
        b_pre=units.centre + (parameters.b_dec * units.scale if config.tie_b_dec else zero),
        activation=_ACTIVATIONS[kind],
        k=config.k if kind == "topk" else None,
        threshold=threshold,
        b_gate=bias if kind == "gated" else None,
        b_mag=None if parameters.b_mag is None else parameters.b_mag * norms * units.scale,
        r_mag=None if parameters.r_mag is None else parameters.r_mag.clone(),
    )
