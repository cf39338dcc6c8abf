"""Products of blocks of columns, centred, one set per fold: additive, as the moments are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from darkmatter.analyses.cross_site.plan import Key, Plan

_TILES = 4
"""A square of d columns is formed in tiles of d / 4 on and above the diagonal: 10 of 16 products."""

_TILED = 256
"""Narrower squares are formed whole."""


@dataclass(frozen=True, slots=True, eq=False)
class Grams:
    """Sums of one set of tokens.

    Attributes:
        plan: The columns.
        n: Tokens.
        mean: Mean row, (width,).
        products: Σ (a − ā)(b − b̄)' by pair of blocks.
        squares: Σ |t − t̄|² of every target, (T,).
    """

    plan: Plan
    n: int
    mean: Tensor
    products: Mapping[tuple[Key, Key], Tensor]
    squares: Tensor

    def mean_of(self, blocks: Sequence[Key]) -> Tensor:
        """Means of some blocks, one after the other."""
        columns = self.plan.columns
        return torch.cat([self.mean[columns[key]] for key in blocks])

    def between(self, first: Key, second: Key) -> Tensor:
        """Products of two blocks, in either order."""
        if (first, second) in self.products:
            return self.products[first, second]
        return self.products[second, first].mT

    def square(self, blocks: Sequence[Key]) -> Tensor:
        """Scatter of some blocks together."""
        return torch.cat([torch.cat([self.between(a, b) for b in blocks], dim=1) for a in blocks])

    def with_targets(self, blocks: Sequence[Key]) -> Tensor:
        """Products of some blocks with all targets."""
        return torch.cat([torch.cat([self.products[a, t] for t in self.plan.targets], dim=1) for a in blocks])

    def trace_about(self, mean: Tensor, first: Key, second: Key) -> float:
        """Σ ⟨a − c_a, b − c_b⟩ of two blocks of one width about another mean row c."""
        off, columns = self.mean - mean, self.plan.columns
        inner = (off[columns[first]] * off[columns[second]]).sum()
        return float(self.between(first, second).diagonal().sum() + self.n * inner)

    @staticmethod
    def union(parts: Sequence[Grams]) -> Grams:
        """Sums of disjoint sets of tokens together, by the update of Chan, Golub and LeVeque.

        Args:
            parts: At least one with tokens; all of one plan.

        Returns:
            The sums; the part itself where there is one.
        """
        if len(parts) == 1:
            return parts[0]
        plan, columns, n = parts[0].plan, parts[0].plan.columns, sum(part.n for part in parts)
        counts = parts[0].mean.new_tensor([part.n for part in parts])
        mean = overall_mean(parts)
        off = torch.stack([part.mean for part in parts]) - mean
        weighted = off * counts[:, None]
        products = {}
        for a, b in parts[0].products:
            total = parts[0].products[a, b] + parts[1].products[a, b]
            for part in parts[2:]:
                total += part.products[a, b]
            products[a, b] = total.addmm_(weighted[:, columns[a]].T, off[:, columns[b]])
        between = torch.stack([(weighted * off)[:, columns[target]].sum() for target in plan.targets])
        squares = torch.stack([part.squares for part in parts]).sum(dim=0) + between
        return Grams(plan, n, mean, products, squares)


class GramAccumulator:
    """Collects rows of one fold; memory does not depend on their number."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        """Start from nothing."""
        self._plan, self._columns, self._pairs = plan, plan.columns, plan.pairs
        self._mean = torch.zeros(plan.width, dtype=torch.float64, device=device)
        self._squares = self._mean.new_zeros(len(plan.targets))
        self._products: dict[tuple[Key, Key], Tensor] = {}
        self.n = 0

    def add(self, blocks: Mapping[Key, Tensor], index: Tensor) -> None:
        """Take some rows.

        Args:
            blocks: Columns by block, (m, width of the block), any floating dtype.
            index: Which n of the m rows, (n,).
        """
        device = self._mean.device
        # one more row carries the between-means term of the update through the same products
        rows = torch.empty(len(index) + 1, self._plan.width, dtype=torch.float64, device=device)
        for key, values in blocks.items():
            rows[:-1, self._columns[key]] = values.index_select(0, index.to(values.device)).to(device)
        own = rows[:-1]
        mean = own.mean(dim=0)
        own -= mean
        rest = own.mean(dim=0)  # the first mean is rounded; one correction makes it exact
        own -= rest
        delta = mean + rest - self._mean
        total = self.n + len(index)
        rows[-1] = delta * (self.n * len(index) / total) ** 0.5
        self._mean += delta * (len(index) / total)
        self.n = total
        for a, b in self._pairs:
            if (a, b) not in self._products:
                shape = (self._plan.widths[a], self._plan.widths[b])
                self._products[a, b] = torch.zeros(shape, dtype=torch.float64, device=device)
            _add_product(self._products[a, b], rows[:, self._columns[a]], rows[:, self._columns[b]], same=a == b)
        self._squares += torch.stack([rows[:, self._columns[t]].square().sum() for t in self._plan.targets])

    def finish(self) -> Grams:
        """Hand over the sums without a copy."""
        for (a, b), product in self._products.items():
            if a == b:
                for low, high in _tiles(len(product)):
                    product[high:, low:high] = product[low:high, high:].T
        return Grams(self._plan, self.n, self._mean, self._products, self._squares)


def overall_mean(parts: Sequence[Grams]) -> Tensor:
    """Mean row of several sets of tokens together, (width,)."""
    counts = parts[0].mean.new_tensor([part.n for part in parts])
    means = torch.stack([part.mean for part in parts])
    # differences first: large means must cancel before they are averaged
    mean: Tensor = means[0] + counts / counts.sum() @ (means - means[0])
    return mean


def rests(folds: Sequence[Grams], others: Grams | None = None) -> Iterator[Grams]:
    """Unite, for every fold in turn, all the others: by halving, never by subtraction.

    Args:
        folds: At least two, all with tokens.
        others: Sums to unite with each.

    Yields:
        The sums of the others, in the order of `folds`.
    """
    if len(folds) == 1 and others is not None:
        yield others
        return
    left, right = folds[: len(folds) // 2], folds[len(folds) // 2 :]
    for part, rest in ((left, right), (right, left)):
        yield from rests(part, Grams.union(list(rest) if others is None else [others, *rest]))


def _add_product(out: Tensor, left: Tensor, right: Tensor, *, same: bool) -> None:
    """Add left' right in place; of a square only what lies on and above the diagonal of tiles."""
    if not same:
        out.addmm_(left.T, right)
        return
    for low, high in _tiles(len(out)):
        out[low:high, low:].addmm_(left[:, low:high].T, right[:, low:])


def _tiles(d: int) -> list[tuple[int, int]]:
    """Ends of the tiles of d columns."""
    count = _TILES if d >= _TILED else 1
    edges = [d * i // count for i in range(count + 1)]
    return list(pairwise(edges))
