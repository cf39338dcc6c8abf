"""SAEs on activations: beside them, in parts where memory is short, and of the right width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from darkmatter.adapters.backoff import BackOff
from darkmatter.batch import Batch
from darkmatter.errors import InputError

Sae = Callable[[Tensor], Tensor]
"""Anything that maps activations (n, d_model) to reconstructions (n, d_model)."""


def check_saes(saes: Mapping[str, Sae], d_model: int, where: str) -> None:
    """Check that SAEs can be run on activations.

    Args:
        saes: SAEs by name.
        d_model: Width of the activations.
        where: What the activations are, for the message.

    Raises:
        InputError: Something that cannot be called, or an SAE of another width.
    """
    for name, sae in saes.items():
        if not callable(sae):
            raise InputError(f"SAE {name!r} is a {type(sae).__name__}, expected a callable x -> reconstruction")
        width = getattr(sae, "d_model", None)
        if isinstance(width, int) and width != d_model:
            raise InputError(
                f"SAE {name!r} has d_model {width}, but {where} has {d_model}: choose the SAE of this model and site"
            )


class SaeRunner:
    """Runs SAEs where the activations are; one that runs out of memory gets fewer tokens at a time."""

    def __init__(self, saes: Mapping[str, Sae]) -> None:
        self._saes = dict(saes)
        self._parts = BackOff(what="an SAE on one token", remedy="give fewer SAEs at a time, or another device")

    def recons(self, x: Tensor) -> dict[str, Tensor]:
        """Reconstruct activations, (n, d_model), by every SAE."""
        return {name: self._recon(name, x) for name in self._saes}

    def _recon(self, name: str, x: Tensor) -> Tensor:
        sae = self._saes[name] = beside(self._saes[name], x.device)
        with torch.no_grad():
            parts = self._parts.run(lambda part: sae(x[part]), len(x))
        return parts[0] if len(parts) == 1 else torch.cat([x[:0], *parts])


class TokenBatch(Protocol):
    """Some tokens of one site: what a model's stream yields, and what every kind of stored activations does."""

    @property
    def x(self) -> Tensor:
        """Activations, (n, d_model)."""
        ...

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """Document id of each token, (n,)."""
        ...

    @property
    def positions(self) -> npt.NDArray[np.int64] | None:
        """Position of each token in its document, (n,); None where it was not kept."""
        ...

    @property
    def token_ids(self) -> npt.NDArray[np.int64] | None:
        """Vocabulary ids, (n,); None where they were not kept."""
        ...


def joined(tokens: TokenBatch, runner: SaeRunner, *, device: str | None = None) -> Batch:
    """Join tokens with what SAEs make of them.

    Args:
        tokens: The tokens.
        runner: The SAEs.
        device: Where x is put before an SAE sees it; None leaves it where it is.

    Returns:
        The batch.
    """
    x = tokens.x if device is None else tokens.x.to(device)
    return Batch(
        x=x,
        recons=runner.recons(x),
        groups=tokens.groups,
        positions=tokens.positions,
        token_ids=tokens.token_ids,
    )


def beside(sae: Any, device: torch.device) -> Sae:
    """Move an SAE to the device of the activations; one that does not say where it is stays as it is.

    Args:
        sae: The SAE; its `device`, or its parameters and buffers, say where it is.
        device: Where it should be.

    Returns:
        The SAE there; a module is moved itself.
    """
    place = getattr(sae, "device", None)
    if isinstance(sae, nn.Module):
        place = next((tensor.device for tensor in (*sae.parameters(), *sae.buffers())), None)
    moved: Sae = sae.to(device=device) if isinstance(place, torch.device) and place != device else sae
    return moved
