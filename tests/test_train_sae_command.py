"""`darkmatter train-sae`: every architecture, its exports read back, its history, and a killed run that goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import torch

from darkmatter.adapters import LoadedModel, ModelActivations, load_any_sae, load_model, model_activations
from darkmatter.adapters.positions import PositionPolicy
from darkmatter.adapters.training import training_activations
from darkmatter.commands.exports import check_exports
from darkmatter.commands.model_options import ModelOptions
from darkmatter.commands.train_sae import run_train_sae, train_config
from darkmatter.errors import InputError
from darkmatter.sae import Architecture, TrainConfig, load_sae, load_sae_metadata
from darkmatter.sae.config import SELECTING
from tests.helpers import KINDS, configure

models = pytest.mark.models
FIXTURE = Path(__file__).parent / "fixtures" / "tiny-gemma2"
TEXTS = [part for key in sorted(topics.topics) for part in topics.topics[key].split("\n\n") if len(part) > 200][:120]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> ModelOptions:
    pytest.importorskip("transformers")
    text = tmp_path_factory.mktemp("text") / "help.json"
    text.write_text(json.dumps(TEXTS))
    return ModelOptions(
        model=str(FIXTURE),
        site="resid_post:2",
        text=text,
        revision=None,
        dtype="float32",
        device="cpu",
        context_length=64,
        batch_docs=8,
        skip_first=1,
        max_tokens=None,
    )


@pytest.fixture(scope="module")
def activations(options: ModelOptions) -> ModelActivations:
    return options.activations()


def small(kind: Architecture, **fields: Any) -> TrainConfig:
    return configure(kind, **({"d_sae": 48, "n_tokens": 4096, "batch_size": 256, "report_every": 4} | fields))


# every architecture


@models
@pytest.mark.parametrize("kind", KINDS)
def test_trains_saves_and_exports(
    kind: Architecture,
    options: ModelOptions,
    activations: ModelActivations,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exports = ["saelens"] if kind == "topk" else ["saelens", "gemmascope"]
    run_train_sae(options, small(kind), out=tmp_path / "sae", exports=exports)
    folder, shown = tmp_path / "sae", capsys.readouterr()
    latents = "latents" if kind == "topk" else f"{kind} latents"
    sparsity = "k = 4" if kind in SELECTING else "L0 = "
    assert f"Trained 48 {latents}, {sparsity}" in shown.out and "on 4,096 tokens" in shown.out
    assert not (folder / "training").exists()

    written = json.loads((folder / "training.json").read_text())
    assert [tokens for tokens, _ in written["history"]] == [1024, 2048, 3072, 4096]
    assert written["history"][-1][1] < written["history"][0][1]
    assert written["config"]["architecture"] == kind and written["source"]["site"] == "resid_post:2"
    assert load_sae_metadata(folder)["final_fvu"] == written["history"][-1][1]

    x = next(iter(activations)).x
    ours = load_sae(folder)(x)
    for place, hook in (("saelens", "blocks.2.hook_resid_post"), ("gemmascope", None)):
        if place in exports:
            assert place + "/" in shown.err
            read = load_any_sae(folder / place, family=place)
            assert read.hook == hook
            # the exports are folded in float64 and rounded once: float32's rounding in sums of 96 and of 48 terms
            scale = float(x.abs().max())
            assert float((read.sae(x) - ours).abs().max()) < 96 * torch.finfo(torch.float32).eps * scale
    assert load_any_sae(folder / "saelens").site == "resid_post:2"


# a killed run


class _KilledError(Exception):
    pass


@models
@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_a_killed_run_goes_on_to_the_same_bits(kind: Architecture, options: ModelOptions, tmp_path: Path) -> None:
    config = small(kind, seed=3)
    reads: list[int] = []
    read = ModelActivations.read

    def killed(self: ModelActivations, sequences: Any) -> Any:
        reads.append(len(sequences))
        if len(reads) == 9:
            raise _KilledError
        return read(self, sequences)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelActivations, "read", killed)
        with pytest.raises(_KilledError):
            run_train_sae(options, config, out=tmp_path / "cut", checkpoint_seconds=0.0)
    assert not (tmp_path / "cut" / "cfg.json").exists()

    def counted(self: ModelActivations, sequences: Any) -> Any:
        reads.append(len(sequences))
        return read(self, sequences)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelActivations, "read", counted)
        reads.clear()
        run_train_sae(options, config, out=tmp_path / "cut", checkpoint_seconds=0.0)
        resumed = len(reads)
        reads.clear()
        run_train_sae(options, config, out=tmp_path / "whole")
    for name in ("cfg.json", "sae.safetensors", "training.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    # 8 batches of documents were read before; the last, of which a part waited for a step, is read again
    assert len(reads) - 8 <= resumed <= len(reads) - 7


@models
def test_a_save_of_another_run_is_refused(options: ModelOptions, tmp_path: Path) -> None:
    config = small("topk")

    class _Stop(Exception):  # noqa: N818
        pass

    def stop(*_: Any) -> None:
        raise _Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("darkmatter.commands.train_sae.write_json", stop)
        with pytest.raises(_Stop):
            run_train_sae(options, config, out=tmp_path, checkpoint_seconds=0.0)
    with pytest.raises(InputError, match=r"holds a run with seed = 0, expected 1: delete .*training to start again"):
        run_train_sae(options, replace(config, seed=1), out=tmp_path)
    other = replace(options, site="resid_post:1")
    with pytest.raises(
        InputError, match=r"holds a run with source = .*resid_post:2.*, expected .*resid_post:1.*: delete "
    ):
        run_train_sae(other, config, out=tmp_path)
    run_train_sae(options, config, out=tmp_path)
    with pytest.raises(InputError, match=r"already holds an SAE: choose another --out, or delete it$"):
        run_train_sae(options, config, out=tmp_path)


# the stream


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    pytest.importorskip("transformers")
    return load_model(FIXTURE)


@models
@pytest.mark.parametrize("norm_filter", [None, 1.2])
@pytest.mark.parametrize("start", [0, 1, 97, 300, 1001, 1500])
def test_the_stream_can_begin_anywhere(loaded: LoadedModel, start: int, norm_filter: float | None) -> None:
    policy = PositionPolicy(norm_filter=norm_filter)
    rows = model_activations(loaded, "resid_post:1", TEXTS[:24], context_length=32, batch_docs=5, positions=policy)
    stream = training_activations(rows, n_tokens=1500, seed=1)
    whole = torch.cat(list(stream))
    assert whole.shape == (1500, 96)
    rest = list(stream.starting_at(start))
    assert torch.equal(torch.cat([*rest, whole[:0]]), whole[start:])


@models
def test_beginning_later_runs_the_model_less(loaded: LoadedModel) -> None:
    rows = model_activations(loaded, "resid_post:1", TEXTS[:24], context_length=32, batch_docs=4)
    stream = training_activations(rows, n_tokens=1200, seed=1)
    calls: list[int] = []
    handle = loaded.model.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    try:
        sizes = [len(x) for x in stream]
        assert len(calls) == len(sizes)
        calls.clear()
        assert sum(map(len, stream.starting_at(sum(sizes[:-2])))) == sum(sizes[-2:])
    finally:
        handle.remove()
    assert len(calls) == 2


@models
def test_the_stream_refuses(loaded: LoadedModel) -> None:
    rows = model_activations(loaded, "resid_post:1", TEXTS[:4], context_length=32)
    with pytest.raises(InputError, match=r"^n_tokens is 0, expected at least 1$"):
        training_activations(rows, n_tokens=0, seed=0)
    two = model_activations(loaded, ["resid_post:1", "mlp_out:1"], TEXTS[:4], context_length=32)
    with pytest.raises(InputError, match=r"^these activations have 2 sites, expected one"):
        training_activations(two, n_tokens=8, seed=0)
    empty = model_activations(loaded, "resid_post:1", TEXTS[:1], context_length=32, rank=1, size=2)
    with pytest.raises(InputError, match=r"^no token is left to train on: this share is empty"):
        next(iter(training_activations(empty, n_tokens=8, seed=0)))


# settings


def test_options_become_settings() -> None:
    assert train_config({}) == TrainConfig(d_sae=512, k=16, n_tokens=1_000_000)
    given = {"architecture": "jumprelu", "latents": 64, "train-tokens": 9000, "seed": 5, "lr": 1e-3}
    # the sparsity stays, as an L0 to steer to
    expected = TrainConfig(architecture="jumprelu", d_sae=64, l0=16.0, n_tokens=9000, seed=5, lr=1e-3)
    assert train_config(given) == expected
    assert train_config({"architecture": "relu", "l1": 0.3}).l0 is None
    nested = train_config({"architecture": "matryoshka", "groups": "64+128+512", "k": 8})
    assert (nested.groups, nested.k) == ((64, 128, 512), 8)
    assert train_config({"sae-seed": 4}).seed == 4


def test_settings_refuse() -> None:
    with pytest.raises(InputError, match=r"^architecture is 'vanilla', expected one of topk, "):
        train_config({"architecture": "vanilla"})
    with pytest.raises(InputError, match=r"^l1 is given with architecture 'topk', expected only for relu, gated$"):
        train_config({"l1": 0.1})
    with pytest.raises(InputError, match=r"^a surgical SAE needs a world with known truth: use `darkmatter synth`$"):
        train_config({"surgical": True})


def test_exports_are_checked_first() -> None:
    check_exports(["saelens"], "topk")
    check_exports(["saelens", "gemmascope"], "gated")
    with pytest.raises(InputError, match=r"^export is 'onnx', expected one of saelens, gemmascope$"):
        check_exports(["saelens", "onnx"], "relu")
    with pytest.raises(InputError, match=r"^a topk SAE has no threshold for --export gemmascope: use saelens, or "):
        check_exports(["gemmascope"], "topk")


@models
def test_nothing_is_trained_for_an_export_that_cannot_be(options: ModelOptions, tmp_path: Path) -> None:
    missing = replace(options, model="nowhere")
    with pytest.raises(InputError, match=r"has no threshold"):
        run_train_sae(missing, small("topk"), out=tmp_path, exports=["gemmascope"])
