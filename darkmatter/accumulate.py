"""The mutable side of the moments: tokens in, a block at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import einsum, rearrange
from torch import Tensor

from darkmatter.moments import Layout, Moments, farther


class MomentAccumulator:
    """Collects rows of one fold into moments, a block at a time.

    Rows wait in a block of fixed length, so the sums are formed in the same order however the rows arrive: the result
    does not depend on the caller's batch size, bit for bit.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self._layout = layout
        self._state = Moments.zero(layout, device)
        # one spare row carries the between-means term of the update through the same matrix product
        self._block = torch.empty(layout.block_rows + 1, layout.width, dtype=torch.float64, device=device)
        self._filled = 0

    @property
    def n(self) -> int:
        """Rows seen."""
        return self._state.n + self._filled

    def add(self, x: Tensor, recons: Mapping[str, Tensor]) -> None:
        """Take tokens, already checked: activations (n, d) and reconstructions by name, (n, d) each."""
        start = 0
        while start < len(x):
            take = min(len(x) - start, self._layout.block_rows - self._filled)
            part = slice(start, start + take)
            rows = self._block[self._filled : self._filled + take]
            self._layout.fill(rows, x[part], {name: recon[part] for name, recon in recons.items()})
            self._filled += take
            start += take
            if self._filled == self._layout.block_rows:
                self._state = _absorb(self._state, self._block, self._filled)
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
        return _absorb(copy, self._block[: self._filled + 1].clone(), self._filled) if self._filled else copy

    def finish(self) -> Moments:
        """Hand over the moments without a copy; the accumulator starts again from nothing."""
        state = _absorb(self._state, self._block, self._filled) if self._filled else self._state
        self._state, self._filled = Moments.zero(self._layout, state.mean.device), 0
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
        self._state = Moments(
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


def _absorb(state: Moments, block: Tensor, filled: int) -> Moments:
    """Merge `filled` rows into the state; overwrites the block and the state's cross-products.

    The merge term (n_A n_B / n) δδ' is one more row, sqrt(n_A n_B / n) δ, of the centred block: it costs no pass of its
    own over the d × width sums.
    """
    layout, n = state.layout, state.n + filled
    rows = block[:filled]
    block_mean = rows.mean(dim=0)
    rows -= block_mean
    block_mean += rows.mean(dim=0)  # the first mean is rounded; one correction makes it exact to the last digit
    delta = block_mean - state.mean
    mean = state.mean + delta * (filled / n)
    far = rows[:, layout.x] + (block_mean - mean)[layout.x]
    candidate = mean[layout.x] + far[far.square().sum(dim=1).argmax()]
    block[filled] = delta * (state.n * filled / n) ** 0.5
    centred = block[: filled + 1]
    errors = rearrange(centred[:, layout.errors], "n (s d) -> s n d", s=layout.n_saes)
    return Moments(
        layout=layout,
        n=n,
        mean=mean,
        cross=state.cross.addmm_(centred[:, layout.x].T, centred),
        error_gram=state.error_gram + einsum(errors, errors, "a n d, b n d -> a b"),
        target_ss=state.target_ss + centred[:, layout.targets].square().sum(dim=0),
        far_x=candidate if state.n == 0 else farther(state.far_x, candidate, mean[layout.x]),
    )
