"""Text files, sites and tokenisation, with no model library."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from darkmatter.adapters import (
    Site,
    count_documents,
    find_blocks,
    parse_site,
    read_documents,
    text_file,
)
from darkmatter.adapters import text as text_module
from darkmatter.adapters.sites import resolve_site
from darkmatter.errors import FileFormatError, InputError


@pytest.mark.parametrize(
    ("name", "data", "want"),
    [
        ("t.txt", b"one\ntwo\n\nthree\n", ["one\ntwo", "three"]),
        ("t.txt", b"\n\n  one\r\n \t\r\n\r\ntwo", ["  one", "two"]),
        ("t.txt", b"\xef\xbb\xbfone", ["one"]),
        ("t.json", '["one", "", "zwölf"]'.encode(), ["one", "", "zwölf"]),
        ("t.json", b' [ {"text": "one", "meta": [1, {"a": 2}]} ,"two"]\n', ["one", "two"]),
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
        ("t.json", b'["a", {"body": "b"}]', "entry 1 is"),
        ("t.json", b'["a", 3]', "entry 1 is 3"),
        ("t.json", b'["a"', "not JSON"),
        ("t.json", b'["a" "b"]', r"not JSON \(expected ',' and an entry, or ']', after entry 0"),
        ("t.json", b'["a" , ]', "after entry 0"),
        ("t.json", b'["a"] "b"', "something after the list"),
        ("t.json", b"", "not JSON"),
        ("t.json", b"[" * 100_000, "not JSON"),
        ("t.json", b'["a", "\\ud800"]', "entry 1 holds half"),
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


def test_a_stream_repeats_itself_and_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"one\n\ntwo")
    stream = text_file(tmp_path / "t.txt")
    assert list(stream) == list(stream) == ["one", "two"]
    facts = stream.description
    assert (facts["text"], facts["text_bytes"]) == ("t.txt", 8)
    assert facts["text_fingerprint"] == hashlib.blake2b(b"one\n\ntwo", digest_size=16).hexdigest()
    os.utime(tmp_path / "t.txt", (1, 1))
    assert text_file(tmp_path / "t.txt").description == facts
    (tmp_path / "t.txt").write_bytes(b"one\n\ntwO")
    assert text_file(tmp_path / "t.txt").description != facts


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_another_column(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": "wrong", "body": "right"}, {"body": "too"}]
    data = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
    (tmp_path / f"t{suffix}").write_text(data)
    stream = text_file(tmp_path / f"t{suffix}", column="body")
    assert list(stream) == ["right", "too"]
    assert stream.description["text_column"] == "body"
    with pytest.raises(FileFormatError, match="expected a string or an object with a string 'text'"):
        list(text_file(tmp_path / f"t{suffix}"))


@given(
    documents=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=8),
    window=st.integers(1, 12),
    indent=st.sampled_from([None, 0, 3]),
)
def test_a_json_list_is_read_through_any_window(documents: list[str], window: int, indent: int | None) -> None:
    entries: list[Any] = [{"n": [1.5, None], "text": d} if i % 2 else d for i, d in enumerate(documents)]
    for ascii_only in (True, False):
        text = json.dumps(entries, indent=indent, ensure_ascii=ascii_only)
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_module, "_CHARACTERS", window)
            (Path(folder) / "t.json").write_text(text, encoding="utf-8")
            assert read_documents(Path(folder) / "t.json") == documents


@pytest.mark.parametrize("suffix", [".txt", ".json", ".jsonl", ".parquet"])
def test_a_file_is_never_held_whole(tmp_path: Path, suffix: str) -> None:
    path, n, length = tmp_path / f"t{suffix}", 400, 100_000
    documents = (f"{i} " + "word " * (length // 5) for i in range(n))  # 40 MB
    if suffix == ".parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        with parquet.ParquetWriter(path, arrow.schema([("text", arrow.string())])) as writer:
            for document in documents:
                writer.write_table(arrow.table({"text": [document]}))
    else:
        head, between, tail = {".txt": ("", "\n\n", ""), ".json": ("[", ",", "]"), ".jsonl": ("", "\n", "")}[suffix]
        with path.open("w") as file:
            for i, document in enumerate(documents):
                file.write((between if i else head) + (document if suffix == ".txt" else json.dumps(document)))
            file.write(tail)
    tracemalloc.start()  # of pyarrow it sees what becomes Python text
    try:
        assert sum(1 for _ in text_file(path)) == n
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * length + 8 * 2**20  # a window, a few documents: not 40 MB


def parquet(path: Path, **columns: Any) -> Path:
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(arrow.table(columns), path, row_group_size=3)
    return path


def test_parquet(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(700)]
    path = parquet(tmp_path / "t.parquet", text=texts, n=list(range(700)))
    assert list(text_file(path)) == texts
    assert read_documents(path, max_documents=2) == texts[:2]
    with pytest.raises(FileFormatError, match="no column 'body', expected one of text, n"):
        read_documents(path, column="body")
    with pytest.raises(FileFormatError, match="column 'n' holds int64, expected strings"):
        read_documents(path, column="n")
    with pytest.raises(FileFormatError, match="row 1 is null, expected a string"):
        read_documents(parquet(tmp_path / "null.parquet", text=["a", None]))
    with pytest.raises(FileFormatError, match="holds no document"):
        read_documents(parquet(tmp_path / "none.parquet", text=np.array([], dtype="U1")))
    for data in (b"", b"PAR1", path.read_bytes()[:-9]):
        (tmp_path / "cut.parquet").write_bytes(data)
        with pytest.raises(FileFormatError, match="cannot be read as parquet") as caught:
            read_documents(tmp_path / "cut.parquet")
        assert "\n" not in str(caught.value)


def test_missing_pyarrow_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs pyarrow.*pip install 'darkmatter\[datasets\]'"):
        read_documents(tmp_path / "t.parquet")


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
