"""How many tokens a run needs for an interval of a wanted width, foretold from a pilot run.

A fold's influence is a mean over its tokens, so the variance of an estimate falls as one over the documents, at one
length of document, and hence as one over the tokens: ``half² ∝ 1/ν``. For a residual variance the interval is widened
by sqrt(n / (n − rank − 1)) (proofs/03 c), which makes ``ν = n − rank − 1``; for all other numbers ``ν = n``. What is
wanted and what the pilot found are compared on the scale on which the interval is symmetric.

The pilot's standard error is itself an estimate: (K − 1) se² / Var follows a chi-square with K − 1 degrees of freedom
(proofs/03 b), so a plan is a range. With 20 folds it reaches from 0.58 to 2.13 times its middle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from scipy import stats

from darkmatter.errors import InputError
from darkmatter.guards import FEW_GROUPS_PER_FOLD, LOW_TOKENS_PER_DIRECTION
from darkmatter.inference import LEVEL, Estimate
from darkmatter.results import Decomposition, to_plain

ADVISED_TOKENS_PER_DIRECTION = 10
"""Tokens per direction of x from which on intervals were measured to cover 93 % or more (docs/estimator.md)."""

Scale = Literal["log", "log of 1 - value", "identity"]

_SCALES: dict[str, tuple[Scale, bool]] = {
    "fvu_nonlinear": ("log", True),
    "fvu": ("log", False),
    "linear_share": ("identity", False),
    "r2_error": ("log of 1 - value", True),
    "gain": ("identity", False),
    "r2_norm": ("log of 1 - value", True),
    "r2_norm_x": ("log of 1 - value", True),
    "r2_norm_recon": ("log of 1 - value", True),
    "unshared": ("log", True),
    "shared": ("identity", True),
    "correlation": ("identity", True),
}
_PAIRED = ("unshared", "shared", "correlation")

QUANTITIES = tuple(_SCALES)
"""What can be planned; the last three are of a pair of SAEs (``unshared:OTHER`` where there are several others)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPlan:
    """Tokens needed for a wanted half-width of one number's 95 % interval.

    Attributes:
        name: The SAE.
        quantity: The number planned for.
        scale: Scale on which its interval is symmetric.
        pilot: What the pilot found.
        half_width: Wanted half of the interval's length, in units of the number.
        is_relative: Whether it was given as a share of the pilot's value.
        tokens: Tokens at which that is expected.
        tokens_low: Lower end of their 95 % range, from the uncertainty of the pilot's standard error.
        tokens_high: Upper end.
        floor: Tokens below which intervals are not to be trusted, however narrow: 10 per direction of x, and 5
            documents per fold.
        pilot_tokens: Tokens of the pilot.
        pilot_folds: Folds of the pilot that hold tokens.
        tokens_per_document: Mean counted tokens per document in the pilot, taken to stay as it is.
        folds: Folds of the planned run.
        rank: Directions of x that are fitted.
        warnings: Why the pilot is a weak guide, if it is.
    """

    name: str
    quantity: str
    scale: Scale
    pilot: Estimate
    half_width: float
    is_relative: bool
    tokens: int
    tokens_low: int
    tokens_high: int
    floor: int
    pilot_tokens: int
    pilot_folds: int
    tokens_per_document: float
    folds: int
    rank: int
    warnings: tuple[str, ...]

    @property
    def advised(self) -> int:
        """Tokens to take: `tokens`, or `floor` if that is more."""
        return max(self.tokens, self.floor)

    @property
    def documents(self) -> int:
        """Documents that hold the advised tokens."""
        return math.ceil(self.advised / self.tokens_per_document)

    @property
    def relative(self) -> float:
        """Wanted half-width over the pilot's value."""
        return self.half_width / abs(self.pilot.value) if self.pilot.value else math.inf

    def half_width_at(self, n_tokens: int) -> Estimate:
        """Foretell the half-width that a run will report.

        Its standard error and the pilot's are independent estimates, so the square of their ratio follows an F
        distribution with `folds` − 1 and `pilot_folds` − 1 degrees of freedom.

        Args:
            n_tokens: Tokens of the run.

        Returns:
            The half-width, in units of the number, with its 95 % range.

        Raises:
            InputError: No more tokens than directions to fit.
        """
        spent = _spent(self.quantity, self.rank)
        if n_tokens <= spent:
            raise InputError(f"n_tokens is {n_tokens}, expected more than {spent}: that many directions are fitted")
        middle = _half(self.pilot, self.scale) * _students(self.folds) / _students(self.pilot_folds)
        middle *= math.sqrt((self.pilot_tokens - spent) / (n_tokens - spent))
        ratio = stats.f(self.folds - 1, self.pilot_folds - 1)
        ends = (math.sqrt(float(ratio.ppf(tail))) for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        low, high = (_length(middle * end, self.pilot.value, self.scale) for end in ends)
        return Estimate(_length(middle, self.pilot.value, self.scale), low, high)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form, with `advised`, `documents` and `relative`."""
        own = {"advised": self.advised, "documents": self.documents, "relative": self.relative}
        plain: dict[str, Any] = to_plain({**to_plain(self), **own})
        return plain


def plan_tokens(
    result: Decomposition,
    *,
    quantity: str = "fvu_nonlinear",
    half_width: float = 0.01,
    relative: bool = True,
    folds: int | None = None,
) -> TokenPlan:
    """Foretell the tokens at which an interval has a wanted half-width.

    Args:
        result: The pilot.
        quantity: One of `QUANTITIES`.
        half_width: Wanted half of the length of the 95 % interval.
        relative: Whether that is a share of the pilot's value; else it is in units of the number.
        folds: Folds of the planned run; None for the pilot's.

    Returns:
        The plan.

    Raises:
        InputError: An unknown quantity, one that the pilot lacks, or a width that cannot be.
    """
    estimate, scale, pilot_folds = _find(result, quantity), _SCALES[quantity.partition(":")[0]][0], result.n_folds
    folds = pilot_folds if folds is None else folds
    if folds < 2:
        raise InputError(f"folds is {folds}, expected at least 2: an interval needs two folds that differ")
    if not (math.isfinite(half_width) and half_width > 0):
        raise InputError(f"half_width is {half_width!r}, expected a positive number, such as 0.01 for ± 1 %")
    if relative and not estimate.value:
        raise InputError(f"{quantity} of {result.name} is 0, which has no relative width: give an absolute one")
    wanted = half_width * abs(estimate.value) if relative else half_width
    ratio = _half(estimate, scale) / _on_scale(wanted, estimate.value, scale)
    ratio *= _students(folds) / _students(pilot_folds)
    spent = _spent(quantity, result.rank)
    effective = (result.n_tokens - spent) * ratio**2
    chi = stats.chi2(pilot_folds - 1)
    low, high = (effective * (pilot_folds - 1) / float(chi.ppf(tail)) for tail in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    per_document = result.n_tokens / result.n_groups
    directions = ADVISED_TOKENS_PER_DIRECTION * result.rank
    return TokenPlan(
        name=result.name,
        quantity=quantity,
        scale=scale,
        pilot=estimate,
        half_width=wanted,
        is_relative=relative,
        tokens=spent + math.ceil(effective),
        tokens_low=spent + math.ceil(low),
        tokens_high=spent + math.ceil(high),
        floor=max(directions, math.ceil(FEW_GROUPS_PER_FOLD * folds * per_document)),
        pilot_tokens=result.n_tokens,
        pilot_folds=pilot_folds,
        tokens_per_document=per_document,
        folds=folds,
        rank=result.rank,
        warnings=_warnings(result),
    )


def _find(result: Decomposition, quantity: str) -> Estimate:
    name, mark, other = quantity.partition(":")
    if name not in _SCALES:
        raise InputError(f"quantity is {quantity!r}, expected one of {', '.join(QUANTITIES)}")
    if name not in _PAIRED:
        if mark:
            raise InputError(f"quantity is {quantity!r}, expected {name!r}: it is of one SAE, not of a pair")
        estimate: Estimate = getattr(result, name)
    else:
        others = list(result.replicates)
        if not others:
            raise InputError(f"{name} is of a pair of SAEs, and the pilot of {result.name} has one: decompose two")
        if not mark and len(others) == 1:
            other = others[0]
        if other not in result.replicates:
            raise InputError(f"quantity is {quantity!r}, expected {name}:OTHER with OTHER one of {', '.join(others)}")
        estimate = getattr(result.replicates[other], name)
    if not all(map(math.isfinite, (estimate.value, estimate.low, estimate.high))):
        raise InputError(f"{quantity} of {result.name} is undefined in the pilot: plan for another quantity")
    if not estimate.low < estimate.high:
        raise InputError(f"{quantity} of {result.name} has an interval without width, from which nothing follows")
    return estimate


def _spent(quantity: str, rank: int) -> int:
    """Tokens that the fit uses up: rank + 1 for what rests on a residual variance alone."""
    return rank + 1 if _SCALES[quantity.partition(":")[0]][1] else 0


def _half(estimate: Estimate, scale: Scale) -> float:
    """Half-width on the scale on which the interval is symmetric.

    Raises:
        InputError: An interval that leaves the scale.
    """
    if scale == "identity":
        return (estimate.high - estimate.low) / 2
    near, far = (estimate.low, estimate.high) if scale == "log" else (1 - estimate.high, 1 - estimate.low)
    if not near > 0:
        raise InputError(f"the pilot's interval, {estimate}, is too wide to plan from: take a longer pilot")
    return math.log(far / near) / 2


def _length(half: float, value: float, scale: Scale) -> float:
    """Half of the interval's length, in units of the number, from the half-width on the scale."""
    if scale == "identity":
        return half
    return (value if scale == "log" else 1 - value) * math.sinh(min(half, 700.0))


def _on_scale(length: float, value: float, scale: Scale) -> float:
    """Inverse of `_length`."""
    return length if scale == "identity" else math.asinh(length / (value if scale == "log" else 1 - value))


def _students(folds: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, folds - 1))


def _warnings(result: Decomposition) -> tuple[str, ...]:
    found = []
    per_direction = result.n_tokens / max(1, result.rank)
    if per_direction < LOW_TOKENS_PER_DIRECTION:
        found.append(
            f"the pilot has {per_direction:.1f} tokens per direction of x, below {LOW_TOKENS_PER_DIRECTION}: its own "
            "intervals are not calibrated; take a longer pilot."
        )
    if result.n_groups < FEW_GROUPS_PER_FOLD * result.n_folds:
        found.append(
            f"the pilot has {result.n_groups} documents in {result.n_folds} folds: its standard error is less certain "
            f"than this range says; take at least {FEW_GROUPS_PER_FOLD * result.n_folds} documents, or fewer folds."
        )
    return tuple(found)
