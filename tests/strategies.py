"""Hypothesis strategies shared by the property tests: worlds over the whole space of configurations."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from darkmatter.errors import InputError
from darkmatter.sandbox import World
from darkmatter.sandbox.table import Table

AMPLITUDES = ("exponential", "constant", "uniform", "half-normal", "gamma", "lognormal")
DENSE = ("none", "gaussian", "student", "circles", "torus", "sphere", "swiss-roll", "codes")


@st.composite
def world_options(draw: st.DrawFn, *, most_features: int = 60) -> dict[str, Any]:
    """Options of a small world: every law, dictionary, dependence and dense part, alone and together.

    Not every combination is possible (a group can be asked to fire too often), which is for the world to say.
    """
    d = draw(st.integers(6, 16))
    m = draw(st.integers(4, most_features))
    seed = draw(st.integers(0, 2**32))
    amplitude = draw(st.sampled_from(AMPLITUDES))
    shapes = {"gamma": st.floats(0.3, 9.0), "lognormal": st.floats(0.1, 1.2)}
    dense = draw(st.sampled_from(DENSE))
    dims = {"none": st.just(0), "circles": st.sampled_from([2, 4]), "torus": st.sampled_from([3, 6])}
    dims |= {"swiss-roll": st.sampled_from([3, 6]), "sphere": st.integers(2, 5)}
    options: dict[str, Any] = {
        "n_features": m,
        "d_model": d,
        "l0": draw(st.floats(0.02, 0.25)) * m,
        "firing": draw(st.sampled_from(["zipf", "constant", "linear", "table"])),
        "zipf": draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
        "amplitude": amplitude,
        "amplitude_shape": draw(shapes.get(amplitude, st.just(1.0))),
        "amplitude_last": draw(st.sampled_from([1.0, 0.4, 3.0])),
        "dictionary": draw(st.sampled_from(["random", "low-coherence", "clustered", "orthonormal", "table"])),
        "clusters": draw(st.integers(1, 5)),
        "topics": draw(st.sampled_from([1, 3])),
        "topic_strength": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "doc_tokens": draw(st.sampled_from([1, 8, 100])),
        "correlation": draw(st.sampled_from([0.0, 0.3, 0.8])),
        "factors": draw(st.integers(1, 4)),
        "exclusion": draw(st.sampled_from([1, 1, 3])),
        "dense": "gaussian" if dense == "none" else dense,
        "dense_dim": draw(dims.get(dense, st.integers(1, 5))),
        "dense_share": 0.0 if dense == "none" else draw(st.floats(0.01, 0.6)),
        "seed": seed,
    }
    if draw(st.booleans()):
        options |= {"roots": draw(st.integers(1, 3)), "depth": draw(st.integers(1, 2))}
        options |= {
            "branching": draw(st.integers(1, 3)),
            "siblings": draw(st.sampled_from(["independent", "exclusive"])),
        }
        if draw(st.booleans()):
            options["dictionary"] = "hierarchical"
    rng = np.random.default_rng(seed)
    if options["firing"] == "table":
        options["firing"] = Table(np.sort(rng.uniform(0.1, 1.0, m))[::-1])
    if options["dictionary"] == "table":
        rows = rng.standard_normal((m, d))
        options["dictionary"] = Table(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return options


@st.composite
def worlds(draw: st.DrawFn, *, most_features: int = 60) -> World:
    """Possible worlds."""
    options = draw(world_options(most_features=most_features))
    try:
        return World(**options)
    except InputError:
        assume(False)
        raise
