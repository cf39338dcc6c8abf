"""Null controls: the same pass over something whose answer is known, beside the SAE in question."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.batch import Batch, BatchSource, check_batch, iterate_from
from darkmatter.errors import InputError
from darkmatter.sae import SAE

Control = Literal["shuffled", "noise", "random"]
CONTROLS: tuple[Control, ...] = get_args(Control)

DEFINITION = (
    "shuffled: the error of a token of another document, so nothing of it is a function of x. noise: isotropic "
    "Gaussian error with the variance of e in the batch; R2 = 0, fvu_nonlinear = fvu. random: a TopK SAE with random "
    "unit directions, as many latents and as many of them active, scaled to least error on the first batch."
)
_MARK = "~"


def is_control(name: str) -> bool:
    """Whether an SAE's name is that of a control."""
    return name.rpartition(_MARK)[2] in CONTROLS and _MARK in name


@dataclass(frozen=True, slots=True, eq=False)
class ControlledSource:
    """A `ResumableSource`: another one, with controls of one of its SAEs as further reconstructions.

    They are called ``NAME~shuffled``, ``NAME~noise`` and ``NAME~random``. Build it with `with_controls`.

    Attributes:
        source: The other.
        of: The SAE.
        kinds: The controls.
        seed: Seed of noise and random directions.
        random: The random SAE; None where it is not among the controls.
    """

    source: BatchSource
    of: str
    kinds: tuple[Control, ...]
    seed: int
    random: SAE | None = field(default=None, repr=False)

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.source.d_model

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the SAEs, then of the controls."""
        return (*self.source.names, *(f"{self.of}{_MARK}{kind}" for kind in self.kinds))

    @property
    def description(self) -> Mapping[str, Any]:
        """The other's description, and the controls."""
        about = {"of": self.of, "kinds": list(self.kinds), "seed": self.seed, "definition": DEFINITION}
        return {**self.source.description, "controls": about}

    def __iter__(self) -> Iterator[Batch]:
        """Yield every batch."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[Batch]:
        """Yield batch number `start` and those after it."""
        # one batch back: a batch of a single document borrows the errors of the batch before it
        first = max(0, start - 1)
        before: tuple[Tensor, npt.NDArray[np.int64]] | None = None
        for number, batch in enumerate(iterate_from(self.source, first), start=first):
            x, recons = check_batch(batch, d_model=self.d_model, names=self.source.names)
            error = x.double() - recons[self.of].double()
            if number >= start:
                more = {
                    f"{self.of}{_MARK}{kind}": self._recon(kind, x, error, batch.groups, before, number)
                    for kind in self.kinds
                }
                yield Batch(
                    x=x,
                    recons={**recons, **more},
                    groups=batch.groups,
                    positions=batch.positions,
                    token_ids=batch.token_ids,
                )
            before = (error, batch.groups)

    def _recon(
        self,
        kind: Control,
        x: Tensor,
        error: Tensor,
        groups: npt.NDArray[np.int64],
        before: tuple[Tensor, npt.NDArray[np.int64]] | None,
        number: int,
    ) -> Tensor:
        if kind == "random":
            assert self.random is not None
            return self.random(x.to(self.random.device))
        if kind == "shuffled":
            return (x - _other_documents(error, groups, before)).to(x.dtype)
        scale = math.sqrt(float(error.var(dim=0, correction=0).mean()))
        noise = torch.randn(x.shape, dtype=torch.float64, generator=_generator(self.seed, f"noise {number}"))
        return (x - scale * noise.to(x.device)).to(x.dtype)


def _other_documents(
    error: Tensor, groups: npt.NDArray[np.int64], before: tuple[Tensor, npt.NDArray[np.int64]] | None
) -> Tensor:
    """Errors of tokens of other documents: of the same batch, or of the one before where it holds one document."""
    if before is not None and len(np.unique(groups)) == 1:
        others = np.flatnonzero(before[1] != groups[0])
        if len(others):
            return before[0][torch.from_numpy(np.resize(others, len(groups))).to(error.device)]
    return error[elsewhere(groups).to(error.device)]


def with_controls(
    source: BatchSource,
    saes: Mapping[str, SAE],
    kinds: Sequence[Control],
    *,
    of: str | None = None,
    seed: int = 0,
) -> tuple[BatchSource, dict[str, SAE]]:
    """Add null controls of one SAE to a source.

    Args:
        source: The source.
        saes: Weights of its SAEs, where they are known; "random" needs those of `of`.
        kinds: The controls, each at most once.
        of: The SAE; the first by default.
        seed: Seed of noise and random directions.

    Returns:
        The source with controls, and the weights with those of the random SAE.

    Raises:
        InputError: An unknown control or SAE, or a random one of an SAE whose weights are not known.
    """
    if not kinds:
        return source, dict(saes)
    for kind in kinds:
        if kind not in CONTROLS or list(kinds).count(kind) > 1:
            raise InputError(f"controls are {list(kinds)}, expected some of {', '.join(CONTROLS)}, each once")
    name = source.names[0] if of is None else of
    if name not in source.names:
        raise InputError(f"controls are of {name!r}, expected one of {', '.join(source.names)}")
    random = None
    if "random" in kinds:
        if name not in saes:
            raise InputError(f"a random control needs the weights of {name!r}, which are not known: leave it out")
        first = next(iter(source))
        x, _ = check_batch(first, d_model=source.d_model, names=source.names)
        random = random_sae(saes[name], x, seed=seed)
    found = ControlledSource(source, name, tuple(kinds), seed, random)
    more = {} if random is None else {f"{name}{_MARK}random": random}
    return found, {**saes, **more}


def random_sae(like: SAE, x: Tensor, *, seed: int) -> SAE:
    """A TopK SAE with random unit directions, as wide and as sparse as another on given tokens.

    Encoder and decoder share the directions; b_pre and b_dec are the mean of x, and the decoder is scaled to least
    squared error.

    Args:
        like: The other SAE.
        x: Tokens, (n, d_model).
        seed: Seed of the directions.

    Returns:
        The SAE.
    """
    k = max(1, min(like.d_sae, round(like.encode(x.to(like.device)).l0)))
    mean = x.double().mean(dim=0)
    rows = torch.randn(like.d_sae, like.d_model, dtype=torch.float64, generator=_generator(seed, "random SAE"))
    rows = (rows / rows.norm(dim=1, keepdim=True)).to(x.device)

    def build(scale: float) -> SAE:
        made = SAE(
            W_enc=rows.T.float().contiguous(),
            b_enc=torch.zeros(like.d_sae, device=x.device),
            W_dec=(scale * rows).float(),
            b_dec=mean.float(),
            b_pre=mean.float(),
            activation="topk",
            k=k,
        )
        return made.to(device=like.device)

    part = build(1.0)(x.to(like.device)).double().to(x.device) - mean
    top, bottom = float((part * (x.double() - mean)).sum()), float(part.square().sum())
    return build(top / bottom if bottom > 0 else 1.0)


def elsewhere(groups: npt.NDArray[np.int64]) -> Tensor:
    """For every token, a token of another document of the same batch, as near half the batch away as can be.

    Args:
        groups: Document ids, (n,).

    Returns:
        Row numbers, (n,); a one-to-one assignment where no document is longer than half the batch.

    Raises:
        InputError: The batch holds one document only.
    """
    n = len(groups)
    if len(np.unique(groups)) < 2:
        raise InputError("a batch holds one document only, expected two for the shuffled control: raise --batch-docs")
    order = np.argsort(groups, kind="stable")  # runs of equal documents, so that a shift by half leaves most of them
    partner = np.empty(n, dtype=np.int64)
    partner[order] = np.roll(order, n // 2)
    same = np.flatnonzero(groups[partner] == groups)
    for row in same:  # a document longer than half the batch meets itself
        others = np.flatnonzero(groups != groups[row])
        partner[row] = others[row % len(others)]
    return torch.from_numpy(partner)


def _generator(seed: int, purpose: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
