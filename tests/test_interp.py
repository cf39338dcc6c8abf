"""Automated interpretation: the endpoint, its answers, detection scores, and the command against a local server."""

from __future__ import annotations

import json
import re
import threading
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message as Headers
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkmatter import InputError
from darkmatter.analyses.interp import Answers, Endpoint, EndpointError, LatentTask, interpret
from darkmatter.analyses.interp.prompts import detection_messages, explanation_messages, numbered, read_scores
from darkmatter.analyses.interp.scoring import score
from tests.analyses import fewest_hits, hits, model_options
from tests.cli_models import good, invoke

KEY = "sk-local-7261"


def chat(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def judged(messages: Sequence[Mapping[str, str]]) -> list[str] | None:
    """The excerpts that are to be detected; None for another question."""
    if "JSON list" not in messages[0]["content"]:
        return None
    return re.findall(r"^\d+\. (.*)$", messages[1]["content"], flags=re.MULTILINE)


# --- the endpoint


@dataclass
class Script:
    """A transport that plays a list of answers or failures."""

    moves: list[Any]
    sent: list[tuple[str, dict[str, Any], dict[str, str], float]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def post(self, address: str, body: bytes, headers: Mapping[str, str], timeout: float) -> bytes:
        self.sent.append((address, json.loads(body), dict(headers), timeout))
        move = self.moves.pop(0)
        if isinstance(move, int):
            more = Headers()
            if move == 429:
                more["Retry-After"] = "7"
            raise urllib.error.HTTPError(address, move, "no", more, None)
        if isinstance(move, Exception):
            raise move
        return move  # type: ignore[no-any-return]

    def endpoint(self, **options: Any) -> Endpoint:
        return Endpoint(
            "http://127.0.0.1:1/v1/", "judge", api_key=KEY, post=self.post, sleep=self.waits.append, **options
        )


def test_a_request_has_the_known_form_and_the_key_is_never_shown() -> None:
    script = Script([chat("fine")])
    endpoint = script.endpoint(timeout=3.0)
    assert endpoint.complete([{"role": "user", "content": "?"}]) == "fine"
    address, body, headers, timeout = script.sent[0]
    assert address == "http://127.0.0.1:1/v1/chat/completions" and timeout == 3.0
    assert body["model"] == "judge" and body["messages"] == [{"role": "user", "content": "?"}]
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(endpoint)


def test_failures_that_pass_are_waited_for() -> None:
    script = Script([500, TimeoutError("timed out"), 429, urllib.error.URLError("refused"), chat("at last")])
    assert script.endpoint().complete([]) == "at last"
    assert script.waits == [1.0, 2.0, 7.0, 8.0]


def test_failures_that_last_give_one_line_without_the_key() -> None:
    script = Script([503] * 3)
    with pytest.raises(EndpointError, match=r"no answer in 3 attempts \(status 503\)") as caught:
        script.endpoint(retries=2).complete([])
    assert KEY not in str(caught.value) and len(script.waits) == 2
    for status, remedy in ((401, "API key"), (404, "--interp-model"), (302, "--endpoint")):
        script = Script([status])
        with pytest.raises(InputError, match=f"status {status}.*{remedy}"):
            script.endpoint().complete([])
        assert not script.waits


@pytest.mark.parametrize(
    "answer", [b"", b"<html>", b"[]", b'{"choices": []}', b'{"choices": 1}', chat(None), chat([1])]
)
def test_answers_of_another_form_are_empty(answer: bytes) -> None:
    assert Script([answer]).endpoint().complete([]) == ""


def test_an_endpoint_that_cannot_be_one_is_refused() -> None:
    urls = ("ftp://x", "127.0.0.1:80", "http://[bad", "http://", "http://a b", "http://a:99999")
    for bad in (*({"url": url} for url in urls), {"model": ""}, {"api_key": "a\nb"}, {"api_key": "ключ"}):
        with pytest.raises(InputError):
            Endpoint(**({"url": "http://127.0.0.1", "model": "m"} | bad))


# --- questions and answers


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_scores_are_read_whatever_stands_around_them(values: list[float]) -> None:
    text = f"Thinking [1, 2]… so:\n```json\n{json.dumps(values)}\n```"
    assert read_scores(text, len(values)) == tuple(values)
    assert read_scores(text, len(values) + 3) is None


@given(answer=st.text(), n=st.integers(1, 5))
def test_no_answer_breaks_the_reader(answer: str, n: int) -> None:
    found = read_scores(answer, n)
    assert found is None or (len(found) == n and all(0 <= value <= 1 for value in found))


@pytest.mark.parametrize(
    "bad", ["[0.5, 2]", "[0.5, NaN]", "[0.5, null]", '["a", "b"]', "0.5, 0.5", "[[0.5, 0.5", "[1e999, 0]"]
)
def test_malformed_scores(bad: str) -> None:
    assert read_scores(bad, 2) is None


def test_excerpts_stay_one_to_a_line() -> None:
    assert numbered(["a\nb", "c\r"]) == "1. a\\nb\n2. c "
    assert "3 numbered" in detection_messages("cats", ["a", "b", "c"])[0]["content"]
    assert "<<" in explanation_messages(["<<a>>"])[1]["content"]


def test_scores_of_one_latent() -> None:
    truth = np.array([True, False, True, False])
    assert score((0.9, 0.2, 0.5, 0.6), truth) == {"accuracy": 0.625, "balanced": 0.625, "auc": 0.75}
    assert score((0.5,) * 4, truth)["auc"] == 0.5
    assert all(value != value for value in score(None, truth).values())


# --- detection with a judge whose accuracy is known


def tasks(n: int, contexts: int = 5) -> list[LatentTask]:
    """Latents whose active contexts say so."""
    return [
        LatentTask(
            latent=i,
            shown=(f"see <<mark{i}>>",),
            active=tuple(f"mark{i} a{j}" for j in range(contexts)),
            inactive=tuple(f"none{i} b{j}" for j in range(contexts)),
        )
        for i in range(n)
    ]


@dataclass
class Judge:
    """Explains a latent by its mark; right with a rate of its own for every latent, Beta(8, 2), 0.8 in the mean."""

    rng: np.random.Generator
    noise: bool = True
    rates: dict[str, float] = field(default_factory=dict)
    malformed: Callable[[str], bool] = lambda _: False

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str:
        excerpts = judged(messages)
        if excerpts is None:
            found = re.search(r"<<(.*?)>>", messages[1]["content"])
            return found.group(1) if found else "nothing"
        mark = messages[0]["content"].split("\n")[1].strip()
        if self.malformed(mark):
            return "I would rather not say."
        rate = self.rates.setdefault(mark, float(self.rng.beta(8, 2)))
        right = self.rng.random(len(excerpts)) < (rate if self.noise else 1.0)
        active = np.array([text.split()[0] == mark for text in excerpts])
        return json.dumps([float(value) for value in np.where(active == right, 0.9, 0.1)])


def test_a_perfect_judge_and_the_control_of_another_latents_words() -> None:
    found = interpret(
        {"linear": tasks(10), "nonlinear": tasks(8)}, Judge(np.random.default_rng(0), noise=False), model="j"
    )
    sae = found.saes["linear"]
    assert sae.accuracy.value == sae.balanced.value == sae.auc.value == 1.0
    assert sae.control.value == 0.5 and sae.gain.value == 0.5 and sae.malformed.value == 0
    assert found.differences["linear - nonlinear"].value == 0 and any("no width" in text for text in found.warnings)
    assert {latent.explanation for latent in sae.latents} == {f"mark{i}" for i in range(10)}


def covers(seed: int) -> bool:
    judge = Judge(np.random.default_rng(seed))
    found = interpret({"a": tasks(30)}, judge, model="j", seed=seed)
    # the control asks with other latents' words, of the same rates
    return found.saes["a"].accuracy.contains(0.8)


def difference_covers(seed: int) -> bool:
    first, second = Judge(np.random.default_rng([seed, 1])), Judge(np.random.default_rng([seed, 2]))

    def ask(messages: Sequence[Mapping[str, str]]) -> str:
        return (first if "markb" not in str(messages) and "noneb" not in str(messages) else second)(messages)

    def renamed(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(text.replace("mark", "markb").replace("none", "noneb") for text in texts)

    other = [LatentTask(t.latent, *map(renamed, (t.shown, t.active, t.inactive))) for t in tasks(30)]
    found = interpret({"a": tasks(30), "b": other}, ask, model="j", seed=seed)
    return found.differences["a - b"].contains(0.0)


def test_intervals_cover_the_judges_true_accuracy() -> None:
    """A correct procedure falls below the bound in 2 of 1000 runs."""
    assert hits(covers, 20) >= fewest_hits(20, rate=0.93)
    assert hits(difference_covers, 20) >= fewest_hits(20, rate=0.93)


@pytest.mark.slow
def test_intervals_cover_the_judges_true_accuracy_at_full_size() -> None:
    """At least 90 of 100, as the issue asks."""
    found = (hits(covers, 100), hits(difference_covers, 100))
    assert min(found) >= 90, found


def test_malformed_answers_are_counted_and_left_out() -> None:
    judge = Judge(np.random.default_rng(1), noise=False, malformed=lambda mark: mark in {"mark1", "mark2", "mark3"})
    found = interpret({"a": tasks(10)}, judge, model="j")
    assert found.saes["a"].malformed.value == pytest.approx(0.3) and found.saes["a"].accuracy.value == 1.0
    assert "malformed" in found.warnings[0]
    nothing = interpret({"a": tasks(4)}, lambda _: "", model="j").saes["a"]
    assert nothing.malformed.value == 1.0 and nothing.accuracy.value != nothing.accuracy.value
    with pytest.raises(InputError, match="at least 2"):
        interpret({"a": tasks(1)}, judge, model="j")


def test_answers_are_kept_and_a_line_cut_off_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    asked: list[str] = []

    def ask(messages: Sequence[Mapping[str, str]]) -> str:
        asked.append(messages[0]["content"])
        if len(asked) == 4:
            raise EndpointError("down")
        return messages[0]["content"].upper()

    questions = [[{"role": "user", "content": word}] for word in "abcdef"]
    first = Answers(ask, "m", path)
    with pytest.raises(EndpointError):
        [first(question) for question in questions]
    text = path.read_text()
    path.write_text(text[:-9])
    again = Answers(ask, "m", path)
    assert [again(question) for question in questions] == list("ABCDEF")
    assert asked == list("abcd") + list("cdef")
    last = Answers(ask, "m", path)
    assert [last(question) for question in questions] == list("ABCDEF") and last.asked == 0
    assert Answers(lambda _: "other", "another model", path)(questions[0]) == "other"


# --- the command against a local server


@dataclass
class Server:
    """A scripted judge behind HTTP: excerpts count as active if they hold the word of the explanation.

    Attributes:
        fail_after: Requests after which it answers 500.
        keys: Authorization headers it saw.
        n: Requests.
    """

    fail_after: int = 10**9
    keys: set[str | None] = field(default_factory=set)
    n: int = 0

    def answer(self, messages: Sequence[Mapping[str, str]]) -> str:
        excerpts = judged(messages)
        if excerpts is None:
            marks = re.findall(r"<<\s*(.*?)\s*>>", messages[-1]["content"])
            return max(sorted(set(marks)), key=marks.count) if marks else "ready"
        word = messages[0]["content"].split("\n")[1]
        return json.dumps([0.9 if word in text else 0.1 for text in excerpts])


@contextmanager
def serving(server: Server) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.n += 1
            key = self.headers["Authorization"]
            server.keys.add(key)
            status = 401 if key != f"Bearer {KEY}" else 500 if server.n > server.fail_after else 200
            data = chat(server.answer(body["messages"])) if status == 200 else b"{}"
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}/v1"
        finally:
            http.shutdown()
            thread.join()


def test_the_command_with_a_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failure after training, resumption and a wrong key: finished training is never lost."""
    out, server = tmp_path / "out", Server(fail_after=20)
    sizes = ("--latents", 32, "--k", 4, "--train-tokens", 4_000, "--batch-size", 512)
    targets = ("--target", "linear", "--target", "nonlinear", "--contexts", 4)
    given = (*model_options(tmp_path, "r1-64", documents=40), *sizes, *targets)
    judge = ("--interp-model", "scripted", "--interp-latents", 6, "--interp-contexts", 3, "--api-key-env", "JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(server) as url:
        where = ("--endpoint", url, "--retries", 1)
        failed = invoke("train-on-error", *given, *judge, *where, "--out", out)
        assert failed.exit_code == 2 and "error:" in failed.stderr and "status 500" in failed.stderr
        assert KEY not in failed.output
        done = json.loads((out / "train-on-error.json").read_text())
        assert set(done["result"]["targets"]) == {"linear", "nonlinear"} and "interpretation" not in done
        kept = (out / "interpretation.jsonl").read_text().count("\n")
        assert kept == 19  # one of twenty was the check before training
        server.fail_after, before = 10**9, server.n
        shown = good("train-on-error", *given, *judge, *where, "--out", out)
        assert "detection of latents" in shown.stdout
        assert 0 < server.n - before <= 1 + 3 * 6 * 2 - kept  # fewer where two latents got the same words
        found = json.loads((out / "train-on-error.json").read_text())["interpretation"]["saes"]
        assert set(found) == {"linear", "nonlinear"} and found["linear"]["n_latents"] == 6
        assert found["linear"]["accuracy"]["value"] > 0.4 and found["linear"]["malformed"]["value"] == 0
        monkeypatch.setenv("JUDGE_KEY", "sk-wrong")
        wrong = invoke("train-on-error", *given, *judge, *where, "--out", tmp_path / "none")
        assert wrong.exit_code == 2 and wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1
        assert "API key" in wrong.stderr and "sk-wrong" not in wrong.output
    for path in out.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes()
