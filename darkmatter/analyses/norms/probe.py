"""The two passes of the norm probe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from darkmatter.analyses.id_sums import ID_BYTES
from darkmatter.analyses.norms.baselines import L0_TOKENS, Baselines
from darkmatter.analyses.norms.pairs import PairSums
from darkmatter.analyses.norms.results import VECTORS, BothProbes, NormProbe, NormProbes
from darkmatter.analyses.norms.targets import TargetFit, TargetSums
from darkmatter.analyses.norms.values import TokenValues
from darkmatter.analyses.part_maps import PARTS, PartMaps, part_maps
from darkmatter.batch import Batch, BatchSource, check_batch
from darkmatter.errors import DegenerateError, InputError
from darkmatter.folds import FoldMoments
from darkmatter.inference import UNDEFINED, Estimate, interval, relative_influence
from darkmatter.sae import SAE
from darkmatter.stream import Progress, accumulate

_FEW_TOKENS = 50
"""Tokens per direction of x below which the noise of the fitted linear part matters to its norm."""

_NOISE = 4.0
"""Mean square of a fitted linear part, over that of its noise, below which its norm is the noise's."""

_VARIES = 1e-12
"""Standard deviation of a squared norm, over E‖x‖², below which it only repeats rounding."""


def norm_probes(
    source: BatchSource,
    *,
    saes: Mapping[str, SAE] | None = None,
    losses: Iterable[TokenValues] | None = None,
    folds: int = 20,
    device: str = "cpu",
    moments: FoldMoments | None = None,
    id_bytes: int = ID_BYTES,
    progress: Progress | None = None,
) -> NormProbes:
    """How much of ‖v‖² an affine probe of x reads off, R²(‖v‖² | x), for x, Sae(x), the error and its parts.

    Two passes: the moments, then the norms, whose parts need the fitted maps. Memory beside the moments, for S SAEs:
    K d (3 + 15 S) float64 numbers, and where token ids are known vocabulary × K × (3 + 10 S) more.

    Args:
        source: Batches of activations and reconstructions.
        saes: Weights by name, for the baseline L0 of those known.
        losses: The model's loss on the token after each, in the source's batches, for the baseline "loss".
        folds: Number K of document folds.
        device: Where the sums live; it must support float64.
        moments: Moments of the source, if a first pass was made; `folds` is theirs then.
        id_bytes: Most memory for the token baseline, which is left out beyond.
        progress: Called with the number of tokens after every batch of the second pass.

    Returns:
        R² with intervals, the Gaussian law's prediction, and the baselines.

    Raises:
        InputError: A bad source or batch, too few tokens or documents.
        DegenerateError: x is constant.
    """
    if moments is None:
        moments = accumulate(source, folds=folds, device=device)
    known = {name: sae for name, sae in (saes or {}).items() if name in moments.layout.names}
    work = _Pass.start(moments, known, with_losses=losses is not None, id_bytes=id_bytes)
    values: Iterator[TokenValues | None] = repeat(None) if losses is None else iter(losses)
    for batch in source:
        extra = next(values, None)
        if losses is not None and extra is None:
            raise InputError("the losses end before the source does, expected one entry for every batch")
        work.add(batch, extra)
        if progress:
            progress(len(batch.groups))
    return work.finish()


@dataclass(frozen=True, slots=True)
class _Vector:
    """A vector of an SAE, or x itself (SAE ""), and its mean."""

    sae: str
    kind: str
    mean: Tensor


