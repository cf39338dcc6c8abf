"""Noise of the linear fit in the two parts of an error, and what is left when it is taken out.

A map that was fitted on n' other tokens is off by some w = x (W' − W): what is spliced in is linear + w and
nonlinear − w. Both squared norms, and both increases of a loss that is quadratic in the error, are then too large by
the share c/n' of the nonlinear one, where sqrt(S/C) = 1 − c/n' for the in-sample and out-of-fold residual variances S
and C of the same maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from darkmatter.folds import FoldMoments
from darkmatter.moments import Moments
from darkmatter.solve import cross_fit

PAIRS = (
    ("linear-left", "nonlinear-left"),
    ("random-linear", "random-nonlinear"),
    ("linear squared", "nonlinear squared"),
)
"""Numbers of the linear part with those of the nonlinear part that correct them."""


def kept_shares(moments: FoldMoments, parts: int) -> dict[str, float]:
    """Share of the spliced nonlinear part that is not noise of the fit, sqrt(S/C), by SAE.

    Args:
        moments: Moments of K folds, all P parts of which hold tokens.
        parts: Parts P, as for `part_maps`.

    Returns:
        Shares in (0, 1]; 1 where the nonlinear part is nothing but rounding.
    """
    merged = FoldMoments(
        layout=moments.layout,
        folds=tuple(Moments.union(moments.folds[p::parts]) for p in range(parts)),
        documents=(np.zeros(0, dtype=np.uint64),) * parts,
    )
    fit = cross_fit(merged, merged.total())
    train = fit.train.diagonal(dim1=1, dim2=2).sum(dim=0) / fit.n_train.sum()
    heldout = fit.heldout.diagonal(dim1=1, dim2=2).sum(dim=0) / fit.n.sum()
    return {
        name: math.sqrt(min(1.0, float(s / c))) if s > 0 and c > 0 else 1.0
        for name, s, c in zip(moments.layout.names, train, heldout, strict=True)
    }


def without_fit_noise(columns: Mapping[str, Tensor], kept: float) -> dict[str, Tensor]:
    """Take the noise of the fit out of numbers per token.

    Args:
        columns: The numbers, (m,) each.
        kept: sqrt(S/C).

    Returns:
        All of them: of the nonlinear part `kept` times as large, of the linear part less (1 − kept) times that of the
        nonlinear one.
    """
    found = dict(columns)
    for linear, nonlinear in PAIRS:
        if nonlinear in columns:
            found[nonlinear] = kept * columns[nonlinear]
        if linear in columns:
            found[linear] = columns[linear] - (1 - kept) * columns[nonlinear]
    return found
