"""Out-of-fold regressions of every target on any set of blocks, read from products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.analyses.cross_site.grams import Grams, rests
from darkmatter.analyses.cross_site.plan import Key
from darkmatter.errors import InputError
from darkmatter.inference import residual_influence, symmetric_optimism
from darkmatter.solve import factor

PARTS = 5
"""Fits of every set: each on four fifths of the folds."""


@dataclass(frozen=True, slots=True)
class SetFit:
    """What one set of blocks leaves of one target.

    Attributes:
        variance: Residual variance sqrt(S·C).
        influence: Influence of every fold on its logarithm, (K,).
        rank: Directions in which the set varies.
    """

    variance: float
    influence: Tensor
    rank: int


@dataclass(frozen=True, slots=True)
class Fits:
    """All regressions of one pass.

    Attributes:
        n: Tokens of every fold that holds any, (K,).
        sets: What every set leaves of every target, in the order of the targets.
    """

    n: Tensor
    sets: dict[str, tuple[SetFit, ...]]


@dataclass(frozen=True, slots=True)
class _LeftOut:
    """Residual sums of one fit: over its training tokens, (T,), and over each fold of its part, (T, folds)."""

    train: Tensor
    heldout: Tensor
    rank: int


def fit_sets(folds: Sequence[Grams], *, progress: Callable[[int], None] | None = None) -> Fits:
    """Regress every target on every set of blocks with an intercept, leaving one part of the folds out at a time.

    Folds are dealt to P = min(5, K) parts. Every fold is predicted by the fit that saw no fold of its part, so that P
    fits serve the K held-out sums from which intervals are read; S and C both belong to training sets of n (1 − 1/P).

    Args:
        folds: Sums of the folds, all with tokens; at least two.
        progress: Called with the number of folds done after every fit.

    Returns:
        The fits.

    Raises:
        InputError: Too few tokens for the directions of a set.
    """
    plan = folds[0].plan
    n = torch.tensor([fold.n for fold in folds], dtype=torch.float64)
    found: dict[tuple[Key, ...], list[_LeftOut]] = {blocks: [] for blocks in plan.sets.values()}
    parts = min(PARTS, len(folds))
    members = [folds[p::parts] for p in range(parts)]
    for mine, rest in zip(members, rests([Grams.union(list(own)) for own in members]), strict=True):
        for blocks, found_parts in found.items():  # sets of the same blocks share a fit
            found_parts.append(_leave_out(mine, rest, blocks))
        if progress:
            progress(len(mine))
    order = torch.tensor([k for p in range(parts) for k in range(p, len(folds), parts)])
    n_train = n.sum() - torch.stack([n[p::parts].sum() for p in range(parts)])
    pooled = {blocks: _pooled(fits, n, n_train, order.argsort()) for blocks, fits in found.items()}
    return Fits(n=n, sets={name: pooled[blocks] for name, blocks in plan.sets.items()})


def _pooled(fits: Sequence[_LeftOut], n: Tensor, n_train: Tensor, order: Tensor) -> tuple[SetFit, ...]:
    """Residual variances from the sums of all parts; `order` puts the folds of one part after another in order."""
    rank = max(fit.rank for fit in fits)
    train = torch.stack([fit.train for fit in fits], dim=1)
    heldout = torch.cat([fit.heldout for fit in fits], dim=1)[:, order]
    return tuple(
        SetFit(symmetric_optimism(inside, outside, n_train, n), residual_influence(outside, n, rank), rank)
        for inside, outside in zip(train, heldout, strict=True)
    )


def _leave_out(mine: Sequence[Grams], rest: Grams, blocks: tuple[Key, ...]) -> _LeftOut:
    """Fit to the rest, then sum squares over the rest and over every fold of the part.

    Raises:
        InputError: Too few tokens for the rank.
    """
    plan = rest.plan
    if not blocks:  # the mean alone
        return _LeftOut(rest.squares.cpu(), torch.stack([_about(fold, rest) for fold in mine], dim=1).cpu(), 0)
    fit = factor(rest.square(blocks), rest.mean_of(blocks), rest.n)
    if rest.n <= fit.rank + 1:
        raise InputError(
            f"{rest.n} training tokens for {fit.rank} directions of {' and '.join(' '.join(key) for key in blocks)}, "
            f"expected more than {fit.rank + 1} (at least {4 * fit.rank} for a trustworthy estimate): pass more tokens"
        )
    products = rest.with_targets(blocks)
    solution = fit.solve(products)
    train = rest.squares - _by_target(solution * products, rest)
    parts = dict(zip(blocks, torch.split(solution, [plan.widths[key] for key in blocks]), strict=True))
    heldout = [_heldout(fold, rest, blocks, solution, parts) for fold in mine]
    return _LeftOut(train.cpu(), torch.stack(heldout, dim=1).cpu(), fit.rank)


def _heldout(
    fold: Grams, rest: Grams, blocks: tuple[Key, ...], solution: Tensor, parts: Mapping[Key, Tensor]
) -> Tensor:
    """Residual sums of squares of every target over a fold that was not fitted, (T,).

    With A = G⁺H from the rest: E_k − 2 A'H_k + A'G_k A, all centred on the fold's own mean, plus n_k times the square
    of how far that mean lies off the fitted plane.
    """
    off = fold.mean_of(fold.plan.targets) - rest.mean_of(fold.plan.targets)
    off -= (fold.mean_of(blocks) - rest.mean_of(blocks)) @ solution
    found = fold.squares - 2 * _by_target(solution * fold.with_targets(blocks), fold)
    found += fold.n * _by_target(off.square()[None], fold)
    for i, a in enumerate(blocks):
        for b in blocks[i:]:  # a square is symmetric: its blocks off the diagonal count twice
            found += (1 if a == b else 2) * _by_target(parts[a] * (fold.between(a, b) @ parts[b]), fold)
    return found


def _about(fold: Grams, rest: Grams) -> Tensor:
    """Σ |t − t̄|² of every target over a fold, about the mean of the rest, (T,)."""
    off = fold.mean_of(fold.plan.targets) - rest.mean_of(fold.plan.targets)
    return fold.squares + fold.n * _by_target(off.square()[None], fold)


def _by_target(values: Tensor, like: Grams) -> Tensor:
    """Sums over all rows and over the columns of each target, (T,)."""
    return values.sum(dim=0).view(len(like.plan.targets), -1).sum(dim=1)