@dataclass(slots=True, kw_only=True)
class _Pass:
    """State of the second pass; of every vector in turn the targets are ‖v‖², ‖v − v̄‖² and v̄·v."""

    moments: FoldMoments
    maps: PartMaps
    vectors: list[_Vector]
    targets: TargetSums
    pairs: PairSums
    baselines: Baselines
    scale: float

    @classmethod
    def start(cls, moments: FoldMoments, saes: Mapping[str, SAE], *, with_losses: bool, id_bytes: int) -> _Pass:
        """Read means and maps from the first pass.

        Raises:
            DegenerateError: x is constant.
        """
        total, folds = moments.total(), len(moments.folds)
        variance, size = float(total.xx.diagonal().sum()) / total.n, float(total.mean_x.square().sum())
        if not variance > (8 * torch.finfo(torch.float64).eps) ** 2 * size:
            raise DegenerateError(
                f"x is constant over {total.n} tokens (variance {variance:.3g}), expected activations that vary: check "
                "the hook point and the file",
                {"var_x": variance},
            )
        vectors = [_Vector("", "x", total.mean_x)]
        for name, mean_e in zip(moments.layout.names, total.mean_e, strict=True):
            recon, zero = total.mean_x - mean_e, torch.zeros_like(mean_e)
            means = (recon, mean_e, mean_e, zero, recon)  # r has mean 0: x less the linear part has that of Sae(x)
            vectors += [_Vector(name, kind, mean) for kind, mean in zip(VECTORS, means, strict=True)]
        scale = math.sqrt(variance + size)
        norms = [f"{v.kind} {about} {v.sae}" for v in vectors for about in ("uncentred", "centred")]
        return cls(
            moments=moments,
            maps=part_maps(moments, parts=min(PARTS, folds)),
            vectors=vectors,
            targets=TargetSums(moments, 3 * len(vectors)),
            pairs=PairSums(len(vectors), folds),
            baselines=Baselines(
                norms,
                saes,
                folds=folds,
                scale=scale,
                many=total.n > L0_TOKENS,
                with_losses=with_losses,
                id_bytes=id_bytes,
            ),
            scale=scale,
        )

    def add(self, batch: Batch, losses: TokenValues | None) -> None:
        """Add a batch."""
        x, recons = check_batch(batch, d_model=self.moments.layout.d_model, names=self.moments.layout.names)
        if not len(x):
            return
        x64, columns = x.double(), []
        pairs = self.pairs.partners(batch.groups)
        for i, (vector, rows) in enumerate(zip(self.vectors, self._rows(batch, x64, recons), strict=True)):
            mean = vector.mean.to(rows.device)
            centred = rows - mean
            squares, along = torch.linalg.vector_norm(centred, dim=1).square(), centred @ mean
            columns += [squares + 2 * along + mean.square().sum(), squares, along]
            self.pairs.add(i, centred, batch.groups, pairs)
        targets = torch.stack(columns, dim=1)
        self.targets.add(x64, targets, batch.groups)
        norms = targets.view(len(x), -1, 3)[:, :, :2].flatten(1).cpu()
        self.baselines.add(batch, x, norms, losses)

    def _rows(self, batch: Batch, x: Tensor, recons: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Every vector in turn.

        Yields:
            (n, d), float64.
        """
        yield x
        for name, recon in recons.items():
            made = recon.to(x.device).double()
            linear = self.maps.linear(name, x, batch.groups)
            yield made
            yield x - made
            yield linear
            yield x - made - linear
            yield x - linear

    def finish(self) -> NormProbes:
        """Regress, and collect."""
        fit = self.targets.finish()
        found = [self._both(i, fit) for i in range(len(self.vectors))]
        names, size = self.moments.layout.names, len(VECTORS)
        saes = {
            name: dict(zip(VECTORS, found[1 + size * i : 1 + size * (i + 1)], strict=True))
            for i, name in enumerate(names)
        }
        warnings = [*self._warnings(saes, fit), *self.baselines.warnings(names)]
        return NormProbes(
            x=found[0],
            saes=saes,
            n_tokens=self.moments.n_tokens,
            n_folds=len(fit.n),
            rank=fit.rank,
            warnings=tuple(warnings),
        )

    def _both(self, i: int, fit: TargetFit) -> BothProbes:
        if self.vectors[i].kind == "linear" and self._drowned(i):
            nothing = NormProbe(UNDEFINED, UNDEFINED, {})
            return BothProbes(nothing, nothing)
        return BothProbes(
            uncentred=self._one(i, fit, centred=False, gaussian=self._gaussian(i, fit)),
            centred=self._one(i, fit, centred=True, gaussian=Estimate(0.0, 0.0, 0.0)),
        )

    def _one(self, i: int, fit: TargetFit, *, centred: bool, gaussian: Estimate) -> NormProbe:
        # a norm that only repeats rounding is constant, such as that of a dead SAE's reconstruction
        if not fit.variance(3 * i + centred) > (_VARIES * self.scale**2) ** 2:
            return NormProbe(UNDEFINED, UNDEFINED, {})
        baselines = self.baselines.of(2 * i + centred, self.vectors[i].sae)
        return NormProbe(fit.r2(3 * i + centred), gaussian, baselines)

    def _drowned(self, i: int) -> bool:
        """Whether the fitted linear part of an error is hardly more than the noise of its fit, Var r · rank / n."""
        linear, nonlinear = (self.baselines.mean(2 * j + 1) for j in (i, i + 1))
        return linear <= _NOISE * nonlinear * self.maps.rank / min(self.maps.n_train)

    def _gaussian(self, i: int, fit: TargetFit) -> Estimate:
        """4 Var(P v̄·v) / (4 Var(v̄·v) + 2 tr S²)."""
        along, square = 3 * i + 2, self.pairs.square(i)
        var = fit.variance(along)
        left = min(fit.residual(along), var)
        bottom = 4 * var + 2 * square
        if not bottom > 0:
            return UNDEFINED
        value = 4 * (var - left) / bottom
        psi_var = var * relative_influence(fit.total[:, along], fit.n)
        psi_left = left * relative_influence(fit.heldout[:, along], fit.n)
        used = torch.tensor([fold.n > 0 for fold in self.moments.folds])
        psi_square = self.pairs.influence(i, used)
        return interval(value, (4 * (psi_var - psi_left) - value * (4 * psi_var + 2 * psi_square)) / bottom, fit.n)

    def _warnings(self, saes: Mapping[str, Mapping[str, BothProbes]], fit: TargetFit) -> Iterator[str]:
        if self.moments.n_tokens < _FEW_TOKENS * fit.rank:
            yield (
                f"{self.moments.n_tokens:,} tokens for {fit.rank} directions of x: the fitted linear part is noisy, "
                "and so are the norms of linear, nonlinear and recon_minus_nonlinear (wanted: "
                f"{_FEW_TOKENS} tokens per direction)"
            )
        for i, vector in enumerate(self.vectors):
            if vector.kind == "linear" and self._drowned(i):
                yield f"{vector.sae}: the linear part of its error is no more than noise of the fit, so it has no R2"
            elif vector.sae and math.isnan(saes[vector.sae][vector.kind].centred.r2.value):
                yield f"{vector.sae}: the norm of {vector.kind} does not vary, so it has no R2"
