"""Straight lines in logarithms: does the nonlinear error change with width, and the surface over width and L0."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from darkmatter.analyses.scaling.curves import Floats
from darkmatter.analyses.scaling.log_errors import LogErrors, RunsVariance
from darkmatter.inference import LEVEL, Estimate

_LEAST_RANGE = 0.1
"""Logarithmic range of width and of L0 below which there is no surface over them."""


@dataclass(frozen=True, slots=True)
class Slope:
    """d log(share) / d log(width) at one L0, and whether it is zero, or small.

    Attributes:
        slope: The slope. The absolute norm has the same one (for Var r) or half of it (for its root), since Var x is
            one and the same for all SAEs.
        p_constant: p-value of "the slope is 0", two-sided.
        p_equivalent: p-value of "|slope| is at least the margin" (two one-sided tests); small means constant for
            practical purposes.
        margin: The margin.
        verdict: "constant within the margin", "changes" or "undecided", at 5 %; "changes, within the margin" where both
            tests speak.
        runs_deviation: Relative standard deviation of SAEs about the line beyond sampling.
        dof: Degrees of freedom.
    """

    slope: Estimate
    p_constant: float
    p_equivalent: float
    margin: float
    verdict: str
    runs_deviation: Estimate
    dof: float


@dataclass(frozen=True, slots=True)
class Surface:
    """log share = constant + width_slope · log(w/w0) + l0_slope · log(L0/L00) + interaction · product.

    Centred at the geometric means w0 and L00 of the cells, so that the slopes are those in the middle of the grid.

    Attributes:
        level: The share at (w0, L00).
        width_slope: d log(share) / d log(width).
        l0_slope: d log(share) / d log(L0).
        interaction: Their product's coefficient; undefined where the grid cannot tell.
        runs_deviation: Relative standard deviation of SAEs about the surface beyond sampling.
        width: w0.
        l0: L00.
    """

    level: Estimate
    width_slope: Estimate
    l0_slope: Estimate
    interaction: Estimate | None
    runs_deviation: Estimate
    width: float
    l0: float

    def at(self, width: float, l0: float) -> float:
        """The fitted share."""
        w, k = math.log(width / self.width), math.log(l0 / self.l0)
        product = 0.0 if self.interaction is None else self.interaction.value
        return self.level.value * math.exp(self.width_slope.value * w + self.l0_slope.value * k + product * w * k)


@dataclass(frozen=True, slots=True)
class _Line:
    """Coefficients with their standard errors, (p,) each."""

    value: Floats
    error: Floats
    dof: Floats
    runs: RunsVariance

    def estimate(self, i: int, *, log: bool = False) -> Estimate:
        """One coefficient with its interval."""
        half = float(stats.t.ppf((1 + LEVEL) / 2, self.dof[i])) * self.error[i]
        low, value, high = (float(self.value[i] + side * half) for side in (-1, 0, 1))
        return Estimate(*(math.exp(min(v, 700.0)) for v in (value, low, high))) if log else Estimate(value, low, high)


def slope_test(y: Floats, width: Floats, errors: LogErrors, *, replicated: RunsVariance | None, margin: float) -> Slope:
    """Test whether a share is constant in width.

    Args:
        y: Logarithms of the share at n ≥ 3 widths, (n,).
        width: Widths, (n,).
        errors: Their errors.
        replicated: Variance between training runs of the same settings, where there are any.
        margin: Size of a slope that would matter.

    Returns:
        The test.
    """
    x = np.log(width)
    line = _regress(np.stack([np.ones_like(x), x - x.mean()], axis=1), y, errors, replicated)
    value, error, dof = float(line.value[1]), max(float(line.error[1]), 1e-300), float(line.dof[1])
    p_constant = 2 * float(stats.t.sf(abs(value) / error, dof))
    p_equivalent = float(stats.t.sf((margin - abs(value)) / error, dof))
    alpha = 1 - LEVEL
    small, differs = p_equivalent < alpha, p_constant < alpha
    verdict = (
        ("changes, within the margin" if differs else "constant within the margin")
        if small
        else ("changes" if differs else "undecided")
    )
    return Slope(line.estimate(1), p_constant, p_equivalent, margin, verdict, line.runs.deviation, dof)


def fit_surface(
    y: Floats, width: Floats, l0: Floats, errors: LogErrors, *, replicated: RunsVariance | None
) -> Surface | None:
    """Fit the plane, with the interaction where there are cells for it.

    Args:
        y: Logarithms of the share of n cells, (n,).
        width: Widths, (n,).
        l0: L0, (n,).
        errors: Their errors.
        replicated: Variance between training runs of the same settings, where there are any.

    Returns:
        The surface; None where the cells do not span width and L0.
    """
    w, k = np.log(width), np.log(l0)
    w0, k0 = w.mean(), k.mean()
    design = np.stack([np.ones_like(w), w - w0, k - k0, (w - w0) * (k - k0)], axis=1)
    if min(np.ptp(w), np.ptp(k)) < _LEAST_RANGE:
        return None
    columns = 4 if len(y) > 5 and np.linalg.cond(design) < 1e6 else 3
    if len(y) <= columns or np.linalg.cond(design[:, :columns]) > 1e6:
        return None
    line = _regress(design[:, :columns], y, errors, replicated)
    return Surface(
        level=line.estimate(0, log=True),
        width_slope=line.estimate(1),
        l0_slope=line.estimate(2),
        interaction=line.estimate(3) if columns == 4 else None,
        runs_deviation=line.runs.deviation,
        width=float(np.exp(w0)),
        l0=float(np.exp(k0)),
    )


def _regress(design: Floats, y: Floats, errors: LogErrors, replicated: RunsVariance | None) -> _Line:
    """Generalised least squares with weights from the shrunken covariance and errors from the plain one."""
    covariance = errors.shrunk()
    weight: Floats = np.eye(len(y))
    for _ in range(3):
        coefficients, _ = _solve(design, weight, y)
        runs = errors.runs_variance(y - design @ coefficients, weight, design).pooled(replicated)
        weight = np.asarray(np.linalg.inv(covariance + runs.value * errors.runs), dtype=np.float64)
    coefficients, hat = _solve(design, weight, y)
    runs = errors.runs_variance(y - design @ coefficients, weight, design).pooled(replicated)
    along = np.array([errors.along(row, runs) for row in hat])
    return _Line(coefficients, np.sqrt(along[:, 0]), along[:, 1], runs)


def _solve(design: Floats, weight: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Coefficients, and the rows that make them from y."""
    x = weight @ design
    hat = np.asarray(np.linalg.solve(design.T @ x, x.T), dtype=np.float64)
    return hat @ y, hat
