"""Sites in tiny random models of every type in the table, against values computed by hand from their parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darkmatter.adapters.reading import capture, splice
from darkmatter.adapters.site_table import KINDS, TABLE
from darkmatter.adapters.sites import Site, find_blocks, parse_site, resolve_site
from darkmatter.errors import InputError

D, HEADS, LAYERS, VOCABULARY = 24, 4, 3, 40
pytestmark = pytest.mark.models

SIZES = {
    "hidden_size": D,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,  # wider than d / heads where the model allows it
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": D, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64, "vocab_size": VOCABULARY}
TYPES = sorted(set(TABLE) - {"gemma3"})  # gemma3 is gemma3_text inside a model that also sees


@pytest.fixture(scope="module")
def make() -> Any:
    transformers = pytest.importorskip("transformers")

    def build(kind: str) -> nn.Module:
        torch.manual_seed(0)
        if kind not in transformers.CONFIG_MAPPING:
            pytest.skip(f"transformers {transformers.__version__} has no {kind}")
        sizes = GPT2 if kind == "gpt2" else SIZES
        config = transformers.AutoConfig.for_model(kind, **sizes)
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():  # norms and biases start as ones and zeros, which would hide a wrong order
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        built: nn.Module = model.requires_grad_(False).eval()
        return built

    with torch.random.fork_rng():
        yield build


def inputs() -> dict[str, Tensor]:
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_against_its_own_parts(kind: str, make: Any) -> None:
    model = make(kind)
    sites = {name: Site(kind=name, layer=1) for name in KINDS} | {"before": Site(kind="resid_post", layer=0)}
    got = {name: capture(model, list(sites.values()), **inputs())[site] for name, site in sites.items()}
    hidden = model(**inputs(), output_hidden_states=True).hidden_states
    assert torch.equal(got["resid_pre"], hidden[1])
    assert torch.equal(got["resid_post"], hidden[2])
    assert torch.equal(got["before"], got["resid_pre"])
    output = model.get_submodule(resolve_site(model, sites["attn_z"]).name)
    attended = output(got["attn_z"])
    # the stream after the block is the stream before it, plus what attention and the MLP add
    normed = {"gemma2": "post_attention_layernorm", "gemma3_text": "post_attention_layernorm"}
    normed["olmo2"] = "post_attention_layernorm"
    if kind in normed:
        attended = getattr(find_blocks(model)[1], normed[kind])(attended)
    rebuilt = got["resid_pre"] + attended + got["mlp_out"]
    assert float((rebuilt - got["resid_post"]).abs().max()) < 1e-5 * float(got["resid_post"].abs().max())


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "llama"])
@pytest.mark.parametrize("name", KINDS)
def test_an_identity_splice_changes_nothing_and_another_one_does(kind: str, name: str, make: Any) -> None:
    model, site = make(kind), Site(kind=name, layer=1)
    clean = model(**inputs()).logits
    with splice(model, site, lambda x: x):
        assert torch.equal(model(**inputs()).logits, clean)
    seen: list[Tensor] = []

    def halve(x: Tensor) -> Tensor:
        seen.append(x)
        return x / 2

    with splice(model, site, halve):
        assert not torch.equal(model(**inputs()).logits, clean)
    assert torch.equal(seen[0], capture(model, [site], **inputs())[site])
    assert hooks(model) == 0
    with pytest.raises(InputError, match="the replacement at"), splice(model, site, lambda x: x[:, 1:]):
        model(**inputs())
    assert hooks(model) == 0


def test_several_sites_cost_one_pass_that_ends_after_the_last(make: Any) -> None:
    model = make("gemma2")
    calls = [0] * LAYERS

    def counter(layer: int) -> Any:
        def count(*_: Any) -> None:
            calls[layer] += 1

        return count

    handles = [block.register_forward_pre_hook(counter(i)) for i, block in enumerate(find_blocks(model))]
    sites = [parse_site(text) for text in ("mlp_out:1", "resid_post:0", "attn_z:1")]
    got = capture(model, sites, **inputs())
    assert list(got) == sites
    assert calls == [1, 1, 0]
    alone = [capture(model, [site], **inputs())[site] for site in sites]
    assert all(torch.equal(got[site], x) for site, x in zip(sites, alone, strict=True))
    for handle in handles:
        handle.remove()


def test_an_explicit_path_is_the_same_place(make: Any) -> None:
    model = make("llama")
    pairs = {
        "model.layers.1.self_attn.o_proj.input": "attn_z:1",
        "model.layers.1.output": "resid_post:1",
        "model.layers.1.input": "resid_pre:1",
        "model.layers.1.mlp.output": "mlp_out:1",
        "blocks.1.hook_resid_post": "resid_post:1",
        "blocks.1.hook_resid_pre": "resid_pre:1",
        "blocks.1.hook_mlp_out": "mlp_out:1",
        "blocks.1.attn.hook_z": "attn_z:1",
    }
    for one, other in pairs.items():
        a, b = (capture(model, [parse_site(text)], **inputs()).popitem()[1] for text in (one, other))
        assert torch.equal(a, b), one
        assert parse_site(str(parse_site(one))) == parse_site(one)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mlp_in:1", "'mlp_in' is not supported, expected one of resid_pre"),
        ("model.layers.1.mlp", "cannot be read, expected KIND:LAYER"),
        ("blocks.1.hook_resid_mid", "cannot be read"),
    ],
)
def test_unreadable_sites(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_site(text)


def test_what_does_not_exist_is_said_with_what_does(make: Any) -> None:
    model = make("gpt2")
    with pytest.raises(InputError, match=r"module 'transformer.layers.1' does not exist, expected one of wte, wpe"):
        resolve_site(model, parse_site("transformer.layers.1.output"))
    with pytest.raises(InputError, match="layers run from 0 to 2"):
        resolve_site(model, parse_site("mlp_out:3"))
    model.config.model_type = "newmodel"
    with pytest.raises(InputError, match=r"where mlp_out lies in a 'newmodel' model is not known .*gemma2"):
        resolve_site(model, parse_site("mlp_out:1"))
    assert resolve_site(model, parse_site("resid_post:1")).name == "transformer.h.1"
    model.config.model_type = "llama"
    with pytest.raises(InputError, match=r"attn_z:1 should be at transformer.h.1.self_attn.o_proj, which this"):
        resolve_site(model, parse_site("attn_z:1"))


def test_the_language_part_of_a_model_that_sees() -> None:
    class Seeing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config: Any = type("C", (), {"num_hidden_layers": 2})()
            self.vision_tower = nn.Module()
            self.vision_tower.layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(2))
            self.language_model = nn.Module()
            self.language_model.layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(2))

    model = Seeing()
    assert find_blocks(model) is model.language_model.layers
