"""Which columns a row holds, which of their products are needed, and what that takes in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations_with_replacement

from darkmatter.errors import InputError

Key = tuple[str, str]
"""A block of columns: its kind ("x", "error", "sae", "raw", …) and whose it is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Columns of a row, in blocks, and the regressions that are to be read from their products.

    Attributes:
        widths: Columns of every block, in the order in which they stand.
        targets: Blocks that are explained; all of one width.
        sets: Blocks that explain, by any name; none for the mean alone.
    """

    widths: Mapping[Key, int]
    targets: tuple[Key, ...]
    sets: Mapping[str, tuple[Key, ...]]

    @property
    def columns(self) -> dict[Key, slice]:
        """Where each block stands."""
        ends = list(accumulate(self.widths.values()))
        return {key: slice(end - self.widths[key], end) for key, end in zip(self.widths, ends, strict=True)}

    @property
    def width(self) -> int:
        """Columns of a row."""
        return sum(self.widths.values())

    @property
    def pairs(self) -> tuple[tuple[Key, Key], ...]:
        """Blocks whose products are kept: those that stand in one set, and each of them with every target."""
        order = {key: i for i, key in enumerate(self.widths)}
        chosen = {
            pair
            for blocks in self.sets.values()
            for pair in combinations_with_replacement(sorted(blocks, key=order.__getitem__), 2)
        }
        used = {key for pair in chosen for key in pair}
        chosen |= {(key, target) for key in used for target in self.targets}
        return tuple(sorted(chosen, key=lambda pair: (order[pair[0]], order[pair[1]])))

    def width_of(self, blocks: Sequence[Key]) -> int:
        """Columns of some blocks together."""
        return sum(self.widths[key] for key in blocks)

    def memory(self, folds: int) -> int:
        """Bytes of sums and solve: K + 9 sets of products (5 parts, 4 unions), 4 squares of the widest set."""
        sums = sum(self.widths[a] * self.widths[b] for a, b in self.pairs) + self.width
        widest = max(self.width_of(blocks) for blocks in self.sets.values())
        return 8 * ((folds + 9) * sums + 4 * widest**2)


def check_memory(plan: Plan, folds: int) -> None:
    """Refuse sums that cannot fit into this machine's memory.

    Args:
        plan: The columns.
        folds: Number K of folds.

    Raises:
        InputError: They exceed the physical memory.
    """
    if not hasattr(os, "sysconf"):
        return
    needed, there = plan.memory(folds), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise InputError(
            f"the products of {plan.width:,} columns in {folds} folds need {needed / 1e9:.0f} GB and this machine has "
            f"{there / 1e9:.0f} GB: take fewer folds, fewer earlier sites, or fewer controls"
        )
