"""The one pass of the ladder: moments, squares of the error per coordinate, and products of latents."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from darkmatter.analyses.ladder.latents import GROUPS, LatentSums
from darkmatter.batch import Batch
from darkmatter.checks import as_float_tensor
from darkmatter.errors import InputError
from darkmatter.folds import FoldAccumulator, fold_of
from darkmatter.moments import Layout
from darkmatter.sae import SAE


class LadderAccumulator(FoldAccumulator):
    """The moments of K folds, and beside them what the rungs need that are no function of x alone."""

    def __init__(self, layout: Layout, *, folds: int, device: str, latents: Mapping[str, SAE]) -> None:
        """Start from nothing.

        Args:
            layout: Width and SAE names.
            folds: Number K of folds, at least 2.
            device: Where the moments live; it must support float64.
            latents: SAEs whose latents are refitted, by name.
        """
        super().__init__(layout, folds=folds, device=device)
        shape = (layout.n_saes, folds, layout.d_model)
        self.counts = torch.zeros(folds, dtype=torch.float64, device=device)
        self.means = torch.zeros(shape, dtype=torch.float64, device=device)
        self.squares = torch.zeros(shape, dtype=torch.float64, device=device)
        self.latents = {name: LatentSums(sae, min(folds, GROUPS)) for name, sae in latents.items()}

    def update(self, batch: Batch) -> int:
        """Check a batch, then add it.

        Args:
            batch: Tokens.

        Returns:
            The number of tokens added.
        """
        added = super().update(batch)
        x = as_float_tensor(batch.x, "x")
        folds = torch.from_numpy(fold_of(batch.groups, len(self.counts))).to(x.device)
        counts = torch.bincount(folds, minlength=len(self.counts)).double().to(self.counts.device)
        for i, name in enumerate(self.layout.names):
            error = x.double() - as_float_tensor(batch.recons[name], name).double()
            self._squares(i, error.to(self.counts.device), folds.to(self.counts.device), counts)
            if name in self.latents:
                self.latents[name].add(x, error, folds % GROUPS)
        self.counts += counts
        return added

    def _squares(self, i: int, error: Tensor, folds: Tensor, counts: Tensor) -> None:
        """Merge the squares of one SAE's error about the means of every fold (Chan, Golub and LeVeque)."""
        mean = torch.zeros_like(self.means[i]).index_add_(0, folds, error) / counts.clamp_min(1)[:, None]
        squares = torch.zeros_like(mean).index_add_(0, folds, (error - mean[folds]).square_())
        share = (counts / (self.counts + counts).clamp_min(1))[:, None]
        delta = mean - self.means[i]
        self.squares[i] += squares + delta.square() * share * self.counts[:, None]
        self.means[i] += delta * share

    def state(self) -> dict[str, Tensor]:
        """All live state as named tensors."""
        own = {"ladder.counts": self.counts, "ladder.means": self.means, "ladder.squares": self.squares}
        for i, sums in enumerate(self.latents.values()):
            own |= {f"ladder.latents.{i}.{name}": tensor for name, tensor in sums.state().items()}
        return {**super().state(), **own}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a `state`.

        Args:
            tensors: The saved state.

        Raises:
            InputError: A tensor is missing, has another shape or holds impossible values; nothing was changed then.
        """
        own = {name: tensor for name, tensor in self.state().items() if name.startswith("ladder.")}
        for name, tensor in own.items():
            got = tensors.get(name)
            if got is None or (got.dtype, got.shape) != (tensor.dtype, tensor.shape) or not bool(got.isfinite().all()):
                raise InputError(f"saved sums hold no usable {name}, expected {tuple(tensor.shape)}")
        super().restore(tensors)
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
