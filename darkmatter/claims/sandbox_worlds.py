"""Worlds for the claims about the sandbox's oracle, and the independent oracles that they are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

from darkmatter.claims.strategies import Floats, world_options
from darkmatter.errors import InputError
from darkmatter.sandbox import World
from darkmatter.theory.copula import both_fire
from darkmatter.theory.firings import pair_probabilities


def describe(world: World) -> str:
    """A world in one line, for people: rates, topics and what ties features together."""
    rates = " ".join(f"{p:.3g}" for p in world.firing_rates)
    return (
        f"{world.n_features} features with rates {rates} in {world.topics} topics of strength "
        f"{world.topic_strength:.3g}, features' topics {' '.join(map(str, world.contexts.topic))}"
    )


def pair_covariance(world: World, *, wrong: str = "") -> Floats:
    """Cov of the sparse channels, pair by pair: topics averaged, Plackett's integral, paths to common ancestors.

    Args:
        world: The world.
        wrong: "marginals" averages the topics first, "gates" leaves out the copula, "siblings" the exclusion.

    Returns:
        (c, c).
    """
    forest, law, moments = world.forest, world.contexts, world.factor_moments
    latent = np.outer(law.loading, law.loading) * (law.factor[:, None] == law.factor) * (law.n_factors > 0)
    if wrong == "gates":
        latent = np.zeros_like(latent)
    by_topic = np.where(law.topic == np.arange(law.n_topics)[:, None], law.own, law.other)
    if wrong == "marginals":
        by_topic = by_topic.mean(axis=0)[None]
    roots = both_fire(by_topic[:, :, None], by_topic[:, None, :], latent).mean(axis=0)
    np.fill_diagonal(roots, law.rate)
    apart = np.zeros_like(forest.exclusive) if wrong == "siblings" else forest.exclusive
    both = pair_probabilities(forest.parent, forest.share, apart, roots)[: world.n_features, : world.n_features]
    value = moments.value_mean
    joint = np.einsum("pu,qv,uv->puqv", value, value, both)
    for i, p in enumerate(world.firing_rates):  # a feature with itself: its own values, not a product of means
        joint[:, i, :, i] += p * moments.value_covariance[:, :, i]
    size = moments.n_channels
    return np.asarray(joint.reshape(size, size) - np.outer(moments.mean, moments.mean))


@dataclass(frozen=True, slots=True)
class SmallWorld:
    """A world with so few events that all its outcomes can be listed, and a surgical SAE on it.

    Attributes:
        options: Options of the world: constant amplitudes, no copula, at most one dense dimension.
        learned: Number of features that the SAE has learned.
        shrinkage: Of the learned features.
    """

    options: tuple[tuple[str, Any], ...]
    learned: int
    shrinkage: float

    @property
    def world(self) -> World:
        """The world."""
        return World(**dict(self.options))


@st.composite
def small_worlds(draw: st.DrawFn) -> SmallWorld:
    """Topics, a tree, exclusive siblings and groups, alone and together, with 2 to 5 features."""
    m = draw(st.integers(2, 5))
    tree = m >= 3 and draw(st.booleans())
    options = {
        "n_features": m,
        "d_model": draw(st.integers(2, 4)),
        "dense_dim": 1,
        "dense_share": draw(st.sampled_from([0.0, 0.3])),
        "l0": draw(st.floats(0.05, 0.2)) * m,
        "amplitude": "constant",
        "amplitude_last": draw(st.sampled_from([1.0, 0.5])),
        "topics": draw(st.integers(1, 2)),
        "topic_strength": draw(st.sampled_from([0.0, 1.0, 0.5])),
        "roots": int(tree),
        "depth": int(tree),
        "branching": draw(st.integers(1, 2)),
        "siblings": draw(st.sampled_from(["independent", "exclusive"])),
        "exclusion": draw(st.integers(1, 2)),
        "seed": draw(st.integers(0, 2**32)),
    }
    return SmallWorld(tuple(options.items()), draw(st.integers(0, m)), draw(st.floats(0.0, 0.9)))


def enumerated_shares(case: SmallWorld, *, independent: bool = False) -> dict[str, float]:
    """Shares of a surgical SAE's error, by listing every outcome of a small world and regressing.

    Args:
        case: The world and the SAE.
        independent: Take the features as independent with the same rates instead.

    Returns:
        The fields of `PopulationShares`, and "condition" of Cov x.
    """
    world = case.world
    fires, weight = _independent(world) if independent else _outcomes(world)
    dense = np.array([[-1.0], [1.0]])  # any law with mean 0 and variance 1 has the same second moments
    codes = np.repeat(fires * world.amplitude_scales, 2, axis=0)
    assert weight.min() > -1e-12, "a probability is below zero by more than rounding"
    weight = np.repeat(np.clip(weight, 0.0, None), 2) / 2.0
    y, f = world.dictionary_matrix.astype(np.float64), world.dense_map.astype(np.float64)
    mask = np.arange(world.n_features) < case.learned
    learned, absent = (codes * mask) @ y, (codes * ~mask) @ y
    dense_part = np.tile(dense, (len(fires), 1)) @ f
    x, recon = learned + absent + dense_part, (1.0 - case.shrinkage) * learned
    root = np.sqrt(weight)[:, None]

    def centred(a: Floats) -> Floats:
        return np.asarray(root * (a - weight @ a))

    left, values, _ = np.linalg.svd(centred(x), full_matrices=False)
    real = values > 1e-7 * values[0]  # float32 frames leave directions of 1e-8 that no one means
    basis = left[:, real]
    total = float((centred(x) ** 2).sum())
    parts = {"absent": centred(absent), "dense": centred(dense_part), "linear": case.shrinkage * centred(learned)}
    shares = {name: float((part**2).sum()) / total for name, part in parts.items()}
    error = centred(x - recon)
    hidden = centred(recon) - basis @ (basis.T @ centred(recon))
    shares["fvu"] = float((error**2).sum()) / total
    shares["cross"] = shares["fvu"] - sum(shares[name] for name in parts)
    shares["interference"] = shares["fvu_nonlinear"] = float((hidden**2).sum()) / total
    return {**shares, "condition": float((values[0] / values[real][-1]) ** 2)}


def _outcomes(world: World) -> tuple[Floats, Floats]:
    """Every pattern of events in every topic, as firings (patterns, m), and its probability."""
    forest, law = world.forest, world.contexts
    patterns = _patterns(forest.n_events)
    found = []
    for t in range(law.n_topics):
        p = np.ones(len(patterns))
        for i, root in enumerate(forest.roots):
            rate = law.own[i] if law.topic[i] == t else law.other[i]
            p *= np.where(patterns[:, root] > 0, rate, 1.0 - rate)
        for above in range(forest.n_events):
            children = np.flatnonzero(forest.parent == above)
            on, q = patterns[:, children], forest.share[children] * patterns[:, [above]]
            if forest.exclusive[above]:  # one of them, or none
                alone = (on * q).sum(axis=1)
                p *= np.where(on.sum(axis=1) == 1, alone, np.where(on.sum(axis=1) == 0, 1.0 - q.sum(axis=1), 0.0))
            else:
                p *= np.where(on > 0, q, 1.0 - q).prod(axis=1)
        found.append(p / law.n_topics)
    return np.tile(patterns[:, : world.n_features], (law.n_topics, 1)), np.concatenate(found)


def _independent(world: World) -> tuple[Floats, Floats]:
    patterns = _patterns(world.n_features)
    return patterns, np.where(patterns > 0, world.firing_rates, 1.0 - world.firing_rates).prod(axis=1)


def _patterns(n: int) -> Floats:
    return ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(np.float64)


@st.composite
def topical_worlds(draw: st.DrawFn) -> World:
    """Worlds in which topics are all that ties features together."""
    m = draw(st.integers(2, 8))
    return World(
        n_features=m,
        d_model=2,
        dense_dim=0,
        dense_share=0.0,
        l0=draw(st.floats(0.05, 0.45)) * m,
        zipf=draw(st.sampled_from([0.0, 1.0])),
        amplitude_last=draw(st.sampled_from([1.0, 3.0])),
        topics=draw(st.integers(2, 4)),
        topic_strength=draw(st.sampled_from([1.0, 0.5, 0.1])),
        seed=draw(st.integers(0, 9)),
    )


@st.composite
def sampled_worlds(draw: st.DrawFn, *, loose: bool = False) -> World:
    """Worlds whose second moments 4,096 tokens show: moderate tails, no feature rarer than about one token in 200.

    Args:
        draw: Supplied by hypothesis.
        loose: No trees and no groups, so that given the context every feature is a coin of its own.

    Returns:
        The world.
    """
    options = draw(world_options(most_features=24))
    m = options["n_features"]
    options |= {
        "l0": draw(st.floats(0.1, 0.25)) * m,
        "firing": draw(st.sampled_from(["zipf", "constant", "linear"])),
        "zipf": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "amplitude": draw(st.sampled_from(["constant", "uniform", "half-normal", "exponential"])),
        "amplitude_shape": 1.0,
        "doc_tokens": draw(st.sampled_from([1, 8])),
        "dictionary": "random",
        "correlation": draw(st.sampled_from([0.0, 0.3, 0.5])),  # a short series: the draws are what is at test
        "factors": draw(st.integers(1, 2)),
    }
    if loose:
        options |= {"roots": 0, "depth": 0, "exclusion": 1}
    if options["dense"] in {"student", "codes"}:
        options |= {"dense": "gaussian"}
    try:
        return World(**options)
    except InputError:
        reject()
