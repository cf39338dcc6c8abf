"""`darkmatter decompose` on a model, end to end: SAEs trained, exported, read back, decomposed, planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darkmatter.adapters import ModelActivations, load_model, model_activations
from darkmatter.adapters.paper_sums import paper_split
from darkmatter.adapters.positions import PositionPolicy
from darkmatter.adapters.protocol import paper_protocol
from darkmatter.groups import pass_bytes
from darkmatter.sae import load_sae
from tests.cli_models import (
    CONTEXT,
    FIXTURE,
    FOLDS,
    TEXTS,
    TWO_FIT,
    Zoo,
    decompose,
    good,
    read,
    refused,
    same,
    without,
)
from tests.test_adapters_protocol import agree, transcription

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    pytest.importorskip("transformers", reason="needs the `models` extra (transformers)")
    return Zoo.train(tmp_path_factory.mktemp("zoo"), "top", "jump", "mlp", "heads")


@pytest.fixture(scope="module")
def one_pass(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of three SAEs at one site, which others must agree with."""
    out = tmp_path_factory.mktemp("one") / "out"
    decompose(out, *zoo.on("resid_post:1"), *zoo.three())
    return out


# families, sites


def test_one_sae_in_three_formats_gives_one_report(zoo: Zoo, tmp_path: Path) -> None:
    forms = zoo.saes("ours=jump", "lens=jump/saelens", "scope=jump/gemmascope")
    report = decompose(tmp_path, *zoo.on("resid_post:1"), *forms, preflight=True)
    assert set(report) >= {"saes", "source", "preflight", "protocol"} and "paper" not in report
    ours = report["saes"]["ours"]
    assert (ours["n_groups"], ours["d_model"]) == (len(TEXTS), 96) and not ours["warnings"]
    assert 0.1 < ours["fvu"]["value"] < 0.6 and 0.02 < ours["fvu_nonlinear"]["value"] < ours["fvu"]["value"]
    for name in ("lens", "scope"):
        same(without(report["saes"][name], "name", "replicates"), without(ours, "name", "replicates"), 1e-6)
        pair = ours["replicates"][name]
        assert abs(pair["unshared"]["value"]) < 1e-6 and pair["correlation"]["value"] == pytest.approx(1, abs=1e-6)
        assert pair["shared"]["value"] == pytest.approx(ours["fvu_nonlinear"]["value"], rel=1e-6)
    said = report["source"]["saes"]
    assert {name: facts["family"] for name, facts in said.items()} == {
        "ours": "darkmatter", "lens": "saelens", "scope": "gemmascope",
    }  # fmt: skip
    assert (said["lens"]["site"], said["lens"]["model"]) == ("resid_post:1", "tiny-gemma2")
    (checks,) = report["preflight"]
    assert (checks["status"], checks["forced"]) == ("ok", False)
    measured = {(check["subject"], check["name"]): check for check in checks["checks"]}
    assert measured["resid_post:1", "identity splice"]["measured"] == "the clean loss, bit for bit"
    assert measured["ours", "FVU"]["value"] == pytest.approx(ours["fvu"]["value"], rel=0.1)


