"""tr S² of many vectors' covariances S from pairs of tokens: no d × d sums."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.folds import fold_of
from darkmatter.inference import relative_influence

_SHIFTS = 2

Pairs = list[tuple[Tensor, Tensor]]


class PairSums:
    """Streams E⟨v_i − v̄, v_j − v̄⟩² = tr S² over tokens i, j of different documents, a few partners for every token.

    A pair counts for the folds of both tokens: the mean is a U-statistic of degree two, and the influence of a fold is
    twice that of a mean.
    """

    def __init__(self, n_vectors: int, folds: int) -> None:
        """Start from nothing.

        Args:
            n_vectors: Vectors V.
            folds: Folds K.
        """
        self._count = torch.zeros(folds, dtype=torch.float64)
        self._total = torch.zeros(folds, n_vectors, dtype=torch.float64)

    def partners(self, groups: npt.NDArray[np.int64]) -> Pairs:
        """Pair the tokens of a batch, and count the pairs.

        Args:
            groups: Document ids, (n,).

        Returns:
            Rows of the first and of the second token of the pairs, a list with one entry for every distance.
        """
        n = len(groups)
        rows, found = np.arange(n), []
        for shift in sorted({n * i // (2 * _SHIFTS + 1) for i in range(1, _SHIFTS + 1)} - {0}):
            partner = (rows + shift) % n
            apart = np.flatnonzero(groups != groups[partner])
            found.append((torch.from_numpy(apart), torch.from_numpy(partner[apart])))
            for end in (apart, partner[apart]):
                self._count += torch.bincount(self._folds(groups)[end], minlength=len(self._count))
        return found

    def add(self, i: int, centred: Tensor, groups: npt.NDArray[np.int64], pairs: Pairs) -> None:
        """Add the pairs of a batch for one vector.

        Args:
            i: Number of the vector.
            centred: v − v̄, (n, d).
            groups: Document ids, (n,).
            pairs: What `partners` found.
        """
        folds = self._folds(groups)
        for first, second in pairs:
            there = (first.to(centred.device), second.to(centred.device))
            squares = (centred[there[0]] * centred[there[1]]).sum(dim=1).square().cpu()
            for end in (first, second):
                self._total[:, i].index_add_(0, folds[end], squares)

    def _folds(self, groups: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(fold_of(groups, len(self._count)))

    def square(self, i: int) -> float:
        """The trace of S² for vector i; NaN where no batch held two documents."""
        return float(self._total[:, i].sum() / self._count.sum())

    def influence(self, i: int, used: Tensor) -> Tensor:
        """Influence on tr S² of the folds that hold tokens, (K',), of the mask (K,) `used`."""
        count, total = self._count[used], self._total[used, i]
        psi = relative_influence(torch.where(count > 0, total, self.square(i)), count.clamp_min(1))
        return 2 * self.square(i) * torch.where(count > 0, psi, 0.0)
