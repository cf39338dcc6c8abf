"""Cases of the monoid theorem: rows cut into parts, and the ways to put the parts together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from hypothesis import strategies as st

from darkmatter.accumulate import MomentAccumulator
from darkmatter.claims.strategies import Floats, seeds, small_matrices
from darkmatter.moments import Layout, Moments
from darkmatter.theory.rounding import Merges

Merge = Callable[[Moments, Moments], Moments]
TREES = ("from the left", "from the right", "by halving", "all at once")


@dataclass(frozen=True, slots=True)
class Split:
    """Activations and two reconstructions, cut into parts that are merged in some order along some tree.

    Attributes:
        sizes: Rows of every part, zeros among them.
        d: Width of x.
        offset: log10 of a mean that is added to every coordinate, against a standard deviation of 1.
        tree: One of `TREES`.
        seed: Seed of the rows and of the order of the parts.
    """

    sizes: tuple[int, ...]
    d: int
    offset: float
    tree: str
    seed: int

    @property
    def layout(self) -> Layout:
        """Columns of a row."""
        return Layout(self.d, ("a", "b"))

    def arrays(self) -> tuple[Floats, Floats]:
        """x, (n, d), and the two reconstructions, (2, n, d)."""
        rng = np.random.default_rng(self.seed)
        n = sum(self.sizes)
        x = 10.0**self.offset + rng.standard_normal((n, self.d))
        gains = np.array([0.9, 0.8]).reshape(2, 1, 1)
        return x, gains * x + 0.1 * rng.standard_normal((2, n, self.d))

    def rows(self) -> Floats:
        """The rows z as the product forms them: they are the data, whatever rounded on the way to them."""
        x, recons = (torch.from_numpy(a) for a in self.arrays())
        rows = torch.empty(len(x), self.layout.width, dtype=torch.float64)
        self.layout.fill(rows, x, dict(zip(self.layout.names, recons, strict=True)))
        return np.asarray(rows.numpy())

    def pieces(self) -> list[tuple[Floats, Floats]]:
        """Activations and reconstructions of every part."""
        x, recons = self.arrays()
        cuts = np.cumsum(self.sizes)[:-1]
        return list(zip(np.split(x, cuts), np.split(recons, cuts, axis=1), strict=True))

    def parts(self) -> list[Moments]:
        """Moments of the parts, in a random order."""
        pieces = self.pieces()
        order = np.random.default_rng(self.seed + 1).permutation(len(pieces))
        return [moments_of([pieces[i]], self.layout) for i in order]

    @property
    def merges(self) -> Merges:
        """What the bounds need to know of the tree."""
        p = max(2, len(self.sizes))
        depth = {"by halving": p.bit_length(), "all at once": 1}.get(self.tree, p - 1)
        return Merges(1 + depth, p if self.tree == "all at once" else 2, max(1, *self.sizes))

    def __str__(self) -> str:
        return f"parts of {self.sizes} rows, d = {self.d}, mean 1e{self.offset:.3g}, {self.tree}, seed {self.seed}"


def splits(*, most_offset: float = 7.0) -> st.SearchStrategy[Split]:
    """Splits of a few rows into one to four parts, at least one row in all."""
    sizes = st.lists(st.integers(0, 5), min_size=1, max_size=4).map(lambda s: s if any(s) else [1, *s[1:]])
    return st.builds(
        Split,
        sizes=sizes.map(tuple),
        d=st.integers(1, 2),
        offset=st.floats(-2.0, most_offset),
        tree=st.sampled_from(TREES),
        seed=seeds(),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two sets of whole numbers, one of them shifted or scaled by a power of ten."""

    rest: Floats
    fold: Floats
    power: int

    def __str__(self) -> str:
        rest, fold = (" ".join(f"{v:.0f}" for v in a[:, 0]) for a in (self.rest, self.fold))
        return f"rest = [{rest}], fold = [{fold}] times 1e{self.power}"


def _pair(numbers: Floats, split: int, power: int) -> Pair:
    # 0 and 1 first: a set that does not vary leaves nothing to compare with
    return Pair(np.vstack([[[0.0], [1.0]], numbers[:split]]), numbers[split:], power)


def pairs() -> st.SearchStrategy[Pair]:
    """Two or three numbers in the one set, which vary, and two or three in the other."""
    return st.builds(_pair, small_matrices(3, 1), st.integers(0, 1), st.integers(0, 9))


@dataclass(frozen=True, slots=True)
class Outlier:
    """Rows in a ball of radius 1 and one row far outside, in the part that is merged at place `place`."""

    sizes: tuple[int, ...]
    place: int
    ratio: float
    seed: int

    def parts(self, *, alone: bool) -> list[Floats]:
        """The parts, the outlier last in its own, with at least two others or alone."""
        rng = np.random.default_rng(self.seed)
        shift = 10.0 * rng.standard_normal(2)
        ball = [rng.standard_normal((size, 2)) for size in self.sizes]
        ball = [b / np.maximum(1.0, np.linalg.norm(b, axis=1, keepdims=True)) + shift for b in ball]
        place = self.place % len(ball)
        angle = rng.uniform(0.0, 2.0 * np.pi)
        outlier = shift + self.ratio * np.array([[np.cos(angle), np.sin(angle)]])
        if alone:
            return [ball[0][:1], outlier, *ball]
        ball[place] = np.vstack([ball[place], outlier])
        return ball

    def __str__(self) -> str:
        return f"parts of {self.sizes} rows and one {self.ratio:.3g} radii out, seed {self.seed}"


def outliers() -> st.SearchStrategy[Outlier]:
    """Clear outliers: more than seven radii from the centre of all others."""
    return st.builds(
        Outlier,
        sizes=st.lists(st.integers(2, 6), min_size=2, max_size=4).map(tuple),
        place=st.integers(0, 3),
        ratio=st.floats(7.001, 50.0),
        seed=seeds(),
    )


def moments_of(pieces: Sequence[tuple[Floats, Floats]], layout: Layout) -> Moments:
    """Moments by one accumulator of the product, fed with x and reconstructions a piece at a time."""
    accumulator = MomentAccumulator(layout, torch.device("cpu"))
    for x, recons in pieces:
        given = {name: torch.from_numpy(recon) for name, recon in zip(layout.names, recons, strict=True)}
        accumulator.add(torch.from_numpy(x), given)
    return accumulator.finish()


def of_activations(x: Floats) -> Moments:
    """Moments of activations alone, with a reconstruction of zeros."""
    return moments_of([(x, np.zeros((1, *x.shape)))], Layout(x.shape[1], ("none",)))


def merged(parts: Sequence[Moments], tree: str, merge: Merge = Moments.merge) -> Moments:
    """Put parts together along a tree, two at a time but for "all at once"."""
    if tree == "all at once":
        return Moments.union(parts) if merge is Moments.merge else reduce(merge, parts)
    if tree == "from the left":
        return reduce(merge, parts)
    if tree == "from the right":
        return reduce(lambda later, part: merge(part, later), reversed(parts))
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return merge(merged(parts[:half], tree, merge), merged(parts[half:], tree, merge))
