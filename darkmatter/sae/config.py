"""Settings of the TopK trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from darkmatter.errors import InputError

_DEAD_SHARE_OF_RUN = 15
_DEAD_AFTER_AT_MOST = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How to train a TopK sparse autoencoder.

    The defaults were chosen at d_model 256, 1024 latents, k 32 and 600,000 tokens. Below about 1000 steps a high
    learning rate matters more than anything else; for longer runs or many more latents try a half or a quarter of it.

    Attributes:
        d_sae: Number of latents.
        k: Latents active per token, 1…d_sae.
        n_tokens: Tokens to train on; the learning rate reaches 0 there. Whole batches only: a remainder is not used.
        batch_size: Tokens per step.
        lr: Peak learning rate of Adam (betas .9 and .999).
        warmup_share: Share of the steps over which the rate rises linearly from 0.
        decay_share: Share of the steps, at the end, over which it falls linearly to 0.
        max_grad_norm: Joint gradient norm above which a step is scaled down, for a loss in units of the data's
            variance; typical norms are .02 to .07, so that only outlier batches are clipped.
        dead_after: Tokens without firing after which a latent is dead and is revived; None means n_tokens / 15, at
            most 10 million.
        report_every: Steps between two points of the history.
        seed: Seed of the initial directions and of the revivals.

    Raises:
        InputError: A value out of range; names the field.
    """

    d_sae: int
    k: int
    n_tokens: int
    batch_size: int = 2048
    lr: float = 8e-3
    warmup_share: float = 0.05
    decay_share: float = 0.5
    max_grad_norm: float = 0.1
    dead_after: int | None = None
    report_every: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InputError: See the class.
        """
        for name in ("d_sae", "k", "n_tokens", "batch_size", "report_every"):
            _check_int(name, getattr(self, name), 1)
        _check_int("seed", self.seed, 0)
        if self.dead_after is not None:
            _check_int("dead_after", self.dead_after, 1)
        if self.k > self.d_sae:
            raise InputError(f"k is {self.k}, expected at most d_sae = {self.d_sae}: lower k or raise d_sae")
        if self.n_tokens < self.batch_size:
            raise InputError(
                f"n_tokens is {self.n_tokens}, expected at least batch_size = {self.batch_size}: lower batch_size"
            )
        for name in ("lr", "max_grad_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value!r}, expected a positive number")
        for name in ("warmup_share", "decay_share"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name} is {value!r}, expected a share from 0 to 1")

    @property
    def n_steps(self) -> int:
        """Planned number of steps."""
        return self.n_tokens // self.batch_size

    @property
    def dead_window(self) -> int:
        """`dead_after` with its default filled in, in tokens."""
        if self.dead_after is not None:
            return self.dead_after
        return max(1, min(self.n_tokens // _DEAD_SHARE_OF_RUN, _DEAD_AFTER_AT_MOST))

    def lr_at(self, step: int) -> float:
        """Give the learning rate of a step: the peak times the smaller of the warm-up and the decay ramp.

        Args:
            step: From 0 to n_steps − 1.

        Returns:
            The rate; above 0 in every planned step, and 0 at step n_steps.
        """
        rise = (step + 1) / max(1.0, self.warmup_share * self.n_steps)
        fall = (self.n_steps - step) / max(1.0, self.decay_share * self.n_steps)
        return self.lr * max(0.0, min(1.0, rise, fall))


def _check_int(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise InputError(f"{name} is {value!r}, expected an integer of at least {least}")
