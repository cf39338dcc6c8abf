"""Fold by fold, the covariances of x and of an error's linear and nonlinear part, free of first-order optimism."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.analyses.spectrum.sums import ErrorMoments
from darkmatter.inference import residual_influence, symmetric_optimism
from darkmatter.moments import Moments
from darkmatter.solve import check_enough_tokens, factor, rests


@dataclass(frozen=True, slots=True, eq=False)
class PartSums:
    """Sums of one vector z by fold about the mean of all tokens: M_k with E M_k = n_k Cov z.

    Attributes:
        n: Tokens per fold, (K,), of the folds that hold any.
        sums: M_k, (K, d, d).
        trace: Var z.
        influence: Of every fold on log Var z, (K,).
        widening: Factor on influences for parameters that were fitted, as for Var r.
    """

    n: Tensor
    sums: Tensor
    trace: float
    influence: Tensor
    widening: float = 1.0

    @property
    def weight(self) -> Tensor:
        """n_k / n, (K,), on the device of the sums."""
        return (self.n / self.n.sum()).to(self.sums.device)

    def covariance(self, folds: Tensor | None = None) -> Tensor:
        """Σ M_k / Σ n_k over some folds (a mask), or all, (d, d)."""
        if folds is None:
            return self.sums.sum(dim=0) / float(self.n.sum())
        mine = torch.nonzero(folds)[:, 0].to(self.sums.device)
        return self.sums.index_select(0, mine).sum(dim=0) / float(self.n[folds].sum())


@dataclass(frozen=True, slots=True, eq=False)
class ErrorParts:
    """The parts of one SAE's error.

    Attributes:
        name: The SAE.
        error: e.
        linear: Its affine prediction from x.
        nonlinear: r, the rest.
    """

    name: str
    error: PartSums
    linear: PartSums
    nonlinear: PartSums


def x_sums(sums: ErrorMoments, total: Moments) -> PartSums:
    """The sums of x itself; `total` holds the moments of all tokens."""
    used = [fold for fold in sums.moments.folds if fold.n]
    mean = total.mean_x
    n = torch.tensor([fold.n for fold in used], dtype=torch.float64)
    return _plain(n, torch.stack([_about(fold.xx, fold.mean_x - mean, fold.n) for fold in used]))


def error_parts(sums: ErrorMoments, total: Moments) -> Iterator[ErrorParts]:
    """Split the covariance of every error, e = linear + nonlinear, with leave-one-fold-out maps.

    Cov r is symmetric optimism applied to every quadratic form u'ru, itself a residual variance: the residual scatter
    in sample is too small and out of fold too large by the same matrix, to first order. So
        M_k = κ [held out_k + n_k w (in sample − held out)/n],   w = n / (n + n'),
    a mean of the two whose trace is scaled (κ) to sqrt(S·C), the decomposition's Var r. Cov linear = Cov e − Cov r.

    Args:
        sums: What the pass collected.
        total: Moments of all tokens.

    Yields:
        The parts of one SAE at a time; those of all would take S times the memory.
    """
    moments = sums.moments
    d = moments.layout.d_model
    index = [k for k, fold in enumerate(moments.folds) if fold.n]
    used = [moments.folds[k] for k in index]
    n = torch.tensor([fold.n for fold in used], dtype=torch.float64)
    n_train = total.n - n
    whole = factor(total.xx, total.mean_x, total.n)
    check_enough_tokens(int(n_train.min()), whole.rank)
    fits = []
    for rest in rests(used):
        fit = factor(rest.xx, rest.mean_x, rest.n)
        check_enough_tokens(rest.n, fit.rank)
        solution = fit.solve(rest.xe)
        inside = (solution * rest.xe).reshape(d, -1, d).sum(dim=(0, 2))
        fits.append((solution, rest.mean, rest.error_gram.diagonal() - inside))
    for i, name in enumerate(moments.layout.names):
        mine = slice(d * i, d * (i + 1))
        columns = slice(d * (1 + i), d * (2 + i))
        errors, heldout = [], []
        for k, fold, (solution, mean, _) in zip(index, used, fits, strict=True):
            own, cross, a = sums.scatter[name][k], fold.xe[:, mine], solution[:, mine]
            back = cross.T @ a
            off = (fold.mean - mean)[columns] - (fold.mean_x - mean[:d]) @ a
            residual = own - back - a.T @ (cross - fold.xx @ a)
            heldout.append(_about((residual + residual.T) / 2, off, fold.n))
            errors.append(_about(own, fold.mean_e[i] - total.mean_e[i], fold.n))
        yield _split(
            name,
            _plain(n, torch.stack(errors)),
            torch.stack(heldout),
            total.xe[:, mine].T @ whole.solve(total.xe[:, mine]),
            train=torch.stack([inside[i] for _, _, inside in fits]).cpu(),
            n_train=n_train,
            rank=whole.rank,
        )


def _split(
    name: str, error: PartSums, heldout: Tensor, explained: Tensor, *, train: Tensor, n_train: Tensor, rank: int
) -> ErrorParts:
    n, total = error.n, float(error.n.sum())
    outside = heldout.sum(dim=0)
    held = heldout.diagonal(dim1=1, dim2=2).sum(dim=1).cpu()
    variance = symmetric_optimism(train.clamp_min(0), held.clamp_min(0), n_train, n)
    share = total / (total + float(n_train.mean()))
    # the same matrix for every token of every fold: it moves no fold against another
    shift = share * (error.sums.sum(dim=0) - explained - outside) / total
    sums = heldout + n.to(heldout.device)[:, None, None] * shift
    traced = float(sums.diagonal(dim1=1, dim2=2).sum()) / total
    sums *= variance / traced if traced > 0 else 0.0
    influence = residual_influence(held, n, rank)
    widening = math.sqrt(total / (total - rank - 1))
    left = error.trace - variance
    moved = error.trace * error.influence - variance * influence
    return ErrorParts(
        name=name,
        error=error,
        linear=PartSums(n, error.sums - sums, left, moved / left if left > 0 else torch.zeros_like(moved)),
        nonlinear=PartSums(n, sums, variance, influence, widening),
    )


def _plain(n: Tensor, sums: Tensor) -> PartSums:
    traces = sums.diagonal(dim1=1, dim2=2).sum(dim=1).cpu()
    whole = float(traces.sum() / n.sum())
    influence = traces / n / whole - 1 if whole > 0 else torch.zeros_like(traces)
    return PartSums(n, sums, whole, influence)


def _about(scatter: Tensor, delta: Tensor, n: int) -> Tensor:
    """A scatter about another mean."""
    return scatter + n * torch.outer(delta, delta)
