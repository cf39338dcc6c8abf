"""Cosines of decoder rows with given directions, beside random rows of the part's own covariance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.analyses.error_saes.parts import Target, generator
from darkmatter.inference import Estimate, interval

FOUND = 0.8
"""|cosine| from which a direction counts as found: 64 % of its squared norm."""

_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Alignment:
    """How near latents come to given directions; intervals take the directions as draws of a population.

    Attributes:
        n_directions: Directions.
        best: Mean over directions of the largest |cosine| with any latent.
        found: Share of directions with a latent of |cosine| at least 0.8.
        control: `best` of as many random rows, drawn from the Gaussian of the part's own covariance.
        control_found: `found` of those.
        gain: `best` − `control`, paired by direction.
    """

    n_directions: int
    best: Estimate
    found: Estimate
    control: Estimate
    control_found: Estimate
    gain: Estimate


def best_cosines(rows: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Largest |cosine| of every row with any direction, and which, in blocks: nothing of rows × directions is kept.

    Args:
        rows: (m, d).
        directions: (f, d).

    Returns:
        (largest |cosine|, number of that direction), (m,) each; a row of zeros has cosine 0.
    """
    units = torch.nn.functional.normalize(directions.float(), dim=1)
    best = [
        (torch.nn.functional.normalize(block.float(), dim=1) @ units.T).abs().max(dim=1)
        for block in torch.split(rows, _ROWS)
    ]
    return torch.cat([b.values for b in best]).clamp_max(1.0), torch.cat([b.indices for b in best])


def align(decoder: Tensor, directions: Tensor, target: Target, *, seed: int) -> Alignment:
    """Compare the latents of an SAE with directions.

    Args:
        decoder: Decoder rows in the units of the part, (m, d).
        directions: (f, d), f ≥ 2.
        target: What the SAE was trained on; the control draws rows with its covariance.
        seed: Seed of the control.

    Returns:
        The comparison.
    """
    best = best_cosines(directions, decoder.to(directions.device))[0].double().cpu()
    noise = torch.randn(
        len(decoder), target.rank, dtype=torch.float64, generator=generator(seed, f"random rows {target.name}")
    )
    random = (noise * target.values.sqrt().cpu()) @ target.basis.cpu()
    control = best_cosines(directions, random.to(directions.device))[0].double().cpu()
    return Alignment(
        n_directions=len(directions),
        best=_mean(best),
        found=_mean((best >= FOUND).double()),
        control=_mean(control),
        control_found=_mean((control >= FOUND).double()),
        gain=_mean(best - control),
    )


def _mean(values: Tensor) -> Estimate:
    mean = values.mean()
    return interval(float(mean), values - mean, torch.ones_like(values))
