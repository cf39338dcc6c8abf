"""What the comparison of replicates returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from darkmatter.analyses.replicates.conditions import Check
from darkmatter.analyses.replicates.recipes import Kind
from darkmatter.inference import Estimate

DEFINITION = (
    "T8; shares of Var x, Var the trace of a covariance. r_a: nonlinear residual of SAE a, e_a minus its best affine "
    "prediction from x; every variance of it is sqrt(S*C) over leave-one-fold-out fits, folds by document. unshared = "
    "Var(r_a - r_b) / 2; shared = Cov(r_a, r_b) = mean Var r - unshared; correlation = shared / sqrt(Var r_a Var r_b). "
    "corrected = max(0, [Var(a - b) - |Cov(x, a - b)|] / 2); instrument of a by b = max(0, Var a - Cov(x, a) "
    "Cov(a, b) / Cov(x, b)). Of J SAEs of one recipe, unshared = mean over pairs = sum Var(r_j - mean r) / (J - 1); "
    "lower_end of one of them = Var r_a - mean shared with the others. by_similarity: mean Var r - mean shared / k, "
    "the lower end if mean Cov(q_a, q_b) = k mean Var q, q the interference. best = Var r_a - least shared of two SAEs "
    "of the recipe. across_saes: the interval for other SAEs of the recipe "
    "(jackknife, J >= 3); all other intervals take the SAEs as given. Intervals: 95 %, Student t on fold influences. "
    "Introduced error itself is not measured: it lies between a lower end, under the condition named beside it, and "
    "Var r (T3)."
)

LowerEnd = Literal["unshared", "instrument", "none"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two SAEs on the same tokens.

    Attributes:
        first: One.
        second: The other.
        kind: How they relate: "one recipe", "wider" (one of them is), "unequal", "unknown", "control", "degenerate".
        wider: The wider one, if kind is "wider".
        unshared: ½ Var(r_a − r_b).
        shared: Cov(r_a, r_b).
        correlation: Of the two nonlinear residuals.
        corrected: For nested pairs.
        instrument_first: About the first, by means of the second.
        instrument_second: About the second, by means of the first.
        read: Which of these is a lower end of introduced error, and when.
    """

    first: str
    second: str
    kind: Kind
    wider: str | None
    unshared: Estimate
    shared: Estimate
    correlation: Estimate
    corrected: Estimate
    instrument_first: Estimate
    instrument_second: Estimate
    read: str


@dataclass(frozen=True, slots=True)
class SaeBracket:
    """The bracket of one SAE's introduced error.

    Attributes:
        recipe: Its recipe in words; None where it is not known.
        control: It is a null control.
        fvu: Var e / Var x.
        upper_end: Var r / Var x: at least the introduced error, whatever else holds (T3).
        lower_end: Var r_a − mean Cov(r_a, r_b) over replicates b of its recipe, not cut at 0; else its instrument by
            the widest SAE that is narrower; undefined where there is neither.
        lower_from: Which of the two.
        with_saes: By means of which SAEs.
        best: T8e, Var r minus the least covariance within its recipe; undefined without replicates.
        low: The bracket with sampling error: 0 without a lower end …
        high: … to the upper limit of Var r.
        one_sae: T5b's lower end, from this SAE alone; about 0 for any trained one (T5e).
        sensitivity: T5b, points (s, Var N(s) / Var x) in the mean shrinkage s.
        max_shrinkage: The largest s if all features shrink alike.
    """

    recipe: str | None
    control: bool
    fvu: Estimate
    upper_end: Estimate
    lower_end: Estimate
    lower_from: LowerEnd
    with_saes: tuple[str, ...]
    best: Estimate
    low: float
    high: float
    one_sae: Estimate
    sensitivity: tuple[tuple[float, float], ...]
    max_shrinkage: float


@dataclass(frozen=True, slots=True)
class RecipeSet:
    """SAEs of one recipe together: what holds for the mean of their introduced errors.

    Attributes:
        recipe: In words.
        saes: Its members, J ≥ 2.
        unshared: Mean over pairs, which is the variance between replicates; joint interval over tokens.
        across_saes: The same number with an interval for other SAEs of this recipe; undefined for J = 2.
        shared: Mean covariance of two residuals.
        correlation: shared / upper_end.
        upper_end: Mean Var r / Var x.
        by_similarity: Points (κ, upper_end − shared / κ): the lower end if interferences have in common only κ of
            their variance, from κ = 1 (`unshared`) to where it is 0 (`correlation`).
        low: Lower limit of `unshared` …
        high: … and upper limit of `upper_end`.
    """

    recipe: str
    saes: tuple[str, ...]
    unshared: Estimate
    across_saes: Estimate
    shared: Estimate
    correlation: Estimate
    upper_end: Estimate
    by_similarity: tuple[tuple[float, float], ...]
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ReplicateBracket:
    """What several SAEs on the same tokens say about introduced error.

    Attributes:
        saes: The bracket of every SAE, by name; controls too.
        sets: SAEs of one recipe.
        pairs: Every pair.
        checks: Conditions of T8 that can be tested.
        n_tokens: Tokens.
        n_groups: Documents.
        n_folds: Folds that hold tokens.
        warnings: What a reader must know, violated conditions among it.
        definition: How every number is defined.
    """

    saes: Mapping[str, SaeBracket]
    sets: tuple[RecipeSet, ...]
    pairs: tuple[Pair, ...]
    checks: tuple[Check, ...]
    n_tokens: int
    n_groups: int
    n_folds: int
    warnings: tuple[str, ...]
    definition: str = DEFINITION

    def pair(self, first: str, second: str) -> Pair:
        """The comparison of two SAEs, in either order.

        Args:
            first: One SAE.
            second: The other.

        Returns:
            The pair as it is stored.

        Raises:
            KeyError: There is no such pair.
        """
        for pair in self.pairs:
            if {pair.first, pair.second} == {first, second}:
                return pair
        raise KeyError(f"no pair of {first!r} and {second!r}")
