"""The scaling law FVU(w) = c + a w^−m at one L0: generalised least squares on a log scale, profile intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from darkmatter.analyses.scaling.curves import MAX_EXPONENT, Curves, Fixed, Floats, fit_curves
from darkmatter.analyses.scaling.log_errors import LogErrors, RunsVariance
from darkmatter.inference import LEVEL, Estimate

MIN_WIDTHS = 4
"""Three parameters, and at least one degree of freedom to say how well they fit."""
_ROUNDS = 3
_GRID = 40
_COLLINEAR = 1e-10
_AHEAD = 16.0
_CURVE_POINTS = 33


@dataclass(frozen=True, slots=True)
class Law:
    """A power law with asymptote, FVU(w) = c + a w^−m.

    Attributes:
        asymptote: c ≥ 0, what no width removes: an extrapolation of the law. Its interval holds 0 where a plain power
            law fits as well.
        exponent: m; its upper end is null where no exponent up to 6 can be excluded.
        removable: FVU − c at the widest SAE, the rest of what width removes; at most all of it.
        bootstrap_asymptote: Percentile interval of c over folds of documents, the SAEs taken as they are.
        bootstrap_exponent: That of m.
        runs_deviation: τ, relative standard deviation of SAEs about the law beyond sampling: training runs, and
            whatever the law misses.
        p_fit: p-value of "residuals are no larger than the scatter of replicated runs"; small where the law does not
            fit. Undefined without replicated runs.
        dof: Degrees of freedom of the interval of c.
        curve: (width, lowest, best, highest) FVU of the laws that the interval of c holds, to 16 times the widest.
        reference_width: Width at which `scale` is measured.
        scale: FVU(reference) − c of the best law, so that a = scale · reference^m; a coefficient for drawing.
    """

    asymptote: Estimate
    exponent: Estimate
    removable: Estimate
    bootstrap_asymptote: Estimate
    bootstrap_exponent: Estimate
    runs_deviation: Estimate
    p_fit: float
    dof: float
    curve: tuple[tuple[float, float, float, float], ...]
    reference_width: float
    scale: float

    def at(self, width: float) -> float:
        """FVU of the best law at a width."""
        return self.asymptote.value + self.scale * float((width / self.reference_width) ** -self.exponent.value)


@dataclass(frozen=True, slots=True)
class _Weighed:
    """A fit with its weights: y, t, W = R'R, what the residuals say of τ² and what is taken for it."""

    y: Floats
    t: Floats
    errors: LogErrors
    root: Floats
    weight: Floats
    residual: RunsVariance
    runs: RunsVariance
    best: Curves

    def drop(self, curve: Curves, fixed: Fixed) -> tuple[float, float, float]:
        """How much worse a fit with one parameter given is, in squared standard errors.

        W is not exactly the inverse of the covariance, so the drop of the weighted sum is scaled by h'W h / h'W V W h,
        h the derivative by the parameter that the free ones cannot imitate (as for composite likelihoods).

        Args:
            curve: The fit.
            fixed: Its given parameter.

        Returns:
            (drop, degrees of freedom, distance of the parameter from 0 in standard errors).
        """
        columns = tangent(curve, self.t)
        own = {"c": 0, "m": 2}[fixed]
        free = [i for i in range(3) if i != own and not (i == 0 and curve.c[0] == 0)]
        h = self._beside(columns[:, own], [columns[:, i] for i in free])
        wh = self.weight @ h
        variance, dof = self.errors.along(wh, self.runs)
        gain = float(h @ wh)
        more = max(0.0, float(curve.loss[0] - self.best.loss[0]))
        if gain <= _COLLINEAR * float(columns[:, own] @ self.weight @ columns[:, own]):
            # a flat curve: nearby values fit alike, so only the drop itself tells, in units of W as it is
            return more, float(min(dof, self.runs.dof)), math.inf
        if variance == 0.0:
            return (math.inf if more > 0 else 0.0), dof, math.inf
        return more * gain / variance, dof, float(getattr(curve, fixed)[0]) * gain / math.sqrt(variance)

    def _beside(self, h: Floats, columns: list[Floats]) -> Floats:
        """What of h is orthogonal to some columns in the metric W, by Gram and Schmidt."""
        for i, column in enumerate(columns):
            rest = self._beside(column, columns[:i])
            along = self.weight @ rest
            square = float(rest @ along)
            if square > _COLLINEAR * float(column @ self.weight @ column):
                h = h - float(h @ along) / square * rest
        return h


