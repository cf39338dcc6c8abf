"""The two tests of every claim, at the reduced size that CI runs; `darkmatter prove` runs the full one."""

from __future__ import annotations

import os

from darkmatter.claims import AnyClaim, attack, twin_is_caught

EXAMPLES = int(os.environ.get("DARKMATTER_EXAMPLES", "60"))
TWIN_EXAMPLES = max(EXAMPLES, 300)


def check_claim(claim: AnyClaim) -> None:
    """The verdict is the one that the page states; a false claim is refuted by the search itself."""
    examples = EXAMPLES if not claim.false else TWIN_EXAMPLES
    outcome = attack(claim, examples=examples)
    assert outcome.verdict != "FAILS", f"{claim.statement}: slack {outcome.slack}, {outcome.counterexample}"
    if claim.false:
        assert outcome.counterexample
        assert outcome.searched, "only the known counterexample was left"


def check_twin(claim: AnyClaim, twin: str) -> None:
    """A deliberately wrong formula does not pass."""
    assert twin_is_caught(claim, twin, examples=TWIN_EXAMPLES)
