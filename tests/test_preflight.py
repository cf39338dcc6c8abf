"""The preflight on the committed tiny model: healthy runs pass without a warning, every planted fault is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from darkmatter.adapters import LoadedModel, LoadedSae, ModelActivations, PositionPolicy, load_model, model_activations
from darkmatter.adapters.next_tokens import targets
from darkmatter.adapters.preflight import Check, Preflight, diagnosis, losses, preflight, tokens
from darkmatter.adapters.preflight import saes as judging
from darkmatter.adapters.preflight.pilot import read_pilot
from darkmatter.adapters.preflight.tokens import bos_gain
from darkmatter.adapters.reading import splice
from darkmatter.adapters.token_files import token_rows
from darkmatter.adapters.training import training_activations
from darkmatter.errors import InputError
from darkmatter.sae import SAE, TrainConfig, train_sae

pytestmark = pytest.mark.models
FIXTURE = Path(__file__).parent / "fixtures" / "tiny-gemma2"
TEXT = [part for key in sorted(topics.topics) for part in topics.topics[key].split("\n\n") if len(part) > 200][:160]
BOS = 2

HEALTHY: tuple[tuple[str, str], ...] = (
    ("resid_post:0", "topk"),
    ("resid_post:2", "jumprelu"),
    ("resid_pre:3", "relu"),
    ("resid_post:3", "topk"),
    ("mlp_out:1", "batchtopk"),
    ("attn_z:2", "gated"),
)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    pytest.importorskip("transformers", reason="needs the `models` extra (transformers)")
    return load_model(FIXTURE)


@pytest.fixture(scope="module")
def saes(loaded: LoadedModel) -> dict[str, SAE]:
    found = {}
    for site, architecture in HEALTHY:
        sparsity: dict[str, Any] = {"k": 8} if "topk" in architecture else {"l0": 8.0}
        config = TrainConfig(
            d_sae=64,
            n_tokens=12_288,
            batch_size=1024,
            architecture=architecture,  # type: ignore[arg-type]
            **sparsity,
        )
        activations = model_activations(loaded, site, TEXT)
        found[site] = train_sae(training_activations(activations, n_tokens=config.n_tokens, seed=0), config).sae
    return found


def run(loaded: LoadedModel, site: str, sae: Any, *, text: Any = TEXT, **options: Any) -> Preflight:
    notes = {"sae": options.pop("said")} if "said" in options else None
    return preflight(model_activations(loaded, site, text, **options), {"sae": sae}, notes=notes, batches=2)


def block(loaded: LoadedModel, layer: int) -> Any:
    model: Any = loaded.model
    return model.model.layers[layer]


def the(found: Preflight, name: str) -> Check:
    (check,) = [check for check in found.checks if check.name == name]
    return check


def bad(found: Preflight) -> dict[str, str]:
    return {check.name: check.status for check in found.checks if check.status != "ok"}


def rows_of(loaded: LoadedModel, front: list[int], *, n: int = 40) -> Any:
    """Token ids without help from the package: `front`, then 60 tokens of a document."""
    documents = [loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXT]
    full = [document[:60] for document in documents if len(document) >= 60]
    return token_rows(np.array([front + document for document in full[:n]], dtype=np.int32))


# healthy


@pytest.mark.parametrize(("site", "architecture"), HEALTHY)
def test_a_healthy_run_passes(site: str, architecture: str, loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    sae = saes[site]
    said = {"site": site, "model": "tiny-gemma2", "l0": 8.0}
    found = run(loaded, site, sae, said=said)
    assert found.status == "ok", found.warnings + found.stops
    names = [check.name for check in found.checks]
    assert names == [
        *("BOS", "revision", "loss", "precision", "norms", "identity splice"),
        *("width", "site", "model", "FVU", "L0", "loss with Sae(x)"),
    ]
    assert all(check.cause == "" for check in found.checks)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_healthy_sae_on_other_text_and_precision_passes(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    other = [f"Once upon a time {name} went to the market and saw {n} birds in a big tree. They sang, and the sun was "
             f"warm, and {name} was happy." for n, name in enumerate(["Tom", "Lily", "Ben", "Anna"] * 10)]  # fmt: skip
    for site in ("resid_post:2", "mlp_out:1"):
        assert run(loaded, site, saes[site], text=other).status == "ok"
    half = load_model(FIXTURE, dtype="bfloat16")
    found = run(half, "resid_post:2", saes["resid_post:2"])
    assert found.status == "ok" and "bfloat16" in the(found, "precision").measured


def test_the_numbers_are_those_of_a_plain_script(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    sae, model = saes["resid_post:2"], loaded.model
    found = run(loaded, "resid_post:2", sae)
    seen: list[Tensor] = []
    change: Callable[[Tensor], Tensor] | None = None

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        seen.append(hidden)
        if change is None:
            return None
        new = hidden.clone()
        new[:, 1:] = change(hidden[0, 1:])
        return (new, *output[1:]) if isinstance(output, tuple) else new

    def loss(documents: list[str]) -> tuple[float, int]:
        total, n = 0.0, 0
        for text in documents:
            ids = torch.tensor([[BOS, *loaded.tokenizer(text, add_special_tokens=False)["input_ids"]][:128]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0].double()
            total -= float(logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).sum())
            n += ids.shape[1] - 1
        return total, n

    handle = block(loaded, 2).register_forward_hook(hook)
    total, n = loss(TEXT[:16])
    clean = total / n
    loss(TEXT[16:32])
    x = torch.cat([hidden[0, 1:] for hidden in seen]).double().numpy()
    change = sae
    total, n = loss(TEXT[:16])
    spliced = total / n
    change = torch.zeros_like
    total, n = loss(TEXT[:16])
    zero = total / n
    handle.remove()
    e = x - sae(torch.from_numpy(x)).double().numpy()
    assert found.n_documents == 32 and found.n_tokens == len(x)
    assert the(found, "FVU").value == pytest.approx((e**2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-5)
    assert the(found, "L0").value == pytest.approx(sae.encode(torch.from_numpy(x)).l0, rel=1e-3)
    assert the(found, "loss").value == pytest.approx(clean, rel=1e-5)
    assert the(found, "loss with Sae(x)").value == pytest.approx(spliced, rel=1e-5)
    share = 1 - (spliced - clean) / (zero - clean)
    assert f"; {share:.1%} of what x → 0 costs" in the(found, "loss with Sae(x)").measured
    norms = np.linalg.norm(x, axis=1)
    bos = float(seen[0][0, 0].norm())
    assert the(found, "norms").value == pytest.approx(bos / np.median(norms), rel=1e-3)


def test_batches_change_nothing_but_rounding(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    site = "resid_post:2"
    one = preflight(model_activations(loaded, site, TEXT, batch_docs=32), {"sae": saes[site]}, batches=1)
    many = preflight(model_activations(loaded, site, TEXT, batch_docs=4), {"sae": saes[site]}, batches=8)
    for name in ("FVU", "L0", "norms"):
        assert the(one, name).value == pytest.approx(the(many, name).value, rel=1e-3)
    assert (one.n_documents, one.n_tokens) == (many.n_documents, many.n_tokens)


# the wrong place


@pytest.mark.parametrize(
    ("trained", "read", "status"),
    [
        ("resid_post:3", "resid_post:0", "stop"),
        ("resid_post:2", "resid_post:3", "warn"),
        ("resid_post:0", "resid_post:1", "warn"),
        ("resid_post:0", "resid_post:3", "warn"),  # further than the sites nearby
        ("resid_pre:3", "resid_post:1", "warn"),
    ],
)
def test_a_wrong_layer_is_named(
    trained: str, read: str, status: str, loaded: LoadedModel, saes: Mapping[str, SAE]
) -> None:
    found = run(loaded, read, saes[trained], said={"site": trained})
    assert the(found, "FVU").status == status
    home = "resid_post:2" if trained == "resid_pre:3" else trained  # one place, two names
    assert f"at {home}: it was trained there" in the(found, "FVU").cause
    assert the(found, "site").status == "warn"
    assert the(found, "site").sentence() == (
        f"site of sae is made for {trained}, expected {read}: its files say {trained}: give that site, unless the "
        "change is meant"
    )


def test_another_place_in_the_block_is_named(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    found = run(loaded, "resid_post:1", saes["mlp_out:1"])
    assert the(found, "FVU").status == "warn" or the(found, "FVU").status == "stop"
    assert "at mlp_out:1: it was trained there" in the(found, "FVU").cause


def test_one_place_by_two_names_is_no_fault(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    found = run(loaded, "model.layers.2.output", saes["resid_post:2"], said={"site": "resid_post:2"})
    assert found.status == "ok", found.warnings


def test_another_width(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    found = run(loaded, "resid_post:2", saes["attn_z:2"])
    assert bad(found) == {"width": "stop"}
    assert the(found, "width").sentence() == (
        "width of sae is 128, expected 96, the width of resid_post:2 in tiny-gemma2: it is an SAE of another model or "
        "kind of site: choose the one made for this site"
    )
    assert not [check for check in found.checks if check.name in {"FVU", "L0"}]
    found = run(loaded, "resid_post:2", nn.Linear(64, 96))
    assert the(found, "width").status == "stop" and "calling it on (2, 96) failed" in the(found, "width").cause
    found = run(loaded, "resid_post:2", lambda x: x[:, :3])
    assert "(2, 3) for (2, 96)" in the(found, "width").measured


# the wrong scale


def unfolded(sae: SAE, c: float) -> SAE:
    """The SAE of c·x that belongs to an SAE of x."""
    moved = {name: getattr(sae, name) * c for name in ("W_dec", "b_dec", "b_pre") if getattr(sae, name) is not None}
    return replace(sae, W_enc=sae.W_enc / c, **moved)


def some_x(loaded: LoadedModel, site: str) -> Tensor:
    return next(iter(model_activations(loaded, site, TEXT, batch_docs=64))).x


def test_a_scale_that_was_not_folded_in_is_named(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    site = "resid_post:2"
    c = math.sqrt(96) / float(some_x(loaded, site).norm(dim=1).mean())
    found = run(loaded, site, unfolded(saes[site], c), said={"l0": 8.0})
    check = the(found, "FVU")
    assert check.status in {"warn", "stop"}
    assert "· x (√d_model / mean |x|)" in check.cause and "not folded into its weights" in check.cause
    assert the(found, "L0").status == "warn"
    assert the(found, "L0").cause.startswith("see FVU: it fits for 0.4")
    assert "(0.0" in the(found, "FVU").measured and "of it constant)" in the(found, "FVU").measured
    twice = the(run(loaded, site, unfolded(saes[site], 1 / c)), "FVU")
    assert twice.status == "stop" and "mean |x| / √d_model): the factor of its training was folded" in twice.cause


def test_other_preparations_of_x_are_named(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    site = "resid_post:2"
    sae, x = saes[site], some_x(loaded, site)
    centre = x.mean(0)
    shifted = load_model(FIXTURE)  # with a mean that is large, as in real models
    block(shifted, 2).register_forward_hook(added(3 * torch.ones(96)))

    def of_centred(y: Tensor) -> Tensor:  # belongs to x minus the mean over tokens
        return sae(y + centre) - centre

    cause = the(run(shifted, site, of_centred), "FVU").cause
    assert "for x minus the mean of all tokens: it was trained on centred activations" in cause

    def of_unit(y: Tensor) -> Tensor:  # belongs to tokens of norm √d, and knows its own x by nothing else
        assert y.shape[1] == 96
        scale = math.sqrt(96) / 23
        return sae(y / scale) * scale

    assert "· x (√d_model / mean |x|)" in the(run(loaded, site, of_unit), "FVU").cause


def test_outliers_that_carry_the_error_are_named(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    def overshooting(x: Tensor) -> Tensor:
        recon = saes["resid_post:2"](x)
        return torch.where(x.norm(dim=1, keepdim=True) > 100, -recon, recon)

    found = run(with_sink(loaded), "resid_post:2", overshooting)
    assert the(found, "norms").status == "warn"
    assert "outliers in norm" in the(found, "FVU").cause


# broken SAEs


def test_a_dead_sae(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    sae = saes["resid_post:2"]
    dead = replace(sae, b_enc=sae.b_enc - 1e4)
    found = run(loaded, "resid_post:2", dead)
    assert bad(found) == {"FVU": "stop", "L0": "stop"}
    assert "Sae(x) is the same for every token" in the(found, "FVU").cause
    assert the(found, "L0").measured == "0 (0 of 64 latents fired)"
    found = run(loaded, "resid_post:2", torch.zeros_like)
    assert the(found, "FVU").status == "stop" and "same for every token" in the(found, "FVU").cause


def test_a_copy_is_no_reconstruction(loaded: LoadedModel) -> None:
    check = the(run(loaded, "resid_post:2", lambda x: x), "FVU")
    assert check.status == "stop" and "it returns x itself" in check.cause


def test_nan_weights(loaded: LoadedModel) -> None:
    module = nn.Linear(96, 96).requires_grad_(False)
    module.weight[3, 4] = math.nan
    found = run(loaded, "resid_post:2", module)
    assert bad(found) == {"reconstruction": "stop"}
    assert "damaged, or overflow" in the(found, "reconstruction").cause


def test_a_random_sae_is_explained_by_nothing(loaded: LoadedModel) -> None:
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(96, 64, generator=draw)
    sae = SAE(W, torch.zeros(64), torch.randn(64, 96, generator=draw), torch.zeros(96))
    check = the(run(loaded, "resid_post:2", sae), "FVU")
    assert check.status == "stop" and "none of the sites and scalings that were tried explains it" in check.cause


@pytest.mark.parametrize(("factor", "status"), [(0.55, "ok"), (1.9, "ok"), (2.1, "warn"), (0.45, "warn")])
def test_l0_against_the_advertised_one(
    factor: float, status: str, loaded: LoadedModel, saes: Mapping[str, SAE]
) -> None:
    sae = saes["resid_post:2"]
    l0 = the(run(loaded, "resid_post:2", sae), "L0").value
    assert l0 is not None
    check = the(run(loaded, "resid_post:2", sae, said={"l0": l0 * factor}), "L0")
    assert check.status == status and check.expected == f"near {l0 * factor:g}, as advertised"
    assert ("likely the wrong site" in check.cause) == (status == "warn")


def test_a_loaded_sae_speaks_for_itself(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    sae = LoadedSae(
        sae=saes["resid_post:2"],
        family="gemmascope",
        location="x",
        revision=None,
        stored_dtype="float32",
        site="resid_post:3",
        l0=30.0,
    )
    assert bad(run(loaded, "resid_post:2", sae)) == {"site": "warn", "L0": "warn"}


# the model


def test_an_sae_of_another_model(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    site, hub = "resid_post:2", replace(loaded, name="google/gemma-2-9b", revision="c" * 40)

    def check(model: LoadedModel, said: Mapping[str, Any]) -> Check:
        return the(run(model, site, saes[site], said=said), "model")

    assert check(hub, {"model": "gemma-2-9b"}).status == "ok"
    assert check(hub, {"model": "google/gemma-2-9b"}).status == "ok"
    other = check(hub, {"model": "gemma-2-9b-it"})
    assert other.status == "warn" and "base or tuned" in other.cause
    assert check(replace(hub, name="openai-community/gpt2"), {"model": "gpt2-small"}).status == "ok"
    assert check(loaded, {"model": "anything"}).status == "ok"  # a folder may be called anything
    trained = {"model": "tiny-gemma2", "training": {"source": {"model_dtype": "float32", "model_fingerprint": "no"}}}
    changed = check(loaded, trained)
    assert changed.status == "warn" and "not those of its training" in changed.cause
    trained["training"]["source"]["model_fingerprint"] = loaded.fingerprint  # type: ignore[index]
    assert check(loaded, trained).status == "ok"
    assert the(run(hub, site, saes[site]), "revision").measured == "google/gemma-2-9b at cccccccccccc"


def test_a_model_that_yields_nan_or_overflows(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    broken = load_model(FIXTURE)
    bias = torch.zeros(96)
    bias[7] = math.nan
    block(broken, 1).register_forward_hook(added(bias))
    found = run(broken, "resid_post:2", saes["resid_post:2"])
    assert bad(found) == {"precision": "stop"} and found.checks[-1].name == "precision"
    assert "NaN or infinite in document 0, position 0, in float32" in the(found, "precision").measured
    assert "weights are damaged" in the(found, "precision").cause
    assert "float16" not in the(found, "precision").cause

    half = load_model(FIXTURE, dtype="float16")
    assert run(half, "resid_post:2", saes["resid_post:2"]).status == "ok"
    handle = block(half, 2).register_forward_hook(added(bias.nan_to_num(0) + 3e4))
    found = run(half, "resid_post:2", saes["resid_post:2"])
    assert the(found, "precision").status == "warn" and "float16 ends at 65504" in the(found, "precision").cause
    handle.remove()
    block(half, 2).register_forward_hook(added(torch.full((96,), 1e6)))
    found = run(half, "resid_post:2", saes["resid_post:2"])
    assert the(found, "precision").status == "stop" and "load the model in bfloat16" in the(found, "precision").cause


def added(bias: Tensor) -> Any:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        new = hidden + bias.to(hidden.dtype)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook


def test_layers_behind_the_site_that_overflow(saes: Mapping[str, SAE]) -> None:
    broken = load_model(FIXTURE)
    block(broken, 3).register_forward_hook(added(torch.full((96,), math.nan)))
    found = run(broken, "resid_post:2", saes["resid_post:2"])
    assert bad(found) == {"loss": "stop"} and "layers behind the site" in the(found, "loss").cause


def test_a_splice_that_changes_the_loss(
    loaded: LoadedModel, saes: Mapping[str, SAE], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "darkmatter.adapters.preflight.pilot.splice",
        lambda model, site, change: splice(model, site, lambda x: change(x) * (1 + 1e-6)),
    )
    found = run(loaded, "resid_post:2", saes["resid_post:2"])
    assert bad(found) == {"identity splice": "stop"}
    assert "does not put back what it took" in the(found, "identity splice").cause


def test_a_model_that_is_not_deterministic(saes: Mapping[str, SAE]) -> None:
    noisy = load_model(FIXTURE)
    draw = torch.Generator().manual_seed(0)
    block(noisy, 3).register_forward_hook(lambda *args: added(1e-3 * torch.randn(96, generator=draw))(*args))
    found = run(noisy, "resid_post:2", saes["resid_post:2"])
    assert bad(found) == {"identity splice": "warn"}
    assert "another loss each time" in the(found, "identity splice").cause


def test_tokens_of_another_tokenizer(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    ids = np.random.default_rng(0).integers(3, 1024, size=(32, 60))
    ids[:, 0] = BOS
    found = run(loaded, "resid_post:2", saes["resid_post:2"], text=token_rows(ids))
    assert the(found, "loss").status == "warn" and "no better than guessing" in the(found, "loss").cause
    assert the(found, "loss").expected == "below 6.58 (guessing: 6.93)"


# BOS and outliers


def test_bos_once(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    found = run(loaded, "resid_post:2", saes["resid_post:2"], text=rows_of(loaded, [BOS]))
    assert found.status == "ok"
    assert the(found, "BOS").measured == "at position 0 of 32 of 32 documents"


def test_bos_twice(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    found = run(loaded, "resid_post:2", saes["resid_post:2"], text=rows_of(loaded, [BOS, BOS]))
    assert bad(found) == {"BOS": "stop"}
    check = the(found, "BOS")
    assert check.measured == "twice in 32 of 32 documents" and "drop the first column" in check.cause


def test_bos_missing(loaded: LoadedModel, saes: Mapping[str, SAE], monkeypatch: pytest.MonkeyPatch) -> None:
    site = "resid_post:2"
    found = run(loaded, site, saes[site], text=rows_of(loaded, []))
    check = the(found, "BOS")
    assert check.status == "warn" and "made without BOS (2)" in check.cause
    assert "at position 0 of 0 of 32 documents; in front it would lower the loss by 0." in check.measured
    monkeypatch.setattr(tokens, "BOS_NEEDED", 0.02)  # as of a model that depends on BOS
    assert the(run(loaded, site, saes[site], text=rows_of(loaded, [])), "BOS").status == "stop"


def test_no_bos_as_asked_is_judged_by_the_loss(
    loaded: LoadedModel, saes: Mapping[str, SAE], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = "resid_post:2"
    check = the(run(loaded, site, saes[site], bos="none"), "BOS")
    assert (check.status, check.expected) == ("warn", "none, as asked") and "trained with BOS" in check.cause
    monkeypatch.setattr(tokens, "BOS_HELPS", 1.0)  # as of a model that does not care
    assert the(run(loaded, site, saes[site], bos="none"), "BOS").status == "ok"


def test_bos_of_some_documents(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    rows = np.array(rows_of(loaded, [BOS]).rows)
    rows[1::2, 0] = 40
    check = the(run(loaded, "resid_post:2", saes["resid_post:2"], text=token_rows(rows)), "BOS")
    assert check.status == "warn" and "at position 0 of 16 of 32" in check.measured and "longer stream" in check.cause


def test_a_model_without_bos(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    class Tokenizer:
        bos_token_id = None
        all_special_ids = (0, 1)

    silent = replace(loaded, tokenizer=Tokenizer())
    found = run(silent, "resid_post:2", saes["resid_post:2"], text=rows_of(loaded, []))
    assert found.status == "ok" and the(found, "BOS").measured == "the tokenizer has none"
    assert the(found, "norms").measured.startswith("position 0 ")
    found = run(replace(loaded, tokenizer=None), "resid_post:2", saes["resid_post:2"], text=rows_of(loaded, [BOS, BOS]))
    assert the(found, "BOS").status == "stop"  # the configuration knows BOS


def test_what_bos_brings_is_the_difference_of_two_plain_losses(loaded: LoadedModel) -> None:
    rows = rows_of(loaded, [], n=8)
    pilot = read_pilot(
        model_activations(loaded, "resid_post:2", rows), model_activations(loaded, "resid_post:2", rows).site, 1
    )
    gain, error = bos_gain(pilot, BOS)
    difference = []
    for ids in torch.from_numpy(np.array(rows.rows)).long():
        logp = loaded.model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        front = torch.cat([torch.tensor([BOS]), ids[:-1]])
        with_bos = loaded.model(input_ids=front[None]).logits[0].double().log_softmax(-1)
        difference.append([float(with_bos[t, ids[t]] - logp[t - 1, ids[t]]) for t in range(1, len(ids) - 1)])
    every = np.array(difference)
    assert gain == pytest.approx(every.mean(), abs=1e-5) and gain > 0
    means = every.mean(axis=1)  # documents of one length: the error of a mean of means, with divisor n
    assert error == pytest.approx(means.std() / math.sqrt(len(means)), rel=1e-3)


def test_losses_of_packed_documents_leave_out_their_starts(loaded: LoadedModel) -> None:
    activations = model_activations(loaded, "resid_post:2", TEXT, pack=True, context_length=512)
    rows = read_pilot(activations, activations.site, 1).batches[0]
    assert int(rows.starts.sum()) > len(rows)
    assert int(targets(rows).sum()) == int(rows.mask.sum()) - int(rows.starts.sum())


def test_bos_among_the_tokens_that_count(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    keep = PositionPolicy(skip_first=0, drop_special=False)
    found = run(loaded, "resid_post:2", saes["resid_post:2"], positions=keep)
    assert the(found, "norms").status == "warn"
    assert "BOS counts 32 times, the same activation each time" in the(found, "norms").cause


def with_sink(loaded: LoadedModel) -> LoadedModel:
    """The model with one token, the fifth of the first document, whose activation is huge."""
    token = loaded.tokenizer(TEXT[0], add_special_tokens=False)["input_ids"][4]
    sunk = load_model(FIXTURE)

    def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        return output * torch.where(kwargs.get("input", args[0] if args else None) == token, 100.0, 1.0)[..., None]

    sunk.model.get_input_embeddings().register_forward_hook(hook, with_kwargs=True)  # type: ignore[operator]
    return sunk


def test_outliers_among_the_tokens_that_count(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    found = run(with_sink(loaded), "resid_post:2", saes["resid_post:2"])
    check = the(found, "norms")
    assert check.status == "warn" and "are outliers with" in check.cause and "position 5)" in check.cause
    filtered = run(with_sink(loaded), "resid_post:2", saes["resid_post:2"], positions=PositionPolicy(norm_filter=10))
    assert the(filtered, "norms").status == "ok" and filtered.n_tokens < found.n_tokens


# what cannot be checked


def test_refusals(loaded: LoadedModel, saes: Mapping[str, SAE]) -> None:
    both: ModelActivations = model_activations(loaded, ["resid_post:1", "resid_post:2"], TEXT)
    sae = {"sae": saes["resid_post:2"]}
    with pytest.raises(InputError, match="2 sites, expected one"):
        preflight(both, sae)
    one = model_activations(loaded, "resid_post:2", TEXT)
    with pytest.raises(InputError, match="site resid_post:1 is not read, expected one of resid_post:2"):
        preflight(one, sae, site=both.sites[0])
    with pytest.raises(InputError, match="batches is 0, expected at least 1"):
        preflight(one, sae, batches=0)
    with pytest.raises(InputError, match="expected at least one name with a callable"):
        preflight(one, {})
    share = model_activations(loaded, "resid_post:2", TEXT[:3], rank=5, size=8)
    with pytest.raises(InputError, match="this share of the text is empty"):
        preflight(share, sae)


def test_thresholds_are_the_documented_ones() -> None:
    assert (tokens.BOS_HELPS, tokens.BOS_NEEDED, tokens.HALF_HEADROOM, losses.CHANCE) == (0.02, 0.5, 8.0, 0.95)
    assert (judging.L0_FACTOR, judging.EXACT, diagnosis.OUTLIER) == (2.0, 1e-10, 10.0)
    rules = (diagnosis.SITE_BETTER, diagnosis.SCALE_BETTER, diagnosis.OFFSET_BETTER, diagnosis.OFFSET)
    assert rules == (0.8, 0.5, 1.05, 0.02)
