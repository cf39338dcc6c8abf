"""`darkmatter bracket`: two published numbers in, a bracket out."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from darkmatter.cli import app

RUNNER = CliRunner()


def test_json() -> None:
    result = RUNNER.invoke(app, ["bracket", "--fvu", "0.25", "--r2", "0.16", "--json"])
    found = json.loads(result.stdout)
    assert found["low"] == pytest.approx(0.25 - 0.2)
    assert found["high"] == pytest.approx(0.25 * 0.84)
    assert found["theorem"] == "T5a"


def test_the_table_says_what_is_assumed() -> None:
    result = RUNNER.invoke(app, ["bracket", "--fvu", "0.25", "--r2", "0.16"])
    assert result.exit_code == 0
    assert "in [5.00, 21.0] %" in result.stdout
    assert "Assumed:" in result.stdout
    assert "no introduced error" not in result.stdout


def test_a_bracket_from_zero_is_said_in_words() -> None:
    assert "no introduced error" in RUNNER.invoke(app, ["bracket", "--fvu", "0.25", "--r2", "0.5"]).stdout


@pytest.mark.parametrize("arguments", [("25", "0.5"), ("0.25", "1.5"), ("-0.1", "0.5"), ("nan", "0.5"), ("0.2", "nan")])
def test_numbers_out_of_range_are_one_line(arguments: tuple[str, str]) -> None:
    result = RUNNER.invoke(app, ["bracket", f"--fvu={arguments[0]}", f"--r2={arguments[1]}"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
