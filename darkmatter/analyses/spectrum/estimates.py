"""Numbers of a covariance from its fold sums: participation ratio, effective rank, eigenvalues, subspaces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

import torch
from torch import Tensor

from darkmatter.analyses.spectrum.parts import PartSums
from darkmatter.inference import UNDEFINED, Estimate, interval

Pair = tuple[Tensor, Tensor]
"""Eigenvalues, falling, and eigenvectors."""

_LEAST_BASIS = 64
_CUT = 1e-10
"""Eigenvalues below this part of the largest are rounding."""


def participation_ratio(part: PartSums) -> Estimate:
    """(tr C)² / tr C² with both terms from products of different folds, so that sampling noise does not enter.

    E tr C_k C_l = tr C² for independent folds k ≠ l, while tr Ĉ² is too large by the variance of Ĉ. The interval is
    that of a U-statistic: ψ_k = 2 (t_k / t − 1) − 2 (h_k / h − 1), h_k the mean of tr C_k C_l over l ≠ k.

    Args:
        part: Fold sums.

    Returns:
        The ratio, 1 to d; undefined where the variance or its square is not above zero.
    """
    weight, each = part.weight, part.sums / part.n.to(part.sums.device)[:, None, None]
    mean = part.covariance()
    own = each.square().sum(dim=(1, 2))
    traces = each.diagonal(dim1=1, dim2=2).sum(dim=1)
    crossed = ((each * mean).sum(dim=(1, 2)) - weight * own) / (1 - weight)
    rest = 1 - float(weight.square().sum())
    square = float((weight * (1 - weight) * crossed).sum()) / rest
    trace = float((weight * traces).sum())
    top = (trace**2 - float((weight * traces).square().sum())) / rest
    if not (square > 0 and top > 0 and trace > 0):
        return UNDEFINED
    influence = (2 * (traces / trace - 1) - 2 * (crossed / square - 1)).cpu() * part.widening
    return interval(top / square, influence, part.n, link="log")


def split_folds(count: int, pieces: int) -> list[Tensor]:
    """Masks of the folds in every piece, dealt in turn: (count,) each."""
    number = torch.arange(count)
    return [number % pieces == p for p in range(pieces)]


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigenvalues at some ranks, as shares of a given variance.

    Attributes:
        eigenvalues: Mean of the next two, with interval.
        insample: Eigenvalues of a half of the documents: leading ones too large.
        heldout: Variance of the other half along the same directions: leading ones too small.
        leading: Share of its own variance in its k leading directions.
        effective_rank: exp of the entropy of the eigenvalues' shares.
    """

    eigenvalues: tuple[Estimate, ...]
    insample: tuple[float, ...]
    heldout: tuple[float, ...]
    leading: Estimate
    effective_rank: Estimate


@dataclass(frozen=True, slots=True, eq=False)
class Subspaces:
    """Leading directions of a part, by what they were estimated from; all that overlaps need.

    Attributes:
        n: Tokens per fold, (K,).
        halves: Of both halves of the documents, (d, k) each.
        quarters: Of four quarters.
        left_out: For every fold, of its half and of its quarter without it.
    """

    n: Tensor
    halves: list[Tensor]
    quarters: list[Tensor]
    left_out: list[tuple[Tensor, Tensor]]


