"""What a site is replaced by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.analyses.controls import elsewhere
from darkmatter.analyses.downstream.fit_noise import PAIRS
from darkmatter.errors import InputError

SHARED = ("identity", "mean", "zero")
"""Variants that are the same for every SAE."""

OF_SAE = (
    "sae",
    "nonlinear-left",
    "linear-left",
    "random",
    "random-nonlinear",
    "random-linear",
    "shuffled",
)
"""Variants of each SAE."""

VARIANTS = (*SHARED, *OF_SAE)
DEFAULT_VARIANTS = tuple(name for name in VARIANTS if name != "zero")


def check_variants(names: Sequence[str]) -> tuple[str, ...]:
    """Check the names of variants.

    Args:
        names: Some of `VARIANTS`.

    Returns:
        The names in the order of `VARIANTS`, and with them what they need: "sae" always, of which all shares are, and
        the nonlinear part's variant with the linear part's, which it corrects for noise of the fit.

    Raises:
        InputError: An unknown name.
    """
    for name in names:
        if name not in VARIANTS:
            raise InputError(f"variant is {name!r}, expected some of {', '.join(VARIANTS)}")
    needed = {"sae", *names}
    needed |= {nonlinear for linear, nonlinear in PAIRS if linear in names}
    return tuple(name for name in VARIANTS if name in needed)


def n_forward(variants: Sequence[str], n_saes: int) -> int:
    """Whole forward passes per batch: the clean one, those that SAEs share, and those of each."""
    return 1 + sum(n_saes if name in OF_SAE else 1 for name in variants)


class Directions:
    """A random isotropic unit direction for every token of one batch, the same for all variants and SAEs."""

    def __init__(self, seed: int, number: int) -> None:
        self._seed, self._number = seed, number
        self._unit: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """The directions for activations (n, d), float64; drawn once."""
        if self._unit is None:
            rng = np.random.default_rng((self._seed, self._number))
            drawn = torch.from_numpy(rng.standard_normal(tuple(x.shape), dtype=np.float32)).to(x.device).double()
            self._unit = drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
        return self._unit


def replacements(
    variants: Sequence[str],
    *,
    x: Tensor,
    recon: Tensor,
    linear: Tensor,
    groups: npt.NDArray[np.int64],
    directions: Directions,
) -> Iterator[tuple[str, Tensor]]:
    """What the model goes on with, for every variant of one SAE; made one at a time.

    Args:
        variants: Names; those that SAEs share are passed over.
        x: Activations, (n, d).
        recon: Sae(x), (n, d).
        linear: Linear part of the error x − Sae(x), (n, d), float64.
        groups: Document of every token, (n,).
        directions: Random directions of the batch.

    Yields:
        (name, (n, d)).
    """
    error = x.double() - recon.double()
    nonlinear = error - linear
    parts = {"random": error, "random-nonlinear": nonlinear, "random-linear": linear}
    for name in variants:
        if name == "sae":
            yield name, recon
        elif name == "nonlinear-left":
            yield name, x - nonlinear
        elif name == "linear-left":
            yield name, x - linear
        elif name in parts:
            yield name, x - directions.of(x) * torch.linalg.vector_norm(parts[name], dim=1, keepdim=True)
        elif name == "shuffled":
            yield name, x - error[elsewhere(groups).to(x.device)]
