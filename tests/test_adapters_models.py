"""A real (tiny) language model: loading, hooks, streaming, and the source made of it."""

from __future__ import annotations

import copy
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data import topics
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from darkmatter.adapters import (
    LoadedModel,
    ModelActivations,
    ModelSource,
    PositionPolicy,
    Site,
    load_model,
    model_activations,
    model_source,
    training_activations,
)
from darkmatter.adapters.reading import capture
from darkmatter.batch import ResumableSource, check_source, iterate_from
from darkmatter.errors import DarkmatterError, FileFormatError, InputError

FIXTURE = Path(__file__).parent / "fixtures" / "tiny-gemma2"
TEXTS = [topics.topics[key] for key in sorted(topics.topics)][:20]
SITE = Site(kind="resid_post", layer=1)
models = pytest.mark.models


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    pytest.importorskip("transformers")
    return load_model(FIXTURE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("transformers")
    return Path(shutil.copytree(FIXTURE, tmp_path / "model"))


def tokens(batch: int = 3, length: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, 1024, (batch, length), generator=torch.Generator().manual_seed(seed))
    return ids, torch.ones_like(ids)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# --- loading ----------------------------------------------------------------------------------------------------------


@models
def test_loaded_model_says_what_it_is(loaded: LoadedModel) -> None:
    assert (loaded.name, loaded.revision, loaded.dtype) == ("tiny-gemma2", None, "float32")
    assert (loaded.d_model, loaded.n_layers) == (96, 4)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    config: Any = loaded.model.config
    assert config._attn_implementation == "eager"


@models
def test_the_fixture_is_a_trained_model(loaded: LoadedModel) -> None:
    # An untrained model has ln 1024 = 6.93 nats per token; a wrong hook order or mask would raise it as well.
    ids = torch.tensor([[2, *loaded.tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"][:127]]])
    with torch.no_grad():
        logits = loaded.model(input_ids=ids).logits
    assert float(nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])) < 5.5


@models
def test_loading_is_silent_and_restores_what_it_silenced(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    logging = transformers.utils.logging
    during: list[tuple[int, bool]] = []
    original = transformers.AutoConfig.from_pretrained

    def spy(*args: Any, **kwargs: Any) -> Any:
        during.append((logging.get_verbosity(), logging.is_progress_bar_enabled()))
        return original(*args, **kwargs)

    def state() -> tuple[int, bool, list[Any]]:
        return logging.get_verbosity(), logging.is_progress_bar_enabled(), list(warnings.filters)

    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity_info()  # loud, so that the silence is our doing
        logging.enable_progress_bar()
        before = state()
        monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", spy)
        again = load_model(FIXTURE)
        assert set(during) == {(logging.ERROR, False)}
        assert state() == before
    finally:
        logging.set_verbosity(verbosity)
    assert capfd.readouterr() == ("", "")
    assert again.fingerprint == loaded.fingerprint


@models
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str, loaded: LoadedModel) -> None:
    half = load_model(FIXTURE, dtype=dtype)
    assert next(half.model.parameters()).dtype == getattr(torch, dtype)
    source = model_activations(half, SITE, TEXTS[:2], context_length=16)
    exact = next(iter(model_activations(loaded, SITE, TEXTS[:2], context_length=16))).x
    got = next(iter(source)).x
    assert got.dtype == torch.float32
    # Two blocks of about a dozen roundings of eps / 2 each, adding like a random walk: sqrt(24) eps / 2 = 2.4 eps.
    assert 0 < relative(got, exact) < 4 * torch.finfo(getattr(torch, dtype)).eps
    assert source.description["model_dtype"] == dtype


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def drop_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


BROKEN: dict[str, tuple[Callable[[Path], Any], type[DarkmatterError], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), FileFormatError, "config.json does not exist"),
    "config not json": (lambda f: (f / "config.json").write_text("{"), FileFormatError, "read as JSON"),
    "no model type": (lambda f: edit_config(f, model_type=None), InputError, "model type None"),
    "odd model type": (lambda f: edit_config(f, model_type=["gemma2"]), InputError, "model type"),
    "unknown type": (lambda f: edit_config(f, model_type="nonesuch"), InputError, "does not know it"),
    "remote code": (
        lambda f: edit_config(f, model_type="nonesuch", auto_map={"AutoModelForCausalLM": "modeling.Model"}),
        InputError,
        "its own code, which is never run",
    ),
    "not causal": (lambda f: edit_config(f, model_type="t5"), InputError, "expected a causal language model"),
    "other widths": (lambda f: edit_config(f, hidden_size=64), FileFormatError, "damaged, incomplete or foreign"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), FileFormatError, r"no \*.safetensors"),
    "cut weights": (cut_weights, FileFormatError, "damaged, incomplete or foreign"),
    "missing weight": (drop_weight, FileFormatError, "lacks 1 weights.*up_proj"),
    "no tokenizer": (drop_tokenizer, FileFormatError, "no tokenizer, expected one of"),
    "bad tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), FileFormatError, "cannot be loaded"),
}


