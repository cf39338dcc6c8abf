"""Trained rungs: settings, cost, and networks that add to an affine map of x."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from darkmatter.errors import InputError

KINDS = ("network", "mlp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the trained rungs are trained.

    Attributes:
        hidden: Width of the wide ReLU network; None takes the SAE's number of latents where it is known, else 8 d.
        mlp_width: Width of both hidden layers of the MLP; None takes 2 d.
        passes: Most passes over the tokens.
        parts: Networks per rung, each trained without the documents that it is used on.
        learning_rate: Of Adam; it falls tenfold over the passes.
        batch_size: Tokens per step.
        buffer: Tokens that are shuffled at a time.
        validation: Tokens, of a fold of the training documents, on which the best pass is chosen.
        patience: Passes without improvement after which a network is left alone.
    """

    hidden: int | None = None
    mlp_width: int | None = None
    passes: int = 8
    parts: int = 2
    learning_rate: float = 3e-3
    batch_size: int = 256
    buffer: int = 8192
    validation: int = 4096
    patience: int = 2

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            InputError: One is out of range.
        """
        for name in ("passes", "batch_size", "buffer", "validation", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("hidden", "mlp_width"):
            width = getattr(self, name)
            if width is not None and width < 1:
                raise InputError(f"{name} is {width}, expected at least 1")
        if self.parts < 2:
            raise InputError(f"parts is {self.parts}, expected at least 2: one part must be left out of every fit")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate is {self.learning_rate}, expected a positive number")

    def widths(self, kind: str, d_model: int, d_sae: int | None) -> tuple[int, ...]:
        """Widths of all layers of a kind of network, input and output included."""
        if kind == "network":
            return (d_model, self.hidden or d_sae or 8 * d_model, d_model)
        width = self.mlp_width or 2 * d_model
        return (d_model, width, width, d_model)

    def flops(self, d_model: int, d_sae: int | None, n_tokens: int) -> float:
        """Most multiplications and additions that training and using both networks of one SAE takes.

        A step costs six for every weight and token, and a use two; every network sees (P − 1)/P of the tokens of a pass
        and is used on 1/P.
        """
        weights = sum(a * b for kind in KINDS for a, b in _pairs(self.widths(kind, d_model, d_sae)))
        return n_tokens * weights * (6.0 * (self.parts - 1) * self.passes + 2.0)

    def rate(self, done: int) -> float:
        """Learning rate of pass number `done`, from the first to a tenth of it."""
        return self.learning_rate * math.pow(0.1, done / max(1, self.passes - 1))


def _pairs(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(pairwise(widths))


class Net:
    """A ReLU network that predicts what an affine map of x leaves of the error; zero before it is trained.

    Inputs are (x − centre) / spread, outputs are multiplied by `scale`, so that one learning rate serves all.
    """

    def __init__(self, widths: tuple[int, ...], centre: Tensor, spread: Tensor, scale: float, name: str) -> None:
        """Draw the hidden layers; the last one is zero.

        Args:
            widths: Of all layers.
            centre: Mean of x, (d,).
            spread: Root mean square deviation of a coordinate of x, ().
            scale: The same of what the affine map leaves.
            name: Seeds the draw.
        """
        digest = hashlib.blake2b(name.encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        self.centre, self.spread, self.scale = centre.float(), spread.float(), scale
        self.weights, self.biases = [], []
        pairs = _pairs(widths)
        for i, (a, b) in enumerate(pairs):
            drawn = torch.randn(b, a, generator=generator) * math.sqrt(2 / a)
            last = i == len(pairs) - 1
            self.weights.append((drawn * (not last)).to(centre.device).requires_grad_())
            self.biases.append(torch.zeros(b, device=centre.device).requires_grad_())
        self.optimiser = torch.optim.Adam(self.parameters, betas=(0.9, 0.99))
        self.best = [p.detach().clone() for p in self.parameters]
        self.best_loss = math.inf
        self.stale = 0

    @property
    def parameters(self) -> list[Tensor]:
        """Weights and biases."""
        return [*self.weights, *self.biases]

    def __call__(self, x: Tensor) -> Tensor:
        """Predict, (n, d), float32, in units of `scale`."""
        h = (x.float() - self.centre) / self.spread
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = linear(h if i == 0 else relu(h), weight, bias)
        return h

    def step(self, x: Tensor, target: Tensor, rate: float) -> None:
        """One step of Adam on the squared error of some tokens; `target` is in units of `scale`."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        with torch.enable_grad():
            loss = (self(x) - target).square().mean()
            torch.autograd.backward(loss)
        self.optimiser.step()

    def judge(self, x: Tensor, target: Tensor) -> None:
        """Keep the present parameters if they do better on the validation tokens than any before."""
        with torch.no_grad():
            loss = float((self(x) - target).square().mean())
        if loss < self.best_loss:
            self.best, self.best_loss, self.stale = [p.detach().clone() for p in self.parameters], loss, 0
        else:
            self.stale += 1

    def restore(self) -> None:
        """Go back to the best parameters."""
        with torch.no_grad():
            for parameter, best in zip(self.parameters, self.best, strict=True):
                parameter.copy_(best)
