"""FVU and L0 of the tokens since the last point of the history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Window:
    """Sums over the tokens since the last `take`.

    Attributes:
        sums: Σx, (d_model,), float64.
    """

    def __init__(self, d_model: int, device: torch.device) -> None:
        self.sums = torch.zeros(d_model, dtype=torch.float64, device=device)
        self._seen, self._active, self._squares, self._squared_error = 0, 0, 0.0, 0.0

    def add(self, x: Tensor, squared_error: float, active: int) -> None:
        """Add a batch.

        Args:
            x: Activations, (n, d_model).
            squared_error: Σ|error|² over them.
            active: Number of codes above zero.
        """
        self._seen += len(x)
        self._active += active
        self.sums += x.sum(dim=0)
        self._squares += float(torch.linalg.vector_norm(x).double().square())
        self._squared_error += squared_error

    def take(self) -> tuple[float, float]:
        """Give what the tokens since the last call showed, at least one, and start anew.

        Returns:
            FVU Σ|error|² / Σ|x − x̄|², NaN if those tokens were all equal, and L0.
        """
        centred = self._squares - float(self.sums.square().sum()) / self._seen
        fvu = self._squared_error / centred if centred > 0 else float("nan")
        l0 = self._active / self._seen
        self._seen, self._active, self._squares, self._squared_error = 0, 0, 0.0, 0.0
        self.sums.zero_()
        return fvu, l0

    def numbers(self) -> dict[str, Any]:
        """Give the sums besides `sums`, as JSON."""
        return {
            "seen": self._seen,
            "active": self._active,
            "squares": self._squares,
            "squared_error": self._squared_error,
        }

    def restore(self, numbers: Mapping[str, Any]) -> None:
        """Take over what `numbers` gave."""
        self._seen, self._active = numbers["seen"], numbers["active"]
        self._squares, self._squared_error = numbers["squares"], numbers["squared_error"]