def fit_law(
    y: Floats, width: Floats, errors: LogErrors, *, replicated: RunsVariance | None, draws: int, seed: int
) -> Law:
    """Fit the law to the logarithms of FVU at n ≥ 4 different widths.

    Args:
        y: log FVU, (n,).
        width: Widths, (n,).
        errors: Their errors.
        replicated: Variance between training runs of the same settings, where there are any.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.

    Returns:
        The law.
    """
    reference = float(width.max())
    t = np.log(width / reference)
    fit = _weigh(y, t, errors, replicated)
    best = fit.best
    low, high, dof = _ends(fit, "c")
    m_low, m_high, _ = _ends(fit, "m")
    boot = _bootstrap(fit, draws, seed)
    tail = (1 - LEVEL) / 2
    spans = [
        Estimate(float(own[0]), *map(float, np.quantile(b, [tail, 1 - tail])))
        for own, b in zip((best.c, best.m), (boot.c, boot.m), strict=True)
    ]
    curve, removable = _envelope(fit, low, high, reference)
    return Law(
        asymptote=Estimate(float(best.c[0]), low, high),
        exponent=Estimate(float(best.m[0]), m_low, m_high),
        removable=removable,
        bootstrap_asymptote=spans[0],
        bootstrap_exponent=spans[1],
        runs_deviation=fit.runs.deviation,
        p_fit=math.nan if replicated is None else fit.residual.excess(replicated),
        dof=dof,
        curve=curve,
        reference_width=reference,
        scale=float(best.a[0]),
    )


def _weigh(y: Floats, t: Floats, errors: LogErrors, replicated: RunsVariance | None) -> _Weighed:
    """Fit, estimate τ² from the residuals, and weigh anew, from equal weights on."""
    covariance = errors.shrunk()
    fit = _with_root(y, t, errors, replicated, np.eye(len(y)))
    for _ in range(_ROUNDS):
        root = np.linalg.inv(np.linalg.cholesky(covariance + fit.runs.value * errors.runs))
        fit = _with_root(y, t, errors, replicated, root)
    return fit


def _with_root(y: Floats, t: Floats, errors: LogErrors, replicated: RunsVariance | None, root: Floats) -> _Weighed:
    best, weight = best_curve(y[None], t, root), root.T @ root
    residual = y - best.log_at(t)[0]
    own = errors.runs_variance(residual, weight, tangent(best, t))
    return _Weighed(y, t, errors, root, weight, own, own.pooled(replicated), best)


def tangent(curve: Curves, t: Floats) -> Floats:
    """Derivatives of log f by c, a and m, (n, 3), of the first of some curves; also at c = 0."""
    power = np.exp(-curve.m[0] * t)
    f = curve.c[0] + curve.a[0] * power
    return np.stack([1 / f, power / f, -curve.a[0] * t * power / f], axis=1)


def best_curve(y: Floats, t: Floats, root: Floats, *, rounds: int = 4) -> Curves:
    """Fit all three parameters of B curves, by the profile over c on a grid that closes in.

    Args:
        y: (B, n).
        t: (n,).
        root: (n, n).
        rounds: How often the grid closes in; each makes the steps of c five times as small.

    Returns:
        The curves.
    """
    top = np.exp(y.max(axis=1))
    low, high = np.zeros(len(y)), np.exp(y.min(axis=1))
    found: Curves | None = None
    for points in (24, *(12,) * rounds):
        share = np.linspace(0.0, 1.0, points)
        grid = low[:, None] + (high - low)[:, None] * share
        if found is None:  # a law that rises or is flat has its asymptote above some of the points
            grid = np.concatenate([grid, high[:, None] + (1.02 * top - high)[:, None] * share[1::4]], axis=1)
        rows = np.repeat(np.arange(len(y)), grid.shape[1])
        curves = fit_curves(y[rows], t, root, fixed="c", at=grid.ravel())
        best = curves.loss.reshape(grid.shape).argmin(axis=1)
        each = np.arange(len(y))
        found = curves.pick(each * grid.shape[1] + best)
        low = grid[each, np.maximum(best - 1, 0)]
        high = grid[each, np.minimum(best + 1, grid.shape[1] - 1)]
    assert found is not None
    return found


