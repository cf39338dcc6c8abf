"""The pass over the losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.analyses.downstream.fit_noise import kept_shares, without_fit_noise
from darkmatter.analyses.downstream.result import DownstreamLosses
from darkmatter.analyses.downstream.seam import SplicedBatch, SplicedLoss
from darkmatter.analyses.downstream.shares import Shares
from darkmatter.analyses.downstream.variants import DEFAULT_VARIANTS, SHARED, Directions, check_variants, replacements
from darkmatter.analyses.fold_table import FoldTable
from darkmatter.analyses.part_maps import PARTS, PartMaps, part_maps
from darkmatter.batch import check_batch
from darkmatter.errors import InputError
from darkmatter.folds import FoldMoments
from darkmatter.moments import Moments

_NOISY = 0.03  # noise of the fit in the nonlinear part, which is taken out to first order
_FEW = 5  # documents per fold
_SQUARED = ("error", "linear", "nonlinear")


def downstream_losses(
    source: SplicedLoss,
    moments: FoldMoments,
    *,
    variants: Sequence[str] = DEFAULT_VARIANTS,
    documents: int | None = None,
    parts: int = PARTS,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> DownstreamLosses:
    """Measure what replacing a site by an SAE, or by parts of its error, does to the loss.

    Every variant is a whole forward pass of the model: 3 + 7 S of them for S SAEs, beside that of the moments.

    Args:
        source: The losses; its tokens and SAEs are those of the moments.
        moments: Moments of a first pass, from which the linear maps are fitted, out of fold (`part_maps`).
        variants: Which replacements, of `VARIANTS`; "sae" is always among them, and without "mean" no `recovered` is
            given.
        documents: Stop after the batch with this many documents; None takes all.
        parts: Linear maps, each fitted without the documents that it is used on.
        seed: Seed of the random errors.
        progress: Called with the number of tokens after every batch.

    Returns:
        The losses.

    Raises:
        InputError: An unknown variant, moments of other SAEs, too few documents, or a loss that is not finite.
    """
    chosen = check_variants(variants)
    if documents is not None and documents < 2:
        raise InputError(f"documents is {documents}, expected at least 2: an interval needs documents that differ")
    if (source.d_model, source.names) != (moments.layout.d_model, moments.layout.names):
        raise InputError(
            f"the moments are of {', '.join(moments.layout.names)} with d_model {moments.layout.d_model}, the losses "
            f"of {', '.join(source.names)} with {source.d_model}: expected the same SAEs on the same site"
        )
    found = _Pass(source.names, chosen, moments, part_maps(moments, parts=parts), seed)
    for number, item in enumerate(source):
        found.add(number, item)
        if progress is not None:
            progress(len(item.batch.groups))
        if documents is not None and found.n_documents >= documents:
            break
    return found.result()


class _Pass:
    """Sums of one pass, by SAE."""

    def __init__(
        self, names: Sequence[str], variants: Sequence[str], moments: FoldMoments, maps: PartMaps, seed: int
    ) -> None:
        self._names, self._variants, self._maps, self._seed = tuple(names), tuple(variants), maps, seed
        self._mean = Moments.union([fold for fold in moments.folds if fold.n]).mean_x
        columns = ["clean", *variants, *(f"{part} squared" for part in _SQUARED)]
        self._n_tokens = moments.n_tokens
        self._kept = kept_shares(moments, maps.parts)
        self._tables = {name: FoldTable.empty(columns, maps.folds) for name in names}
        self._gap: float | None = None
        self._last: int | None = None
        self._alone = 0
        self.n_documents = 0

    def add(self, number: int, item: SplicedBatch) -> None:
        """Run every variant on one batch."""
        batch, rows = item.batch, item.rows
        if not len(rows):
            return
        if "shuffled" in self._variants and len(np.unique(batch.groups)) < 2:
            self._alone += len(rows)  # no other document to take an error from
            return
        x, recons = check_batch(batch, d_model=len(self._mean), names=self._names)
        clean = _checked(item.clean(), "the clean model", batch.groups[rows])
        shared = {"clean": clean}
        for name in self._variants:
            if name in SHARED:
                shared[name] = self._increase(name, self._shared(name, item, clean, x), item, clean)
        directions = Directions(self._seed, number)
        for sae in self._names:
            linear = self._maps.linear(sae, x, batch.groups)
            columns = dict(shared)
            given = replacements(
                self._variants, x=x, recon=recons[sae], linear=linear, groups=batch.groups, directions=directions
            )
            for name, replacement in given:
                columns[name] = self._increase(f"{name} of {sae}", item.losses(replacement), item, clean)
            error = x.double() - recons[sae].double()
            for part, vectors in zip(_SQUARED, (error, linear, error - linear), strict=True):
                columns[f"{part} squared"] = vectors.square().sum(dim=1).cpu()[rows]
            self._tables[sae] = self._tables[sae].add(batch.groups[rows], without_fit_noise(columns, self._kept[sae]))
        self._count(batch.groups[rows])

    def _shared(self, name: str, item: SplicedBatch, clean: Tensor, x: Tensor) -> Tensor:
        if name == "identity":
            return self._identity(item, clean)
        return item.losses(torch.zeros_like(x) if name == "zero" else self._mean.to(x.device).expand_as(x))

    def _identity(self, item: SplicedBatch, clean: Tensor) -> Tensor:
        losses = item.identity()
        gap = float((losses.double() - clean.double()).abs().max())
        if gap > 0 and not self._gap and torch.equal(item.clean(), clean):
            raise InputError(
                f"putting x back at the site changes losses by up to {gap:.2g} nats, expected none: the module is "
                "shared, or other hooks change x"
            )
        self._gap = max(gap, self._gap or 0.0)
        return losses

    def _increase(self, what: str, losses: Tensor, item: SplicedBatch, clean: Tensor) -> Tensor:
        return _checked(losses, what, item.batch.groups[item.rows]).double() - clean.double()

    def _count(self, groups: npt.NDArray[np.int64]) -> None:
        new = np.unique(groups)
        self.n_documents += len(new) - (self._last in new)
        self._last = int(groups[-1])

    def result(self) -> DownstreamLosses:
        """All numbers.

        Raises:
            InputError: No loss, or losses of one fold only.
        """
        first = self._tables[self._names[0]]
        if not first.n_tokens:
            raise InputError(
                "no loss was measured, expected batches of two documents or more, with a next token: raise "
                "--batch-docs, or give longer documents"
            )
        if len(first.used) < 2:
            raise InputError("all documents fall into one fold, expected at least 2 folds with losses: give more")
        shares = {name: Shares(table, n_map_tokens=self._n_tokens) for name, table in self._tables.items()}
        common = shares[self._names[0]]
        return DownstreamLosses(
            clean=first.average("clean"),
            variants={name: common.variant(name) for name in SHARED if common.has(name)},
            saes={name: share.sae(fit_noise=1 - self._kept[name]) for name, share in shares.items()},
            identity_gap=self._gap,
            n_losses=first.n_tokens,
            n_documents=self.n_documents,
            n_folds=len(first.used),
            n_map_tokens=min(self._maps.n_train),
            rank=self._maps.rank,
            warnings=tuple(self._warnings(shares)),
        )

    def _warnings(self, shares: dict[str, Shares]) -> list[str]:
        found = []
        common, n_folds = shares[self._names[0]], len(self._tables[self._names[0]].used)
        if self._gap:
            found.append(
                f"putting x back changes losses by up to {self._gap:.2g} nats: the model gives another loss each time"
            )
        if self.n_documents < _FEW * n_folds:
            found.append(
                f"{self.n_documents} documents in {n_folds} folds: intervals rest on few documents and may be too "
                "narrow"
            )
        if self._alone:
            found.append(
                f"{self._alone} losses were left out: their batch held one document only, and no error of another"
            )
        noisy = [name for name, kept in self._kept.items() if 1 - kept > _NOISY]
        if noisy:
            found.append(
                f"{noisy[0]}: {1 - self._kept[noisy[0]]:.0%} of the spliced nonlinear part is noise of the linear fit, "
                "taken out to first order only: use more tokens"
            )
        if common.has("mean") and not common.positive("mean"):
            found.append("mean ablation does not raise the loss beyond doubt: no share of it is given")
        found += [
            f"{name}: Sae(x) does not raise the loss beyond doubt, so no share of the increase is given"
            for name, share in shares.items()
            if not share.positive("sae")
        ]
        return found


def _checked(losses: Tensor, what: str, groups: npt.NDArray[np.int64]) -> Tensor:
    if losses.shape != (len(groups),):
        raise InputError(f"{what}: losses have shape {tuple(losses.shape)}, expected ({len(groups)},), one per row")
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        raise InputError(
            f"{what}: the loss is NaN or infinite (first in document {groups[int(bad[0])]}): the layers behind the "
            "site overflow or are damaged; load the model in bfloat16 or float32"
        )
    return losses
