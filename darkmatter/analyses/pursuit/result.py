"""What a pursuit returns: for every SAE its codes by several methods, their errors, and how these differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from darkmatter.analyses.pursuit.shares import SplitError
from darkmatter.inference import Estimate

DEFINITION = (
    "Codes of one decoder, several ways, on the same tokens and folds. encoder: the SAE's own. refit: the latents that "
    "the encoder activated, amplitudes by non-negative least squares. gp, omp: latents chosen anew by non-negative "
    "gradient pursuit and by non-negative orthogonal matching pursuit, as many steps as the encoder activated latents "
    "on that token (or --l0 for every token), so never more active latents than steps. Pursuit chooses by "
    "correlation with decoder rows of unit norm, in the space of the SAE's input normalisation, after b_dec. fvu, "
    "linear_share, fvu_nonlinear and r2_error as in the decomposition. change: this method's number minus the "
    "encoder's. removed: 1 - (error with this method / error with the encoder), of the whole error, of its linear and "
    "of its nonlinear part; contrast: removed of the nonlinear part minus removed of the linear part. encoder_error: "
    "fvu of the encoder minus that of `best`, the method with the smallest fvu: a lower end of what the encoder loses, "
    "since no method finds the best code; dictionary_error: fvu of `best`, an upper end of what this decoder must lose "
    "at this L0. Intervals: 95 %, Student t on fold influences."
)


@dataclass(frozen=True, slots=True)
class Removed:
    """Shares of the encoder's error that another inference removes.

    Attributes:
        error: Of the whole error, 1 − fvu / fvu of the encoder.
        linear: Of its linear part.
        nonlinear: Of its nonlinear part.
        contrast: nonlinear − linear: above 0 where the nonlinear part shrinks more.
    """

    error: Estimate
    linear: Estimate
    nonlinear: Estimate
    contrast: Estimate


@dataclass(frozen=True, slots=True)
class Coding:
    """The error of one way to code tokens.

    Attributes:
        method: "encoder", "refit", "gp" or "omp".
        steps: Steps of pursuit for every token; None where they are as many as the encoder's active latents.
        l0: Mean number of latents above zero.
        error: The error.
        change: What it has over the encoder's; None of the encoder itself.
        removed: What of the encoder's error is gone; None of the encoder itself.
    """

    method: str
    steps: int | None
    l0: Estimate
    error: SplitError
    change: SplitError | None = None
    removed: Removed | None = None


@dataclass(frozen=True, slots=True)
class SaePursuit:
    """Codes of one SAE.

    Attributes:
        codings: By name: encoder, and those of refit, gp and omp that were asked for.
        curve: gp or omp after several numbers of steps, rising.
        best: The method with the smallest FVU; "encoder" where none is better.
        encoder_error: FVU of the encoder minus that of the best.
        dictionary_error: FVU of the best.
        encoder_share: encoder_error as a share of the encoder's FVU.
        d_sae: Latents.
        shortlist: Rows of the first list of candidates of a token, later lists have at least twice as many; None where
            all latents are candidates.
        warnings: What a reader must know.
    """

    codings: Mapping[str, Coding]
    curve: tuple[Coding, ...]
    best: str
    encoder_error: Estimate
    dictionary_error: Estimate
    encoder_share: Estimate
    d_sae: int
    shortlist: int | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pursuit:
    """Result of `pursue`.

    Attributes:
        saes: By SAE.
        n_tokens: Tokens.
        n_groups: Documents.
        n_folds: Folds that hold tokens.
        d_model: Width.
        definition: What the numbers are.
        warnings: About the tokens, and SAEs that were left out.
    """

    saes: Mapping[str, SaePursuit]
    n_tokens: int
    n_groups: int
    n_folds: int
    d_model: int
    definition: str = DEFINITION
    warnings: tuple[str, ...] = ()
