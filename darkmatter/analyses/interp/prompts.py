"""What the judge is asked, and how its answers are read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

from darkmatter.analyses.interp.endpoint import Message

_EXPLAIN = (
    "You study one latent of a sparse autoencoder of a language model. Below are excerpts of text in which the "
    "latent is active; the token on which it is most active stands in << >>. Find what these have in common: a "
    "topic, a word or part of a word, a grammatical role, a position, a format. Answer with one short sentence that "
    "would let somebody else recognise further excerpts. No preamble."
)
_DETECT = (
    "A latent of a language model's sparse autoencoder is described as follows:\n{explanation}\n\nBelow are {n} "
    "numbered excerpts of text. For each, say how likely it is that the latent is active somewhere in it. Answer "
    "with a JSON list of {n} numbers between 0 and 1 in the order of the excerpts, and nothing else."
)
_LIST = re.compile(r"\[[^\[\]]*\]")
_LONGEST = 1000


def explanation_messages(contexts: Sequence[str]) -> list[Message]:
    """Ask for an explanation.

    Args:
        contexts: Excerpts with the active token marked.

    Returns:
        The messages.
    """
    return [{"role": "system", "content": _EXPLAIN}, {"role": "user", "content": numbered(contexts)}]


def detection_messages(explanation: str, contexts: Sequence[str]) -> list[Message]:
    """Ask in which excerpts a latent is active, given its explanation.

    Args:
        explanation: What the latent is said to stand for.
        contexts: Excerpts without marks.

    Returns:
        The messages.
    """
    asked = _DETECT.format(explanation=explanation, n=len(contexts))
    return [{"role": "system", "content": asked}, {"role": "user", "content": numbered(contexts)}]


def numbered(contexts: Sequence[str]) -> str:
    """Number excerpts from 1, one a line; line breaks within one are written out."""
    lines = (context.replace("\r", " ").replace("\n", "\\n") for context in contexts)
    return "\n".join(f"{i}. {line}" for i, line in enumerate(lines, start=1))


def read_explanation(answer: str) -> str | None:
    """The explanation, on one line; None where there is none."""
    text = " ".join(answer.split())[:_LONGEST]
    return text or None


def read_scores(answer: str, n: int) -> tuple[float, ...] | None:
    """The judge's list of n numbers between 0 and 1; None where the answer holds no such list.

    The last list of an answer counts, since judges think aloud. true and false count as 1 and 0.

    Args:
        answer: Text of the answer.
        n: Numbers expected.
    """
    for found in reversed(_LIST.findall(answer)):
        try:
            values = json.loads(found)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, list) and len(values) == n and all(isinstance(v, int | float) for v in values):
            scores = tuple(float(v) for v in values)
            if all(math.isfinite(v) and 0 <= v <= 1 for v in scores):
                return scores
    return None
