"""Train networks on what the affine map leaves, streaming, and measure them on documents that they did not see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from darkmatter.analyses.ladder.residuals import Residuals
from darkmatter.analyses.ladder.training import KINDS, Net, Training
from darkmatter.analyses.part_maps import PartMaps, part_maps
from darkmatter.batch import BatchSource, check_batch
from darkmatter.errors import InputError
from darkmatter.folds import FoldMoments, fold_of
from darkmatter.stream import Progress


def trained_residuals(
    source: BatchSource,
    moments: FoldMoments,
    training: Training,
    *,
    widths: Mapping[str, int],
    seed: int,
    progress: Progress | None = None,
) -> dict[str, dict[str, Residuals]]:
    """Train every network of every SAE, then sum its squared residuals over the documents it did not see.

    Args:
        source: The tokens.
        moments: Their moments.
        training: Settings.
        widths: Number of latents by SAE, where it is known.
        seed: Seed of weights and shuffling.
        progress: Called with the number of tokens after every batch of every pass.

    Returns:
        By SAE: residuals of "linear" (the affine map fitted to the same documents), "network" and "mlp".

    Raises:
        InputError: Too few folds with tokens.
    """
    run = _Run(source, moments, training, widths, seed)
    for done in range(training.passes):
        run.train(done, progress)
        if run.finished:
            break
    return run.measure(progress)


@dataclass(slots=True, eq=False)
class _Slice:
    """The first validation tokens of one part."""

    most: int
    x: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    n: int = 0

    def add(self, x: Tensor, targets: Tensor) -> None:
        x, targets = x[: self.most - self.n], targets[: self.most - self.n]
        self.x.append(x)
        self.targets.append(targets)
        self.n += len(x)


class _Run:
    """Networks by SAE, kind and part, while they are trained."""

    def __init__(
        self,
        source: BatchSource,
        moments: FoldMoments,
        training: Training,
        widths: Mapping[str, int],
        seed: int,
    ) -> None:
        self.source, self.training, self.seed = source, training, seed
        self.folds = len(moments.folds)
        self.n = torch.tensor([fold.n for fold in moments.folds], dtype=torch.float64)
        self.maps: PartMaps = part_maps(moments, parts=training.parts)
        self.validation = [_validation_fold(self.n, p, training.parts) for p in range(training.parts)]
        self.slices = [_Slice(training.validation) for _ in range(training.parts)]
        total = moments.total()
        self.device = total.mean.device
        spread = (total.xx.diagonal().sum() / (total.n * source.d_model)).sqrt()
        self.nets: dict[tuple[str, str, int], Net] = {}
        self.scales = {}
        for i, name in enumerate(source.names):
            # the scale of what is to be learned; its square is the residual variance of the fit to all tokens
            weight = self.maps.weight[name][0]
            left = float(
                total.error_gram[i, i] - (weight * total.xe[:, i * source.d_model : (i + 1) * source.d_model]).sum()
            )
            scale = max(left, 1e-12 * float(total.error_gram[i, i])) / (total.n * source.d_model)
            self.scales[name] = scale**0.5
            for kind in KINDS:
                shape = training.widths(kind, source.d_model, widths.get(name))
                for p in range(training.parts):
                    about = f"{seed} {name} {kind} {p}"
                    self.nets[name, kind, p] = Net(shape, total.mean_x, spread, self.scales[name], about)

    @property
    def finished(self) -> bool:
        """Whether every network has stopped improving."""
        return all(net.stale >= self.training.patience for net in self.nets.values())

    def train(self, done: int, progress: Progress | None) -> None:
        """One pass of training, then a look at the validation tokens."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + done)
        rate = self.training.rate(done)
        for x, errors, folds in self._shuffled(generator, progress):
            for p in range(self.training.parts):
                mine = (folds % self.training.parts != p) & (folds != self.validation[p])
                self._steps(p, x[mine], {name: error[mine] for name, error in errors.items()}, rate)
                if done == 0 and self.slices[p].n < self.training.validation:
                    held = folds == self.validation[p]
                    stacked = torch.stack([error[held] for error in errors.values()], dim=1)
                    self.slices[p].add(x[held], stacked)
        for (name, _, p), net in self.nets.items():
            if net.stale < self.training.patience:
                x, targets = torch.cat(self.slices[p].x), torch.cat(self.slices[p].targets)
                if done == 0:  # the untrained network is the affine map
                    left = self._left(name, p, x, targets[:, self.source.names.index(name)])
                    net.best_loss = float(left.square().mean())
                net.judge(x, self._left(name, p, x, targets[:, self.source.names.index(name)]))

    def _steps(self, p: int, x: Tensor, errors: Mapping[str, Tensor], rate: float) -> None:
        for name, error in errors.items():
            nets = [self.nets[name, kind, p] for kind in KINDS]
            nets = [net for net in nets if net.stale < self.training.patience]
            if not nets:
                continue
            target = self._left(name, p, x, error)
            for low in range(0, len(x), self.training.batch_size):
                part = slice(low, low + self.training.batch_size)
                for net in nets:
                    net.step(x[part], target[part], rate)

    def _left(self, name: str, p: int, x: Tensor, error: Tensor) -> Tensor:
        """What the affine map of part p leaves, in units of its scale, float32."""
        weight, bias = self.maps.weight[name][p].to(x.device), self.maps.bias[name][p].to(x.device)
        left: Tensor = (error.double() - x.double() @ weight - bias) / self.scales[name]
        return left.float()

    def measure(self, progress: Progress | None) -> dict[str, dict[str, Residuals]]:
        """Sum squared residuals of every predictor over the documents of its part."""
        for net in self.nets.values():
            net.restore()
        kinds = ("linear", *KINDS)
        sums = {
            (name, kind): torch.zeros(self.folds, dtype=torch.float64) for name in self.source.names for kind in kinds
        }
        for x, errors, folds in self._batches(progress):
            for p in torch.unique(folds % self.training.parts).tolist():
                mine = folds % self.training.parts == p
                for name, error in errors.items():
                    left = self._left(name, p, x[mine], error[mine]).double()
                    for kind in kinds:
                        residual = left
                        if kind != "linear":
                            with torch.no_grad():
                                residual = left - self.nets[name, kind, p](x[mine]).double()
                        squares = residual.square().sum(dim=1) * self.scales[name] ** 2
                        sums[name, kind].index_add_(0, folds[mine].cpu(), squares.cpu())
        used = self.n > 0
        n = self.n[used]
        n_train = torch.tensor([
            float(self.n[torch.arange(self.folds) % self.training.parts != k % self.training.parts].sum())
            for k in range(self.folds)
        ])
        return {
            name: {kind: Residuals(None, sums[name, kind][used], n_train[used], n) for kind in kinds}
            for name in self.source.names
        }

    def _batches(self, progress: Progress | None) -> Iterator[tuple[Tensor, dict[str, Tensor], Tensor]]:
        for batch in self.source:
            x, recons = check_batch(batch, d_model=self.source.d_model, names=self.source.names)
            errors = {n: (x.double() - recon.double()).float().to(self.device) for n, recon in recons.items()}
            yield x.to(self.device), errors, torch.from_numpy(fold_of(batch.groups, self.folds)).to(self.device)
            if progress:
                progress(len(x))

    def _shuffled(
        self, generator: torch.Generator, progress: Progress | None
    ) -> Iterator[tuple[Tensor, dict[str, Tensor], Tensor]]:
        """Batches of `buffer` tokens in random order, whatever the source's batch size.

        Yields:
            Activations, errors and folds.
        """
        waiting: list[tuple[Tensor, dict[str, Tensor], Tensor]] = []
        held = 0
        for batch in self._batches(progress):
            waiting.append(batch)
            held += len(batch[0])
            if held >= self.training.buffer:
                yield _mixed(waiting, generator)
                waiting, held = [], 0
        if held:
            yield _mixed(waiting, generator)


def _mixed(
    batches: list[tuple[Tensor, dict[str, Tensor], Tensor]], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    x = torch.cat([x for x, _, _ in batches])
    order = torch.randperm(len(x), generator=generator).to(x.device)
    errors = {name: torch.cat([errors[name] for _, errors, _ in batches])[order] for name in batches[0][1]}
    return x[order], errors, torch.cat([folds for _, _, folds in batches])[order]


def _validation_fold(n: Tensor, part: int, parts: int) -> int:
    """The first fold with tokens outside a part.

    Raises:
        InputError: Nothing would be left to train on.
    """
    outside = [k for k in range(len(n)) if k % parts != part and n[k] > 0]
    if len(outside) < 2:
        raise InputError(
            f"only {len(outside)} fold(s) with tokens to train on, expected at least 2, one to validate on: pass "
            "more documents, more folds, or leave the trained rungs out"
        )
    return outside[0]
