"""What a predictor ladder returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from darkmatter.inference import Estimate

DEFINITION = (
    "e = x - Sae(x); r2 = 1 - V / Var e, V the residual variance of e under a predictor with intercept, Var the trace "
    "of the covariance over all tokens. gain: e on Sae(x), one coefficient, so x ~ alpha Sae(x); coordinate_gain: one "
    "per coordinate; latent_gain: e on the contributions c_j w_j of the latents, one coefficient each, so every "
    "latent's scale is refitted; x_gain, x_coordinate_gain: e on x, one coefficient, or one per coordinate; rank_r: "
    "the best affine map of x of rank r; linear: the best affine map of x. V = sqrt(S*C), S the in-sample and C the "
    "out-of-fold residual variance pooled over fits that leave documents out. network and mlp: trained on what the "
    "affine map of x leaves, V = C alone, so r2 is a lower bound on what some function of x can explain; over_linear "
    "compares with C of the affine map fitted to the same documents. A deterministic Sae makes e a function of x, so "
    "the limit of that ladder is 1: no rung says what the SAE introduced. r90: smallest rank whose r2 reaches 90 % of "
    "that of the linear rung. Rungs are not nested: a difference may be negative. Intervals: 95 %, "
    "Student t on folds, of first order: they say nothing about shares as small as the optimism (C - S) / Var e."
)


@dataclass(frozen=True, slots=True)
class Rung:
    """One predictor of the error.

    Attributes:
        name: "gain", "coordinate_gain", "latent_gain", "rank_8", "linear", "network", "mlp", "x_gain",
            "x_coordinate_gain".
        r2: Share of Var e that it explains.
        over_previous: By how much that exceeds the share of the rung before it (of zero, for the first).
        over_linear: By how much that exceeds the share of the affine map of x.
        heldout_only: Trained: r2 is pessimistic, a lower bound, not sqrt(S·C).
        note: Why it is undefined, where it is.
    """

    name: str
    r2: Estimate
    over_previous: Estimate
    over_linear: Estimate
    heldout_only: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class RankCurve:
    """Share of Var e that affine maps of x explain, by rank.

    Attributes:
        ranks: Ranks r.
        r2: The share of each.
        r90: Smallest rank that reaches 90 % of the affine map's share; low and high are the smallest ranks at which
            r2(r) − 0.9 r2(linear) may be, and surely is, non-negative (97.5 % each). Undefined where the affine map may
            explain nothing.
    """

    ranks: tuple[int, ...]
    r2: tuple[Estimate, ...]
    r90: Estimate


@dataclass(frozen=True, slots=True)
class SaeLadder:
    """The ladder of one SAE.

    Attributes:
        name: The SAE.
        fvu: Var e / Var x.
        rungs: From the gain of Sae(x) to the richest; the mean explains 0 by definition.
        in_x: Gains of x itself, so that "predictable" is not taken for "a remnant of x".
        curve: By rank.
        warnings: What to know before trusting the numbers.
    """

    name: str
    fvu: Estimate
    rungs: tuple[Rung, ...]
    in_x: tuple[Rung, ...]
    curve: RankCurve
    warnings: tuple[str, ...]

    def __getitem__(self, name: str) -> Rung:
        """A rung by name."""
        return next(rung for rung in (*self.rungs, *self.in_x) if rung.name == name)


@dataclass(frozen=True, slots=True)
class Ladder:
    """The predictor ladder of every SAE of a source.

    Attributes:
        saes: By name.
        n_tokens: Tokens.
        n_groups: Documents.
        n_folds: Folds that hold tokens.
        d_model: Width of x.
        definition: What the numbers are.
        warnings: Of all SAEs together, each once.
    """

    saes: Mapping[str, SaeLadder]
    n_tokens: int
    n_groups: int
    n_folds: int
    d_model: int
    definition: str = DEFINITION
    warnings: tuple[str, ...] = ()
