"""The records of a cross-site analysis, and how they are read from the fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from darkmatter.analyses.cross_site.fits import Fits, SetFit
from darkmatter.analyses.cross_site.regressors import Beside, Kind
from darkmatter.inference import UNDEFINED, Estimate, interval

DEFINITION = (
    "R2 is pooled over coordinates and tokens, centred, with an intercept: 1 - residual variance / residual variance "
    "of the mean alone, each as sqrt(S*C) of fits that leave one of five parts of the document folds out. r2_x: e on x "
    "of the target; r2_base: e on the base, x of the target (beside 'x') or the activations of all sites ('all'). Per "
    "set of regressors B: r2_alone: e on B; r2_beside: e on base and B; increment = r2_beside - r2_base; "
    "share_nonlinear = increment / (1 - r2_base), the share of the nonlinear error r = e - (best affine predictor from "
    "the base) that B explains. Kinds of B: sae: outputs of the earlier sites' SAEs; raw: the earlier sites' "
    "activations; random: a random TopK SAE on them; shuffled: the same outputs of a token of another document; noise: "
    "Gaussian noise. over.KIND: the same number of the SAE outputs less that of the control, on the same tokens."
)


@dataclass(frozen=True, slots=True)
class Contrast:
    """An SAE's outputs against a control, on the same tokens and folds.

    Attributes:
        r2_alone: Difference of R² without x.
        share_nonlinear: Difference of the shares of the nonlinear error.
    """

    r2_alone: Estimate
    share_nonlinear: Estimate


@dataclass(frozen=True, slots=True)
class Explained:
    """How much of an error one set of regressors explains.

    Attributes:
        regressors: The earlier site (SITE/SAE where it has several SAEs), or "all".
        kind: "sae", "raw", "random", "shuffled" or "noise".
        rank: Directions in which the set varies.
        r2_alone: R²(e | B).
        r2_beside: R²(e | base, B).
        increment: R²(e | base, B) − R²(e | base).
        share_nonlinear: Share of Var r that B explains beside the base.
        over: The SAE outputs against every other kind, of the same sites; empty for other kinds.
    """

    regressors: str
    kind: Kind
    rank: int
    r2_alone: Estimate
    r2_beside: Estimate
    increment: Estimate
    share_nonlinear: Estimate
    over: Mapping[Kind, Contrast]


@dataclass(frozen=True, slots=True)
class ErrorExplained:
    """One SAE's error at the target site.

    Attributes:
        name: The SAE.
        fvu: Var e / Var x.
        r2_x: R²(e | x).
        r2_base: R²(e | base); the same where the base is x.
        rows: What every set of regressors explains.
    """

    name: str
    fvu: Estimate
    r2_x: Estimate
    r2_base: Estimate
    rows: tuple[Explained, ...]

    def row(self, regressors: str, kind: Kind = "sae") -> Explained:
        """The row of some regressors.

        Args:
            regressors: The earlier site, or "all".
            kind: What of it.

        Returns:
            The row.

        Raises:
            KeyError: There is none.
        """
        for row in self.rows:
            if (row.regressors, row.kind) == (regressors, kind):
                return row
        raise KeyError((regressors, kind))


@dataclass(frozen=True, slots=True)
class CrossSite:
    """How much of the error at one site is linear in SAE outputs of earlier sites.

    Attributes:
        target: The site.
        earlier: The SAEs that explain its error, by the names that the rows use.
        kinds: What explains it: the SAEs' outputs, and controls.
        beside: The base: "x" of the target, or the activations of "all" sites.
        saes: What was found, by SAE of the target site.
        n_tokens: Tokens.
        n_groups: Documents.
        n_folds: Folds that hold tokens.
        seed: Seed of random features and noise.
        warnings: What a reader must know.
        definition: What every number means.
    """

    target: str
    earlier: tuple[str, ...]
    kinds: tuple[Kind, ...]
    beside: Beside
    saes: Mapping[str, ErrorExplained]
    n_tokens: int
    n_groups: int
    n_folds: int
    seed: int
    warnings: tuple[str, ...] = ()
    definition: str = DEFINITION


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads numbers with intervals from the fits of one target.

    Attributes:
        fits: The fits.
        target: Which target.
        degenerate: The target has no nonlinear error to explain.
    """

    fits: Fits
    target: int
    degenerate: bool

    def r2(self, name: str) -> Estimate:
        """R² of the error on a set; symmetric on the logarithm of 1 − R²."""
        return self._explained("mean", name)

    def gain(self, less: str, more: str) -> Estimate:
        """R² on `more` less R² on `less`."""
        return self._difference(less, more, "mean")

    def share(self, name: str) -> Estimate:
        """Share of the nonlinear error that a set explains; symmetric on the logarithm of what it leaves."""
        return UNDEFINED if self.degenerate else self._explained("base", name)

    def share_gain(self, less: str, more: str) -> Estimate:
        """Difference of the shares of the nonlinear error."""
        return UNDEFINED if self.degenerate else self._difference(less, more, "base")

    def explained(self, regressors: str, kind: Kind, others: tuple[Kind, ...]) -> Explained:
        """The row of one set of regressors."""
        alone, beside = f"{kind} {regressors}", f"base {kind} {regressors}"
        over = {
            other: Contrast(
                r2_alone=self.gain(f"{other} {regressors}", alone),
                share_nonlinear=self.share_gain(f"base {other} {regressors}", beside),
            )
            for other in others
        }
        return Explained(
            regressors=regressors,
            kind=kind,
            rank=self.fits.sets[alone][self.target].rank,
            r2_alone=self.r2(alone),
            r2_beside=self.r2(beside),
            increment=self.gain("base", beside),
            share_nonlinear=self.share(beside),
            over=over,
        )

    def _explained(self, of: str, name: str) -> Estimate:
        """Share of what one set leaves that another does not leave."""
        fit, whole = self._fit(name), self._fit(of)
        ratio, influence = fit.variance / whole.variance, fit.influence - whole.influence
        return interval(ratio, influence, self.fits.n, link="log").complement()

    def _difference(self, less: str, more: str, of: str) -> Estimate:
        first, second, whole = self._fit(less), self._fit(more), self._fit(of)
        a, b = first.variance / whole.variance, second.variance / whole.variance
        influence = a * (first.influence - whole.influence) - b * (second.influence - whole.influence)
        return interval(a - b, influence, self.fits.n)

    def _fit(self, name: str) -> SetFit:
        return self.fits.sets[name][self.target]
