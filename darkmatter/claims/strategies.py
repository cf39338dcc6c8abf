"""Hypothesis strategies shared by the claims and the tests: populations, covariances, dictionaries, laws, worlds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import reject
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from darkmatter.errors import InputError
from darkmatter.sandbox import Surgical, World
from darkmatter.sandbox.amplitudes import LAWS, AmplitudeLaw, amplitude_law
from darkmatter.sandbox.table import Table
from darkmatter.theory.population import centred, residual

Floats = npt.NDArray[np.float64]

AMPLITUDES = LAWS
DENSE = ("none", "gaussian", "student", "circles", "torus", "sphere", "swiss-roll", "codes")
DICTIONARIES = ("random", "orthonormal", "clustered", "repeated", "frame")


def seeds() -> st.SearchStrategy[int]:
    """Seeds of numpy generators."""
    return st.integers(0, 2**32 - 1)


def generators() -> st.SearchStrategy[np.random.Generator]:
    """Numpy generators; a case that holds one can be used once only, so prefer `seeds` where a case is shown."""
    return seeds().map(np.random.default_rng)


def small_matrices(n: int, d: int, *, most: int = 3, readable: bool = False) -> st.SearchStrategy[Floats]:
    """Matrices of small whole numbers, which shrink to something that a person can check by hand, (n, d).

    Args:
        n: Rows.
        d: Columns.
        most: Largest absolute value.
        readable: Shrink every entry by itself, for counterexamples that are shown; three times slower to draw.

    Returns:
        The strategy.
    """
    fill = st.nothing() if readable else None
    drawn = arrays(np.int64, (n, d), elements=st.integers(-most, most), fill=fill)
    return drawn.map(lambda a: a.astype(np.float64))


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """A finite law of (S1, U, L, N): row i is one of n equally likely outcomes; x = S1 + U, Sae(x) = S1 + L + N.

    Attributes:
        learned: S1, (n, d).
        rest: U = S2 + D, (n, d).
        linear: L, (n, d).
        introduced: N, (n, d).
    """

    learned: Floats
    rest: Floats
    linear: Floats
    introduced: Floats

    @property
    def x(self) -> Floats:
        """The activations."""
        return self.learned + self.rest

    @property
    def recon(self) -> Floats:
        """The reconstructions."""
        return self.learned + self.linear + self.introduced

    @property
    def error(self) -> Floats:
        """E = x − Sae(x)."""
        return self.x - self.recon

    def __str__(self) -> str:
        def rows(a: Floats) -> str:
            return "; ".join(" ".join(f"{v:.4g}" for v in row) for row in a)

        parts = [f"S1 = [{rows(self.learned)}]", f"S2+D = [{rows(self.rest)}]", f"N = [{rows(self.introduced)}]"]
        if self.linear.any():
            parts.insert(2, f"L = [{rows(self.linear)}]")
        return f"{len(self.x)} equally likely outcomes: " + ", ".join(parts)


@st.composite
def populations(
    draw: st.DrawFn,
    *,
    most_outcomes: int = 8,
    most_dims: int = 3,
    shrinkage: bool = False,
    uncorrelated: bool = False,
    introduced_uncorrelated: bool = False,
    readable: bool = False,
) -> Population:
    """Finite laws of the parts of x and Sae(x), exact in their moments.

    Args:
        draw: Supplied by hypothesis.
        most_outcomes: Largest n.
        most_dims: Largest d.
        shrinkage: L = −s S1 with 0 ≤ s ≤ 1; else L = 0.
        uncorrelated: The rest is uncorrelated with S1, and N with both (assumptions A1 and A2 of T5).
        introduced_uncorrelated: N is uncorrelated with S1 and the rest, which may be correlated with each other.
        readable: Shrink every entry by itself, for counterexamples that are shown.

    Returns:
        The population.
    """
    d = draw(st.integers(1, most_dims))
    n = draw(st.integers(2, most_outcomes))
    # a block that is cut does not change its meaning when a size shrinks, so that sizes can shrink by themselves
    rows, width = (most_outcomes, most_dims) if readable else (n, d)
    block = draw(small_matrices(rows, 3 * width, readable=readable))
    learned, rest, introduced = (block[:n, part * width : part * width + d] for part in range(3))
    if uncorrelated:
        rest = residual(rest, learned)
    if uncorrelated or introduced_uncorrelated:
        introduced = residual(introduced, np.hstack([learned, rest]))
    s = draw(st.floats(0.0, 1.0)) if shrinkage else 0.0
    return Population(learned, rest, -s * centred(learned), introduced)


@st.composite
def covariances(draw: st.DrawFn, *, d: int | None = None, most_dims: int = 8, singular: bool = True) -> Floats:
    """Covariance matrices: random axes, eigenvalues from flat to steep, any scale, singular ones among them, (d, d)."""
    size = draw(st.integers(1, most_dims)) if d is None else d
    decay = draw(st.floats(0.0, 3.0))
    scale = 10.0 ** draw(st.floats(-2.0, 2.0))
    rank = draw(st.integers(1, size)) if singular else size
    rng = np.random.default_rng(draw(seeds()))
    axes = np.linalg.qr(rng.standard_normal((size, size)))[0]
    values = scale * np.arange(1.0, size + 1.0) ** -decay * (np.arange(size) < rank)
    return np.asarray((axes * values) @ axes.T)


@st.composite
def dictionaries(
    draw: st.DrawFn, *, most_features: int = 12, most_dims: int = 8, kinds: tuple[str, ...] = DICTIONARIES
) -> Floats:
    """Dictionaries of unit rows, (m, d): "orthonormal" ones have m ≤ d, "frame" ones are tight with m ≥ d."""
    kind = draw(st.sampled_from(kinds))
    d = draw(st.integers(1, most_dims))
    m = draw(st.integers(1, d if kind == "orthonormal" else most_features))
    rng = np.random.default_rng(draw(seeds()))
    if kind == "frame":
        d = draw(st.integers(1, min(most_dims, (most_features + 1) // 2)))
        bases = [np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(draw(st.integers(1, most_features // d)))]
        return np.vstack(bases)
    rows = rng.standard_normal((m, d))
    if kind == "orthonormal":
        return np.ascontiguousarray(np.linalg.qr(rows.T)[0].T)
    if kind == "clustered":
        rows = rows[:1] + draw(st.floats(0.01, 1.0)) * rows
    if kind == "repeated":
        rows = rows[rng.integers(0, m, m)]
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@st.composite
def amplitude_laws(draw: st.DrawFn) -> AmplitudeLaw:
    """Laws of an amplitude given that the feature fires, mean 1."""
    name = draw(st.sampled_from(AMPLITUDES))
    shapes = {"gamma": st.floats(0.3, 9.0), "lognormal": st.floats(0.1, 1.2)}
    return amplitude_law(name, draw(shapes.get(name, st.just(1.0))))


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
        reject()


@st.composite
def surgical_worlds(draw: st.DrawFn, *, most_features: int = 24) -> tuple[World, Surgical]:
    """Worlds with a surgical SAE whose population shares have a closed form."""
    world = draw(worlds(most_features=most_features))
    kinds: list[Any] = ["none", "independent", "dense"]
    introduced = draw(st.sampled_from(kinds))
    surgical = Surgical(
        learned=draw(st.integers(0, world.n_features)),
        shrinkage=draw(st.floats(0.0, 0.99)),
        tilt=draw(st.sampled_from([0.0, 20.0])),
        introduced=introduced if introduced != "dense" or world.dense_dim else "independent",
        introduced_share=0.0 if introduced == "none" else draw(st.floats(0.001, 0.2)),
    )
    if not surgical.closed_form(world):
        reject()
    return world, surgical
