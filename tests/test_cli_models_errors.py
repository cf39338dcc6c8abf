"""`darkmatter decompose` on a model: the preflight, `inspect`, and what is refused in one line with nothing written."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tests.sae_families as f
from darkmatter.sae import SAE, save_sae
from tests.cli_models import FIXTURE, FOLDS, TEXTS, Argument, Zoo, decompose, good, invoke, refused
from tests.test_cli_errors import files

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    pytest.importorskip("transformers", reason="needs the `models` extra (transformers)")
    return Zoo.train(tmp_path_factory.mktemp("zoo"), "top", "heads", "deep")


@pytest.fixture(scope="module")
def saes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random SAEs of the widths of the model's sites, whose files say no site."""
    folder = tmp_path_factory.mktemp("saes")
    for name, d in (("resid", 96), ("heads", 128)):
        draw = f.draws()
        w = draw(d, 16, scale=0.1)
        save_sae(SAE(w, draw(16), w.T.contiguous(), draw(d), activation="topk", k=4), folder / name)
    (folder / "text.json").write_text(json.dumps(TEXTS[:40]))
    return folder


# preflight


def test_an_sae_of_another_layer_stops_the_run(zoo: Zoo, tmp_path: Path) -> None:
    command = ("decompose", *zoo.on("resid_post:0"), *zoo.saes("scope=deep/gemmascope"), "--folds", FOLDS)
    out = tmp_path / "out"
    result = invoke(*command, "--out", out)  # a Gemma Scope file does not say its site: only its fit tells
    assert result.exit_code == 2 and not result.stdout and not out.exists()
    *table, line = result.stderr.splitlines()
    assert line.startswith("error: preflight: FVU of scope is ") and line.endswith("(--force goes on all the same)")
    assert "at resid_post:3: it was trained there" in line and "identity splice" in "".join(table)
    assert result.stderr.count("error: ") == 1

    forced = invoke(*command, "--force", "--out", out)
    assert forced.exit_code == 0, forced.stderr
    report = json.loads((out / "report.json").read_text())
    assert [(checks["status"], checks["forced"]) for checks in report["preflight"]] == [("stop", True)]
    assert "; going on, as asked." in forced.stderr

    skipped = good(*command, "--no-preflight", "--out", tmp_path / "skipped")
    assert "preflight" not in skipped.stderr
    other = json.loads((tmp_path / "skipped" / "report.json").read_text())
    assert "preflight" not in other and other["saes"] == report["saes"]


def test_an_sae_whose_files_say_another_site(zoo: Zoo, tmp_path: Path) -> None:
    command = (*zoo.on("resid_pre:1"), *zoo.saes("top"))
    result = good("decompose", *command, "--force", "--folds", FOLDS, "--out", tmp_path / "a")
    shown = " ".join(result.stderr.split())
    assert shown.count("Warning: site of top is made for resid_post:1, expected resid_pre:1") == 1
    result = good("decompose", *command, "--no-preflight", "--folds", FOLDS, "--out", tmp_path / "b")
    line = "Warning: top was made for resid_post:1 according to its files, not for resid_pre:1.\n"
    assert result.stderr.startswith(line) and result.stderr.count("Warning") == 1


def test_json_is_all_there_is_on_stdout(zoo: Zoo, tmp_path: Path) -> None:
    report = decompose(tmp_path, *zoo.on("resid_post:1"), *zoo.saes("top"), preflight=True)
    assert {"saes", "source", "preflight", "protocol"} <= set(report)
    assert report["protocol"]["name"] == "default"
    assert report["source"]["n_documents"] == report["saes"]["top"]["n_groups"] == len(TEXTS)
    counts = ("n_documents_dropped", "n_dropped_first", "n_dropped_last", "n_dropped_special")
    assert [report["source"][name] for name in counts] == [0, len(TEXTS), 0, 0]


# inspect


