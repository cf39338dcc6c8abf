"""docs/scale.md: its tables are what the arithmetic gives, its counts are the product's, its script picks well."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from benchmarks import run_cost
from benchmarks.gpu_pipeline import missed
from benchmarks.run_cost import FOLDS, GEMMA_2_2B, GEMMA_2_9B, sums_bytes
from benchmarks.scale_page import DEVICES, passes, tables
from darkmatter.folds import FoldAccumulator
from darkmatter.moments import Layout
from darkmatter.sae import SAE

PAGE = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["per token", "overhead", "memory", "whole run", "dealt"])
def test_tables_are_those_of_the_program(name: str) -> None:
    assert tables()[name] in PAGE


def test_every_table_is_checked() -> None:
    computed = {line for table in tables().values() for line in table.splitlines()}
    others = [line for line in PAGE.splitlines() if line.startswith("|") and line not in computed]
    assert others[0] == "| there is | do |" and not any(re.search(r"\| *[\d.]+ *\|", line) for line in others)


def test_numbers_in_the_text() -> None:
    for number in (
        f"{2 * GEMMA_2_9B.weights / 1e9:.1f} GB of weights",
        f"{10 * GEMMA_2_9B.d_model:,} at $d = 3584$",
        f"{run_cost.cache_bytes(3584, 10**8) / 1e9:.0f} GB; of 10 million, "
        f"{run_cost.cache_bytes(3584, 10**7) / 1e9:.0f} GB",
        f"1 million is {10**6 // 3584 + 1} per direction",
    ):
        assert number in PAGE
    for device in DEVICES:
        assert f"{device.bfloat16:g}" in PAGE and f"{device.bandwidth:g}" in PAGE


@pytest.mark.models
def test_sizes_are_those_of_the_models() -> None:
    transformers = pytest.importorskip("transformers")
    for shape, billions in ((GEMMA_2_2B, 2.61), (GEMMA_2_9B, 9.24)):
        config = transformers.Gemma2Config(
            num_hidden_layers=shape.layers,
            hidden_size=shape.d_model,
            intermediate_size=shape.intermediate,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            vocab_size=shape.vocabulary,
        )
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
        assert shape.weights == matrices
        assert round(matrices / 1e9, 2) == billions


def test_memory_is_that_of_the_accumulator_and_the_record() -> None:
    d, saes = 24, 3
    layout = Layout(d, ("a", "b", "c"))
    held = 0
    for fold in FoldAccumulator(layout, folds=FOLDS)._folds:
        held += 8 * (fold._state.cross.numel() + fold._block.numel())
    assert held == sums_bytes(d, saes)
    sae = SAE(torch.zeros(d, 40), torch.zeros(40), torch.zeros(40, d), torch.zeros(d), activation="relu")
    stored = sum(4 * tensor.numel() for tensor in sae.tensors().values()) + 4 * 40  # and a threshold per latent
    assert stored == run_cost.sae_bytes(d, 40)


def test_every_sae_is_dealt_once_and_fits() -> None:
    for memory in (10e9, 28e9, 57e9, 1e12):
        plan = passes(memory)
        assert sum(saes for group in plan for _, saes in group) == 60
        assert {layer for group in plan for layer, _ in group} == set(range(42))
        assert all(sum(sums_bytes(3584, saes) for _, saes in group) < memory for group in plan)
    assert len(passes(1e12)) == 1
    with pytest.raises(ValueError, match=r"^6 GB hold no SAE$"):
        passes(6e9)


def test_the_script_picks_the_sae_nearest_60(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [
        "layer_10/width_16k/average_l0_30/params.npz",
        "layer_10/width_16k/average_l0_66/params.npz",
        "layer_10/width_131k/average_l0_60/params.npz",
        "layer_2/width_16k/average_l0_141/params.npz",
        "embedding/width_4k/average_l0_6/params.npz",
    ]
    hub = types.ModuleType("huggingface_hub")
    monkeypatch.setattr(hub, "list_repo_files", lambda repo: listed, raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    script = re.search(r"```python\n(# pick\.py.*?)```", PAGE, flags=re.DOTALL)
    assert script is not None
    exec(compile(script[1], "pick.py", "exec"), {})
    scope = "google/gemma-scope-9b-pt-res"
    assert capsys.readouterr().out.splitlines() == [
        f"--site resid_post:2 --sae L2={scope}/layer_2/width_16k/average_l0_141",
        f"--site resid_post:10 --sae L10={scope}/layer_10/width_16k/average_l0_66",
    ]


def test_the_benchmark_fails_where_a_gpu_misses_a_bound() -> None:
    good = {"latents": 8, "overhead": 0.05, "further_sae_in_products": 1.2}
    bad = {"latents": 16, "overhead": 0.051, "further_sae_in_products": 1.3}
    assert missed({"gpu": True, "widths": [good]}) == []
    assert missed({"gpu": True, "widths": [good, bad]}) == [
        "16 latents: overhead is 0.051, expected at most 0.05",
        "16 latents: further SAE, in products is 1.3, expected at most 1.2",
    ]
    assert missed({"gpu": False, "widths": [bad]}) == []
