"""`darkmatter inspect`, and `darkmatter decompose` on SAEs of other libraries."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tests.sae_families as f
from darkmatter.cli import app
from darkmatter.sae import SAE, save_sae
from darkmatter.sae.export import export_saelens

FIXTURE = Path(__file__).parent / "fixtures" / "tiny-gemma2"


def invoke(*args: str | Path | int) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "120", "HF_HUB_OFFLINE": "1"})


def refused(*args: str | Path | int) -> str:
    result = invoke(*args)
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return str(result.stderr)


def test_inspect_shows_what_the_files_say(tmp_path: Path) -> None:
    folder = tmp_path / "gemma-scope-9b-pt-res" / "layer_20" / "width_16k" / "average_l0_57"
    f.gemmascope(folder)
    result = invoke("inspect", folder)
    assert result.exit_code == 0, result.stderr
    for words in ("gemmascope", "jumprelu", "resid_post:20", "57", "gemma-2-9b", "float32", "local files"):
        assert words in result.stdout
    f.sparsify(tmp_path / "layers.3.mlp", dtype=f.torch.bfloat16)
    result = invoke("inspect", tmp_path / "layers.3.mlp")
    assert "bfloat16, computed in float32" in result.stdout and "not certain; hook layers.3.mlp" in result.stdout
    assert "topk, k = 5" in result.stdout and "b_dec is subtracted from x before encoding." in result.stdout


def test_inspect_as_json(tmp_path: Path) -> None:
    f.openai(tmp_path)
    result = invoke("inspect", tmp_path / "8.pt", "--family", "openai", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert (said["family"], said["architecture"], said["k"], said["d_model"], said["d_sae"]) == (
        "openai", "topk", f.K, f.D, f.S,
    )  # fmt: skip
    assert "outside the latents" in said["normalisation"] and len(said["fingerprint"]) == 64
    assert (said["revision"], said["training"], said["site"]) == (None, None, None)


def test_inspect_refuses_in_one_line(tmp_path: Path) -> None:
    assert "no SAE of a known family (found: nothing)" in refused("inspect", tmp_path)
    assert "does not exist" in refused("inspect", tmp_path / "nowhere")
    assert "family is 'x', expected one of" in refused("inspect", tmp_path, "--family", "x")
    f.gemmascope(tmp_path)
    assert "revision 'main' was given for the local" in refused("inspect", tmp_path, "--revision", "main")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.json"
    stories = [f"Once upon a time there was number {i}, who liked the number {i + 1} and the sun." for i in range(60)]
    path.write_text(json.dumps(stories))
    return path


@pytest.mark.models
def test_decompose_reads_every_family(tmp_path: Path, text: Path) -> None:
    pytest.importorskip("transformers", reason="needs the `models` extra (transformers)")
    draw, d, s = f.draws(), 96, 64
    W = draw(d, s, scale=0.1)
    sae = SAE(
        W, draw(s, scale=0.1), W.T.contiguous(), draw(d, scale=0.1), activation="jumprelu", threshold=draw(s).abs()
    )
    save_sae(sae, tmp_path / "ours")
    export_saelens(sae, tmp_path / "theirs", metadata={"hook_name": "blocks.1.hook_resid_post"})
    export_saelens(
        replace(sae, input_norm="layer_norm"), tmp_path / "normed", metadata={"hook_name": "blocks.3.hook_resid_pre"}
    )
    where = ("--model", FIXTURE, "--site", "resid_post:2", "--text", text, "--folds", 5)
    pair = ("--sae", f"a={tmp_path / 'ours'}", "--sae", f"b={tmp_path / 'theirs'}", "--sae", tmp_path / "normed")
    # random weights reconstruct nothing, which the preflight would say first
    result = invoke("decompose", *where, *pair, "--no-preflight", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    first, second = (report["saes"][name] for name in ("a", "b"))
    assert first["fvu"]["value"] == pytest.approx(second["fvu"]["value"], rel=1e-6)
    notes = report["source"]["saes"]
    assert (notes["a"]["family"], notes["b"]["family"]) == ("darkmatter", "saelens")
    assert notes["b"]["site"] == "resid_post:1"
    assert "Warning: b was made for resid_post:1 according to its files, not for resid_post:2." in result.stderr
    assert "Warning: a " not in result.stderr and "Warning: normed " not in result.stderr  # one place, two names
    assert "Note on normed: Each x is layer-normalised" in result.stderr
    assert "pass outside the latents" in notes["normed"]["normalisation"] and notes["a"]["normalisation"] is None


@pytest.mark.models
def test_decompose_refuses_a_family_that_does_not_fit_and_another_width(tmp_path: Path, text: Path) -> None:
    pytest.importorskip("transformers", reason="needs the `models` extra (transformers)")
    f.sparsify(tmp_path / "layers.2")
    where = ("decompose", "--model", FIXTURE, "--site", "resid_post:2", "--text", text, "--out", tmp_path / "out")
    line = refused(*where, "--sae", tmp_path / "layers.2", "--family", "saelens")
    assert "no SAE of the family saelens" in line
    line = refused(*where, "--sae", f"x={tmp_path / 'layers.2'}")
    assert "SAE 'x' has d_model 16, but resid_post:2 of tiny-gemma2 has 96" in line
    assert not (tmp_path / "out").exists()
