"""Training on error: preparation, streams, evaluation, contexts, truth in worlds, and the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darkmatter import DegenerateError, InputError, Surgical, World
from darkmatter.analyses.error_saes import (
    NAMED,
    ContextPlan,
    Maps,
    Split,
    TrainOnError,
    estimate_training,
    evaluate,
    train_on_error,
)
from darkmatter.analyses.error_saes.alignment import best_cosines
from darkmatter.analyses.error_saes.contexts import Kept
from darkmatter.analyses.error_saes.parts import Spectrum, target
from darkmatter.analyses.error_saes.stream import TargetStream, residual_scatters
from darkmatter.analyses.error_saes.training import check_memory, in_units_of
from darkmatter.batch import Batch
from darkmatter.folds import fold_of
from darkmatter.sae import TrainConfig, load_sae, train_sae
from darkmatter.stream import accumulate
from tests.analyses import analyse, fewest_hits, model_options
from tests.cli_models import refused

FOLDS = 10
CONFIG = TrainConfig(d_sae=24, k=3, n_tokens=8_000, batch_size=256)


def plain_world(seed: int = 0) -> World:
    """Fewer directions than dimensions: nothing interferes, so that nonlinear error is what was introduced."""
    return World(n_features=20, d_model=24, dense_dim=3, l0=3.0, doc_tokens=16, seed=seed)


def noisy(**options: Any) -> Surgical:
    return Surgical(
        **({"learned": 10, "shrinkage": 0.1, "introduced": "independent", "introduced_share": 0.05} | options)
    )


def source(seed: int = 0, n_tokens: int = 4_000, stream: str = "eval") -> Any:
    return plain_world(seed).pair(noisy(), n_tokens=n_tokens, batch_size=700, stream=stream)


@pytest.fixture(scope="module")
def trained() -> TrainOnError:
    rows = torch.from_numpy(plain_world().dictionary_matrix).float()
    plan = ContextPlan(top=4, sample=6, others=30, window=2)
    return train_on_error(
        source(), CONFIG, folds=FOLDS, targets=NAMED, plan=plan, directions={"absent": rows[10:], "learned": rows[:10]}
    )


def everything(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, error and document of all tokens of the small source."""
    batches = list(source(seed))
    x = np.concatenate([np.asarray(batch.x, dtype=np.float64) for batch in batches])
    recon = np.concatenate([np.asarray(batch.recons["surgical"], dtype=np.float64) for batch in batches])
    return x, x - recon, np.concatenate([batch.groups for batch in batches])


def test_targets_are_the_parts_of_the_error_at_unit_variance_and_equal_rank(trained: TrainOnError) -> None:
    x, e, groups = everything()
    train = fold_of(groups, FOLDS) % 5 != 0
    assert trained.n_train == train.sum() and trained.n_heldout == (~train).sum()
    design = np.column_stack([np.ones(len(x)), x])
    coefficients = np.linalg.lstsq(design[train], e[train], rcond=1e-5)[0]
    linear = design @ coefficients
    parts = {"linear": linear, "nonlinear": e - linear, "x": x}
    rank = trained.targets["x"].rank
    for name, part in parts.items():
        mean = part[train].mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(part[train].T, bias=True))
        leading = vectors[:, ::-1][:, :rank]
        wanted = (part - mean) @ leading @ leading.T / math.sqrt(values[::-1][:rank].sum())
        found = trained.targets[name]
        prepared, maps = trained.prepared[name], trained.maps
        assert maps is not None and found.rank == rank
        assert found.share == pytest.approx(values.sum() / x[train].var(axis=0).sum(), rel=1e-6)
        assert found.effective_rank == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-6)
        batches = enumerate(source())
        rows = torch.cat([prepared.prepare(prepared.rows(batch, maps, number)) for number, batch in batches]).numpy()
        np.testing.assert_allclose(rows, wanted, atol=2e-5)
        assert rows[train].var(axis=0).sum() == pytest.approx(1, abs=1e-6)


