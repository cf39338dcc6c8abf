"""Downstream loss: splices against a naive transcription, shares and intervals against known truth, and the command."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from darkmatter.adapters import (
    LoadedModel,
    ModelActivations,
    ModelSource,
    PositionPolicy,
    load_model,
    model_activations,
)
from darkmatter.adapters.spliced import ModelLossBatch, ModelLosses
from darkmatter.analyses.downstream import (
    OF_SAE,
    VARIANTS,
    DownstreamLosses,
    SplicedBatch,
    check_variants,
    downstream_losses,
    n_forward,
)
from darkmatter.analyses.downstream.fit_noise import without_fit_noise
from darkmatter.analyses.downstream.shares import Shares
from darkmatter.analyses.fold_table import FoldTable
from darkmatter.analyses.part_maps import part_maps
from darkmatter.batch import Batch
from darkmatter.commands.analyses.downstream import FEWEST, _documents
from darkmatter.errors import InputError
from darkmatter.inference import Estimate
from darkmatter.sae import SAE, load_sae
from darkmatter.sandbox import Surgical, World
from darkmatter.sandbox.experiment import Experiment
from darkmatter.sandbox.readout import Readout
from darkmatter.stream import accumulate
from tests.analyses import MODEL, SAES, TEXTS, analyse, fewest_hits, model_options, small_surgical, small_world
from tests.cli_models import good, refused

PARTS = ("linear", "nonlinear")


def on_world(
    world: World, sae: Any, *, n_tokens: int = 8192, folds: int = 20, seed: int = 0, readout: Any = None, **options: Any
) -> DownstreamLosses:
    source = world.pair(sae, n_tokens=n_tokens)
    losses = (readout or Readout(world=world, seed=seed)).losses(source)
    return downstream_losses(losses, accumulate(source, folds=folds), seed=seed, **options)


# truth


def checks(result: DownstreamLosses, world: World, surgical: Surgical) -> dict[str, bool]:
    """Which intervals of a run on a world hold the population's value."""
    truth, sae = Readout(world=world).truth(surgical), result.saes["surgical"]
    assert truth is not None
    increases = truth.increases
    found = {}
    for name, variant in {**result.variants, **sae.variants}.items():
        found[name] = variant.increase.contains(increases[name])
        found[f"recovered by {name}"] = variant.recovered.contains(1 - increases[name] / increases["mean"])
    for part in PARTS:
        numbers = getattr(sae, part)
        found[f"size of {part}"] = numbers.error_share.contains(truth.error_share(part))
        found[f"{part} back"] = numbers.recovered.contains(truth.recovered(part))
        found[f"{part} alone"] = numbers.alone.contains(truth.recovered(part))
        found[f"weight of {part}"] = numbers.relative.contains(truth.relative(part))
        random = increases[f"{part}-left"] / increases[f"random-{part}"]
        found[f"{part} against random"] = numbers.versus_random.contains(random)
    found["interaction"] = sae.interaction.contains(0.0)
    found["against random"] = sae.versus_random.contains(increases["sae"] / increases["random"])
    found["against shuffled"] = sae.versus_shuffled.contains(1.0)
    return found


def covered(seeds: int, *, kind: Any = "independent", **options: Any) -> Mapping[str, int]:
    """Hits of every number over worlds 0 … seeds − 1."""
    total: dict[str, int] = {}
    for seed in range(seeds):
        world, surgical = small_world(seed), small_surgical(introduced=kind, seed=seed)
        result = on_world(world, surgical, seed=seed, variants=VARIANTS, **options)
        for name, hit in checks(result, world, surgical).items():
            total[name] = total.get(name, 0) + hit
    return total


def test_the_truth_of_a_world_is_covered() -> None:
    """Five of the numbers, 8 seeds each; false alarm below 5 · 10⁻³ for intervals that cover 95 %."""
    found = covered(8)
    for name in ("sae", "linear-left", "nonlinear back", "weight of nonlinear", "size of nonlinear"):
        assert found[name] >= fewest_hits(8), (name, found[name])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["independent", "heteroscedastic"])
