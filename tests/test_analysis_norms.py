"""The norm probe: against naive sums, `decompose`, and the closed forms of theorem A; baselines; the command."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darkmatter import Batch, InputError, decompose_many
from darkmatter.analyses.id_sums import IdSums, identity_r2
from darkmatter.analyses.norms import VECTORS, NormProbes, TokenValues, norm_probes
from darkmatter.commands.analyses.norm_truth import norm_truth
from darkmatter.errors import DegenerateError
from darkmatter.folds import fold_of
from darkmatter.sandbox import Experiment, Surgical, World, norm_probe
from darkmatter.theory.norm_probe import gaussian_norm_r2
from tests.analyses import analyse, fewest_hits, hits, model_options, small_surgical, small_world
from tests.cli_models import refused
from tests.helpers import ListSource, tiny_world

FOLDS = 6
BOTH = ("uncentred", "centred")


class Named(ListSource):
    """A source with positions and token ids: the id is what the norm depends on where `ids` is given."""

    def __iter__(self) -> Any:
        rows = np.arange(len(self.x))
        for low, batch in zip(range(0, len(self.x), self.batch_size), super().__iter__(), strict=True):
            part = rows[low : low + self.batch_size]
            yield replace(batch, positions=part % 10, token_ids=part * 7919 % 31)


def named(source: ListSource) -> Named:
    return Named(source.x, source.recons, source.groups, source.batch_size)


def naive_r2(x: np.ndarray, t: np.ndarray, groups: np.ndarray, folds: int) -> float:
    """1 − sqrt(S·C)/Var, spelled out."""
    k = fold_of(groups, folds)
    design = np.column_stack([np.ones(len(x)), x])
    inside = outside = trained = 0.0
    for fold in np.unique(k):
        rest = k != fold
        weight = np.linalg.lstsq(design[rest], t[rest], rcond=None)[0]
        residual = (t - design @ weight) ** 2
        inside, outside, trained = inside + residual[rest].sum(), outside + residual[~rest].sum(), trained + rest.sum()
    return 1 - math.sqrt(inside / trained * outside / len(x)) / t.var()


def flat(result: NormProbes) -> dict[tuple[str, str, str], Any]:
    """Every probe by SAE, vector and centring."""
    every = {("", "x"): result.x} | {(n, v): both for n, probes in result.saes.items() for v, both in probes.items()}
    return {(name, kind, about): getattr(both, about) for (name, kind), both in every.items() for about in BOTH}


def test_against_naive_regressions_and_decompose() -> None:
    source = tiny_world(600, 5, n_saes=2, mean=1.0)
    result = norm_probes(source, folds=FOLDS)
    plain = decompose_many(source, folds=FOLDS)
    for name, recon in source.recons.items():
        vectors = {"x": source.x, "recon": recon, "error": source.x - recon}
        for kind, v in vectors.items():
            both = result.x if kind == "x" else result.saes[name][kind]
            for about, rows in (("uncentred", v), ("centred", v - v.mean(axis=0))):
                want = naive_r2(source.x, (rows**2).sum(axis=1), source.groups, FOLDS)
                assert getattr(both, about).r2.value == pytest.approx(want, abs=1e-9)
        found = plain[name]
        pairs = (("error", found.r2_norm), ("recon", found.r2_norm_recon))
        for want, got in [(found.r2_norm_x, result.x), *((w, result.saes[name][kind]) for kind, w in pairs)]:
            got_r2 = got.uncentred.r2
            assert (got_r2.value, got_r2.low, got_r2.high) == pytest.approx((want.value, want.low, want.high), abs=1e-9)


def test_parts_against_naive_maps() -> None:
    source = tiny_world(700, 4)
    parts = fold_of(source.groups, FOLDS) % 5
    recon = source.recons["sae0"]
    error, linear = source.x - recon, np.empty_like(source.x)
    design = np.column_stack([np.ones(len(source.x)), source.x])
    for p in range(5):
        weight = np.linalg.lstsq(design[parts != p], error[parts != p], rcond=None)[0]
        linear[parts == p] = design[parts == p] @ weight
    got = norm_probes(source, folds=FOLDS).saes["sae0"]
    vectors = {"linear": linear, "nonlinear": error - linear, "recon_minus_nonlinear": recon + error - linear}
    means = {"linear": error.mean(axis=0), "nonlinear": 0.0, "recon_minus_nonlinear": recon.mean(axis=0)}
    for kind, rows in vectors.items():
        for about, v in (("uncentred", rows), ("centred", rows - means[kind])):
            want = naive_r2(source.x, (v**2).sum(axis=1), source.groups, FOLDS)
            assert getattr(got[kind], about).r2.value == pytest.approx(want, abs=1e-9), (kind, about)


def test_gaussian_data_agree_with_the_gaussian_law() -> None:
    """x and e Gaussian: the law is the truth; false alarm rate below 1e-3 (all within 4 half-widths)."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((6, 6)) / 2
    x = rng.standard_normal((8000, 6)) @ root + [2.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    recon = 0.5 * x + rng.standard_normal(x.shape) + 0.3
    source = ListSource(x, {"sae": recon}, np.arange(8000) // 4)
    result = norm_probes(source)
    exact = gaussian_norm_r2([2.0, 1.0, 0.0, 0.0, 0.0, 0.0], root.T @ root)
    law = result.x.uncentred.gaussian
    assert abs(law.value - exact) < 2 * (law.high - law.low)
    for key, probe in flat(result).items():
        if key[1:] != ("nonlinear", "uncentred") and not math.isnan(probe.r2.value):
            half = (probe.r2.high - probe.r2.low + probe.gaussian.high - probe.gaussian.low) / 2
            assert abs(probe.r2.value - probe.gaussian.value) < 2 * half, key


@given(seed=st.integers(0, 50))
@settings(max_examples=3, deadline=None)
def test_laws(seed: int) -> None:
    """Rotation changes nothing, a shift of the origin no centred norm, scale nothing; x − linear is affine in x."""
    source = tiny_world(400, 4, seed=seed)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((4, 4)))[0]
    recon = source.recons["sae0"]
    turned = ListSource(3 * source.x @ rotation, {"sae0": 3 * recon @ rotation}, source.groups, 97)
    moved = ListSource(source.x + 5, {"sae0": recon + 2}, source.groups)
    plain, other, shifted = (flat(norm_probes(s, folds=FOLDS)) for s in (source, turned, moved))
    for key, probe in plain.items():
        assert other[key].r2.value == pytest.approx(probe.r2.value, abs=1e-8), key
        if key[2] == "centred":
            assert shifted[key].r2.value == pytest.approx(probe.r2.value, abs=1e-7), key


def test_what_the_theorem_says_of_an_affine_sae_and_of_a_dead_one() -> None:
    source = tiny_world(600, 4)
    affine = ListSource(source.x, {"sae": 0.5 * source.x + 1, "dead": 0 * source.x + 2}, source.groups)
    result = norm_probes(affine, folds=FOLDS)
    for about in BOTH:
        pair = [getattr(result.saes["sae"][kind], about).r2.value for kind in ("linear", "error")]
        assert pair[0] == pytest.approx(pair[1], abs=1e-9)
        assert math.isnan(getattr(result.saes["sae"]["nonlinear"], about).r2.value)
        assert math.isnan(getattr(result.saes["dead"]["recon"], about).r2.value)
        assert getattr(result.saes["dead"]["error"], about).baselines.keys() == {"activation_norm"}
    assert sum("does not vary" in warning for warning in result.warnings) >= 2


def naive_identity(t: np.ndarray, ids: np.ndarray, folds: np.ndarray) -> float:
    left = 0.0
    for k in np.unique(folds):
        rest, own = folds != k, folds == k
        kinds = {i: t[rest & (ids == i)] for i in np.unique(ids[rest])}
        n, mean = rest.sum(), t[rest].mean()
        within = sum(((v - v.mean()) ** 2).sum() for v in kinds.values()) / (n - len(kinds))
        between = sum(len(v) * (v.mean() - mean) ** 2 for v in kinds.values()) - (len(kinds) - 1) * within
        size = n - sum(len(v) ** 2 for v in kinds.values()) / n
        shrink = within * size / between if between > 0 else math.inf
        for i, value in zip(ids[own], t[own], strict=True):
            v = kinds.get(i, t[:0])
            guess = mean if not len(v) or math.isinf(shrink) else (v.sum() + shrink * mean) / (len(v) + shrink)
            left += (value - guess) ** 2
    return 1 - left / ((t - t.mean()) ** 2).sum()


def test_token_identity_against_a_naive_table() -> None:
    rng = np.random.default_rng(0)
    ids, groups = rng.integers(0, 40, 500) ** 2, rng.integers(0, 60, 500)
    t = rng.standard_normal(40)[np.sqrt(ids).astype(int)] + rng.standard_normal(500)
    sums = IdSums(1, FOLDS)
    for low in range(0, 500, 90):
        part = slice(low, low + 90)
        sums.add(groups[part], ids[part], torch.from_numpy(t[part, None]))
    folds = fold_of(groups, FOLDS)
    squares = torch.tensor([(t[folds == k] ** 2).sum() for k in range(FOLDS)])
    got = identity_r2(sums.counts, sums.sums(0), squares)
    assert got.value == pytest.approx(naive_identity(t, ids, folds), abs=1e-9)
    with pytest.raises(InputError, match="from 0 on"):
        sums.add(groups[:2], np.array([-1, 2]), torch.zeros(2, 1))
    small = IdSums(1, FOLDS, limit=1000)
    small.add(groups, ids, torch.zeros(500, 1))
    assert small.over


def identity_covered(seed: int) -> bool:
    """Whether the interval holds Var(mean of the id) / Var t: 40 ids, 6,000 tokens, documents that differ."""
    rng = np.random.default_rng(seed)
    level, ids, groups = rng.standard_normal(40), rng.integers(0, 40, 6000), np.arange(6000) // 10
    noise = np.sqrt(0.7) * rng.standard_normal(6000) + np.sqrt(0.3) * np.repeat(rng.standard_normal(600), 10)
    sums = IdSums(1, 20)
    sums.add(groups, ids, torch.from_numpy(level[ids] + noise)[:, None])
    squares = torch.zeros(20, dtype=torch.float64)
    squares.index_add_(0, torch.from_numpy(fold_of(groups, 20)), torch.from_numpy((level[ids] + noise) ** 2))
    return identity_r2(sums.counts, sums.sums(0), squares).contains(level.var() / (level.var() + 1))


def test_token_identity_is_recovered() -> None:
    """A true coverage of 95 % falls below with probability below 1e-3."""
    assert hits(identity_covered, 20) >= fewest_hits(20)


@pytest.mark.slow
def test_token_identity_is_recovered_in_200_seeds() -> None:
    """At least 90 %; at a true coverage of 95 % it falls below with probability 9e-4."""
    assert hits(identity_covered, 200) >= 180


def test_baselines() -> None:
    source = named(tiny_world(1200, 4, n_saes=1))
    values = (
        TokenValues(b.groups[::-1], b.positions[::-1], np.where(b.positions == 3, np.nan, (b.x**2).sum(axis=1))[::-1])
        for b in source
    )
    result = norm_probes(source, losses=values, folds=FOLDS)
    found = result.x.uncentred.baselines
    assert found.keys() == {"activation_norm", "position", "token", "loss"}
    assert found["activation_norm"].value == pytest.approx(1.0) and found["loss"].value == pytest.approx(1.0)
    assert abs(found["position"].value) < 0.1 and found["token"].value < 0.1
    assert any("no codes of sae0" in warning for warning in result.warnings)
    tight = norm_probes(source, folds=FOLDS, id_bytes=100)
    assert "token" not in tight.x.centred.baselines and any("id_bytes" in w for w in tight.warnings)


def test_bad_input() -> None:
    source = named(tiny_world(300, 3))
    with pytest.raises(InputError, match="losses end before"):
        norm_probes(source, losses=[], folds=FOLDS)
    with pytest.raises(InputError, match="no value for document"):
        norm_probes(source, losses=[TokenValues(np.array([5]), np.array([0]), np.zeros(1))], folds=FOLDS)
    with pytest.raises(DegenerateError, match="x is constant"):
        norm_probes(ListSource(np.ones((50, 3)), {"a": np.zeros((50, 3))}, np.arange(50)), folds=FOLDS)
    with pytest.raises(InputError, match="no document"):
        norm_probes(ListSource(source.x, source.recons, 0 * source.groups), folds=FOLDS)
    batch = next(iter(source))
    with pytest.raises(InputError, match="tells no positions"):
        TokenValues(batch.groups, batch.groups, np.zeros(256)).at(replace(batch, positions=None))

    class Shrinking(ListSource):
        passes = 0

        def __iter__(self) -> Any:
            type(self).passes += 1
            yield from list(super().__iter__())[: -1 if self.passes > 1 else None]

    with pytest.raises(InputError, match="must repeat itself"):
        norm_probes(Shrinking(source.x, source.recons, source.groups), folds=FOLDS)


def covered(seed: int) -> Counter[tuple[str, ...]]:
    """Which intervals hold the closed form, on 12,288 tokens in 24 dimensions."""
    world, surgical = small_world(seed, dense_share=0.1, topic_strength=0.0), small_surgical()
    truth = norm_truth(world, surgical)
    result = norm_probes(world.pair(surgical, n_tokens=12_288, batch_size=4096))
    found: Counter[tuple[str, ...]] = Counter()
    for key, probe in flat(result).items():
        found[key] += probe.r2.contains(truth[key[0]][key[1]][key[2]])
    return found


def test_closed_forms_agree_with_the_sandbox() -> None:
    world, surgical = small_world(3, dense_share=0.2, topic_strength=0.0), small_surgical()
    truth, known = norm_truth(world, surgical), norm_probe(world, surgical)
    assert truth[""]["x"]["uncentred"] == pytest.approx(known.x)
    assert truth["surgical"]["error"]["uncentred"] == pytest.approx(known.error)
    assert truth["surgical"]["recon"]["uncentred"] == pytest.approx(known.recon)
    student = norm_truth(replace(world, dense="student", dense_df=9.0), surgical)
    assert set(student["surgical"]) == {"recon", "error"}
    assert set(norm_truth(world, None)) == {""} and not norm_truth(small_world(topic_strength=0.5), surgical)
    assert set(norm_truth(world, replace(surgical, introduced="function"))) == {""}


def test_truth_is_recovered() -> None:
    """12 intervals on 8 worlds; each misses more often than allowed with probability below 1e-3."""
    found = sum((covered(seed) for seed in range(8)), Counter())
    assert len(found) == 12 and min(found.values()) >= fewest_hits(8), found


@pytest.mark.slow
def test_truth_is_recovered_in_200_worlds() -> None:
    """At least 90 % of 200 for each of 12; at a true coverage of 95 % each falls below with probability 9e-4."""
    found = sum((covered(seed) for seed in range(200)), Counter())
    assert len(found) == 12 and min(found.values()) >= 180, found


def sampled_truth(world: World, surgical: Surgical, tokens: int) -> dict[tuple[str, str, str], float]:
    """The same R² where there is no closed form, from tokens of another stream, spelled out."""
    batches = list(world.pair(surgical, n_tokens=tokens, batch_size=4096, stream="truth"))
    x = np.concatenate([np.asarray(b.x) for b in batches]).astype(float)
    recon = np.concatenate([np.asarray(b.recons["surgical"]) for b in batches]).astype(float)
    design = np.column_stack([np.ones(len(x)), x])

    def fitted(t: np.ndarray) -> np.ndarray:
        found: np.ndarray = design @ np.linalg.solve(design.T @ design, design.T @ t)
        return found

    linear = fitted(x - recon)
    vectors = {"recon": recon, "error": x - recon, "linear": linear, "nonlinear": x - recon - linear}
    truth = {}
    for kind, v in {"x": x, **vectors, "recon_minus_nonlinear": x - linear}.items():
        for about, rows in (("uncentred", v), ("centred", v - v.mean(axis=0))):
            t = (rows**2).sum(axis=1)
            truth["" if kind == "x" else "surgical", kind, about] = 1 - (t - fitted(t)).var() / t.var()
    return truth


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["heteroscedastic", "interference"])
def test_truth_is_recovered_where_introduced_error_depends_on_x(kind: Any) -> None:
    """At least 90 % of 200 for each of 12; truth from 2¹⁹ tokens errs by 15 % of an interval."""
    world, surgical = small_world(dense_share=0.1, topic_strength=0.0), small_surgical(introduced=kind)
    truth = sampled_truth(world, surgical, 2**19)
    found: Counter[tuple[str, ...]] = Counter()
    for seed in range(200):
        source = world.pair(surgical, n_tokens=12_288, batch_size=4096, stream=f"sample {seed}")
        found += Counter({k: p.r2.contains(truth[k]) for k, p in flat(norm_probes(source)).items()})
    assert len(found) == 12 and min(found.values()) >= 180, found


