"""Experiments by name: where to start from, and what others can name when they report a number."""

from __future__ import annotations

from dataclasses import dataclass

from darkmatter.errors import InputError
from darkmatter.sae import TrainConfig
from darkmatter.sandbox.experiment import Experiment
from darkmatter.sandbox.surgical import Surgical
from darkmatter.sandbox.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A named experiment.

    Attributes:
        name: What to call it.
        summary: What it is for, in one sentence.
        experiment: The experiment itself.
    """

    name: str
    summary: str
    experiment: Experiment


TINY = Preset(
    name="tiny",
    summary="Everything in a few seconds: 128 features in 32 dimensions, a trained TopK SAE.",
    experiment=Experiment(
        world=World(n_features=128, d_model=32, dense_dim=4, l0=6.0, doc_tokens=32),
        sae=TrainConfig(d_sae=64, k=6, n_tokens=100_000, batch_size=512),
        n_tokens=8192,
    ),
)

# a and r are the paper's: x' = S + a g and recon = S + r g', here a² d = 0.2 Var x and r² d = 0.1 Var x. The paper's S
# is itself a reconstruction, which is what a world without a dense part of its own is.
PAPER = Preset(
    name="paper",
    summary="The authors' synthetic test, x' = S + a g and recon = S + r g', beside its closed form (T7).",
    experiment=Experiment(
        world=World(n_features=4096, d_model=256, dense_dim=256, dense_share=0.2, l0=32.0, topic_strength=0.0),
        sae=Surgical(learned=1.0, introduced="independent", introduced_share=0.1),
    ),
)

SYNTH_16K = Preset(
    name="synth-16k",
    summary="16,384 features in 768 dimensions, L0 34, rank-25 correlation; a TopK SAE of 4096 latents.",
    experiment=Experiment(
        world=World(
            n_features=16_384,
            d_model=768,
            dense_dim=0,
            dense_share=0.0,
            l0=34.0,
            zipf=0.5,
            topic_strength=0.0,
            correlation=0.1,
            factors=25,
        ),
        sae=TrainConfig(d_sae=4096, k=34, n_tokens=2_000_000, batch_size=4096),
    ),
)

# more latents than features, since a curve needs many directions: those latents stand for no feature
MANIFOLD = Preset(
    name="manifold",
    summary="The dense part lies on circles: a quarter of the variance, curved, in 8 of 128 dimensions; TopK.",
    experiment=Experiment(
        world=World(n_features=512, d_model=128, dense_dim=8, dense="circles", dense_share=0.25, l0=8.0, zipf=0.7),
        sae=TrainConfig(d_sae=1024, k=12, n_tokens=1_000_000),
    ),
)

HIERARCHY = Preset(
    name="hierarchy",
    summary="Features in trees, a child only with its parent and never with a sibling; a Matryoshka SAE.",
    experiment=Experiment(
        world=World(
            n_features=512,
            d_model=128,
            dense_dim=8,
            l0=8.0,
            topic_strength=0.0,
            roots=24,
            branching=3,
            depth=2,
            siblings="exclusive",
        ),
        sae=TrainConfig(architecture="matryoshka", d_sae=512, k=8, n_tokens=1_000_000),
    ),
)

PRESETS = {preset.name: preset for preset in (TINY, PAPER, SYNTH_16K, MANIFOLD, HIERARCHY)}
"""Every preset by its name."""


def preset(name: str) -> Preset:
    """Look a preset up.

    Args:
        name: Its name.

    Returns:
        The preset.

    Raises:
        InputError: There is none of that name; lists those there are.
    """
    if name not in PRESETS:
        raise InputError(f"preset is {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
