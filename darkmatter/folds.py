"""K folds of moments, chosen by a hash of the document id, so that a document never lies on both sides of a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.accumulate import MomentAccumulator
from darkmatter.batch import Batch, check_batch
from darkmatter.errors import InputError
from darkmatter.moments import Layout, Moments
from darkmatter.products import Precision, check_precision

SKETCH_SIZE = 4096
"""Documents per fold that are counted exactly; beyond, their number is estimated to about 1.6 %."""

Keys = npt.NDArray[np.uint64]


def document_hash(groups: npt.NDArray[np.int64]) -> Keys:
    """Scramble document ids by the finaliser of splitmix64 (Steele, Lea and Flood 2014), a bijection of 64-bit words.

    Args:
        groups: Document ids, any shape.

    Returns:
        Hashes, same shape; the same on every machine and in every process.
    """
    h = groups.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def fold_of(groups: npt.NDArray[np.int64], folds: int) -> npt.NDArray[np.int64]:
    """Fold of every token: document_hash(group) mod K.

    Args:
        groups: Document ids, (n,).
        folds: Number K of folds.

    Returns:
        Fold numbers in 0 … K − 1, (n,).
    """
    return (document_hash(groups) % np.uint64(folds)).astype(np.int64)


def merge_keys(first: Keys, second: Keys) -> Keys:
    """The smallest hashes of the union of two sets of documents, at most `SKETCH_SIZE`, sorted."""
    return np.union1d(first, second)[:SKETCH_SIZE]


def _count_documents(keys: Keys) -> int:
    """Distinct documents of one fold: exact below SKETCH_SIZE, else (k − 1) / u, u in (0, 1) the k-th smallest hash."""
    if len(keys) < SKETCH_SIZE:
        return len(keys)
    return round((SKETCH_SIZE - 1) / (float(keys[-1]) / 2.0**64))


@dataclass(frozen=True, slots=True)
class FoldMoments:
    """Moments of K folds: everything the estimator needs, whatever the number of tokens.

    Attributes:
        layout: Columns of the moments.
        folds: One `Moments` per fold; a fold without documents has n = 0.
        documents: For every fold the smallest hashes of its documents, at most `SKETCH_SIZE`.
    """

    layout: Layout
    folds: tuple[Moments, ...]
    documents: tuple[Keys, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens in all folds."""
        return sum(fold.n for fold in self.folds)

    @property
    def groups_per_fold(self) -> tuple[int, ...]:
        """Distinct documents of every fold."""
        return tuple(_count_documents(keys) for keys in self.documents)

    @property
    def n_groups(self) -> int:
        """Distinct documents: exact up to 4095 in each fold, an estimate (about 1.6 % per fold) beyond."""
        return sum(self.groups_per_fold)

    def total(self) -> Moments:
        """Moments of all tokens."""
        return Moments.union(self.folds)

    def merge(self, other: FoldMoments) -> FoldMoments:
        """Moments of the union of two disjoint sets of tokens.

        Args:
            other: Moments with the same SAEs, width and number of folds.

        Returns:
            The merged moments.

        Raises:
            InputError: The two were accumulated with different layouts or fold numbers.
        """
        if self.layout != other.layout or len(self.folds) != len(other.folds):
            raise InputError(
                f"cannot merge moments of {other.layout} in {len(other.folds)} folds into {self.layout} in "
                f"{len(self.folds)}: accumulate both with the same SAEs and the same number of folds"
            )
        return FoldMoments(
            layout=self.layout,
            folds=tuple(a.merge(b) for a, b in zip(self.folds, other.folds, strict=True)),
            documents=tuple(merge_keys(a, b) for a, b in zip(self.documents, other.documents, strict=True)),
        )


