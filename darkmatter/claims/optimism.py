"""Estimator: optimism is symmetric to first order, and what that leaves (proofs/02_optimism.md)."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from hypothesis import strategies as st

from darkmatter.adapters.arrays import from_arrays
from darkmatter.claims.claim import AnyClaim, Claim, Margin, agrees, at_most, equals, worst
from darkmatter.claims.expansion import Expansion, towards_outcomes
from darkmatter.claims.optimism_cases import (
    REPLICATES,
    Design,
    Law,
    Tokens,
    designs,
    laws,
    show_law,
    small_laws,
    tokens,
)
from darkmatter.claims.strategies import Floats
from darkmatter.decomposition import decompose
from darkmatter.theory.optimism import first_order, gaussian_design, heteroscedastic_design
from darkmatter.theory.population import residual, variance

_PAGE = "02_optimism"
_ROUNDING = 1e-12  # finite laws of at most 12 outcomes: a few hundred roundings of 1e-16
_LIMIT = 6.0


def _symmetric(law: Law, *, wrong: str = "") -> Margin:
    e, x = law.arrays()
    n = len(x)
    # the fit of the twin has no intercept, and neither has the minimum that it is compared with
    design = x if wrong == "intercept" else np.hstack([np.ones((n, 1)), x])
    expansion, directions = Expansion(e, design), towards_outcomes(n)
    theory = first_order(e, x)
    c = {"factor": 2 * theory.optimism, "noise": theory.parameters * theory.variance}.get(wrong, theory.optimism)
    found = np.array([expansion.insample(directions).mean(), expansion.heldout(directions).mean()])
    return equals(found, [-c, c], scale=n * theory.variance, rounding=expansion.rounding)


def _expectations(design: Design, *, wrong: str = "") -> Margin:
    n, d = design.n, design.d
    theory = heteroscedastic_design(n, d, a=design.a, b=design.b)
    s, c, total = theory.insample, theory.heldout, theory.variance
    if wrong == "intercept":
        s *= (n - d) / (n - d - 1)
    elif wrong == "wishart":
        c *= (n - d - 2) / (n - d)
    elif wrong == "all tokens":  # γ = d/n of all tokens of a 10-fold split, not of the training tokens
        s, c = (total * v for v in (gaussian_design(n / 0.9, d).insample, gaussian_design(n / 0.9, d).heldout))
    elif wrong == "constant":
        s, c = (total * v for v in (gaussian_design(n, d).insample, gaussian_design(n, d).heldout))
    draws = design.halves()
    return agrees(draws.mean(axis=0), [s, c], draws.std(axis=0) / math.sqrt(REPLICATES), limit=_LIMIT)


def _root(size: tuple[int, int], *, exactly: bool = False, gain: float = 1.0) -> Margin:
    extra, d = size
    n = d + 2 + extra
    bias = gaussian_design(n, d).root_bias
    exact = math.expm1(0.5 * math.log1p(((d - 1) * n + 2 * (d + 1)) / (n * n * (n - d - 2))))
    if exactly:
        return equals(bias, 0.0, scale=1.0, rounding=_ROUNDING)
    bound = gain * d / (n * (n - d - 2))
    return worst(
        equals(bias, exact, scale=1.0 + exact, rounding=_ROUNDING),
        at_most(0.0, bias, scale=bound, rounding=_ROUNDING / bound),
        at_most(bias, bound, scale=bound, rounding=_ROUNDING / bound),
    )


def _bracketed(stream: Tokens, *, wrong: str = "") -> Margin:
    x, recon = stream.arrays()
    n, e = len(x), x - recon
    report = decompose(from_arrays(x, {"sae": recon}, np.arange(n)), folds=stream.folds)
    full = variance(residual(e, x))
    if wrong == "intercept":
        full = float(((e - x @ np.linalg.pinv(x) @ e) ** 2).sum()) / n
    if wrong == "adjusted":
        full *= n / (n - stream.d - 1)
    total = variance(x)
    # the report regresses from moments: the condition number of the design enters
    condition = float((x**2).sum(axis=1).mean() / np.linalg.eigvalsh(np.cov(x.T, bias=True).reshape(x.shape[1], -1))[0])
    rounding = 1e3 * float(np.finfo(np.float64).eps) * condition * total / full
    return worst(
        at_most(report.insample * total, full, scale=full, rounding=rounding),
        at_most(full, report.heldout * total, scale=full, rounding=rounding),
    )


def _adjusted(law: tuple[Floats, Floats], *, independent: bool = False) -> Margin:
    x, e = law
    if independent:  # every outcome of x with every residual
        noise = residual(e, x)
        x, e = np.repeat(x, len(noise), axis=0), np.tile(noise, (len(x), 1))
    theory = first_order(e, x)
    return equals(theory.leverage_covariance / theory.variance, 0.0, scale=1.0, rounding=1e3 * _ROUNDING)


def _held_out(law: tuple[Floats, Floats], *, corrected: bool = False) -> Margin:
    x, e = law
    theory = first_order(e, x)
    design = np.hstack([np.ones_like(x), x]) if np.ptp(x) else np.ones_like(x)
    expansion = Expansion(e, design)
    slope = float(expansion.heldout(towards_outcomes(len(x))).mean())
    c = theory.optimism if corrected else 0.0
    # whole numbers up to 2: what a fit leaves is at least 0.01 of what it starts from, and rounding grows by as much
    return equals(slope, c, scale=len(x) * theory.variance, rounding=100 * expansion.rounding)


_EXAMPLE = (np.array([[0.0], [0.0], [1.0]]), np.array([[0.0], [1.0], [0.0]]))
_FALSE_ALARM = "two-sided 6 standard errors of 800 replicates; below 1 in 1,000 for 1,000 examples"

CLAIMS: tuple[AnyClaim, ...] = (
    Claim(
        theorem="estimator",
        name="optimism-is-symmetric",
        page=_PAGE,
        statement="E S = sigma^2 - c/n' and E C = sigma^2 + c/n' up to 1/n'^2, with c = tr(H^-1 J) = E |r|^2 l",
        assumptions="independent tokens; any law of (x, e): heteroscedastic, misspecified",
        cases=laws,
        margin=_symmetric,
        twins={
            "a dropped factor 2": partial(_symmetric, wrong="factor"),
            "c = p sigma^2 whatever the noise": partial(_symmetric, wrong="noise"),
            "a fit without an intercept": partial(_symmetric, wrong="intercept"),
        },
    ),
    Claim(
        theorem="estimator",
        name="gaussian-design-halves",
        page=_PAGE,
        statement="E S = sigma^2 (n'-d-1)/n', E C = sigma^2 (n'+1)(n'-2)/(n'(n'-d-2))",
        assumptions="Gaussian x of any mean, independent noise of one variance, an intercept",
        cases=designs(constant=True),
        margin=_expectations,
        statistical=_FALSE_ALARM,
        twins={
            "no intercept: n'-d in S": partial(_expectations, wrong="intercept"),
            "C with n'-d instead of n'-d-2": partial(_expectations, wrong="wishart"),
            "gamma of all tokens, n instead of n'": partial(_expectations, wrong="all tokens"),
        },
    ),
    Claim(
        theorem="estimator",
        name="heteroscedastic-design-halves",
        page=_PAGE,
        statement="E S and E C in closed form for noise of variance a + b x Sigma^-1 x' (page, part c)",
        assumptions="Gaussian x; noise with mean 0 given x",
        cases=designs(constant=False),
        margin=_expectations,
        statistical=_FALSE_ALARM,
        twins={"the homoscedastic forms with the same sigma^2": partial(_expectations, wrong="constant")},
    ),
    Claim(
        theorem="estimator",
        name="gaussian-root-of-product",
        page=_PAGE,
        statement="0 < sqrt(E S E C)/sigma^2 - 1 < d/(n'(n'-d-2))",
        assumptions="Gaussian x, independent noise, an intercept, n' > d + 2",
        cases=st.tuples(st.integers(1, 10_000), st.integers(1, 4096)),
        margin=_root,
        show=lambda size: f"d = {size[1]}, n' = {size[0] + size[1] + 2}",
        twins={
            "S = sigma^2 (1-g) and C = sigma^2/(1-g) exactly": partial(_root, exactly=True),
            "a quarter of the bound": partial(_root, gain=0.25),
        },
    ),
    Claim(
        theorem="estimator",
        name="halves-bracket-the-full-fit",
        page=_PAGE,
        statement="S <= RSS/n <= C in every data set, RSS that of one fit to all tokens",
        assumptions="none; the product's insample and heldout, any folds",
        cases=tokens,
        margin=_bracketed,
        every=3,
        twins={
            "a full fit without an intercept": partial(_bracketed, wrong="intercept"),
            "RSS/(n-d-1) in the middle": partial(_bracketed, wrong="adjusted"),
        },
    ),
    Claim(
        theorem="estimator",
        name="adjusted-r2-is-unbiased",
        page=_PAGE,
        statement="RSS/(n-d-1), the variance behind adjusted R^2, has no bias of order 1/n for any noise",
        assumptions="independent tokens",
        cases=small_laws(),
        margin=_adjusted,
        false=True,
        known=_EXAMPLE,
        show=show_law,
        twins={"noise independent of x added to the assumptions": partial(_adjusted, independent=True)},
    ),
    Claim(
        theorem="estimator",
        name="held-out-error-is-unbiased",
        page=_PAGE,
        statement="a hold-out or K-fold cross-validation estimates sigma^2 without a bias of order 1/n'",
        assumptions="independent tokens",
        cases=small_laws(),
        margin=_held_out,
        false=True,
        known=_EXAMPLE,
        show=show_law,
        twins={"less c/n'": partial(_held_out, corrected=True)},
    ),
)
