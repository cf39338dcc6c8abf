"""What the geometry of the residual returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from darkmatter.inference import Estimate

DEFINITION = (
    "C is the covariance of x, of the error e = x - Sae(x), of its best affine prediction from x (linear) or of the "
    "rest r (nonlinear). share = tr C / Var x. participation = (tr C)^2 / tr C^2, both from products of different "
    "document folds, so that sampling noise does not enter. eigenvalues: over Var x, mean of insample (eigenvalues of "
    "one half of the documents, too spread) and heldout (variance of the other half along the same directions, too "
    "flat). leading = share of its own variance in its k leading directions; effective_rank = exp of the entropy of "
    "the eigenvalues' shares; both by the same symmetry. Cov r = mean of the residual covariances in sample and out of "
    "fold, scaled to Var r = sqrt(S*C); Cov linear = Cov e - Cov r. overlap = |U'V|^2 / k of two k-dimensional leading "
    "subspaces, from different documents, extrapolated to no noise (2 halves - quarters); k/d by chance. stability: "
    "overlap of a subspace with itself between the halves as they are, a property of this sample. spans: share of the "
    "variance inside some directions, dims/d by chance. alignments: d times the mean of u'Cu / tr C over unit "
    "directions u; 1 for isotropic C. Intervals: 95 %, Student t on fold influences (overlap: on jackknife influences)."
)


@dataclass(frozen=True, slots=True)
class PartSpectrum:
    """The spectrum of x, or of one part of an error.

    Attributes:
        share: Its variance over Var x.
        participation: Participation ratio, 1 to d.
        effective_rank: exp of the entropy of its eigenvalues' shares; undefined where sampling noise leaves a negative
            eigenvalue.
        leading: Share of its variance in its k leading directions.
        eigenvalues: Over Var x, at `indices`.
        insample: Optimistic half of the eigenvalues.
        heldout: Pessimistic half.
        stability: ‖U_A'U_B‖²/k of its leading subspaces on two halves of these documents.
    """

    share: Estimate
    participation: Estimate
    effective_rank: Estimate
    leading: Estimate
    eigenvalues: tuple[Estimate, ...]
    insample: tuple[float, ...]
    heldout: tuple[float, ...]
    stability: float


@dataclass(frozen=True, slots=True)
class Along:
    """How much of x and of each part of an error lies along some directions.

    Attributes:
        dims: Dimensions that they span (the mean over tokens, for active latents); directions, for an alignment.
        chance: What isotropic vectors would have.
        x: Of x.
        error: Of e.
        linear: Of the linear error.
        nonlinear: Of the nonlinear error.
    """

    dims: float
    chance: float
    x: Estimate
    error: Estimate
    linear: Estimate
    nonlinear: Estimate


@dataclass(frozen=True, slots=True)
class SaeSpectrum:
    """The geometry of one SAE's error.

    Attributes:
        control: It is a null control.
        error: e.
        linear: Its affine prediction from x.
        nonlinear: The rest r.
        spans: By name: "decoder" (where its rows do not span everything), "leading decoder directions" (k of them),
            "active latents" (each token's own; what refitting amplitudes could remove at most).
        alignments: By name: "decoder" (its rows), and whatever directions were given.
    """

    control: bool
    error: PartSpectrum
    linear: PartSpectrum
    nonlinear: PartSpectrum
    spans: Mapping[str, Along] = field(default_factory=dict)
    alignments: Mapping[str, Along] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Overlap:
    """Leading subspaces of the nonlinear errors of two SAEs, or of one and of x.

    Attributes:
        first: An SAE.
        second: Another, or "x".
        overlap: ‖U'V‖²/k, free of first-order noise.
        halves: The same between two halves as they are.
    """

    first: str
    second: str
    overlap: Estimate
    halves: float


@dataclass(frozen=True, slots=True)
class ResidualSpectrum:
    """The geometry of x and of every SAE's error.

    Attributes:
        x: Spectrum of x.
        saes: By SAE, controls too.
        overlaps: Every pair of SAEs, and every SAE with x.
        rank: k, the directions that count as leading.
        chance: k/d.
        indices: Ranks of the eigenvalues given, from 1.
        n_tokens: Tokens.
        n_active_tokens: Tokens on which spans of active latents were measured, the first ones.
        n_groups: Documents.
        n_folds: Folds that hold tokens.
        d_model: Width d.
        warnings: What a reader must know.
        definition: How every number is defined.
    """

    x: PartSpectrum
    saes: Mapping[str, SaeSpectrum]
    overlaps: tuple[Overlap, ...]
    rank: int
    chance: float
    indices: tuple[int, ...]
    n_tokens: int
    n_active_tokens: int
    n_groups: int
    n_folds: int
    d_model: int
    warnings: tuple[str, ...]
    definition: str = DEFINITION

    def overlap(self, first: str, second: str) -> Overlap:
        """The overlap of two, in either order.

        Args:
            first: An SAE.
            second: Another, or "x".

        Returns:
            The overlap as it is stored.

        Raises:
            KeyError: There is no such pair.
        """
        for found in self.overlaps:
            if {found.first, found.second} == {first, second}:
                return found
        raise KeyError(f"no overlap of {first!r} and {second!r}")
