"""Named numbers per token, summed by document fold: means, ratios and small regressions with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.analyses.small_r2 import gain_interval, slopes
from darkmatter.checks import as_float_tensor, check_finite
from darkmatter.errors import InputError
from darkmatter.folds import fold_of
from darkmatter.inference import (
    UNDEFINED,
    Estimate,
    interval,
    relative_influence,
    residual_influence,
    symmetric_optimism,
)

Column = Tensor | npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True, eq=False)
class FoldTable:
    """Sums of C numbers per token and of their products, by fold; a table of other tokens is added with `merge`.

    Attributes:
        names: The numbers, C of them.
        n: Tokens of every fold, (K,).
        mean: Their means in every fold, (K, C); 0 in an empty fold.
        scatter: Their centred products in every fold, (K, C, C).
    """

    names: tuple[str, ...]
    n: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, names: Sequence[str], folds: int) -> FoldTable:
        """A table without tokens.

        Args:
            names: The numbers.
            folds: Folds K, at least 2.

        Returns:
            The table.

        Raises:
            InputError: Fewer than two folds, or a name twice.
        """
        if folds < 2:
            raise InputError(f"folds is {folds}, expected at least 2: an interval needs two folds that differ")
        if len(set(names)) < len(names):
            raise InputError(f"columns are {list(names)}, expected every name once")
        c = len(names)
        zeros = torch.zeros(folds, 1 + c + c * c, dtype=torch.float64)
        return cls(tuple(names), zeros[:, 0], zeros[:, 1 : 1 + c], zeros[:, 1 + c :].reshape(folds, c, c))

    def add(self, groups: npt.NDArray[np.int64], columns: Mapping[str, Column]) -> FoldTable:
        """A table with some more tokens.

        Args:
            groups: Document id of every token, (n,).
            columns: A number per token by name, (n,) each.

        Returns:
            The new table.

        Raises:
            InputError: Other columns, a wrong shape, or a value that is not finite.
        """
        if set(columns) != set(self.names):
            raise InputError(f"columns are {sorted(columns)}, expected {sorted(self.names)}")
        folds = torch.from_numpy(fold_of(groups, len(self.n)))
        rows = torch.stack([_column(columns[name], name, len(groups)) for name in self.names], dim=1)
        k, c = self.mean.shape
        n = torch.bincount(folds, minlength=k).double()
        mean = torch.zeros(k, c, dtype=torch.float64).index_add_(0, folds, rows) / n.clamp_min(1)[:, None]
        centred = rows - mean[folds]
        scatter = torch.stack([centred[mine].T @ centred[mine] for mine in (folds == i for i in range(k))])
        return self.merge(FoldTable(self.names, n, mean, scatter))

    def merge(self, other: FoldTable) -> FoldTable:
        """The table of both sets of tokens (Chan, Golub and LeVeque, in every fold).

        Args:
            other: A table of the same columns and folds.

        Returns:
            The union.

        Raises:
            InputError: Other columns or folds.
        """
        if self.names != other.names or len(self.n) != len(other.n):
            raise InputError(f"cannot merge {other.names} in {len(other.n)} folds into {self.names} in {len(self.n)}")
        n = self.n + other.n
        delta = other.mean - self.mean
        share = other.n / n.clamp_min(1)
        outer = delta[:, :, None] * delta[:, None, :] * (self.n * share)[:, None, None]
        return FoldTable(self.names, n, self.mean + delta * share[:, None], self.scatter + other.scatter + outer)

    @property
    def n_tokens(self) -> int:
        """Tokens in all folds."""
        return int(self.n.sum())

    @property
    def used(self) -> Tensor:
        """Tokens of the folds that hold any, (K',); influences have this length."""
        return self.n[self.n > 0]

    def column(self, name: str) -> int:
        """Where a number stands.

        Raises:
            InputError: There is none of that name.
        """
        if name not in self.names:
            raise InputError(f"no column {name!r}, expected one of {', '.join(self.names)}")
        return self.names.index(name)

    def sums(self, name: str) -> Tensor:
        """Σ t by fold, over the folds that hold tokens, (K',)."""
        return (self.n * self.mean[:, self.column(name)])[self.n > 0]

    def squares(self, first: str, second: str | None = None) -> Tensor:
        """Σ (s − s̄)(t − t̄) by fold about the means of all tokens, (K',); Σ (t − t̄)² of one column."""
        i, j = self.column(first), self.column(first if second is None else second)
        mean = (self.n[:, None] * self.mean).sum(dim=0) / self.n.sum()
        off = self.mean - mean
        return (self.scatter[:, i, j] + self.n * off[:, i] * off[:, j])[self.n > 0]

    def average(self, name: str) -> Estimate:
        """Mean of a number over all tokens, with the interval from folds."""
        sums = self.sums(name)
        value = float(sums.sum() / self.used.sum())
        return interval(value, sums / self.used - value, self.used)

    def ratio(self, top: str, bottom: str) -> Estimate:
        """Σ top / Σ bottom, delta method on the identity scale; undefined where the bottom is not positive."""
        return ratio(self.sums(top), self.sums(bottom), self.used)

    def r2(self, target: str, on: Sequence[str]) -> Estimate:
        """R² of a number regressed on others with intercept, 1 − sqrt(S·C)/Var, leaving one fold out at a time.

        The interval is that of `gain_interval`: it holds where R² is nothing, and never lies below 0 but to reach the
        estimate.

        Args:
            target: The number.
            on: The regressors; columns that do not vary are ignored.

        Returns:
            R² with its interval; undefined where the target does not vary.
        """
        return self.r2_differences(target, on, ())[0]

    def r2_differences(self, target: str, more: Sequence[str], less: Sequence[str]) -> tuple[Estimate, Estimate]:
        """R² on some regressors, and by how much it exceeds that on others, on the same folds.

        Where one set of regressors holds the other, the interval of the difference is that of `gain_interval`. Else it
        is that of the delta method, which is poor where both R² are about 0: the difference may have either sign.

        Args:
            target: The number.
            more: Regressors.
            less: The others; none is R² = 0.

        Returns:
            (R² on `more`, R² on `more` − R² on `less`).

        Raises:
            InputError: Fewer than two folds hold tokens.
        """
        if len(self.used) < 2:
            raise InputError("all documents fall into one fold, expected at least 2 folds with tokens")
        total = self.squares(target)
        if not float(total.sum()) > 0:
            return UNDEFINED, UNDEFINED
        var = float(total.sum() / self.used.sum())
        (share, heldout), (other, other_heldout) = (self._unexplained(target, on, var) for on in (more, less))
        first = self._gain(target, (), more, 1 - share)
        if set(less) <= set(more):
            return first, self._gain(target, less, more, other - share)
        if set(more) < set(less):
            loss = self._gain(target, more, less, share - other)
            return first, Estimate(-loss.value, -loss.high, -loss.low)
        psi = relative_influence(total, self.used)
        influence = residual_influence(heldout, self.used, len(more)) - psi
        other_influence = residual_influence(other_heldout, self.used, len(less)) - psi
        return first, interval(other - share, other * other_influence - share * influence, self.used)

    def _gain(self, target: str, less: Sequence[str], more: Sequence[str], value: float) -> Estimate:
        """Interval of what the regressors of `more` that are not in `less` add."""
        names = [*less, *(name for name in more if name not in less), target]
        index, used = [self.column(name) for name in names], self.n > 0
        scatter = self.scatter[used][:, index][:, :, index]
        return gain_interval(value, self.used, self.mean[used][:, index], scatter, len(less))

    def _unexplained(self, target: str, on: Sequence[str], var: float) -> tuple[float, Tensor]:
        """Residual variance over variance, and its held-out sums of squares by fold."""
        if not on:
            return 1.0, self.squares(target)
        train, heldout, n_train = (torch.stack(parts) for parts in zip(*self._fits(target, on), strict=True))
        return symmetric_optimism(train, heldout, n_train, self.used) / var, heldout

    def _fits(self, target: str, on: Sequence[str]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Residual sums of squares on the training tokens and on the fold left out, for every fold in turn."""
        index = [self.column(name) for name in on] + [self.column(target)]
        folds = [i for i in range(len(self.n)) if self.n[i] > 0]
        found = []
        for k in folds:
            rest = _union(self, [i for i in folds if i != k], index)
            n, mean, scatter = rest
            slope = slopes(scatter[:-1, :-1], scatter[:-1, -1:])[:, 0]
            contrast = torch.cat([-slope, torch.ones(1, dtype=torch.float64)])
            own = self.scatter[k][index][:, index]
            off = (self.mean[k, index] - mean) @ contrast
            heldout = contrast @ own @ contrast + self.n[k] * off.square()
            found.append((contrast @ scatter @ contrast, heldout, n))
        return found


def ratio(top: Tensor, bottom: Tensor, n: Tensor) -> Estimate:
    """Σ top / Σ bottom of fold sums, delta method on the identity scale.

    Args:
        top: Fold sums, (K,).
        bottom: Fold sums, (K,).
        n: Tokens per fold, (K,).

    Returns:
        The ratio with its interval; undefined where the bottom is not positive.
    """
    whole = float(bottom.sum())
    if not whole > 0:
        return UNDEFINED
    value = float(top.sum()) / whole
    return interval(value, (top - value * bottom) / n / (whole / float(n.sum())), n)


def _union(table: FoldTable, folds: Sequence[int], index: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, means and scatter of some folds together."""
    weight = table.n[list(folds)]
    means = table.mean[list(folds)][:, list(index)]
    n = weight.sum()
    mean = (weight[:, None] * means).sum(dim=0) / n
    off = means - mean
    inner = table.scatter[list(folds)][:, list(index)][:, :, list(index)].sum(dim=0)
    return n, mean, inner + (off * weight[:, None]).T @ off


def _column(value: Column, name: str, n: int) -> Tensor:
    column = as_float_tensor(value, name).double().cpu()
    if column.shape != (n,):
        raise InputError(f"column {name!r} has shape {tuple(column.shape)}, expected ({n},): one number per token")
    check_finite(column, name)
    return column