FAMILIES: dict[str, Callable[[Path], Any]] = {
    "gemmascope": f.gemmascope,
    "saelens": f.saelens,
    "sparsify": f.sparsify,
    "dictionary_learning": f.dictionary_learning,
    "openai": f.openai,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_inspect_knows_every_family(tmp_path: Path, family: str) -> None:
    FAMILIES[family](tmp_path)
    place = tmp_path if family != "openai" else next(tmp_path.glob("*.pt"))
    asked = ("--family", family) if family == "openai" else ()
    said = json.loads(good("inspect", place, *asked, "--json").stdout)
    assert (said["family"], said["d_model"], said["d_sae"]) == (family, f.D, f.S)
    assert family in good("inspect", place, *asked).stdout


def test_inspect_a_model_and_an_sae_of_ours(zoo: Zoo) -> None:
    model = json.loads(good("inspect", FIXTURE, "--json").stdout)
    assert (model["model_type"], model["d_model"]) == ("gemma2", 96)
    widths = {entry["site"].partition(":")[0]: entry["width"] for entry in model["sites"]}
    assert widths == {"resid_post": 96, "resid_pre": 96, "mlp_out": 96, "attn_z": 128}
    said = json.loads(good("inspect", zoo.folder / "heads", "--json").stdout)
    assert (said["family"], said["site"], said["model"], said["l0"]) == ("darkmatter", "attn_z:2", "tiny-gemma2", 16.0)
    for place in (FIXTURE, zoo.folder / "heads", zoo.folder / "deep" / "gemmascope"):
        assert "96" in good("inspect", place).stdout or place.name == "heads"


# what is refused


def backup(folder: Path) -> Path:
    f.dictionary_learning(folder)
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save({"step": 10, "ae": state, "optimizer": {}}, folder / "ae.pt")
    return folder


def pickled(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "ae.pt").write_bytes(pickle.dumps({"encoder.weight": [0.0]}))
    return folder / "ae.pt"


BAD_SAES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "mid-training": (backup, "is a mid-training backup (it holds ae, optimizer, step), whose biases are not rescaled"),
    "pickle": (pickled, "a plain pickle, which is never opened"),
    "other pickle": (lambda folder: pickled(folder).rename(folder / "ae.pkl"), "ends in '.pkl', expected .safetensors"),
    "missing": (lambda folder: folder / "nowhere", "does not exist"),
    "nothing": (lambda folder: folder, "no SAE of a known family (found: nothing)"),
}


@pytest.mark.parametrize("case", BAD_SAES)
def test_saes_that_cannot_be_read(saes: Path, tmp_path: Path, case: str) -> None:
    make, words = BAD_SAES[case]
    (tmp_path / "sae").mkdir()
    place = make(tmp_path / "sae")
    where = ("--model", FIXTURE, "--site", "resid_post:1", "--text", saes / "text.json", "--sae", place)
    assert words in unchanged(tmp_path, "decompose", *where)


def unchanged(folder: Path, *command: Argument) -> str:
    """A command that must fail in one line and leave nothing behind."""
    before = files(folder)
    line = refused(*command, "--out", folder / "out")
    assert files(folder) == before and not (folder / "out").exists()
    return line