def test_held_out_fvu_agrees_with_numpy(trained: TrainOnError) -> None:
    held = fold_of(everything()[2], FOLDS) % 5 == 0
    for name, found in trained.targets.items():
        t, maps = trained.prepared[name], trained.maps
        assert maps is not None
        rows = torch.cat([t.rows(batch, maps, number) for number, batch in enumerate(source())])[torch.from_numpy(held)]
        error = ((rows - trained.saes[name](rows).double()) @ t.forward).numpy()
        prepared = t.prepare(rows).numpy()
        fvu = error.var(axis=0).sum() / prepared.var(axis=0).sum()
        assert found.fvu.value == pytest.approx(fvu, rel=1e-5)
        fires = trained.saes[name].encode(rows).dense().numpy() > 0
        assert found.l0.value == pytest.approx(fires.sum() / held.sum(), rel=1e-9)
        assert found.dead.value == pytest.approx((~fires.any(axis=0)).mean(), abs=1e-12)
        np.testing.assert_allclose(trained.measured[name].density.numpy(), fires.mean(axis=0), atol=1e-9)


def test_sparse_parts_are_learned_and_noise_is_not(trained: TrainOnError) -> None:
    linear, nonlinear = trained.targets["linear"], trained.targets["nonlinear"]
    assert linear.structure is not None and linear.structure.low > 0.3
    assert nonlinear.structure is not None and abs(nonlinear.structure.value) < 0.05
    assert trained.structure_gap is not None and trained.structure_gap.low > 0.3
    assert trained.differences["nonlinear - linear"].low > 0
    assert linear.alignment["absent"].gain.low > 0
    assert not nonlinear.alignment["absent"].gain.low > 0.1


def test_an_sae_in_units_of_its_part_gives_the_same_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    part = (
        torch.randn(400, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator).double()
    )
    part += 3.0
    covariance = torch.cov(part.T, correction=0)
    spectrum = Spectrum.of(part.mean(dim=0), covariance, covariance)
    for whiten in (False, True):
        t = target("x", "x", "", spectrum, var_x=1.0, rank=4, whiten=whiten, seed=0)
        p = t.prepare(part)
        if whiten:
            variances = torch.linalg.eigvalsh(torch.cov(p.T, correction=0))[-4:]
            torch.testing.assert_close(variances, torch.full((4,), 0.25, dtype=torch.float64), rtol=1e-6, atol=1e-9)
        for architecture, more in (
            ("topk", {"k": 2}),
            ("gated", {}),
            ("jumprelu", {"l0": 2.0}),
            ("batchtopk", {"k": 2}),
        ):
            config = TrainConfig(architecture=architecture, d_sae=8, n_tokens=400, batch_size=100, **more)  # type: ignore[arg-type]
            own = train_sae([p.float()], config).sae
            raw = in_units_of(own, t)
            a, b = own.encode(p), raw.encode(part)
            torch.testing.assert_close(b.dense(), a.dense(), atol=2e-4, rtol=2e-3)
            torch.testing.assert_close(
                t.prepare(raw(part).double()), own(p).double() @ t.basis.T @ t.basis, atol=2e-4, rtol=2e-3
            )


@lru_cache
def pieces(seed: int = 0) -> tuple[Maps, np.ndarray]:
    split = Split(FOLDS)
    maps = Maps.fit(accumulate(source(seed), folds=FOLDS), ["surgical"], split)
    counts = residual_scatters(source(seed), maps, ["surgical"], split, progress=lambda _: None)[2]
    return maps, counts


@given(token=st.integers(0, 9_999))
@settings(max_examples=12)
def test_a_stream_goes_on_from_any_token(token: int) -> None:
    maps, counts = pieces()
    spectrum = Spectrum.of(maps.mean_x, maps.scatter, maps.heldout)
    t = target("linear-gaussian", "gaussian", "surgical", spectrum, var_x=1.0, rank=5, whiten=False, seed=3)
    stream = TargetStream(source(), maps, t, Split(FOLDS), counts, 10_000)
    whole = torch.cat(list(stream))
    assert len(whole) == 10_000
    torch.testing.assert_close(torch.cat([*stream.starting_at(token)]), whole[token:], rtol=0, atol=0)
    epoch = int(counts.sum())
    torch.testing.assert_close(whole[epoch : epoch + 100], whole[:100], rtol=0, atol=0)


