"""One pass over held-out documents with all trained SAEs: FVU, sparsity, density, contexts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from darkmatter.analyses.error_saes.contexts import ContextPlan, LatentContexts
from darkmatter.analyses.error_saes.parts import Maps, Split, Target
from darkmatter.analyses.error_saes.stream import Advance, checked
from darkmatter.analyses.fold_table import ratio
from darkmatter.batch import Batch, BatchSource
from darkmatter.errors import InputError
from darkmatter.inference import UNDEFINED, Estimate, interval, relative_influence
from darkmatter.sae import SAE

BINS = 20
"""Bins of held-out documents from which intervals come."""


@dataclass(slots=True, eq=False)
class _Sums:
    """Sums of one target and its SAE, by bin."""

    n: Tensor
    p: Tensor
    e: Tensor
    pp: Tensor
    ee: Tensor
    active: Tensor
    fires: Tensor

    @classmethod
    def empty(cls, d_model: int, d_sae: int, device: torch.device) -> _Sums:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(BINS, *shape, dtype=torch.float64, device=device)

        fires = torch.zeros(BINS, d_sae, dtype=torch.int32, device=device)
        return cls(zeros(), zeros(d_model), zeros(d_model), zeros(), zeros(), zeros(), fires)

    def add(self, bins: Tensor, p: Tensor, e: Tensor, tokens: Tensor, latents: Tensor) -> None:
        """Add prepared rows, their errors, and which latents are active on which of them."""
        self.n.index_add_(0, bins, torch.ones_like(bins, dtype=torch.float64))
        self.p.index_add_(0, bins, p)
        self.e.index_add_(0, bins, e)
        self.pp.index_add_(0, bins, p.square().sum(dim=1))
        self.ee.index_add_(0, bins, e.square().sum(dim=1))
        mine = bins[tokens]
        self.active.index_add_(0, mine, torch.ones_like(mine, dtype=torch.float64))
        flat = mine * self.fires.shape[1] + latents
        self.fires.view(-1).index_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))


def _about_mean(squares: Tensor, sums: Tensor, n: Tensor) -> Tensor:
    """Σ |v − v̄|² by bin, v̄ over all tokens."""
    mean = sums.sum(dim=0) / n.sum()
    return (squares - 2 * sums @ mean + n * mean.square().sum()).clamp_min(0)


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What held-out documents say about one target's SAE; sums run over the bins that hold tokens, (B,).

    Attributes:
        n: Tokens.
        variance: Σ |p − p̄|² of prepared rows.
        error: Σ |e − ē|² of their errors.
        l0: Active latents per token.
        dead: Share of latents that never fire, with jackknife influences.
        density: Share of tokens on which each latent fires, (d_sae,).
        contexts: Contexts of its latents, where they are kept.
    """

    n: Tensor
    variance: Tensor
    error: Tensor
    l0: Estimate
    dead: Estimate
    density: Tensor
    contexts: LatentContexts | None = field(default=None, repr=False)

    @property
    def value(self) -> float:
        """FVU, Σ |e − ē|² / Σ |p − p̄|²."""
        return float(self.error.sum() / self.variance.sum())

    @property
    def influence(self) -> Tensor:
        """Influence of every bin on log FVU, (B,)."""
        return relative_influence(self.error, self.n) - relative_influence(self.variance, self.n)

    @property
    def fvu(self) -> Estimate:
        """FVU with its interval, on the log scale."""
        return interval(self.value, self.influence, self.n, link="log")

    def minus(self, other: Measured) -> Estimate:
        """Difference of two FVU on the same documents."""
        influence = self.value * self.influence - other.value * other.influence
        return interval(self.value - other.value, influence, self.n)

    def structure(self, gaussian: Measured) -> Estimate:
        """1 − FVU / FVU of the Gaussian of equal covariance: what sparsity saves beyond second moments."""
        if not gaussian.value > 0:
            return UNDEFINED
        influence = self.influence - gaussian.influence
        return interval(self.value / gaussian.value, influence, self.n, link="log").complement()


