"""Attack a claim: draw cases, climb towards the tightest ones, shrink what breaks it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, Verbosity, given, settings, target
from hypothesis import seed as seeded

from darkmatter.claims.claim import AnyClaim, Margin

Verdict = Literal["holds", "false as stated (counterexample found)", "FAILS"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attack on one claim came to.

    Attributes:
        claim: The claim.
        examples: Cases tried; those drawn while shrinking are not counted.
        slack: Slack of the worst case, as in `Margin`.
        allowed: What rounding was allowed in that case.
        verdict: "holds", "false as stated (counterexample found)" for a claim marked false, else "FAILS".
        counterexample: The smallest case found that breaks the claim, in words; empty if none.
        searched: Whether the search found it; False where the known one had to serve.
    """

    claim: AnyClaim
    examples: int
    slack: float
    allowed: float
    verdict: Verdict
    counterexample: str = ""
    searched: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form."""
        claim = self.claim
        return {
            "theorem": claim.theorem,
            "claim": claim.name,
            "statement": claim.statement,
            "assumptions": claim.assumptions,
            "page": f"proofs/{claim.page}.md",
            "examples": self.examples,
            "slack": self.slack if math.isfinite(self.slack) else None,
            "rounding_allowed": self.allowed,
            "verdict": self.verdict,
            "counterexample": self.counterexample or None,
            "found_by": None if not self.counterexample else "search" if self.searched else "known case",
            "false_alarm_rate": claim.statistical or None,
        }


class _BrokenError(Exception):
    """The claim fails in the case at hand; hypothesis shrinks towards the simplest one that raises it."""


def attack(
    claim: AnyClaim,
    *,
    examples: int,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
    shrink: bool = True,
) -> Outcome:
    """Search for a case that breaks a claim.

    Args:
        claim: The claim.
        examples: Cases to try, fewer of a costly claim (`Claim.every`); the search stops at the first that breaks it.
        seed: Seed of the search; the same one finds the same cases.
        tick: Called after every case.
        shrink: Look for the simplest counterexample once there is one.

    Returns:
        The outcome.
    """
    found = _search(claim, claim.margin, examples=max(1, examples // claim.every), seed=seed, tick=tick, shrink=shrink)
    broken = found.case is not None
    if not claim.false:
        verdict: Verdict = "FAILS" if broken else "holds"
    else:
        known = claim.known is not None and not claim.margin(claim.known).holds
        verdict = "false as stated (counterexample found)" if broken or known else "FAILS"
        if known and not broken and claim.known is not None:
            margin = claim.margin(claim.known)
            found = replace(found, case=claim.known, worst=margin)
    return Outcome(
        claim=claim,
        examples=found.examples,
        slack=found.worst.slack,
        allowed=found.worst.allowed,
        verdict=verdict,
        counterexample="" if found.case is None else claim.show(found.case),
        searched=broken or found.case is None,
    )


def twin_is_caught(claim: AnyClaim, twin: str, *, examples: int, seed: int = 0) -> bool:
    """Whether a deliberately wrong formula changes the verdict, which shows that the check can fail.

    Args:
        claim: The claim.
        twin: Name of one of its twins.
        examples: Cases to try.
        seed: Seed of the search.

    Returns:
        True if the search breaks the twin of a claim that holds, or no longer breaks the twin of a false claim.
    """
    margin = claim.twins[twin]
    broken = _search(claim, margin, examples=examples, seed=seed, tick=lambda: None, shrink=False).case is not None
    if not claim.false:
        return broken
    return not broken and (claim.known is None or margin(claim.known).holds)


@dataclass(frozen=True, slots=True)
class _Found:
    examples: int
    worst: Margin
    case: Any


def _search(
    claim: AnyClaim,
    margin_of: Callable[[Any], Margin],
    *,
    examples: int,
    seed: int,
    tick: Callable[[], None],
    shrink: bool,
) -> _Found:
    state = _Found(0, Margin(math.inf), None)

    def one(case: Any) -> None:
        nonlocal state
        margin = margin_of(case)
        if not margin.holds:
            # while shrinking, the last case that breaks the claim is the simplest one
            tried = state.examples + (state.case is None)
            state = _Found(tried, margin, case)
            raise _BrokenError
        if state.case is not None:
            return
        state = _Found(state.examples + 1, min(state.worst, margin, key=lambda m: m.reserve), None)
        tick()
        if not claim.statistical and math.isfinite(margin.slack):
            target(-margin.slack)

    phases = [Phase.generate, *([] if claim.statistical else [Phase.target]), *([Phase.shrink] if shrink else [])]
    run = _settings(examples, phases)(seeded(seed)(given(claim.cases)(one)))
    try:
        run()
    except _BrokenError:
        tick()
    return state


def _settings(examples: int, phases: list[Phase]) -> settings:
    return settings(
        max_examples=examples,
        phases=phases,
        database=None,
        deadline=None,
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
