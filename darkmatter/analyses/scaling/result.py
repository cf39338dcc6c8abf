"""What a scaling analysis finds, and how every number is defined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from darkmatter.analyses.scaling.law import Law
from darkmatter.analyses.scaling.linear import Slope, Surface
from darkmatter.inference import Estimate

DEFINITION = (
    "Shares of Var x, pooled and centred; fvu_nonlinear by sqrt(S*C) over document folds. Runs of one width whose L0 "
    "differ by less than 3 % are averaged (mean logarithm); log shares are interpolated over log L0 at every width "
    "(polynomial through the nearest three), never extrapolated. Law: fvu(w) = c + a*w^-m, c >= 0, generalised least "
    "squares on log fvu; covariance from fold influences, shrunk to equal correlation, plus a relative variance tau^2 "
    "of runs about the law from its residuals; intervals of c and m by profile with Satterthwaite's t. "
    "absent = fvu(w) - c and lasting_linear = c - fvu_nonlinear(w) rest on the extrapolated c (intervals by MOVER); "
    "linear and nonlinear are measured. Intervals of measured shares take the SAEs as given; those of laws and slopes "
    "speak of new training runs too."
)


@dataclass(frozen=True, slots=True)
class WidthShares:
    """One width at the L0 of its level.

    Attributes:
        width: Latents.
        saes: SAEs that the numbers are read from.
        fvu: Var e / Var x.
        nonlinear: Var r / Var x, the nonlinear error.
        linear: Their difference, the linear error.
        absent: FVU(w) − c, what more width would remove if the law holds: extrapolated.
        lasting_linear: c − FVU_nl(w): the linear error that no width removes if the law holds and FVU_nl stays:
            extrapolated. Below 0 where the nonlinear error of this width exceeds c, so that some of it must shrink too.
        nonlinear_rms: Root mean square norm of the nonlinear error, in units of activation.
    """

    width: int
    saes: tuple[str, ...]
    fvu: Estimate
    nonlinear: Estimate
    linear: Estimate
    absent: Estimate
    lasting_linear: Estimate
    nonlinear_rms: Estimate


@dataclass(frozen=True, slots=True)
class Level:
    """Everything at one L0.

    Attributes:
        l0: Active latents per token.
        widths: Shares, by rising width.
        law: Law of FVU over width; None with `reason`.
        law_nonlinear: Law of FVU_nl over width; None with `reason`.
        reason: Why there is no law; empty where there is one.
        fvu_slope: Slope of log FVU over log width; None below 3 widths.
        nonlinear_slope: The same of FVU_nl: the test of "the nonlinear error is constant in width".
    """

    l0: float
    widths: tuple[WidthShares, ...]
    law: Law | None
    law_nonlinear: Law | None
    reason: str
    fvu_slope: Slope | None
    nonlinear_slope: Slope | None


@dataclass(frozen=True, slots=True)
class ScaledSae:
    """One SAE as it was measured.

    Attributes:
        width: Latents; 0 for a control without weights.
        l0: Active latents per token; not a number for a control without weights.
        fvu: Var e / Var x.
        nonlinear: Var r / Var x.
    """

    width: int
    l0: float
    fvu: Estimate
    nonlinear: Estimate


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """FVU and FVU_nl over width and L0.

    Attributes:
        saes: The SAEs of the analysis.
        controls: Null controls, which no fit uses.
        levels: The analysis at every L0, rising.
        surface: log FVU over log width and log L0; None where the grid does not span both.
        surface_nonlinear: The same of FVU_nl.
        replicated_deviation: Relative standard deviation of FVU between runs of the same settings; None without any.
        n_tokens: Tokens.
        n_groups: Documents.
        n_folds: Folds that hold tokens.
        var_x: Var x.
        warnings: What to know before trusting the numbers.
        definition: How they are defined.
    """

    saes: Mapping[str, ScaledSae]
    controls: Mapping[str, ScaledSae]
    levels: tuple[Level, ...]
    surface: Surface | None
    surface_nonlinear: Surface | None
    replicated_deviation: Estimate | None
    n_tokens: int
    n_groups: int
    n_folds: int
    var_x: float
    warnings: tuple[str, ...]
    definition: str = DEFINITION
