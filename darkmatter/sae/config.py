"""Settings of the trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from darkmatter.errors import InputError

Architecture = Literal["topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"]
EncodeDtype = Literal["float32", "bfloat16"]

SELECTING: tuple[Architecture, ...] = ("topk", "batchtopk", "matryoshka")
"""Architectures whose sparsity is a number of latents, `k`; the others pay a price per active latent."""

_DEAD_SHARE_OF_RUN = 15
_DEAD_AFTER_AT_MOST = 10_000_000
_PRICES: dict[Architecture, float] = {"relu": 0.1, "gated": 0.2, "jumprelu": 0.01}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How to train a sparse autoencoder.

    The defaults were chosen at d_model 256, 1024 latents, k 32 and 600,000 tokens. Below about 1000 steps a high
    learning rate matters more than anything else; for longer runs or many more latents try a half or a quarter of it.
    A unit token below is one of mean squared norm 1 over the data, so that prices transfer between models and sites.

    Attributes:
        architecture: topk (k per token), batchtopk (k per token on average), matryoshka (batchtopk whose first groups
            of latents must also reconstruct alone), relu (L1 penalty), jumprelu (L0 penalty, straight-through), gated.
        d_sae: Number of latents.
        k: Latents active per token, 1…d_sae; topk, batchtopk and matryoshka only, and required there.
        l1: Price of one unit of activation per unit token; relu and gated only. None is 0.1 and 0.2.
        l0_coefficient: Price of one active latent per unit token; jumprelu only. None is 0.01.
        l0: Active latents per token to which training steers the price, which then only starts at `l1` or
            `l0_coefficient`; relu, gated and jumprelu only. None keeps the price.
        bandwidth: Width of the straight-through kernel per unit token; jumprelu only. None is 0.05.
        groups: Sizes of the nested prefixes, rising to d_sae; matryoshka only. None halves d_sae four times.
        n_tokens: Tokens to train on; the learning rate reaches 0 there. Whole batches only: a remainder is not used.
        batch_size: Tokens per step.
        lr: Peak learning rate of Adam (betas .9 and .999).
        warmup_share: Share of the steps over which the rate rises linearly from 0.
        decay_share: Share of the steps, at the end, over which it falls linearly to 0.
        max_grad_norm: Joint gradient norm above which a step is scaled down, for a loss in units of the data's
            variance; typical norms are .02 to .07, so that only outlier batches are clipped.
        standardise: Centre the activations and measure losses in units of their variance. False trains on them as
            they are, on the mean over tokens of Σ(error²), as other trainers do; prices are then in raw units.
        normalise_decoder: Keep decoder rows at unit norm. The saved SAE has unit rows either way (but see
            `rank_by_norm`).
        rank_by_norm: Let latents compete by code times decoder norm, which is what they add to the reconstruction,
            instead of by code; topk, batchtopk and matryoshka without unit rows. If False, the saved SAE keeps its
            decoder norms, since they do not move into the encoder without changing the selection.
        decoder_init_norm: Norm of the decoder and encoder rows at the start; must be 1 with `normalise_decoder`.
        tie_b_dec: Subtract the decoder bias from the activations before encoding.
        encode_dtype: Arithmetic of the encoder's product, most of a step's cost. bfloat16 halves it on processors with
            bfloat16 units; weights, codes' gradients and the optimiser stay float32.
        dead_after: Tokens without firing after which a latent is dead and is revived; None means n_tokens / 15, at
            most 10 million.
        report_every: Steps between two points of the history.
        seed: Seed of the initial directions and of the revivals.

    Raises:
        InputError: A value out of range, missing, or without a meaning for the architecture; names the field.
    """

    d_sae: int
    n_tokens: int
    architecture: Architecture = "topk"
    k: int | None = None
    l1: float | None = None
    l0_coefficient: float | None = None
    l0: float | None = None
    bandwidth: float | None = None
    groups: tuple[int, ...] | None = None
    batch_size: int = 2048
    lr: float = 8e-3
    warmup_share: float = 0.05
    decay_share: float = 0.5
    max_grad_norm: float = 0.1
    standardise: bool = True
    normalise_decoder: bool = True
    rank_by_norm: bool = True
    decoder_init_norm: float = 1.0
    tie_b_dec: bool = False
    encode_dtype: EncodeDtype = "float32"
    dead_after: int | None = None
    report_every: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InputError: See the class.
        """
        for name, allowed in (("architecture", get_args(Architecture)), ("encode_dtype", get_args(EncodeDtype))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        for name in ("d_sae", "n_tokens", "batch_size", "report_every"):
            _check_int(name, getattr(self, name), 1)
        _check_int("seed", self.seed, 0)
        if self.dead_after is not None:
            _check_int("dead_after", self.dead_after, 1)
        if self.n_tokens < self.batch_size:
            raise InputError(
                f"n_tokens is {self.n_tokens}, expected at least batch_size = {self.batch_size}: lower batch_size"
            )
        for name in ("standardise", "normalise_decoder", "rank_by_norm", "tie_b_dec"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected True or False")
        for name in ("lr", "max_grad_norm", "decoder_init_norm"):
            _check_positive(name, getattr(self, name))
        for name in ("warmup_share", "decay_share"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise InputError(f"{name} is {value!r}, expected a share from 0 to 1")
        if self.normalise_decoder and self.decoder_init_norm != 1:
            raise InputError(
                f"decoder_init_norm is {self.decoder_init_norm!r}, expected 1 with unit decoder rows: "
                "set normalise_decoder to False"
            )
        _check_sparsity(self)

    @property
    def folds_norms(self) -> bool:
        """Whether decoder norms vary and can move into the encoder."""
        return not self.normalise_decoder and (self.rank_by_norm or self.architecture not in SELECTING)

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

    @property
    def price(self) -> float:
        """The price of sparsity at the start: `l1` or `l0_coefficient` with its default filled in; 0 with `k`."""
        given = self.l0_coefficient if self.architecture == "jumprelu" else self.l1
        return _PRICES.get(self.architecture, 0.0) if given is None else given

    @property
    def kernel_width(self) -> float:
        """`bandwidth` with its default filled in."""
        return 0.05 if self.bandwidth is None else self.bandwidth

    @property
    def prefixes(self) -> tuple[int, ...]:
        """`groups` with its default filled in; all latents at once for architectures without groups."""
        if self.groups is not None:
            return self.groups
        halvings = range(4, -1, -1) if self.architecture == "matryoshka" else (0,)
        return tuple(sorted({max(1, self.d_sae >> times) for times in halvings}))

    def lr_at(self, step: int) -> float:
        """Give the learning rate of a step: the peak times the smaller of the warm-up and the decay ramp.

        Args:
            step: From 0 to n_steps − 1.

        Returns:
            The rate; above 0 in every planned step, and 0 at step n_steps where it decays.
        """
        rise = (step + 1) / max(1.0, self.warmup_share * self.n_steps)
        fall = (self.n_steps - step) / max(1.0, self.decay_share * self.n_steps)
        return self.lr * max(0.0, min(1.0, rise, fall))


def _check_sparsity(config: TrainConfig) -> None:
    """Check the fields that belong to some architectures only.

    Raises:
        InputError: See the class.
    """
    kind = config.architecture
    for name, owners in (
        ("k", SELECTING),
        ("l1", ("relu", "gated")),
        ("l0_coefficient", ("jumprelu",)),
        ("l0", ("relu", "gated", "jumprelu")),
        ("bandwidth", ("jumprelu",)),
        ("groups", ("matryoshka",)),
    ):
        if getattr(config, name) is not None and kind not in owners:
            raise InputError(f"{name} is given with architecture {kind!r}, expected only for {', '.join(owners)}")
    if kind in SELECTING:
        _check_int("k", config.k, 1)
        if config.k is not None and config.k > config.d_sae:
            raise InputError(f"k is {config.k}, expected at most d_sae = {config.d_sae}: lower k or raise d_sae")
    for name in ("l1", "l0_coefficient", "l0", "bandwidth"):
        if getattr(config, name) is not None:
            _check_positive(name, getattr(config, name))
    if config.l0 is not None and config.l0 > config.d_sae:
        raise InputError(f"l0 is {config.l0}, expected at most d_sae = {config.d_sae}: lower l0 or raise d_sae")
    if config.groups is not None:
        groups = tuple(config.groups)
        object.__setattr__(config, "groups", groups)  # read back from JSON it is a list
        for size in groups:
            _check_int("groups", size, 1)
        if not groups or groups[-1] != config.d_sae or any(a >= b for a, b in pairwise(groups)):
            raise InputError(
                f"groups is {groups}, expected sizes of nested prefixes that rise to d_sae = {config.d_sae}"
            )


def _check_positive(name: str, value: object) -> None:
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):  # type: ignore[arg-type,operator]
        raise InputError(f"{name} is {value!r}, expected a positive number")


def _check_int(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise InputError(f"{name} is {value!r}, expected an integer of at least {least}")
