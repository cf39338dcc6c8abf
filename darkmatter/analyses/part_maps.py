"""Linear error of single tokens, out of fold: what a second pass over a source needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

from darkmatter.batch import Batch
from darkmatter.errors import InputError
from darkmatter.folds import FoldMoments, fold_of
from darkmatter.moments import Moments
from darkmatter.solve import check_enough_tokens, factor

PARTS = 5
"""Maps of a second pass by default: each is fitted on four fifths of the documents and used on the last."""


@dataclass(frozen=True, slots=True, eq=False)
class PartMaps:
    """Affine maps from x to the error, each fitted without the documents it is used on; build them with `part_maps`.

    Folds are dealt to P parts, fold k to part k mod P; part p has the map e ≈ x @ weight[p] + bias[p] fitted on all
    other parts. P d² numbers per SAE: 5 · 2304² · 8 bytes are 212 MB.

    Attributes:
        names: The SAEs.
        folds: Folds K.
        weight: By SAE, (P, d, d), float64.
        bias: By SAE, (P, d), float64.
        n_train: Tokens of every fit, (P,).
        rank: Directions of x.
    """

    names: tuple[str, ...]
    folds: int
    weight: Mapping[str, Tensor]
    bias: Mapping[str, Tensor]
    n_train: tuple[int, ...]
    rank: int

    @property
    def parts(self) -> int:
        """Number of maps P."""
        return len(self.n_train)

    def part_of(self, groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Part of every token, (n,)."""
        return fold_of(groups, self.folds) % self.parts

    def linear(self, name: str, x: Tensor, groups: npt.NDArray[np.int64]) -> Tensor:
        """The linear error of tokens by the map that did not see their documents.

        Args:
            name: The SAE.
            x: Activations, (n, d), any floating dtype.
            groups: Document id of every token, (n,).

        Returns:
            (n, d), float64, on the device of x.
        """
        parts = self.part_of(groups)
        out = torch.empty(x.shape, dtype=torch.float64, device=x.device)
        for p in np.unique(parts):
            mine = torch.from_numpy(np.flatnonzero(parts == p)).to(x.device)
            weight, bias = self.weight[name][p].to(x.device), self.bias[name][p].to(x.device)
            out[mine] = x[mine].double() @ weight + bias
        return out

    def split(self, name: str, batch: Batch) -> tuple[Tensor, Tensor]:
        """Split the error of a batch out of fold, e = linear + nonlinear.

        Args:
            name: The SAE.
            batch: Tokens that `check_batch` accepts.

        Returns:
            (linear, nonlinear), (n, d) each, float64.
        """
        x, recon = torch.as_tensor(batch.x), torch.as_tensor(batch.recons[name])
        linear = self.linear(name, x, batch.groups)
        return linear, x.double() - recon.double() - linear


def part_maps(moments: FoldMoments, *, parts: int = PARTS) -> PartMaps:
    """Fit the maps from the moments of a first pass.

    Args:
        moments: Moments of K folds.
        parts: Number of maps P, 2 ≤ P ≤ K.

    Returns:
        The maps.

    Raises:
        InputError: Too many parts, a part without tokens, or too few tokens for the rank of x.
    """
    folds = moments.folds
    if not 2 <= parts <= len(folds):
        raise InputError(f"parts is {parts}, expected 2 … {len(folds)}, the number of folds")
    if any(sum(fold.n for fold in folds[p::parts]) == 0 for p in range(parts)):
        raise InputError(f"a part of {parts} holds no document, expected documents in all: pass more documents")
    layout = moments.layout
    weights, biases, n_train, ranks = [], [], [], []
    for p in range(parts):
        rest = Moments.union([fold for k, fold in enumerate(folds) if k % parts != p and fold.n])
        fit = factor(rest.xx, rest.mean_x, rest.n)
        check_enough_tokens(rest.n, fit.rank)
        weight = rearrange(fit.solve(rest.xe), "i (s j) -> s i j", s=layout.n_saes)
        weights.append(weight)
        biases.append(rest.mean_e - torch.einsum("i, s i j -> s j", rest.mean_x, weight))
        n_train.append(rest.n)
        ranks.append(fit.rank)
    weight, bias = torch.stack(weights), torch.stack(biases)
    return PartMaps(
        names=layout.names,
        folds=len(folds),
        weight={name: weight[:, i].contiguous() for i, name in enumerate(layout.names)},
        bias={name: bias[:, i].contiguous() for i, name in enumerate(layout.names)},
        n_train=tuple(n_train),
        rank=min(ranks),
    )
