"""A real language model end to end: train an SAE, decompose its error, and check against a plain two-pass script."""

from __future__ import annotations

import json
import math
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from darkmatter.adapters import ModelSitesSource, load_model, model_activations, token_rows
from darkmatter.batch import OneSite, SitesSource
from darkmatter.decomposition import decompose_many
from darkmatter.folds import fold_of
from tests.test_cli import TINY, good, invoke

pytestmark = pytest.mark.models
FIXTURE = Path(__file__).parent / "fixtures" / "tiny-gemma2"
SHARED = Path(__file__).parents[2] / "shared" / "models"
SITE, LAYER, CONTEXT, BATCH = "resid_post:2", 2, 128, 16
AGREE = 1e-6


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Paragraphs of Python's own help: real English, in the standard library."""
    paragraphs = [part for key in sorted(topics.topics) for part in topics.topics[key].split("\n\n")]
    path = tmp_path_factory.mktemp("text") / "help.json"
    path.write_text(json.dumps([part for part in paragraphs if len(part) > 200][:240]))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("sae") / "sae"
    options = ("--latents", 64, "--k", 8, "--train-tokens", 16_384, "--out", out)
    shown = good("train-sae", "--model", FIXTURE, "--site", SITE, "--text", text, *options)
    assert "Trained 64 latents, k = 8, on 16,384 tokens" in shown.stdout
    return out


# the plain script: everything in memory, nothing from the package but the fold of a document


