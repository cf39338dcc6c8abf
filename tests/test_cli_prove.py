"""`darkmatter prove`: selection, output, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from typer.testing import CliRunner

from darkmatter.claims import Claim, Margin, all_claims
from darkmatter.cli import app
from darkmatter.commands import prove
from darkmatter.commands.prove import select
from darkmatter.errors import InputError

RUNNER = CliRunner()


def test_json_is_a_list_of_verdicts_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["prove", "T3", "a-perfect-code-has-no-nonlinear-error", "--examples", "20", "--twins", "--json"]
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {"theorem", "claim", "examples", "slack", "verdict"} <= set(found[0])
    verdicts = {entry["claim"]: entry["verdict"] for entry in found}
    assert verdicts["introduced-is-at-most-nonlinear"] == "holds"
    assert verdicts["a-perfect-code-has-no-nonlinear-error"] == "false as stated (counterexample found)"
    assert all(all(entry["twins_caught"].values()) for entry in found)
    assert not list(tmp_path.iterdir()), "leaves nothing behind"


def test_the_table_shows_counterexamples() -> None:
    result = RUNNER.invoke(app, ["prove", "nonlinear-is-introduced", "--examples", "20"])
    assert result.exit_code == 0
    assert "counterexample" in result.stdout
    assert "see proofs/06_introduced.md" in result.stdout


def test_the_seed_decides_everything() -> None:
    arguments = ["prove", "T3", "--examples", "30", "--json", "--seed", "5"]
    first, second = (RUNNER.invoke(app, [*arguments, "--jobs", jobs]).stdout for jobs in ("1", "2"))
    assert first == second


def test_the_list_runs_nothing() -> None:
    result = RUNNER.invoke(app, ["prove", "--list", "--json"])
    assert [entry["name"] for entry in json.loads(result.stdout)] == [claim.name for claim in all_claims()]
    assert "T5b" in RUNNER.invoke(app, ["prove", "--list"]).stdout


@pytest.mark.parametrize("name", ["t3", "06", "06_introduced", "proofs/06_introduced.md", "T3"])
def test_a_theorem_is_found_by_number_and_page(name: str) -> None:
    assert {claim.theorem for claim in select(all_claims(), [name])} == {"T3"}


@pytest.mark.parametrize(
    "arguments", [["T99"], ["--examples", "0"], ["--jobs", "0"], ["--seed", "-1"], ["T3", "nonsense"]]
)
def test_bad_input_is_one_line(arguments: list[str]) -> None:
    result = RUNNER.invoke(app, ["prove", *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert "expected" in result.stderr


def test_a_claim_that_fails_is_shown_and_sets_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcomes(claims: Any, run: Any, home: Any, done: Any) -> Any:
        for claim in claims:
            yield prove.attack(claim, examples=10).to_dict()

    wrong = Claim(
        theorem="T0",
        name="all-integers-are-small",
        page="06_introduced",
        statement="n < 10",
        assumptions="none",
        cases=st.integers(0, 1000),
        margin=lambda n: Margin(float(9 - n)),
    )
    monkeypatch.setattr(prove, "all_claims", lambda: (wrong,))
    monkeypatch.setattr(prove, "_outcomes", outcomes)
    result = RUNNER.invoke(app, ["prove"])
    assert result.exit_code == 1
    assert "FAILS" in result.stdout
    assert "search: 10" in result.stdout, "shrunk to the smallest"


def test_select_refuses_what_fits_nothing() -> None:
    with pytest.raises(InputError, match="no theorem, claim or page"):
        select(all_claims(), ["T3", "T77"])
