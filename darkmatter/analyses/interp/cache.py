"""Answers kept as they come, one JSON line each, so that an interrupted interpretation goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from darkmatter.analyses.interp.endpoint import Message

Ask = Callable[[Sequence[Message]], str]


@dataclass(slots=True)
class Answers:
    """Questions that were answered, by a hash of model and messages.

    Attributes:
        ask: Where an answer comes from.
        model: Its name, part of the hash.
        path: The file; None keeps answers in memory only.
        asked: Questions that were really asked.
    """

    ask: Ask
    model: str
    path: Path | None = None
    asked: int = 0
    _known: dict[str, str] | None = field(default=None, repr=False)

    def __call__(self, messages: Sequence[Message]) -> str:
        """Answer, from the file where it is known."""
        if self._known is None:
            self._known = _read(self.path)
        key = hashlib.blake2b(json.dumps([self.model, list(messages)]).encode(), digest_size=16).hexdigest()
        if key not in self._known:
            answer = self.ask(messages)
            self.asked += 1
            self._known[key] = answer
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "answer": answer}) + "\n")
        return self._known[key]


def _read(path: Path | None) -> dict[str, str]:
    """What a file holds; a line cut off by a crash is skipped, and the next one starts on a line of its own."""
    if path is None or not path.exists():
        return {}
    found, text = dict[str, str](), path.read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            key, answer = entry["key"], entry["answer"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(key, str) and isinstance(answer, str):
            found[key] = answer
    if text and not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    return found