def test_the_truth_is_covered_in_most_of_100_worlds(kind: str) -> None:
    """33 numbers per kind, each ≥ 85 of 100: a 95 % interval falls below with probability 5 · 10⁻⁵."""
    found = covered(100, kind=kind)
    assert {name: n for name, n in found.items() if n < 85} == {}


@pytest.mark.slow
def test_losses_on_an_eighth_of_the_tokens_of_the_maps_cover_too() -> None:
    """As above, with losses on 256 of 2048 documents; a 95 % interval falls below 85 with probability 5 · 10⁻⁵."""
    found = covered(100, n_tokens=32_768, documents=256)
    assert {name: n for name, n in found.items() if n < 85} == {}


def test_a_population_is_met_closely_and_its_parts_add_up() -> None:
    world, surgical = small_world(3), small_surgical(shrinkage=0.3)
    readout = Readout(world=world, noise=0.0, slope=0.0, contrast=20.0)
    truth = readout.truth(surgical)
    assert truth is not None
    assert truth.increases["mean"] == pytest.approx(readout.ablation)
    assert truth.increases["sae"] == pytest.approx(truth.increases["linear-left"] + truth.increases["nonlinear-left"])
    assert truth.relative("linear") > 1 > truth.relative("nonlinear")  # dense and frequent features lead Cov x
    result = on_world(world, surgical, n_tokens=32_768, readout=readout, variants=VARIANTS)
    for name, variant in {**result.variants, **result.saes["surgical"].variants}.items():
        assert variant.increase.value == pytest.approx(truth.increases[name], rel=0.04), name


def test_an_affine_term_is_no_introduced_error_and_the_truth_says_so() -> None:
    world, surgical = small_world(1), Surgical(learned=80, introduced="affine", introduced_share=0.1)
    result, truth = on_world(world, surgical, n_tokens=16_384), Readout(world=world).truth(surgical)
    assert truth is not None
    for name in ("sae", "linear-left", "nonlinear-left"):
        found = result.saes["surgical"].variants[name].increase
        assert found.value == pytest.approx(truth.increases[name], rel=0.05)


def test_there_is_no_closed_form_for_a_curved_term() -> None:
    assert Readout(world=small_world()).truth(small_surgical(introduced="function")) is None


@pytest.mark.parametrize(
    ("option", "value"), [("leading", 25), ("contrast", 0.0), ("ablation", -1.0), ("noise", math.nan), ("seed", -1)]
)
def test_a_readout_checks_its_options(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=option):
        Readout(world=small_world(), **{option: value})


# oracles


def test_intervals_agree_with_a_bootstrap_over_documents() -> None:
    world, surgical = small_world(5), small_surgical()
    source = world.pair(surgical, n_tokens=8192)
    losses = Readout(world=world).losses(source)
    result = downstream_losses(losses, accumulate(source, folds=20))
    sums: dict[str, list[Tensor]] = {"sae": [], "mean": []}
    mean = torch.cat([torch.as_tensor(item.batch.x) for item in losses]).double().mean(dim=0)
    for item in losses:
        clean, x = item.clean(), torch.as_tensor(item.batch.x)
        recon = torch.as_tensor(item.batch.recons["surgical"])
        sums["sae"].append((item.losses(recon) - clean).reshape(-1, 16).sum(dim=1))
        sums["mean"].append((item.losses(mean.expand_as(x)) - clean).reshape(-1, 16).sum(dim=1))
    by_document = {name: torch.cat(parts).numpy() for name, parts in sums.items()}
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 512, size=(2000, 512))
    increase = by_document["sae"][drawn].sum(axis=1) / 8192
    recovered = 1 - by_document["sae"][drawn].sum(axis=1) / by_document["mean"][drawn].sum(axis=1)
    sae = result.saes["surgical"].variants["sae"]
    assert sae.increase.value == pytest.approx(by_document["sae"].sum() / 8192, rel=1e-9)
    for estimate, bootstrap in ((sae.increase, increase), (sae.recovered, recovered)):
        half, expected = (estimate.high - estimate.low) / 2, np.ptp(np.quantile(bootstrap, [0.025, 0.975])) / 2
        assert 0.65 < half / expected < 1.6  # 20 folds: the standard error itself is known to about 16 %