@models
@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_refused_in_one_line(folder: Path, case: str) -> None:
    damage, kind, words = BROKEN[case]
    damage(folder)
    with pytest.raises(kind, match=words) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@models
def test_code_in_the_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    (folder / "modeling.py").write_text(f"open({str(trap)!r}, 'w')\nclass Model: pass\n")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling.Model", "AutoConfig": "modeling.Model"})
    assert load_model(folder).n_layers == 4  # the type is known to transformers, so its own class is used
    assert not trap.exists()


@models
@pytest.mark.parametrize(
    ("where", "options", "words"),
    [
        (FIXTURE, {"dtype": "int8"}, "dtype is 'int8', expected one of float32"),
        (FIXTURE, {"device": "nonesuch"}, "device 'nonesuch' cannot be used"),
        (FIXTURE, {"revision": "main"}, "local folder"),
        (FIXTURE / "config.json", {}, "not a folder"),
        ("./nonesuch", {}, "not a folder"),
    ],
)
def test_bad_arguments(where: Any, options: dict[str, Any], words: str) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match=words) as caught:
        load_model(where, **options)
    assert "\n" not in str(caught.value)


@models
def test_an_unreachable_hub_id_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(hub, "hf_hub_download", unreachable)
    with pytest.raises(InputError, match=r"nobody/none cannot be loaded.*couldn't connect\): check the id") as caught:
        load_model("nobody/none")
    assert "\n" not in str(caught.value)


def test_missing_transformers_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'darkmatter\[models\]'"):
        load_model(FIXTURE)


# --- capture ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, d: int, as_tuple: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(d, d)
        self.as_tuple = as_tuple
        self.calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        out = x + self.linear(x).tanh()
        return (out, "cache") if self.as_tuple else out