def activations(model_folder: Path, text_path: Path, layer: int) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """Residual stream after a block, by a whole forward pass and a hook, with the document of every token."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_folder, attn_implementation="eager", dtype=torch.float32, local_files_only=True
    ).eval()
    seen: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).detach().clone())

    handle = model.model.layers[layer].register_forward_hook(keep)
    rows, groups = [], []
    documents = json.loads(text_path.read_text())
    for low in range(0, len(documents), BATCH):
        batch = documents[low : low + BATCH]
        ids = [
            [tokenizer.bos_token_id, *tokenizer(document, add_special_tokens=False)["input_ids"]][:CONTEXT]
            for document in batch
        ]
        longest = max(map(len, ids))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        with torch.no_grad():
            model(input_ids=padded, attention_mask=mask, use_cache=False)
        hidden = seen.pop()
        for place, row in enumerate(ids):
            rows.append(hidden[place, 1 : len(row)])  # without BOS
            groups += [low + place] * (len(row) - 1)
    handle.remove()
    return torch.cat(rows), np.array(groups, dtype=np.int64)


def reconstruction(folder: Path, x: Tensor) -> Tensor:
    weights, k = load_file(folder / "sae.safetensors"), json.loads((folder / "cfg.json").read_text())["k"]
    pre = torch.addmm(weights["b_enc"], x - weights["b_pre"], weights["W_enc"])
    top = pre.topk(k, dim=1)
    codes = torch.zeros_like(pre).scatter_(1, top.indices, top.values.relu())
    return codes @ weights["W_dec"] + weights["b_dec"]


def two_passes(x: Tensor, recon: Tensor, groups: npt.NDArray[np.int64], folds: int) -> dict[str, float]:
    """Refit e on x by lstsq for every fold left out; S in-sample, C out of fold, all sums over all coordinates."""
    x, e = x.double(), x.double() - recon.double()
    fold = torch.from_numpy(fold_of(groups, folds))

    def variance(a: Tensor) -> float:
        return float((a - a.mean(dim=0)).square().sum(dim=1).mean())

    inside = outside = 0.0
    n_inside = 0
    for k in range(folds):
        train, test = fold != k, fold == k
        if not test.any():
            continue
        design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
        weight = torch.linalg.lstsq(design[train], e[train], driver="gelsd").solution
        inside += float((e[train] - design[train] @ weight).square().sum())
        outside += float((e[test] - design[test] @ weight).square().sum())
        n_inside += int(train.sum())
    s, c = inside / n_inside / variance(x), outside / len(x) / variance(x)
    fvu = variance(e) / variance(x)
    nonlinear = math.sqrt(s * c)
    return {"fvu": fvu, "fvu_nonlinear": nonlinear, "insample": s, "heldout": c, "r2_error": 1 - nonlinear / fvu}


def agree(report: dict[str, Any], want: dict[str, float]) -> None:
    for name, value in want.items():
        got = report[name] if isinstance(report[name], float) else report[name]["value"]
        assert got == pytest.approx(value, rel=AGREE), name


# the tiny model that is part of the repository


def test_train_then_decompose_agrees_with_a_two_pass_script(trained: Path, text: Path, tmp_path: Path) -> None:
    options = ("--text", text, "--folds", 10, "--out", tmp_path, "--json")
    done = good("decompose", "--model", FIXTURE, "--site", SITE, "--sae", f"mine={trained}", *options)
    report = json.loads(done.stdout)
    x, groups = activations(FIXTURE, text, LAYER)
    result = report["saes"]["mine"]
    assert (result["n_tokens"], result["n_groups"], result["d_model"]) == (len(x), len(set(groups.tolist())), 96)
    agree(result, two_passes(x, reconstruction(trained, x), groups, 10))
    assert 0.05 < result["fvu"]["value"] < 1 and result["degenerate"] is None
    source = report["source"]
    assert (source["site"], source["bos"], source["skip_first"]) == (SITE, "prepended to every document", 1)
    assert source["saes"]["mine"]["training"]["config"]["d_sae"] == 64


def test_several_saes_share_one_pass(trained: Path, text: Path, tmp_path: Path) -> None:
    good(
        *("train-sae", "--model", FIXTURE, "--site", SITE, "--text", text, "--latents", 64, "--k", 8),
        *("--train-tokens", 16_384, "--seed", 1, "--out", tmp_path / "second"),
    )
    model = ("decompose", "--model", FIXTURE, "--site", SITE, "--text", text, "--folds", 10, "--max-tokens", 4000)
    pair = ("--sae", f"a={trained}", "--sae", f"b={tmp_path / 'second'}")
    both = json.loads(good(*model, *pair, "--out", tmp_path / "both", "--json").stdout)
    alone = json.loads(good(*model, *pair[2:], "--out", tmp_path / "alone", "--json").stdout)
    assert both["saes"]["b"]["n_tokens"] == 4000
    assert both["saes"]["b"]["fvu_nonlinear"]["value"] == pytest.approx(alone["saes"]["b"]["fvu_nonlinear"]["value"])
    unshared = both["saes"]["a"]["replicates"]["b"]["unshared"]["value"]
    assert 0 < unshared < both["saes"]["a"]["fvu_nonlinear"]["value"]


def refused(*args: str | Path | int) -> str:
    result = invoke(*args)
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return str(result.stderr)


def test_what_does_not_fit_the_model_is_refused(trained: Path, text: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out", ("--model", FIXTURE, "--text", text)
    site = ("--site", SITE)
    line = refused("decompose", *model, "--site", "resid_post:9", "--sae", trained, "--out", out)
    assert "resid_post:9 does not exist: layers run from 0" in line
    good(*TINY, "--out", tmp_path / "world")
    line = refused("decompose", *model, *site, "--sae", tmp_path / "world" / "sae", "--out", out)
    assert "d_model 16, but resid_post:2 of tiny-gemma2 has 96" in line
    line = refused("decompose", "--model", tmp_path / "none", "--text", text, *site, "--sae", trained, "--out", out)
    assert "is not a folder" in line
    line = refused(
        "decompose", "--model", FIXTURE, "--text", tmp_path / "no.txt", *site, "--sae", trained, "--out", out
    )
    assert "no.txt is not a file" in line
    assert "already holds an SAE" in refused("train-sae", *model, *site, "--out", trained)
    assert "is a file, expected a folder" in refused("train-sae", *model, *site, "--out", text)
    assert "k is 9, expected at most d_sae = 8" in refused(
        "train-sae", *model, *site, "--latents", 8, "--k", 9, "--out", out
    )
    assert not out.exists()


def test_training_again_gives_the_same_bytes(trained: Path, text: Path, tmp_path: Path) -> None:
    options = ("--latents", 64, "--k", 8, "--train-tokens", 16_384, "--out", tmp_path / "again")
    good("train-sae", "--model", FIXTURE, "--site", SITE, "--text", text, *options)
    for name in ("cfg.json", "sae.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes()


# several sites in one pass, in memory


def all_at_once(texts: list[str], length: int) -> tuple[dict[str, Tensor], npt.NDArray[np.int64], Tensor]:
    """Three sites by whole forward passes of one document each, with the document and id of every token but BOS."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(FIXTURE, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        FIXTURE, attn_implementation="eager", dtype=torch.float32, local_files_only=True
    ).eval()
    seen: dict[str, list[Tensor]] = {"resid_post:2": [], "mlp_out:1": [], "attn_z:3": []}
    layers = model.model.layers

    def keep(site: str, value: Any) -> None:
        seen[site].append((value[0] if isinstance(value, tuple) else value)[0, 1:].detach().clone())

    layers[2].register_forward_hook(lambda m, i, out: keep("resid_post:2", out))
    layers[1].post_feedforward_layernorm.register_forward_hook(lambda m, i, out: keep("mlp_out:1", out))
    layers[3].self_attn.o_proj.register_forward_pre_hook(lambda m, args: keep("attn_z:3", args))
    groups, ids = [], []
    for index, text in enumerate(texts):
        row = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]][:length]
        with torch.no_grad():
            model(input_ids=torch.tensor([row]), use_cache=False)
        groups += [index] * (len(row) - 1)
        ids += row[1:]
    return {site: torch.cat(rows) for site, rows in seen.items()}, np.array(groups, dtype=np.int64), torch.tensor(ids)