@given(seed=st.integers(0, 1000), size=st.integers(1, 4), cuts=st.integers(1, 4))
@settings(max_examples=20)
def test_kept_contexts_are_the_largest(seed: int, size: int, cuts: int) -> None:
    rng = np.random.default_rng(seed)
    n, lists = 60, 3
    groups, key = rng.permutation(n).astype(np.int64), rng.random((n, lists))
    ids = np.arange(n, dtype=np.int64)
    kept = Kept.empty(lists, size, 1)
    for rows in np.array_split(np.arange(n), cuts):
        batch = Batch(np.zeros((len(rows), 1)), {}, groups[rows], ids[rows], ids[rows])
        entries = [(c, key[rows[i], c], i) for i in range(len(rows)) for c in range(lists) if rng.random() < 2]
        which, value, local = (np.array(part) for part in zip(*entries, strict=True))
        kept.offer(which, value, value, local, batch)
    for c in range(lists):
        best = np.argsort(-key[:, c])[:size]
        np.testing.assert_allclose(kept.value[c], key[best, c])
        np.testing.assert_array_equal(kept.group[c], groups[best])
        np.testing.assert_array_equal(kept.position[c], best)
        np.testing.assert_array_equal(kept.ids[c, :, 1], best)  # every token is a document: no neighbours
        assert (kept.ids[c, :, [0, 2]] == -1).all()


