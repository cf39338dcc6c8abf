"""What a reader must know before trusting the numbers: one sentence each, with the likely cause and the remedy."""

from __future__ import annotations

from typing import Literal

from darkmatter.folds import FoldMoments
from darkmatter.inference import Estimate
from darkmatter.moments import Moments
from darkmatter.results import Introduced
from darkmatter.solve import CrossFit

DEAD = 1e-12
AFFINE = 1e-6
FEW_GROUPS_PER_FOLD = 5
LOW_TOKENS_PER_DIRECTION = 4
DOMINANT_SHARE = 0.05
FEW_EFFECTIVE = 0.05


def degenerate_kind(var_recon: float, var_nonlinear: float, var_x: float) -> Literal["dead", "affine"] | None:
    """Name the SAEs for which "all error is linear" is true and empty (T6).

    Args:
        var_recon: Var Sae(x).
        var_nonlinear: Var r.
        var_x: Var x.

    Returns:
        "dead" if Sae(x) is constant, "affine" if it is an affine map of x on these tokens, else None.
    """
    if var_recon <= DEAD * var_x:
        return "dead"
    return "affine" if var_nonlinear <= AFFINE * var_recon else None


def sae_warnings(
    name: str, degenerate: Literal["dead", "affine"] | None, fvu: Estimate, introduced: Introduced
) -> tuple[str, ...]:
    """Sentences about one SAE."""
    found = []
    if degenerate == "dead":
        found.append(
            f"{name} is dead: Sae(x) is constant, so e = x up to a constant and R2 = 1 says nothing about linear error."
        )
    if degenerate == "affine":
        found.append(
            f"{name} is affine in x on these tokens: no latent switches, its nonlinear error is zero by construction."
        )
    if fvu.value >= 1 and degenerate is None:
        found.append(
            f"{name} has FVU {fvu.value:.3g}, worse than predicting the mean: check the layer, the hook point and the "
            "input normalisation."
        )
    if introduced.lower_end.low > introduced.upper_end.high and degenerate is None:
        found.append(
            f"{name} contradicts the assumptions of T5b: its lower end {introduced.lower_end.value:.3g} lies above its "
            f"upper end {introduced.upper_end.value:.3g}; the decoder over-scales, and only the upper end holds."
        )
    return tuple(found)


def token_warnings(moments: FoldMoments, fit: CrossFit, total: Moments) -> tuple[str, ...]:
    """Sentences about the tokens, common to every SAE."""
    found = []
    n_folds = len(moments.folds)
    empty = sum(fold.n == 0 for fold in moments.folds)
    if empty or moments.n_groups < FEW_GROUPS_PER_FOLD * n_folds:
        found.append(
            f"only {moments.n_groups} documents for {n_folds} folds ({empty} of them empty): intervals rest on "
            f"documents, not tokens; pass at least {FEW_GROUPS_PER_FOLD * n_folds} documents, or fewer folds."
        )
    per_direction = total.n / max(1, fit.factor.rank)
    if per_direction < LOW_TOKENS_PER_DIRECTION:
        found.append(
            f"only {per_direction:.1f} tokens per direction of x: below {LOW_TOKENS_PER_DIRECTION} the correction for "
            "optimism is not calibrated; pass more tokens."
        )
    if fit.min_train_rank < fit.factor.rank:
        found.append(
            f"x spans {fit.factor.rank} directions but only {fit.min_train_rank} when one fold is left out: some "
            "directions occur in one fold only; pass more documents."
        )
    if fit.far_share > DOMINANT_SHARE:
        found.append(
            f"one token carries {fit.far_share:.0%} of the variance of x (leverage {fit.far_leverage:.2f}): the result "
            "describes that token; drop the first position and attention sinks."
        )
    norm = float(total.mean_t[0])
    effective = norm**2 / (norm**2 + float(total.target_ss[0]) / total.n) if norm > 0 else 1.0
    if effective < FEW_EFFECTIVE and fit.far_share <= DOMINANT_SHARE:
        found.append(
            f"{effective:.1%} of the tokens carry most of the squared norm of x: likely the first position or "
            "attention sinks; drop them, or filter by norm."
        )
    return tuple(found)
