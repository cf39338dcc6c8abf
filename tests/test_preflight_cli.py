"""The preflight before a run: a table on stderr, then go, or one line that says why not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import torch

from darkmatter.adapters import LoadedModel, ModelSitesSource, ModelSource, load_model, model_activations
from darkmatter.adapters.preflight import Check, Preflight
from darkmatter.commands.preflight_model import run_preflight
from darkmatter.errors import InputError

pytestmark = pytest.mark.models
FIXTURE = Path(__file__).parent / "fixtures" / "tiny-gemma2"
TEXT = [part for key in sorted(topics.topics) for part in topics.topics[key].split("\n\n") if len(part) > 200][:24]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    pytest.importorskip("transformers", reason="needs the `models` extra (transformers)")
    return load_model(FIXTURE)


@pytest.fixture(scope="module")
def nearly(loaded: LoadedModel) -> Any:
    """A stand-in for an SAE that fits resid_post:2: its first 60 principal components, about the mean."""
    x = next(iter(model_activations(loaded, "resid_post:2", TEXT, batch_docs=len(TEXT)))).x
    mean = x.mean(0)
    top = torch.linalg.svd(x - mean, full_matrices=False).Vh[:60]
    return lambda y: mean + (y - mean) @ top.T @ top


def source(loaded: LoadedModel, **saes: Any) -> ModelSource:
    return ModelSource(model_activations(loaded, "resid_post:2", TEXT), saes, {"a": {"site": "resid_post:2"}})


def test_a_healthy_run_goes_on(
    loaded: LoadedModel, nearly: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    report = run_preflight(source(loaded, a=nearly), force=False, batches=1)
    assert (report["status"], report["forced"]) == ("ok", False)
    json.dumps(report, allow_nan=False)
    shown = capsys.readouterr()
    assert not shown.out and "preflight: 16 documents" in shown.err
    for words in (
        "identity splice",
        "the clean loss, bit for bit",
        "FVU",
        "made for resid_post:2",
        "local folder tiny",
    ):
        assert words in shown.err
    assert "Warning" not in shown.err


def test_a_stop_is_one_line_and_can_be_overruled(loaded: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    bad = source(loaded, **{"a[b]": torch.zeros_like, "copy": lambda x: x})
    with pytest.raises(InputError) as caught:
        run_preflight(bad, force=False, batches=1)
    line = str(caught.value)
    assert line.startswith("preflight: FVU of a[b] is 1.") and line.endswith("(--force goes on all the same)")
    assert "\n" not in line and "Sae(x) is the same for every token" in line
    shown = capsys.readouterr().err
    assert "a[b]" in shown and "Stop: preflight: FVU of copy is 0" in shown  # the first is in the error itself
    report = run_preflight(bad, force=True, batches=1)
    assert (report["status"], report["forced"]) == ("stop", True)
    assert "; going on, as asked." in capsys.readouterr().err


def test_several_sites_are_one_report(loaded: LoadedModel, nearly: Any, capsys: pytest.CaptureFixture[str]) -> None:
    activations = model_activations(loaded, ["resid_post:2", "attn_z:2"], TEXT)
    notes = {"attn_z:2": {"b": {"site": "attn_z:3", "l0": 5.0}}}
    both = ModelSitesSource(activations, {"resid_post:2": {"a": nearly}, "attn_z:2": {"b": lambda x: 0.9 * x}}, notes)
    report = run_preflight(both, force=False, batches=1)
    names = [(check["subject"], check["name"]) for check in report["checks"]]
    assert names.count(("tokens", "BOS")) == names.count(("model", "loss")) == 1
    assert {subject for subject, name in names if name == "norms"} == {"resid_post:2", "attn_z:2"}
    assert [check["status"] for check in report["checks"] if check["name"] == "site"] == ["warn"]
    assert "Warning: site of b is made for attn_z:3, expected attn_z:2" in capsys.readouterr().err.replace("\n", " ")


def test_the_record() -> None:
    check = Check(
        name="L0", subject="a", status="warn", measured="9", expected="near 3", cause="why", value=float("nan")
    )
    found = Preflight(checks=(check, replace(check, status="ok")), n_documents=1, n_tokens=2)
    assert (found.status, found.warnings, found.stops) == ("warn", (check,), ())
    assert found.to_dict()["checks"][0]["value"] is None
    assert check.sentence() == "L0 of a is 9, expected near 3: why"
    assert replace(check, expected="–").sentence() == "L0 of a is 9: why"
    assert Preflight(checks=(), n_documents=0, n_tokens=0).status == "ok"
