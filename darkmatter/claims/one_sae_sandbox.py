"""T5 in the sandbox: every bracket against surgical SAEs whose truth is known (proofs/08_one_sae.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.claim import AnyClaim, Claim, Margin, at_most, worst
from darkmatter.claims.one_sae_cases import condition_rounding
from darkmatter.claims.strategies import AMPLITUDES, Floats, seeds
from darkmatter.sandbox import Surgical, World, population_shares
from darkmatter.sandbox.factor_space import FactorSpace
from darkmatter.theory.one_sae import published_bracket
from darkmatter.theory.one_sae_moments import SecondMoments, feature_wise_bracket, uniform_bracket

_PAGE = "08_one_sae"
_FLOAT32 = 1e-6  # the world's dictionary and the SAE's decoder are float32


@dataclass(frozen=True, slots=True, eq=False)
class _Setup:
    """A world and a surgical SAE; `retained` are the features' own shares, in place of 1 − `shrinkage`."""

    world: World
    sae: Surgical
    retained: Floats

    @property
    def response(self) -> Floats:
        """B of Sae = f B + N, (m + k, d)."""
        found = self.sae.bind(self.world).response
        assert found is not None, "only kinds with a closed form are drawn"
        found[: len(self.retained)] *= self.retained[:, None]
        return found

    @property
    def moments(self) -> SecondMoments:
        """Second moments of (x, Sae); N must be isotropic."""
        space, d = FactorSpace.of(self.world), self.world.d_model
        joint = space.covariance(np.hstack([space.true, self.response]))
        noise = self.sae.introduced_share * self.world.variance / d
        return SecondMoments(joint[:d, :d], joint[:d, d:], joint[d:, d:] + noise * np.eye(d))

    def __str__(self) -> str:
        world = {
            k: getattr(self.world, k) for k in ("n_features", "d_model", "dense_dim", "topic_strength", "exclusion")
        }
        sae = {k: getattr(self.sae, k) for k in ("learned", "shrinkage", "tilt", "introduced", "introduced_share")}
        shown = ", ".join(f"{k}={v}" for k, v in {**world, **sae}.items())
        return f"{shown}, seed={self.world.seed}"


@st.composite
def _setups(draw: st.DrawFn, *, obey: bool = True) -> _Setup:
    m, d = draw(st.integers(6, 16)), draw(st.integers(3, 6))
    k = draw(st.integers(0, 2))
    seed = draw(seeds())
    rng = np.random.default_rng(seed)
    options: dict[str, Any] = {
        "n_features": m,
        "d_model": d,
        "l0": float(rng.uniform(0.05, 0.3)) * m,
        "zipf": float(rng.choice([0.0, 1.0])),
        "amplitude": str(rng.choice(AMPLITUDES)),
        "dictionary": str(rng.choice(["random", "clustered"])),
        "clusters": 3,
        "dense_dim": k,
        "dense_share": float(rng.uniform(0.05, 0.5)) if k else 0.0,
        "topic_strength": 0.0,
        "doc_tokens": 1,
        "seed": seed,
    }
    kinds = ["none", "independent", "heteroscedastic"]
    tilt = 0.0
    if not obey:
        options |= draw(st.sampled_from([{}, {"topic_strength": 1.0, "topics": 3}, {"exclusion": 3, "l0": 0.1 * m}]))
        tilt = draw(st.sampled_from([0.0, 30.0]))
        kinds.append("affine")
    kind = draw(st.sampled_from(kinds))
    sae = Surgical(
        learned=draw(st.integers(1, m)),
        shrinkage=draw(st.integers(0, 9)) / 10,
        tilt=tilt,
        introduced=kind,  # type: ignore[arg-type]
        introduced_share=0.0 if kind == "none" else draw(st.sampled_from([0.001, 0.05, 0.3])),
        seed=seed,
    )
    return _Setup(World(**options), sae, np.ones(m))