@pytest.fixture(scope="module")
def three_sites(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("sites") / "out"
    where = zoo.on("resid_post:1", "mlp_out:1", "attn_z:2")
    return decompose(out, *where, *zoo.saes("heads", "top", "mlp", "lens=jump/saelens"), preflight=True)


def test_three_sites_in_one_pass_equal_three_runs(zoo: Zoo, tmp_path: Path, three_sites: dict[str, Any]) -> None:
    found = three_sites["saes"]
    alone = {"resid_post:1": ("top", "lens=jump/saelens"), "mlp_out:1": ("mlp",), "attn_z:2": ("heads",)}
    assert set(found) == {"resid_post:1/top", "resid_post:1/lens", "mlp_out:1/mlp", "attn_z:2/heads"}
    assert {site: set(notes) for site, notes in three_sites["source"]["saes"].items()} == {
        "resid_post:1": {"top", "lens"}, "mlp_out:1": {"mlp"}, "attn_z:2": {"heads"},
    }  # fmt: skip
    assert three_sites["source"]["d_model"] == {"resid_post:1": 96, "mlp_out:1": 96, "attn_z:2": 128}
    for site, saes in alone.items():
        single = decompose(tmp_path / site[:3], *zoo.on(site), *zoo.saes(*saes))
        for name, result in single["saes"].items():
            many = found[f"{site}/{name}"]
            assert many["name"] == f"{site}/{name}"
            renamed = {f"{site}/{other}": pair for other, pair in result["replicates"].items()}
            same(without(many, "name"), {**without(result, "name"), "replicates": renamed}, 1e-9)
    assert three_sites["preflight"][0]["status"] == "ok"


def test_a_site_that_is_said_comes_before_the_advertised_one(
    zoo: Zoo, tmp_path: Path, three_sites: dict[str, Any]
) -> None:
    # resid_pre:2 and resid_post:1 are one place: the first must be said, or the second gets the SAE
    where = zoo.on("resid_post:1", "mlp_out:1", "resid_pre:2")
    names = zoo.saes("top", "mlp", "scope=jump/gemmascope")
    report = decompose(tmp_path, *where, *names, "--sae-site", "top=mlp_out:1", "--sae-site", "scope=resid_pre:2",
                       "--sae-site", "mlp=resid_post:1")  # fmt: skip
    assert set(report["saes"]) == {"mlp_out:1/top", "resid_post:1/mlp", "resid_pre:2/scope"}
    kept, wanted = report["saes"]["resid_pre:2/scope"], three_sites["saes"]["resid_post:1/lens"]
    same(without(kept, "name", "replicates"), without(wanted, "name", "replicates"), 1e-6)
    right = three_sites["saes"]["resid_post:1/top"]["fvu"]["value"]
    assert report["saes"]["mlp_out:1/top"]["fvu"]["value"] > 2 * right  # the wrong place, as asked


def test_one_place_by_another_name_is_the_advertised_one(zoo: Zoo, tmp_path: Path) -> None:
    report = decompose(tmp_path, *zoo.on("blocks.2.hook_resid_pre", "attn_z:2"), *zoo.saes("top", "heads"))
    assert set(report["saes"]) == {"resid_pre:2/top", "attn_z:2/heads"}


# many SAEs


def test_groups_that_fit_the_memory_equal_one_pass(zoo: Zoo, tmp_path: Path, one_pass: Path) -> None:
    whole = read(one_pass)["saes"]
    options = ("--memory", f"{TWO_FIT / 1e6}MB", "--folds", FOLDS, "--no-preflight", "--out", tmp_path)
    result = good("decompose", *zoo.on("resid_post:1"), *zoo.three(), *options)
    report, shown = read(tmp_path), " ".join(result.stdout.split())
    assert list(report["saes"]) == list(whole) == ["top", "lens", "scope"]
    groups = (("top",), ("lens", "scope"))
    for group in groups:
        for name in group:
            found = report["saes"][name]
            assert set(found["replicates"]) == set(group) - {name}
            pairs = {other: whole[name]["replicates"][other] for other in found["replicates"]}
            same(without(found, "warnings"), {**without(whole[name], "warnings"), "replicates": pairs}, 1e-9)
            (warning,) = found["warnings"]
            others = [other for other in whole if other not in group]
            assert warning == (
                f"{', '.join(group)}: compared with each other (T8) but not with {', '.join(others)}, which were "
                "decomposed in other groups: give more memory to compare them."
            )
            assert f"Warning: {warning}" in shown
    assert "lens | scope" in shown and "top | lens" not in shown
    assert report["source"] == read(one_pass)["source"]
    assert not (tmp_path / "checkpoint").exists()
    for enough in ("1TB", str(pass_bytes(96, 3, FOLDS))):
        again = decompose(tmp_path / enough, *zoo.on("resid_post:1"), *zoo.three(), "--memory", enough)
        assert again["saes"] == whole


def test_saes_by_a_pattern(zoo: Zoo, tmp_path: Path, one_pass: Path) -> None:
    layout = tmp_path / "gemma-scope-2b-pt-res" / "layer_1" / "width_128"
    for name in ("average_l0_14", "average_l0_15"):
        (layout / name).mkdir(parents=True)
        (layout / name / "params.npz").write_bytes((zoo.folder / "jump" / "gemmascope" / "params.npz").read_bytes())
    pattern = tmp_path / "gemma-scope-2b-pt-res" / "layer_1" / "width_*" / "average_l0_*"
    report = decompose(tmp_path / "out", *zoo.on("resid_post:1"), *zoo.saes("top"), "--sae-glob", pattern)
    assert list(report["saes"]) == ["top", "width_128/average_l0_14", "width_128/average_l0_15"]
    said = report["source"]["saes"]["width_128/average_l0_15"]
    assert (said["site"], said["l0"], said["family"]) == ("resid_post:1", 15.0, "gemmascope")
    found, wanted = report["saes"]["width_128/average_l0_14"], read(one_pass)["saes"]["scope"]
    same(without(found, "name", "replicates"), without(wanted, "name", "replicates"), 1e-9)


# stored activations


def test_a_cache_gives_what_the_run_that_wrote_it_gave(zoo: Zoo, tmp_path: Path, one_pass: Path) -> None:
    cache, direct = tmp_path / "cache", read(one_pass)["saes"]
    written = decompose(tmp_path / "a", *zoo.on("resid_post:1"), *zoo.three(), "--write-cache", cache)
    stored = decompose(tmp_path / "b", "--cache", cache, *zoo.three())
    assert written["saes"] == stored["saes"]
    maps = [(tmp_path / run / "linear_maps.safetensors").read_bytes() for run in "ab"]
    assert maps[0] == maps[1]
    assert stored["source"]["model"] == "tiny-gemma2" and stored["source"]["saes"] == written["source"]["saes"]
    for name, result in direct.items():
        for quantity in ("fvu", "fvu_nonlinear", "linear_share"):
            near, exact = stored["saes"][name][quantity]["value"], result[quantity]["value"]
            assert near != exact and near == pytest.approx(exact, rel=2e-3), (name, quantity)
    # the same command again reads the finished cache, runs no model, and says the same
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelActivations, "read", lambda *_: pytest.fail("the model was run"))
        decompose(tmp_path / "c", *zoo.on("resid_post:1"), *zoo.three(), "--write-cache", cache)
    assert (tmp_path / "c" / "report.json").read_bytes() == (tmp_path / "a" / "report.json").read_bytes()
    grouped = decompose(tmp_path / "d", "--cache", cache, *zoo.three(), "--memory", TWO_FIT)
    same(without(grouped["saes"]["scope"], "warnings", "replicates"),
         without(stored["saes"]["scope"], "warnings", "replicates"), 1e-9)  # fmt: skip
    assert set(grouped["source"]["saes"]) == {"top", "lens", "scope"}
    line = refused("decompose", "--cache", cache, *zoo.saes("heads"), "--out", tmp_path / "e")
    assert line.startswith("SAE 'heads' has d_model 128, but resid_post:1 of tiny-gemma2 has 96")
    assert not (tmp_path / "e").exists()


