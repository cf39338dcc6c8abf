"""Cases of T4: models that attain its bounds, and models behind published numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.affine_models import (
    affine_models,
    measured,
    optimal_models,
    projection_rounding,
    residual_frame,
    size,
)
from darkmatter.claims.claim import Margin, at_most, equals, worst
from darkmatter.claims.strategies import Floats, Population
from darkmatter.theory.always_valid import AlwaysValid, Assumed, always_valid, bound_from_angle, bounds_from_length
from darkmatter.theory.population import centred, covariance, residual, variance

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class Attained:
    """Numbers that are to be met: R, |q|, the cosine, R²(N|x)."""

    nonlinear: float
    length: float
    cosine: float
    r2: float
    d: int
    seed: int


def attained(case: Attained, *, stretch: float = 1.0, turn: float = 0.0) -> Margin:
    """A model at the end of the angle's bound, and one at each end of the length's."""
    x, q, across = residual_frame(case.d, case.seed)
    margins = []

    def compare(learned: Floats, introduced: Floats, bound: float, value: float) -> None:
        model = Population(learned, x - learned, np.zeros_like(x), introduced)
        scale, rounding = size(model), projection_rounding(x)
        margins.append(equals(measured(model), case.nonlinear, scale=scale, rounding=rounding))
        margins.append(equals(value, bound, scale=scale + bound, rounding=rounding))

    sine = math.sqrt((1.0 - case.cosine) * (1.0 + case.cosine))
    long = math.sqrt(case.nonlinear) / sine
    explained = long * math.sqrt(case.r2 / (1.0 - case.r2)) * centred(x) / math.sqrt(variance(x))
    introduced = long * (case.cosine * q + sine * across) + explained
    bound = bound_from_angle(case.nonlinear, cosine=case.cosine, r2_introduced=case.r2)
    compare(-case.cosine * long * stretch * q, introduced, bound, variance(introduced))

    r = math.sqrt(case.nonlinear)
    bracket = bounds_from_length(case.nonlinear, case.length**2)
    for end, along in ((bracket.low, r - case.length), (bracket.high, -r - case.length)):
        unexplained = along * (math.cos(turn) * q + math.sin(turn) * across)
        compare(case.length * q, unexplained + explained, end, variance(unexplained))
    return worst(*margins)


@dataclass(frozen=True, slots=True)
class Published:
    """A model, and which of its assumptions the reader makes."""

    model: Population
    assumed: Assumed


def published(*assumed: Assumed) -> st.SearchStrategy[Published]:
    """Models that satisfy one of the named assumptions."""
    models = {
        "aligned": affine_models(aligned=True),
        "unpredictable": affine_models(linear=False, introduced="x", aligned=True),
        "optimal": optimal_models(aligned=True),
    }
    drawn = [st.builds(Published, model=models[name], assumed=st.just(name)) for name in assumed]
    return st.one_of(drawn).filter(lambda case: variance(case.model.x) > 0.0)


def _numbers(model: Population) -> tuple[float, float]:
    """What a paper prints: FVU and R²."""
    error, r = variance(model.error), measured(model)
    return error / variance(model.x), min(1.0, max(0.0, 1.0 - r / error)) if error > 0.0 else 0.0


def holds_truth(case: Published, *, ends: str = "T4") -> Margin:
    """Published numbers of the model give bounds that hold its interference and its introduced error."""
    model = case.model
    if ends == "cancelling parts" and case.assumed == "aligned" and variance(model.learned - model.rest) > 0.0:
        model = replace(model, rest=-model.rest, linear=np.zeros_like(model.x))
    total = variance(model.x)
    fvu, r2 = _numbers(model)
    if ends == "T5a":
        found = AlwaysValid(0.25, max(0.0, fvu - math.sqrt(fvu * r2)), fvu * (1.0 - r2))
    elif ends == "square root":
        found = AlwaysValid(fvu * r2, 0.0, (math.sqrt(fvu * (1.0 - r2)) + math.sqrt(fvu * r2)) ** 2)
    else:
        found = always_valid(fvu, r2, assumed=case.assumed)
    truth = residual(model.introduced, model.x) if case.assumed == "aligned" else model.introduced
    scale = size(model) / total
    # √g − g loses half of the digits at g = 0 and 1, but there rounding can only widen the bounds
    rounding = projection_rounding(model.x)
    return worst(
        at_most(variance(residual(model.learned, model.x)) / total, found.interference, scale=scale, rounding=rounding),
        at_most(found.low, variance(truth) / total, scale=scale, rounding=rounding),
        at_most(variance(truth) / total, found.high, scale=scale, rounding=rounding),
    )


@dataclass(frozen=True, slots=True)
class Paper:
    """R / Var x and g = FVU · R² that are to be met."""

    nonlinear: float
    explained: float


def _outcomes() -> tuple[Floats, Floats, Floats, Floats]:
    """Four uncorrelated variables of unit variance, (12, 1) each: t, a function of t that is not affine, two coins."""
    t, first, second = (a.reshape(-1, 1) for a in np.meshgrid([-math.sqrt(1.5), 0.0, math.sqrt(1.5)], [-1, 1], [-1, 1]))
    return t, math.sqrt(2.0) * (t**2 - 1.0), first.astype(np.float64), second.astype(np.float64)


_T, _BENT, _COIN, _OTHER = _outcomes()


def _along_one_direction(paper: Paper, b: float, share: float, *, perfect: bool = False) -> dict[str, Population]:
    """Uncorrelated parts of variance 1 − b and b in d = 1, P e = share · x, and N along q, opposite to it, or 0."""
    learned, rest = math.sqrt(1.0 - b) * _COIN, math.sqrt(b) * _OTHER
    x = learned + rest
    linear = (b - share) * x
    if perfect:
        return {"low": Population(learned, rest, linear, 0.0 * x)}
    length, r = math.sqrt(b * (1.0 - b)), math.sqrt(paper.nonlinear)
    q = (learned - (1.0 - b) * x) / length
    found = {"high": Population(learned, rest, linear, -(r + length) * q)}
    if r >= length:
        found["low"] = Population(learned, rest, linear, (r - length) * q)
    return found


def _most_hidden(paper: Paper) -> Population:
    """Sae = E[S1 | x] in d = 1, with as much of S1 hidden as the numbers allow."""
    a = 1.0 - math.sqrt(paper.explained)
    hidden = math.sqrt(a * (1.0 - a) - paper.nonlinear)
    recon = a * _T + math.sqrt(paper.nonlinear) * _BENT
    learned = recon + hidden * _COIN
    return Population(learned, _T - learned, 0.0 * _T, recon - learned)


def _perfect(paper: Paper) -> Population:
    """Sae = S1, a function of x: all that is unexplained is interference; U has a direction of its own in d = 2."""
    r, g = paper.nonlinear, paper.explained
    u = r**2 / (1.0 - g - 2.0 * r)
    total, b = 1.0 - g + u, r + u
    learned = np.hstack([(total - b) / math.sqrt(total) * _T + math.sqrt(r) * _BENT, 0.0 * _T])
    x = np.hstack([math.sqrt(total) * _T, math.sqrt(g - u) * _OTHER])
    return Population(learned, x - learned, 0.0 * x, 0.0 * x)


def reached(paper: Paper, *, power: float = 0.5) -> Margin:
    """Every end that `always_valid` gives, with Var x = 1, by a model that satisfies the assumption."""
    r, g = paper.nonlinear, paper.explained
    models: dict[Assumed, dict[str, Population]] = {
        "aligned": _along_one_direction(paper, 0.5, math.sqrt(g)),
        "unpredictable": _along_one_direction(paper, g**power, g**power),
    }
    if r < 0.25:
        b = 2.0 * r / (1.0 + math.sqrt(1.0 - 4.0 * r))  # b (1 − b) = R
        models["aligned"] |= _along_one_direction(paper, b, math.sqrt(g), perfect=True)
    if (r + g) ** 2 < g:  # R² > FVU
        models["unpredictable"]["low"] = _perfect(paper)
        models["optimal"] = {"high": _most_hidden(paper), "low": _perfect(paper)}
    # R = f (1 − R²) cannot be known to better than ε f, and enters under a root
    lost = _EPS * (r + g)
    lost = 8.0 * min(math.sqrt(lost), lost / math.sqrt(r) if r > 0.0 else math.inf)
    margins = []
    for assumed, ends in models.items():
        found = always_valid(r + g, g / (r + g), assumed=assumed)
        for end, model in ends.items():
            fvu, r2 = _numbers(model)
            scale, rounding = size(model), projection_rounding(model.x) + lost
            margins += [
                equals([variance(model.x), fvu, fvu * r2], [1.0, r + g, g], scale=scale, rounding=rounding),
                equals(variance(model.introduced), getattr(found, end), scale=scale, rounding=rounding),
                at_most(0.0, covariance(model.learned, model.rest), scale=scale, rounding=rounding),
            ]
    return worst(*margins)
