"""A model's activations, cached and decomposed from the cache: what the direct pass gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from darkmatter import decompose
from darkmatter.adapters import ModelSource, load_model, model_activations
from darkmatter.adapters.activations import ModelActivations
from darkmatter.adapters.caches import CachedSource, cached_activations, write_cache, write_site_caches
from darkmatter.errors import InputError
from tests.cache_streams import joined

pytest.importorskip("transformers", reason="needs the models extra")
pytestmark = pytest.mark.models

MODEL = Path(__file__).parent / "fixtures" / "tiny-gemma2"
TEXT = [
    f"Once there was a cat number {i} who liked the {'red' if i % 2 else 'blue'} ball very much." for i in range(60)
]


@pytest.fixture(scope="module")
def activations() -> ModelActivations:
    return model_activations(load_model(MODEL), "resid_post:2", TEXT, context_length=16, text="cats")


def half(x: torch.Tensor) -> torch.Tensor:
    """A stand-in for an SAE: what it keeps is neither linear nor everything."""
    return torch.where(x > x.mean(dim=1, keepdim=True), 0.9 * x, 0.3 * x)


def test_a_decomposition_from_the_cache_is_that_of_the_model(activations: ModelActivations, tmp_path: Path) -> None:
    write_cache(activations, tmp_path / "exact", dtype="float32", shard_tokens=200)
    cache = cached_activations(tmp_path / "exact", batch_size=100)
    wanted, found = joined(activations), joined(cache)
    assert torch.equal(found["x"], wanted["x"])
    for column in ("groups", "positions", "token_ids"):
        assert np.array_equal(found[column], wanted[column])
    direct = decompose(ModelSource(activations=activations, saes={"a": half}), folds=5)
    cached = decompose(CachedSource(cache, {"a": half}), folds=5)
    assert cached.n_tokens == direct.n_tokens
    assert cached.fvu.value == pytest.approx(direct.fvu.value, rel=1e-10)
    assert cached.fvu_nonlinear.value == pytest.approx(direct.fvu_nonlinear.value, rel=1e-8)
    write_cache(activations, tmp_path / "short")
    short = decompose(CachedSource(cached_activations(tmp_path / "short"), {"a": half}), folds=5)
    # x itself is rounded, to 8 bits: 2^-9 of each entry at most, so the SAE sees almost the same tokens
    assert short.fvu.value == pytest.approx(direct.fvu.value, rel=2e-3)
    assert short.fvu.value != cached.fvu.value


def test_the_sidecar_says_what_was_cached(activations: ModelActivations, tmp_path: Path) -> None:
    write_cache(activations, tmp_path / "c")
    source = json.loads((tmp_path / "c" / "cache.json").read_text())["source"]
    assert {
        key: source[key]
        for key in ("model", "revision", "site", "model_dtype", "context_length", "text", "skip_first", "drop_special")
    } == {
        "model": "tiny-gemma2",
        "revision": None,
        "site": "resid_post:2",
        "model_dtype": "float32",
        "context_length": 16,
        "text": "cats",
        "skip_first": 1,
        "drop_special": True,
    }
    assert {"bos", "tokenizer", "text_fingerprint", "token_fingerprint", "model_fingerprint"} <= set(source)
    other = model_activations(activations.loaded, "resid_post:1", TEXT, context_length=16, text="cats")
    with pytest.raises(InputError, match=r"holds another cache \(it differs in site\): choose another folder"):
        write_cache(other, tmp_path / "c")
    share = model_activations(activations.loaded, "resid_post:2", TEXT, context_length=16, rank=1, size=2)
    with pytest.raises(InputError, match="write the cache from one process"):
        write_cache(share, tmp_path / "d")


def test_several_sites_of_a_model_in_one_pass(activations: ModelActivations, tmp_path: Path) -> None:
    both = model_activations(
        activations.loaded, ["resid_post:1", "mlp_out:2"], TEXT[:20], context_length=16, text="cats"
    )
    caches = write_site_caches(both, tmp_path, dtype="float32")
    for site, cache in caches.items():
        alone = model_activations(activations.loaded, site, TEXT[:20], context_length=16, text="cats")
        assert torch.equal(joined(cache)["x"], joined(alone)["x"])
        assert cache.index.source == json.loads(json.dumps(dict(alone.description)))
    with pytest.raises(InputError, match="2 sites, expected one"):
        write_cache(both, tmp_path / "one")
