"""The search itself: what it counts, finds, shrinks and calls a verdict."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import strategies as st

from darkmatter.claims import Claim, Margin, agrees, at_most, attack, equals, twin_is_caught, worst


def claim(margin: Any, **more: Any) -> Claim[int]:
    """A claim about whole numbers."""
    fields: dict[str, Any] = {
        "theorem": "T0",
        "name": "test",
        "page": "00_test",
        "statement": "s",
        "assumptions": "none",
        "cases": st.integers(0, 10**6),
        "margin": margin,
    }
    return Claim(**(fields | more))


def test_a_true_claim_holds_with_its_least_slack() -> None:
    outcome = attack(claim(lambda n: at_most(n, n + 2, scale=1.0)), examples=200)
    assert (outcome.verdict, outcome.examples, outcome.slack) == ("holds", 200, 2.0)
    assert not outcome.counterexample


def test_a_false_one_is_broken_and_shrunk() -> None:
    outcome = attack(claim(lambda n: at_most(n, 1234, scale=1.0)), examples=200)
    assert (outcome.verdict, outcome.counterexample, outcome.slack) == ("FAILS", "1235", -1.0)


def test_the_search_climbs_towards_rare_failures() -> None:
    # one case in ten thousand: without climbing 300 draws would miss it more often than not
    cases = st.floats(0.0, 1.0, allow_nan=False)
    outcome = attack(claim(lambda u: at_most(u, 0.9999, scale=1.0), cases=cases), examples=300)
    assert outcome.verdict == "FAILS"


def test_a_statistical_claim_is_not_climbed() -> None:
    seen: list[int] = []
    attack(claim(lambda n: seen.append(n) or Margin(-n / 1e7, 1.0), statistical="1e-9"), examples=100)
    assert len(seen) == 100


def test_a_claim_marked_false_needs_its_counterexample() -> None:
    false = claim(lambda n: at_most(n, 10, scale=1.0), false=True, known=11)
    assert attack(false, examples=100).verdict == "false as stated (counterexample found)"
    assert attack(claim(lambda n: Margin(1.0), false=True, known=11), examples=100).verdict == "FAILS"


def test_the_known_counterexample_serves_where_the_search_misses() -> None:
    rare = claim(lambda n: Margin(-1.0 if n == 777_777 else 1.0), false=True, known=777_777)
    outcome = attack(rare, examples=20)
    assert (outcome.verdict, outcome.searched) == ("false as stated (counterexample found)", False)
    assert outcome.to_dict()["found_by"] == "known case"
    assert outcome.slack == -1.0


def test_twins() -> None:
    good = claim(lambda n: Margin(1.0), twins={"wrong": lambda n: Margin(-1.0), "lame": lambda n: Margin(0.0)})
    assert twin_is_caught(good, "wrong", examples=10)
    assert not twin_is_caught(good, "lame", examples=10)
    repaired = {"repaired": lambda n: Margin(1.0), "still false": lambda n: Margin(-1.0)}
    false = claim(lambda n: Margin(-1.0), false=True, known=0, twins=repaired)
    assert twin_is_caught(false, "repaired", examples=10)
    assert not twin_is_caught(false, "still false", examples=10)


def test_not_a_number_is_a_failure() -> None:
    assert not Margin(math.nan).holds
    assert Margin(math.nan).reserve == -math.inf
    outcome = attack(claim(lambda n: Margin(math.nan)), examples=10)
    assert outcome.verdict == "FAILS"
    assert outcome.to_dict()["slack"] is None


def test_costly_claims_try_fewer_cases() -> None:
    assert attack(claim(lambda n: Margin(1.0), every=10), examples=200).examples == 20
    assert attack(claim(lambda n: Margin(1.0), every=10), examples=3).examples == 1


def test_margins() -> None:
    assert at_most(1.0, math.inf, scale=1.0).slack == 1e6
    assert at_most(math.inf, 1.0, scale=1.0).holds is False
    assert equals([1.0, 2.0], [1.0, 2.5], scale=2.0, rounding=0.1).slack == -0.25
    assert equals([], [], scale=1.0, rounding=0.0).holds
    assert not equals([math.nan], [0.0], scale=1.0, rounding=1.0).holds
    assert agrees([1.0, 0.0], [0.0, 0.0], [0.5, 0.0], limit=4.0).slack == pytest.approx(0.5)
    assert not agrees(1.0, 0.0, 0.0, limit=4.0).holds
    assert worst(Margin(0.5), Margin(-0.1, 0.2), Margin(1.0)).slack == -0.1