def test_every_number_is_what_plain_sums_give() -> None:
    """Against a transcription without folds: literal splices, then the noise of the fit taken out by hand."""
    world = small_world(2)
    source = world.pair(small_surgical(), n_tokens=4096)
    readout, moments = Readout(world=world), accumulate(source, folds=10)
    result = downstream_losses(readout.losses(source), moments, variants=["linear-left", "zero"])
    (item,), maps = list(readout.losses(source)), part_maps(moments)
    x = torch.as_tensor(item.batch.x).double()
    error = x - torch.as_tensor(item.batch.recons["surgical"]).double()
    linear = maps.linear("surgical", x, item.batch.groups)

    def cost(delta: Tensor) -> float:
        return float((item.losses(x - delta) - item.clean()).mean())

    sae = result.saes["surgical"]
    kept = 1 - sae.fit_noise
    assert 0.98 < kept < 1
    nonlinear = cost(error - linear)
    left = cost(linear) - (1 - kept) * nonlinear
    assert set(sae.variants) == {"sae", "nonlinear-left", "linear-left"}
    assert sae.variants["sae"].increase.value == pytest.approx(cost(error), rel=1e-6)
    assert result.variants["zero"].increase.value == pytest.approx(cost(x), rel=1e-6)
    assert sae.variants["nonlinear-left"].increase.value == pytest.approx(kept * nonlinear, rel=1e-6)
    assert sae.variants["linear-left"].increase.value == pytest.approx(left, rel=1e-6)
    assert sae.nonlinear.recovered.value == pytest.approx(1 - left / cost(error), rel=1e-6)
    share = kept * float((error - linear).square().sum() / error.square().sum())
    assert sae.nonlinear.error_share.value == pytest.approx(share, rel=1e-6)
    assert sae.nonlinear.relative.value == pytest.approx((1 - left / cost(error)) / share, rel=1e-6)
    assert math.isnan(sae.versus_random.value) and math.isnan(sae.variants["sae"].recovered.value)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10.0))
def test_a_ratio_is_that_of_the_fold_table_and_knows_no_unit(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, size=400)
    a, b = rng.normal(2.0, 1.0, size=400), rng.normal(3.0, 1.0, size=400)

    def ratio(factor: float) -> Estimate:
        table = FoldTable.empty(["a", "b"], 8).add(groups, {"a": factor * a, "b": factor * b})
        found = Shares(table, n_map_tokens=400).derived(torch.div, "a", "b")
        plain = table.ratio("a", "b")
        np.testing.assert_allclose((found.value, found.low, found.high), (plain.value, plain.low, plain.high))
        return found

    assert ratio(scale).high == pytest.approx(ratio(1.0).high)


@settings(max_examples=20, deadline=None)
@given(kept=st.floats(0.5, 1.0), linear=st.floats(0.0, 9.0), nonlinear=st.floats(0.1, 9.0))
def test_noise_of_the_fit_comes_out_exactly_for_a_quadratic_loss(kept: float, linear: float, nonlinear: float) -> None:
    noise = nonlinear * (1 - kept) / kept  # so that the nonlinear part, spliced in, is `kept` signal
    columns = {"nonlinear-left": torch.tensor([nonlinear + noise]), "linear-left": torch.tensor([linear + noise])}
    found = without_fit_noise(columns, kept)
    assert float(found["nonlinear-left"]) == pytest.approx(nonlinear, abs=1e-5)
    assert float(found["linear-left"]) == pytest.approx(linear, abs=1e-5)


