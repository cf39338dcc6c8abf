"""Which factors the affine part of an SAE's error belongs to: dense, absent or learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from darkmatter.inference import Estimate, interval
from darkmatter.sandbox.factor_fit import least_squares
from darkmatter.sandbox.factor_space import FactorSpace, groups
from darkmatter.sandbox.factor_sums import FactorSums, merged
from darkmatter.solve import Factor, factor

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Floats
    from darkmatter.sandbox.world import World

LEARNED = 0.5
"""A feature counts as learned if its response in Sae(x), along its own direction, is at least this."""


def affine_budget(world: World, folds: list[FactorSums], total: FactorSums) -> tuple[dict[str, Estimate], int]:
    """Split the affine error (Y − B)'f, whose covariance the world knows, among absent, dense and learned factors.

    A square of an estimated coefficient is too large by its noise. So B is estimated twice, from two disjoint halves
    of the folds, and the two enter as a product: its expectation has no noise term, whatever the noise's law. Intervals
    come from the influence of every fold on B, −2 ⟨(F'F)⁻¹ gradient, F_k'(Sae − B'f)⟩.

    Args:
        world: The world.
        folds: Sums of the folds.
        total: Their union.

    Returns:
        absent, dense, linear and cross as shares of Var x, and the number of learned features.
    """
    m = world.n_features
    space = FactorSpace.of(world)
    halves = [space.true - _coefficients(merged(folds[start::2])) for start in (0, 1)]
    weight, fit = _whole_fit(total)  # last, since its factor stays while a solve needs three matrices of that size
    miss = space.true - weight.numpy()
    learned = (weight.numpy()[:m] * space.true[:m]).sum(axis=1) >= LEARNED
    masks = groups(learned, world.dense_dim)
    images = {name: space.apply(mask * halves[1]) for name, mask in masks.items()}
    values = space.covariances({name: mask * halves[0] for name, mask in masks.items()}, images)
    n = torch.tensor([fold.n for fold in folds], dtype=torch.float64)
    scores = [_score(fold, total, weight) / fold.n for fold in folds]
    influence = {
        name: torch.tensor([-2 * float((adjoint * score).sum()) for score in scores], dtype=torch.float64)
        for name, adjoint in _adjoints(space, masks, miss, fit, total.n)
    }
    shares = {
        name: interval(values[name] / world.variance, influence[name] / world.variance, n)
        for name in ("absent", "dense", "linear", "cross")
    }
    return shares, int(learned.sum())


def _whole_fit(total: FactorSums) -> tuple[Tensor, Factor]:
    fit = factor(total.scatter("f"), total.mean["f"], total.n)
    return fit.solve(total.fs), fit


def _adjoints(
    space: FactorSpace, masks: dict[str, Floats], miss: Floats, fit: Factor, n: int
) -> Iterator[tuple[str, Tensor]]:
    """(F'F/n)⁻¹ @ the derivative of half of every group's share with respect to the coefficients that miss.

    Yields:
        (name, (m + k, d)), for the groups and for "cross", the covariances between them.
    """
    images = {name: space.apply(mask * miss) for name, mask in masks.items()}
    between = np.zeros_like(miss)
    for name, mask in masks.items():
        yield name, fit.solve(torch.from_numpy(mask * images[name])) * n
        between += mask * sum(image for other, image in images.items() if other != name)
    yield "cross", fit.solve(torch.from_numpy(between)) * n


def _coefficients(sums: FactorSums) -> Floats:
    weight, _ = least_squares(sums, "f")
    found: Floats = weight.numpy()
    return found


def _score(fold: FactorSums, total: FactorSums, weight: Tensor) -> Tensor:
    """Σ over the fold of (f − f̄)(s − s̄ − (f − f̄)B)', deviations from the means of all tokens, (m + k, d)."""
    shift_f = fold.mean["f"] - total.mean["f"]
    residual = fold.mean["s"] - total.mean["s"] - shift_f @ weight
    return (fold.fs - fold.scattered("f", weight)).addr_(shift_f, residual, alpha=fold.n)