class FoldAccumulator:
    """Streams batches into the moments of K folds; every batch is checked before any state changes.

    Memory is K d (d + S d) float64 numbers, whatever the number of tokens.
    """

    def __init__(
        self, layout: Layout, *, folds: int, device: str | torch.device = "cpu", precision: Precision = "float64"
    ) -> None:
        """Start from nothing.

        Args:
            layout: Width and SAE names.
            folds: Number K of folds, at least 2.
            device: Where the sums live; it must support float64.
            precision: How blocks are multiplied, see `products`.

        Raises:
            InputError: Fewer than two folds, or an unknown precision.
        """
        if folds < 2:
            raise InputError(f"folds is {folds}, expected at least 2: an interval needs two folds that differ")
        check_precision(precision)
        self.layout = layout
        self._folds = [MomentAccumulator(layout, torch.device(device), precision) for _ in range(folds)]
        self._documents: list[Keys] = [np.empty(0, dtype=np.uint64) for _ in range(folds)]

    @property
    def n_tokens(self) -> int:
        """Tokens seen."""
        return sum(fold.n for fold in self._folds)

    def update(self, batch: Batch) -> int:
        """Check a batch, then add it.

        Args:
            batch: Tokens, see `Batch`.

        Returns:
            The number of tokens added.

        Raises:
            InputError: Anything wrong with the batch; nothing was added then.
        """
        x, recons = check_batch(batch, d_model=self.layout.d_model, names=self.layout.names)
        hashes = document_hash(batch.groups)
        fold_numbers = (hashes % np.uint64(len(self._folds))).astype(np.int64)
        for k in np.unique(fold_numbers):
            mine = np.flatnonzero(fold_numbers == k)
            index = torch.from_numpy(mine).to(x.device)
            self._folds[k].add(x, recons, index)
            self._documents[k] = merge_keys(self._documents[k], np.unique(hashes[mine]))
        return len(x)

    def freeze(self) -> FoldMoments:
        """Copy out the moments so far."""
        return FoldMoments(self.layout, tuple(f.freeze() for f in self._folds), tuple(self._documents))

    def finish(self) -> FoldMoments:
        """Hand over the moments without copying them; the accumulator is empty afterwards."""
        result = FoldMoments(self.layout, tuple(f.finish() for f in self._folds), tuple(self._documents))
        self._documents = [np.empty(0, dtype=np.uint64) for _ in self._folds]
        return result

    def state(self) -> dict[str, Tensor]:
        """All live state as named tensors, rows that still wait in blocks included."""
        tensors: dict[str, Tensor] = {}
        for k, (fold, keys) in enumerate(zip(self._folds, self._documents, strict=True)):
            tensors |= {f"{k}.{name}": tensor for name, tensor in fold.state().items()}
            tensors[f"{k}.documents"] = torch.from_numpy(keys.view(np.int64))
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a `state` of an accumulator with the same layout and folds.

        Args:
            tensors: The saved state.

        Raises:
            InputError: A tensor is missing, has another shape or holds impossible values; nothing was changed then.
        """
        for name, tensor in self.state().items():
            free = name.endswith((".waiting", ".documents"))  # only their number of rows may differ
            got = tensors.get(name)
            if got is None or (got.dtype, got.ndim, got.shape[free:]) != (
                tensor.dtype,
                tensor.ndim,
                tensor.shape[free:],
            ):
                found = "nothing" if got is None else f"{got.dtype} {tuple(got.shape)}"
                raise InputError(f"saved moments hold {found} for {name}, expected {tuple(tensor.shape)}")
            if name.endswith(".waiting") and len(got) >= self.layout.block_rows:
                raise InputError(f"saved moments hold {len(got)} rows for {name}, expected a block not yet full")
            if not torch.isfinite(got).all() or (name.endswith(".n") and int(got) < 0):
                raise InputError(f"saved moments hold impossible values for {name}")
        for k, fold in enumerate(self._folds):
            fold.restore({name.partition(".")[2]: t for name, t in tensors.items() if name.startswith(f"{k}.")})
            self._documents[k] = tensors[f"{k}.documents"].numpy().view(np.uint64).copy()
