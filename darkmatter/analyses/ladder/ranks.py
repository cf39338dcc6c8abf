"""Affine maps of every rank from moments: reduced-rank regression, leaving one fold out at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from darkmatter.analyses.ladder.residuals import Explained, Residuals
from darkmatter.analyses.ladder.result import RankCurve
from darkmatter.folds import FoldMoments
from darkmatter.inference import LEVEL, UNDEFINED, Estimate, relative_influence
from darkmatter.moments import Moments
from darkmatter.solve import factor, rests

SHARE = 0.9
_EVERY, _POINTS = 64, 40


@dataclass(frozen=True, slots=True, eq=False)
class RankSums:
    """Residual sums of squares of the best map of every rank, for every fit.

    Attributes:
        train: Over the training tokens, (K, d + 1), column r for rank r.
        heldout: Over the fold left out, (K, d + 1).
        n_train: Training tokens, (K,).
        n: Held-out tokens, (K,).
        rank: Directions of x, the largest rank that exists.
    """

    train: Tensor
    heldout: Tensor
    n_train: Tensor
    n: Tensor
    rank: int

    def at(self, r: int) -> Residuals:
        """The residuals of rank r; a map of rank r from ρ to d directions has r (ρ + d − r) parameters."""
        d = self.train.shape[1] - 1
        r = min(r, self.rank)
        per_target = r * (self.rank + d - r) / d
        return Residuals(self.train[:, r], self.heldout[:, r], self.n_train, self.n, per_target)


def rank_sums(moments: FoldMoments) -> dict[str, RankSums]:
    """Fit the best affine map of every rank from x to every error, leaving one fold out at a time.

    With G = X'X, H = X'E and B = G⁺H the map of least squares, the best one of rank r is B V_r V_r', V_r the leading
    eigenvectors of H'B, the scatter of the fitted values; it explains the sum of their eigenvalues.

    Args:
        moments: Moments of K folds.

    Returns:
        The sums by SAE.
    """
    used = [fold for fold in moments.folds if fold.n]
    names, d = moments.layout.names, moments.layout.d_model
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    ranks = []
    for fold, rest in zip(used, rests(used), strict=True):
        fit = factor(rest.xx, rest.mean_x, rest.n)
        ranks.append(fit.rank)
        for i, name in enumerate(names):
            found[name].append(_truncations(fold, rest, i, fit.solve(rest.xe[:, i * d : (i + 1) * d])))
    n = torch.tensor([fold.n for fold in used], dtype=torch.float64)
    return {
        name: RankSums(
            train=torch.stack([train for train, _ in pairs]).cpu(),
            heldout=torch.stack([heldout for _, heldout in pairs]).cpu(),
            n_train=n.sum() - n,
            n=n,
            rank=max(ranks),
        )
        for name, pairs in found.items()
    }


def _truncations(fold: Moments, rest: Moments, i: int, solution: Tensor) -> tuple[Tensor, Tensor]:
    """Residual sums of every rank, over the rest and over the fold, (d + 1,) each."""
    d = rest.layout.d_model
    block = slice(i * d, (i + 1) * d)
    fitted = rest.xe[:, block].mT @ solution
    values, vectors = torch.linalg.eigh((fitted + fitted.mT) / 2)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    maps = solution @ vectors
    off_x, off_e = fold.mean_x - rest.mean_x, fold.mean_e[i] - rest.mean_e[i]
    # ⟨v, e⟩ against the prediction z = ⟨q, x⟩ of every direction, about the means of the rest
    shifted = off_x @ maps
    crossed = (fold.xe[:, block] @ vectors * maps).sum(dim=0) + fold.n * (off_e @ vectors) * shifted
    squares = (fold.xx @ maps * maps).sum(dim=0) + fold.n * shifted.square()
    outside = fold.error_gram[i, i] + fold.n * off_e.square().sum()
    return _steps(rest.error_gram[i, i], values), _steps(outside, 2 * crossed - squares)


def _steps(start: Tensor, gains: Tensor) -> Tensor:
    return torch.cat([start[None], start - gains.cumsum(0)])


def rank_curve(sums: RankSums, explained: Explained) -> RankCurve:
    """The curve of r2 by rank, and where it reaches 90 % of the end.

    Args:
        sums: The residual sums.
        explained: Var e.

    Returns:
        The curve, at every rank up to 64 and at some beyond.
    """
    grid = sorted(
        {*range(1, min(sums.rank, _EVERY) + 1), *_geometric(_EVERY, sums.rank)}
        if sums.rank > _EVERY
        else range(1, sums.rank + 1)
    )
    return RankCurve(
        ranks=tuple(grid),
        r2=tuple(explained.r2(sums.at(r)) for r in grid),
        r90=_reached(sums, explained),
    )


def _geometric(low: int, high: int) -> list[int]:
    return [round(low * (high / low) ** (i / _POINTS)) for i in range(_POINTS + 1)]


def _reached(sums: RankSums, explained: Explained) -> Estimate:
    """The smallest rank with r2(r) ≥ 0.9 r2(linear), and the ranks between which the folds cannot tell.

    g(r) = r2(r) − 0.9 r2(linear) = 0.1 − left(r) + 0.9 left(linear) has a standard error from fold influences, for
    every r; the ends are where g(r) + t se and g(r) − t se first reach 0.
    """
    end = sums.at(sums.rank)
    full = end.variance / explained.variance
    if not explained.r2(end).low > 0:  # 90 % of what may be nothing
        return UNDEFINED
    base = relative_influence(explained.sums, explained.n)
    steps = [sums.at(r) for r in range(1, sums.rank + 1)]
    left = torch.tensor([step.variance / explained.variance for step in steps], dtype=torch.float64)
    influence = SHARE * full * (end.influence - base) - left[:, None] * torch.stack([
        step.influence - base for step in steps
    ])
    gap = 1 - SHARE - left + SHARE * full
    weight = explained.n / explained.n.sum()
    centred = influence - (influence * weight).sum(dim=1, keepdim=True)
    errors = ((weight * centred.square()).sum(dim=1) / (len(weight) - 1)).sqrt()
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(weight) - 1)) * errors
    first = [_first(gap + shift * half >= 0) for shift in (0, 1, -1)]
    return Estimate(*first)


def _first(reached: Tensor) -> float:
    """Rank of the first step that is reached; the last one always is."""
    return float(reached.int().argmax()) + 1 if bool(reached.any()) else float(len(reached))
