"""`predictor_ladder`: one pass for the rungs in closed form, further passes for those that are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.analyses.ladder.latents import GROUPS, fits_memory, latent_bytes, too_large
from darkmatter.analyses.ladder.ranks import RankSums, rank_curve, rank_sums
from darkmatter.analyses.ladder.residuals import Explained, Residuals
from darkmatter.analyses.ladder.result import Ladder, RankCurve, Rung, SaeLadder
from darkmatter.analyses.ladder.slopes import gain_sums
from darkmatter.analyses.ladder.sums import LadderAccumulator
from darkmatter.analyses.ladder.trained import trained_residuals
from darkmatter.analyses.ladder.training import KINDS, Training
from darkmatter.batch import BatchSource, check_header, iterate_from
from darkmatter.decomposition import DEFAULT_FOLDS, decompose_moments
from darkmatter.errors import InputError
from darkmatter.fold_means import FoldMeans
from darkmatter.folds import FoldMoments
from darkmatter.inference import UNDEFINED
from darkmatter.moments import Layout
from darkmatter.results import Decomposition
from darkmatter.sae import SAE
from darkmatter.store import Checkpoint, run_identity
from darkmatter.stream import Progress

RANKS = (1, 8, 64)
LATENT_MEMORY = 4_000_000_000
_DEAD = "Sae(x) is constant"


def predictor_ladder(
    source: BatchSource,
    saes: Mapping[str, SAE] | None = None,
    *,
    ranks: Sequence[int] = RANKS,
    training: Training | None = None,
    latent_memory: int = LATENT_MEMORY,
    folds: int = DEFAULT_FOLDS,
    seed: int = 0,
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    training_progress: Progress | None = None,
) -> Ladder:
    """How much of every SAE's error ever richer predictors explain, out of fold, r2 = 1 − V / Var e.

    Args:
        source: Activations and reconstructions.
        saes: Weights of the SAEs, where they are known: their latents' scales are refitted.
        ranks: Ranks that stand as rungs of their own; those that x does not have are left out.
        training: Settings of the trained rungs; None leaves them out, and makes one pass of the whole.
        latent_memory: Bytes that the products of latents of all SAEs may take.
        folds: Number K of document folds.
        seed: Seed of the trained rungs.
        device: Where the moments live; it must support float64.
        checkpoint: Where to save the sums of the first pass.
        progress: Called with the number of tokens after every batch of the first pass.
        training_progress: The same for the passes of training.

    Returns:
        A ladder per SAE.

    Raises:
        InputError: Bad ranks or data, or too few tokens or documents.
        DegenerateError: x is constant, or an SAE makes no error.
    """
    if not all(isinstance(r, int) and r >= 1 for r in ranks):
        raise InputError(f"ranks are {list(ranks)}, expected whole numbers of at least 1")
    check_header(source)
    chosen, notes = _choose(source.names, saes or {}, folds, latent_memory)
    sums = LadderAccumulator(Layout(source.d_model, source.names), folds=folds, device=device, latents=chosen)
    _accumulate(source, sums, folds, checkpoint, progress)
    counts, means, squares = sums.counts.cpu(), sums.means.cpu(), sums.squares.cpu()
    latents = {
        name: sums.latents[name].fit(counts, means[i], squares[i].sum(dim=1))
        for i, name in enumerate(source.names)
        if name in sums.latents
    }
    sums.latents.clear()
    moments = sums.finish()
    found = decompose_moments(moments)
    trained = None
    if training is not None:
        widths = {name: sae.d_sae for name, sae in (saes or {}).items()}
        trained = trained_residuals(source, moments, training, widths=widths, seed=seed, progress=training_progress)
    by_rank = rank_sums(moments)
    total = moments.total()
    fold_means = FoldMeans.of(moments, total)
    used = torch.tensor([k for k, fold in enumerate(moments.folds) if fold.n])
    where = torch.unique(used % GROUPS, return_inverse=True)[1]
    ladders = {}
    for i, name in enumerate(source.names):
        parts = _Parts(
            explained=Explained(fold_means.ee[:, i, i], fold_means.n, where),
            gains=_gains(moments, i, (means[i], squares[i])),
            latent=latents.get(name),
            note=notes.get(name, "no latent fires, or there are too few documents"),
            by_rank=by_rank[name],
            trained=trained[name] if trained else None,
        )
        ladders[name] = parts.ladder(found[name], ranks)
    return Ladder(
        saes=ladders,
        n_tokens=moments.n_tokens,
        n_groups=moments.n_groups,
        n_folds=len(fold_means.n),
        d_model=source.d_model,
        warnings=tuple(dict.fromkeys(w for ladder in ladders.values() for w in ladder.warnings)),
    )


def _choose(
    names: Sequence[str], saes: Mapping[str, SAE], folds: int, budget: int
) -> tuple[dict[str, SAE], dict[str, str]]:
    """SAEs whose latents are refitted, and for the others the reason why not."""
    chosen, notes, left = {}, {}, float(budget)
    for name in names:
        if name not in saes:
            notes[name] = "its weights are not known"
        elif fits_memory(saes[name].d_sae, folds, left):
            chosen[name] = saes[name]
            left -= latent_bytes(saes[name].d_sae, folds)
        else:
            notes[name] = too_large(saes[name].d_sae, folds, budget)
    return chosen, notes


def _accumulate(
    source: BatchSource,
    sums: LadderAccumulator,
    folds: int,
    checkpoint: Checkpoint | None,
    progress: Progress | None,
) -> None:
    """The one pass, resumable.

    Raises:
        InputError: A bad batch, or no tokens.
    """
    prints = [f"{name} {found.sae.fingerprint()}" for name, found in sums.latents.items()] if checkpoint else []
    identity = f"{run_identity(source, folds)} ladder {' '.join(prints)}"
    done = checkpoint.resume(sums, identity) if checkpoint else 0
    if progress and done:
        progress(sums.n_tokens)
    for number, batch in enumerate(iterate_from(source, done), start=done + 1):
        try:
            tokens = sums.update(batch)
        except InputError as error:
            raise InputError(f"batch {number}: {error}") from None
        if progress:
            progress(tokens)
        if checkpoint and checkpoint.due:
            checkpoint.save(sums, identity, number)
    if not sums.n_tokens:
        raise InputError("the source yields no tokens: check the input files and the token filter")


def _gains(moments: FoldMoments, i: int, errors: tuple[Tensor, Tensor]) -> dict[str, Residuals]:
    """Residuals of the gains of Sae(x) and of x."""
    d, used = moments.layout.d_model, [k for k, fold in enumerate(moments.folds) if fold.n]
    folds = [moments.folds[k] for k in used]
    block = slice(i * d, (i + 1) * d)
    on_recon, on_x = gain_sums(
        torch.tensor([fold.n for fold in folds], dtype=torch.float64),
        (torch.stack([fold.mean_x for fold in folds]).cpu(), errors[0][used].cpu()),
        torch.stack([fold.xx.diagonal() for fold in folds]).cpu(),
        torch.stack([fold.xe[:, block].diagonal() for fold in folds]).cpu(),
        errors[1][used].cpu(),
    )
    return {
        "gain": on_recon.fit(pooled=True),
        "coordinate_gain": on_recon.fit(pooled=False),
        "x_gain": on_x.fit(pooled=True),
        "x_coordinate_gain": on_x.fit(pooled=False),
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """Everything that is known of one SAE's error."""

    explained: Explained
    gains: Mapping[str, Residuals]
    latent: Residuals | None
    note: str
    by_rank: RankSums
    trained: Mapping[str, Residuals] | None

    def ladder(self, found: Decomposition, ranks: Sequence[int]) -> SaeLadder:
        """Read the rungs."""
        full = self.by_rank.at(self.by_rank.rank)
        dead = found.degenerate == "dead"
        steps: list[tuple[str, Residuals | None, str]] = [
            (name, None if dead else self.gains[name], _DEAD) for name in ("gain", "coordinate_gain")
        ]
        steps.append(("latent_gain", None if dead else self.latent, _DEAD if dead else self.note))
        steps += [(f"rank_{r}", self.by_rank.at(r), "") for r in sorted({*ranks}) if r < self.by_rank.rank]
        rungs = self._rungs([*steps, ("linear", full, "")], full)
        if self.trained is not None:
            rungs += self._trained(self.trained)
        return SaeLadder(
            name=found.name,
            fvu=found.fvu,
            rungs=tuple(rungs),
            in_x=tuple(self._rungs([(name, self.gains[name], "") for name in ("x_gain", "x_coordinate_gain")], full)),
            curve=self._curve(),
            warnings=(*found.warnings, *self._warnings(found.name, dead=dead)),
        )

    def _rungs(self, steps: Sequence[tuple[str, Residuals | None, str]], full: Residuals) -> list[Rung]:
        rungs, before = [], None
        for name, residuals, note in steps:
            if residuals is None:
                rungs.append(Rung(name, UNDEFINED, UNDEFINED, UNDEFINED, note=note))
                continue
            rungs.append(
                Rung(
                    name,
                    self.explained.r2(residuals),
                    self.explained.difference(residuals, before),
                    self.explained.difference(residuals, full),
                )
            )
            before = residuals
        return rungs

    def _trained(self, trained: Mapping[str, Residuals]) -> list[Rung]:
        rungs, before = [], trained["linear"]
        for kind in KINDS:
            rungs.append(
                Rung(
                    kind,
                    self.explained.r2(trained[kind]),
                    self.explained.difference(trained[kind], before),
                    self.explained.difference(trained[kind], trained["linear"]),
                    heldout_only=True,
                )
            )
            before = trained[kind]
        return rungs

    def _curve(self) -> RankCurve:
        return rank_curve(self.by_rank, self.explained)

    def _warnings(self, name: str, *, dead: bool) -> tuple[str, ...]:
        if dead or self.latent is not None:
            return ()
        return (f"{name}: the scales of its latents are not refitted: {self.note}.",)