# special SAEs and bad input


@dataclass(frozen=True)
class Spoilt:
    """Losses of a world with something wrong in them."""

    inner: Any
    how: str

    d_model = property(lambda self: self.inner.d_model)
    names = property(lambda self: self.inner.names)
    description = property(lambda self: self.inner.description)

    def __iter__(self) -> Iterator[SplicedBatch]:
        for item in self.inner:
            yield SpoiltBatch(item, self.how)


@dataclass(frozen=True)
class SpoiltBatch:
    item: Any
    how: str

    batch = property(lambda self: self.item.batch)

    @property
    def rows(self) -> Any:
        return self.item.rows[:0] if self.how == "no loss" else self.item.rows

    def clean(self) -> Tensor:
        jitter = torch.rand(1).item() if self.how == "jitter" else 0.0
        return torch.as_tensor(self.item.clean() + 1e-3 * jitter)

    def identity(self) -> Tensor:
        return torch.as_tensor(self.item.identity() + (0.01 if self.how in ("hook", "jitter") else 0.0))

    def losses(self, replacement: Tensor) -> Tensor:
        found: Tensor = self.item.losses(replacement)
        if self.how == "nan":
            found[7] = math.nan
        return found[:5] if self.how == "short" else found


def spoilt(how: str, **options: Any) -> DownstreamLosses:
    world = small_world()
    source = world.pair(small_surgical(), n_tokens=2048)
    losses = Spoilt(Readout(world=world).losses(source), how)
    return downstream_losses(losses, accumulate(source, folds=5), **options)


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("nan", "mean: the loss is NaN or infinite"),
        ("short", "losses have shape"),
        ("hook", "putting x back at the site changes losses by up to 0.01 nats"),
        ("no loss", "no loss was measured"),
    ],
)
def test_losses_that_cannot_be_used_are_refused(how: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        spoilt(how)


def test_a_model_that_is_not_deterministic_is_a_warning() -> None:
    result = spoilt("jitter")
    assert result.identity_gap is not None and result.identity_gap > 0
    assert any("another loss each time" in warning for warning in result.warnings)


def test_bad_options_are_refused() -> None:
    world = small_world()
    source = world.pair(small_surgical(), n_tokens=2048)
    losses, moments = Readout(world=world).losses(source), accumulate(source, folds=5)
    with pytest.raises(InputError, match="variant is 'mode'"):
        downstream_losses(losses, moments, variants=["mode"])
    with pytest.raises(InputError, match="documents is 1"):
        downstream_losses(losses, moments, documents=1)
    other = accumulate(world.pair(small_surgical(), n_tokens=2048, name="other"), folds=5)
    with pytest.raises(InputError, match="the moments are of other"):
        downstream_losses(losses, other)
    one = Readout(world=world).losses(world.pair(small_surgical(), n_tokens=16))
    with pytest.raises(InputError, match="no loss was measured"):
        downstream_losses(one, moments)
    with pytest.raises(InputError, match="all documents fall into one fold"):
        downstream_losses(one, moments, variants=["mean"])


def test_variants_bring_what_they_need() -> None:
    assert check_variants(["linear-left", "random-linear"]) == (
        *("sae", "nonlinear-left", "linear-left"),
        *("random-nonlinear", "random-linear"),
    )
    assert check_variants([]) == ("sae",)
    assert n_forward(VARIANTS, 3) == 1 + 3 + 3 * len(OF_SAE)


def test_a_perfect_sae_and_a_dead_one_get_no_share_that_is_not_there() -> None:
    world = small_world()
    result = on_world(world, {"perfect": lambda x: x, "dead": torch.zeros_like}, n_tokens=4096, folds=10)
    perfect, dead = result.saes["perfect"], result.saes["dead"]
    assert perfect.variants["sae"].increase == Estimate(0.0, 0.0, 0.0)
    assert all(math.isnan(getattr(perfect, part).relative.value) for part in PARTS)
    assert any(warning.startswith("perfect: Sae(x) does not raise") for warning in result.warnings)
    assert dead.nonlinear.error_share.value < 1e-12 and math.isnan(dead.nonlinear.relative.value)
    assert dead.linear.recovered.value == pytest.approx(1.0) and dead.linear.relative.value == pytest.approx(1.0)


def test_the_same_seed_gives_the_same_result_and_documents_bound_the_losses() -> None:
    world = small_world()
    first, again = (on_world(world, small_surgical(), seed=3, documents=200) for _ in range(2))
    assert first == again
    assert first.n_documents == 256 and first.n_losses == 4096  # a whole batch
    other = on_world(world, small_surgical(), seed=4, documents=200, readout=Readout(world=world, seed=3))
    assert other.saes["surgical"].variants["random"] != first.saes["surgical"].variants["random"]
    assert other.saes["surgical"].variants["sae"] == first.saes["surgical"].variants["sae"]


def test_a_document_that_spans_batches_counts_once() -> None:
    world = small_world(doc_tokens=48)
    source = world.pair(small_surgical(), n_tokens=4800, batch_size=64)
    result = downstream_losses(
        Readout(world=world).losses(source), accumulate(source, folds=5), variants=["mean", "sae"]
    )
    assert result.n_documents == 100 and result.n_losses == 4800


def test_a_batch_of_one_document_has_nothing_to_shuffle() -> None:
    world = small_world()
    source = world.pair(small_surgical(), n_tokens=2048 + 16, batch_size=2048)
    result = downstream_losses(Readout(world=world).losses(source), accumulate(source, folds=5))
    assert result.n_losses == 2048
    assert any("16 losses were left out" in warning for warning in result.warnings)


def test_too_few_tokens_for_the_maps_and_too_few_documents_are_said() -> None:
    result = on_world(small_world(), small_surgical(), n_tokens=256, folds=5, variants=["linear-left"])
    text = " ".join(result.warnings)
    assert "noise of the linear fit" in text and "16 documents in 5 folds" in text


# the tiny model


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    pytest.importorskip("transformers", reason="needs the `models` extra (transformers)")
    return load_model(MODEL)


@pytest.fixture(scope="module")
def sae() -> SAE:
    return load_sae(SAES / "r1-128")


def spliced(loaded: LoadedModel, sae: SAE, **options: Any) -> tuple[ModelActivations, ModelLosses]:
    activations = model_activations(loaded, "resid_post:1", **({"documents": TEXTS[:24]} | options))
    return activations, ModelLosses(activations, ModelSource(activations, {"sae": sae}))


def naive(loaded: LoadedModel, item: ModelLossBatch, change: Any) -> Tensor:
    """Losses by one hook on the block, −log softmax by hand, picked position by position in Python."""
    model: Any = loaded.model
    rows, counted = item.sequences, item.replaced

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        x = (output[0] if isinstance(output, tuple) else output).clone()
        x[counted] = change(x[counted])
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = model.model.layers[1].register_forward_hook(hook)
    with torch.no_grad():
        logits = model(input_ids=rows.ids, attention_mask=rows.mask.long()).logits.double()
    handle.remove()
    logp = logits - logits.exp().sum(dim=2, keepdim=True).log()
    found = []
    for i in range(len(rows)):
        for t in range(rows.ids.shape[1] - 1):
            same = rows.groups[i, t] == rows.groups[i, t + 1] and rows.mask[i, t + 1]
            if counted[i, t] and same:
                found.append(-logp[i, t, rows.ids[i, t + 1]])
    return torch.stack(found)


@pytest.mark.models
@pytest.mark.parametrize("pack", [False, True])
def test_splices_are_those_of_a_naive_hook(pack: bool, loaded: LoadedModel, sae: SAE) -> None:
    """Documents of very different lengths, packed and not, with a filter on norms that drops some positions."""
    texts = [text[: 40 + 37 * (i % 7)] for i, text in enumerate(TEXTS[:24])]
    policy = PositionPolicy(skip_first=2, norm_filter=1.1)
    activations, losses = spliced(
        loaded, sae, documents=texts, context_length=96, pack=pack, batch_docs=7, positions=policy
    )
    n_losses = 0
    for item in losses:
        batch, rows = item.batch, item.rows
        x = torch.as_tensor(batch.x)
        assert len(x) == int(item.replaced.sum()) < int(item.sequences.counted.sum())
        assert torch.equal(item.identity(), item.clean())
        assert torch.equal(item.losses(x), item.clean())
        torch.testing.assert_close(item.clean().double(), naive(loaded, item, lambda v: v), atol=2e-5, rtol=0)
        torch.testing.assert_close(item.losses(torch.as_tensor(batch.recons["sae"])).double(), naive(loaded, item, sae),
                                   atol=2e-5, rtol=0)  # fmt: skip
        starts = item.sequences.starts.sum(dim=1)
        assert bool((starts > 1).any()) == pack
        # a loss belongs to a token with another one of its document behind it, dropped or not
        assert batch.positions is not None
        behind = {(int(g), int(p)) for g, p in zip(item.sequences.groups.flatten(), item.sequences.positions.flatten(),
                                                   strict=True)}  # fmt: skip
        expected = [
            k for k, (g, p) in enumerate(zip(batch.groups, batch.positions, strict=True)) if (g, p + 1) in behind
        ]
        assert rows.tolist() == expected
        n_losses += len(rows)
    assert n_losses > 300
    assert activations.n_tokens is None  # the filter decides


@pytest.mark.models
def test_a_real_run_is_sound(loaded: LoadedModel, sae: SAE) -> None:
    activations, losses = spliced(loaded, sae, documents=TEXTS[:48], context_length=40)
    moments = accumulate(losses.source, folds=8)
    result = downstream_losses(losses, moments)
    found = result.saes["sae"]
    assert result.identity_gap == 0.0 and result.variants["identity"].increase == Estimate(0.0, 0.0, 0.0)
    assert result.n_losses == moments.n_tokens - 48  # the last token of a document predicts nothing
    assert found.variants["sae"].increase.low > 0 and found.variants["sae"].recovered.high < 1
    sizes = found.linear.error_share.value + found.nonlinear.error_share.value
    assert sizes == pytest.approx(1.0, abs=0.02)
    assert 0 < found.nonlinear.recovered.value < 1 < found.versus_random.low
    half = ModelLosses(activations, ModelSource(activations, {"sae": lambda x: 0.5 * (x + sae(x))}))
    milder = downstream_losses(half, accumulate(half.source, folds=8), variants=["mean", "sae"])
    assert milder.saes["sae"].variants["sae"].increase.high < found.variants["sae"].increase.low


@pytest.mark.models
def test_half_precision_and_short_memory_change_little(
    loaded: LoadedModel, sae: SAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkmatter.adapters.next_tokens._LOGITS", 1)  # a sequence at a time
    _, losses = spliced(load_model(MODEL, dtype="bfloat16"), sae, documents=TEXTS[:6], context_length=32)
    _, plain = spliced(loaded, sae, documents=TEXTS[:6], context_length=32)
    item, other = next(iter(losses)), next(iter(plain))
    assert torch.equal(item.identity(), item.clean())
    recon = torch.as_tensor(other.batch.recons["sae"])
    assert float((item.losses(recon) - other.losses(recon)).abs().mean()) < 0.05


@pytest.mark.models
def test_an_encoder_and_foreign_batches_are_refused(loaded: LoadedModel, sae: SAE) -> None:
    activations, losses = spliced(loaded, sae)
    with pytest.raises(InputError, match="has no head that predicts tokens, so it has no loss"):
        ModelLosses(replace(activations, loaded=replace(loaded, has_head=False)), losses.source)
    longer, _ = spliced(loaded, sae, documents=TEXTS[30:54])
    with pytest.raises(InputError, match="the source yields other tokens"):
        next(iter(ModelLosses(longer, losses.source)))
    assert isinstance(next(iter(losses)).batch, Batch)


# the command


def test_the_command_on_a_world_shows_the_truth(tmp_path: Path) -> None:
    place = tmp_path / "experiment.json"
    place.write_text(json.dumps(Experiment(world=small_world(), sae=small_surgical(), n_tokens=4096).to_dict()))
    options = ("--world", place, "--control", "shuffled", "--control", "noise", "--folds", 10)
    report = analyse("downstream", tmp_path / "out", *options)
    result, truth = report["result"], report["truth"]["surgical"]
    assert set(result["saes"]) == {"surgical", "surgical~shuffled", "surgical~noise"}
    sae, noise = result["saes"]["surgical"], result["saes"]["surgical~noise"]
    assert sae["variants"]["sae"]["increase"]["value"] == pytest.approx(truth["increases"]["sae"], rel=0.2)
    assert noise["versus_random"]["low"] < 1 < noise["versus_random"]["high"]
    assert result["identity_gap"] == 0.0 and "nats" in result["definition"]
    fewer = ("--variants", "zero", "--max-tokens", 2048)
    printed = good("downstream", *options, *fewer, "--out", tmp_path / "again").stdout
    assert "truth" in printed and "surgical~noise: increase of the loss" in printed


def test_the_command_on_a_trained_sae_of_a_world_has_no_truth(tmp_path: Path) -> None:
    report = analyse("downstream", tmp_path / "out", "--world", "tiny", "--max-tokens", 4096, "--variants", "mean")
    assert report["truth"] is None and report["readout"]["ablation"] == 2.0


@pytest.mark.models
def test_the_command_on_the_tiny_model(tmp_path: Path) -> None:
    options = (*model_options(tmp_path, "r1-128", documents=32), "--control", "all", "--batch-docs", 8)
    chosen = ("--variants", "mean,linear-left", "--loss-documents", 16)
    report = analyse("downstream", tmp_path / "out", *options, *chosen)
    result = report["result"]
    assert set(result["saes"]) == {"r1-128", "r1-128~shuffled", "r1-128~noise", "r1-128~random"}
    assert result["n_documents"] == 16 and result["n_losses"] < 16 * 64
    assert any("16 documents in" in warning for warning in result["warnings"])
    found = good("downstream", *options, *chosen, "--out", tmp_path / "again")
    assert "14 whole forward passes of tiny-gemma2 on every batch" in found.stderr


def test_the_command_refuses_what_has_no_loss(tmp_path: Path) -> None:
    assert "cannot work on --cache" in refused("downstream", "--cache", tmp_path)
    assert "cannot work on --acts" in refused("downstream", "--acts", tmp_path / "x.npy")
    assert "variant is 'sea'" in refused("downstream", "--world", "tiny", "--variants", "mean,sea")
    for bad in ("1", "some", "-3"):
        assert f"--loss-documents is '{bad}'" in refused("downstream", "--world", "tiny", f"--loss-documents={bad}")


def test_losses_of_a_long_run_cost_one_more_pass() -> None:
    for passes, n_documents in ((10, 20_000), (17, 100_000), (5, 8_000)):
        found = _documents(None, passes, n_documents)
        assert found is not None and abs(found * passes - n_documents) < passes
    assert _documents(None, 10, 3000) == FEWEST
    assert _documents(None, 10, FEWEST) is None  # all there are
    assert _documents(0, 10, 20_000) is None and _documents(30, 10, 20_000) == 30
