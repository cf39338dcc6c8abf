"""One report for one pass: every decomposition, where the tokens came from, and a sentence that says what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from darkmatter.inference import Estimate
from darkmatter.results import Decomposition, to_plain

FORMAT = "darkmatter-report"
FORMAT_VERSION = 1

THEOREMS = {
    "fvu": "definitions",
    "r2_error": "T1",
    "linear_share": "T1",
    "fvu_nonlinear": "T1, T3",
    "introduced": "T5b",
    "shrinkage": "T6",
    "gain": "T6",
    "r2_norm": "A",
    "replicates": "T8",
}
"""Theorem behind each quantity, as numbered in proofs/; `darkmatter prove T1` runs it."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one command found out.

    Attributes:
        saes: Decompositions by SAE name.
        source: Where the tokens came from and what was dropped.
        truth: For synthetic worlds, the true shares by SAE name.
        training: How each SAE was trained, by name, where this is known.
    """

    saes: Mapping[str, Decomposition]
    source: Mapping[str, Any]
    truth: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; the same run with the same seed gives the same text."""
        plain = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "saes": {name: result.to_dict() for name, result in self.saes.items()},
            "verdicts": {name: verdict(result) for name, result in self.saes.items()},
            "theorems": dict(THEOREMS),
            "source": to_plain(self.source),
        }
        if self.truth:
            plain["truth"] = to_plain(self.truth)
        if self.training:
            plain["training"] = to_plain(self.training)
        return plain


def percent(value: float) -> str:
    """A share as a percentage: one decimal from 10 % on, two below."""
    return f"{100 * value:.{1 if abs(value) >= 0.1 else 2}f} %"


def percent_interval(estimate: Estimate) -> str:
    """A share and its interval in per cent."""
    return f"{percent(estimate.value)} [{percent(estimate.low)[:-2]}, {percent(estimate.high)[:-2]}]"


def verdict(result: Decomposition) -> str:
    """Say in one sentence where the error comes from and how sure we are.

    Args:
        result: A decomposition.

    Returns:
        The sentence; it never calls the nonlinear error "introduced" without its bounds.
    """
    if result.degenerate == "dead":
        return f"{result.name} is dead: it reconstructs a constant, so its error is all of x and R² = 1 means nothing."
    if result.degenerate == "affine":
        return f"{result.name} is affine on these tokens: its error is linear by construction, which means nothing."
    low, high = max(0.0, result.introduced.low), result.introduced.high
    bounds = (
        f"at most {percent(high)} of the variance is introduced by the SAE"
        if low < 0.01 * high
        else f"unless it over-scales, it introduces between {percent(low)} and {percent(high)} of the variance"
    )
    return (
        f"{result.name} misses {percent_interval(result.fvu)} of the variance: "
        f"{percent_interval(result.linear_share)} is a linear function of x and "
        f"{percent_interval(result.fvu_nonlinear)} is not; {bounds}, the rest of the nonlinear part being interference "
        "(T3, T5b)."
    )
