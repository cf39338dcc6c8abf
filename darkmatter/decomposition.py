"""Moments → `Decomposition`: every share, bound and comparison, each with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from darkmatter.batch import BatchSource
from darkmatter.errors import DegenerateError, InputError
from darkmatter.folds import FoldMoments
from darkmatter.guards import degenerate_kind, sae_warnings, token_warnings
from darkmatter.inference import (
    UNDEFINED,
    Estimate,
    interval,
    raw_variances,
    relative_influence,
    squared,
    symmetric_optimism,
)
from darkmatter.moments import Moments
from darkmatter.results import AffineMap, Decomposition, Introduced, Replicate
from darkmatter.solve import CrossFit, cross_fit
from darkmatter.store import Checkpoint
from darkmatter.stream import Progress, accumulate

Vector = npt.NDArray[np.float64]

DEFAULT_FOLDS = 20
_SENSITIVITY_POINTS = 11
_NO_ERROR = 1e-12


def decompose(
    source: BatchSource,
    *,
    folds: int = DEFAULT_FOLDS,
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Decomposition:
    """Decompose the error of the only SAE of a source; see `decompose_many`.

    Args:
        source: Batches of activations and one reconstruction.
        folds: Number K of document folds.
        device: Where the sums live; it must support float64.
        checkpoint: Where to save the sums, to resume a killed run.
        progress: Called with the number of tokens after every batch.

    Returns:
        The decomposition.

    Raises:
        InputError: The source holds several SAEs, or anything `decompose_many` refuses.
    """
    if len(source.names) != 1:
        raise InputError(f"the source holds the SAEs {list(source.names)}, expected one: use decompose_many")
    results = decompose_many(source, folds=folds, device=device, checkpoint=checkpoint, progress=progress)
    return results[source.names[0]]


def decompose_many(
    source: BatchSource,
    *,
    folds: int = DEFAULT_FOLDS,
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> dict[str, Decomposition]:
    """Decompose the errors of every SAE of a source in one pass, and compare every pair (T8).

    One Gram matrix of x and its leave-one-fold-out factors serve all SAEs.

    Args:
        source: Batches of activations and reconstructions.
        folds: Number K of document folds.
        device: Where the sums live; it must support float64.
        checkpoint: Where to save the sums, to resume a killed run.
        progress: Called with the number of tokens after every batch.

    Returns:
        A decomposition per SAE name, in the order of `source.names`.
    """
    moments = accumulate(source, folds=folds, device=device, checkpoint=checkpoint, progress=progress)
    return decompose_moments(moments)


def decompose_moments(moments: FoldMoments) -> dict[str, Decomposition]:
    """Decompose from finished moments, for instance merged from several machines.

    Args:
        moments: Moments of K folds.

    Returns:
        A decomposition per SAE name.

    Raises:
        DegenerateError: x is constant, or some SAE has no error at all.
        InputError: Too few tokens or documents.
    """
    total = moments.total()
    means = FoldMeans.of(moments, total)
    # the mean of equal numbers is off by its own rounding, which is not variance
    if not means.var_x > (8 * torch.finfo(torch.float64).eps) ** 2 * float(total.mean_x.square().sum()):
        raise DegenerateError(
            f"x is constant over {total.n} tokens (variance {means.var_x:.3g}), expected activations that vary: "
            "check the hook point and the file",
            {"var_x": means.var_x},
        )
    for i, name in enumerate(moments.layout.names):
        if means.var_e(i) <= _NO_ERROR * means.var_x:
            raise DegenerateError(
                f"{name}: Sae(x) equals x to rounding (FVU {means.var_e(i) / means.var_x:.1e}), expected a "
                "reconstruction with an error to decompose: check that x was not passed twice",
                {"fvu": means.var_e(i) / means.var_x},
            )
    fit = cross_fit(moments, total)
    shared_warnings = token_warnings(moments, fit, total)
    return {
        name: _one(i, name, moments, total, fit, means, shared_warnings) for i, name in enumerate(moments.layout.names)
    }


@dataclass(frozen=True, slots=True)
class FoldMeans:
    """Fold sums about the means of all tokens; `n` runs over the folds that hold tokens.

    Attributes:
        n: Tokens, (K,).
        x: Σ |x − x̄|², (K,).
        xe: Σ ⟨x − x̄, e_a − ē_a⟩, (K, S).
        ee: Σ ⟨e_a − ē_a, e_b − ē_b⟩, (K, S, S).
        targets: Σ (t − t̄)², (K, 1 + 2 S).
    """

    n: Tensor
    x: Tensor
    xe: Tensor
    ee: Tensor
    targets: Tensor

    @classmethod
    def of(cls, moments: FoldMoments, total: Moments) -> FoldMeans:
        """Collect the sums of all folds."""
        used = [fold for fold in moments.folds if fold.n]
        traces = [fold.traces_about(total.mean) for fold in used]
        return cls(
            n=torch.tensor([fold.n for fold in used], dtype=torch.float64),
            x=torch.stack([t.x for t in traces]).cpu(),
            xe=torch.stack([t.xe for t in traces]).cpu(),
            ee=torch.stack([t.ee for t in traces]).cpu(),
            targets=torch.stack([t.targets for t in traces]).cpu(),
        )

    def mean(self, sums: Tensor) -> float:
        """Σ sums / n over all folds."""
        return float(sums.sum() / self.n.sum())

    @property
    def var_x(self) -> float:
        """Var x, the trace of its covariance."""
        return self.mean(self.x)

    def var_e(self, i: int) -> float:
        """Var e of SAE i."""
        return self.mean(self.ee[:, i, i])

    def log_influence(self, sums: Tensor) -> Tensor:
        """Influence of every fold on the logarithm of a mean, (K,)."""
        return relative_influence(sums, self.n)

    def ratio(self, top: Tensor, bottom: Tensor) -> Estimate:
        """Σ top / Σ bottom with the delta-method interval on the identity scale."""
        value = float(top.sum() / bottom.sum())
        return interval(value, (top - value * bottom) / self.n / self.mean(bottom), self.n)

    def share(self, variance: float, influence: Tensor, of: Tensor) -> Estimate:
        """Ratio variance / mean(of), log scale; `influence` is that of the folds on the logarithm of the variance."""
        value = variance / self.mean(of)
        return interval(value, influence - self.log_influence(of), self.n, link="log")


def _one(
    i: int,
    name: str,
    moments: FoldMoments,
    total: Moments,
    fit: CrossFit,
    means: FoldMeans,
    shared_warnings: tuple[str, ...],
) -> Decomposition:
    """Read everything about SAE number i from the sums."""
    n_saes = moments.layout.n_saes
    x, e, xe = means.x, means.ee[:, i, i], means.xe[:, i]
    recon, x_recon = x - 2 * xe + e, x - xe  # sums of |Sae|² and ⟨x, Sae⟩, deviations from the mean
    train, heldout = fit.train[:, i, i], fit.heldout[:, i, i]
    variance = symmetric_optimism(train, heldout, fit.n_train, fit.n)
    insample, outside = (v / means.var_x for v in raw_variances(train, heldout, fit.n_train, fit.n))
    psi_x, psi_e, psi_r = means.log_influence(x), means.log_influence(e), fit.influence(heldout)
    fvu = means.share(means.var_e(i), psi_e, x)
    nonlinear = means.share(variance, psi_r, x)
    linear_influence = fvu.value * (psi_e - psi_x) - nonlinear.value * (psi_r - psi_x)
    var_recon = means.mean(recon)
    degenerate = degenerate_kind(var_recon, variance, means.var_x)
    introduced = _introduced(i, means, nonlinear, total, fit)
    return Decomposition(
        name=name,
        fvu=fvu,
        r2_error=means.share(variance, psi_r, e).complement(),
        fvu_nonlinear=nonlinear,
        linear_share=interval(fvu.value - nonlinear.value, linear_influence, means.n),
        gain=means.ratio(x_recon, recon) if degenerate != "dead" else UNDEFINED,
        shrinkage=_shrinkage(means, recon, x_recon) if degenerate != "dead" else UNDEFINED,
        introduced=introduced,
        r2_norm=_norm_probe(1 + i, means, fit),
        r2_norm_x=_norm_probe(0, means, fit),
        r2_norm_recon=_norm_probe(1 + n_saes + i, means, fit),
        replicates={other: _replicate(i, j, means, fit) for j, other in enumerate(moments.layout.names) if j != i},
        insample=insample,
        heldout=outside,
        n_tokens=moments.n_tokens,
        n_groups=moments.n_groups,
        n_folds=len(means.n),
        d_model=moments.layout.d_model,
        rank=fit.factor.rank,
        condition=fit.condition,
        max_token_share=fit.far_share,
        max_leverage=fit.far_leverage,
        degenerate=degenerate,
        warnings=sae_warnings(name, degenerate, fvu, introduced) + shared_warnings,
        linear_map=AffineMap(weight=fit.weight[i], bias=total.mean_e[i] - total.mean_x @ fit.weight[i]),
    )


def _shrinkage(means: FoldMeans, recon: Tensor, x_recon: Tensor) -> Estimate:
    """(α − 1)² Var Sae / Var x as the square of g = (Cov(x, Sae) − Var Sae) / sqrt(Var Sae · Var x)."""
    scale = math.sqrt(means.mean(recon) * means.var_x)
    g = means.mean(x_recon - recon) / scale
    influence = (x_recon - recon) / means.n / scale - g / 2 * (
        means.log_influence(recon) + means.log_influence(means.x)
    )
    return squared(interval(g, influence, means.n))


def _norm_probe(target: int, means: FoldMeans, fit: CrossFit) -> Estimate:
    """R² of one squared norm regressed on x; undefined where the norm is constant."""
    sums = means.targets[:, target]
    if not means.mean(sums) > 0:
        return UNDEFINED
    heldout = fit.heldout_targets[:, target]
    variance = symmetric_optimism(fit.train_targets[:, target], heldout, fit.n_train, fit.n)
    return means.share(variance, fit.influence(heldout), sums).complement()


def _introduced(i: int, means: FoldMeans, nonlinear: Estimate, total: Moments, fit: CrossFit) -> Introduced:
    """T5b: [max(0, Var Sae − Cov(x, Sae)), Var r] with the sensitivity curve in the shrinkage s."""
    left = means.ratio(means.ee[:, i, i] - means.xe[:, i], means.x)
    var_x = means.var_x
    covariance = (var_x - means.mean(means.xe[:, i])) / var_x
    most = _max_shrinkage(i, total, fit)
    # Var N(s) is a line; beyond the shrinkage at which it meets the upper end it says nothing more
    meets = (nonlinear.value - left.value) / covariance if covariance > 0 else 0.0
    stop = min(most, max(0.0, meets))
    steps = np.linspace(0.0, stop, _SENSITIVITY_POINTS if stop > 0 else 1)
    return Introduced(
        # ends that cross refute T5b's assumptions (an over-scaled decoder, say): then only the trivial end is left
        low=max(0.0, left.low) if left.low <= nonlinear.high else 0.0,
        high=nonlinear.high,
        lower_end=Estimate(*(max(0.0, end) for end in (left.value, left.low, left.high))),
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


def _replicate(i: int, j: int, means: FoldMeans, fit: CrossFit) -> Replicate:
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
    )
