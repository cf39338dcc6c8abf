"""What the per-token analysis finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from darkmatter.inference import Estimate

DEFINITION = (
    "e = x - Sae(x) = linear + r for every token, by affine maps of x fitted without the token's own part of the "
    "documents. Prediction: R2 of |e_large| (or |e_large|^2) regressed with intercept on norms (or squared norms) of "
    "the small SAE's e, r and linear part, 1 - sqrt(S*C)/Var leaving one fold out at a time; gain = "
    "the difference of two R2 on the same folds. Breakdown, in a class of tokens: fvu = mean |e - mean e|^2 / Var x; "
    "nonlinear = c * mean |r|^2 / Var x, c such that over all tokens it is the fvu_nonlinear of the decomposition; "
    "linear = fvu - nonlinear (it holds the class's covariance of the two parts, so it can be negative): each, "
    "weighted by the class's share of tokens, adds to the whole. nonlinear_share = nonlinear / fvu. part_of_nonlinear "
    "= the class's part of all nonlinear error, adding to 1. own_fvu = sum |e - mean e|^2 / sum |x - mean x|^2 in the "
    "class. "
    "slope: change of |r|^2, over its mean, per doubling of 1 + position. constancy: Hotelling's test on folds that "
    "all classes have one mean |r|^2. The nonlinear share is an upper end of what the SAE introduces (T3), not a "
    "measurement of it: interference counts too. Intervals: 95 %, Student t on fold influences."
)

TARGETS = ("norm", "square")
"""What is predicted: ‖e_L‖ from norms, or ‖e_L‖² from squared norms."""

FEATURES: dict[str, tuple[str, ...]] = {
    "activation": ("x",),
    "error": ("e",),
    "nonlinear": ("r",),
    "linear": ("l",),
    "error + nonlinear": ("e", "r"),
    "error + activation": ("e", "x"),
    "error + nonlinear + linear": ("e", "r", "l"),
}
"""What it is predicted from: x is the activation's norm, e, r and l the small SAE's."""


@dataclass(frozen=True, slots=True)
class ErrorPrediction:
    """How well a large SAE's error norm follows from a small one's.

    Attributes:
        r2: R² by set of features (`FEATURES`).
        gain_nonlinear: R² of error and nonlinear norm less R² of the error norm alone.
        gain_linear: R² of error, nonlinear and linear norm less R² of error and nonlinear norm.
        gain_over_activation: R² of the error norm less that of the activation's norm: what says more than size.
    """

    r2: Mapping[str, Estimate]
    gain_nonlinear: Estimate
    gain_linear: Estimate
    gain_over_activation: Estimate


@dataclass(frozen=True, slots=True)
class Pair:
    """Two SAEs, the errors of one predicted from those of the other.

    Attributes:
        small: The SAE whose norms predict.
        large: The SAE whose error is predicted.
        norm: Of ‖e_L‖ from norms.
        square: Of ‖e_L‖² from squared norms.
    """

    small: str
    large: str
    norm: ErrorPrediction
    square: ErrorPrediction


@dataclass(frozen=True, slots=True)
class Share:
    """One SAE's error on a class of tokens; see `DEFINITION`.

    Attributes:
        name: The class.
        n_tokens: Its tokens.
        tokens: Its share of all tokens.
        fvu: Mean ‖e − ē‖² over Var x.
        linear: The linear part of it.
        nonlinear: The nonlinear part of it.
        nonlinear_share: nonlinear / fvu.
        part_of_nonlinear: Share of all nonlinear error that lies here.
        own_fvu: Error over the class's own deviation from the mean of all tokens.
    """

    name: str
    n_tokens: int
    tokens: float
    fvu: Estimate
    linear: Estimate
    nonlinear: Estimate
    nonlinear_share: Estimate
    part_of_nonlinear: Estimate
    own_fvu: Estimate


@dataclass(frozen=True, slots=True)
class Constancy:
    """Whether the mean ‖r‖² is the same in all classes.

    Attributes:
        p_value: Of Hotelling's test on fold influences; NaN where there are too few folds.
        classes: Classes compared: those with tokens in at least half of the folds.
        largest: Largest ratio of a class's mean ‖r‖² to that of all tokens.
        smallest: The smallest.
    """

    p_value: float
    classes: int
    largest: Estimate
    smallest: Estimate


@dataclass(frozen=True, slots=True)
class Breakdown:
    """One SAE's error by classes of tokens.

    Attributes:
        shares: The classes that hold tokens.
        constancy: Whether the nonlinear error is the same in all.
    """

    shares: tuple[Share, ...]
    constancy: Constancy


@dataclass(frozen=True, slots=True)
class TopToken:
    """A token with much nonlinear error; an upper end of what is introduced there, see `DEFINITION`.

    Attributes:
        document: Document id.
        position: Position in it; None where it is not known.
        token_id: Vocabulary id; None where it is not known.
        share: ‖r‖² / ‖e − ē‖².
        square: ‖r‖² over its mean.
        before: Text before it, in the batch; ids where there is no tokenizer.
        token: Its text.
        after: Text after it.
    """

    document: int
    position: int | None
    token_id: int | None
    share: float
    square: float
    before: str
    token: str
    after: str


@dataclass(frozen=True, slots=True)
class SaeTokens:
    """One SAE's error, token by token.

    Attributes:
        by_position: By position, bins doubling in length; None without positions.
        slope: Change of ‖r‖², over its mean, per doubling of 1 + position; undefined without positions.
        by_frequency: By tenths of the tokens, rarest ids first; None without token ids.
        by_class: By what the token is in writing; None without a tokenizer.
        top_share: Tokens with the largest ‖r‖² / ‖e − ē‖², among those with ‖e − ē‖² above its mean.
        top_square: Tokens with the largest ‖r‖².
    """

    by_position: Breakdown | None
    slope: Estimate
    by_frequency: Breakdown | None
    by_class: Breakdown | None
    top_share: tuple[TopToken, ...]
    top_square: tuple[TopToken, ...]


@dataclass(frozen=True, slots=True)
class PerToken:
    """Errors of SAEs token by token.

    Attributes:
        pair: A large SAE's error from a small one's; None with fewer than two SAEs.
        saes: By SAE name.
        n_tokens: Tokens.
        n_folds: Folds that hold tokens.
        warnings: What to keep in mind.
        definition: What the numbers are.
    """

    pair: Pair | None
    saes: Mapping[str, SaeTokens]
    n_tokens: int
    n_folds: int
    warnings: tuple[str, ...] = ()
    definition: str = DEFINITION
