"""Worlds as batch sources: the seam's conformance check, exact lengths, and independence of the batch size."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from darkmatter.batch import Batch, ResumableSource, check_source
from darkmatter.errors import InputError
from darkmatter.sandbox import Surgical, World, recon_chunks

WORLD = World(n_features=60, d_model=12, dense_dim=3, l0=5.0, topics=4, doc_tokens=100, seed=5)
NOISY = Surgical(learned=20, shrinkage=0.1, introduced="heteroscedastic", introduced_share=0.05)


def halve(x: torch.Tensor) -> torch.Tensor:
    return x @ torch.full((12, 12), 0.04)


def _whole(batches: list[Batch]) -> list[np.ndarray]:
    names = batches[0].recons
    columns = [[b.x for b in batches], *([b.recons[name] for b in batches] for name in names)]
    return [torch.cat(c).numpy() for c in columns] + [np.concatenate([b.groups for b in batches])]


def test_a_pair_passes_the_conformance_check() -> None:
    source = WORLD.pair({"noisy": NOISY, "half": halve}, n_tokens=10_001, batch_size=1500)
    assert isinstance(source, ResumableSource)
    seen = check_source(source, max_batches=10)
    assert (seen.n_batches, seen.n_tokens, seen.dtype) == (7, 10_001, "float32")
    assert seen.n_groups == 101
    assert source.names == ("noisy", "half") and source.d_model == 12


@pytest.mark.parametrize("batch_size", [1, 999, 4000, 4096, 50_000])
def test_the_batch_size_changes_nothing_bit_for_bit(batch_size: int) -> None:
    n = 300 if batch_size == 1 else 9001
    saes = {"noisy": NOISY, "half": halve, "other": Surgical(learned=0.5, introduced="function", introduced_share=0.1)}
    want = _whole(list(WORLD.pair(saes, n_tokens=9001, batch_size=2500)))
    batches = list(WORLD.pair(saes, n_tokens=n, batch_size=batch_size))
    assert {len(b.x) for b in batches[:-1]} <= {batch_size}
    for a, b in zip(_whole(batches), want, strict=True):
        assert np.array_equal(a, b[:n])


@pytest.mark.parametrize("start", [0, 1, 3, 4, 9])
def test_resuming_gives_the_batches_that_iteration_gives(start: int) -> None:
    source = WORLD.pair({"noisy": NOISY, "half": halve}, n_tokens=9001, batch_size=2300)
    want, got = list(source)[start:], list(source.batches_from(start))
    assert len(want) == len(got)
    if want:
        for a, b in zip(_whole(want), _whole(got), strict=True):
            assert np.array_equal(a, b)


def test_streams_and_names() -> None:
    a, b = (next(iter(WORLD.pair(NOISY, n_tokens=500, stream=s))) for s in ("eval", "truth"))
    assert not np.intersect1d(a.groups, b.groups).size
    assert not torch.equal(torch.as_tensor(a.x), torch.as_tensor(b.x))
    assert torch.equal(torch.as_tensor(a.x), next(iter(WORLD.activations(500, stream="eval"))))
    assert WORLD.pair(NOISY, n_tokens=5).names == ("surgical",)
    assert WORLD.pair(halve, n_tokens=5).names == ("sae",)
    assert WORLD.pair(halve, n_tokens=5, name="mine").names == ("mine",)


def test_the_description_rebuilds_the_world_and_names_every_sae() -> None:
    class Described:
        description = {"width": 24}  # noqa: RUF012 - a plain attribute, as an SAE class would have

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x

    source = WORLD.pair({"noisy": NOISY, "half": halve, "described": Described()}, n_tokens=77)
    data = json.loads(json.dumps(source.description, allow_nan=False))
    assert World.from_dict(data["world"]) == WORLD
    assert data["n_tokens"] == 77 and data["stream"] == "eval"
    assert data["saes"]["noisy"]["introduced"] == "heteroscedastic" and data["saes"]["noisy"]["learned"] == 20
    assert data["saes"]["half"] == {"kind": "function", "type": "halve"}
    assert data["saes"]["described"]["description"] == {"width": 24}


def test_chunks_with_truth_cover_the_stream_exactly() -> None:
    source = WORLD.pair({"noisy": NOISY, "half": halve}, n_tokens=9001)
    want = _whole(list(source))
    chunks = list(recon_chunks(WORLD, source.saes, n_tokens=9001))
    assert np.array_equal(np.concatenate([c.x for c, _ in chunks]), want[0])
    assert np.array_equal(torch.cat([r["noisy"] for _, r in chunks]).numpy(), want[1])
    bound = NOISY.bind(WORLD)
    for chunk, recons in chunks:
        assert chunk.codes.shape[0] == len(chunk) == len(recons["half"])
        assert np.array_equal(bound.recon(chunk), recons["noisy"].numpy())


def test_no_gradient_is_kept() -> None:
    weight = torch.nn.Parameter(torch.eye(12))
    batch = next(iter(WORLD.pair(lambda x: x @ weight, n_tokens=5)))
    assert not torch.as_tensor(batch.recons["sae"]).requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_tokens": 0}, "n_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"stream": ""}, "stream is ''"),
        ({"sae": {}}, "expected at least one SAE"),
        ({"sae": {"": NOISY}}, "under a non-empty string"),
        ({"sae": {"a": NOISY}, "name": "b"}, "the mapping's keys are the names"),
        ({"sae": 3}, "SAE 'sae' is a int, expected a Surgical or a function"),
        ({"sae": Surgical(learned=61)}, "learned is 61"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_batch(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WORLD.pair(**{"sae": NOISY, "n_tokens": 10, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (lambda x: x.numpy(), "returned a ndarray, expected a torch tensor"),
        (lambda x: x[:, :5], r"recon 'sae' has shape \(1024, 5\), expected \(1024, 12\)"),
    ],
)
def test_a_function_that_is_no_reconstruction_is_named(sae, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        next(iter(WORLD.pair(sae, n_tokens=10)))


def test_the_description_says_how_precisely_a_numerical_share_is_met() -> None:
    world = World(n_features=24, d_model=12, dense_dim=2, l0=3.0)
    kinds = {kind: Surgical(learned=12, introduced=kind, introduced_share=0.05) for kind in ("function", "independent")}
    saes = world.pair(kinds, n_tokens=10).description["saes"]
    assert 0.0 < saes["function"]["share_error"] < 0.05
    assert "share_error" not in saes["independent"]
