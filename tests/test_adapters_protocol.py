"""The paper's protocol beside an independent transcription of its procedure, a hand computation, and a real model."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from darkmatter.adapters import ModelSource, from_arrays, load_model, model_activations, paper_protocol
from darkmatter.adapters.paper_sums import TEST_TOKENS, TRAIN_TOKENS, PaperSums, paper_split
from darkmatter.adapters.protocol import DEFAULT, PAPER, paper_protocol_source
from darkmatter.errors import InputError

FIXTURE = Path(__file__).parent / "fixtures" / "tiny-gemma2"
Matrix = npt.NDArray[Any]


def transcription(x: Matrix, recon: Matrix, split: Matrix) -> dict[str, float]:
    """The paper's procedure, section by section: shuffle tokens, lstsq on the first, score the others."""
    e = x - recon
    fit, test = split == 0, split == 1
    weight = np.linalg.lstsq(x[fit], e[fit], rcond=1e-9)[0]  # no column of ones
    r2 = []
    for j in range(x.shape[1]):
        left = e[test, j] - x[test] @ weight[:, j]
        r2.append(1 - (left**2).sum() / ((e[test, j] - e[test, j].mean()) ** 2).sum())
    spread = ((x - x.mean(axis=0)) ** 2).sum()
    return {
        "fvu": (e**2).sum() / spread,
        "r2_mean_over_coordinates": float(np.mean(r2)),
        "fvu_nonlinear": ((x - (recon + x @ weight)) ** 2).sum() / spread,
    }


def world(n: int = 900, d: int = 7, seed: int = 0, mean: float = 3.0) -> tuple[Matrix, Matrix]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * np.geomspace(1, 30, d) + mean
    recon = 0.8 * x @ (np.eye(d) + 0.1 * rng.standard_normal((d, d))) + np.abs(x) * 0.2
    return x, recon


def agree(result: Any, want: dict[str, float], rel: float) -> None:
    for name, value in want.items():
        assert getattr(result, name) == pytest.approx(value, rel=rel), name


@given(seed=st.integers(0, 50), d=st.integers(1, 9), mean=st.sampled_from([0.0, 3.0, 100.0]))
def test_equals_the_transcription_on_the_same_split(seed: int, d: int, mean: float) -> None:
    x, recon = world(300, d, seed, mean)
    result = paper_protocol(x, recon, seed=seed, train_tokens=200)
    agree(result, transcription(x, recon, paper_split(300, seed=seed, train_tokens=200)), 1e-6)
    assert (result.n_train, result.n_test, result.n_tokens, result.seed) == (200, 100, 300, seed)


def test_by_hand() -> None:
    # e = x - recon: W = (1*1 + 2*3) / (1 + 4) = 7/5 from the tokens (1, 1) and (2, 3)
    x = np.array([[1.0], [2.0], [3.0], [4.0]])
    e = np.array([[1.0], [3.0], [2.0], [4.0]])
    sums = PaperSums(np.array([0, 0, 1, 1], dtype=np.int8), seed=0)
    sums.update(torch.from_numpy(x), {"sae": torch.from_numpy(x - e)})
    result = sums.finish()["sae"]
    # left over: 1 - 1.4, 3 - 2.8, 2 - 4.2, 4 - 5.6, squared .16, .04, 4.84, 2.56; spread of x 5, of e tested 2
    assert result.r2_mean_over_coordinates == pytest.approx(1 - (4.84 + 2.56) / 2)
    assert result.fvu_nonlinear == pytest.approx((0.16 + 0.04 + 4.84 + 2.56) / 5)
    assert result.fvu == pytest.approx((1 + 9 + 4 + 16) / 5)


def test_the_authors_definitions_differ_from_ours_where_they_are_said_to() -> None:
    x, _ = world(2000)
    constant = paper_protocol(x, x - 1 - 1e-3 * x, seed=0, train_tokens=1000)
    spread = ((x - x.mean(axis=0)) ** 2).sum()
    assert constant.fvu == pytest.approx(((1 + 1e-3 * x) ** 2).sum() / spread)  # a constant error counts
    assert constant.fvu_nonlinear > 0.0001  # and cannot be fitted without an intercept
    # R2 averages coordinates: one large, linear, and one small, random, count alike
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4000, 2)) * [100, 1]
    e = np.stack([0.1 * x[:, 0], rng.standard_normal(4000)], axis=1)
    assert paper_protocol(x, x - e, seed=0, train_tokens=2000).r2_mean_over_coordinates == pytest.approx(0.5, abs=0.01)