# tokens, protocols, plans


def test_token_ids_equal_the_text_they_came_from(
    zoo: Zoo, tmp_path: Path, one_pass: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_model(FIXTURE).tokenizer
    rows = np.full((len(TEXTS), CONTEXT), -1, dtype=np.int32)
    for row, text in zip(rows, TEXTS, strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]][:CONTEXT]
        row[: len(ids)] = ids
    np.save(tmp_path / "ids.npy", rows)
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):  # no tokenizer
        (model / name).write_bytes((FIXTURE / name).read_bytes())
    where = ("--model", model, "--site", "resid_post:1", "--tokens", tmp_path / "ids.npy", "--pad-id", -1)
    report = decompose(tmp_path / "out", *where, *zoo.three(), preflight=True)
    assert report["saes"] == read(one_pass)["saes"]
    assert report["source"]["tokenizer"] == "none: token ids were given"


def test_the_papers_protocol_prints_and_keeps_the_authors_numbers(zoo: Zoo, tmp_path: Path) -> None:
    documents, skip = 70, 20
    short = ("--protocol", "paper", "--min-length", CONTEXT, "--skip-first", skip, "--max-documents", documents)
    options = (*zoo.on("resid_post:1"), *zoo.saes("top", "jump"), *short, "--folds", FOLDS, "--no-preflight")
    shown = good("decompose", *options, "--out", tmp_path)
    report = read(tmp_path)
    protocol = report["protocol"]
    assert (protocol["name"], protocol["bos"], protocol["positions"]["drop_special"]) == ("paper", "prepend", False)

    policy = PositionPolicy(skip_first=skip, skip_last=1, drop_special=False)
    stream = model_activations(load_model(FIXTURE), "resid_post:1", TEXTS, context_length=CONTEXT, min_length=CONTEXT,
                               max_documents=documents, positions=policy)  # fmt: skip
    x = np.concatenate([batch.x.numpy() for batch in stream])
    n = documents * (CONTEXT - 1 - skip)
    fitted = round(n * 150_000 / (300 * 823))
    assert len(x) == report["source"]["n_tokens"] == n
    assert f"Warning: {n:,} tokens are fewer than the paper's 246,900: {fitted:,} are fitted on." in shown.stderr
    for name in ("top", "jump"):
        sae = load_sae(zoo.folder / name)
        recon = np.concatenate([sae(batch.x).numpy() for batch in stream])
        wanted = paper_protocol(x, recon, seed=0, train_tokens=fitted)
        stored = report["paper"][name]
        for quantity in ("fvu", "r2_mean_over_coordinates", "fvu_nonlinear"):
            assert stored[quantity] == pytest.approx(getattr(wanted, quantity), rel=1e-9)
        assert (stored["n_train"], stored["n_test"], stored["n_tokens"]) == (fitted, n - fitted, n)
        split = paper_split(n, seed=0, train_tokens=fitted)
        agree(wanted, transcription(x.astype(np.float64), recon.astype(np.float64), split), 1e-6)
        assert f"{wanted.r2_mean_over_coordinates:.3f}" in shown.stdout
    assert "by the authors' definitions (--protocol paper)" in shown.stdout


def test_the_papers_protocol_with_a_filter_on_norms(zoo: Zoo, tmp_path: Path) -> None:
    options = ("--protocol", "paper", "--min-length", 1, "--skip-first", 1, "--norm-filter", 1.2)
    report = decompose(tmp_path, *zoo.on("resid_post:1"), *zoo.saes("top"), *options)
    assert report["paper"]["top"]["n_tokens"] == report["saes"]["top"]["n_tokens"] < report["source"]["n_tokens"]


def test_a_plan_from_a_report_of_a_model(one_pass: Path) -> None:
    plans = json.loads(good("tokens", one_pass, "--half-width", "1%", "--json").stdout)
    assert set(plans) == {"top", "lens", "scope"}
    pilot = read(one_pass)["saes"]["top"]
    assert plans["top"]["tokens"] > pilot["n_tokens"]  # 1 % is narrower than the pilot's interval
    shown = good(
        "tokens", one_pass / "report.json", "--quantity", "unshared:lens", "--sae", "top", "--half-width", "5%"
    )
    assert "tokens" in shown.stdout and not shown.stderr
