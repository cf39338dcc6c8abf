"""The mutable state of a training run: parameters, Adam moments, dead latents, running FVU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from darkmatter.sae.config import TrainConfig
from darkmatter.sae.step import clip_gradient, evaluate, initialise


class Optimiser:
    """Adam on a TopK autoencoder, keeping decoder rows at unit norm and reviving dead latents.

    Attributes:
        parameters: Current parameters.
        n_tokens: Tokens seen.
        silent: Tokens since each latent last fired, (d_sae,), int64.
    """

    def __init__(self, config: TrainConfig, *, d_model: int, variance: float, device: torch.device) -> None:
        self._config = config
        self._variance = variance
        self._generator = torch.Generator().manual_seed(config.seed)
        self.parameters = initialise(d_model, config.d_sae, self._generator).to(device)
        self.n_tokens = 0
        self.silent = torch.zeros(config.d_sae, dtype=torch.int64, device=device)
        self._adam = torch.optim.Adam(self.parameters.all(), lr=config.lr, fused=True)
        self._forget_window()

    def step(self, x: Tensor) -> None:
        """Learn from one batch.

        Args:
            x: Activations in training units, (batch_size, d_model).
        """
        config, parameters = self._config, self.parameters
        outcome = evaluate(parameters, x, k=config.k, variance=self._variance)
        self._extend_window(x, outcome.loss * len(x) * self._variance)
        clip_gradient(outcome.gradient, config.max_grad_norm)
        for group in self._adam.param_groups:
            group["lr"] = config.lr_at(self.n_tokens // config.batch_size)
        for parameter, gradient in zip(parameters.all(), outcome.gradient.all(), strict=True):
            parameter.grad = gradient
        self._adam.step()
        parameters.dec.copy_(normalize(parameters.dec, dim=1))
        self.n_tokens += len(x)
        self.silent = torch.where(outcome.fired > 0, 0, self.silent + len(x))
        if config.n_steps * config.batch_size - self.n_tokens >= config.dead_window:  # later ones could not prove alive
            self._revive(outcome.error)

    def take_fvu(self) -> float:
        """Give the FVU Σ|error|² / Σ|x − x̄|² of the tokens since the last call, and start a new window.

        Returns:
            The FVU; NaN if those tokens were all equal.
        """
        centred = self._squares - float(self._sums.square().sum()) / max(1, self._seen)
        fvu = self._squared_error / centred if centred > 0 else float("nan")
        self._forget_window()
        return fvu

    def _extend_window(self, x: Tensor, squared_error: float) -> None:
        self._seen += len(x)
        self._sums += x.sum(dim=0)
        self._squares += float(x.square().sum())
        self._squared_error += squared_error

    def _forget_window(self) -> None:
        self._seen, self._squares, self._squared_error = 0, 0.0, 0.0
        self._sums = torch.zeros(self.parameters.dec.shape[1], dtype=torch.float64, device=self.silent.device)

    def _revive(self, error: Tensor) -> None:
        """Point dead latents at what the reconstruction misses, each at another token drawn ∝ |error|²."""
        dead = (self.silent >= self._config.dead_window).nonzero().flatten()
        if len(dead) == 0:
            return
        weights = error.square().sum(dim=1).double().cpu()
        count = min(len(dead), int(weights.count_nonzero()))
        if count == 0:
            return
        dead = dead[:count]
        tokens = torch.multinomial(weights, count, replacement=False, generator=self._generator)
        directions = normalize(-error[tokens.to(error.device)], dim=1)
        parameters = self.parameters
        parameters.dec[dead] = directions
        parameters.enc[dead] = directions * parameters.enc.norm(dim=1).mean()
        parameters.b_enc[dead] = 0.0
        for parameter in (parameters.enc, parameters.b_enc, parameters.dec):
            for moment in ("exp_avg", "exp_avg_sq"):
                self._adam.state[parameter][moment][dead] = 0.0
        self.silent[dead] = 0
