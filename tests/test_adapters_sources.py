"""A model's activations at several sites, under policies and limits, and the sources made of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
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
    ModelSitesSource,
    ModelSource,
    PositionPolicy,
    load_model,
    model_activations,
    parse_site,
    token_rows,
)
from darkmatter.adapters import forward as forward_module
from darkmatter.adapters.backoff import BackOff
from darkmatter.adapters.reading import capture
from darkmatter.adapters.run_saes import beside
from darkmatter.batch import check_source
from darkmatter.errors import InputError

pytestmark = pytest.mark.models
FIXTURE = Path(__file__).parent / "fixtures" / "tiny-gemma2"
TEXTS = [topics.topics[key] for key in sorted(topics.topics)][:20]
SITES = ("resid_post:2", "mlp_out:1", "attn_z:1", "model.layers.0.self_attn.q_proj.output")
EPS = float(torch.finfo(torch.float32).eps)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    pytest.importorskip("transformers")
    return load_model(FIXTURE)


def all_of(stream: ModelActivations, site: str) -> tuple[Tensor, Any, Any, Any]:
    found = [batches[parse_site(site)] for batches in stream.site_batches_from(0)]
    return (
        torch.cat([b.x for b in found]),
        np.concatenate([b.groups for b in found]),
        np.concatenate([b.token_ids for b in found]),
        np.concatenate([b.positions for b in found]),
    )


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# several sites


def test_several_sites_share_one_forward_pass_and_equal_single_ones(loaded: LoadedModel) -> None:
    options: dict[str, Any] = {"context_length": 20, "batch_docs": 4}
    stream = model_activations(loaded, SITES, TEXTS[:6], **options)
    calls: list[int] = []
    handle = loaded.model.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    try:
        batches = list(stream.site_batches_from(0))
    finally:
        handle.remove()
    assert len(batches) == len(calls) == 2
    assert [str(site) for site in stream.sites] == list(SITES)
    assert stream.widths == {parse_site(site): width for site, width in zip(SITES, (96, 96, 128, 128), strict=True)}
    for site in SITES:
        x, groups, ids, _ = all_of(stream, site)
        alone = list(model_activations(loaded, site, TEXTS[:6], **options))
        assert torch.equal(x, torch.cat([b.x for b in alone]))
        assert np.array_equal(groups, np.concatenate([b.groups for b in alone]))
        assert np.array_equal(ids, np.concatenate([b.token_ids for b in alone]))
    assert stream.description["site"] == ", ".join(SITES)
    json.dumps(dict(stream.description), allow_nan=False)
    with pytest.raises(InputError, match="have 4 sites, expected one: use `site_batches_from`"):
        next(iter(stream))


def test_widths_come_from_the_tensors(loaded: LoadedModel) -> None:
    site = "model.layers.1.mlp.down_proj.input"
    stream = model_activations(loaded, site, TEXTS[:2], context_length=12)
    assert stream.d_model == next(iter(stream)).x.shape[1] != loaded.d_model
    assert stream.description["d_model"] == stream.d_model


def test_a_site_named_twice_counts_once(loaded: LoadedModel) -> None:
    stream = model_activations(loaded, ["resid_post:1", "blocks.1.hook_resid_post"], TEXTS[:1])
    assert [str(site) for site in stream.sites] == ["resid_post:1"]


def test_sites_source_equals_its_single_sources(loaded: LoadedModel) -> None:
    stream = model_activations(loaded, SITES[:3], TEXTS[:6], context_length=20, batch_docs=4)
    saes: dict[str, dict[str, Any]] = {
        SITES[0]: {"half": lambda x: x / 2, "zero": torch.zeros_like},
        SITES[1]: {"half": lambda x: x / 2},
        SITES[2]: {"other": torch.sin},
    }
    source = ModelSitesSource(stream, saes, {SITES[0]: {"half": {"by": "hand"}}})
    assert source.sites == SITES[:3]
    assert source.names == {SITES[0]: ("half", "zero"), SITES[1]: ("half",), SITES[2]: ("other",)}
    assert source.description["saes"] == {SITES[0]: {"half": {"by": "hand"}}}
    found = list(source)
    assert source.outcome["n_documents"] == 6
    for site in SITES[:3]:
        one = model_activations(loaded, site, TEXTS[:6], context_length=20, batch_docs=4)
        single = ModelSource(activations=one, saes=saes[site])
        check_source(single)
        for many, alone in zip(found, single, strict=True):
            assert torch.equal(torch.as_tensor(many[site].x), torch.as_tensor(alone.x))
            assert np.array_equal(many[site].groups, alone.groups)
            for name in saes[site]:
                assert torch.equal(torch.as_tensor(many[site].recons[name]), torch.as_tensor(alone.recons[name]))
    rest = list(source.batches_from(1))
    assert len(rest) == 1
    assert torch.equal(torch.as_tensor(rest[0][SITES[0]].x), torch.as_tensor(found[1][SITES[0]].x))


class Wide(nn.Module):
    d_model = 2304

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_saes_of_other_sites_are_refused(loaded: LoadedModel) -> None:
    stream = model_activations(loaded, SITES[:2], TEXTS[:1])
    good: dict[str, Any] = {"a": torch.zeros_like}
    cases: list[tuple[Any, str]] = [
        ({SITES[0]: good}, r"SAEs are given for \['resid_post:2'\], expected for \['mlp_out:1', 'resid_post:2'\]"),
        ({SITES[0]: good, SITES[1]: {}}, r"mlp_out:1 has SAEs \[\], expected at least one"),
        ({SITES[0]: good, SITES[1]: {"": torch.sin}}, "each with a name"),
        ({SITES[0]: good, SITES[1]: {"a": 3}}, "SAE 'a' is a int, expected a callable"),
        ({SITES[0]: good, SITES[1]: {"a": Wide()}}, "d_model 2304, but mlp_out:1 of tiny-gemma2 has 96"),
    ]
    for saes, words in cases:
        with pytest.raises(InputError, match=words):
            ModelSitesSource(stream, saes)


def test_an_sae_is_moved_beside_the_activations() -> None:
    module = nn.Linear(2, 2)
    assert beside(module, torch.device("cpu")) is module
    assert next(beside(nn.Linear(2, 2), torch.device("meta")).parameters()).is_meta  # type: ignore[attr-defined]
    asked: list[Any] = []
    record: Any = SimpleNamespace(device=torch.device("cpu"), to=lambda *, device: asked.append(device))
    beside(record, torch.device("meta"))
    assert asked == [torch.device("meta")]
    assert beside(torch.sin, torch.device("meta")) is torch.sin


# positions


def test_positions_are_dropped_from_the_whole_stream(loaded: LoadedModel) -> None:
    every = model_activations(loaded, SITES[0], TEXTS[:5], context_length=20, skip_first=0)
    some = model_activations(
        loaded, SITES[0], TEXTS[:5], context_length=20, positions=PositionPolicy(skip_first=3, skip_last=2)
    )
    x, groups, ids, positions = all_of(every, SITES[0])
    keep = (positions >= 3) & (positions < 18) & (ids > 3)  # every document is longer than the context
    got = all_of(some, SITES[0])
    assert torch.equal(got[0], x[torch.from_numpy(keep)])
    assert np.array_equal(got[1], groups[keep]) and np.array_equal(got[3], positions[keep])
    assert (some.description["skip_first"], some.description["skip_last"]) == (3, 2)


def test_special_tokens_are_dropped_wherever_they_stand(loaded: LoadedModel) -> None:
    rows = token_rows(np.array([[2, 50, 1, 60, 2, 70, 0]]))
    stream = model_activations(loaded, SITES[0], rows)
    assert all_of(stream, SITES[0])[2].tolist() == [50, 60, 70]
    policy = PositionPolicy(skip_first=0, drop_special=False)
    assert len(all_of(model_activations(loaded, SITES[0], rows, positions=policy), SITES[0])[0]) == 7


def test_the_norm_filter_is_its_transcription_at_every_site(loaded: LoadedModel) -> None:
    policy = PositionPolicy(skip_first=0, drop_special=False, norm_filter=1.2)
    options: dict[str, Any] = {"context_length": 24, "batch_docs": 3}
    filtered = model_activations(loaded, SITES[::2], TEXTS, positions=policy, **options)
    plain = model_activations(loaded, SITES[::2], TEXTS, positions=replace(policy, norm_filter=None), **options)
    dropped = []
    for site in SITES[::2]:
        x, groups, _, positions = all_of(plain, site)
        norms = x.norm(dim=1)
        limit = 1.2 * float(f"{norms.median():.3g}")  # the pilot holds all twenty documents
        got = all_of(filtered, site)
        keep = norms <= limit
        assert torch.equal(got[0], x[keep])
        assert np.array_equal(got[1], groups[keep.numpy()]) and np.array_equal(got[3], positions[keep.numpy()])
        assert filtered.description["norm_limits"][site] == pytest.approx(limit)
        dropped.append(int((~keep).sum()))
    assert min(dropped) > 0 and dropped[0] != dropped[1]
    assert "norm_filter times the median norm" in filtered.description["norm_rule"]
    assert filtered.n_tokens is None


def test_the_pilot_is_the_first_documents_only(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from darkmatter.adapters import activations as module

    monkeypatch.setattr(module, "PILOT", 2)
    policy = PositionPolicy(norm_filter=10)
    stream = model_activations(loaded, SITES[0], TEXTS, positions=policy, context_length=24)
    two = torch.cat([b.x for b in model_activations(loaded, SITES[0], TEXTS[:2], context_length=24)])
    assert stream.description["norm_limits"][SITES[0]] == pytest.approx(10 * float(two.norm(dim=1).median()), rel=0.01)


# token ids


def test_token_ids_need_no_tokenizer_and_equal_the_text(loaded: LoadedModel) -> None:
    text = model_activations(loaded, SITES[0], TEXTS[:6], context_length=20)
    sequences = [sequence.ids for sequence in text.sequences]
    rows = np.full((6, 20), -1)
    for row, ids in zip(rows, sequences, strict=True):
        row[: len(ids)] = ids
    bare = replace(loaded, tokenizer=None)
    tokens = model_activations(bare, SITES[0], token_rows(rows, pad_id=-1, name="ids.npy"))
    for a, b in zip(all_of(text, SITES[0]), all_of(tokens, SITES[0]), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    assert tokens.n_tokens == tokens.description["n_tokens"] == sum(map(len, sequences)) - 6  # known before a pass
    assert tokens.description["tokenizer"] == "none: token ids were given"
    policy = PositionPolicy(norm_filter=3)
    filtered = model_activations(bare, SITES[0], token_rows(rows, pad_id=-1), positions=policy)
    assert filtered.n_tokens is None and "n_tokens" not in filtered.description  # only the pass will tell
    with pytest.raises(InputError, match="no tokenizer, which text needs"):
        model_activations(bare, SITES[0], TEXTS[:1])


def test_token_ids_of_another_model_are_refused(loaded: LoadedModel) -> None:
    good = [2, 5, 6, 7]
    with pytest.raises(InputError, match="document 0 holds token id 1024, but tiny-gemma2 has 1024 embeddings"):
        model_activations(loaded, SITES[0], token_rows(np.array([[2, 5, 1024, 7]])))
    late = model_activations(loaded, SITES[0], token_rows(np.array([good, good, [2, 9999, 6, 7]])), batch_docs=1)
    batches = iter(late)
    next(batches), next(batches)
    with pytest.raises(InputError, match="document 2 holds token id 9999"):
        next(batches)
    with pytest.raises(InputError, match="context_length is 600, expected at most 512"):
        model_activations(loaded, SITES[0], token_rows(np.ones((1, 600), dtype=int)))
    with pytest.raises(InputError, match="context_length is 3, but the token ids are cut at 4"):
        model_activations(loaded, SITES[0], token_rows(np.array([good])), context_length=3)


# packing and shares


def test_packed_documents_keep_their_ids_and_attend_as_one_sequence(loaded: LoadedModel) -> None:
    short = ["The loop ends.", "An assignment statement.", "if", "Names refer to objects."]
    stream = model_activations(loaded, SITES[0], short, context_length=64, pack=True)
    x, groups, ids, positions = all_of(stream, SITES[0])
    alone = model_activations(loaded, SITES[0], short, context_length=64)
    want = all_of(alone, SITES[0])
    for got, expected in zip((groups, ids, positions), want[1:], strict=True):
        assert np.array_equal(got, expected)
    (sequence,) = stream.sequences
    joined = torch.from_numpy(sequence.ids)[None]
    site = parse_site(SITES[0])
    plain = capture(loaded.model, [site], joined, torch.ones_like(joined))[site][0]
    assert torch.equal(x, plain[torch.from_numpy(sequence.counted)])
    first = groups == 0  # nothing stands before the first document; the others see it
    assert relative(x[torch.from_numpy(first)], want[0][torch.from_numpy(first)]) < 100 * EPS
    assert relative(x[torch.from_numpy(~first)], want[0][torch.from_numpy(~first)]) > 1e-2
    assert "attend" in stream.description["packed"] and alone.description["packed"] is False


@pytest.mark.parametrize("options", [{}, {"max_tokens": 150}, {"pack": True}])
def test_shares_of_several_processes_make_up_the_whole(loaded: LoadedModel, options: dict[str, Any]) -> None:
    def read(**share: int) -> tuple[ModelActivations, dict[tuple[int, int], Tensor]]:
        stream = model_activations(loaded, SITES[0], TEXTS[:9], context_length=24, batch_docs=2, **share, **options)
        x, groups, _, positions = all_of(stream, SITES[0])
        return stream, dict(zip(zip(groups.tolist(), positions.tolist(), strict=True), x, strict=True))

    whole, want = read()
    found: dict[tuple[int, int], Tensor] = {}
    descriptions = set()
    for rank in range(2):
        stream, part = read(rank=rank, size=2)
        assert part and not set(part) & set(found)
        found |= part
        descriptions.add(json.dumps(dict(stream.description)))
    assert set(found) == set(want)
    for key, row in found.items():
        assert relative(row, want[key]) < 1e-5
    assert len(descriptions) == 1  # all processes are one run
    assert json.loads(descriptions.pop()) == {**whole.description, "documents_shared_by": 2}


def test_a_share_without_documents_is_empty(loaded: LoadedModel) -> None:
    stream = model_activations(loaded, SITES[0], TEXTS[:2], rank=2, size=3)
    assert list(stream) == []
    assert stream.outcome["n_tokens"] == 0


# short memory


def test_short_memory_halves_the_forward_pass_and_is_remembered(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"context_length": 24, "batch_docs": 8}
    want = list(model_activations(loaded, SITES[0], TEXTS, **options))
    sizes: list[int] = []
    original = forward_module.capture

    def tight(model: Any, sites: Any, ids: Tensor, mask: Tensor) -> Any:
        sizes.append(len(ids))
        if len(ids) > 3:
            if len(sizes) % 2:
                raise torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory")
            raise RuntimeError("HIP out of memory")
        return original(model, sites, ids, mask)

    monkeypatch.setattr(forward_module, "capture", tight)
    stream = model_activations(loaded, SITES[0], TEXTS, **options)
    sizes.clear()
    got = list(stream)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    assert stream.description == model_activations(loaded, SITES[0], TEXTS, **options).description
    for a, b in zip(got, want, strict=True):  # the same batches, so that a checkpoint still fits
        assert np.array_equal(a.groups, b.groups) and np.array_equal(a.positions, b.positions)
        assert relative(a.x, b.x) < 1e-5


def test_one_document_that_does_not_fit_is_one_line(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = model_activations(loaded, SITES[0], TEXTS[:4])

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried")

    monkeypatch.setattr(forward_module, "capture", full)
    words = r"a forward pass of tiny-gemma2 on one sequence does not fit in memory \(CUDA out of memory.\): lower"
    with pytest.raises(InputError, match=words) as caught:
        next(iter(stream))
    assert "\n" not in str(caught.value)

    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(forward_module, "capture", broken)
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        next(iter(stream))


def test_an_sae_that_needs_too_much_memory_gets_fewer_tokens(loaded: LoadedModel) -> None:
    sizes: list[int] = []

    def hungry(x: Tensor) -> Tensor:
        sizes.append(len(x))
        if len(x) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.sin()

    stream = model_activations(loaded, SITES[0], TEXTS[:8], context_length=32, batch_docs=8)
    (batch,) = ModelSource(activations=stream, saes={"hungry": hungry, "plain": torch.sin})
    assert sizes[:3] == [248, 124, 62] and set(sizes[3:]) == {62}
    assert torch.equal(torch.as_tensor(batch.recons["hungry"]), torch.as_tensor(batch.recons["plain"]))


@pytest.mark.parametrize("fits", range(1, 9))
def test_parts_cover_everything_once(fits: int) -> None:
    parts = BackOff(what="one", remedy="none")

    def work(part: slice) -> list[int]:
        if part.stop - part.start > fits:
            raise RuntimeError("out of memory")
        return list(range(8))[part]

    assert [i for part in parts.run(work, 8) for i in part] == list(range(8))
    assert parts.run(work, 0) == []
    assert parts.limit is None if fits == 8 else parts.limit is not None and parts.limit <= fits


# identity


def test_the_description_tells_runs_apart(loaded: LoadedModel) -> None:
    def mark(texts: list[str] = TEXTS[:3], site: Any = SITES[0], **options: Any) -> str:
        return json.dumps(dict(model_activations(loaded, site, texts, **options).description), sort_keys=True)

    other = replace(loaded, tokenizer=re_tokenizer(loaded))
    marks = [
        mark(),
        mark(TEXTS[:4]),
        mark(site=SITES[1]),
        mark(site=SITES[:2]),
        mark(context_length=64),
        mark(batch_docs=2),
        mark(skip_first=2),
        mark(bos="none"),
        mark(pack=True),
        mark(max_tokens=9),
        mark(max_documents=2),
        mark(min_length=9),
        mark(rank=0, size=2),
        mark(positions=PositionPolicy(norm_filter=3)),
        json.dumps(dict(model_activations(other, SITES[0], TEXTS[:3]).description), sort_keys=True),
    ]
    assert len(set(marks)) == len(marks)
    assert mark(rank=1, size=2) == mark(rank=0, size=2)


def re_tokenizer(loaded: LoadedModel) -> Any:
    """The same tokenizer, but for case."""

    class Lower:
        bos_token_id = loaded.tokenizer.bos_token_id
        all_special_ids = loaded.tokenizer.all_special_ids

        def __call__(self, texts: list[str], **options: Any) -> Any:
            return loaded.tokenizer([text.lower() for text in texts], **options)

    Lower.__name__ = type(loaded.tokenizer).__name__
    assert re.search("[A-Z]", TEXTS[0])
    return Lower()
