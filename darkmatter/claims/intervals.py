"""Intervals: influences, fold variances, degrees of freedom and clustered tokens (proofs/03_intervals.md)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from darkmatter.bounds import replicate
from darkmatter.claims.claim import AnyClaim, Claim, Margin, equals
from darkmatter.claims.fold_errors import (
    Documents,
    Folds,
    Sums,
    degrees,
    documents,
    expectation,
    fold_sizes,
    fold_sums,
    folds,
    known_denominator,
    noises,
    student,
    token_errors,
    unbiased,
)
from darkmatter.claims.fold_worlds import (
    Complex,
    FoldWorld,
    Second,
    error_of,
    errors_reported,
    fold_derivatives,
    fold_worlds,
)
from darkmatter.claims.strategies import Floats, small_matrices
from darkmatter.decomposition import decompose_moments
from darkmatter.fold_means import FoldMeans
from darkmatter.solve import cross_fit
from darkmatter.theory.influence import reweighted_variance

_PAGE = "03_intervals"
_EPS = float(np.finfo(np.float64).eps)


# --- one outcome gains or loses weight


@dataclass(frozen=True, slots=True, eq=False)
class _Reweighted:
    """A finite law of (x, e), and one outcome, the first, whose weight changes by t (1 − w) or, if t < 0, by t w."""

    rows: Floats
    weights: npt.NDArray[np.int64]
    d: int
    step: float

    def __str__(self) -> str:
        rows = "; ".join(" ".join(f"{v:.0f}" for v in row) for row in self.rows)
        return f"(x, e) = [{rows}], weights {self.weights.tolist()}, d = {self.d}, t = {self.step:.3g}"


@st.composite
def _reweighted(draw: st.DrawFn) -> _Reweighted:
    n, d, q = draw(st.integers(2, 7)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    weights = np.array(draw(st.lists(st.integers(1, 5), min_size=n, max_size=n)))
    return _Reweighted(draw(small_matrices(n, d + q)), weights, d, draw(st.floats(-0.9, 0.9)))


def _best_map(x: Floats, e: Floats, w: Floats) -> tuple[Floats, Floats]:
    """Squared residuals of the weighted fit with an intercept, and κ of every outcome."""
    rows = np.sqrt(w)[:, None] * np.hstack([np.ones((len(x), 1)), x])
    left, values, _ = np.linalg.svd(rows, full_matrices=False)
    basis = left[:, values > 1e-10 * values[0]]
    r = e - basis @ (basis.T @ (np.sqrt(w)[:, None] * e)) / np.sqrt(w)[:, None]
    return np.asarray((r**2).sum(axis=1)), np.asarray((basis**2).sum(axis=1) / w)


def _moved(case: _Reweighted, *, wrong: str = "") -> Margin:
    x, e = case.rows[:, : case.d], case.rows[:, case.d :]
    w = case.weights / case.weights.sum()
    t = case.step if case.step > 0.0 else case.step * w[0] / (1.0 - w[0])
    squares, kappa = _best_map(x, e, w)
    variance, leverage = float(w @ squares), float(kappa[0]) - (wrong == "no intercept")
    new = (1.0 - t) * w
    new[0] += t
    if wrong == "map held fixed":
        closed = (1.0 - t) * variance + t * float(squares[0])
    else:
        closed = reweighted_variance(variance, float(squares[0]), max(1.0, leverage), t)
    # projections of whole numbers up to 3: conditions up to a few hundred, and weights of 1 to 200
    return equals(new @ _best_map(x, e, new)[0], closed, scale=float((e**2).sum() + 1.0), rounding=1e5 * _EPS)


# --- what is reported


_SHARES = {
    "fvu": "log",
    "fvu_nonlinear": "log",
    "r2_error": "log of 1 - R2",
    "linear_share": "identity",
    "gain": "identity",
    "shrinkage": "signed root",
}
_PAIR = {
    "unshared": "log",
    "shared": "identity",
    "correlation": "identity",
    "corrected": "identity, cut at 0",
    "instrument": "identity, cut at 0",
}
_NORMS = {"r2_norm": "log of 1 - R2"}


def _ratios(s: Second, kind: str, wrong: str) -> Complex:
    """The reported ratios as functions of second moments, on the scales above."""
    x = {"Var x known": s.x.real, "sign of Var x": s.x.conjugate()}.get(wrong, s.x)
    e, r = s.ee[0, 0], s.rr[0, 0]
    if kind == "norms":
        return np.array([np.log(r / e)])
    if kind == "pair":
        own = r * s.rr[1, 1] if wrong == "no root" else np.sqrt(r * s.rr[1, 1])
        unshared = np.log(((r + s.rr[1, 1]) / 2 - s.rr[0, 1]) / x)
        x_a, x_b = s.x - s.xe
        a_a, a_b = s.x - 2 * s.xe[0] + e, x_a - s.xe[1] + s.ee[0, 1]
        along = (x_a - x_b) * np.sign((x_a - x_b).real)
        corrected = (e + s.ee[1, 1] - 2 * s.ee[0, 1] - along) / (2 * s.x)
        return np.array([unshared, s.rr[0, 1] / x, s.rr[0, 1] / own, corrected, (a_a - x_a * a_b / x_b) / s.x])
    recon, x_recon = s.x - 2 * s.xe[0] + e, s.x - s.xe[0]
    root = (x_recon - recon) / np.sqrt(recon * s.x)
    return np.array([np.log(e / x), np.log(r / x), np.log(r / e), (e - r) / x, x_recon / recon, root])


def _product(world: FoldWorld) -> Floats:
    """Standard errors behind what the product reports."""
    moments = world.moments()
    if world.kind == "pair":
        total = moments.total()
        result: Any = replicate(0, 1, FoldMeans.of(moments, total), cross_fit(moments, total))
    else:
        result = decompose_moments(moments)["a"]
    scales = {"shares": _SHARES, "pair": _PAIR, "norms": _NORMS}[world.kind]
    return errors_reported([getattr(result, name) for name in scales], list(scales.values()), len(world.n))


def _reported(world: FoldWorld, *, wrong: str = "") -> Margin:
    x, errors = world.arrays()
    n, total = world.n, int(world.n.sum())
    widening = 1.0 if wrong == "not widened" else float(np.sqrt(total / (total - world.d - 1)))
    targets = (errors**2).sum(axis=2, keepdims=True) if world.kind == "norms" else errors

    def functional(weights: Complex) -> Complex:
        return _ratios(Second.of(weights, x, targets).widened(widening), world.kind, wrong)

    exact = error_of(fold_derivatives(functional, n), n)
    # normal equations lose the condition of the scatter of x, that of the worst leave-one-out fit, and its size
    fold = np.repeat(np.arange(len(n)), n)
    rests = [x[fold != k] - x[fold != k].mean(axis=0) for k in range(len(n))]
    condition = max(float(np.linalg.cond(rest)) for rest in rests) ** 2
    size = float((x**2).mean() + (errors**2).mean()) / min(float((rest**2).mean()) for rest in rests)
    rounding = 1e3 * _EPS * condition * (1.0 + size)
    got = _product(world)
    if world.kind == "pair":  # an end that is cut at 0 does not show its error
        got[3:] = np.where(np.isnan(got[3:]), exact[3:], got[3:])
    return equals(got, exact, scale=1.0 + float(exact.max()), rounding=rounding)


CLAIMS: tuple[AnyClaim, ...] = (
    Claim(
        theorem="intervals",
        name="residual-variance-along-a-reweighting",
        page=_PAGE,
        statement="sigma^2 of (1-t) P + t delta_j is (1-t) (sigma^2 + t |r_j|^2 / (1-t + t kappa_j))",
        assumptions="outcome j has weight under P",
        cases=_reweighted(),
        margin=_moved,
        twins={
            "the map held fixed": partial(_moved, wrong="map held fixed"),
            "leverage without the intercept": partial(_moved, wrong="no intercept"),
        },
    ),
    Claim(
        theorem="intervals",
        name="reported-errors-are-those-of-derivatives",
        page=_PAGE,
        statement="every reported interval has the standard error of exact derivatives along the folds, widened",
        assumptions="all folds have one best map, so that leaving one out changes no fit",
        cases=fold_worlds(),
        margin=_reported,
        twins={
            "Var x taken as known": partial(_reported, wrong="Var x known"),
            "sign of the denominator": partial(_reported, wrong="sign of Var x"),
            "no root in the correlation": partial(_reported, wrong="no root"),
            "not widened": partial(_reported, wrong="not widened"),
        },
    ),
    Claim(
        theorem="intervals",
        name="student-t-on-folds-is-exact",
        page=_PAGE,
        statement="(mean - theta) / se is Student t with K - 1 degrees of freedom, whatever the sizes of the folds",
        assumptions="independent Gaussian fold means of variance tau^2 / n_k",
        cases=fold_sizes(),
        margin=student,
        twins={
            "folds not weighted": partial(student, wrong="unweighted"),
            "divided by K": partial(student, wrong="divided by K"),
        },
    ),
    Claim(
        theorem="intervals",
        name="fold-variance-in-expectation",
        page=_PAGE,
        statement="E se^2 = sum w_k (1 - w_k) v_k / (K - 1)",
        assumptions="independent folds of equal mean, any variances v_k",
        cases=folds(),
        margin=expectation,
        twins={"sum w_k^2 v_k": partial(expectation, wrong="as if unbiased")},
    ),
    Claim(
        theorem="intervals",
        name="noise-rests-on-n-minus-rank-minus-1",
        page=_PAGE,
        statement="Var sigma_hat^2 / sigma^4 = 2 / (n q) times the square of the product's widening",
        assumptions="Gaussian noise of equal variance on q targets, any fixed design",
        cases=noises(),
        margin=degrees,
        twins={"not widened": partial(degrees, widened=False)},
        statistical="6 standard errors of 1,500 draws: below 1e-4 in 1,000 examples",
    ),
    Claim(
        theorem="intervals",
        name="tokens-are-independent-enough",
        page=_PAGE,
        statement="with every token a fold of its own, se^2 is on average at least the variance of the mean",
        assumptions="tokens of one document may be correlated, documents are independent",
        cases=documents(),
        margin=token_errors,
        false=True,
        known=Documents((1, 1), 2, 4),
        twins={"folds of whole documents": partial(token_errors, unit="document")},
    ),
    Claim(
        theorem="intervals",
        name="fold-variance-is-unbiased-for-any-folds",
        page=_PAGE,
        statement="E se^2 is the variance of the mean",
        assumptions="independent folds of equal mean",
        cases=folds(),
        margin=unbiased,
        false=True,
        known=Folds(((9, 1), (1, 0))),
        twins={"v_k proportional to 1 / n_k": partial(unbiased, assumed="v = 1/n")},
    ),
    Claim(
        theorem="intervals",
        name="the-denominator-can-be-taken-as-known",
        page=_PAGE,
        statement="taking Var x as known changes the standard error of log FVU by at most a tenth",
        assumptions="none",
        cases=fold_sums(),
        margin=known_denominator,
        false=True,
        known=Sums(((1, 1), (2, 2))),
        twins={"Var x equal in all folds": partial(known_denominator, assumed="equal")},
    ),
)
