"""The scaling analysis: moments of many SAEs of one site, their widths and L0s, in; laws, slopes and surfaces out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch

from darkmatter.analyses.controls import is_control
from darkmatter.analyses.scaling.curves import Floats
from darkmatter.analyses.scaling.law import MIN_WIDTHS, Law, fit_law
from darkmatter.analyses.scaling.linear import fit_surface, slope_test
from darkmatter.analyses.scaling.log_errors import LogErrors, RunsVariance
from darkmatter.analyses.scaling.matching import Cells
from darkmatter.analyses.scaling.points import Points, points_of
from darkmatter.analyses.scaling.result import Level, ScaledSae, ScalingLaw, WidthShares
from darkmatter.errors import InputError
from darkmatter.folds import FoldMoments
from darkmatter.inference import LEVEL, UNDEFINED, Estimate, interval

MARGIN = 0.05
"""Default margin of a slope: a share that changes by less than 3.5 % when the width doubles."""
DRAWS = 400
"""Bootstrap draws."""
_MIN_SLOPE = 3


def scaling_law(
    moments: FoldMoments | Points,
    widths: Mapping[str, int],
    l0s: Mapping[str, float],
    *,
    at_l0: Sequence[float] | None = None,
    margin: float = MARGIN,
    draws: int = DRAWS,
    seed: int = 0,
) -> ScalingLaw:
    """Fit FVU(w) = c + a w^−m at matched L0, and test whether the nonlinear error is constant in width.

    Args:
        moments: Moments of all SAEs on the same tokens; or their points, joined from several passes over these tokens
            where one pass does not hold all sums.
        widths: Latents by SAE name.
        l0s: Measured mean number of active latents by SAE name.
        at_l0: L0s to compare widths at; None chooses from those that all widths reach.
        margin: Slope of the log nonlinear error over log width below which it counts as constant.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.

    Returns:
        The analysis. Null controls in the moments are reported apart and used by no fit; laws need 4 widths, slopes 3.

    Raises:
        InputError: Fewer than three widths, unknown or impossible widths and L0s, or moments that cannot be used.
        DegenerateError: x is constant, or an SAE makes no error.
    """
    if not margin > 0 or draws < 1:
        raise InputError(f"margin is {margin!r} and draws {draws!r}, expected both above 0")
    points = moments if isinstance(moments, Points) else points_of(moments)
    warnings = list(points.warnings)
    chosen = []
    for name, kind in zip(points.names, points.degenerate, strict=True):
        if is_control(name):
            continue
        _check_sae(name, widths, l0s, dead=kind == "dead")
        if kind is None:
            chosen.append(name)
        else:
            warnings.append(f"{name} is {kind} on these tokens and left out: its error is linear by construction.")
    used = points.take(chosen)
    width = np.array([float(widths[name]) for name in chosen])
    if len(set(width)) < _MIN_SLOPE:
        raise InputError(
            f"the usable SAEs have {len(set(width))} different width(s), expected at least {_MIN_SLOPE} for a slope "
            f"and {MIN_WIDTHS} for an asymptote: give more --sae"
        )
    cells = Cells.of(width, np.array([l0s[name] for name in chosen]))
    runs = {kind: _replicated(y, errors, cells) for kind, y, errors in _both(used)}
    levels = tuple(
        _level(l0, used, cells, runs, margin=margin, draws=draws, seed=seed, warnings=warnings)
        for l0 in cells.levels(at_l0)
    )
    if not any(cells.runs > 1):
        warnings.append(
            "No width and L0 has two runs: the scatter of training runs is known from the residuals of the fits only."
        )
    surfaces = {
        kind: fit_surface(cells.average @ y, cells.width, cells.l0, errors.mapped(cells.average), replicated=runs[kind])
        for kind, y, errors in _both(used)
    }
    return ScalingLaw(
        saes={name: _sae(name, points, widths, l0s) for name in points.names if not is_control(name)},
        controls={name: _sae(name, points, widths, l0s) for name in points.names if is_control(name)},
        levels=levels,
        surface=surfaces["fvu"],
        surface_nonlinear=surfaces["nonlinear"],
        replicated_deviation=runs["fvu"].deviation if runs["fvu"] is not None else None,
        n_tokens=int(points.n.sum()),
        n_groups=points.n_groups,
        n_folds=len(points.n),
        var_x=points.var_x,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _both(points: Points) -> tuple[tuple[str, Floats, LogErrors], ...]:
    return (
        ("fvu", points.fvu, LogErrors.of(points.fvu_influence, points.n)),
        ("nonlinear", points.nonlinear, LogErrors.of(points.nonlinear_influence, points.n)),
    )


def _check_sae(name: str, widths: Mapping[str, int], l0s: Mapping[str, float], *, dead: bool) -> None:
    width, l0 = widths.get(name), l0s.get(name)
    if width is None or l0 is None:
        raise InputError(f"width and L0 of {name!r} are {width} and {l0}, expected both of every SAE in the moments")
    fires = math.isfinite(l0) and 0 < l0 <= width
    if width < 1 or not (fires or dead):
        raise InputError(f"{name} has {width} latents of which {l0:g} are active per token, expected 0 < L0 <= latents")


def _replicated(y: Floats, errors: LogErrors, cells: Cells) -> RunsVariance | None:
    """Variance between runs of the same settings, by moments, from the deviations from cell means."""
    extra = int((cells.runs - 1).sum())
    if not extra:
        return None
    centre = np.eye(len(y)) - (cells.average > 0).T.astype(np.float64) @ cells.average
    sampling = float(np.square(errors.folds @ centre.T).sum())
    return RunsVariance(float(np.square(centre @ y).sum()) / extra, sampling / extra, extra)


def _level(
    l0: float,
    points: Points,
    cells: Cells,
    runs: Mapping[str, RunsVariance | None],
    *,
    margin: float,
    draws: int,
    seed: int,
    warnings: list[str],
) -> Level:
    width, weights = cells.interpolation(l0)
    missing = sorted(set(cells.widths) - set(width))
    if missing:
        warnings.append(
            f"At L0 {l0:.4g} the width(s) {', '.join(f'{w:g}' for w in missing)} have no SAE on both sides and are "
            "left out: shares are interpolated over L0, not extrapolated."
        )
    logs = {kind: weights @ y for kind, y, _ in _both(points)}
    errors = {kind: e.mapped(weights) for kind, _, e in _both(points)}
    law: dict[str, Law | None] = {"fvu": None, "nonlinear": None}
    reason = ""
    if len(width) < MIN_WIDTHS:
        reason = (
            f"{len(width)} widths at this L0, expected at least {MIN_WIDTHS}: three parameters through {len(width)} "
            "points leave nothing to tell how wrong they are"
        )
    else:
        law = {
            kind: fit_law(logs[kind], width, errors[kind], replicated=runs[kind], draws=draws, seed=seed)
            for kind in logs
        }
        fitted = cast(Law, law["fvu"])
        asymptote, widest = fitted.asymptote, math.exp(logs["fvu"][-1])
        if fitted.p_fit < 1 - LEVEL:
            warnings.append(
                f"At L0 {l0:.4g} residuals of the law exceed the scatter of replicated runs (p {fitted.p_fit:.2g}): "
                "FVU over width is no power law with asymptote there, and c belongs to the fit, not to the SAEs."
            )
        if asymptote.high >= widest:
            warnings.append(
                f"At L0 {l0:.4g} the asymptote is not told from the FVU of the widest SAE: by these points, width may "
                "have done all it can, and the band of absent features at the widest may be empty."
            )
        if asymptote.low == 0:
            warnings.append(f"At L0 {l0:.4g} the asymptote is not told from 0: a plain power law fits as well.")
    slopes = {
        kind: slope_test(logs[kind], width, errors[kind], replicated=runs[kind], margin=margin)
        for kind in logs
        if len(width) >= _MIN_SLOPE
    }
    return Level(
        l0=l0,
        widths=tuple(_shares(i, int(w), weights, points, logs, errors, law["fvu"]) for i, w in enumerate(width)),
        law=law["fvu"],
        law_nonlinear=law["nonlinear"],
        reason=reason,
        fvu_slope=slopes.get("fvu"),
        nonlinear_slope=slopes.get("nonlinear"),
    )


def _shares(
    i: int,
    width: int,
    weights: Floats,
    points: Points,
    logs: Mapping[str, Floats],
    errors: Mapping[str, LogErrors],
    law: Law | None,
) -> WidthShares:
    """Measured shares at one width, and their parts by the law."""
    n = torch.from_numpy(points.n)
    influence = {
        "fvu": torch.from_numpy(points.fvu_influence @ weights[i]),
        "nonlinear": torch.from_numpy(points.nonlinear_influence @ weights[i]),
    }
    value = {kind: math.exp(y[i]) for kind, y in logs.items()}
    fvu, nonlinear = (interval(value[kind], influence[kind], n, link="log") for kind in ("fvu", "nonlinear"))
    linear = interval(
        value["fvu"] - value["nonlinear"],
        value["fvu"] * influence["fvu"] - value["nonlinear"] * influence["nonlinear"],
        n,
    )
    squares = [share * points.var_x for share in (nonlinear.value, nonlinear.low, nonlinear.high)]
    return WidthShares(
        width=width,
        saes=tuple(name for name, weight in zip(points.names, weights[i], strict=True) if abs(weight) > 1e-12),
        fvu=fvu,
        nonlinear=nonlinear,
        linear=linear,
        absent=UNDEFINED if law is None else difference(fvu, law.asymptote),
        lasting_linear=UNDEFINED if law is None else difference(law.asymptote, nonlinear),
        nonlinear_rms=Estimate(*map(math.sqrt, squares)),
    )


def difference(first: Estimate, second: Estimate) -> Estimate:
    """θ1 − θ2 from two intervals, which may be skewed (MOVER; Zou and Donner 2008), taken as uncorrelated.

    Estimates on the same tokens rise and fall together, which makes this interval a little too wide.

    Args:
        first: θ1.
        second: θ2.

    Returns:
        The difference with its interval.
    """
    value = first.value - second.value
    low = value - math.hypot(first.value - first.low, second.high - second.value)
    high = value + math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, low, high)


def _sae(name: str, points: Points, widths: Mapping[str, int], l0s: Mapping[str, float]) -> ScaledSae:
    i, n = points.names.index(name), torch.from_numpy(points.n)
    fvu, nonlinear = (
        interval(math.exp(y[i]), torch.from_numpy(influence[:, i].copy()), n, link="log")
        for y, influence in (
            (points.fvu, points.fvu_influence),
            (points.nonlinear, points.nonlinear_influence),
        )
    )
    return ScaledSae(width=widths.get(name, 0), l0=float(l0s.get(name, math.nan)), fvu=fvu, nonlinear=nonlinear)