def _contained(setup: _Setup, *, uneven: bool = False, feature_wise: bool = True) -> Margin:
    """All brackets; with `uneven` every feature has its own shrinkage, which T5d excludes."""
    world, total = setup.world, setup.world.variance
    exact = population_shares(world, setup.sae)
    truth = exact.introduced
    if uneven:
        rng = np.random.default_rng(world.seed)
        setup = replace(setup, retained=rng.uniform(0.0, 1.0, world.n_features))
    moments = setup.moments
    traces = float(np.trace(moments.recon - moments.kept)) / total
    by_feature, uniform = feature_wise_bracket(moments), uniform_bracket(moments)
    lows = [traces, by_feature.low / total]
    highs = [by_feature.high / total]
    if not uneven:
        published = published_bracket(exact.fvu, min(1.0, max(0.0, exact.r2_error)) if exact.fvu > 0.0 else 0.0)
        lows += [published.low, uniform.low / total]
        highs += [published.high, uniform.high / total]
    elif not feature_wise:
        highs.append(uniform.high / total)
    rounding = _FLOAT32 + condition_rounding(moments.x) + condition_rounding(moments.recon)
    scale = 1.0 + exact.fvu
    return worst(
        *(at_most(low, truth, scale=scale, rounding=rounding) for low in lows),
        *(at_most(truth, high, scale=scale, rounding=rounding) for high in highs),
    )


def _either(setup: _Setup) -> Margin:
    return worst(_contained(setup), _contained(setup, uneven=True))


def _lower_ends(setup: _Setup, *, obey: bool = False) -> Margin:
    """The lower ends of T5a and T5b, from closed-form shares."""
    if obey:
        kind = "independent" if setup.sae.introduced == "affine" else setup.sae.introduced
        world = replace(setup.world, topic_strength=0.0, exclusion=1)
        setup = _Setup(world, replace(setup.sae, tilt=0.0, introduced=kind), setup.retained)
    world, space = setup.world, FactorSpace.of(setup.world)
    exact = population_shares(world, setup.sae)
    r2 = min(1.0, max(0.0, exact.r2_error)) if exact.fvu > 0.0 else 0.0
    kept = float((space.true * space.apply(setup.response)).sum())
    by_traces = (space.variance(setup.response) - kept) / world.variance + exact.introduced
    scale = 1.0 + exact.fvu
    margins = [at_most(by_traces, exact.introduced, scale=scale, rounding=_FLOAT32)]
    if exact.fvu * r2 <= 1.0:  # else T5a refuses: the numbers themselves refute its assumptions
        low = published_bracket(exact.fvu, r2).low
        margins.append(at_most(low, exact.introduced, scale=scale, rounding=_FLOAT32))
    return worst(*margins)


_AFFINE = _Setup(
    World(n_features=6, d_model=3, dense_dim=0, dense_share=0.0, l0=1.25, topic_strength=0.0, doc_tokens=1, seed=0),
    Surgical(learned=1, introduced="affine", introduced_share=0.05),
    np.ones(6),
)

SANDBOX: tuple[AnyClaim, ...] = (
    Claim(
        theorem="T5b",
        name="every-bracket-holds-in-the-sandbox",
        page=_PAGE,
        statement="the brackets of T5a to T5d contain the true introduced share of surgical SAEs",
        assumptions="independent features; uniform shrinkage, or (T5b, T5c) each feature's own; N independent of all",
        cases=_setups(),
        margin=_either,
        every=4,
        twins={"T5d with each feature's own shrinkage": partial(_contained, uneven=True, feature_wise=False)},
    ),
    Claim(
        theorem="T5b",
        name="lower-ends-hold-in-any-world",
        page=_PAGE,
        statement="the lower ends of T5a and T5b are below the true introduced share of every surgical SAE",
        assumptions="none: topics, exclusive features, tilted directions and affine errors are allowed",
        cases=_setups(obey=False),
        margin=_lower_ends,
        false=True,
        known=_AFFINE,
        twins={"independent features, no tilt, no affine error": partial(_lower_ends, obey=True)},
    ),
)
