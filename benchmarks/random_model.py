"""A Gemma 2 model and SAEs of random weights, at given sizes, and token ids for them to read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darkmatter.adapters import LoadedModel, ModelActivations, model_activations
from darkmatter.adapters.token_files import token_file
from darkmatter.sae import SAE

ACTIVE = 60
"""Latents per token that the thresholds of the random SAEs aim at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Sizes of one run.

    Attributes:
        name: What `--shape` calls it.
        config: Fields of a Gemma 2 configuration.
        layer: Block after which the residual stream is read.
        latents: Widths of the SAEs.
        context: Tokens per document, BOS included.
        batch_docs: Documents per forward pass.
        batches: Forward passes per round.
        product: Size of the matrix product by which the device is described.
    """

    name: str
    config: dict[str, Any] = field(repr=False)
    layer: int
    latents: tuple[int, ...]
    context: int
    batch_docs: int
    batches: int
    product: int


SETTINGS = {
    "gemma-2-9b": Setting(
        name="gemma-2-9b",
        config={
            "num_hidden_layers": 42,
            "hidden_size": 3584,
            "intermediate_size": 14_336,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "vocab_size": 256_000,
        },
        layer=20,
        latents=(16_384, 131_072),
        context=1024,
        batch_docs=8,
        batches=8,
        product=8192,
    ),
    "tiny": Setting(
        name="tiny",
        config={
            "num_hidden_layers": 4,
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "vocab_size": 1024,
        },
        layer=2,
        latents=(512, 2048),
        context=64,
        batch_docs=16,
        batches=2,
        product=512,
    ),
}


def random_model(setting: Setting, device: torch.device) -> LoadedModel:
    """Build a Gemma 2 model of random weights, in bfloat16, on the device itself."""
    import transformers

    config = transformers.Gemma2Config(**setting.config, attn_implementation="eager", pad_token_id=0)
    key = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    torch.manual_seed(0)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(config, **{key: torch.bfloat16})
    model.requires_grad_(False).eval()
    return LoadedModel(
        model=model,
        tokenizer=None,
        name=f"random {setting.name}",
        revision=None,
        dtype="bfloat16",
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        fingerprint="random",
    )


def random_sae(x: Tensor, latents: int, seed: int) -> SAE:
    """Build a JumpReLU SAE whose threshold leaves about `ACTIVE` latents per token of x."""
    generator = torch.Generator(x.device).manual_seed(seed)
    d = x.shape[1]
    rows = torch.randn(latents, d, generator=generator, device=x.device)
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    pre = x[:512] @ rows.T
    threshold = pre.topk(min(ACTIVE, latents // 4), dim=1).values[:, -1].median()
    zeros = torch.zeros(latents, device=x.device)
    return SAE(rows.T.contiguous(), zeros, rows, x.mean(dim=0), activation="jumprelu", threshold=threshold)


def open_tokens(setting: Setting, loaded: LoadedModel, folder: Path) -> ModelActivations:
    """Random token ids, a document to a row, through the product's own reader."""
    documents = setting.batch_docs * setting.batches
    ids = np.random.default_rng(0).integers(3, setting.config["vocab_size"], (documents, setting.context))
    ids[:, 0] = 2
    np.save(folder / "ids.npy", ids.astype(np.int32))
    return model_activations(
        loaded,
        f"resid_post:{setting.layer}",
        token_file(folder / "ids.npy"),
        batch_docs=setting.batch_docs,
    )
