"""Error norms of a large SAE from those of a small one, and the trend of an error over positions."""

from __future__ import annotations

import torch
from torch import Tensor

from darkmatter.analyses.fold_table import FoldTable
from darkmatter.analyses.per_token.results import FEATURES, ErrorPrediction
from darkmatter.inference import UNDEFINED, Estimate, interval

_PARTS = ("x", "e", "r", "l", "large")

SQUARES = tuple(f"{part} square" for part in _PARTS)
"""Columns of squared norms."""


class Norms:
    """Norms of one batch that take part in a prediction: of x, of the small SAE's e, r and linear, of the large e."""

    def __init__(self, x: Tensor) -> None:
        """Begin with those of x.

        Args:
            x: ‖x‖², (n,).
        """
        self._squares = {"x": x}

    @staticmethod
    def names() -> tuple[str, ...]:
        """Columns of norms."""
        return tuple(f"{part} norm" for part in _PARTS)

    def see(self, small: bool, error: Tensor, nonlinear: Tensor, linear: Tensor) -> None:
        """Take note of an SAE of the pair.

        Args:
            small: Whether it is the small one.
            error: ‖e‖², (n,).
            nonlinear: ‖r‖², (n,).
            linear: ‖e − r‖², (n,).
        """
        self._squares |= {"e": error, "r": nonlinear, "l": linear} if small else {"large": error}

    def columns(self) -> dict[str, Tensor]:
        """Norms and squared norms by column."""
        squares = {f"{part} square": self._squares[part] for part in _PARTS}
        return squares | {f"{part} norm": self._squares[part].sqrt() for part in _PARTS}


def predict(table: FoldTable, kind: str) -> ErrorPrediction:
    """Regress the large SAE's error norm on sets of features.

    Args:
        table: Columns of `Norms`.
        kind: "norm", or "square" for squared norms.

    Returns:
        R² and gains, out of fold.
    """

    def features(name: str) -> list[str]:
        return [f"{part} {kind}" for part in FEATURES[name]]

    def gain(more: str, less: str) -> Estimate:
        return table.r2_differences(f"large {kind}", features(more), features(less))[1]

    return ErrorPrediction(
        r2={name: table.r2(f"large {kind}", features(name)) for name in FEATURES},
        gain_nonlinear=gain("error + nonlinear", "error"),
        gain_linear=gain("error + nonlinear + linear", "error + nonlinear"),
        gain_over_activation=gain("error", "activation"),
    )


def slope(table: FoldTable, name: str) -> Estimate:
    """Change of a number per doubling of 1 + position, over its mean: least squares on log2(1 + position).

    Args:
        table: Columns "place" = log2(1 + position) and `name`.
        name: The number.

    Returns:
        The slope with its interval; undefined where positions do not vary or the mean is not positive.
    """
    n = table.used
    spread, along = table.squares("place"), table.squares("place", name)
    mean = float(table.sums(name).sum() / n.sum())
    variance = float(spread.sum() / n.sum())
    if not variance > 0 or not mean > 0:
        return UNDEFINED
    beta = float(along.sum() / spread.sum())
    influence = (along - beta * spread) / n / variance / mean
    influence = influence - beta / mean * (table.sums(name) / n / mean - 1)
    return interval(beta / mean, torch.as_tensor(influence), n)
