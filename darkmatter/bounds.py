"""What the moments say about introduced error: the bracket from one SAE (T5b) and from two (T8)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from darkmatter.fold_means import FoldMeans
from darkmatter.inference import UNDEFINED, Estimate, interval, symmetric_optimism
from darkmatter.moments import Moments
from darkmatter.results import Introduced, Replicate
from darkmatter.solve import CrossFit

Vector = npt.NDArray[np.float64]

_SENSITIVITY_POINTS = 11
_NO_INSTRUMENT = 1e-6
"""Cov(x, b) / Var x of an SAE b that is dead: sqrt of `guards.DEAD`, by Cauchy and Schwarz."""


def introduced_bounds(i: int, means: FoldMeans, nonlinear: Estimate, total: Moments, fit: CrossFit) -> Introduced:
    """T5b: [max(0, Var Sae − Cov(x, Sae)), Var r] with the sensitivity curve in the mean shrinkage s."""
    left = means.ratio(means.ee[:, i, i] - means.xe[:, i], means.x)
    var_x = means.var_x
    covariance = (var_x - means.mean(means.xe[:, i])) / var_x
    most = _max_shrinkage(i, total, fit)
    # up to the upper end, not to `most`: trained SAEs shrink unevenly and lie beyond it (proofs/08)
    meets = (nonlinear.value - left.value) / covariance if covariance > 0 else 0.0
    stop = min(1.0, max(0.0, meets))
    steps = np.linspace(0.0, stop, _SENSITIVITY_POINTS if stop > 0 else 1)
    return Introduced(
        # ends that cross refute T5b's assumptions (an over-scaled decoder, say): then only the trivial end is left
        low=max(0.0, left.low) if left.low <= nonlinear.high else 0.0,
        high=nonlinear.high,
        lower_end=_at_least_zero(left),
        upper_end=nonlinear,
        sensitivity=tuple((float(s), float(left.value + s * covariance)) for s in steps),
        max_shrinkage=most,
    )


def _max_shrinkage(i: int, total: Moments, fit: CrossFit) -> float:
    """1 − λ, λ the largest eigenvalue of the symmetric part of Cov(x, Sae) relative to Cov x, kept in [0, 1].

    Cov x − Cov(x, Sae) / (1 − s) ⪰ 0 forces 1 − s ≥ λ: no direction of x is reconstructed by more than 1 − s.
    """
    d = total.layout.d_model
    xe = total.cross[:, d * (1 + i) : d * (2 + i)]

    def reconstructed(v: Vector) -> Vector:
        w = fit.factor.root(torch.from_numpy(v.reshape(-1, 1)).to(xe.device))
        image = total.xx @ w - (xe @ w + xe.mT @ w) / 2
        return fit.factor.root_transposed(image).cpu().numpy()[:, 0]

    rank = fit.factor.matrix.shape[1]
    if rank < 3:  # too small for Lanczos
        basis = np.stack([reconstructed(row) for row in np.eye(rank)])
        return float(min(1.0, max(0.0, 1 - np.linalg.eigvalsh((basis + basis.T) / 2)[-1])))
    operator = LinearOperator((rank, rank), matvec=reconstructed, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(rank)
    try:
        value = eigsh(operator, k=1, which="LA", v0=start, tol=1e-4, return_eigenvectors=False)[0]
    except ArpackError:
        return 1.0  # no bound is better than a wrong one
    return float(min(1.0, max(0.0, 1 - value)))


def replicate(i: int, j: int, means: FoldMeans, fit: CrossFit) -> Replicate:
    """T8: the residual of e_a − e_b regressed on x is r_a − r_b: same estimator, same interval."""

    def half_difference(sums: Tensor) -> Tensor:
        return (sums[:, i, i] + sums[:, j, j] - 2 * sums[:, i, j]) / 2

    def variance(train: Tensor, heldout: Tensor) -> float:
        return symmetric_optimism(train, heldout, fit.n_train, fit.n) / means.var_x

    private = half_difference(fit.heldout)
    unshared = variance(half_difference(fit.train), private)
    own = [variance(fit.train[:, a, a], fit.heldout[:, a, a]) for a in (i, j)]
    shared = sum(own) / 2 - unshared
    psi_x = means.log_influence(means.x)
    psi = [fit.influence(fit.heldout[:, a, a]) for a in (i, j)]
    psi_private = fit.influence(private)
    d_shared = (own[0] * psi[0] + own[1] * psi[1]) / 2 - unshared * psi_private
    scale = math.sqrt(own[0] * own[1])
    correlation = shared / scale if scale > 0 else math.nan
    return Replicate(
        unshared=interval(unshared, psi_private - psi_x, means.n, link="log"),
        shared=interval(shared, d_shared - shared * psi_x, means.n),
        correlation=interval(correlation, d_shared / (scale or 1.0) - correlation / 2 * (psi[0] + psi[1]), means.n),
        corrected=_corrected(i, j, means),
        instrument=_instrument(i, j, means),
    )


def _corrected(i: int, j: int, means: FoldMeans) -> Estimate:
    """½ [Var(a − b) − |Cov(x, a − b)|] / Var x: T5b's lower end of the SAE a − b, for nested learned parts."""
    difference = means.ee[:, i, i] + means.ee[:, j, j] - 2 * means.ee[:, i, j]
    along_x = means.xe[:, j] - means.xe[:, i]  # a − b = e_b − e_a
    if along_x.sum() < 0:
        along_x = -along_x
    return _at_least_zero(means.ratio((difference - along_x) / 2, means.x))


def _instrument(i: int, j: int, means: FoldMeans) -> Estimate:
    """[Var a − Cov(x, a) Cov(a, b) / Cov(x, b)] / Var x: b tells how much of Var a belongs to features."""
    x_a, x_b = means.x - means.xe[:, i], means.x - means.xe[:, j]
    a_a = x_a - means.xe[:, i] + means.ee[:, i, i]
    a_b = x_a - means.xe[:, j] + means.ee[:, i, j]
    x_b_mean = means.mean(x_b)
    if not x_b_mean > _NO_INSTRUMENT * means.var_x:
        return UNDEFINED
    gain, relative = means.mean(a_b) / x_b_mean, means.mean(x_a) / x_b_mean
    # linear at the means: equal to the formula there, and its fold means are the influences of the delta method
    return _at_least_zero(means.ratio(a_a - relative * a_b - gain * x_a + gain * relative * x_b, means.x))


def _at_least_zero(end: Estimate) -> Estimate:
    """A lower end of a variance: below zero it says no more than zero does."""
    return Estimate(*(max(0.0, value) for value in (end.value, end.low, end.high)))
