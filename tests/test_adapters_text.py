"""Text files, sites and tokenisation, with no model library."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from darkmatter.adapters import Site, count_documents, find_blocks, parse_site, read_documents, tokenise
from darkmatter.adapters.sites import resolve_site
from darkmatter.errors import FileFormatError, InputError


@pytest.mark.parametrize(
    ("name", "data", "want"),
    [
        ("t.txt", b"one\ntwo\n\nthree\n", ["one\ntwo", "three"]),
        ("t.txt", b"\n\n  one\r\n \t\r\n\r\ntwo", ["  one", "two"]),
        ("t.txt", b"\xef\xbb\xbfone", ["one"]),
        ("t.json", '["one", "", "zwölf"]'.encode(), ["one", "", "zwölf"]),
        ("t.jsonl", b'{"text": "one", "meta": 1}\n\n"two"\r\n', ["one", "two"]),
    ],
)
def test_documents_of_every_format(tmp_path: Path, name: str, data: bytes, want: list[str]) -> None:
    (tmp_path / name).write_bytes(data)
    assert read_documents(tmp_path / name) == want
    assert count_documents(tmp_path / name) == len(want)
    assert read_documents(tmp_path / name, max_documents=1) == want[:1]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("t.txt", b" \n\n", "no document"),
        ("t.txt", b"caf\xe9", "not UTF-8"),
        ("t.json", b"caf\xe9", "not UTF-8"),
        ("t.jsonl", b'"caf\xe9"', "not UTF-8"),
        ("t.json", b"[]", "no document"),
        ("t.json", b'{"text": "a"}', "dict"),
        ("t.json", b'["a", {"text": "b"}]', "entry 1 is"),
        ("t.json", b'["a"', "not JSON"),
        ("t.json", b"[" * 100_000, "not JSON"),
        ("t.json", b'["a", "\\ud800"]', "document 1 holds half"),
        ("t.jsonl", b'"a"\n{"body": "b"}\n', "line 2 is"),
        ("t.jsonl", b'"a"\n\n3\n', "line 3 is 3"),
        ("t.jsonl", b'"a\n', "line 1 is not JSON"),
        ("t.csv", b"a", "ends in '.csv'"),
    ],
)
def test_bad_text_files(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FileFormatError, match=words) as caught:
        read_documents(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_missing_text_and_bad_limit(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="not a file"):
        read_documents(tmp_path / "none.txt")
    with pytest.raises(InputError, match="max_documents is 0"):
        read_documents(tmp_path / "none.txt", max_documents=0)


def test_a_limit_leaves_the_rest_of_a_jsonl_unread(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'"a"\n"b"\nnot json\n')
    assert read_documents(tmp_path / "t.jsonl", max_documents=2) == ["a", "b"]


def test_site_reads_and_prints() -> None:
    assert parse_site(" resid_post:12 ") == Site(kind="resid_post", layer=12)
    assert str(parse_site("resid_post:2")) == "resid_post:2"


@pytest.mark.parametrize("text", ["", "resid_post", "resid_post:", "resid_post:-1", "resid_post:1.5", "2:resid_post"])
def test_unreadable_sites(text: str) -> None:
    with pytest.raises(InputError, match="expected KIND:LAYER"):
        parse_site(text)


class Stack(nn.Module):
    def __init__(self, depth: int | None, *lengths: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=depth)
        for i, n in enumerate(lengths or (depth or 0,)):
            setattr(self, f"list{i}", nn.ModuleList(nn.Linear(1, 1) for _ in range(n)))


def test_blocks_are_the_only_list_of_that_length() -> None:
    model = Stack(3, 3, 2)
    assert find_blocks(model) is model.list0
    assert resolve_site(model, Site(kind="resid_post", layer=2)).module is model.list0[2]


def test_blocks_of_a_nested_configuration() -> None:
    model = Stack(2, 3)
    inner = SimpleNamespace(num_hidden_layers=3)
    model.config = SimpleNamespace(num_hidden_layers=2, get_text_config=lambda: inner)
    assert find_blocks(model) is model.list0


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Stack(3, 2), r"0 module lists of length 3.*list0 \(2\)"),
        (Stack(3, 3, 3), "2 module lists of length 3"),
        (Stack(None, 3), "no config.num_hidden_layers"),
        (nn.Linear(1, 1), "no config.num_hidden_layers"),
    ],
)
def test_unclear_blocks_are_refused(model: nn.Module, words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_blocks(model)


def test_layer_out_of_range() -> None:
    with pytest.raises(InputError, match=r"resid_post:3 does not exist: layers run from 0 to 2"):
        resolve_site(Stack(3), Site(kind="resid_post", layer=3))


@dataclass
class Letters:
    """A tokenizer with one token per character, code point as id; optionally one that adds BOS unasked."""

    bos_token_id: int | None = 1
    adds_bos: bool = False

    def __call__(self, texts: list[str], *, add_special_tokens: bool, verbose: bool) -> dict[str, Any]:
        assert not add_special_tokens
        assert texts
        head = [self.bos_token_id] if self.adds_bos else []
        return {"input_ids": [head + [ord(c) for c in text] for text in texts]}


def letters(text: str) -> list[int]:
    return [ord(c) for c in text]


@pytest.mark.parametrize("adds_bos", [False, True])
def test_bos_comes_exactly_once(adds_bos: bool) -> None:
    got = tokenise(Letters(adds_bos=adds_bos), ["abc", "\x01abc"], context_length=4)
    assert [ids.tolist() for ids in got.ids] == [[1, *letters("abc")]] * 2


def test_truncation_drops_and_counts() -> None:
    got = tokenise(Letters(), ["abcdef", "", "a", "ab"], context_length=4, skip_first=2)
    assert [ids.tolist() for ids in got.ids] == [[1, *letters("abc")], [1, *letters("ab")]]
    assert got.documents == (0, 3)
    assert (got.n_read, got.n_dropped, got.n_truncated, got.n_tokens) == (4, 2, 1, 3)


def test_without_bos() -> None:
    got = tokenise(Letters(bos_token_id=None), ["abc"], bos=False, skip_first=0)
    assert got.ids[0].tolist() == letters("abc")
    with pytest.raises(InputError, match=r"no BOS token.*bos=False"):
        tokenise(Letters(bos_token_id=None), ["abc"])


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=200),
    context_length=st.integers(2, 10),
    skip_first=st.integers(0, 1),
    max_tokens=st.none() | st.integers(1, 300),
)
def test_counts_agree_with_a_naive_transcription(
    lengths: list[int], context_length: int, skip_first: int, max_tokens: int | None
) -> None:
    documents = ["x" * n for n in lengths]
    every = [
        (i, position)
        for i, text in enumerate(documents)
        for position in range(min(len(text) + 1, context_length))
        if position >= skip_first
    ][:max_tokens]
    options = {"context_length": context_length, "skip_first": skip_first, "max_tokens": max_tokens}
    if not every:
        with pytest.raises(InputError, match="none of"):
            tokenise(Letters(), documents, **options)
        return
    got = tokenise(Letters(), documents, **options)
    kept = [(i, p) for i, ids in zip(got.documents, got.ids, strict=True) for p in range(skip_first, len(ids))]
    assert kept == every
    assert got.n_tokens == len(every)
    assert got.n_read == len(got.documents) + got.n_dropped


def test_fingerprint_of_tokens() -> None:
    texts = (["ab", "c"], ["a", "bc"], ["ab", "", "c"], ["ab", "d"])
    marks = [tokenise(Letters(), list(t)).fingerprint for t in texts]
    assert len(set(marks)) == 4
    assert tokenise(Letters(), ["ab", "c"]).fingerprint == marks[0]


@pytest.mark.parametrize(
    ("documents", "options", "words"),
    [
        (["a"], {"context_length": 0}, "context_length is 0"),
        (["a"], {"context_length": 4, "skip_first": 4}, "no position would be left"),
        (["a"], {"skip_first": -1}, "skip_first is -1"),
        (["a"], {"max_tokens": 0}, "max_tokens is 0"),
        ([""], {}, "none of 1 documents"),
        ([], {}, "none of 0 documents"),
        ("abc", {}, "one string"),
        (["a", 3], {}, "document 1 is a int"),
    ],
)
def test_bad_options(documents: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        tokenise(Letters(), documents, **options)


def test_importing_the_adapters_does_not_import_transformers() -> None:
    code = (
        "import sys, darkmatter.adapters as a\n"
        "assert 'torch' not in sys.modules\n"
        "[getattr(a, name) for name in a.__all__]\n"
        "assert 'transformers' not in sys.modules\n"
        "assert set(a.__all__) == set(a._HOME) <= set(dir(a))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_public_name() -> None:
    import darkmatter.adapters as adapters

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = adapters.nothing
