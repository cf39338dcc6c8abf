"""What the tests of analyses share: a small world, binomial bounds, and the tiny model with its SAEs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from pydoc_data import topics
from typing import Any

from scipy import stats

from darkmatter import Surgical, World
from tests.cli_models import Argument, good

FIXTURES = Path(__file__).parent / "fixtures"
MODEL, SAES = FIXTURES / "tiny-gemma2", FIXTURES / "tiny-saes"
TEXTS = [part for key in sorted(topics.topics) for part in topics.topics[key].split("\n\n") if len(part) > 200]


def small_world(seed: int = 0, **options: Any) -> World:
    """160 features in 24 dimensions with a dense part: superposed, and drawn in a moment."""
    return World(
        **({"n_features": 160, "d_model": 24, "dense_dim": 3, "l0": 5.0, "doc_tokens": 16, "seed": seed} | options)
    )


def small_surgical(**options: Any) -> Surgical:
    """Half of the features learned, shrunk by a tenth, with introduced error of 5 % of the variance."""
    given = {"learned": 80, "shrinkage": 0.1, "introduced": "independent", "introduced_share": 0.05}
    return Surgical(**(given | options))


def fewest_hits(seeds: int, *, rate: float = 0.95, alarm: float = 1e-3) -> int:
    """The fewest hits that a rate allows; a correct procedure falls below with probability at most `alarm`."""
    return int(stats.binom.ppf(alarm, seeds, rate))


def hits(covered: Callable[[int], bool], seeds: int) -> int:
    """In how many of the seeds 0 … an interval covered."""
    return sum(covered(seed) for seed in range(seeds))


def model_options(folder: Path, *saes: str, site: str = "resid_post:1", documents: int = 64) -> tuple[Argument, ...]:
    """Options of the tiny model, one site, a short text written to a folder, and SAEs of the fixture."""
    text = folder / "text.json"
    if not text.exists():
        text.write_text(json.dumps(TEXTS[:documents]))
    chosen = [part for name in saes for part in ("--sae", SAES / name)]
    where = ("--model", MODEL, "--site", site, "--text", text, "--context-length", 64)
    return (*where, *chosen, "--folds", 8, "--no-preflight")


def analyse(command: str, out: Path, *args: Argument) -> dict[str, Any]:
    """Run an analysis and check what every one of them promises: JSON on stdout as in the file, and a figure."""
    printed = good(command, *args, "--out", out, "--json")
    report: dict[str, Any] = json.loads(printed.stdout)
    assert report == json.loads((out / f"{command}.json").read_text())
    assert report["format"] == f"darkmatter-{command}"
    assert (out / f"{command}.png").stat().st_size > 5_000
    assert not (out / "checkpoint").exists()
    return report