class Eigen:
    """Eigenvectors of a part's covariance on two halves of the documents; made when needed."""

    def __init__(self, part: PartSums) -> None:
        self.part = part

    @cached_property
    def halves(self) -> list[Pair]:
        """Eigenvalues, falling, and eigenvectors of both halves."""
        return [_eigen(self.part.covariance(mask)) for mask in split_folds(len(self.part.n), 2)]

    def subspaces(self, k: int) -> Subspaces:
        """The leading k directions on halves, on quarters, and with every fold left out.

        Those without a fold are sought among the leading 4 k with it: directions beyond hardly mix with the leading
        ones, whose eigenvalues are far from theirs.

        Args:
            k: Dimensions.
        """
        count = len(self.part.n)
        quarters = [_eigen(self.part.covariance(mask)) for mask in split_folds(count, 4)]
        wide = max(4 * k, _LEAST_BASIS)
        return Subspaces(
            n=self.part.n,
            halves=[vectors[:, :k].clone() for _, vectors in self.halves],
            quarters=[vectors[:, :k].clone() for _, vectors in quarters],
            left_out=[
                (
                    self._without(self.halves[j % 2][1][:, :wide], j, 2, k),
                    self._without(quarters[j % 4][1][:, :wide], j, 4, k),
                )
                for j in range(count)
            ],
        )

    def _without(self, vectors: Tensor, fold: int, pieces: int, k: int) -> Tensor:
        mask = split_folds(len(self.part.n), pieces)[fold % pieces]
        mask[fold] = False
        if not mask.any():  # a quarter of one fold: nothing to leave out
            return vectors[:, :k].clone()
        return vectors @ _eigen(vectors.T @ self.part.covariance(mask) @ vectors)[1][:, :k]


def _eigen(matrix: Tensor) -> Pair:
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0), vectors.flip(1)


def spectrum(eigen: Eigen, indices: Sequence[int], k: int, *, of: float, of_influence: Tensor) -> Spectrum:
    """Eigenvalues by symmetric optimism between two halves of the documents.

    To second order in the sampling error Δ of Ĉ, λ_i(Ĉ) = λ_i + Δ_ii + Σ_j Δ_ij²/(λ_i − λ_j), while the variance of
    independent documents along the same direction is λ_i − Σ_j Δ_ij²/(λ_i − λ_j): what the first gains the second
    loses, and their mean is free of it where eigenvalues stand apart. The same holds for the sum of the leading k, and
    for the entropy −tr P log P against −tr P' log P, P' of the other half, since both relative entropies between P and
    P' agree to second order.

    Args:
        eigen: Of the part.
        indices: Ranks wanted, from 0.
        k: Directions that count as leading.
        of: Variance of which eigenvalues are shares.
        of_influence: Of every fold on its logarithm, (K,).

    Returns:
        The spectrum.
    """
    part = eigen.part
    masks = split_folds(len(part.n), 2)
    covariances = [part.covariance(mask) for mask in masks]
    inside, outside, leads, entropies = [], [], [], []
    along = torch.zeros(len(part.n), len(indices), dtype=torch.float64)
    lead_k, cross_k = torch.zeros(2, len(part.n), dtype=torch.float64)
    defined = True
    for this, other in ((0, 1), (1, 0)):
        values, vectors = eigen.halves[this]
        chosen, first = vectors[:, list(indices)], vectors[:, :k]
        inside.append(values[list(indices)].cpu())
        outside.append(_along(covariances[other], chosen).cpu())
        leads.append((float(values[:k].sum()), float(_along(covariances[other], first).sum())))
        keep = values > _CUT * values[0]
        defined = defined and bool((values > -_CUT * values[0]).all())
        logs = torch.where(keep, values, 1.0).log()
        log_matrix = (vectors * logs) @ vectors.T
        entropies.append(_entropies(values[keep], covariances[other], log_matrix))
        for fold in torch.nonzero(masks[other])[:, 0].tolist():
            one = part.sums[fold] / float(part.n[fold])
            along[fold] = _along(one, chosen).cpu()
            lead_k[fold] = float(_along(one, first).sum())
            cross_k[fold] = float((one * log_matrix).sum())
    inside_mean, outside_mean = torch.stack(inside).mean(dim=0), torch.stack(outside).mean(dim=0)
    middle = (inside_mean + outside_mean) / 2
    found = tuple(
        interval(
            float(value) / of,
            ((column - value) / of - float(value) / of * of_influence) * part.widening,
            part.n,
        )
        for value, column in zip(middle, along.T, strict=True)
    )
    traces = part.sums.diagonal(dim1=1, dim2=2).sum(dim=1).cpu() / part.n
    trace = part.trace
    share = sum(sum(pair) for pair in leads) / 4 / trace if trace > 0 else math.nan
    leading = interval(share, (lead_k - share * traces) / trace * part.widening, part.n) if trace > 0 else UNDEFINED
    return Spectrum(
        eigenvalues=found,
        insample=tuple((inside_mean / of).tolist()),
        heldout=tuple((outside_mean / of).tolist()),
        leading=leading,
        effective_rank=_effective_rank(part, entropies, cross_k, traces) if defined and trace > 0 else UNDEFINED,
    )


