"""The figure of an experiment renders for every world, and repeats itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from darkmatter import World
from darkmatter.plots_world import save_world_figure
from darkmatter.sae import TrainConfig, train_sae
from darkmatter.sandbox.recovery import Recovery, recover

SMALL = World(n_features=48, d_model=16, dense_dim=6, l0=4.0, doc_tokens=16)


@pytest.fixture(scope="module")
def recovery() -> Recovery:
    """More features than latents, so that some features have no match."""
    config = TrainConfig(d_sae=24, k=4, n_tokens=4096)
    return recover(SMALL, train_sae(SMALL.activations(4096), config).sae, n_tokens=2048)


@pytest.mark.parametrize(
    "options",
    [
        {"dense_dim": 0, "dense_share": 0.0},
        {"dense_dim": 1},
        {"dense": "swiss-roll"},
        {"dense": "codes"},
        {"l0": 0.02},
        {"firing": "constant", "doc_tokens": 5000},
    ],
)
def test_any_world(tmp_path: Path, options: dict[str, Any]) -> None:
    world = replace(SMALL, **options)
    for name in ("a.png", "b.png", "c.svg"):
        save_world_figure(tmp_path / name, world)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "c.svg").read_text().lstrip().startswith("<?xml")


def test_the_panels_say_what_was_found(tmp_path: Path, recovery: Recovery) -> None:
    save_world_figure(tmp_path / "a.svg", SMALL, recovery=recovery, history=[(2048, 0.5), (4096, 0.4)])
    save_world_figure(tmp_path / "b.svg", SMALL)
    full, bare = ((tmp_path / name).read_text() for name in ("a.svg", "b.svg"))
    # matplotlib writes every text as a comment beside its outlines
    for text in ("Training", "Latents: what 24 are", "of 48 found", "never fired"):
        assert text in full and text not in bare
    for text in ("How often features fire", "Features per token", "Dense part: gaussian, 10.0 % of Var x"):
        assert text in full and text in bare
