"""Tokens without a model: BOS, cutting, positions, limits, packing, shares, token files, and text from the hub."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from darkmatter.adapters import PositionPolicy, TextStream, TokenStream, open_text, token_file, token_rows, tokenise
from darkmatter.adapters.hub_text import hub_text
from darkmatter.adapters.sequences import SequenceStream, TokenSequence
from darkmatter.errors import FileFormatError, InputError

SPECIAL = frozenset({1, 33})  # BOS, and "!"


@dataclass
class Letters:
    """A tokenizer with one token per character, code point as id; optionally one that adds BOS unasked."""

    bos_token_id: int | None = 1
    adds_bos: bool = False
    adds_special: bool = True

    def __call__(self, texts: list[str], *, add_special_tokens: bool, verbose: bool) -> dict[str, Any]:
        assert texts
        head = [self.bos_token_id] if self.adds_bos or (add_special_tokens and self.adds_special) else []
        return {"input_ids": [head + [ord(c) for c in text] for text in texts]}


def letters(text: str) -> list[int]:
    return [ord(c) for c in text]


def stream(documents: list[str], *, context_length: int = 128, **options: Any) -> SequenceStream:
    return SequenceStream(tokens=tokenise(Letters(), documents, context_length=context_length), **options)


def kept(sequences: SequenceStream) -> list[tuple[int, int]]:
    """Document and position of every counted token."""
    return [
        (int(group), int(position))
        for sequence in sequences
        for group, position in zip(sequence.groups[sequence.counted], sequence.positions[sequence.counted], strict=True)
    ]


# tokenising


@pytest.mark.parametrize("adds_bos", [False, True])
def test_bos_comes_exactly_once(adds_bos: bool) -> None:
    got = list(tokenise(Letters(adds_bos=adds_bos), ["abc", "\x01abc"], context_length=4))
    assert [document.ids.tolist() for document in got] == [[1, *letters("abc")]] * 2
    assert [document.index for document in got] == [0, 1]


def test_bos_can_be_left_out_or_left_to_the_tokenizer() -> None:
    def first(tokenizer: Letters, bos: Any) -> list[int]:
        stream = tokenise(tokenizer, ["abc"], bos=bos)
        assert stream.description["bos"] == ("none" if stream.bos_id is None else "prepended to every document")
        return next(iter(stream)).ids.tolist()

    assert first(Letters(), "none") == letters("abc")
    assert first(Letters(), "auto") == first(Letters(), "prepend") == [1, *letters("abc")]
    assert first(Letters(adds_special=False), "auto") == letters("abc")
    assert first(Letters(adds_special=False), "prepend") == [1, *letters("abc")]
    without = Letters(bos_token_id=None, adds_special=False)
    assert first(without, "auto") == first(without, "none") == letters("abc")
    with pytest.raises(InputError, match=r"\(Letters\) has no BOS token.*choose bos 'none'"):
        first(without, "prepend")
    with pytest.raises(InputError, match="bos is True, expected one of 'auto', 'prepend', 'none'"):
        first(Letters(), True)


def test_a_stream_of_tokens_repeats_itself_and_says_what_was_cut() -> None:
    got = tokenise(Letters(), ["abcdef", "", "ab"], context_length=4)
    assert isinstance(got, TokenStream) and got.n_tokens is None
    for _ in range(2):
        assert [d.ids.tolist() for d in got] == [[1, *letters("abc")], [1], [1, *letters("ab")]]
        assert [d.truncated for d in got] == [True, False, False]


def test_a_share_tokenises_its_own_documents_only() -> None:
    seen: list[str] = []

    class Spy(Letters):
        def __call__(self, texts: list[str], *, add_special_tokens: bool, verbose: bool) -> dict[str, Any]:
            seen.extend(texts)
            return super().__call__(texts, add_special_tokens=add_special_tokens, verbose=verbose)

    texts = [f"{i:03d}" for i in range(300)]
    documents = list(tokenise(Spy(), texts).part(1, 3))
    assert [d.index for d in documents] == list(range(1, 300, 3))
    assert [bytes(d.ids[1:].tolist()).decode() for d in documents] == texts[1::3] == seen


@pytest.mark.parametrize(
    ("documents", "options", "words"),
    [
        (["a"], {"context_length": 0}, "context_length is 0"),
        ("abc", {}, "one string"),
        (["a", 3], {}, "document 1 is a int"),
        (iter(["a"]), {}, "expected a list of strings, or a stream with `description` that can be iterated again"),
    ],
)
def test_bad_documents(documents: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        tokenise(Letters(), documents, **options)
    with pytest.raises(InputError, match="no tokenizer, which text needs"):
        tokenise(None, ["a"])


def test_a_stream_of_ones_own_is_checked_while_it_is_read() -> None:
    class Own:
        description: Mapping[str, Any] = {"text": "own"}

        def __iter__(self) -> Iterator[Any]:
            return iter(["a", 3])

    assert isinstance(Own(), TextStream)
    with pytest.raises(InputError, match="document 1 is a int, expected a string"):
        list(tokenise(Letters(), Own()))


# positions


@example(ids=[97, 98, 97], skip_first=0, skip_last=4, drop_special=False)
@given(
    ids=st.lists(st.sampled_from([1, 33, 97, 98]), max_size=9),
    skip_first=st.integers(0, 4),
    skip_last=st.integers(0, 4),
    drop_special=st.booleans(),
)
def test_a_mask_is_its_transcription(ids: list[int], skip_first: int, skip_last: int, drop_special: bool) -> None:
    policy = PositionPolicy(skip_first=skip_first, skip_last=skip_last, drop_special=drop_special)
    want = [
        skip_first <= p < len(ids) - skip_last and not (drop_special and token in SPECIAL)
        for p, token in enumerate(ids)
    ]
    assert policy.mask(np.array(ids, dtype=np.int64), SPECIAL).tolist() == want


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"skip_first": -1}, "skip_first is -1, expected 0 or more"),
        ({"skip_last": -2}, "skip_last is -2"),
        ({"norm_filter": 1.0}, "norm_filter is 1, expected above 1"),
        ({"norm_filter": float("nan")}, "norm_filter is nan"),
        ({"norm_filter": float("inf")}, "norm_filter is inf"),
    ],
)
def test_impossible_policies(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        PositionPolicy(**options)


# sequences


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=150),
    context_length=st.integers(5, 10),
    skip_first=st.integers(0, 2),
    skip_last=st.integers(0, 2),
    min_length=st.integers(0, 4),
    max_tokens=st.none() | st.integers(1, 300),
    max_documents=st.none() | st.integers(1, 20),
    pack=st.booleans(),
)
def test_sequences_agree_with_a_naive_transcription(
    lengths: list[int],
    context_length: int,
    skip_first: int,
    skip_last: int,
    min_length: int,
    max_tokens: int | None,
    max_documents: int | None,
    pack: bool,
) -> None:
    documents = ["ab!"[i % 3] * n for i, n in enumerate(lengths)]
    every, count = [], 0
    for i, text in enumerate(documents):
        ids = [1, *letters(text)][:context_length]
        of_doc = [(i, p) for p in range(skip_first, len(ids) - skip_last) if ids[p] not in SPECIAL]
        if len(ids) < min_length or not of_doc or count == max_documents:
            continue
        count += 1
        every += of_doc
    every = every[:max_tokens]
    got = stream(
        documents,
        context_length=context_length,
        policy=PositionPolicy(skip_first=skip_first, skip_last=skip_last),
        special_ids=SPECIAL,
        min_length=min_length,
        max_tokens=max_tokens,
        max_documents=max_documents,
        pack=pack,
    )
    assert got.outcome == {}
    if not every:
        with pytest.raises(InputError, match=f"none of {len(documents)} documents has a position that counts"):
            kept(got)
        return
    assert kept(got) == every == kept(got)
    assert got.outcome["n_tokens"] == len(every)
    assert got.outcome["n_documents"] == len({i for i, _ in every})
    sequences = list(got)
    assert all(len(s.ids) <= context_length for s in sequences)
    assert sum(len(s.ids) for s in sequences) == sum(
        v for k, v in got.outcome.items() if k.startswith("n_dropped_")
    ) + len(every)
    for s in sequences:  # every document is whole, as the tokenizer would give it
        for group in set(s.groups.tolist()):
            rows = s.groups == group
            assert s.ids[rows].tolist() == [1, *letters(documents[group])][: rows.sum()]
            assert s.positions[rows].tolist() == list(range(rows.sum()))
    if pack:  # no two neighbours would have fitted together
        fits = [len(a.ids) + int((b.groups == b.groups[0]).sum()) for a, b in pairwise(sequences)]
        assert all(total > context_length for total in fits)
    else:
        assert all(len(set(s.groups.tolist())) == 1 for s in sequences)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    size=st.integers(2, 4),
    max_tokens=st.none() | st.integers(1, 100),
    pack=st.booleans(),
)
def test_shares_are_a_partition_whatever_their_number(
    lengths: list[int], size: int, max_tokens: int | None, pack: bool
) -> None:
    whole = stream(["a" * n for n in [*lengths, 3]], context_length=8, max_tokens=max_tokens, pack=pack)

    def rows(sequences: Any) -> list[tuple[list[int], list[int]]]:
        return [(s.groups.tolist(), s.counted.tolist()) for s in sequences]

    every = rows(whole)
    shares = [whole.share(rank, size) for rank in range(size)]
    parts = [rows(share) for share in shares]
    assert sorted(row for part in parts for row in part) == sorted(every)
    if pack:
        assert parts == [every[rank::size] for rank in range(size)]
    else:
        assert all(groups[0] % size == rank for rank, part in enumerate(parts) for groups, _ in part)
    for name in whole.outcome:
        assert sum(share.outcome[name] for share in shares) == whole.outcome[name]
    assert len({json.dumps(dict(share.description)) for share in [whole, *shares]}) == 1


def test_what_was_dropped_is_counted_by_the_first_rule_that_drops_it() -> None:
    got = stream(
        ["abcdefghij", "a!bc", "xy", "", "p!!q!r"],
        context_length=8,
        policy=PositionPolicy(skip_first=2, skip_last=1),
        special_ids=SPECIAL,
    )
    # 1abcdefg, 1a!bc, 1xy (all dropped), 1 (all dropped), 1p!!q!r
    assert kept(got) == [(0, p) for p in range(2, 7)] + [(1, 3)] + [(4, 4)]
    assert got.outcome == {
        "n_documents": 3,
        "n_documents_dropped": 2,
        "n_documents_truncated": 1,
        "n_tokens": 7,
        "n_dropped_first": 6,
        "n_dropped_last": 3,
        "n_dropped_special": 4,
    }


def test_a_document_that_is_cut_to_fit_ends_with_a_token_that_counts() -> None:
    policy = PositionPolicy(skip_first=1, skip_last=2)
    got = stream(["abcdef", "abcdef"], policy=policy, max_tokens=6)
    assert [len(sequence.ids) for sequence in got] == [7, 3]
    assert (got.outcome["n_documents_truncated"], got.outcome["n_dropped_last"]) == (1, 2)
    assert got.outcome["n_dropped_special"] == 0
    whole = stream(["abcdef", "abcdef"], policy=policy, max_tokens=8)  # fits without a cut
    assert [len(sequence.ids) for sequence in whole] == [7, 7]
    assert whole.outcome["n_documents_truncated"] == 0


def test_a_pass_that_is_left_counts_nothing() -> None:
    got = stream(["abc"] * 5)
    next(iter(got))
    assert got.counts is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": PositionPolicy(skip_first=4)}, "skip_first is 4, expected at most 3 together.*no position would"),
        ({"policy": PositionPolicy(skip_first=2, skip_last=2)}, "skip_first is 2, skip_last 2, expected at most 3"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_documents": 0}, "max_documents is 0"),
        ({"min_length": 5}, "min_length is 5, expected 0 to 4"),
        ({"rank": 2, "size": 2}, "rank is 2, expected 0 to 1"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        stream(["abc"], context_length=4, **options)


def test_documents_shorter_than_what_is_skipped_are_one_line() -> None:
    got = stream(["ab", "c"], policy=PositionPolicy(skip_first=9), min_length=2)
    with pytest.raises(InputError) as caught:
        list(got)
    assert str(caught.value) == (
        "none of 2 documents has a position that counts and at least 2 tokens (BOS included; skip_first 9, "
        "drop_special True): give longer documents or drop fewer positions"
    )
    with pytest.raises(InputError, match="none of 0 documents"):
        list(stream([]))


def test_memory_does_not_grow_with_the_text() -> None:
    class Many:
        description: Mapping[str, Any] = {"text": "many"}

        def __iter__(self) -> Iterator[str]:
            return ("a" * 400 for _ in range(4000))  # 1.6 million tokens: 13 MB as int64

    for pack in (False, True):
        got = SequenceStream(tokens=tokenise(Letters(), Many(), context_length=512), pack=pack)
        tracemalloc.start()
        try:
            assert sum(int(s.counted.sum()) for s in got) == 1_600_000
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 3 * 2**20  # the 64 documents that are tokenised together


# token ids in files


def test_rows_are_documents_and_padding_at_their_end_is_dropped(tmp_path: Path) -> None:
    rows = np.array([[1, 5, 6, 0], [1, 0, 7, 0], [0, 0, 0, 0], [2, 3, 4, 5]], dtype=np.uint16)
    np.save(tmp_path / "ids.npy", rows)
    got = token_file(tmp_path / "ids.npy", pad_id=0)
    assert isinstance(got, TokenStream)
    assert isinstance(got.rows, np.memmap)
    assert [d.ids.tolist() for d in got] == [[1, 5, 6], [1, 0, 7], [], [2, 3, 4, 5]]
    assert (got.n_tokens, got.highest, got.context_length) == (10, 7, 4)
    assert [d.ids.tolist() for d in token_rows(rows)] == rows.tolist()
    cut = token_rows(rows, pad_id=0, context_length=3)
    assert [(d.ids.tolist(), d.truncated) for d in cut][3] == ([2, 3, 4], True)
    assert cut.n_tokens == 9
    assert [d.index for d in got.part(1, 2)] == [1, 3]
    assert next(iter(got)).ids.dtype == np.int64


def test_negative_padding_and_the_number_of_counted_tokens() -> None:
    rows = token_rows(np.array([[5, 6, -1], [7, -1, -1]]), pad_id=-1)
    sequences = SequenceStream(tokens=rows, policy=PositionPolicy(skip_first=1))
    assert sequences.n_tokens == 1  # known without a model
    assert kept(sequences) == [(0, 1)]
    assert sequences.outcome["n_documents_dropped"] == 1


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=8), st.integers(-2, 10))
def test_padded_rows_give_their_documents_back(documents: list[list[int]], pad_id: int) -> None:
    documents = [[token for token in document if token != pad_id] for document in documents]
    rows = np.full((len(documents), 7), pad_id)
    for row, document in zip(rows, documents, strict=True):
        row[: len(document)] = document
    got = token_rows(rows, pad_id=pad_id)
    assert [d.ids.tolist() for d in got] == documents
    assert got.n_tokens == sum(map(len, documents))


def test_token_files_are_known_by_their_content(tmp_path: Path) -> None:
    rows = np.arange(12).reshape(3, 4)
    marks = {token_rows(rows).digest}
    for other in (rows.astype("i4"), rows.reshape(4, 3), rows + 1, rows[::-1]):
        marks.add(token_rows(other).digest)
    assert len(marks) == 5
    np.save(tmp_path / "ids.npy", rows)
    assert token_file(tmp_path / "ids.npy").digest == token_rows(rows).digest


@pytest.mark.parametrize(
    ("value", "options", "words"),
    [
        (np.zeros((2, 3)), {}, "float64, expected integers"),
        (np.zeros(3, dtype=int), {}, r"shape \(3,\), expected \(n_documents, length\)"),
        (np.zeros((0, 3), dtype=int), {}, "one row per document"),
        (np.array([[1, 2], [3, -1]]), {}, "row 1 holds an id below 0"),
        (np.array([[-1, 2], [3, -1]]), {"pad_id": -1}, "row 0 holds an id below 0 before its end"),
        (np.zeros((2, 3), dtype=int), {"context_length": 0}, "context_length is 0"),
        (np.array([[object()]], dtype=object), {}, "Python objects"),
    ],
)
def test_bad_token_files(tmp_path: Path, value: Any, options: dict[str, Any], words: str) -> None:
    np.save(tmp_path / "ids.npy", value, allow_pickle=True)
    with pytest.raises(FileFormatError, match=words) as caught:
        token_file(tmp_path / "ids.npy", **options)
    assert "ids.npy" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_or_damaged_token_files(tmp_path: Path) -> None:
    for name in ("none.npy", "ids.npz"):
        with pytest.raises(FileFormatError, match=r"is not a \.npy file"):
            token_file(tmp_path / name)
    np.save(tmp_path / "ids.npy", np.zeros((20, 30), dtype=int))
    data = (tmp_path / "ids.npy").read_bytes()
    for cut in (0, 7, 80, len(data) - 1):
        (tmp_path / "ids.npy").write_bytes(data[:cut])
        with pytest.raises(FileFormatError, match=r"cannot be opened as \.npy"):
            token_file(tmp_path / "ids.npy")


# text from the hub


class Rows(list[dict[str, Any]]):
    def shuffle(self, *, seed: int, buffer_size: int) -> Rows:
        order = np.random.default_rng(seed).permutation(len(self))
        assert buffer_size == 10_000
        return Rows(self[i] for i in order)


class Hub:
    """Stands for `datasets` and `huggingface_hub`."""

    def __init__(self, rows: list[dict[str, Any]], *, version: str = "4.1.0") -> None:
        self.rows, self.calls = Rows(rows), list[dict[str, Any]]()
        self.error: Exception | None = None
        self.datasets: Any = ModuleType("datasets")
        self.datasets.__version__, self.datasets.load_dataset = version, self.load
        self.hub: Any = ModuleType("huggingface_hub")
        self.hub.HfApi = lambda: SimpleNamespace(dataset_info=self.info)
        self.errors: Any = ModuleType("huggingface_hub.errors")
        for name in ("GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError"):
            setattr(self.errors, name, type(name, (Exception,), {}))

    def load(self, *args: Any, **options: Any) -> Rows:
        self.calls.append({"args": args, **options})
        if self.error is not None:
            raise self.error
        return self.rows

    def info(self, name: str, *, revision: str | None) -> Any:
        if revision == "gone":
            raise self.errors.RevisionNotFoundError("no")
        return SimpleNamespace(sha=f"commit of {revision}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub([{"text": "one", "n": 1}, {"text": "two", "n": 2}])
    for name, module in (
        ("datasets", hub.datasets),
        ("huggingface_hub", hub.hub),
        ("huggingface_hub.errors", hub.errors),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return hub


def test_a_data_set_is_streamed_at_its_commit_and_never_runs_code(hub: Hub) -> None:
    text = open_text("owner/name@v1", subset="small", split="test")
    assert not hub.calls  # nothing is read before the first document
    assert list(text) == list(text) == ["one", "two"]
    call = {"args": ("owner/name", "small"), "split": "test", "revision": "commit of v1", "streaming": True}
    assert hub.calls == [call, call]
    assert text.description["text_fingerprint"] == "commit of v1"
    hub.datasets.__version__ = "3.6.0"
    assert list(text)
    assert hub.calls[-1] == call | {"trust_remote_code": False}


def test_a_shuffled_data_set(hub: Hub) -> None:
    hub.rows = Rows({"text": str(i)} for i in range(20))
    text = hub_text("owner/name", shuffle=42)
    assert sorted(text, key=int) == list(map(str, range(20))) != list(text)
    assert text.description["text_shuffle"] == {"seed": 42, "buffer": 10_000}


def test_what_the_hub_refuses_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    class DatasetNotFoundError(FileNotFoundError):
        pass

    cases: list[tuple[Exception, str]] = [
        (DatasetNotFoundError("Dataset 'o/n' is a gated dataset.\nLog in"), r"it is gated: accept its terms"),
        (hub.errors.GatedRepoError("403"), "it is gated"),
        (DatasetNotFoundError("Dataset 'o/n' doesn't exist"), "does not exist or is private"),
        (hub.errors.RepositoryNotFoundError("404"), "does not exist or is private"),
        (ValueError("Unknown split 'tset'."), "Unknown split 'tset'.: check subset and split"),
        (ConnectionError("Couldn't reach\nthe hub"), "ConnectionError: Couldn't reach: check the network"),
    ]
    for error, words in cases:
        hub.error = error
        with pytest.raises(InputError, match=words) as caught:
            list(open_text("owner/name"))
        assert str(caught.value).startswith("owner/name is no local file and cannot be streamed from the hub: ")
        assert "\n" not in str(caught.value)
    hub.error = None
    with pytest.raises(InputError, match="'content', expected a string; its columns: text, n"):
        list(open_text("owner/name", column="content"))
    with pytest.raises(InputError, match="revision does not exist"):
        open_text("owner/name", revision="gone")
    with pytest.raises(InputError, match="expected one of the two"):
        open_text("owner/name@a", revision="b")
    hub.rows = Rows()
    with pytest.raises(InputError, match="split 'train' holds no document"):
        list(open_text("owner/name"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs datasets.*pip install 'darkmatter\[datasets\]'"):
        open_text("owner/name")


def test_a_broken_connection_in_the_middle_is_an_error_not_an_end(hub: Hub) -> None:
    class Breaks(Rows):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            yield {"text": "one"}
            raise ConnectionError("reset")

    hub.rows = Breaks()
    documents = iter(open_text("owner/name"))
    assert next(documents) == "one"
    with pytest.raises(InputError, match="ConnectionError: reset: check the network"):
        next(documents)


def test_the_real_library_takes_the_same_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "data.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    load = datasets.load_dataset

    def local(name: str, subset: str | None, *, revision: str, **options: Any) -> Any:
        assert (name, subset, revision) == ("owner/name", None, "abc")
        return load("json", data_files=str(tmp_path / "data.jsonl"), **options)

    api = SimpleNamespace(dataset_info=lambda name, revision: SimpleNamespace(sha="abc"))
    monkeypatch.setattr(sys.modules["huggingface_hub"], "HfApi", lambda: api)
    monkeypatch.setattr(datasets, "load_dataset", local)
    for shuffle in (None, 42):
        assert sorted(hub_text("owner/name", shuffle=shuffle)) == ["one", "two"]


def test_local_and_hub_places_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileFormatError, match=r"a/b\.txt is not a file"):
        open_text("a/b.txt")
    with pytest.raises(FileFormatError, match="nothing"):
        open_text("corpus")
    (tmp_path / "t.txt").write_text("one")
    with pytest.raises(InputError, match=r"split and revision was given for the local file t\.txt"):
        open_text("t.txt", split="train", revision="main")
    assert list(open_text(Path("t.txt"))) == ["one"]


def test_a_sequence_can_be_looked_at() -> None:
    (sequence,) = stream(["ab"])
    assert isinstance(sequence, TokenSequence)
    assert sequence.counted.tolist() == [False, True, True]
