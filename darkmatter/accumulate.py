"""The mutable side of the moments: tokens in, a block at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor

from darkmatter.moments import Layout, Moments, farther
from darkmatter.products import Precision, add_product

_CACHED_ENTRIES = 2**17
"""Entries of float64 that a processor's second cache holds."""


class MomentAccumulator:
    """Collects rows of one fold into moments, a block at a time.

    Rows wait in a block of fixed length, so the sums are formed in the same order however the rows arrive: the result
    does not depend on the caller's batch size, bit for bit.
    """

    def __init__(self, layout: Layout, device: torch.device, precision: Precision = "float64") -> None:
        self._layout = layout
        self._precision = precision
        self._sums: Moments | None = None
        # one spare row carries the between-means term of the update through the same matrix product
        self._block = torch.empty(layout.block_rows + 1, layout.width, dtype=torch.float64, device=device)
        self._filled = 0

    @property
    def n(self) -> int:
        """Rows seen."""
        return self._filled + (self._sums.n if self._sums else 0)

    @property
    def _state(self) -> Moments:
        """Moments of the blocks that are complete; made when first needed, so that `finish` needs no second set."""
        if self._sums is None:
            self._sums = Moments.zero(self._layout, self._block.device)
        return self._sums

    def add(self, x: Tensor, recons: Mapping[str, Tensor], index: Tensor | None = None) -> None:
        """Take tokens, already checked: activations (n, d) and reconstructions by name, (n, d) each.

        Args:
            x: Activations.
            recons: Reconstructions.
            index: Numbers of the rows to take; None for all.
        """
        index = torch.arange(len(x), device=x.device) if index is None else index
        start = 0
        while start < len(index):
            take = min(len(index) - start, self._layout.block_rows - self._filled)
            rows = self._block[self._filled : self._filled + take]
            self._layout.fill(rows, x, recons, index[start : start + take])
            self._filled += take
            start += take
            if self._filled == self._layout.block_rows:
                self._sums = _absorb(self._state, self._block, self._filled, self._precision)
                self._filled = 0

    def freeze(self) -> Moments:
        """Copy out the moments of all rows so far; the accumulator may go on."""
        state = self._state
        copy = Moments(
            layout=state.layout,
            n=state.n,
            mean=state.mean.clone(),
            cross=state.cross.clone(),
            error_gram=state.error_gram.clone(),
            target_ss=state.target_ss.clone(),
            far_x=state.far_x.clone(),
        )
        if not self._filled:
            return copy
        return _absorb(copy, self._block[: self._filled + 1].clone(), self._filled, self._precision)

    def finish(self) -> Moments:
        """Hand over the moments without a copy; the accumulator starts again from nothing."""
        state = self._state
        if self._filled:
            state = _absorb(state, self._block, self._filled, self._precision)
        self._sums, self._filled = None, 0
        return state

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on elsewhere: the moments and the rows that wait in the block."""
        state = self._state
        return {
            "n": torch.tensor(state.n),
            "mean": state.mean,
            "cross": state.cross,
            "error_gram": state.error_gram,
            "target_ss": state.target_ss,
            "far_x": state.far_x,
            "waiting": self._block[: self._filled],
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over a `state`; shapes are checked by the store that read it."""
        self._sums = Moments(
            layout=self._layout,
            n=int(state["n"]),
            mean=self._own(state["mean"]),
            cross=self._own(state["cross"]),
            error_gram=self._own(state["error_gram"]),
            target_ss=self._own(state["target_ss"]),
            far_x=self._own(state["far_x"]),
        )
        self._filled = len(state["waiting"])
        self._block[: self._filled] = state["waiting"]

    def _own(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._block.device).clone()


def _absorb(state: Moments, block: Tensor, filled: int, precision: Precision) -> Moments:
    """Merge `filled` rows into the state; overwrites the block and the state's cross-products.

    The merge term (n_A n_B / n) δδ' is one more row, sqrt(n_A n_B / n) δ, of the centred block: it costs no pass of its
    own over the d × width sums.
    """
    layout, n = state.layout, state.n + filled
    rows = block[:filled]
    block_mean = _centre(rows)
    delta = block_mean - state.mean
    mean = state.mean + delta * (filled / n)
    far = rows[:, layout.x] + (block_mean - mean)[layout.x]
    candidate = mean[layout.x] + far[far.square().sum(dim=1).argmax()]
    block[filled] = delta * (state.n * filled / n) ** 0.5
    centred = block[: filled + 1]
    errors = rearrange(centred[:, layout.errors], "n (s d) -> n s d", s=layout.n_saes)
    return Moments(
        layout=layout,
        n=n,
        mean=mean,
        cross=add_product(state.cross, centred[:, layout.x], centred, precision),
        # row by row: the errors of one SAE are not next to each other, and to copy them would cost more
        error_gram=state.error_gram + torch.bmm(errors, errors.mT).sum(dim=0),
        target_ss=state.target_ss + centred[:, layout.targets].square().sum(dim=0),
        far_x=candidate if state.n == 0 else farther(state.far_x, candidate, mean[layout.x]),
    )


def _centre(rows: Tensor) -> Tensor:
    """Take the column means off the rows, in place, and return them, (width,)."""
    n, width = rows.shape
    mean = torch.empty_like(rows[0])
    ones = torch.ones_like(rows[:, 0])
    # every column is read four times: a few at a time stay in the cache of a processor; a GPU wants them all at once
    step = max(1, _CACHED_ENTRIES // n) if rows.device.type == "cpu" else width
    for start in range(0, width, step):
        part = rows[:, start : start + step]
        first = part.mean(dim=0)  # pairwise: the deviations of a constant column must be a few roundings at most
        part -= first
        mean[start : start + step] = first + ones @ part / n  # the first mean is rounded; one correction makes it exact
    return mean
