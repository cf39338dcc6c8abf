"""Shares of several SAEs from one pass, and how they differ: on the same tokens and folds most noise cancels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.errors import DegenerateError
from darkmatter.fold_means import FoldMeans
from darkmatter.folds import FoldMoments
from darkmatter.guards import DEAD, token_warnings
from darkmatter.inference import UNDEFINED, Estimate, interval, symmetric_optimism
from darkmatter.solve import CrossFit, cross_fit


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A number with the influence of every fold on it: sums, differences and ratios follow by the delta method.

    Attributes:
        value: The number; NaN where it does not exist.
        influence: Of every fold, (K,).
        n: Tokens of every fold, (K,).
    """

    value: float
    influence: Tensor
    n: Tensor

    def __sub__(self, other: Term) -> Term:
        return Term(self.value - other.value, self.influence - other.influence, self.n)

    def __truediv__(self, other: Term) -> Term:
        if not abs(other.value) > 0:
            return Term(math.nan, torch.zeros_like(self.influence), self.n)
        value = self.value / other.value
        return Term(value, (self.influence - value * other.influence) / other.value, self.n)

    def complement(self) -> Term:
        """1 − this."""
        return Term(1 - self.value, -self.influence, self.n)

    def estimate(self) -> Estimate:
        """The number with its interval on the identity scale."""
        return interval(self.value, self.influence, self.n)


@dataclass(frozen=True, slots=True)
class SplitError:
    """The error of one SAE, shares of Var x, and R² of the error on x.

    Attributes:
        fvu: Var e / Var x.
        linear_share: fvu − fvu_nonlinear.
        fvu_nonlinear: Var r / Var x.
        r2_error: 1 − Var r / Var e; undefined where there is no error.
    """

    fvu: Estimate
    linear_share: Estimate
    fvu_nonlinear: Estimate
    r2_error: Estimate


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """What moments say about the errors of several SAEs and about differences between them.

    Attributes:
        means: Fold sums.
        fit: Leave-one-fold-out fits, shared by all SAEs.
        names: The SAEs.
        warnings: About the tokens.
    """

    means: FoldMeans
    fit: CrossFit
    names: tuple[str, ...]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, moments: FoldMoments) -> Shares:
        """Fit once for all SAEs.

        Args:
            moments: Moments of K folds.

        Returns:
            The shares.

        Raises:
            DegenerateError: x is constant.
        """
        total = moments.total()
        means = FoldMeans.of(moments, total)
        if not means.var_x > (8 * torch.finfo(torch.float64).eps) ** 2 * float(total.mean_x.square().sum()):
            raise DegenerateError(
                f"x is constant over {total.n} tokens (variance {means.var_x:.3g}), expected activations that vary: "
                "check the hook point and the file",
                {"var_x": means.var_x},
            )
        fit = cross_fit(moments, total)
        return cls(means, fit, moments.layout.names, token_warnings(moments, fit, total))

    def fvu(self, name: str) -> Term:
        """Var e / Var x."""
        i = self.names.index(name)
        sums = self.means.ee[:, i, i]
        return self._term(self.means.var_e(i), self.means.log_influence(sums))

    def nonlinear(self, name: str) -> Term:
        """Var r / Var x."""
        i = self.names.index(name)
        heldout = self.fit.heldout[:, i, i]
        variance = symmetric_optimism(self.fit.train[:, i, i], heldout, self.fit.n_train, self.fit.n)
        return self._term(variance, self.fit.influence(heldout))

    def linear(self, name: str) -> Term:
        """Var e / Var x − Var r / Var x."""
        return self.fvu(name) - self.nonlinear(name)

    def r2(self, name: str) -> Term:
        """1 − Var r / Var e."""
        return (self.nonlinear(name) / self.fvu(name)).complement()

    def split(self, name: str) -> SplitError:
        """All four with intervals: on the logarithm, of 1 − R² too, and on the identity for `linear_share`."""
        fvu, nonlinear = self.fvu(name), self.nonlinear(name)
        left = nonlinear / fvu
        none = fvu.value <= DEAD
        return SplitError(
            fvu=_on_log(fvu),
            linear_share=self.linear(name).estimate(),
            fvu_nonlinear=_on_log(nonlinear),
            r2_error=UNDEFINED if none else _on_log(left).complement(),
        )

    def difference(self, name: str, other: str) -> SplitError:
        """How much each of the four is larger than another SAE's.

        Args:
            name: The SAE.
            other: What is subtracted.

        Returns:
            The differences, intervals on the identity.
        """
        none = min(self.fvu(name).value, self.fvu(other).value) <= DEAD
        return SplitError(
            fvu=(self.fvu(name) - self.fvu(other)).estimate(),
            linear_share=(self.linear(name) - self.linear(other)).estimate(),
            fvu_nonlinear=(self.nonlinear(name) - self.nonlinear(other)).estimate(),
            r2_error=UNDEFINED if none else (self.r2(name) - self.r2(other)).estimate(),
        )

    def _term(self, variance: float, log_influence: Tensor) -> Term:
        value = variance / self.means.var_x
        return Term(value, value * (log_influence - self.means.log_influence(self.means.x)), self.means.n)


def _on_log(term: Term) -> Estimate:
    return interval(term.value, term.influence / (term.value or 1.0), term.n, link="log")
