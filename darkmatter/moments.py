"""Additive second moments of one set of tokens: a commutative monoid under `Moments.merge`.

Every token contributes one row z = [x | e_1 … e_S | |x|², |e_1|² … |e_S|², |Sae_1|² … |Sae_S|²]. Kept are the count,
the mean of z and the centred cross-products x'z, and of the errors and the scalars only what a trace needs. The update
is Chan, Golub and LeVeque's (1983): never a difference of large numbers, whatever the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from einops import rearrange
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

    def fill(self, rows: Tensor, x: Tensor, recons: Mapping[str, Tensor], index: Tensor | None = None) -> None:
        """Write activations and reconstructions as rows z.

        Args:
            rows: Where to write, (n, width), float64.
            x: Checked activations, (n, d); or (m, d), if there is an index.
            recons: Checked reconstructions by name, of the same shape.
            index: Which n rows to take, (n,), int64; None for all. They are picked for one SAE at a time.
        """

        def picked(values: Tensor) -> Tensor:
            return values if index is None else values.index_select(0, index.to(values.device))

        d, s = self.d_model, self.n_saes
        x64 = rows[:, self.x].copy_(picked(x))
        targets = rows[:, self.targets]
        targets[:, 0] = _squared_norms(x64)
        for i, name in enumerate(self.names):
            error = rows[:, d * (1 + i) : d * (2 + i)].copy_(picked(recons[name]))
            targets[:, 1 + s + i] = _squared_norms(error)
            torch.sub(x64, error, out=error)
            targets[:, 1 + i] = _squared_norms(error)


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
        return Moments.union((self, other))

    @staticmethod
    def union(parts: Sequence[Moments]) -> Moments:
        """Moments of the union of disjoint sets: Σ_j A_j + Σ_j n_j δ_j δ_j', δ_j the part's mean less the union's.

        Args:
            parts: At least one; all of one layout.

        Returns:
            The moments; a part itself where all others are empty.
        """
        filled = [part for part in parts if part.n]
        if len(filled) < 2:
            return filled[0] if filled else parts[0]
        first, layout, n = filled[0], filled[0].layout, sum(part.n for part in filled)
        counts = first.mean.new_tensor([part.n for part in filled])
        means = torch.stack([part.mean for part in filled])
        # differences first: large means must cancel before they are averaged
        mean = first.mean + counts / n @ (means - first.mean)
        deviations = means - mean
        weighted = deviations * counts[:, None]
        cross = first.cross + filled[1].cross
        for part in filled[2:]:
            cross += part.cross
        errors = rearrange(deviations[:, layout.errors], "k (s d) -> s (k d)", s=layout.n_saes)
        weighted_errors = rearrange(weighted[:, layout.errors], "k (s d) -> s (k d)", s=layout.n_saes)
        return Moments(
            layout=layout,
            n=n,
            mean=mean,
            cross=cross.addmm_(weighted[:, layout.x].T, deviations),
            error_gram=torch.stack([part.error_gram for part in filled]).sum(dim=0) + weighted_errors @ errors.T,
            target_ss=torch.stack([part.target_ss for part in filled]).sum(dim=0)
            + (weighted * deviations)[:, layout.targets].sum(dim=0),
            far_x=reduce(lambda a, b: farther(a, b, mean[layout.x]), (part.far_x for part in filled)),
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
            ee=self.error_gram + error_outer(layout, delta, self.n),
            targets=self.target_ss + self.n * delta[layout.targets].square(),
        )


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


def _squared_norms(rows: Tensor) -> Tensor:
    """|z|² of every row, without an array of squares."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms.square_()


def error_outer(layout: Layout, delta: Tensor, weight: float) -> Tensor:
    """Weighted inner products of the error blocks of a mean difference, weight ⟨δ_a, δ_b⟩, (S, S)."""
    errors = rearrange(delta[layout.errors], "(s d) -> s d", s=layout.n_saes)
    return errors @ errors.T * weight


def farther(first: Tensor, second: Tensor, mean: Tensor) -> Tensor:
    """Whichever of two activations lies farther from a mean, (d,)."""
    return second if (second - mean).square().sum() > (first - mean).square().sum() else first