ONE = "--site resid_post:1 --sae {saes}/resid"
TWO = "--site resid_post:1 --site attn_z:2 --sae {saes}/resid --sae {saes}/heads"
SAID = f"{TWO} --sae-site resid=resid_post:1 --sae-site heads=attn_z:2"
BAD_OPTIONS: dict[str, tuple[str, str]] = {
    "width": (
        "--site resid_post:1 --sae {saes}/heads",
        "SAE 'heads' has d_model 128, but resid_post:1 of tiny-gemma2 has 96",
    ),
    "family": (
        f"{ONE} --family circuits",
        "family is 'circuits', expected one of gemmascope, saelens, sparsify, dictionary_learning, openai, darkmatter",
    ),
    "site": ("--site mlp_in:1 --sae {saes}/resid", "site kind 'mlp_in' is not supported"),
    "layer": ("--site resid_post:9 --sae {saes}/resid", "resid_post:9 does not exist: layers run from 0"),
    "memory": (f"{ONE} --memory banana", "memory is 'banana', expected a size such as 57GB or 800MB"),
    "no memory": (f"{ONE} --memory 0GB", "memory is '0GB', expected a size such as 57GB or 800MB"),
    "little memory": (f"{ONE} --memory 1kB", "the memory is 1e-06 GB, but the sums of one SAE of width 96 in 20 folds"),
    "memory of sites": (
        f"{SAID} --memory 1GB",
        "--memory is for one site, but 2 are given: start one run per --site",
    ),
    "cache of sites": (f"{SAID} --write-cache {{tmp}}/c", "--write-cache is for one site, but 2 are given"),
    "paper of sites": (f"{SAID} --protocol paper", "--protocol paper is for one site, but 2 are given"),
    "paper in groups": (f"{ONE} --protocol paper --memory 1GB", "--protocol paper needs all SAEs in one pass"),
    "protocol": (f"{ONE} --protocol nonsense", "protocol is 'nonsense', expected one of default, paper"),
    "bos": (f"{ONE} --bos nonsense", "bos is 'nonsense', expected one of prepend, auto, none"),
    "precision": (f"{ONE} --precision half", "precision is 'half', expected one of float64, split"),
    "dtype": (f"{ONE} --dtype int8", "dtype is 'int8', expected one of"),
    "no SAE at a site": (
        "--site resid_post:1 --site attn_z:2 --sae {saes}/resid --sae-site resid=resid_post:1",
        "no SAE is for attn_z:2: leave the site out, or add --sae-site NAME=attn_z:2",
    ),
    "no site of an SAE": (
        f"{TWO} --sae-site heads=attn_z:2",
        "resid: its files say no site, expected one of resid_post:1, attn_z:2: add --sae-site resid=SITE",
    ),
    "site of no SAE": (
        f"{SAID} --sae-site x=attn_z:2",
        "--sae-site 'x=attn_z:2', expected NAME=SITE with one of resid, heads and one of resid_post:1, attn_z:2",
    ),
    "site not read": (f"{SAID} --sae-site resid=mlp_out:1", "--sae-site 'resid=mlp_out:1', expected NAME=SITE with"),
    "half a pair": (f"{SAID} --sae-site resid", "--sae-site 'resid', expected NAME=SITE with one of resid, heads"),
    "no SAE": ("--site resid_post:1", "no SAE is given, expected --sae or --sae-glob"),
    "nothing fits": ("--site resid_post:1 --sae-glob {saes}/x*", "nothing fits"),
    "no pattern": ("--site resid_post:1 --sae-glob {saes}/resid", "has no wildcard, expected a pattern"),
    "one name twice": (f"{ONE} --sae-glob {{saes}}/re*d", "--sae and --sae-glob both name 'resid'"),
    "short documents": (
        f"{ONE} --context-length 512 --skip-first 511",
        "none of 40 documents has a position that counts",
    ),
    "no tokens": (f"{ONE} --skip-first 128", "skip_first is 128"),
    "long context": (f"{ONE} --context-length 999999", "context_length is 999999, expected at most"),
    "both texts": (f"{ONE} --tokens {{tmp}}/ids.npy", "expected either a text (--text) or token ids (--tokens)"),
    "norm filter": (f"{ONE} --norm-filter -1", "norm_filter is -1"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_options_that_cannot_be(saes: Path, tmp_path: Path, case: str) -> None:
    options, words = BAD_OPTIONS[case]
    given = options.format(saes=saes, tmp=tmp_path).split()
    where = ("--model", FIXTURE, "--text", saes / "text.json", *given)
    assert words in unchanged(tmp_path, "decompose", *where)


def test_a_wrong_width_is_one_line_where_there_is_more_to_say(zoo: Zoo, tmp_path: Path) -> None:
    words = "SAE 'heads' has d_model 128, but resid_post:1 of tiny-gemma2 has 96"
    where = ("decompose", *zoo.on("resid_post:1"), *zoo.saes("heads"))  # which was made for another site, too
    for checks in ((), ("--no-preflight",)):
        assert words in unchanged(tmp_path, *where, *checks)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (np.zeros((3, 4)), (), "token ids are float64, expected integers"),
        (np.full((3, 4), 10**6), (), "1000000"),
        (np.full((3, 4), -1), (), "id below 0"),
        (np.full(4, 5), (), "expected (n_documents, length)"),
        (np.full((3, 4), 5), ("--skip-first", 4), "4"),
    ],
)
def test_token_ids_that_cannot_be(
    saes: Path, tmp_path: Path, rows: Any, options: tuple[Argument, ...], words: str
) -> None:
    np.save(tmp_path / "ids.npy", rows)
    where = ("--model", FIXTURE, "--site", "resid_post:1", "--sae", saes / "resid", "--tokens", tmp_path / "ids.npy")
    assert words in unchanged(tmp_path, "decompose", *where, *options)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0"}, "the environment has RANK=0 and WORLD_SIZE=None, expected 0 <= RANK < WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "the environment has RANK=None and WORLD_SIZE=2, expected 0 <= RANK < WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "2 processes, but the environment has no MASTER_ADDR and no MASTER_PORT"),
    ],
)
@pytest.mark.parametrize("source", ["model", "cache", "arrays"])
def test_an_environment_that_cannot_be(
    saes: Path,
    tmp_path: Path,
    source: str,
    environment: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    options: dict[str, tuple[Argument, ...]] = {
        "model": ("--model", FIXTURE, "--text", saes / "text.json", *ONE.format(saes=saes).split()),
        "cache": ("--cache", tmp_path, "--sae", saes / "resid"),
        "arrays": ("--acts", tmp_path / "x.npy", "--recon", tmp_path / "y.npy"),
    }
    if source != "model" and len(environment) == 2:
        option = {"cache": "--cache", "arrays": "--acts"}[source]
        words = f"{option} is for one process, but there are 2: start without torchrun"
    assert words in unchanged(tmp_path, "decompose", *options[source])


def test_stored_activations_of_another_kind(saes: Path, tmp_path: Path) -> None:
    sae = ("--sae", saes / "resid")
    assert "nowhere" in unchanged(tmp_path, "decompose", "--cache", tmp_path / "nowhere", *sae)
    words = "has no meaning with --cache: leave it out"
    for option in (("--write-cache", tmp_path / "c"), ("--sae-site", "resid=attn_z:2")):
        assert words in unchanged(tmp_path, "decompose", "--cache", tmp_path, *sae, *option)