def _ends(fit: _Weighed, fixed: Fixed) -> tuple[float, float, float]:
    """Ends of the interval of a parameter, and degrees of freedom at the best.

    Both parameters stop at 0: an upper end of inf says that no exponent up to `MAX_EXPONENT` is excluded.
    """
    best = float((fit.best.c if fixed == "c" else fit.best.m)[0])
    _, dof, _ = fit.drop(fit.best, fixed)
    top = 1.5 * float(np.exp(fit.y.max())) if fixed == "c" else MAX_EXPONENT
    low = _end(fit, fixed, best, 0.0)
    high = _end(fit, fixed, best, top)
    return low, (np.inf if high >= top else high), dof


def _end(fit: _Weighed, fixed: Fixed, inner: float, outer: float) -> float:
    """Where between a value inside the interval and a bound the drop crosses; the bound if it does not."""
    if inner == outer:
        return inner
    first = True
    for _ in range(4):
        grid = np.linspace(inner, outer, _GRID if first else 12)
        if first:  # dense near the best, however narrow the interval is
            grid = inner + (outer - inner) * np.concatenate([[0.0], np.geomspace(1e-6, 1.0, _GRID)])
        first = False
        curves = fit_curves(np.repeat(fit.y[None], len(grid), axis=0), fit.t, fit.root, fixed=fixed, at=grid)
        rows = (i for i in range(1, len(grid)) if not _inside(fit, curves.pick(np.array([i])), fixed))
        outside = next(rows, None)
        if outside is None:
            return outer
        inner, outer = float(grid[outside - 1]), float(grid[outside])
    return (inner + outer) / 2


def _inside(fit: _Weighed, curve: Curves, fixed: Fixed) -> bool:
    """Whether a value belongs to the interval: were it true, would a drop this large be among the usual 95 %?

    For a parameter z̃ standard errors below its estimate the drop is z². At a boundary the estimate stops: δ standard
    errors above it, a z below −δ gives the drop z² − (z + δ)² only. So P(drop ≤ q) is T(√q) − T(−√q) for √q < δ and
    T(√q) − T(−(q + δ²) / 2δ) beyond (the ordering of Feldman and Cousins 1998, with Student's T for a known variance):
    a two-sided interval far from the boundary, a one-sided test at it, and 95 % at every place between.
    """
    drop, dof, away = fit.drop(curve, fixed)
    root = math.sqrt(drop)
    beyond = -(drop + away**2) / (2 * away) if away > 0 else -math.inf
    below = -root if fixed == "m" or root < away else beyond
    return float(special.stdtr(dof, root) - special.stdtr(dof, below)) <= LEVEL


def _bootstrap(fit: _Weighed, draws: int, seed: int) -> Curves:
    """Laws of resampled folds; weights as they are, logarithms moved by the folds' influences."""
    rng = np.random.default_rng(seed)
    k = len(fit.errors.folds)
    counts = rng.multinomial(k, np.full(k, 1 / k), size=draws) - 1.0  # variance 1 − 1/K, covariances −1/K
    return best_curve(fit.y + counts @ fit.errors.folds, fit.t, fit.root, rounds=2)


def _envelope(
    fit: _Weighed, low: float, high: float, reference: float
) -> tuple[tuple[tuple[float, float, float, float], ...], Estimate]:
    """The laws that the interval of c holds, over width, and what they leave to remove at the reference width."""
    values = np.concatenate([np.linspace(low, min(high, float(np.exp(fit.y.max()))), _CURVE_POINTS), fit.best.c])
    y = np.repeat(fit.y[None], len(values), axis=0)
    curves = fit_curves(y, fit.t, fit.root, fixed="c", at=values)
    widths = np.geomspace(reference * np.exp(fit.t.min()), _AHEAD * reference, _CURVE_POINTS)
    f = np.exp(curves.log_at(np.log(widths / reference)))
    rest = np.minimum(curves.a, np.exp(curves.log_at(np.zeros(1))[:, 0]))
    removable = Estimate(float(rest[-1]), float(rest.min()), float(rest.max()))
    rows = zip(widths, f.min(axis=0), f[-1], f.max(axis=0), strict=True)
    return tuple((float(w), float(a), float(b), float(c)) for w, a, b, c in rows), removable
