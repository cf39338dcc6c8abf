"""The frozen record of a recovery: how well the latents of an SAE are the features of its world."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from darkmatter.inference import Estimate
from darkmatter.results import to_plain

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Floats, Integers

FORMAT = "darkmatter.recovery"
VERSION = 1

Kind = Literal["dead", "matched", "duplicate", "false"]
KINDS: tuple[Kind, ...] = get_args(Kind)

DEFINITION = (
    "Feature i has amplitude a_i ≥ 0 and direction y_i; it is active where a_i > 0. Latents are matched to features "
    "one to one so that the sum of |cos(decoder row, y_i)| is largest; b_i ≥ 0 is the value of the latent matched to "
    "feature i, and min(m, s) features have one. "
    "mcc: mean |cosine| of the matched pairs. weighted_mcc: mean over all m features weighted by firing rate, 0 where "
    "there is no latent. best_cosine: mean over features of the largest |cosine| with any latent. recovered_share: "
    "share of the m features matched with |cosine| ≥ match_cosine. These four are exact and carry no interval. "
    "Over matched features, with N(·) a count of (token, feature) pairs: precision N(a > 0, b > 0) / N(b > 0), recall "
    "N(a > 0, b > 0) / N(a > 0), f1 2 N(a > 0, b > 0) / (N(a > 0) + N(b > 0)), absorption N(a > 0, b = 0, another "
    "latent with cosine > near_cosine above zero) / N(a > 0); macro_* are means over the features for which the ratio "
    "exists. shrinkage: 1 − slope, the slope of the contributions b_i ⟨decoder row, y_i⟩ on a_i with an intercept per "
    "feature and one slope for all recovered features. "
    "Of the s latents: dead_share did not fire on these tokens; of those that did, matched_share stands for its "
    "feature (|cosine| ≥ match_cosine), duplicate_share is as close to a feature that has another latent, false_share "
    "is close to none; the four add up to 1. They depend on n_tokens: a rarer latent is dead until the sample is "
    "longer. l0: latents above zero per token; density: l0 / s; fvu: Var(x − Sae(x)) / Var x. "
    "Intervals: 95 %, Student t over folds of documents from linearised influences; for the shares of latents from the "
    "jackknife over folds, which says how they vary at this number of tokens. Shares are cut to [0, 1]."
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """What became of every feature; read-only arrays of length m, NaN where a number does not exist.

    Attributes:
        latent: Matched latent, −1 where there are fewer latents than features.
        cosine: Signed cosine of its decoder row with the feature.
        best_cosine: Largest |cosine| with any latent.
        rate: Probability that the feature fires, in the population.
        measured_rate: Share of tokens on which it fired.
        latent_rate: Share of tokens on which the matched latent fired.
        precision: N(a > 0, b > 0) / N(b > 0).
        recall: N(a > 0, b > 0) / N(a > 0).
        f1: 2 N(a > 0, b > 0) / (N(a > 0) + N(b > 0)).
        absorption: Share of the feature's tokens on which its latent is silent and a near latent fires.
        correlation: Pearson correlation of a and b over all tokens.
        gain: Slope of b ⟨decoder row, y⟩ on a over all tokens, with intercept; 1 − gain is the shrinkage.
    """

    latent: Integers
    cosine: Floats
    best_cosine: Floats
    rate: Floats
    measured_rate: Floats
    latent_rate: Floats
    precision: Floats
    recall: Floats
    f1: Floats
    absorption: Floats
    correlation: Floats
    gain: Floats

    def __post_init__(self) -> None:
        _freeze(self)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Latents:
    """What every latent is; read-only arrays of length s.

    Attributes:
        feature: Matched feature, −1 where there are fewer features than latents.
        best_cosine: Largest |cosine| with any feature.
        rate: Share of tokens on which the latent fired.
        kind: Position in `KINDS`: 0 dead, 1 matched, 2 duplicate, 3 false.
    """

    feature: Integers
    best_cosine: Floats
    rate: Floats
    kind: Integers

    def __post_init__(self) -> None:
        _freeze(self)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recovery:
    """How well an SAE recovers the features of a world; `definition` says what each number is.

    Attributes:
        mcc: Mean |cosine| of matched pairs.
        weighted_mcc: The same over all features by firing rate.
        best_cosine: Mean largest |cosine| per feature.
        recovered_share: Share of features matched with |cosine| ≥ `match_cosine`.
        precision: Of the latents' activity, pooled.
        recall: Of the features' activity, pooled.
        f1: Harmonic mean of the two.
        macro_precision: Mean over features.
        macro_recall: Mean over features.
        macro_f1: Mean over features.
        absorption: Share of the features' activity that other, near latents took over.
        shrinkage: 1 − slope of the latents' contributions on the amplitudes.
        dead_share: Latents that never fired.
        matched_share: Latents that fire and stand for their feature.
        duplicate_share: Latents that fire beside another latent for the same feature.
        false_share: Latents that fire and stand for no feature.
        l0: Latents above zero per token.
        density: `l0` over the number of latents.
        fvu: Fraction of variance unexplained.
        world_l0: Features that fire per token, in the population.
        n_features: m.
        d_sae: s.
        n_tokens: Tokens compared.
        n_groups: Documents.
        n_folds: Folds that hold tokens.
        stream: Stream they were drawn from.
        match_cosine: |cosine| from which a latent stands for a feature.
        near_cosine: Cosine above which another latent may absorb.
        features: Per feature.
        latents: Per latent.
        definition: How every number is defined.
    """

    mcc: float
    weighted_mcc: float
    best_cosine: float
    recovered_share: float
    precision: Estimate
    recall: Estimate
    f1: Estimate
    macro_precision: Estimate
    macro_recall: Estimate
    macro_f1: Estimate
    absorption: Estimate
    shrinkage: Estimate
    dead_share: Estimate
    matched_share: Estimate
    duplicate_share: Estimate
    false_share: Estimate
    l0: Estimate
    density: Estimate
    fvu: Estimate
    world_l0: float
    n_features: int
    d_sae: int
    n_tokens: int
    n_groups: int
    n_folds: int
    stream: str
    match_cosine: float
    near_cosine: float
    features: Features
    latents: Latents
    definition: str = DEFINITION

    def estimates(self) -> dict[str, Estimate]:
        """The pooled numbers that are sampled, by name."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Estimate)}

    def summary(self) -> dict[str, float | int | None]:
        """All pooled numbers, flat: an estimate gives ``name``, ``name_low`` and ``name_high``; None for NaN."""
        flat: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Estimate):
                flat |= {field.name: value.value, f"{field.name}_low": value.low, f"{field.name}_high": value.high}
            elif isinstance(value, int | float):
                flat[field.name] = value
        plain: dict[str, float | int | None] = to_plain(flat)
        return plain

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types: one list per column of features and latents, None for NaN."""
        names = [field.name for field in fields(self) if field.name not in {"features", "latents"}]
        return {
            "format": FORMAT,
            "version": VERSION,
            **{name: to_plain(getattr(self, name)) for name in names},
            "features": _columns(self.features),
            "latents": {**_columns(self.latents), "kind": [KINDS[kind] for kind in self.latents.kind]},
        }


def _columns(table: Features | Latents) -> dict[str, list[Any]]:
    return {field.name: to_plain(getattr(table, field.name).tolist()) for field in fields(table)}


def _freeze(table: Features | Latents) -> None:
    for field in fields(table):
        own = np.array(getattr(table, field.name))
        own.flags.writeable = False
        object.__setattr__(table, field.name, own)
