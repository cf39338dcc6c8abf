"""What the end-to-end tests of `darkmatter decompose` on a model share: small SAEs, runs, and numbers of reports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
from typer.testing import CliRunner, Result

from darkmatter.cli import app
from darkmatter.groups import pass_bytes

FIXTURE = Path(__file__).parent / "fixtures" / "tiny-gemma2"
TEXTS = [part for key in sorted(topics.topics) for part in topics.topics[key].split("\n\n") if len(part) > 200][:96]
CONTEXT, FOLDS = 64, 8
SMALL = ("--latents", 128, "--train-tokens", 15_000, "--batch-size", 512)
TWO_FIT = pass_bytes(96, 2, FOLDS)
"""Memory for two SAEs of resid_post:1 at a time."""
Argument = str | Path | int | float
_JUMP: tuple[Argument, ...] = ("--architecture", "jumprelu", "--target-l0", 16)
_POOR: tuple[Argument, ...] = ("--target-l0", 8, "--latents", 64, "--batch-size", 1024)
KINDS: dict[str, tuple[Any, ...]] = {
    "top": ("resid_post:1", "--k", 16),
    "jump": ("resid_post:1", *_JUMP, "--export", "saelens", "--export", "gemmascope"),
    "deep": ("resid_post:3", *_JUMP, *_POOR, "--export", "gemmascope"),
    "mlp": ("mlp_out:1", "--k", 16),
    "heads": ("attn_z:2", "--k", 16),
}
"""The SAEs: site and options. `deep` is so poor that at another layer it is worse than the mean."""


def invoke(*args: Argument) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "120", "HF_HUB_OFFLINE": "1"})


def good(*args: Argument) -> Result:
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return result


def refused(*args: Argument) -> str:
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit) and not result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return str(result.stderr).removeprefix("error: ").removesuffix("\n")


@dataclass(frozen=True)
class Zoo:
    """SAEs trained through the command line, each in the folder of its name.

    Attributes:
        folder: Where they are.
        text: The text they were trained on.
    """

    folder: Path
    text: Path

    @classmethod
    def train(cls, folder: Path, *names: str) -> Zoo:
        """Train some of `KINDS`."""
        text = folder / "help.json"
        text.write_text(json.dumps(TEXTS))
        zoo = cls(folder, text)
        for name, (site, *options) in KINDS.items():
            if name in names:
                good("train-sae", *zoo.on(site), *SMALL, *options, "--out", folder / name)
        return zoo

    def on(self, *sites: str) -> tuple[Argument, ...]:
        """Options of the model, the text and sites."""
        where = (part for site in sites for part in ("--site", site))
        return ("--model", FIXTURE, *where, "--text", self.text, "--context-length", CONTEXT)

    def saes(self, *names: str) -> tuple[Argument, ...]:
        """Options of SAEs; ``a=jump/saelens`` gives one a name."""
        found: list[Argument] = []
        for name in names:
            own, mark, place = name.partition("=")
            found += ["--sae", f"{own}={self.folder / place}" if mark else self.folder / own]
        return tuple(found)

    def three(self) -> tuple[Argument, ...]:
        """Options of three SAEs of resid_post:1."""
        return self.saes("top", "lens=jump/saelens", "scope=jump/gemmascope")


def decompose(out: Path, *args: Argument, preflight: bool = False) -> dict[str, Any]:
    """Run it, and read what it wrote."""
    checks = () if preflight else ("--no-preflight",)
    result = good("decompose", *args, *checks, "--folds", FOLDS, "--out", out, "--json")
    report: dict[str, Any] = json.loads(result.stdout)
    assert report == json.loads((out / "report.json").read_text())
    assert not (out / "checkpoint").exists()
    return report


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list):
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from leaves(inner, f"{path}/{name}")
    else:
        yield path, value


def same(found: Mapping[str, Any], wanted: Mapping[str, Any], rel: float) -> None:
    """Compare two results of one SAE number by number: shares of a variance, relative to what matters of one."""
    a, b = dict(leaves(found)), dict(leaves(wanted))
    assert a.keys() == b.keys()
    for path, value in b.items():
        if isinstance(value, float):
            scale = max(abs(b.get(f"{path.rpartition('/')[0]}/value") or 0.0), abs(value), 0.01)
            assert np.isclose(a[path], value, rtol=0, atol=rel * scale), (path, a[path], value)
        else:
            assert a[path] == value, path


def read(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def without(result: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in names}
