"""What else than x predicts a squared norm: the activation's own norm, L0, position, the token, the model's loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from darkmatter.analyses.fold_table import FoldTable
from darkmatter.analyses.id_sums import IdSums, identity_r2
from darkmatter.analyses.norms.values import TokenValues
from darkmatter.batch import Batch
from darkmatter.errors import InputError
from darkmatter.folds import document_hash
from darkmatter.inference import UNDEFINED, Estimate
from darkmatter.sae import SAE

_NORM = ("activation_norm", "activation_square")
_PLACE = ("position", "log_position")


L0_TOKENS = 16_384
"""Tokens above which L0 is taken of every fourth document: encoding once more costs as much as the SAE itself."""

_L0_SHARE = 4


class Baselines:
    """Streams the norms of a pass beside what may predict them."""

    def __init__(
        self,
        norms: Sequence[str],
        saes: Mapping[str, SAE],
        *,
        folds: int,
        scale: float,
        many: bool,
        with_losses: bool,
        id_bytes: int,
    ) -> None:
        """Start from nothing.

        Args:
            norms: Names of the squared norms.
            saes: Weights by SAE name, where they are known.
            folds: Folds K.
            scale: Root mean square of ‖x‖.
            many: Whether L0 is to be taken of every fourth document only.
            with_losses: Whether there are losses.
            id_bytes: Most memory for sums by token id.
        """
        self.norms, self.saes = tuple(norms), saes
        self._scale = scale
        self._table = FoldTable.empty([*norms, *_NORM, *_PLACE], folds)
        self._l0 = FoldTable.empty([*norms, *(f"l0 {name}" for name in saes)], folds)
        self._share = _L0_SHARE if many else 1
        self._losses = FoldTable.empty([*norms, "loss"], folds) if with_losses else None
        self._ids = IdSums(len(norms), folds, limit=id_bytes)
        self._start: Tensor | None = None  # sums by id are of norms less a typical value: they lose no digits
        self.placed = self.named = True

    def add(self, batch: Batch, x: Tensor, norms: Tensor, losses: TokenValues | None) -> None:
        """Add a batch.

        Args:
            batch: The batch.
            x: Its activations, checked, (n, d).
            norms: The squared norms, (n, V), float64, on the CPU.
            losses: Losses of its tokens, if there are any.

        Raises:
            InputError: Negative positions or token ids, or a token without an entry among the losses.
        """
        probed = dict(zip(self.norms, norms.unbind(dim=1), strict=True))
        size = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).cpu() / self._scale
        self.placed &= batch.positions is not None
        place = torch.zeros(len(x), dtype=torch.float64)
        if batch.positions is not None:
            place = torch.from_numpy(batch.positions).double()
            if float(place.min()) < 0:
                raise InputError(f"positions holds {int(place.min())}, expected positions from 0 on")
        scalars = {
            **dict(zip(_NORM, (size, size.square()), strict=True)),
            **dict(zip(_PLACE, (place, (1 + place).log2()), strict=True)),
        }
        self._table = self._table.add(batch.groups, probed | scalars)
        if self.saes:
            self._count(batch, x, probed)
        if self._losses is not None and losses is not None:
            found = losses.at(batch)
            has = np.flatnonzero(~np.isnan(found))
            kept = {name: column[has] for name, column in probed.items()}
            self._losses = self._losses.add(batch.groups[has], {**kept, "loss": found[has]})
        self.named &= batch.token_ids is not None
        if batch.token_ids is not None:
            if self._start is None:
                self._start = norms.mean(dim=0)
            self._ids.add(batch.groups, batch.token_ids, norms - self._start)

    def _count(self, batch: Batch, x: Tensor, probed: Mapping[str, Tensor]) -> None:
        """Add the L0 of some documents, chosen by what the fold leaves of their hash."""
        left = document_hash(batch.groups) // np.uint64(len(self._table.n))
        chosen = np.flatnonzero(left % np.uint64(self._share) == 0)
        if len(chosen):
            rows = torch.from_numpy(chosen)
            active = {f"l0 {name}": active_latents(sae, x[rows.to(x.device)]) for name, sae in self.saes.items()}
            norms = {name: column[rows] for name, column in probed.items()}
            self._l0 = self._l0.add(batch.groups[chosen], norms | active)

    def mean(self, i: int) -> float:
        """Mean of norm number i over all tokens."""
        return float((self._table.n * self._table.mean[:, i]).sum() / self._table.n.sum())

    def of(self, i: int, sae: str) -> dict[str, Estimate]:
        """R² of norm number i, of a vector of that SAE ("" for x), by baseline."""
        key = self.norms[i]
        found = {"activation_norm": self._table.r2(key, _NORM)}
        if sae in self.saes:
            found["l0"] = self._l0.r2(key, (f"l0 {sae}",)) if len(self._l0.used) > 1 else UNDEFINED
        if self.placed:
            found["position"] = self._table.r2(key, _PLACE)
        if self.named and not self._ids.over:
            found["token"] = identity_r2(self._ids.counts, self._ids.sums(i), self._squares(i))
        if self._losses is not None:
            found["loss"] = self._losses.r2(key, ("loss",)) if len(self._losses.used) > 1 else UNDEFINED
        return found

    def _squares(self, i: int) -> Tensor:
        """Σ t² by fold of norm i less the value from which the sums by id are counted, (K,)."""
        assert self._start is not None
        table = self._table
        return table.scatter[:, i, i] + table.n * (table.mean[:, i] - self._start[i]).square()

    def warnings(self, names: Sequence[str]) -> Iterator[str]:
        """What is left out, and why.

        Args:
            names: All SAEs.

        Yields:
            Sentences.
        """
        if not self.named:
            yield "no token ids: the baseline token is left out"
        elif self._ids.over:
            yield "the baseline token is left out: vocabulary x folds x norms passes its memory (id_bytes)"
        if not self.placed:
            yield "no positions: the baseline position is left out"
        if without := [name for name in names if name not in self.saes]:
            yield f"no codes of {', '.join(without)}: their baseline l0 is left out"
        if self._losses is not None and len(self._losses.used) < 2:
            yield "fewer than two folds hold tokens with a loss: the baseline loss does not exist"


def active_latents(sae: SAE, x: Tensor) -> Tensor:
    """Latents above zero of every token.

    Args:
        sae: The SAE.
        x: Activations, (n, d).

    Returns:
        (n,), float64, on the CPU.
    """
    codes = sae.encode(x.to(sae.device))
    active = torch.cat([codes.offsets.new_zeros(1), (codes.values > 0).long().cumsum(0)])
    return (active[codes.offsets[1:]] - active[codes.offsets[:-1]]).double().cpu()