def crooked(d: int, seed: int) -> Any:
    """A reconstruction with linear, constant and nonlinear error."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.eye(d) * 0.8 + 0.1 * torch.randn(d, d, generator=generator) / d**0.5
    return lambda x: x @ weight + 0.1 * x.abs() + 0.05


@pytest.mark.parametrize("tokens", [False, True], ids=["text", "token ids"])
def test_three_sites_in_one_pass_agree_with_a_two_pass_script(text: Path, tokens: bool) -> None:
    texts = json.loads(text.read_text())[:120]
    reference, groups, ids = all_at_once(texts, 64)
    saes: dict[str, dict[str, Any]] = {
        site: {name: crooked(x.shape[1], seed) for seed, name in enumerate(("a", "b"))} for site, x in reference.items()
    }
    documents: Any = texts
    if tokens:
        rows = np.full((120, 64), -1)
        for index, row in enumerate(rows):
            own = ids[torch.from_numpy(groups == index)]
            row[: len(own) + 1] = [2, *own.tolist()]
        documents = token_rows(rows, pad_id=-1)
    loaded = load_model(FIXTURE)
    stream = model_activations(loaded, tuple(reference), documents, context_length=64, batch_docs=16)
    source = ModelSitesSource(stream, saes)
    assert isinstance(source, SitesSource)
    assert source.widths == {site: x.shape[1] for site, x in reference.items()}
    for site, x in reference.items():
        results = decompose_many(OneSite(source, site), folds=8)
        for name, sae in saes[site].items():
            report = results[name].to_dict()
            assert (report["n_tokens"], report["n_groups"]) == (len(groups), len(set(groups.tolist())))
            agree(report, two_passes(x, sae(x), groups, 8))
            assert 0.001 < report["fvu_nonlinear"]["value"] < report["fvu"]["value"]


# a trained model, where it is at hand


@pytest.mark.slow
def test_a_trained_model_agrees_with_a_two_pass_script(tmp_path: Path) -> None:
    model, stories = SHARED / "tiny-gemma2", SHARED / "text" / "tinystories_1000.json"
    if not (model.is_dir() and stories.is_file()):
        pytest.skip(f"needs {model.name} and {stories.name} in ../shared/models, which are not part of the repository")
    where = ("--model", model, "--site", SITE, "--text", stories)
    good("train-sae", *where, "--latents", 512, "--k", 16, "--train-tokens", 200_000, "--out", tmp_path / "sae")
    done = good("decompose", *where, "--sae", tmp_path / "sae", "--out", tmp_path / "out", "--json")
    result = json.loads(done.stdout)["saes"]["sae"]
    x, groups = activations(model, stories, LAYER)
    assert (result["n_tokens"], result["n_groups"]) == (len(x), 1000)
    agree(result, two_passes(x, reconstruction(tmp_path / "sae", x), groups, 20))
    assert result["fvu_nonlinear"]["high"] < result["fvu"]["low"] < 0.5
