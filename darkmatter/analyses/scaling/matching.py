"""One L0 for all widths: replicated runs averaged, then log FVU interpolated over log L0 at every width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from darkmatter.analyses.scaling.curves import Floats
from darkmatter.errors import InputError

SAME_L0 = 0.03
"""Relative difference of L0 below which SAEs of one width are taken for runs of the same settings."""
_NEAREST = 3
_SPREAD = 1.1


@dataclass(frozen=True, slots=True)
class Cells:
    """SAEs of the same width and L0, as one point each, ordered by width and L0.

    Attributes:
        width: Widths, (C,).
        l0: Geometric mean of L0, (C,).
        average: Means over runs, (C, S): `average @ y`.
        runs: Runs of every cell, (C,).
    """

    width: Floats
    l0: Floats
    average: Floats
    runs: Floats

    @classmethod
    def of(cls, width: Floats, l0: Floats) -> Cells:
        """Put together runs of the same width whose L0 differ by less than `SAME_L0`, neighbour by neighbour."""
        order = np.lexsort((l0, width))
        members: list[list[int]] = []
        for i in order:
            last = members[-1][-1] if members else None
            if last is not None and width[last] == width[i] and np.log(l0[i] / l0[last]) <= SAME_L0:
                members[-1].append(int(i))
            else:
                members.append([int(i)])
        average = np.zeros((len(members), len(width)))
        for row, mine in zip(average, members, strict=True):
            row[mine] = 1 / len(mine)
        return cls(
            width=np.array([width[mine[0]] for mine in members]),
            l0=np.exp(average @ np.log(l0)),
            average=average,
            runs=np.array([float(len(mine)) for mine in members]),
        )

    @property
    def widths(self) -> Floats:
        """Different widths, rising."""
        found: Floats = np.unique(self.width)
        return found

    def reached(self, width: float) -> tuple[float, float]:
        """Least and greatest L0 at a width."""
        mine = self.l0[self.width == width]
        return float(mine.min()), float(mine.max())

    def reaches(self, width: float, l0: float) -> bool:
        """Whether an L0 lies between those of a width, or within `SAME_L0` of them."""
        low, high = self.reached(width)
        return low * math.exp(-SAME_L0) <= l0 <= high * math.exp(SAME_L0)

    def interpolation(self, l0: float) -> tuple[Floats, Floats]:
        """Weights that take log FVU of all SAEs to one L0.

        At every width the polynomial through the (up to) three nearest cells, over log L0: linear through two, the cell
        itself where there is one. Widths that do not reach the L0 are left out, never extrapolated to.

        Args:
            l0: The L0.

        Returns:
            (widths, weights): (W,) and (W, S).
        """
        x = np.log(self.l0)
        rows, widths = [], []
        for width in self.widths:
            if not self.reaches(width, l0):
                continue
            mine = np.flatnonzero(self.width == width)
            near = mine[np.argsort(np.abs(x[mine] - np.log(l0)), kind="stable")[:_NEAREST]]
            row = np.zeros(len(x))
            for j in near:
                others = near[near != j]
                row[j] = np.prod((np.log(l0) - x[others]) / (x[j] - x[others]))
            rows.append(row)
            widths.append(width)
        return np.array(widths), np.array(rows).reshape(-1, len(x)) @ self.average

    def levels(self, asked: Sequence[float] | None) -> tuple[float, ...]:
        """The L0s to compare widths at.

        Args:
            asked: L0s to take; None chooses them: those that every width has, where the grid is aligned; else the ends
                and the middle of what every width reaches; else the L0 that most widths reach.

        Returns:
            L0s, rising.

        Raises:
            InputError: An asked L0 that fewer than two widths reach, or that is not positive.
        """
        if asked is not None:
            for l0 in asked:
                count = sum(self.reaches(width, l0) for width in self.widths) if l0 > 0 else 0
                if count < 2:
                    have = ", ".join(f"{w:g}: {'–'.join(f'{v:.3g}' for v in self.reached(w))}" for w in self.widths)
                    raise InputError(f"L0 {l0:g} is reached by {count} width(s), expected at least 2 (have {have})")
            return tuple(sorted(set(asked)))
        ranges = [self.reached(width) for width in self.widths]
        low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
        if low > high * math.exp(2 * SAME_L0):
            return (max(map(float, self.l0), key=lambda l0: sum(self.reaches(w, l0) for w in self.widths)),)
        aligned = self._aligned()
        if aligned:
            return aligned
        middle = math.sqrt(low * high)
        return (middle,) if high < _SPREAD * low else (low, middle, high)

    def _aligned(self) -> tuple[float, ...]:
        """L0s at which every width has an SAE, if all SAEs are of such."""
        first = self.l0[self.width == self.widths[0]]
        found = []
        for l0 in first:
            near = self.l0[np.abs(np.log(self.l0 / l0)) <= SAME_L0]
            if len(near) != len(self.widths):
                return ()
            found.append(float(np.exp(np.log(near).mean())))
        return tuple(found) if len(found) * len(self.widths) == len(self.l0) else ()