def _along(matrix: Tensor, vectors: Tensor) -> Tensor:
    """U'Cu for every column u."""
    return ((matrix @ vectors) * vectors).sum(dim=0)


def _entropies(values: Tensor, other: Tensor, log_matrix: Tensor) -> tuple[float, float]:
    """−tr P log P and −tr P' log P for P = C/tr C of one half and P' of the other."""
    scale = float(values.sum())
    own = -float((values / scale * (values / scale).log()).sum())
    crossed = -float((other * log_matrix).sum()) / float(other.trace()) + math.log(scale)
    return own, crossed


def _effective_rank(
    part: PartSums, entropies: Sequence[tuple[float, float]], cross: Tensor, traces: Tensor
) -> Estimate:
    """Exp H; ψ_k = −tr C_k log P / tr C − H t_k / tr C, with P of the half without the fold."""
    entropy = sum(sum(pair) for pair in entropies) / 4
    trace = part.trace
    # log C and log P differ by log tr C times the identity
    influence = -(cross - traces * math.log(trace)) / trace - entropy * traces / trace
    return interval(math.exp(entropy), influence * part.widening, part.n, link="log")


def overlap(first: Subspaces, second: Subspaces) -> Estimate:
    """‖U'V‖²_F / k of the leading k-dimensional subspaces of two covariances on the same tokens.

    Noise turns estimated subspaces apart, and noise in common turns them together. So U and V come from different
    documents, and the bias, of order 1/n, is extrapolated away: twice the value between halves minus that between
    quarters. The interval is the jackknife's over folds, ψ_j = (n − n_j)/n_j (θ − θ without fold j), which takes in the
    second order too; it is wide where the k-th and the next eigenvalue are close.

    Args:
        first: One.
        second: The other, of as many dimensions.

    Returns:
        The overlap, 0 to 1.
    """
    n = first.n
    value = 2 * between(first.halves, second.halves) - between(first.quarters, second.quarters)
    left = [
        2 * between(_with(first.halves, j, a[0]), _with(second.halves, j, b[0]))
        - between(_with(first.quarters, j, a[1]), _with(second.quarters, j, b[1]))
        for j, (a, b) in enumerate(zip(first.left_out, second.left_out, strict=True))
    ]
    influence = (n.sum() - n) / n * (value - torch.tensor(left, dtype=torch.float64))
    found = interval(value, influence, n)
    return Estimate(*(min(1.0, max(0.0, end)) for end in (found.value, found.low, found.high)))


def _with(pieces: list[Tensor], fold: int, changed: Tensor) -> list[Tensor]:
    """The pieces with the one that holds a fold exchanged."""
    return [changed if fold % len(pieces) == p else piece for p, piece in enumerate(pieces)]


def between(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Mean overlap ‖U'V‖²/k over all pairs of different pieces, with columns U of one list and V of the other."""
    pairs = list(permutations(range(len(first)), 2))
    return sum(float((first[a].T @ second[b]).square().sum()) for a, b in pairs) / first[0].shape[1] / len(pairs)


def inside(part: PartSums, projector: Tensor) -> Estimate:
    """tr(P C) / tr C for a fixed matrix P, such as a projector or Σ y_i y_i' of some directions.

    Args:
        part: Fold sums.
        projector: (d, d), symmetric.

    Returns:
        The ratio; undefined where there is no variance.
    """
    trace = part.trace
    if not trace > 0:
        return UNDEFINED
    tops = (part.sums * projector).sum(dim=(1, 2)).cpu() / part.n
    traces = part.sums.diagonal(dim1=1, dim2=2).sum(dim=1).cpu() / part.n
    value = float((part.n * tops).sum() / part.n.sum()) / trace
    return interval(value, (tops - value * traces) / trace * part.widening, part.n)
