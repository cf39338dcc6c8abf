"""Moments → `Decomposition`: every share, bound and comparison, each with its interval."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from darkmatter.batch import BatchSource, SitesSource
from darkmatter.bounds import introduced_bounds, replicate
from darkmatter.errors import DegenerateError, InputError
from darkmatter.fold_means import FoldMeans
from darkmatter.folds import FoldMoments
from darkmatter.guards import degenerate_kind, sae_warnings, token_warnings
from darkmatter.inference import (
    UNDEFINED,
    Estimate,
    interval,
    raw_variances,
    squared,
    symmetric_optimism,
)
from darkmatter.moments import Moments
from darkmatter.products import Precision
from darkmatter.results import AffineMap, Decomposition
from darkmatter.solve import CrossFit, cross_fit
from darkmatter.store import Checkpoint
from darkmatter.stream import Progress, accumulate, accumulate_sites

DEFAULT_FOLDS = 20
_NO_ERROR = 1e-12


def decompose(
    source: BatchSource,
    *,
    folds: int = DEFAULT_FOLDS,
    device: str = "cpu",
    precision: Precision = "float64",
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Decomposition:
    """Decompose the error of the only SAE of a source; see `decompose_many`.

    Args:
        source: Batches of activations and one reconstruction.
        folds: Number K of document folds.
        device: Where the sums live; it must support float64.
        precision: How blocks are multiplied, see `products`.
        checkpoint: Where to save the sums, to resume a killed run.
        progress: Called with the number of tokens after every batch.

    Returns:
        The decomposition.

    Raises:
        InputError: The source holds several SAEs, or anything `decompose_many` refuses.
    """
    if len(source.names) != 1:
        raise InputError(f"the source holds the SAEs {list(source.names)}, expected one: use decompose_many")
    results = decompose_many(
        source, folds=folds, device=device, precision=precision, checkpoint=checkpoint, progress=progress
    )
    return results[source.names[0]]


def decompose_many(
    source: BatchSource,
    *,
    folds: int = DEFAULT_FOLDS,
    device: str = "cpu",
    precision: Precision = "float64",
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    sharded: bool = False,
) -> dict[str, Decomposition]:
    """Decompose the errors of every SAE of a source in one pass, and compare every pair (T8).

    One Gram matrix of x and its leave-one-fold-out factors serve all SAEs.

    Args:
        source: Batches of activations and reconstructions.
        folds: Number K of document folds.
        device: Where the sums live; it must support float64.
        precision: How blocks are multiplied, see `products`.
        checkpoint: Where to save the sums, to resume a killed run.
        progress: Called with the number of tokens after every batch.
        sharded: The source holds this process's share of the documents, see `distributed`; every process gets the
            result of all.

    Returns:
        A decomposition per SAE name, in the order of `source.names`.
    """
    moments = accumulate(
        source,
        folds=folds,
        device=device,
        precision=precision,
        checkpoint=checkpoint,
        progress=progress,
        sharded=sharded,
    )
    return decompose_moments(moments)


def decompose_sites(
    source: SitesSource,
    *,
    folds: int = DEFAULT_FOLDS,
    device: str = "cpu",
    precision: Precision = "float64",
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    sharded: bool = False,
) -> dict[str, dict[str, Decomposition]]:
    """Decompose the errors of every SAE at several sites in one pass; see `decompose_many`.

    Args:
        source: Batches of every site.
        folds: Number K of document folds.
        device: Where the sums live; it must support float64.
        precision: How blocks are multiplied, see `products`.
        checkpoint: Where to save the sums, to resume a killed run.
        progress: Called with the number of tokens after every step.
        sharded: The source holds this process's share of the documents.

    Returns:
        By site, a decomposition per SAE name.
    """
    moments = accumulate_sites(
        source,
        folds=folds,
        device=device,
        precision=precision,
        checkpoint=checkpoint,
        progress=progress,
        sharded=sharded,
    )
    return {site: decompose_moments(moments.pop(site)) for site in source.sites}


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
    introduced = introduced_bounds(i, means, nonlinear, total, fit)
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
        replicates={other: replicate(i, j, means, fit) for j, other in enumerate(moments.layout.names) if j != i},
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