def test_the_split_is_exact_random_and_repeats() -> None:
    n = 300 * 823  # the paper's tokens
    split = paper_split(n, seed=3)
    assert np.bincount(split, minlength=3).tolist() == [TRAIN_TOKENS, n - TRAIN_TOKENS, 0]
    assert np.array_equal(split, paper_split(n, seed=3)) and not np.array_equal(split, paper_split(n, seed=4))
    assert abs((split[: n // 2] == 0).mean() - TRAIN_TOKENS / n) < 0.005  # tokens, not documents: four sigma
    more = paper_split(400_000, seed=0)
    assert np.bincount(more).tolist() == [TRAIN_TOKENS, TEST_TOKENS, 100_000]


def test_tokens_that_are_neither_fitted_nor_tested_count_in_fvu() -> None:
    x, recon = world(400)
    split = paper_split(400, seed=0, train_tokens=100)
    split[split == 1] = np.where(np.arange(300) < 200, 1, 2)
    sums = PaperSums(split, seed=0)
    sums.update(torch.from_numpy(x), {"sae": torch.from_numpy(recon)})
    result = sums.finish()["sae"]
    agree(result, transcription(x, recon, split), 1e-9)
    assert (result.n_train, result.n_test, result.n_tokens) == (100, 200, 400)


@given(cuts=st.lists(st.integers(0, 300), max_size=5))
def test_batches_do_not_matter(cuts: list[int]) -> None:
    x, recon = world(300)
    sums = PaperSums(paper_split(300, seed=0, train_tokens=200), seed=0)
    edges = [0, *sorted(cuts), 300]
    for low, high in pairwise(edges):
        sums.update(torch.from_numpy(x[low:high]), {"sae": torch.from_numpy(recon[low:high])})
    agree(sums.finish()["sae"], transcription(x, recon, paper_split(300, seed=0, train_tokens=200)), 1e-9)


def test_several_saes_of_a_source_and_half_precision() -> None:
    x, recon = world(500)
    x32 = torch.from_numpy(x).float()
    recons = {"a": torch.from_numpy(recon).bfloat16(), "b": x32 * 0.5 + x32.sin()}
    results = paper_protocol_source(from_arrays(x32, recons, batch_size=64), n_tokens=500, seed=1, train_tokens=300)
    for name, recon_of in recons.items():
        want = transcription(
            x32.double().numpy(), recon_of.double().numpy(), paper_split(500, seed=1, train_tokens=300)
        )
        agree(results[name], want, 1e-6)


def test_a_rank_deficient_x_is_solved_by_least_norm() -> None:
    x, _ = world(300, 4)
    x = np.concatenate([x, x @ np.ones((4, 2))], axis=1)
    recon = x * 0.5 + np.abs(x)
    agree(
        paper_protocol(x, recon, seed=0, train_tokens=200),
        transcription(x, recon, paper_split(300, seed=0, train_tokens=200)),
        1e-6,
    )


def test_what_has_no_answer_is_one_line() -> None:
    x, recon = world(100)
    with pytest.raises(InputError, match="train_tokens is 150000, expected 1 to 99: of 100 tokens some must be left"):
        paper_protocol(x, recon, seed=0)
    flat = recon.copy()
    flat[:, 2] = x[:, 2]
    with pytest.raises(InputError, match="coordinate 2 of the error of 'sae' does not vary"):
        paper_protocol(x, flat, seed=0, train_tokens=50)
    with pytest.raises(InputError, match="x is the same for every token"):
        paper_protocol(np.ones((100, 2)), x[:, :2], seed=0, train_tokens=50)
    with pytest.raises(InputError, match="recon has shape"):
        paper_protocol(x, recon[:, :3], seed=0, train_tokens=50)
    source = from_arrays(x, recon)
    with pytest.raises(InputError, match="yields more than 99 tokens"):
        paper_protocol_source(source, n_tokens=99, seed=0, train_tokens=50)
    with pytest.raises(InputError, match="yields 100 tokens, expected the 101 that were announced"):
        paper_protocol_source(source, n_tokens=101, seed=0, train_tokens=50)


def test_results_and_protocols_say_what_they_are() -> None:
    x, recon = world(100)
    result = paper_protocol(x, recon, seed=0, train_tokens=50)
    json.dumps(dataclasses.asdict(result), allow_nan=False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.fvu = 0.0  # type: ignore[misc]
    for protocol in (DEFAULT, PAPER):
        json.dumps(dict(protocol.description), allow_nan=False)
    assert (PAPER.context_length, PAPER.min_length, PAPER.max_documents, PAPER.shuffle) == (1024, 1024, 300, 42)
    counted = PAPER.positions.mask(np.full(1024, 7), {7})
    assert counted.nonzero()[0].tolist() == list(range(200, 1023))


@pytest.mark.models
def test_the_protocol_on_a_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    loaded = load_model(FIXTURE)
    protocol = dataclasses.replace(
        PAPER,
        context_length=64,
        min_length=64,
        max_documents=12,
        positions=dataclasses.replace(PAPER.positions, skip_first=20),
    )
    texts = ["short", *(topics.topics[key] for key in sorted(topics.topics))]
    activations = model_activations(
        loaded,
        "resid_post:2",
        texts,
        context_length=protocol.context_length,
        min_length=protocol.min_length,
        max_documents=protocol.max_documents,
        positions=protocol.positions,
        bos=protocol.bos,
    )

    def sae(x: Tensor) -> Tensor:
        return 0.7 * x + x.abs()

    source = ModelSource(activations=activations, saes={"sae": sae})
    batches = list(source)
    x = torch.cat([torch.as_tensor(batch.x) for batch in batches])
    assert len(x) == 12 * (63 - 20) == source.outcome["n_tokens"]  # positions 20 to 62
    groups = np.concatenate([batch.groups for batch in batches])
    whole = [i for i, t in enumerate(texts) if len(loaded.tokenizer(t, add_special_tokens=False)["input_ids"]) >= 63]
    assert sorted(set(groups.tolist())) == whole[:12]
    result = paper_protocol_source(source, n_tokens=len(x), seed=0, train_tokens=300)["sae"]
    double = x.double().numpy()
    recon = sae(x).double().numpy()
    agree(result, transcription(double, recon, paper_split(len(x), seed=0, train_tokens=300)), 1e-6)