def test_contexts_stay_within_documents_and_tell_where_a_latent_is_silent(trained: TrainOnError) -> None:
    contexts = trained.measured["linear"].contexts
    assert contexts is not None
    filled = np.isfinite(contexts.top.key)
    assert (contexts.top.key[:, 1:] <= contexts.top.key[:, :-1]).all()
    assert (contexts.top.value[filled] > 0).all() and (
        contexts.sample.value[np.isfinite(contexts.sample.key)] > 0
    ).all()
    t, maps = trained.prepared["linear"], trained.maps
    assert maps is not None
    rows = torch.cat([t.rows(batch, maps, number) for number, batch in enumerate(source())])
    codes = trained.saes["linear"].encode(rows).dense().numpy()
    groups = everything()[2]
    for place in range(30):
        row = groups.searchsorted(contexts.others.group[0, place]) + contexts.others.position[0, place]
        near = np.arange(max(0, row - 2), min(len(groups), row + 3))
        near = near[(groups[near] == groups[row]) & (near // 700 == row // 700)]
        np.testing.assert_allclose(contexts.others_peak[place], codes[near].max(axis=0), rtol=1e-4, atol=1e-6)


def test_best_cosines() -> None:
    rng = torch.Generator().manual_seed(1)
    rows, directions = torch.randn(7, 5, generator=rng), torch.randn(3, 5, generator=rng)
    table = torch.nn.functional.cosine_similarity(rows[:, None], directions[None], dim=2).abs()
    best, which = best_cosines(rows, directions)
    torch.testing.assert_close(best, table.max(dim=1).values)
    torch.testing.assert_close(which, table.argmax(dim=1))


def test_the_same_seed_gives_the_same_result_and_a_finished_sae_is_used_again(tmp_path: Path) -> None:
    options = {"folds": FOLDS, "targets": ("linear", "nonlinear-gaussian"), "folder": tmp_path, "seed": 2}
    first = train_on_error(source(), CONFIG, **options)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saes"]
    stamp = (tmp_path / "saes" / "linear" / "cfg.json").stat().st_mtime_ns
    assert train_on_error(source(), CONFIG, **options) == first  # type: ignore[arg-type]
    assert (tmp_path / "saes" / "linear" / "cfg.json").stat().st_mtime_ns == stamp
    loaded = load_sae(tmp_path / "saes" / "linear")
    assert torch.equal(loaded.W_dec, first.saes["linear"].W_dec)
    assert train_on_error(source(), CONFIG, **(options | {"folder": None})) == first  # type: ignore[arg-type]
    with pytest.raises(InputError, match="another run"):
        train_on_error(source(), replace(CONFIG, k=2), **options)  # type: ignore[arg-type]


def test_a_killed_training_goes_on(tmp_path: Path) -> None:
    def stages(title: str, _: int | None) -> Any:
        class Stage:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                return None

            def __call__(self, tokens: int) -> None:
                if title == "SAE on nonlinear":
                    raise KeyboardInterrupt

        return Stage()

    options: dict[str, Any] = {"folds": FOLDS, "targets": ("linear", "nonlinear"), "folder": tmp_path}
    config = replace(CONFIG, report_every=10)
    with pytest.raises(KeyboardInterrupt):
        train_on_error(source(), config, **options, stages=stages, checkpoint_seconds=0.0)
    assert (tmp_path / "saes" / "linear").is_dir() and (tmp_path / "training" / "nonlinear").is_dir()
    assert train_on_error(source(), config, **options) == train_on_error(source(), config, **options | {"folder": None})


def test_what_cannot_be_trained_on_is_refused() -> None:
    world = plain_world()
    with pytest.raises(InputError, match="targets are"):
        train_on_error(source(), CONFIG, targets=("linear", "linear"))
    with pytest.raises(InputError, match="of is"):
        train_on_error(source(), CONFIG, of="other")
    with pytest.raises(InputError, match="rank is 99, expected 1 … 23"):
        train_on_error(source(), CONFIG, rank=99, folds=FOLDS)
    with pytest.raises(InputError, match="expected more than"):
        train_on_error(source(n_tokens=20), CONFIG, folds=FOLDS)
    dead = world.pair(lambda x: torch.ones_like(x), n_tokens=2_000)
    found = train_on_error(dead, CONFIG, folds=FOLDS)
    assert "nonlinear" not in found.targets and any("does not vary" in warning for warning in found.warnings)
    with pytest.raises(DegenerateError, match="nothing to train on"):
        train_on_error(dead, CONFIG, folds=FOLDS, targets=("nonlinear",))
    with pytest.raises(InputError, match="GiB"):
        check_memory(5, 2304, 2**27)


def test_an_estimate_is_made_before() -> None:
    found = estimate_training(source(), CONFIG, 5)
    assert found.read_rate > 0 and found.train_rate > 0 and "trains 5 SAEs on 8,000 tokens each" in str(found)


def _fixed(n_train: int) -> TrainOnError:
    targets = ("linear", "nonlinear", "linear-gaussian", "nonlinear-gaussian")
    return train_on_error(source(n_tokens=n_train), CONFIG, folds=FOLDS, targets=targets)


def _covered(fixed: TrainOnError, seed: int, truth: Any) -> list[bool]:
    found = _measure(fixed, f"draw {seed}", 3_200, seed)
    pairs = zip(found, truth, strict=True)
    return [estimate.contains(true.value) for estimate, true in pairs]


def _measure(fixed: TrainOnError, stream: str, n_tokens: int, seed: int) -> list[Any]:
    """FVU of the four, a difference and both structures, on a stream of its own with fresh Gaussian rows."""
    targets = [replace(t, seed=seed) for t in fixed.prepared.values()]
    assert fixed.maps is not None
    m = evaluate(source(n_tokens=n_tokens, stream=stream), fixed.maps, targets, fixed.saes, Split(FOLDS, every=0))
    line, rest = m["linear"], m["nonlinear"]
    fvu = [measured.fvu for measured in m.values()]
    return [
        *fvu,
        rest.minus(line),
        line.structure(m["linear-gaussian"]),
        rest.structure(m["nonlinear-gaussian"]),
    ]


def _truth_hits(seeds: int, huge: int) -> list[int]:
    fixed = _fixed(4_000)
    truth = _measure(fixed, "huge", huge, 10_000)
    return np.array([_covered(fixed, seed, truth) for seed in range(seeds)]).sum(axis=0).tolist()  # type: ignore[no-any-return]


def test_intervals_cover_what_fixed_saes_do_on_a_huge_stream() -> None:
    """Each of seven numbers; a correct procedure fails this with probability at most 7 in 1000."""
    assert min(_truth_hits(20, 60_000)) >= fewest_hits(20, rate=0.92)


@pytest.mark.slow
def test_intervals_cover_what_fixed_saes_do_on_a_huge_stream_at_full_size() -> None:
    """Of each of seven numbers, at least 90 of 100; one of a true 95 % falls below with probability 0.03."""
    found = _truth_hits(100, 400_000)
    assert min(found) >= 90, found


def _null(seed: int) -> tuple[bool, bool, bool]:
    rows = torch.from_numpy(plain_world(seed).dictionary_matrix).float()
    found = train_on_error(
        source(seed, n_tokens=10_000),
        replace(CONFIG, n_tokens=20_000, seed=seed),
        seed=seed,
        targets=("linear", "nonlinear", "nonlinear-gaussian"),
        directions={"absent": rows[10:]},
    )
    return (
        found.differences["nonlinear - nonlinear-gaussian"].contains(0.0),
        found.targets["linear"].alignment["absent"].gain.low > 0,
        found.differences["nonlinear - linear"].low > 0,
    )


def test_noise_is_as_hard_as_a_matched_gaussian_and_absent_features_are_found() -> None:
    """False alarm below 2 in 1000 at the rate of 90 % that the full test measures."""
    found = np.array([_null(seed) for seed in range(3)]).sum(axis=0)
    assert found[0] >= fewest_hits(3, rate=0.9) and found[1] >= 2 and found[2] == 3


@pytest.mark.slow
def test_noise_is_as_hard_as_a_matched_gaussian_and_absent_features_are_found_at_full_size() -> None:
    """Over 100 worlds; measured 92, 99, 100. The interval of the first holds trained SAEs fixed: no 95 % is promised.

    A rate of 90 % falls below the bound of the first in 1 of 1000 runs.
    """
    found = np.array([_null(seed) for seed in range(100)]).sum(axis=0)
    assert found[0] >= fewest_hits(100, rate=0.9) and (found[1:] >= 90).all(), found


SMALL = ("--latents", 32, "--k", 4, "--train-tokens", 4_000, "--batch-size", 256)


def test_the_command_on_a_world(tmp_path: Path) -> None:
    world = tmp_path / "experiment.json"
    from darkmatter.sandbox.experiment import Experiment

    world.write_text(json.dumps(Experiment(world=plain_world(), sae=noisy(), n_tokens=4_000).to_dict()))
    out = tmp_path / "out"
    report = analyse(
        "train-on-error", out, "--world", world, *SMALL, "--folds", 10, "--control", "shuffled", "--control", "noise"
    )
    targets = report["result"]["targets"]
    assert {"linear", "nonlinear", "x", "nonlinear~shuffled", "nonlinear~noise"} <= set(targets)
    assert report["truth"] == {"n_absent": 10, "n_learned": 10}
    assert targets["linear"]["alignment"]["absent"]["n_directions"] == 10
    assert load_sae(out / "saes" / "nonlinear").d_sae == 32
    latents = json.loads((out / "latents" / "linear.json").read_text())
    assert len(latents["latents"]) == 32 and {"document", "position"} <= set(latents["random"][0])


def test_the_command_on_a_model(tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = (*model_options(tmp_path, "r1-128", "r1-64"), "--latents", 64, "--k", 8, "--batch-size", 512)
    report = analyse(
        "train-on-error", out, *given, "--train-tokens", 10_000, "--target", "linear", "--target", "nonlinear",
        "--contexts", 4, "--of", "r1-64", "--control", "random",
    )  # fmt: skip
    assert report["result"]["name"] == "r1-64" and report["result"]["targets"]["linear"]["n_tokens"] == 9728
    latents = json.loads((out / "latents" / "nonlinear.json").read_text())["latents"]
    shown = next(latent for latent in latents if latent["top"])
    assert "<<" in shown["top"][0]["text"] and 0 <= shown["nearest_original"]["cosine"] <= 1


def test_the_command_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "--interp-model" in refused("train-on-error", "--world", "tiny", *out, "--endpoint", "http://127.0.0.1:9")
    assert "no meaning without --endpoint" in refused("train-on-error", "--world", "tiny", *out, "--interp-model", "m")
    assert "targets are" in refused("train-on-error", "--world", "paper", "--max-tokens", 20_000, *out, "--target", "y")
    judged = ("--endpoint", "http://127.0.0.1:9", "--interp-model", "m")
    assert "words of the tokens" in refused("train-on-error", "--world", "paper", *out, *judged)
    unset = refused("train-on-error", "--world", "tiny", *out, *judged, "--api-key-env", "NO_SUCH_KEY")
    assert "NO_SUCH_KEY is not set" in unset
