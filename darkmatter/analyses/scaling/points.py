"""From moments to points: log FVU and log FVU_nl of every SAE, with the influence of every fold on each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from darkmatter.analyses.scaling.curves import Floats
from darkmatter.errors import DegenerateError, InputError
from darkmatter.fold_means import FoldMeans
from darkmatter.folds import FoldMoments
from darkmatter.guards import degenerate_kind, token_warnings
from darkmatter.inference import symmetric_optimism
from darkmatter.solve import cross_fit

NO_ERROR = 1e-12
"""Var e / Var x at or below which Sae(x) is x."""


@dataclass(frozen=True, slots=True)
class Points:
    """S SAEs on the same tokens.

    Attributes:
        names: The SAEs.
        fvu: log FVU, (S,).
        nonlinear: log FVU_nl, (S,); −∞ of an SAE that is affine on these tokens.
        fvu_influence: Influence of every fold on log FVU, (K, S).
        nonlinear_influence: The same on log FVU_nl.
        n: Tokens of every fold, (K,).
        var_x: Var x, in squared units of activation.
        n_groups: Documents.
        degenerate: "dead" or "affine" for an SAE of which "all error is linear" is true and empty; None otherwise.
        warnings: What the tokens warn of.
    """

    names: tuple[str, ...]
    fvu: Floats
    nonlinear: Floats
    fvu_influence: Floats
    nonlinear_influence: Floats
    n: Floats
    var_x: float
    n_groups: int
    degenerate: tuple[str | None, ...]
    warnings: tuple[str, ...]

    def take(self, names: Sequence[str]) -> Points:
        """Some of the SAEs, in the order given."""
        index = [self.names.index(name) for name in names]
        return Points(
            tuple(names),
            self.fvu[index],
            self.nonlinear[index],
            self.fvu_influence[:, index],
            self.nonlinear_influence[:, index],
            self.n,
            self.var_x,
            self.n_groups,
            tuple(self.degenerate[i] for i in index),
            self.warnings,
        )

    @staticmethod
    def join(passes: Sequence[Points]) -> Points:
        """Unite the points of several passes over the same tokens, with other SAEs each.

        Args:
            passes: The points of at least one pass.

        Returns:
            All points.

        Raises:
            InputError: No pass, other tokens in another pass, or an SAE twice.
        """
        if not passes:
            raise InputError("there are no points, expected those of at least one pass")
        first = passes[0]
        for other in passes[1:]:
            if not np.array_equal(other.n, first.n) or not np.isclose(other.var_x, first.var_x, rtol=1e-9):
                raise InputError(
                    "the passes are over different tokens, expected the same for all SAEs: their errors go together, "
                    "and it is their differences that a law is read from"
                )
        names = tuple(name for one in passes for name in one.names)
        if len(set(names)) < len(names):
            raise InputError(f"an SAE stands in two passes, expected every name once, got {', '.join(names)}")
        return Points(
            names,
            np.concatenate([one.fvu for one in passes]),
            np.concatenate([one.nonlinear for one in passes]),
            np.concatenate([one.fvu_influence for one in passes], axis=1),
            np.concatenate([one.nonlinear_influence for one in passes], axis=1),
            first.n,
            first.var_x,
            first.n_groups,
            tuple(kind for one in passes for kind in one.degenerate),
            tuple(dict.fromkeys(text for one in passes for text in one.warnings)),
        )


def points_of(moments: FoldMoments) -> Points:
    """Read the points from the moments of a pass.

    Args:
        moments: Moments of K folds.

    Returns:
        The points.

    Raises:
        DegenerateError: x is constant, or an SAE makes no error.
        InputError: Too few tokens or documents.
    """
    total = moments.total()
    means = FoldMeans.of(moments, total)
    names = moments.layout.names
    for i, name in enumerate(names):
        # the mean of equal numbers is off by its own rounding, which is not variance
        if not means.var_e(i) > NO_ERROR * max(means.var_x, float(total.mean_x.square().sum()) * NO_ERROR**2):
            raise DegenerateError(
                f"x has variance {means.var_x:.3g} and the error of {name} {means.var_e(i):.3g}, expected activations "
                "that vary and a reconstruction with an error: check the hook point, and that x was not passed twice",
                {"var_x": means.var_x, "var_e": means.var_e(i)},
            )
    fit = cross_fit(moments, total)
    x = means.log_influence(means.x)
    logs, influences, kinds, warnings = [], [], [], list(token_warnings(moments, fit, total))
    for i in range(len(names)):
        error, heldout = means.ee[:, i, i], fit.heldout[:, i, i]
        variance = symmetric_optimism(fit.train[:, i, i], heldout, fit.n_train, fit.n)
        logs.append([math.log(means.var_e(i) / means.var_x), _log(variance / means.var_x)])
        influences.append(torch.stack([means.log_influence(error) - x, fit.influence(heldout) - x]))
        kinds.append(degenerate_kind(means.mean(means.x - 2 * means.xe[:, i] + error), variance, means.var_x))
    both = torch.stack(influences, dim=2).numpy()  # (2, K, S)
    fvu, nonlinear = np.array(logs, dtype=np.float64).T
    return Points(
        names=names,
        fvu=fvu,
        nonlinear=nonlinear,
        fvu_influence=both[0],
        nonlinear_influence=both[1],
        n=means.n.numpy(),
        var_x=means.var_x,
        n_groups=moments.n_groups,
        degenerate=tuple(kinds),
        warnings=tuple(warnings),
    )


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
