"""The rows that a token may choose from: all, or a short list that is made anew after some steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from einops import rearrange
from torch import Tensor

from darkmatter.analyses.pursuit.dictionary import Dictionary, explained
from darkmatter.sae.kernels import top_k

_GROUP = 8
"""Columns of which a quick selection takes at most one."""

_FIRST = 4
"""Steps on the first list."""


def renewals(shortlist: int) -> Iterator[tuple[int, int]]:
    """When a list is made, and how many rows it gets.

    The same for every token, so a code after k steps does not depend on how many more are asked for.

    Args:
        shortlist: Rows of the first list; later ones have at least twice as many.

    Yields:
        Steps before it, and its rows.
    """
    yield 0, max(shortlist, _FIRST)
    step = _FIRST
    while True:
        length = step + 2
        yield step, 2 * max(shortlist, length)
        step += length


def widest(shortlist: int, steps: int) -> int:
    """Rows of the longest list within a number of steps."""
    return max((rows for _, rows in takewhile(lambda renewal: renewal[0] < steps, renewals(shortlist))), default=0)


@dataclass(slots=True, eq=False)
class Candidates:
    """What some tokens may choose from; a choice is a column 0 … C − 1.

    Attributes:
        dictionary: The rows.
        every: Inner products of all rows with the target, (n, s).
        floor: Correlations up to this are rounding, (n,).
        shortlist: Rows of the first list, see `renewals`; None where every token may choose from all rows, and a
            column is a latent.
        latents: Latent of every column, (m, C), of the first m tokens; None for all.
        correlations: Inner products of the columns with the target, (m, C); -inf for padding.
    """

    dictionary: Dictionary
    every: Tensor
    floor: Tensor
    shortlist: int | None
    latents: Tensor | None = field(init=False)
    correlations: Tensor = field(init=False)
    _inner: Tensor | None = field(init=False)
    _coarse: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        self.latents, self.correlations, self._inner, self._coarse = None, self.every, None, None

    @classmethod
    def of(cls, dictionary: Dictionary, target: Tensor, shortlist: int | None) -> Candidates:
        """Start with a target.

        Args:
            dictionary: The rows.
            target: What is to be coded, (n, d).
            shortlist: See the class.

        Returns:
            The candidates; with `shortlist` a list must be made before the first step.
        """
        norms = torch.linalg.vector_norm(target, dim=1)
        floor = norms * 30 * torch.finfo(target.dtype).eps
        return cls(dictionary, target @ dictionary.rows.T, floor, shortlist)

    def renew(self, size: int, chosen: Tensor, amplitudes: Tensor) -> tuple[Tensor, Tensor]:
        """List anew: the latents chosen so far in their order, then the rows most correlated with what they leave.

        Args:
            size: Rows beside the chosen.
            chosen: Latents chosen so far, (m, t).
            amplitudes: Theirs, (m, t).

        Returns:
            Inner products of the chosen with all columns (m, t, C), and of the columns with what is left (m, C).
        """
        m, t = chosen.shape
        every = self.every[:m]
        left = every
        if t:
            if self._coarse is None:
                self._coarse = self.every if self.dictionary.coarse is None else self.every.to(self.dictionary.coarse)
            left = explained(self.dictionary, chosen, amplitudes)
            torch.sub(self._coarse[:m], left, out=left)
            left.scatter_(1, chosen, -torch.inf)
        # rough scores are enough to find rows; all that is computed with them comes from `every` and `gram`
        best, more = leaders(left, min(size, left.shape[1]))
        # the padding of a list names a latent that may be chosen already
        listed = every.gather(1, more).masked_fill(best == -torch.inf, -torch.inf)
        self.latents = torch.cat([chosen, more], dim=1)
        self.correlations = torch.cat([every.gather(1, chosen), listed], dim=1)
        if self.dictionary.gram is None:
            self._inner = self.dictionary.inner(self.latents)
            rows = self._inner[:, :t]
        else:
            rows = self.dictionary.between(chosen, self.latents)
        return rows, torch.baddbmm(self.correlations[:, None], amplitudes[:, None], rows, alpha=-1)[:, 0]

    def row(self, column: Tensor) -> Tensor:
        """Inner products of one column of each of the first m tokens with all columns, (m,) → (m, C)."""
        m, rows, gram = len(column), self.dictionary.rows, self.dictionary.gram
        if self.latents is None:
            return rows[column] @ rows.T if gram is None else gram[column]
        if self._inner is not None:
            return self._inner[torch.arange(m, device=column.device), column]
        chosen = self.latents[:m].gather(1, column[:, None])
        return self.dictionary.between(chosen, self.latents[:m])[:, 0]

    def latent(self, column: Tensor) -> Tensor:
        """Latents of one column of each of the first m tokens, (m,) → (m,)."""
        return column if self.latents is None else self.latents[: len(column)].gather(1, column[:, None])[:, 0]


def leaders(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Large entries of every row: of many columns the largest of each of the groups of eight with the largest ones.

    That misses an entry behind a larger one of its group, a few in a hundred, and takes half the time of an exact
    selection; what is missed here leads its group on the next list.

    Args:
        scores: (n, s).
        count: How many.

    Returns:
        Entries (n, count) and columns (n, count).
    """
    n_groups, rest = divmod(scores.shape[1], _GROUP)
    if rest or n_groups < _GROUP * count:
        return top_k(scores, count)
    grouped = rearrange(scores, "n (size group) -> n size group", size=_GROUP)
    which = grouped.amax(dim=1).topk(count, dim=1, sorted=False).indices
    members = which[:, None] + torch.arange(0, scores.shape[1], n_groups, device=scores.device)[None, :, None]
    found = scores.gather(1, members.flatten(1)).view(members.shape).max(dim=1)
    return found.values, which + n_groups * found.indices
