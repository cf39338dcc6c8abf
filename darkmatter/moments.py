"""Additive second moments of one set of tokens: a commutative monoid under `Moments.merge`.

Every token contributes one row z = [x | e_1 … e_S | |x|², |e_1|² … |e_S|², |Sae_1|² … |Sae_S|²]. Kept are the count,
the mean of z and the centred cross-products x'z, and of the errors and the scalars only what a trace needs. The update
is Chan, Golub and LeVeque's (1983): never a difference of large numbers, whatever the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from torch import Tensor

_BLOCK_ENTRIES = 2**19
_BLOCK_ROWS = (128, 1024)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns of a row hold what.

    Attributes:
        d_model: Width d of x.
        names: SAE names, S of them.
    """

    d_model: int
    names: tuple[str, ...]

    @property
    def n_saes(self) -> int:
        """Number S of SAEs."""
        return len(self.names)

    @property
    def n_targets(self) -> int:
        """Number of scalar targets: |x|², and |e|² and |Sae(x)|² for every SAE."""
        return 1 + 2 * self.n_saes

    @property
    def width(self) -> int:
        """Columns of a row, d (1 + S) + 1 + 2 S."""
        return self.d_model * (1 + self.n_saes) + self.n_targets

    @property
    def x(self) -> slice:
        """Columns of the activation."""
        return slice(0, self.d_model)

    @property
    def errors(self) -> slice:
        """Columns of all errors, S blocks of d."""
        return slice(self.d_model, self.d_model * (1 + self.n_saes))

    @property
    def targets(self) -> slice:
        """Columns of the scalar targets."""
        return slice(self.d_model * (1 + self.n_saes), self.width)

    @property
    def block_rows(self) -> int:
        """Rows that are multiplied at once: enough for full matrix-product speed, few enough to stay in cache."""
        low, high = _BLOCK_ROWS
        return min(high, max(low, _BLOCK_ENTRIES // self.width))

    def fill(self, rows: Tensor, x: Tensor, recons: Mapping[str, Tensor]) -> None:
        """Write activations and reconstructions as rows z.

        Args:
            rows: Where to write, (n, width), float64.
            x: Checked activations, (n, d).
            recons: Checked reconstructions by name, (n, d).
        """
        d, s = self.d_model, self.n_saes
        x64 = rows[:, self.x].copy_(x)
        targets = rows[:, self.targets]
        targets[:, 0] = x64.square().sum(dim=1)
        for i, name in enumerate(self.names):
            error = rows[:, d * (1 + i) : d * (2 + i)].copy_(recons[name])
            targets[:, 1 + s + i] = error.square().sum(dim=1)
            torch.sub(x64, error, out=error)
            targets[:, 1 + i] = error.square().sum(dim=1)


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of one set of tokens; immutable by convention, never aliasing a live accumulator.

    Attributes:
        layout: The columns.
        n: Tokens.
        mean: Mean row, (width,).
        cross: Σ (x − x̄)(z − z̄)', (d, width); its first d columns are the scatter of x.
        error_gram: Σ ⟨e_a − ē_a, e_b − ē_b⟩, (S, S): the pairwise scalars that T8 needs.
        target_ss: Σ (t − t̄)² of every scalar target, (1 + 2 S,).
        far_x: The activation farthest from the running mean, (d,); zero when there are no tokens.
    """

    layout: Layout
    n: int
    mean: Tensor
    cross: Tensor
    error_gram: Tensor
    target_ss: Tensor
    far_x: Tensor

    @classmethod
    def zero(cls, layout: Layout, device: torch.device) -> Moments:
        """The identity: moments of no tokens."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        d, s = layout.d_model, layout.n_saes
        return cls(
            layout=layout,
            n=0,
            mean=zeros(layout.width),
            cross=zeros(d, layout.width),
            error_gram=zeros(s, s),
            target_ss=zeros(layout.n_targets),
            far_x=zeros(d),
        )

    @property
    def xx(self) -> Tensor:
        """Scatter of x, (d, d)."""
        return self.cross[:, self.layout.x]

    @property
    def xe(self) -> Tensor:
        """Cross-products of x with all errors, (d, S d)."""
        return self.cross[:, self.layout.errors]

    @property
    def xt(self) -> Tensor:
        """Cross-products of x with the scalar targets, (d, 1 + 2 S)."""
        return self.cross[:, self.layout.targets]

    @property
    def mean_x(self) -> Tensor:
        """Mean activation, (d,)."""
        return self.mean[self.layout.x]

    @property
    def mean_e(self) -> Tensor:
        """Mean errors, (S, d)."""
        return rearrange(self.mean[self.layout.errors], "(s d) -> s d", s=self.layout.n_saes)

    @property
    def mean_t(self) -> Tensor:
        """Means of the scalar targets, (1 + 2 S,)."""
        return self.mean[self.layout.targets]

    def merge(self, other: Moments) -> Moments:
        """Moments of the union of two disjoint sets: A ⊕ B = A + B + (n_A n_B / n) δδ', δ the mean difference."""
        if other.n == 0 or self.n == 0:
            return self if other.n == 0 else other
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.n / n)
        return Moments(
            layout=self.layout,
            n=n,
            mean=mean,
            cross=self._shifted(self.cross + other.cross, delta, self.n * other.n / n),
            error_gram=self.error_gram + other.error_gram + _error_outer(self.layout, delta, self.n * other.n / n),
            target_ss=self.target_ss + other.target_ss + delta[self.layout.targets] ** 2 * (self.n * other.n / n),
            far_x=_farther(self.far_x, other.far_x, mean[self.layout.x]),
        )

    def traces_about(self, mean: Tensor) -> Traces:
        """Sums of squares and products about another mean, without touching the (d, width) sums.

        Args:
            mean: The mean to take deviations from, (width,).
        """
        layout, d = self.layout, self.layout.d_model
        delta = self.mean - mean
        errors = rearrange(delta[layout.errors], "(s d) -> s d", s=layout.n_saes)
        diagonals = [self.cross[:, d * (1 + i) : d * (2 + i)].diagonal().sum() for i in range(layout.n_saes)]
        return Traces(
            x=self.xx.diagonal().sum() + self.n * delta[layout.x].square().sum(),
            xe=torch.stack(diagonals) + self.n * (errors @ delta[layout.x]),
            ee=self.error_gram + _error_outer(layout, delta, self.n),
            targets=self.target_ss + self.n * delta[layout.targets].square(),
        )

    def _shifted(self, cross: Tensor, delta: Tensor, weight: float) -> Tensor:
        return cross.addr_(delta[self.layout.x], delta, alpha=weight)


@dataclass(frozen=True, slots=True)
class Traces:
    """Traces of second moments of some tokens about a given mean.

    Attributes:
        x: Σ |x − c|², scalar.
        xe: Σ ⟨x − c, e_a − c_a⟩, (S,).
        ee: Σ ⟨e_a − c_a, e_b − c_b⟩, (S, S).
        targets: Σ (t − c_t)², (1 + 2 S,).
    """

    x: Tensor
    xe: Tensor
    ee: Tensor
    targets: Tensor


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
        far_x=candidate if state.n == 0 else _farther(state.far_x, candidate, mean[layout.x]),
    )


def _error_outer(layout: Layout, delta: Tensor, weight: float) -> Tensor:
    errors = rearrange(delta[layout.errors], "(s d) -> s d", s=layout.n_saes)
    return errors @ errors.T * weight


def _farther(first: Tensor, second: Tensor, mean: Tensor) -> Tensor:
    return second if (second - mean).square().sum() > (first - mean).square().sum() else first
