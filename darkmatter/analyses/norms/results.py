"""What a norm probe finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from darkmatter.inference import Estimate

VECTORS = ("recon", "error", "linear", "nonlinear", "recon_minus_nonlinear")
"""The vectors of an SAE whose norms are probed."""

LABELS = {
    "x": "x",
    "recon": "Sae(x)",
    "error": "e",
    "linear": "linear part of e",
    "nonlinear": "nonlinear part r of e",
    "recon_minus_nonlinear": "Sae(x) less its nonlinear part",
}
"""Every vector in words."""

DEFINITION = (
    "r2 = 1 - sqrt(S*C) / Var of |v|^2 (uncentred) or |v - mean v|^2 (centred) regressed on x with intercept, S in "
    "sample and C out of fold over leave-one-fold-out fits, folds by document. e = x - Sae(x) = linear + r by affine "
    "maps of x fitted without the token's own part of the documents. The nonlinear part of Sae(x) is -r (T1), so "
    "recon_minus_nonlinear = Sae(x) + r = x - linear: like linear, an affine function of x. gaussian: the same R2 if x "
    "and v were jointly Gaussian with their measured means and covariances, 4 Var(P m.v) / (4 Var(m.v) + 2 tr S^2), m "
    "and S the mean and covariance of v, P the projection on x; 0 when centred. Baselines: token (mean of other "
    "documents' tokens of the same id, shrunk to the mean; out of fold only), activation_norm (on |x| and |x|^2), l0, "
    "position (on t and log2(1 + t)), loss; all but token by sqrt(S*C); l0 on every fourth document where there are "
    "more than 16,384 tokens. Intervals: 95 %, Student t on fold influences."
)


@dataclass(frozen=True, slots=True)
class NormProbe:
    """One squared norm.

    Attributes:
        r2: R² on x.
        gaussian: R² that Gaussian data of the same means and covariances would have; 0 for a centred norm.
        baselines: R² on something else than x, by name: "activation_norm", and "l0", "position", "token", "loss" where
            they are known.
    """

    r2: Estimate
    gaussian: Estimate
    baselines: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class BothProbes:
    """The squared norm of a vector v, as it is and about its mean.

    Attributes:
        uncentred: ‖v‖².
        centred: ‖v − v̄‖², which does not depend on where the origin lies.
    """

    uncentred: NormProbe
    centred: NormProbe


@dataclass(frozen=True, slots=True)
class NormProbes:
    """Squared norms regressed on x.

    Attributes:
        x: Of x itself.
        saes: By SAE name and vector (`VECTORS`).
        n_tokens: Tokens.
        n_folds: Folds that hold tokens.
        rank: Directions of x.
        warnings: What to keep in mind.
        definition: What the numbers are.
    """

    x: BothProbes
    saes: Mapping[str, Mapping[str, BothProbes]]
    n_tokens: int
    n_folds: int
    rank: int
    warnings: tuple[str, ...] = ()
    definition: str = DEFINITION
