"""What an executable theorem is: cases, a margin that must not be negative, and wrong twins that must fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from hypothesis.strategies import SearchStrategy

Case = TypeVar("Case")


@dataclass(frozen=True, slots=True)
class Margin:
    """By how much a claim holds in one case.

    Attributes:
        slack: Relative distance to the claim's limit, negative beyond it: (right − left) / scale of an inequality,
            −|left − right| / scale of an identity, limit − |z| of a statistical comparison.
        allowed: How far below zero rounding can take the slack; derived, not fitted.
    """

    slack: float
    allowed: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the claim holds in this case; NaN counts as no."""
        return self.slack >= -self.allowed

    @property
    def reserve(self) -> float:
        """Slack plus what rounding is allowed; the case with the least is the worst. NaN counts as −∞."""
        total = self.slack + self.allowed
        return -math.inf if math.isnan(total) else total


def at_most(left: float, right: float, *, scale: float, rounding: float = 0.0) -> Margin:
    """Left ≤ right.

    Args:
        left: Smaller side.
        right: Larger side; may be infinite.
        scale: What rounding errors of both sides are proportional to, > 0.
        rounding: Relative rounding error of the two sides together.

    Returns:
        The margin; its slack is cut at 1e6, for the search likes finite numbers.
    """
    slack = (right - left) / scale if right != math.inf or left != math.inf else 0.0
    return Margin(min(slack, 1e6), rounding)


def equals(left: npt.ArrayLike, right: npt.ArrayLike, *, scale: float, rounding: float) -> Margin:
    """Left = right, entry by entry.

    Args:
        left: One side.
        right: Other side, of a shape that broadcasts.
        scale: What rounding errors of both sides are proportional to, > 0.
        rounding: Relative rounding error of the two sides together.

    Returns:
        The margin, of the entry that differs most.
    """
    gap = np.abs(np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64))
    return Margin(-float(gap.max(initial=0.0)) / scale, rounding)


def agrees(estimate: npt.ArrayLike, truth: npt.ArrayLike, error: npt.ArrayLike, *, limit: float) -> Margin:
    """|estimate − truth| ≤ limit standard errors, entry by entry.

    Args:
        estimate: Monte Carlo means.
        truth: What they estimate.
        error: Their standard errors; an entry may be 0 where the estimate must be exact.
        limit: Standard errors that are allowed; it sets the false-alarm rate.

    Returns:
        The margin in standard errors, limit − max|z|, divided by the limit.
    """
    gap = np.abs(np.asarray(estimate, dtype=np.float64) - np.asarray(truth, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(gap == 0.0, 0.0, gap / np.asarray(error, dtype=np.float64))
    return Margin(max(1.0 - float(z.max(initial=0.0)) / limit, -1e6))


def worst(*margins: Margin) -> Margin:
    """The margin of several statements that must hold together: the one with the least reserve."""
    return min(margins, key=lambda margin: margin.reserve)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Claim(Generic[Case]):
    """One statement that a search can attack.

    Attributes:
        theorem: Number, as in the reports: "T1", "T5b", "A".
        name: Unique short name in lower case with hyphens.
        page: Page of the derivation, "04_residual_identity" for ``proofs/04_residual_identity.md``.
        statement: The claim in one line of plain text.
        assumptions: What must hold, in one line; "none" where nothing must.
        cases: Strategy that draws cases which satisfy the assumptions.
        margin: Margin of one case.
        false: The statement is one that people make and that is false: the search must find a counterexample.
        known: For a false claim, a counterexample that is known, in case the search misses.
        show: How a counterexample is written for people, on one or a few lines.
        twins: Deliberately wrong margins by what is wrong with them; with any of them the verdict must change.
        statistical: The false-alarm rate of a margin that compares means of random draws; empty where it is exact.
            Such a margin is never climbed: a search among seeds would find a bad one.
        every: A costly claim tries one case where others try this many.
    """

    theorem: str
    name: str
    page: str
    statement: str
    assumptions: str
    cases: SearchStrategy[Case]
    margin: Callable[[Case], Margin]
    false: bool = False
    known: Case | None = None
    show: Callable[[Case], str] = str
    twins: Mapping[str, Callable[[Case], Margin]] = field(default_factory=lambda: MappingProxyType({}))
    statistical: str = ""
    every: int = 1

    def __str__(self) -> str:
        return self.name


AnyClaim = Claim[Any]