def test_command_on_a_world(tmp_path: Path) -> None:
    world, surgical = small_world(dense_share=0.1, topic_strength=0.0), small_surgical()
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps(Experiment(world=world, sae=surgical, n_tokens=4000).to_dict()))
    report = analyse("norms", tmp_path / "out", "--world", file)
    assert set(report["result"]["saes"]["surgical"]) == set(VECTORS)
    assert report["result"]["x"]["centred"]["gaussian"]["value"] == 0.0
    assert report["truth"] == norm_truth(world, surgical)


def test_command_on_a_model(tmp_path: Path) -> None:
    options = model_options(tmp_path, "r1-64", documents=24)
    report = analyse("norms", tmp_path / "out", *options, "--control", "all")
    names = set(report["result"]["saes"])
    assert names == {"r1-64", "r1-64~shuffled", "r1-64~noise", "r1-64~random"}
    baselines = report["result"]["saes"]["r1-64"]["error"]["uncentred"]["baselines"]
    assert set(baselines) == {"activation_norm", "l0", "position", "token", "loss"}
    assert report["result"]["saes"]["r1-64~shuffled"]["linear"]["centred"]["r2"]["value"] is None


def test_command_refuses(tmp_path: Path) -> None:
    assert "no meaning" in refused("norms", "--world", "tiny", "--no-loss", "--out", tmp_path)
    assert "expected one of" in refused("norms", "--out", tmp_path)


def test_losses_of_a_model_are_those_of_its_next_tokens(tmp_path: Path) -> None:
    from darkmatter.adapters import model_source
    from darkmatter.commands.analyses.norms import ModelLosses

    model_options(tmp_path, documents=6)
    source = model_source(
        Path(__file__).parent / "fixtures" / "tiny-gemma2",
        "resid_post:1",
        tmp_path / "text.json",
        {"sae": lambda x: 0.5 * x},
        context_length=32,
        batch_docs=4,
    )
    model = source.activations.loaded.model
    for batch, values in zip(source, ModelLosses(source.activations), strict=True):
        assert isinstance(batch, Batch) and batch.positions is not None
        found = values.at(batch)
        document = int(batch.groups[0])
        rows = batch.groups == document
        sequence = next(s for s in source.activations.sequences if s.groups[0] == document)
        logits = model(input_ids=torch.from_numpy(sequence.ids)[None]).logits[0].float()
        want = torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(sequence.ids[1:]), reduction="none")
        places = batch.positions[rows]
        np.testing.assert_allclose(found[rows][:-1], want.numpy()[places[:-1]], rtol=1e-4, atol=1e-4)
        assert math.isnan(found[rows][-1])
