"""What a preflight finds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

Status = Literal["ok", "warn", "stop"]
_BY_WEIGHT: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What was looked at.
        subject: Of what: "tokens", "model", a site, or an SAE's name.
        status: "ok"; "warn", which a person should look at; "stop", which makes the numbers of a run meaningless.
        measured: What was found, in words.
        expected: What should have been found; "–" where nothing is expected and the number is for information.
        cause: The likely cause and the remedy; empty where all is well.
        value: The number behind `measured`, where there is one.
    """

    name: str
    subject: str
    status: Status
    measured: str
    expected: str = "–"
    cause: str = ""
    value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Spell the check out as JSON; a number that is not finite is None."""
        finite = self.value is not None and math.isfinite(self.value)
        return {
            "name": self.name,
            "subject": self.subject,
            "status": self.status,
            "measured": self.measured,
            "expected": self.expected,
            "cause": self.cause,
            "value": self.value if finite else None,
        }

    def sentence(self) -> str:
        """Say in one line what is wrong."""
        expected = "" if self.expected == "–" else f", expected {self.expected}"
        return f"{self.name} of {self.subject} is {self.measured}{expected}: {self.cause}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """Every check of a preflight, in the order of the run: tokens, model, site, SAEs.

    Attributes:
        checks: The checks.
        n_documents: Documents of the pilot.
        n_tokens: Tokens of the pilot that count.
    """

    checks: tuple[Check, ...]
    n_documents: int
    n_tokens: int

    @property
    def status(self) -> Status:
        """The worst status of any check."""
        return max((check.status for check in self.checks), key=_BY_WEIGHT.index, default="ok")

    @property
    def stops(self) -> tuple[Check, ...]:
        """The checks that say stop."""
        return tuple(check for check in self.checks if check.status == "stop")

    @property
    def warnings(self) -> tuple[Check, ...]:
        """The checks that warn."""
        return tuple(check for check in self.checks if check.status == "warn")

    def to_dict(self) -> dict[str, Any]:
        """Spell the preflight out as JSON, for the report."""
        return {
            "status": self.status,
            "n_documents": self.n_documents,
            "n_tokens": self.n_tokens,
            "checks": [check.to_dict() for check in self.checks],
        }
