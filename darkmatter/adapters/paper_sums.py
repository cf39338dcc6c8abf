"""The paper's numbers from one pass: random tokens to fit on, others to test on (definitions: see `protocol`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darkmatter.errors import InputError

TRAIN_TOKENS = 150_000
"""Tokens that the paper fits on."""

TEST_TOKENS = 150_000
"""Most tokens that the paper tests on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperResult:
    """The paper's numbers for one SAE, by the authors' definitions; not comparable with a `Decomposition`.

    Attributes:
        fvu: Σ|x − x̂|² / Σ|x − x̄|², over all tokens.
        r2_mean_over_coordinates: R² of the error, on the tokens tested, per coordinate, averaged.
        fvu_nonlinear: Σ|x − x̂ − x W|² / Σ|x − x̄|², over all tokens, those of the fit included.
        n_train: Tokens that W was fitted on.
        n_test: Tokens that R² was computed on.
        n_tokens: All tokens.
        seed: Seed of the split.
    """

    fvu: float
    r2_mean_over_coordinates: float
    fvu_nonlinear: float
    n_train: int
    n_test: int
    n_tokens: int
    seed: int


def paper_split(n_tokens: int, *, seed: int, train_tokens: int = TRAIN_TOKENS) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Draw the paper's split: tokens in a random order, the first to fit, the next to test.

    Args:
        n_tokens: Tokens in all.
        seed: Seed of the order.
        train_tokens: Tokens to fit on.

    Returns:
        Per token 0 to fit, 1 to test, 2 for neither, (n_tokens,).

    Raises:
        InputError: No token is left to test on.
    """
    if not 1 <= train_tokens < n_tokens:
        raise InputError(
            f"train_tokens is {train_tokens}, expected 1 to {n_tokens - 1}: of {n_tokens} tokens some must be left to "
            "test on"
        )
    part = np.full(n_tokens, 2, dtype=np.int8)
    order = np.random.default_rng(seed).permutation(n_tokens)
    part[order[:train_tokens]] = 0
    part[order[train_tokens : train_tokens + TEST_TOKENS]] = 1
    return part


@dataclass(slots=True)
class _Sums:
    """Raw sums of one part of the tokens, float64: no intercept, so nothing is centred."""

    gram: Tensor
    cross: dict[str, Tensor]
    error_sum: dict[str, Tensor]
    error_squares: dict[str, Tensor]
    n: int = 0

    @classmethod
    def zero(cls, d: int, names: tuple[str, ...], device: torch.device) -> _Sums:
        """Start from nothing."""

        def zeros(*shape: int) -> dict[str, Tensor]:
            return {name: torch.zeros(shape, dtype=torch.float64, device=device) for name in names}

        gram = torch.zeros(d, d, dtype=torch.float64, device=device)
        return cls(gram, zeros(d, d), zeros(d), zeros(d))

    def add(self, x: Tensor, errors: Mapping[str, Tensor]) -> None:
        """Take some tokens, float64."""
        self.n += len(x)
        self.gram += x.T @ x
        for name, error in errors.items():
            self.cross[name] += x.T @ error
            self.error_sum[name] += error.sum(dim=0)
            self.error_squares[name] += error.square().sum(dim=0)

    def residuals(self, name: str, weight: Tensor) -> Tensor:
        """Σ (e − x W)² per coordinate."""
        fitted = (weight * (self.gram @ weight - 2 * self.cross[name])).sum(dim=0)
        return (self.error_squares[name] + fitted).clamp(min=0)


@dataclass(slots=True)
class PaperSums:
    """Streams tokens into the sums of the paper's split; their number must be known before.

    Attributes:
        part: The split, from `paper_split`.
        seed: Its seed.
    """

    part: np.ndarray[Any, np.dtype[np.int8]]
    seed: int
    _sums: list[_Sums] = field(default_factory=list, init=False)
    _origin: Tensor | None = field(default=None, init=False)
    _shifted: Tensor | None = field(default=None, init=False)
    _squares: float = field(default=0.0, init=False)
    _n: int = field(default=0, init=False)

    def update(self, x: Tensor, recons: Mapping[str, Tensor]) -> None:
        """Take the next tokens, in any floating dtype.

        Args:
            x: Activations, (n, d).
            recons: Reconstructions by name, (n, d) each.

        Raises:
            InputError: More tokens than were announced.
        """
        if self._n + len(x) > len(self.part):
            raise InputError(f"the source yields more than {len(self.part)} tokens, the number that was announced")
        if not len(x):
            return
        x = x.double()
        errors = {name: x - recon.to(x.device).double() for name, recon in recons.items()}
        if self._origin is None or self._shifted is None:
            self._sums = [_Sums.zero(x.shape[1], tuple(recons), x.device) for _ in range(int(self.part.max()) + 1)]
            self._origin, self._shifted = x.mean(dim=0), torch.zeros_like(x[0])
        moved = x - self._origin  # near the mean, so that the variance below loses no digits
        self._shifted += moved.sum(dim=0)
        self._squares += float(moved.square().sum())
        part = torch.from_numpy(self.part[self._n : self._n + len(x)]).to(x.device)
        for number, sums in enumerate(self._sums):
            rows = (part == number).nonzero()[:, 0]
            if len(rows):
                sums.add(x[rows], {name: error[rows] for name, error in errors.items()})
        self._n += len(x)

    def finish(self) -> dict[str, PaperResult]:
        """Fit and test.

        Returns:
            The paper's numbers by SAE.

        Raises:
            InputError: Fewer tokens than were announced, x does not vary, or a coordinate of the error does not.
        """
        if self._n != len(self.part) or self._shifted is None:
            raise InputError(f"the source yields {self._n} tokens, expected the {len(self.part)} that were announced")
        train, test = self._sums[:2]
        total = self._squares - float(self._shifted.square().sum()) / self._n
        if not total > 0:
            raise InputError("x is the same for every token, expected it to vary: FVU is a share of its variance")
        inverse = torch.linalg.pinv(train.gram, hermitian=True)
        results = {}
        for name in train.cross:
            weight = inverse @ train.cross[name]
            spread = test.error_squares[name] - test.error_sum[name].square() / test.n
            if not bool((spread > 0).all()):
                flat = int((~(spread > 0)).nonzero()[0])
                raise InputError(
                    f"coordinate {flat} of the error of {name!r} does not vary over the tokens tested, expected every "
                    "one to: an R2 averaged over coordinates does not exist"
                )
            results[name] = PaperResult(
                fvu=sum(float(sums.error_squares[name].sum()) for sums in self._sums) / total,
                r2_mean_over_coordinates=float((1 - test.residuals(name, weight) / spread).mean()),
                fvu_nonlinear=sum(float(sums.residuals(name, weight).sum()) for sums in self._sums) / total,
                n_train=train.n,
                n_test=test.n,
                n_tokens=self._n,
                seed=self.seed,
            )
        return results
