"""What `downstream_losses` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from darkmatter.inference import UNDEFINED, Estimate

DEFINITION = (
    "A loss is -log p(next token) in nats at a counted token whose next token is of the same document, with the site "
    "replaced at all counted tokens (others, such as BOS, stay as they are); means are over all such losses. "
    "e = x - Sae(x) = linear + nonlinear: the linear error is the best affine prediction of e from x (bias included), "
    "fitted without the document it is used on. identity: x put back. sae: Sae(x). nonlinear-left: x - nonlinear, "
    "which is Sae(x) + linear. linear-left: x - linear. random, random-linear, random-nonlinear: x minus an isotropic "
    "Gaussian direction with the norm that e, its linear or its nonlinear part has at the token. shuffled: x minus the "
    "e of a token of another document. mean: the mean of x. zero: 0. increase D(v) = loss(v) - clean loss, paired "
    "token by token. recovered (of a variant) = 1 - D(v) / D(mean). Of the two parts: error_share = sum |part|^2 / "
    "sum |e|^2, means included, as they are spliced in; recovered = 1 - D(other part left) / D(sae), what adding this "
    "part back to Sae(x) undoes; alone = D(this part left) / D(sae); relative = recovered / error_share; "
    "versus_random = D(this part left) / D(random of its norm). interaction = D(linear-left) + D(nonlinear-left) - "
    "D(sae), 0 where the loss is quadratic in the error. fit_noise k = 1 - sqrt(S/C), S and C the in-sample and "
    "out-of-fold variances of r: both parts carry noise of the fit, so squared norms and D of the nonlinear "
    "part, and of its random counterpart, are given times 1 - k, and those of the linear part less k times the "
    "nonlinear one's as measured. versus_random and versus_shuffled of an SAE: D(sae) over "
    "theirs. Intervals: 95 %, Student t on document folds, delta method. A ratio whose denominator's interval reaches "
    "0 is not given."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantLosses:
    """The losses of one variant.

    Attributes:
        loss: Mean loss, in nats per token.
        increase: By how much it exceeds the clean loss, in nats per token.
        recovered: 1 − increase / increase of mean ablation.
    """

    loss: Estimate
    increase: Estimate
    recovered: Estimate = UNDEFINED


@dataclass(frozen=True, slots=True, kw_only=True)
class PartLosses:
    """What one part of the error, linear or nonlinear, has to do with the loss.

    Attributes:
        error_share: Its share of the squared error.
        recovered: Share of the increase by Sae(x) that goes when this part is added back.
        alone: Increase when this part is all that is left of the error, over the increase by Sae(x).
        relative: `recovered` / `error_share`: above 1 it matters more than its size says.
        versus_random: Increase when it is all that is left, over that of a random error of its norm.
    """

    error_share: Estimate
    recovered: Estimate = UNDEFINED
    alone: Estimate = UNDEFINED
    relative: Estimate = UNDEFINED
    versus_random: Estimate = UNDEFINED


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeLosses:
    """The losses with one SAE.

    Attributes:
        variants: By name, those of this SAE.
        linear: The linear part of its error.
        nonlinear: The nonlinear part.
        interaction: Increase of the two parts left one at a time, less that of both, in nats per token.
        versus_random: Increase by Sae(x) over that of a random error of equal norm.
        versus_shuffled: The same over the error of another document's token.
        fit_noise: Share of the spliced nonlinear part that was noise of the linear fit, 1 − sqrt(S/C), and was taken
            out of all numbers of the two parts.
    """

    variants: Mapping[str, VariantLosses]
    linear: PartLosses
    nonlinear: PartLosses
    interaction: Estimate
    versus_random: Estimate
    versus_shuffled: Estimate
    fit_noise: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DownstreamLosses:
    """The losses of a model with a site replaced.

    Attributes:
        clean: Mean loss of the model alone, in nats per token.
        variants: By name, those that SAEs share: identity, mean, zero.
        saes: By SAE.
        identity_gap: Largest difference of a loss with the identity from the clean one, in nats; None where it was not
            asked for.
        n_losses: Losses that the means are over.
        n_documents: Documents they are of.
        n_folds: Document folds that the intervals rest on.
        n_map_tokens: Tokens that each linear map was fitted on, at least.
        rank: Directions of x.
        definition: What the numbers are.
        warnings: What to keep in mind.
    """

    clean: Estimate
    variants: Mapping[str, VariantLosses]
    saes: Mapping[str, SaeLosses]
    identity_gap: float | None
    n_losses: int
    n_documents: int
    n_folds: int
    n_map_tokens: int
    rank: int
    definition: str = DEFINITION
    warnings: tuple[str, ...] = ()
