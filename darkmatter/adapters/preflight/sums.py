"""Streaming sums behind a fraction of variance unexplained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class ErrorSums:
    """Sums over tokens, in float64.

    Attributes:
        n: Tokens.
        constant: Whether every reconstruction so far was the same.
    """

    n: int = 0
    constant: bool = True
    _x: Tensor | None = None
    _e: Tensor | None = None
    _xx: float = 0.0
    _ee: float = 0.0
    _first: Tensor | None = None

    def add(self, x: Tensor, recon: Tensor) -> None:
        """Add tokens.

        Args:
            x: Activations, (n, d).
            recon: Their reconstructions, (n, d).
        """
        if not len(x):
            return
        if self._first is None:
            self._first = recon[0].clone()
        self.constant = self.constant and bool((recon == self._first).all())
        x = x.double()
        e = x - recon.double()
        self.n += len(x)
        self._x = x.sum(0) if self._x is None else self._x + x.sum(0)
        self._e = e.sum(0) if self._e is None else self._e + e.sum(0)
        self._xx += float(x.square().sum())
        self._ee += float(e.square().sum())

    @property
    def variance(self) -> float:
        """Σ|x − x̄|²; NaN without tokens."""
        return float("nan") if self._x is None else self._xx - float(self._x.square().sum()) / self.n

    @property
    def fvu(self) -> float:
        """Σ|x − x̂|² / Σ|x − x̄|²: a constant error counts, unlike in the decomposition, which has an intercept."""
        return self._ee / self.variance if self.variance > 0 else float("nan")

    @property
    def offset(self) -> float:
        """The part of `fvu` that a constant would remove, n|ē|² / Σ|x − x̄|²: near 0 where an SAE was trained."""
        if self._e is None or not self.variance > 0:
            return float("nan")
        return float(self._e.square().sum()) / self.n / self.variance


def error_of(x: Tensor, recon: Tensor) -> tuple[float, float]:
    """FVU and its constant part, of one batch."""
    sums = ErrorSums()
    sums.add(x, recon)
    return sums.fvu, sums.offset


def finite(x: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    return bool(torch.isfinite(x).all())