class Toy(nn.Module):
    """A stack of blocks that looks enough like a language model to be captured from."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(num_hidden_layers=3)
        self.embed = nn.Embedding(50, 4)
        self.layers = nn.ModuleList(Block(4, as_tuple) for _ in range(3))
        self.stop_before = 3

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Tensor:
        x = self.embed(input_ids)
        for layer in list(self.layers)[: self.stop_before]:
            out = layer(x)
            x = out[0] if isinstance(out, tuple) else out
        return x


@pytest.fixture(autouse=True)
def _global_rng_is_kept() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("as_tuple", [False, True])
def test_tuple_and_tensor_outputs_and_early_exit(as_tuple: bool) -> None:
    toy = Toy(as_tuple).eval()
    ids = torch.arange(10).reshape(2, 5)
    got = capture(toy, [SITE], ids, torch.ones_like(ids))[SITE]
    want = toy.embed(ids)
    for layer in toy.layers[:2]:
        want = want + layer.linear(want).tanh()
    assert got.shape == (2, 5, 4)
    assert torch.equal(got, want)
    assert [layer.calls for layer in toy.layers] == [1, 1, 0]
    assert hooks(toy) == 0


def test_captured_activations_can_be_trained_on() -> None:
    toy = Toy(False).eval()
    ids = torch.arange(4)[None]
    got = capture(toy, [SITE], ids, torch.ones_like(ids))[SITE]
    assert not got.is_inference()
    weight = torch.zeros(4, 4, requires_grad=True)
    (got @ weight).sum().backward()
    assert weight.grad is not None


def test_errors_inside_the_model_surface_and_leave_no_hook() -> None:
    toy = Toy(False).eval()
    with pytest.raises(IndexError):
        capture(toy, [SITE], torch.tensor([[99]]), torch.ones(1, 1))
    assert hooks(toy) == 0
    toy.stop_before = 1
    with pytest.raises(InputError, match="never ran resid_post:1"):
        capture(toy, [SITE], torch.tensor([[9]]), torch.ones(1, 1))
    assert hooks(toy) == 0


def test_an_output_of_another_shape_is_refused() -> None:
    toy = Toy(False).eval()
    toy.layers[1] = nn.Flatten()
    with pytest.raises(InputError, match=r"yields \(2, 20\), expected \(batch, pos, d\)"):
        capture(toy, [SITE], torch.arange(10).reshape(2, 5), torch.ones(2, 5))


@models
@pytest.mark.parametrize("layer", range(4))
def test_capture_equals_a_full_forward_and_a_truncated_model(loaded: LoadedModel, layer: int) -> None:
    ids, mask = tokens()
    site = Site(kind="resid_post", layer=layer)
    got = capture(loaded.model, [site], ids, mask)[site]
    full: list[Any] = []
    inner: Any = loaded.model.model
    handle = inner.layers[layer].register_forward_hook(lambda m, i, out: full.append(out))
    with torch.no_grad():
        loaded.model(input_ids=ids, attention_mask=mask)
    handle.remove()
    want = full[0][0] if isinstance(full[0], tuple) else full[0]
    assert torch.equal(got, want)

    short: Any = copy.deepcopy(inner)
    short.layers = short.layers[: layer + 1]
    short.config.num_hidden_layers = layer + 1
    short.norm = nn.Identity()
    with torch.no_grad():
        assert torch.equal(got, short(input_ids=ids, attention_mask=mask).last_hidden_state)


@models
def test_capture_leaves_the_model_as_it_was(loaded: LoadedModel) -> None:
    ids, mask = tokens()
    with torch.no_grad():
        before = loaded.model(input_ids=ids, attention_mask=mask).logits
        count = hooks(loaded.model)
        capture(loaded.model, [SITE], ids, mask)
        assert hooks(loaded.model) == count
        assert torch.equal(loaded.model(input_ids=ids, attention_mask=mask).logits, before)


# --- activations ------------------------------------------------------------------------------------------------------


def join(activations: ModelActivations) -> tuple[Tensor, Any, Any, Any]:
    found = list(activations)
    return (
        torch.cat([b.x for b in found]),
        np.concatenate([b.groups for b in found]),
        np.concatenate([b.token_ids for b in found]),
        np.concatenate([b.positions for b in found]),
    )


SHORT = ["The loop ends.", "", "An assignment statement evaluates the expression list.", TEXTS[3], "if", TEXTS[5]]


@models
def test_groups_positions_and_token_ids_are_right_and_bos_is_dropped(loaded: LoadedModel) -> None:
    x, groups, ids, positions = join(model_activations(loaded, SITE, SHORT, context_length=24, batch_docs=3))
    row = 0
    for index, text in enumerate(SHORT):
        raw = loaded.tokenizer(text, add_special_tokens=False)["input_ids"][:23]
        rows = slice(row, row + len(raw))
        assert ids[rows].tolist() == raw
        assert groups[rows].tolist() == [index] * len(raw)
        assert positions[rows].tolist() == list(range(1, len(raw) + 1))
        row += len(raw)
    assert row == len(x) == len(ids)
    assert 2 not in ids


@models
def test_each_row_is_the_activation_of_its_token(loaded: LoadedModel) -> None:
    x, groups, ids, positions = join(model_activations(loaded, SITE, SHORT, context_length=24, batch_docs=4))
    for index in np.unique(groups):
        of_doc = groups == index
        alone = torch.tensor([[2, *ids[of_doc].tolist()]])
        want = capture(loaded.model, [SITE], alone, torch.ones_like(alone))[SITE][0, positions[of_doc]]
        assert relative(x[torch.from_numpy(of_doc)], want) < 1e-5


@models
def test_padding_does_not_change_activations(loaded: LoadedModel) -> None:
    one = join(model_activations(loaded, SITE, SHORT, context_length=100, batch_docs=1))
    many = join(model_activations(loaded, SITE, SHORT, context_length=100, batch_docs=8))
    for a, b in zip(one[1:], many[1:], strict=True):
        assert np.array_equal(a, b)
    # Same sums in another order: about 300 terms each, eps 6e-8, two blocks; a leak of padding would be of order 1.
    per_row = (one[0] - many[0]).norm(dim=1) / one[0].norm(dim=1)
    assert float(per_row.max()) < 1e-5


@models
def test_bos_matters_and_can_be_kept_or_left_out(loaded: LoadedModel) -> None:
    kept = join(model_activations(loaded, SITE, SHORT, skip_first=0, context_length=24))
    assert (kept[2][kept[3] == 0] == 2).all()
    without = join(model_activations(loaded, SITE, SHORT, skip_first=0, context_length=24, bos="none"))
    assert 2 not in without[2]
    dropped = join(model_activations(loaded, SITE, SHORT, context_length=24))
    assert torch.equal(kept[0][torch.from_numpy(kept[3] > 0)], dropped[0])


@models
def test_max_tokens_is_a_prefix(loaded: LoadedModel) -> None:
    every = join(model_activations(loaded, SITE, SHORT, context_length=24, batch_docs=2))
    some = model_activations(loaded, SITE, SHORT, context_length=24, batch_docs=2, max_tokens=30)
    x, groups, ids, _ = join(some)
    assert len(x) == some.outcome["n_tokens"] == some.description["max_tokens"] == 30
    assert np.array_equal(ids, every[2][:30])
    assert np.array_equal(groups, every[1][:30])
    assert relative(x, every[0][:30]) < 1e-5


@models
def test_description_counts_what_iteration_yields(loaded: LoadedModel) -> None:
    stream = model_activations(loaded, "resid_post:1", SHORT, context_length=24, skip_first=3, text="t.json")
    facts = stream.description
    assert stream.outcome == {}
    x, groups, _, positions = join(stream)
    assert stream.description == facts  # it identifies a run, so a pass must not change it
    assert stream.outcome["n_tokens"] == len(x)
    assert stream.outcome["n_documents"] == len(np.unique(groups))
    assert stream.outcome["n_documents"] + stream.outcome["n_documents_dropped"] == len(SHORT)
    assert positions.min() == 3
    assert (facts["model"], facts["site"], facts["text"]) == ("tiny-gemma2", "resid_post:1", "t.json")
    assert facts["bos"] == "prepended to every document"
    json.dumps(dict(facts), allow_nan=False)


@models
def test_resuming_skips_the_forward_passes(loaded: LoadedModel) -> None:
    stream = model_activations(loaded, SITE, TEXTS[:10], context_length=16, batch_docs=3)
    whole = list(stream)
    calls: list[int] = []
    handle = loaded.model.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    try:
        rest = list(stream.batches_from(2))
    finally:
        handle.remove()
    assert (len(whole), len(rest), len(calls)) == (4, 2, 2)
    for a, b in zip(rest, whole[2:], strict=True):
        assert torch.equal(a.x, b.x)
        assert np.array_equal(a.groups, b.groups)
    assert list(stream.batches_from(9)) == []


@models
def test_training_stream_is_seeded_covers_every_epoch_and_stops(loaded: LoadedModel) -> None:
    stream = model_activations(loaded, SITE, TEXTS[:7], context_length=12, batch_docs=3)
    n = sum(len(batch.x) for batch in stream)

    def draw(n_tokens: int, seed: int) -> Tensor:
        return torch.cat(list(training_activations(stream, n_tokens=n_tokens, seed=seed)))

    two = draw(2 * n + 5, 0)
    assert two.shape == (2 * n + 5, 96)
    assert torch.equal(two, draw(2 * n + 5, 0))
    assert not torch.equal(two[:n], two[n : 2 * n])
    assert not torch.equal(two[:n], draw(n, 1))
    every = torch.cat([b.x for b in stream]).double()
    for epoch in (two[:n], two[n : 2 * n]):  # the same rows in another order: equal sums, up to rounding
        assert relative(epoch.double().sum(0), every.sum(0)) < 1e-5
        assert relative((epoch.double() ** 2).sum(0), (every**2).sum(0)) < 1e-5
    with pytest.raises(InputError, match="n_tokens is 0"):
        next(iter(training_activations(stream, n_tokens=0, seed=0)))


def broken_copy(loaded: LoadedModel, dtype: str) -> LoadedModel:
    model = copy.deepcopy(loaded.model)
    inner: Any = model
    with torch.no_grad():
        inner.model.layers[0].mlp.down_proj.weight[0, 0] = float("inf")
    return LoadedModel(model, loaded.tokenizer, "broken", None, dtype, 96, 4, "0")


@models
@pytest.mark.parametrize(("dtype", "remedy"), [("float16", "in bfloat16 or float32"), ("float32", "model's weights")])
def test_activations_that_are_not_finite(loaded: LoadedModel, dtype: str, remedy: str) -> None:
    stream = model_activations(broken_copy(loaded, dtype), SITE, ["Hello there."])
    with pytest.raises(InputError, match=rf"NaN or infinite \(first in document 0, position 1\): .*{remedy}"):
        next(iter(stream))


@models
@pytest.mark.parametrize(
    ("site", "options", "words"),
    [
        ("resid_post:4", {}, "layers run from 0 to 3"),
        ("mlp_in:1", {}, "not supported"),
        ("resid_post:1", {"batch_docs": 0}, "batch_docs is 0"),
        ("resid_post:1", {"context_length": 513}, "expected at most 512"),
        ("resid_post:1", {"skip_first": 128}, "no position would be left"),
        ("resid_post:1", {"skip_first": 1, "positions": PositionPolicy()}, "expected one of the two"),
        ((), {}, "no site, expected at least one"),
    ],
)
def test_bad_activation_options(loaded: LoadedModel, site: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        model_activations(loaded, site, TEXTS[:1], **options)


@models
def test_a_tokenizer_of_another_model_or_without_bos(loaded: LoadedModel) -> None:
    def tokenizer(texts: list[str], **options: Any) -> Any:
        return {"input_ids": [[5, 4000] for _ in texts]}

    other = LoadedModel(loaded.model, tokenizer, "m", None, "float32", 96, 4, "0")
    with pytest.raises(InputError, match="no BOS token"):
        model_activations(other, SITE, ["a"])
    with pytest.raises(InputError, match="document 0 holds token id 4000, but m has 1024 embeddings"):
        model_activations(other, SITE, ["a"], bos="none")


# --- the source -------------------------------------------------------------------------------------------------------


class Half(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


@models
def test_model_source_end_to_end_from_files(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "text.json").write_text(json.dumps(TEXTS))
    source = model_source(
        FIXTURE,
        "resid_post:2",
        tmp_path / "text.json",
        {"half": Half(96), "zero": torch.zeros_like},
        context_length=32,
        batch_docs=6,
        max_tokens=500,
        notes={"half": {"width": 96}},
    )
    assert isinstance(source, ResumableSource)
    checked = check_source(source, max_batches=100)
    list(source)
    assert checked.n_tokens == source.outcome["n_tokens"] == 500
    assert checked.n_groups == source.outcome["n_documents"] >= 17  # at most 31 tokens from each: 500 / 31, up
    assert source.names == ("half", "zero")
    assert source.description["saes"] == {"half": {"width": 96}}
    first = next(iter(source))
    assert torch.equal(torch.as_tensor(first.recons["half"]), torch.as_tensor(first.x) * 0.5)
    assert not torch.as_tensor(first.recons["half"]).requires_grad
    resumed, skipped = list(iterate_from(source, 1)), list(source)[1:]
    assert len(resumed) == len(skipped) == checked.n_batches - 1 > 0
    for a, b in zip(resumed, skipped, strict=True):
        assert torch.equal(torch.as_tensor(a.recons["half"]), torch.as_tensor(b.recons["half"]))


@models
def test_model_source_refuses_saes_that_do_not_fit(loaded: LoadedModel) -> None:
    stream = model_activations(loaded, SITE, TEXTS[:1])
    cases: list[tuple[Any, str]] = [
        ({}, "non-empty tuple"),
        ({"": Half(96)}, "non-empty tuple"),
        ({"a": 3}, "SAE 'a' is a int, expected a callable"),
        ({"a": Half(2304)}, "d_model 2304, but resid_post:1 of tiny-gemma2 has 96"),
    ]
    for saes, words in cases:
        with pytest.raises(InputError, match=words):
            ModelSource(activations=stream, saes=saes)


def test_a_missing_text_fails_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(FileFormatError, match="not a file"):
        model_source(FIXTURE, "resid_post:1", tmp_path / "none.txt", {"a": Half(96)})


@models
def test_a_hub_model_records_the_commit_that_its_revision_means(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    transformers = pytest.importorskip("transformers")
    asked: list[Any] = []

    def download(repo: str, name: str, *, revision: str | None) -> str:
        asked.append((repo, name, revision))
        return str(tmp_path / "models--owner--name" / "snapshots" / "abc123" / "config.json")

    def local(kind: Any) -> Any:
        original = kind.from_pretrained

        def load(place: str, **options: Any) -> Any:
            assert options["trust_remote_code"] is False or place != "owner/name"
            asked.append((place, options.pop("revision", None)))
            return original(str(FIXTURE), **options | {"local_files_only": True})

        return load

    monkeypatch.setattr(hub, "hf_hub_download", download)
    for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"):
        kind = getattr(transformers, name)
        monkeypatch.setattr(kind, "from_pretrained", local(kind))
    got = load_model("owner/name", revision="main")
    assert got.revision == "abc123"
    assert asked[0] == ("owner/name", "config.json", "main"), "by its name, or it cannot be found offline later"
    rest = {entry for entry in asked[1:] if entry[0] == "owner/name"}  # loading the fixture asks for its own files
    assert rest == {("owner/name", "abc123")}, "all else from that commit"
    assert got.fingerprint == loaded.fingerprint
