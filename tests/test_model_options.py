"""How a command's options become a stream of activations."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import pytest

from darkmatter.adapters.protocol import DEFAULT, PAPER
from darkmatter.commands.model_options import ModelOptions
from darkmatter.errors import FileFormatError, InputError

FIXTURE = Path(__file__).parent / "fixtures" / "tiny-gemma2"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    rows = [{"body": topics.topics[key]} for key in sorted(topics.topics)[:30]]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "text.jsonl"


def options(**changes: Any) -> ModelOptions:
    plain: dict[str, Any] = {
        "model": str(FIXTURE),
        "site": "resid_post:2",
        "text": None,
        "revision": None,
        "dtype": "float32",
        "device": "cpu",
        "context_length": None,
        "batch_docs": 4,
        "skip_first": None,
        "max_tokens": None,
        "column": "body",
    }
    return ModelOptions(**{**plain, **changes})


@pytest.mark.models
def test_protocols_fill_in_what_is_not_said(text: Path) -> None:
    pytest.importorskip("transformers")
    default = options(text=text).activations().description
    assert (default["context_length"], default["skip_first"], default["drop_special"]) == (128, 1, True)
    assert (default["max_documents"], default["min_length"], default["bos"]) == (None, 0, "prepended to every document")
    # the tiny model holds 512 tokens; all else is the paper's
    paper = options(text=text, protocol="paper", context_length=300, min_length=300).activations().description
    assert (paper["skip_first"], paper["skip_last"], paper["drop_special"]) == (200, 1, False)
    assert (paper["context_length"], paper["min_length"], paper["max_documents"]) == (300, 300, 300)
    with pytest.raises(InputError, match="context_length is 1024, expected at most 512"):
        options(text=text, protocol="paper").activations()


@pytest.mark.models
def test_every_option_arrives(text: Path) -> None:
    pytest.importorskip("transformers")
    stream = options(
        text=text,
        context_length=40,
        skip_first=3,
        skip_last=2,
        keep_special=True,
        norm_filter=9.0,
        bos="none",
        max_documents=7,
        max_tokens=100,
        min_length=20,
        pack=True,
    ).activations(["mlp_out:1", "resid_pre:0"], rank=1, size=2)
    facts = stream.description
    want = {
        "site": "mlp_out:1, resid_pre:0",
        "context_length": 40,
        "skip_first": 3,
        "skip_last": 2,
        "drop_special": False,
        "norm_filter": 9.0,
        "bos": "none",
        "max_documents": 7,
        "max_tokens": 100,
        "min_length": 20,
        "batch_docs": 4,
        "documents_shared_by": 2,
        "text_column": "body",
    }
    assert {name: facts[name] for name in want} == want
    assert facts["packed"]
    assert (stream.sequences.rank, stream.sequences.size) == (1, 2)


@pytest.mark.models
def test_token_ids_instead_of_text(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    np.save(tmp_path / "ids.npy", np.array([[2, 50, 60, 70, 0], [2, 80, 0, 0, 0]]))
    stream = options(tokens=tmp_path / "ids.npy", pad_id=0).activations()
    assert stream.n_tokens == 4
    assert options(tokens=tmp_path / "ids.npy", pad_id=0, context_length=3).activations().n_tokens == 3
    with pytest.raises(InputError, match="skip_first is 200, skip_last 1, expected at most 4 together"):
        options(tokens=tmp_path / "ids.npy", protocol="paper").activations()


def test_what_cannot_be_is_said_before_the_model_is_loaded(text: Path, tmp_path: Path) -> None:
    for changes in ({}, {"text": text, "tokens": tmp_path / "ids.npy"}):
        with pytest.raises(InputError, match=r"expected either a text \(--text\) or token ids \(--tokens\)"):
            options(model="nowhere", **changes).activations()
    with pytest.raises(FileFormatError, match="is not a file"):
        options(model="nowhere", text=tmp_path / "none.txt", protocol="paper").activations()
    with pytest.raises(InputError, match="protocol is 'ours', expected one of default, paper"):
        options(model="nowhere", text=text, protocol="ours").activations()
    with pytest.raises(InputError, match="split was given for the local file"):
        options(model="nowhere", text=text, split="train").activations()
    with pytest.raises(InputError, match="site 'nonsense' cannot be read"):
        options(model="nowhere", text=text, site="nonsense").activations()


def test_protocols_have_names_of_their_own() -> None:
    assert {DEFAULT.name, PAPER.name} == {"default", "paper"}
    assert dataclasses.asdict(DEFAULT)["positions"]["skip_first"] == 1
