"""The mutable state of a training run: parameters, Adam moments, dead latents, price, cut, running FVU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from darkmatter.sae.config import TrainConfig
from darkmatter.sae.parameters import clip_gradient, initialise
from darkmatter.sae.revive import revive
from darkmatter.sae.step import Objective, Step, evaluate
from darkmatter.sae.window import Window
from darkmatter.sae.workspace import Workspace

_STEER_RATE = 0.02
_CUT_STEPS = 100


class Optimiser:
    """Adam on a sparse autoencoder, keeping decoder rows at unit norm if asked, and reviving dead latents.

    Attributes:
        parameters: Current parameters.
        n_tokens: Tokens seen.
        silent: Tokens since each latent last fired, (d_sae,), int64.
        window: Sums since the last point of the history.
        cut: Running mean of the smallest code kept in a batch, batchtopk and matryoshka: the threshold at inference.
    """

    def __init__(self, config: TrainConfig, *, d_model: int, variance: float, device: torch.device) -> None:
        self._config = config
        self._variance = variance
        self._generator = torch.Generator().manual_seed(config.seed)
        self._workspace = Workspace()
        self.parameters = initialise(d_model, config, variance, self._generator).to(device)
        self.n_tokens = 0
        self.silent = torch.zeros(config.d_sae, dtype=torch.int64, device=device)
        self.window = Window(d_model, device)
        self.cut: float | None = None
        self._price, self._excess = config.price, 1.0
        self._adam = torch.optim.Adam(self.parameters.all(), lr=config.lr, fused=True)
        for parameter in self.parameters.all():  # what Adam would make at its first step, so that it can be restored
            self._adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def step(self, x: Tensor) -> None:
        """Learn from one batch.

        Args:
            x: Activations in training units, (batch_size, d_model).
        """
        config, parameters = self._config, self.parameters
        number = self.n_tokens // config.batch_size
        price = self._price * self._excess
        outcome = evaluate(parameters, x, Objective(config, self._variance, price, self.cut, self._workspace))
        self.window.add(x, outcome.loss * len(x) * self._variance, int(outcome.fired.sum()))
        clip_gradient(outcome.gradient, config.max_grad_norm)
        for group in self._adam.param_groups:
            group["lr"] = config.lr_at(number)
        for parameter, gradient in zip(parameters.all(), outcome.gradient.all(), strict=True):
            parameter.grad = gradient
        self._adam.step()
        if config.normalise_decoder:
            parameters.dec.div_(parameters.dec.norm(dim=1, keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny))
        if parameters.threshold is not None:
            parameters.threshold.clamp_(min=0.0)
        self._follow(outcome, number, len(x))
        self.n_tokens += len(x)
        self.silent = torch.where(outcome.fired > 0, 0, self.silent + len(x))
        if config.n_steps * config.batch_size - self.n_tokens >= config.dead_window:  # later ones could not prove alive
            dead = (self.silent >= config.dead_window).nonzero().flatten()
            revived = revive(
                parameters,
                self._adam,
                dead,
                outcome.error,
                config,
                variance=self._variance,
                generator=self._generator,
            )
            self.silent[revived] = 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Give everything that the next steps depend on.

        Returns:
            Tensors by name, not copied, and numbers that fit into JSON.
        """
        tensors = {"silent": self.silent, "sums": self.window.sums, "generator": self._generator.get_state()}
        for name, parameter in self.parameters.named().items():
            tensors[name] = parameter
            tensors |= {f"{name}.{key}": value for key, value in self._adam.state[parameter].items()}
        numbers = {
            "n_tokens": self.n_tokens,
            "cut": self.cut,
            "price": self._price,
            "excess": self._excess,
            "window": self.window.numbers(),
        }
        return tensors, numbers

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Take over the state of another run with the same settings.

        Args:
            tensors: As `state` gave them.
            numbers: As `state` gave them.
        """
        for name, held in self.state()[0].items():
            if name == "generator":
                self._generator.set_state(tensors[name])
            else:
                held.copy_(tensors[name])
        self.n_tokens, self.cut = numbers["n_tokens"], numbers["cut"]
        self._price, self._excess = numbers["price"], numbers["excess"]
        self.window.restore(numbers["window"])

    def _follow(self, outcome: Step, number: int, n: int) -> None:
        """Update the running cut, and steer the price of sparsity to the wanted L0.

        The price is multiplied by (L0 / wanted)^rate in every step, and once more by L0 / wanted for the next step
        alone, which damps what the delay between price and L0 would make swing.
        """
        if outcome.cut is not None:
            share = max(1 / (number + 1), 1 / _CUT_STEPS)
            self.cut = outcome.cut if self.cut is None else self.cut + share * (outcome.cut - self.cut)
        if self._config.l0 is not None:
            excess = max(1 / math.e, min(math.e, float(outcome.fired.sum()) / n / self._config.l0))
            self._price, self._excess = self._price * excess**_STEER_RATE, excess
