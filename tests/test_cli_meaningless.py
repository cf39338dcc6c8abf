"""`decompose` refuses options that its kind of input would ignore."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from darkmatter.cli import app

CASES = [
    (["--acts", "x.npy", "--recon", "r.npy", "--text", "t.json"], "--text has no meaning with --acts"),
    (["--acts", "x.npy", "--recon", "r.npy", "--sae", "s"], "--sae has no meaning with --acts"),
    (["--acts", "x.npy", "--recon", "r.npy", "--memory", "1GB"], "--memory has no meaning with --acts"),
    (["--cache", "c", "--sae", "s", "--site", "resid_post:1"], "--site has no meaning with --cache"),
    (["--cache", "c", "--sae", "s", "--skip-first", "3"], "--skip-first has no meaning with --cache"),
    (["--cache", "c", "--sae", "s", "--force"], "--force has no meaning with --cache"),
    (["--model", "m", "--site", "resid_post:1", "--sae", "s", "--text", "t", "--docs", "d"], "--docs has no meaning"),
]


@pytest.mark.parametrize(("arguments", "words"), CASES)
def test_options_without_a_meaning(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["decompose", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
