"""What the model's loss says: is it a trained model on its own tokens, do hooks leave it alone, what do SAEs cost?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from darkmatter.adapters.next_tokens import targets
from darkmatter.adapters.preflight.pilot import Pilot
from darkmatter.adapters.preflight.record import Check, Status
from darkmatter.adapters.preflight.saes import Subject

CHANCE = 0.95
"""A loss above this multiple of that of guessing evenly, ln(vocabulary), is a warning."""


class Losses:
    """Losses on the first batch of a pilot, in nats per token.

    Where a site is replaced, it is at the positions that count: the others, such as BOS, an SAE never saw.
    """

    def __init__(self, pilot: Pilot) -> None:
        self._pilot, self._rows = pilot, pilot.batches[0]
        self._valid = targets(self._rows)
        # a model without a head has no loss: nothing is said of it then
        self._clean = pilot.losses(self._rows)[self._valid] if pilot.loaded.has_head else torch.empty(0)
        self._zero: float | None = None

    def of_model(self) -> list[Check]:
        """Judge the model alone."""
        if not len(self._clean):
            return []
        model: Any = self._pilot.loaded.model
        chance = math.log(int(model.get_input_embeddings().weight.shape[0]))
        loss = _mean(self._clean)
        status: Status = "ok"
        cause = ""
        if not math.isfinite(loss):
            status, cause = "stop", f"the layers behind the site overflow in {self._pilot.loaded.dtype}, or are damaged"
        elif loss >= CHANCE * chance:
            status = "warn"
            cause = (
                "it does no better than guessing: tokens of another tokenizer, untrained weights, or a text unlike any"
            )
        return [
            Check(
                name="loss",
                subject="model",
                status=status,
                measured=f"{loss:.4g} nats per token",
                expected=f"below {CHANCE * chance:.3g} (guessing: {chance:.3g})",
                cause=cause,
                value=loss,
            )
        ]

    def of_identity(self) -> list[Check]:
        """Judge the model with an identity spliced in at the site."""
        if not self._means_something():
            return []
        spliced = self._pilot.losses(self._rows, lambda x: x)[self._valid]
        same = torch.equal(spliced, self._clean)
        gap = float((spliced - self._clean).abs().max())
        status: Status = "ok"
        cause = ""
        if not same and torch.equal(self._pilot.losses(self._rows)[self._valid], self._clean):
            status = "stop"
            cause = "a hook at this site does not put back what it took: the module is shared, or other hooks change x"
        elif not same:
            status = "warn"
            cause = "the model itself gives another loss each time: dropout, or kernels that are not deterministic"
        return [
            Check(
                name="identity splice",
                subject=str(self._pilot.site),
                status=status,
                measured="the clean loss, bit for bit" if same else f"off by up to {gap:.2g} nats",
                expected="the clean loss, bit for bit",
                cause=cause,
                value=gap,
            )
        ]

    def of_sae(self, subject: Subject) -> list[Check]:
        """Say what splicing an SAE in costs, and how much of the cost of replacing x by zero it recovers."""
        if not self._means_something():
            return []
        clean = _mean(self._clean)
        if self._zero is None:
            self._zero = self._spliced(torch.zeros_like)
        spliced, cost = self._spliced(subject), self._zero - clean
        shown = f"; {1 - (spliced - clean) / cost:.1%} of what x → 0 costs is recovered" if cost > 0 else ""
        return [
            Check(
                name="loss with Sae(x)",
                subject=subject.name,
                status="ok",
                measured=f"{spliced:.4g} nats per token, {spliced - clean:+.3g}{shown}",
                value=spliced,
            )
        ]

    def _means_something(self) -> bool:
        return len(self._clean) > 0 and bool(torch.isfinite(self._clean).all())

    def _spliced(self, replace: Callable[[Tensor], Tensor]) -> float:
        return _mean(self._pilot.losses(self._rows, replace)[self._valid])


def _mean(losses: Tensor) -> float:
    return float(losses.double().mean())
