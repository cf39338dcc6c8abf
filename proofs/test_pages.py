"""Pages and code say the same: every claim stands on its page, every page in the index, every formula renders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from darkmatter.claims import AnyClaim, all_claims
from darkmatter.report import THEOREMS

HERE = Path(__file__).parent
PAGES = sorted(HERE.glob("[0-9][0-9]_*.md"))
CLAIMS = all_claims()
HEADINGS = [
    "Statement",
    "Assumptions",
    "Proof",
    "What it means for a report",
    "What it does not say",
    "Checks",
]
REFUSED = (r"\operatorname", r"\{", r"\}", r"\newcommand", r"\require", r"\href", r"\label")
"""TeX that GitHub does not render, or loses to Markdown's escapes."""


def page_of(claim: AnyClaim) -> str:
    return (HERE / f"{claim.page}.md").read_text(encoding="utf-8")


def test_every_page_has_claims_and_every_claim_a_page() -> None:
    assert {claim.page for claim in CLAIMS} == {page.stem for page in PAGES}
    names = [claim.name for claim in CLAIMS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_complete_and_renders(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == HEADINGS
    assert not [macro for macro in REFUSED if macro in text]
    assert text.count("$$") % 2 == 0
    for number, line in enumerate(text.splitlines(), start=1):
        assert len(line) <= 120 or line.startswith(("|", "[")), f"line {number} is long"
        outside = line.replace("$$", "").replace(r"\$", "")
        assert outside.count("$") % 2 == 0, f"line {number}: a formula does not end on its line"
        # Markdown takes a bare < in inline mathematics for a tag
        assert not re.search(r"\$[^$]*<[a-zA-Z][^$]*\$", outside), f"line {number}: write \\lt"
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (HERE / target).exists(), f"{target} does not exist"
    for code in re.findall(r"`(darkmatter/[a-z_0-9/]+\.py)`", text):
        assert (HERE.parent / code).exists(), f"{code} does not exist"
    assert (HERE / f"test_{page.stem}.py").exists()


@pytest.mark.parametrize("claim", CLAIMS, ids=str)
def test_a_claim_stands_on_its_page_with_its_verdict_and_twins(claim: AnyClaim) -> None:
    rows = [line for line in page_of(claim).splitlines() if line.startswith(f"| `{claim.name}`")]
    assert len(rows) == 1, f"expected one row for {claim.name} in the table of checks"
    assert ("false as stated" if claim.false else "holds") in rows[0]
    assert claim.twins, "a check that cannot fail is no check"
    assert not claim.false or not claim.margin(claim.known).holds, "the known counterexample is none"
    assert len(claim.statement) <= 160
    assert len(claim.assumptions) <= 160


def test_the_index_names_every_page_test_and_theorem() -> None:
    index = (HERE / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert f"]({page.name})" in index
        assert f"](test_{page.stem}.py)" in index
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", index):
        assert (HERE / target).exists(), f"{target} does not exist"
    for code in re.findall(r"`((?:theory|claims)/[a-z_0-9]+\.py)`", index):
        assert (HERE.parent / "darkmatter" / code).exists(), f"{code} does not exist"


def test_every_quantity_of_a_report_has_a_theorem_that_can_be_run() -> None:
    theorems = {claim.theorem for claim in CLAIMS}
    for quantity, numbers in THEOREMS.items():
        assert numbers, f"{quantity} rests on nothing"
        assert set(numbers.split(", ")) <= theorems
