"""What every analysis promises: a help that explains, one clear line for bad input, a page with a figure."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import darkmatter.analyses as analyses
from darkmatter.cli_analyses import app
from tests.cli_models import good, refused

NAMES = sorted(command.name or "" for command in app.registered_commands)
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_there_are_ten() -> None:
    assert len(NAMES) == len(set(NAMES)) == 10


@pytest.mark.parametrize("name", NAMES)
def test_help_explains(name: str) -> None:
    text = good(name, "--help").stdout
    for option in ("--world", "--model", "--control", "--folds", "--json", "--out"):
        assert option in text
    assert len(text.split("Options")[0].split()) > 8  # usage and a sentence at least


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_one_line(name: str, tmp_path: Path) -> None:
    assert "it says where the activations come from" in refused(name)
    assert "presets" in refused(name, "--world", "nowhere", "--out", tmp_path)
    assert "no meaning with --world" in refused(name, "--world", "tiny", "--pack", "--out", tmp_path)
    assert "folds is 1" in refused(name, "--world", "tiny", "--folds", 1, "--out", tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    assert "expected a folder" in refused(name, "--world", "tiny", "--out", file)
    damaged = tmp_path / "experiment.json"
    damaged.write_text("{")
    assert "experiment.json" in refused(name, "--world", damaged, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NAMES)
def test_broken_arrays_are_one_line(name: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    x[7, 3] = np.nan
    np.save(tmp_path / "recon.npy", x)
    arrays = ("--acts", tmp_path / "x.npy", "--recon", f"a={tmp_path / 'recon.npy'}", "--recon", tmp_path / "recon.npy")
    message = refused(name, *arrays, "--out", tmp_path / "out")
    assert re.search(r"NaN|cannot work on --acts|needs the weights", message), message


@pytest.mark.parametrize("name", NAMES)
def test_every_analysis_has_a_page_with_a_figure(name: str) -> None:
    page = (DOCS / "analyses" / f"{name}.md").read_text()
    assert f"darkmatter {name}" in page
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+\.png)\)", page)
    assert figures and all((DOCS / "analyses" / figure).is_file() for figure in figures)
    assert f"({name}.md)" in (DOCS / "analyses" / "README.md").read_text()
    assert f"analyses/{name}.md" in (DOCS / "paper.md").read_text()


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in [*(DOCS / "analyses").glob("*.md"), DOCS / "paper.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_public_functions_load_on_first_use() -> None:
    assert len(analyses.__all__) >= 10
    for name in analyses.__all__:
        assert callable(getattr(analyses, name)), name
    with pytest.raises(AttributeError):
        _ = analyses.nothing