def evaluate(
    source: BatchSource,
    maps: Maps,
    targets: Sequence[Target],
    saes: Mapping[str, SAE],
    split: Split,
    *,
    plan: ContextPlan | None = None,
    seed: int = 0,
    progress: Advance = lambda _: None,
) -> dict[str, Measured]:
    """Measure the SAE of every target on held-out documents, in one pass.

    FVU is Σ |(t − Sae(t)) F|² over Σ |(t − t̄) F|², both about their means over these tokens, F the map to equal
    variance and rank; its interval comes from `BINS` bins of documents by the delta method on the log scale.

    Args:
        source: The tokens.
        maps: The maps.
        targets: The targets.
        saes: An SAE of rows t by target.
        split: Which documents are held out.
        plan: Which contexts to keep; None keeps none.
        seed: Seed of what is sampled.
        progress: Called with the number of tokens after every batch.

    Returns:
        What was measured, by target.

    Raises:
        InputError: The held-out documents fill fewer than two bins.
    """
    device = maps.mean_x.device
    sums = {t.name: _Sums.empty(source.d_model, saes[t.name].d_sae, device) for t in targets}
    lots = {t.name: np.random.default_rng([seed, i]) for i, t in enumerate(targets)}
    kept = (
        {} if plan is None else {t.name: LatentContexts.empty(saes[t.name].d_sae, plan, lots[t.name]) for t in targets}
    )
    placed = dict(saes)
    for number, batch in checked(source):
        held = np.flatnonzero(split.heldout(batch.groups))
        part = rows_of(batch, held)
        bins = torch.from_numpy(split.bins(part.groups, BINS)).to(device)
        for t in targets if len(held) else ():
            rows = t.rows(batch, maps, number)
            rows = rows[torch.from_numpy(held).to(rows.device)]
            if placed[t.name].device != rows.device:  # read from disk, onto the CPU
                placed[t.name] = placed[t.name].to(device=rows.device)
            codes = placed[t.name].encode(rows)
            error = t.prepare(rows - placed[t.name].decode(codes).double() + t.mean.to(rows.device))
            fires = codes.values > 0
            tokens = torch.arange(len(held), device=fires.device).repeat_interleave(codes.offsets.diff())[fires]
            sums[t.name].add(
                bins, t.prepare(rows).to(device), error.to(device), tokens.to(device), codes.latents[fires].to(device)
            )
            if kept:
                kept[t.name].add(codes, part, lots[t.name])
        progress(len(batch.groups))
    return {name: _measured(s, kept.get(name)) for name, s in sums.items()}


def rows_of(batch: Batch, rows: np.ndarray) -> Batch:
    """Some tokens of a batch, without reconstructions."""
    return Batch(
        x=torch.as_tensor(batch.x)[torch.from_numpy(rows).to(torch.as_tensor(batch.x).device)],
        recons={},
        groups=batch.groups[rows],
        positions=None if batch.positions is None else batch.positions[rows],
        token_ids=None if batch.token_ids is None else batch.token_ids[rows],
    )


def _measured(sums: _Sums, contexts: LatentContexts | None) -> Measured:
    used = (sums.n > 0).nonzero()[:, 0]
    if len(used) < 2:
        raise InputError(
            f"the held-out documents fill {len(used)} of {BINS} bins, expected at least 2: pass more documents"
        )
    n, p, e, pp, ee, active = (v[used].cpu() for v in (sums.n, sums.p, sums.e, sums.pp, sums.ee, sums.active))
    fires = sums.fires[used].cpu()
    variance = _about_mean(pp, p, n)
    if not float(variance.sum()) > 0:
        raise InputError("a part does not vary on the held-out documents: pass more documents")
    return Measured(
        n=n,
        variance=variance,
        error=_about_mean(ee, e, n),
        l0=ratio(active, n, n),
        dead=_dead(fires, n),
        density=fires.sum(dim=0).double() / n.sum(),
        contexts=contexts,
    )


def _dead(fires: Tensor, n: Tensor) -> Estimate:
    """Share of latents that never fire; influence of a bin (n − n_b)/n_b · (θ − θ without it)."""
    whole = fires.sum(dim=0)
    share = float((whole == 0).double().mean())
    without = torch.stack([(whole == bin_).double().mean() for bin_ in fires])
    found = interval(share, (n.sum() - n) / n * (share - without), n)
    return Estimate(share, max(0.0, found.low), min(1.0, found.high)) if math.isfinite(share) else UNDEFINED
