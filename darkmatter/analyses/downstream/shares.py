"""From the sums of one SAE to its losses and shares, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from darkmatter.analyses.downstream.result import PartLosses, SaeLosses, VariantLosses
from darkmatter.analyses.downstream.variants import OF_SAE
from darkmatter.analyses.fold_table import FoldTable
from darkmatter.inference import UNDEFINED, Estimate, interval, standard_error

LEAST = 1e-6
"""A part with a smaller share of the squared error is rounding: nothing is divided by it."""

_WHOLE = {
    "linear-left": ("sae", "nonlinear-left"),
    "random-linear": ("random", "random-nonlinear"),
    "linear squared": ("error squared", "nonlinear squared"),
}
"""Numbers of the linear part, with those of the whole error and of the nonlinear part."""


class Shares:
    """The numbers of one table; its columns are "clean", the increase of every variant, and squared errors.

    The linear map is estimated too. Let q(δ) = ½ δ'Hδ. The mean of q(r) has no first-order dependence on the map, as r
    is uncorrelated with x (the envelope theorem). That of q(linear) has: the influence of a token through the map is
    c = linear'H r = q(e) − q(linear) − q(r), a difference of columns. A token with a loss is the share ρ = (tokens with
    losses) / (tokens of the maps) of what the map was fitted on, so ρ c joins its own influence; the map's other tokens
    are independent and add the variance ρ (1 − ρ) Var(mean of c). For a loss that is not quadratic the influence
    through the map is that of a gradient's linear prediction from x, which no loss shows, and c is not it. So both
    intervals are formed, with the map held fixed and with c, and the wider one is given.
    """

    def __init__(self, table: FoldTable, *, n_map_tokens: int) -> None:
        """Start from the sums.

        Args:
            table: The sums.
            n_map_tokens: Tokens of the moments that the maps were fitted from.
        """
        self._table = table
        self._overlap = min(1.0, table.n_tokens / n_map_tokens)

    def has(self, *names: str) -> bool:
        """Whether these columns are there."""
        return all(name in self._table.names for name in names)

    def positive(self, name: str) -> bool:
        """Whether the increase of a variant is above 0 beyond doubt, so that something can be divided by it."""
        return self.has(name) and self.derived(_same, name).low > 0

    def derived(self, function: Callable[..., Tensor], *names: str, fitted: bool = True) -> Estimate:
        """A smooth function of means, with its interval by the delta method: influences are ∇f·(m_k − m).

        Args:
            function: Of scalars.
            names: The columns whose means m it takes.
            fitted: Whether to allow for the linear map; without, it is held fixed.

        Returns:
            f(m).
        """
        with torch.enable_grad():
            means = torch.stack([self._sums(name).sum() for name in names]) / self._table.used.sum()
            value = function(*means.requires_grad_())
            (slope,) = torch.autograd.grad(value, means)
        moves = torch.stack([self._moves(self._sums(name)) for name in names], dim=1) @ slope
        if fitted:
            through = torch.stack([self._through_map(name) for name in names], dim=1) @ slope
            other = self._widened(moves + self._overlap * through, through)
            moves = max(moves, other, key=lambda influence: standard_error(influence, self._table.used))
        return interval(float(value.detach()), moves, self._table.used)

    def variant(self, name: str) -> VariantLosses:
        """One variant."""
        return VariantLosses(
            loss=self.derived(torch.add, "clean", name),
            increase=self.derived(_same, name),
            recovered=self.derived(_rest, name, "mean") if self.positive("mean") else UNDEFINED,
        )

    def sae(self, *, fit_noise: float) -> SaeLosses:
        """The whole SAE, of whose nonlinear part this share was noise."""
        interaction = UNDEFINED
        if self.has("linear-left", "nonlinear-left"):
            # to first order the map does nothing here: what is left is of second order, and this is wider
            interaction = self.derived(
                lambda first, second, both: first + second - both, "linear-left", "nonlinear-left", "sae", fitted=False
            )
        return SaeLosses(
            variants={name: self.variant(name) for name in OF_SAE if self.has(name)},
            linear=self._part("linear", other="nonlinear"),
            nonlinear=self._part("nonlinear", other="linear"),
            interaction=interaction,
            versus_random=self._over("sae", "random"),
            versus_shuffled=self._over("sae", "shuffled"),
            fit_noise=fit_noise,
        )

    def _part(self, part: str, *, other: str) -> PartLosses:
        share = UNDEFINED
        if float(self._sums("error squared").sum()) > 0:
            share = self.derived(torch.div, f"{part} squared", "error squared")
        some = share.value > LEAST
        left, without = f"{part}-left", f"{other}-left"
        recovered = relative = UNDEFINED
        if self.has(without) and self.positive("sae"):
            recovered = self.derived(_rest, without, "sae")
            if some:
                relative = self.derived(_relative, without, "sae", f"{part} squared", "error squared")
        return PartLosses(
            error_share=share,
            recovered=recovered,
            alone=self._over(left, "sae"),
            relative=relative,
            versus_random=self._over(left, f"random-{part}") if some else UNDEFINED,
        )

    def _over(self, top: str, bottom: str) -> Estimate:
        known = self.has(top) and self.positive(bottom)
        return self.derived(torch.div, top, bottom) if known else UNDEFINED

    def _sums(self, name: str) -> Tensor:
        return self._table.sums(name)

    def _moves(self, sums: Tensor) -> Tensor:
        """By how much every fold's mean is off the overall one, (K,)."""
        return sums / self._table.used - sums.sum() / self._table.used.sum()

    def _through_map(self, name: str) -> Tensor:
        """The same of c, what tokens do to a number through the map, (K,)."""
        if name not in _WHOLE or not self.has(*_WHOLE[name]):
            return torch.zeros_like(self._table.used)
        whole, nonlinear = map(self._sums, _WHOLE[name])
        return self._moves(whole - self._sums(name) - nonlinear)

    def _widened(self, moves: Tensor, through: Tensor) -> Tensor:
        """Influences whose standard error holds that of the map's other tokens too."""
        own, other = (standard_error(part, self._table.used) for part in (moves, through))
        extra = self._overlap * (1 - self._overlap) * other**2
        return moves * math.sqrt(1 + extra / own**2) if own > 0 else moves


def _same(value: Tensor) -> Tensor:
    return value * 1.0


def _rest(value: Tensor, whole: Tensor) -> Tensor:
    return 1 - value / whole


def _relative(without: Tensor, both: Tensor, part: Tensor, error: Tensor) -> Tensor:
    """Share of the increase that goes with a part, over its share of the squared error."""
    return (1 - without / both) * error / part
