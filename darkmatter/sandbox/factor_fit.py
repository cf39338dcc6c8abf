"""Least squares of a reconstruction on the true factors or on x, leaving one fold of documents out at a time."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from darkmatter.errors import InputError
from darkmatter.inference import residual_influence, symmetric_optimism
from darkmatter.sandbox.factor_sums import FactorSums, Regressor, merged
from darkmatter.solve import check_enough_tokens, factor

MATRICES = 3
"""Matrices over the factors that a solve holds at once: the scatter, its scaled copy, its Cholesky factor."""


def check_memory(n_factors: int) -> None:
    """Refuse a regression whose matrices cannot fit into this machine's memory.

    Args:
        n_factors: p = m + k.

    Raises:
        InputError: Three p × p matrices of float64 exceed the physical memory.
    """
    if not hasattr(os, "sysconf"):
        return
    needed, there = MATRICES * 8 * n_factors**2, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise InputError(
            f"the regression on {n_factors} true factors needs {needed / 1e9:.0f} GB and this machine has "
            f"{there / 1e9:.0f} GB: use a smaller world, or a surgical SAE that has a closed form"
        )


def residual_variance(folds: list[FactorSums], key: Regressor) -> tuple[float, Tensor]:
    """Residual variance sqrt(S·C) of the reconstruction regressed on the factors or on x.

    Args:
        folds: Sums of the folds, at least two.
        key: "f" or "x".

    Returns:
        The variance, and the influence of every fold on its logarithm, (K,).

    Raises:
        InputError: Too few tokens outside one fold.
    """
    n = torch.tensor([fold.n for fold in folds], dtype=torch.float64)
    inside, outside = [], []
    for k, fold in enumerate(folds):
        rest = merged([other for j, other in enumerate(folds) if j != k])
        weight, train = least_squares(rest, key)
        inside.append(train)
        outside.append(_outside(fold, rest, key, weight))
    fitted, heldout = (torch.tensor(sums, dtype=torch.float64) for sums in (inside, outside))
    variance = symmetric_optimism(fitted, heldout, n.sum() - n, n)
    return variance, residual_influence(heldout, n, len(folds[0].mean[key]))


def least_squares(sums: FactorSums, key: Regressor) -> tuple[Tensor, float]:
    """Coefficients of the reconstruction on the factors or on x, and the in-sample residual sum of squares.

    Args:
        sums: Sums of the tokens to fit.
        key: "f" or "x".

    Returns:
        (p or d, d), and the sum.

    Raises:
        InputError: Too few tokens.
    """
    fit = factor(sums.scatter(key), sums.mean[key], sums.n)
    check_enough_tokens(sums.n, fit.rank)
    weight = fit.solve(sums.crossed(key))
    return weight, sums.ss - float((weight * sums.crossed(key)).sum())


def _outside(fold: FactorSums, rest: FactorSums, key: Regressor, weight: Tensor) -> float:
    """Residual sum of squares of a fold under a fit to the rest, deviations from the rest's means."""
    shift = fold.mean["s"] - rest.mean["s"] - (fold.mean[key] - rest.mean[key]) @ weight
    inside = fold.ss - 2 * float((weight * fold.crossed(key)).sum())
    inside += float((weight * fold.scattered(key, weight)).sum())
    return inside + fold.n * float(shift.square().sum())
