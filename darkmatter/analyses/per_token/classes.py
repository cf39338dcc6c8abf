"""Sums over classes of tokens, and what they say: levels, shares, whether all are alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from darkmatter.analyses.per_token.results import Breakdown, Constancy, Share
from darkmatter.inference import UNDEFINED, Estimate, interval

_FEWEST = 2
"""Folds that must hold tokens of a class before its numbers get an interval."""


@dataclass(frozen=True, slots=True, eq=False)
class ClassSums:
    """Fold sums over C classes of tokens; every token lies in one.

    Attributes:
        names: The classes.
        n: Tokens, (C, K).
        x: Σ ‖x − x̄‖², (C, K).
        e: Σ ‖e − ē‖², (C, K).
        r: Σ ‖r‖², (C, K), scaled so that over all it is the nonlinear error of the decomposition.
    """

    names: tuple[str, ...]
    n: Tensor
    x: Tensor
    e: Tensor
    r: Tensor

    def breakdown(self) -> Breakdown:
        """Every class that holds tokens, and whether the mean ‖r‖² is the same in all."""
        filled = [i for i in range(len(self.names)) if float(self.n[i].sum()) > 0]
        return Breakdown(tuple(self._share(i) for i in filled), self._constancy(filled))

    def _share(self, i: int) -> Share:
        n, e, r = self.n[i], self.e[i], self.r[i]
        weight = _Ratio(self)
        return Share(
            name=self.names[i],
            n_tokens=int(n.sum()),
            tokens=float(n.sum() / self.n.sum()),
            fvu=weight.level(i, e, log=True),
            linear=weight.level(i, e - r, log=False),
            nonlinear=weight.level(i, r, log=True),
            nonlinear_share=weight.of(i, r, e),
            part_of_nonlinear=weight.of(i, r, self.r.sum(dim=0)),
            own_fvu=weight.of(i, e, self.x[i]),
        )

    def _constancy(self, filled: Sequence[int]) -> Constancy:
        used = self.n.sum(dim=0) > 0
        folds = int(used.sum())
        spread = [i for i in filled if 2 * int((self.n[i] > 0).sum()) >= folds]
        levels, influences = [], []
        total = self.n.sum(dim=0)[used]
        for i in spread:
            value, influence = _relative(self.r[i], self.n[i], self.r.sum(dim=0), self.n.sum(dim=0), used)
            levels.append(value)
            influences.append(influence)
        if len(spread) < 2 or not all(map(math.isfinite, levels)):
            return Constancy(math.nan, len(spread), UNDEFINED, UNDEFINED)
        estimates = [interval(v, psi, total) for v, psi in zip(levels, influences, strict=True)]
        return Constancy(
            p_value=_hotelling(torch.tensor(levels, dtype=torch.float64), torch.stack(influences, dim=1), total),
            classes=len(spread),
            largest=max(estimates, key=lambda found: found.value),
            smallest=min(estimates, key=lambda found: found.value),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Ratio:
    """Ratios of fold sums with influences; all folds that hold any token count, a class may lack some."""

    sums: ClassSums

    def level(self, i: int, top: Tensor, *, log: bool) -> Estimate:
        """Mean of `top` over class i, in units of Var x."""
        used = self.sums.n.sum(dim=0) > 0
        if int((self.sums.n[i] > 0).sum()) < _FEWEST:
            return UNDEFINED
        total = self.sums.n.sum(dim=0)
        value, influence = _relative(top, self.sums.n[i], self.sums.x.sum(dim=0), total, used)
        if not log:
            return interval(value, influence, total[used])
        return interval(value, influence / value, total[used], link="log") if value > 0 else UNDEFINED

    def of(self, i: int, top: Tensor, bottom: Tensor) -> Estimate:
        """Σ top / Σ bottom in class i."""
        used = self.sums.n.sum(dim=0) > 0
        whole, n = float(bottom.sum()), self.sums.n.sum(dim=0)[used]
        if int((self.sums.n[i] > 0).sum()) < _FEWEST or not whole > 0:
            return UNDEFINED
        value = float(top.sum()) / whole
        return interval(value, (top - value * bottom)[used] / n / (whole / float(n.sum())), n)


def _relative(top: Tensor, n: Tensor, base: Tensor, total: Tensor, used: Tensor) -> tuple[float, Tensor]:
    """(Σ top / Σ n) / (Σ base / Σ total) and its influence by fold, delta method."""
    mean, level = float(top.sum() / n.sum()), float(base.sum() / total.sum())
    if not level > 0:
        return math.nan, torch.zeros(int(used.sum()), dtype=torch.float64)
    share = float(n.sum() / total.sum())
    inner = (top - mean * n) / share - mean * (base - level * total) / level
    return mean / level, (inner / level / total.clamp_min(1))[used]


def _hotelling(levels: Tensor, influences: Tensor, n: Tensor) -> float:
    """P value of the hypothesis that all levels are one: T² of their differences from the last, on fold influences.

    The folds' covariance of C − 1 differences has K − 1 degrees of freedom, so T² (K − C + 1) / ((C − 1)(K − 1)) is F
    with C − 1 and K − C + 1; NaN where K < C + 1.

    Args:
        levels: Level of every class, (C,).
        influences: Influence of every fold on them, (K, C).
        n: Tokens per fold, (K,).
    """
    folds, p = len(n), len(levels) - 1
    if folds < p + 2:
        return math.nan
    differences, psi = levels[:-1] - levels[-1], influences[:, :-1] - influences[:, -1:]
    weight = (n / n.sum())[:, None]
    centred = psi - (weight * psi).sum(dim=0)
    covariance = (weight * centred).T @ centred / (folds - 1)
    scale = covariance.diagonal().sqrt()
    if not bool((scale > 0).all()):
        return math.nan
    scaled = differences / scale
    # not lstsq, whose last bit changes from call to call
    square = float(scaled @ torch.linalg.pinv(covariance / torch.outer(scale, scale), hermitian=True) @ scaled)
    return float(stats.f.sf(square * (folds - p) / (p * (folds - 1)), p, folds - p))
