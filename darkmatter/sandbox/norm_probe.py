"""How much of a squared norm a linear probe of x reads off, in closed form: an oracle for the norm tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from darkmatter.errors import InputError
from darkmatter.theory import norm_probe as theory
from darkmatter.theory.amplitudes import gated_moments

if TYPE_CHECKING:
    from darkmatter.sandbox.surgical import Surgical
    from darkmatter.sandbox.world import World

KINDS = ("none", "independent")
"""Kinds of introduced error for which the squared norms have a closed form."""


@dataclass(frozen=True, slots=True)
class NormProbe:
    """Population R² of squared norms regressed on x with an intercept; NaN where a norm does not vary.

    Attributes:
        x: Of ‖x‖², what `r2_norm_x` estimates.
        error: Of ‖e‖², what `r2_norm` estimates.
        recon: Of ‖Sae(x)‖², what `r2_norm_recon` estimates.
    """

    x: float
    error: float
    recon: float


def norm_probe(world: World, surgical: Surgical) -> NormProbe:
    """Population R² of ‖x‖², ‖e‖² and ‖Sae(x)‖² regressed on x: theorem A with the world's factors.

    For x itself U = Y and V = F; for the reconstruction U holds the SAE's directions, V = 0 and σ² d = Var N; for the
    error U is the difference, V = F, and σ the same (`darkmatter.theory.norm_probe` has the formula).

    Args:
        world: A world whose features are independent and whose dense part does not depend on them.
        surgical: An SAE with introduced "none" or "independent" that is linear in the codes.

    Returns:
        The three R².

    Raises:
        InputError: Another world or SAE: there is no closed form.
    """
    if not world.independent or world.dense_codes is not None:
        raise InputError(
            "the norm probe has a closed form only where features are independent of each other and of the dense part: "
            "pass topic_strength=0, correlation=0, roots=0, exclusion=1 and another dense than 'codes', or measure it "
            "with decompose"
        )
    bound = surgical.bind(world)
    response = bound.response
    if response is None or (surgical.introduced_share and surgical.introduced not in KINDS):
        raise InputError(
            f"the norm probe has no closed form for introduced={surgical.introduced!r}, splitting "
            f"{surgical.splitting:g}, absorption {surgical.absorption:g}, expected {' or '.join(KINDS)} without either"
        )
    y, f = world.dictionary_matrix.astype(np.float64), world.dense_map.astype(np.float64)
    law = world.dense_law
    factors = theory.Factors(
        directions=y,
        moments=gated_moments(world.amplitude_law.moments, world.firing_rates, world.amplitude_scales),
        dense_map=f,
        skew=np.zeros(0) if law is None else law.skew,
        square_variance=0.0 if law is None else law.square_variance,
    )
    known, noise = response[: world.n_features], bound.scale
    x, error, recon = theory.norm_probe(
        factors,
        factors.itself,
        theory.Vector(y - known, f, noise),
        theory.Vector(known, np.zeros_like(f), noise),
    )
    return NormProbe(x=x.r2, error=error.r2, recon=recon.r2)
