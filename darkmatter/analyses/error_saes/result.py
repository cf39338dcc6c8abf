"""The result of training on error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from darkmatter.analyses.error_saes.alignment import Alignment
from darkmatter.analyses.error_saes.evaluation import Measured
from darkmatter.analyses.error_saes.parts import Maps, Target
from darkmatter.inference import Estimate
from darkmatter.sae import SAE

DEFINITION = (
    "Folds 0, 5, 10, ... of documents are held out; affine maps x -> linear error are fitted, and SAEs trained, on "
    "the other documents; everything reported is measured on held-out ones. A target t is the linear error, the "
    "nonlinear error, x, or Gaussian noise; it is projected onto its leading `rank` directions and rescaled to unit "
    "total variance (whitened: to equal variances). fvu: sum |e - mean e|^2 / sum |t - mean t|^2 of prepared rows, "
    "the SAE given. structure: 1 - fvu / fvu of an SAE trained alike on Gaussian rows of equal covariance "
    "(eigenvectors of the training documents; variances along them on held-out ones, which do not spread by chance). "
    "share: variance over Var x on the documents trained on. l0: latents above zero per token. dead: share of "
    "latents silent on all held-out tokens. Intervals: 20 bins of held-out documents; they hold the trained SAEs "
    "fixed and do not include the chance in training. alignment: cosines of decoder rows with given directions; "
    "intervals over directions; control: random rows with the target's covariance."
)


@dataclass(frozen=True, slots=True)
class TargetResult:
    """The SAE of one target.

    Attributes:
        kind: linear, nonlinear, x, gaussian or isotropic.
        sae: Whose error it is; "" for x.
        share: Variance over Var x, on the documents trained on.
        rank: Directions kept.
        kept: Share of its variance in them.
        effective_rank: Participation ratio of its eigenvalues.
        fvu: Held-out FVU.
        structure: What sparsity saves beyond second moments; None where no Gaussian control was trained.
        l0: Active latents per token, held out.
        dead: Share of latents silent on all held-out tokens.
        train_dead: Share silent at the end of training.
        n_tokens: Tokens trained on.
        history: (tokens seen, FVU of the tokens since the previous point) while training.
        alignment: By name of the directions.
    """

    kind: str
    sae: str
    share: float
    rank: int
    kept: float
    effective_rank: float
    fvu: Estimate
    structure: Estimate | None
    l0: Estimate
    dead: Estimate
    train_dead: float
    n_tokens: int
    history: tuple[tuple[int, float], ...]
    alignment: Mapping[str, Alignment]


@dataclass(frozen=True, slots=True)
class TrainOnError:
    """SAEs trained on the parts of an SAE's error.

    Attributes:
        name: The SAE.
        targets: Results by target.
        differences: Differences of held-out FVU, "a - b", on the same documents.
        structure_gap: `structure` of the linear less that of the nonlinear part; None where one is missing.
        n_train: Tokens that are trained on, distinct.
        n_heldout: Tokens held out.
        epochs: Times each training token was seen.
        whitened: Whether all directions kept have equal variance.
        config: Settings of every training.
        warnings: What stands in doubt.
        definition: How the numbers are defined.
        saes: The SAEs, each taking rows of its own target in raw units; not part of a report.
        measured: Sums and contexts behind the numbers; not part of a report.
        prepared: The targets, with which rows are made again; not part of a report.
        maps: The affine maps; not part of a report.
    """

    name: str
    targets: Mapping[str, TargetResult]
    differences: Mapping[str, Estimate]
    structure_gap: Estimate | None
    n_train: int
    n_heldout: int
    epochs: float
    whitened: bool
    config: Mapping[str, Any]
    warnings: tuple[str, ...]
    definition: str = DEFINITION
    saes: Mapping[str, SAE] = field(default_factory=dict, compare=False, repr=False)
    measured: Mapping[str, Measured] = field(default_factory=dict, compare=False, repr=False)
    prepared: Mapping[str, Target] = field(default_factory=dict, compare=False, repr=False)
    maps: Maps | None = field(default=None, compare=False, repr=False)
