"""What the SAEs are trained on: parts of an error, brought to equal variance and rank, and their null controls."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.batch import Batch
from darkmatter.errors import InputError
from darkmatter.folds import FoldMoments, document_hash, fold_of
from darkmatter.moments import Moments
from darkmatter.solve import check_enough_tokens, factor

Kind = Literal["linear", "nonlinear", "x", "gaussian", "isotropic"]

HELDOUT_EVERY = 5
"""Folds 0, 5, 10, … are held out: a fifth of the documents."""

RANK_CUT = 1e-6
"""A direction whose variance is below this share of the leading one's is not counted."""

NOTHING = 1e-10
"""A part whose variance is below this share of Var x is none at all."""


@dataclass(frozen=True, slots=True)
class Split:
    """Which documents are trained on, and how held-out documents are dealt to bins for intervals.

    Attributes:
        folds: Document folds K.
        every: Folds 0, every, 2·every, … are held out; 0 holds out all, to evaluate on a stream of its own.
    """

    folds: int
    every: int = HELDOUT_EVERY

    def heldout(self, groups: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether each token's document is held out, (n,)."""
        if not self.every:
            return np.ones(len(groups), dtype=bool)
        held: npt.NDArray[np.bool_] = fold_of(groups, self.folds) % self.every == 0
        return held

    def training(self, moments: FoldMoments) -> Moments:
        """Moments of all documents that are trained on.

        Raises:
            InputError: There are none.
        """
        mine = [fold for k, fold in enumerate(moments.folds) if k % self.every and fold.n]
        if not mine:
            raise InputError("no document is left to train on, expected some outside folds 0, 5, 10, …: pass more")
        return Moments.union(mine)

    def held(self, moments: FoldMoments) -> Moments:
        """Moments of all documents that are held out.

        Raises:
            InputError: There are none.
        """
        mine = [fold for k, fold in enumerate(moments.folds) if not k % self.every and fold.n]
        if not mine:
            raise InputError("no document is held out, expected some in folds 0, 5, 10, …: pass more documents")
        return Moments.union(mine)

    def bins(self, groups: npt.NDArray[np.int64], n_bins: int) -> npt.NDArray[np.int64]:
        """Bin of every token by its document, (n,): digits of the hash that the folds do not use."""
        return ((document_hash(groups) // np.uint64(self.folds)) % np.uint64(n_bins)).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Maps:
    """Affine maps x ↦ linear error, e ≈ ē + (x − x̄) W, fitted to the documents that are trained on.

    Attributes:
        mean_x: x̄, (d,), float64.
        scatter: Covariance of x, (d, d), float64.
        heldout: The same over the documents held out.
        mean_e: ē by SAE, (d,).
        weight: W by SAE, (d, d).
        n_train: Tokens of the fit.
    """

    mean_x: Tensor
    scatter: Tensor
    heldout: Tensor
    mean_e: Mapping[str, Tensor]
    weight: Mapping[str, Tensor]
    n_train: int

    @classmethod
    def fit(cls, moments: FoldMoments, names: Sequence[str], split: Split) -> Maps:
        """Fit them.

        Args:
            moments: Moments of all folds.
            names: SAEs wanted.
            split: Which documents are trained on.

        Returns:
            The maps.

        Raises:
            InputError: Too few tokens for the rank of x.
        """
        train, held, d = split.training(moments), split.held(moments), moments.layout.d_model
        fit = factor(train.xx, train.mean_x, train.n)
        check_enough_tokens(train.n, fit.rank)
        places = {name: moments.layout.names.index(name) for name in names}
        return cls(
            mean_x=train.mean_x,
            scatter=train.xx / train.n,
            heldout=held.xx / held.n,
            mean_e={name: train.mean_e[i] for name, i in places.items()},
            weight={name: fit.solve(train.xe[:, d * i : d * (i + 1)]) for name, i in places.items()},
            n_train=train.n,
        )

    def linear(self, name: str, x: Tensor) -> Tensor:
        """The linear error of activations (n, d), float64, on their device."""
        return self.mean_e[name].to(x.device) + (x.double() - self.mean_x.to(x.device)) @ self.weight[name].to(x.device)

    def nonlinear(self, name: str, x: Tensor, recon: Tensor) -> Tensor:
        """What is left of the error, (n, d), float64."""
        return x.double() - recon.double() - self.linear(name, x)


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """One thing to train on: rows t, and the map t ↦ (t − mean) forward to equal variance and rank.

    Attributes:
        name: What to call it: "linear", "nonlinear", "x", "linear-gaussian", "nonlinear~shuffled", …
        kind: What its rows are.
        sae: Whose error; "" for x.
        mean: Mean over the documents trained on, (d,), float64.
        values: Variances of its R leading directions, (R,); of Gaussian rows, those that they are drawn with.
        basis: Those directions, orthonormal rows, (R, d).
        forward: (d, d): onto those directions, then to unit total variance.
        backward: Its pseudo-inverse, (d, d).
        share: Variance over Var x, on the documents trained on.
        kept: Share of its variance in those directions.
        effective_rank: Participation ratio (Σλ)² / Σλ² of all eigenvalues.
        seed: Seed of Gaussian rows.
    """

    name: str
    kind: Kind
    sae: str
    mean: Tensor
    values: Tensor
    basis: Tensor
    forward: Tensor
    backward: Tensor
    share: float
    kept: float
    effective_rank: float
    seed: int = 0

    @property
    def rank(self) -> int:
        """Directions R that are kept."""
        return len(self.values)

    def rows(self, batch: Batch, maps: Maps, number: int) -> Tensor:
        """The rows t of a batch, (n, d), float64, on the device of x.

        Gaussian rows depend on seed, target and the number of the batch alone: a token has the same row in every pass.

        Args:
            batch: Tokens that `check_batch` accepts.
            maps: The maps.
            number: Number of the batch in its pass.
        """
        x = torch.as_tensor(batch.x)
        if self.kind == "x":
            return x.double()
        if self.kind == "linear":
            return maps.linear(self.sae, x)
        if self.kind == "nonlinear":
            return maps.nonlinear(self.sae, x, torch.as_tensor(batch.recons[self.sae]))
        noise = torch.randn(len(x), self.rank, dtype=torch.float64, generator=generator(self.seed, self.name, number))
        return self.mean.to(x.device) + (noise * self.values.sqrt().cpu()).to(x.device) @ self.basis.to(x.device)

    def prepare(self, rows: Tensor) -> Tensor:
        """Bring rows to equal variance and rank, (n, d), float64."""
        return (rows - self.mean.to(rows.device)) @ self.forward.to(rows.device)


def generator(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    """A CPU generator for one purpose."""
    digest = hashlib.blake2b(f"{seed} {purpose} {number}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Mean and covariance of a part.

    Attributes:
        mean: (d,), float64.
        values: Eigenvalues of its covariance, falling, (d,).
        basis: Eigenvectors as rows, (d, d).
        heldout: Variances along them on held-out documents, (d,). Eigenvalues of a sample spread by √(d/n) even where
            the true ones are equal, and a spread makes Gaussian rows easier; these do not.
    """

    mean: Tensor
    values: Tensor
    basis: Tensor
    heldout: Tensor

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor, heldout: Tensor) -> Spectrum:
        """Decompose a covariance (d, d), with that of held-out documents beside it."""
        values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
        basis = vectors.flip(1).mT.contiguous()
        along = ((basis @ heldout) * basis).sum(dim=1).clamp_min(0)
        return cls(mean, values.flip(0).clamp_min(0), basis, along)

    @property
    def variance(self) -> float:
        """Trace of the covariance."""
        return float(self.values.sum())

    @property
    def rank(self) -> int:
        """Directions that count, see `RANK_CUT`."""
        return int((self.values > RANK_CUT * self.values[0]).sum())

    @property
    def effective_rank(self) -> float:
        """(Σλ)² / Σλ²."""
        return float(self.values.sum().square() / self.values.square().sum())


def target(
    name: str, kind: Kind, sae: str, spectrum: Spectrum, *, var_x: float, rank: int, whiten: bool, seed: int
) -> Target:
    """Make a target: project onto its R leading directions and rescale to unit total variance.

    t ↦ (t − t̄) V'V / √Σ_{r ≤ R} λ_r, or, whitened, (t − t̄) V' Λ^{-1/2} V / √R.

    Args:
        name: Its name.
        kind: What its rows are.
        sae: Whose error.
        spectrum: Mean and covariance of the part (of a Gaussian control: of the part it imitates).
        var_x: Var x.
        rank: R.
        whiten: Give all R directions equal variance.
        seed: Seed of Gaussian rows.

    Returns:
        The target.
    """
    values, basis = spectrum.values[:rank], spectrum.basis[:rank]
    scale = (values * rank if whiten else values.sum().expand(rank)).sqrt()
    if kind in {"gaussian", "isotropic"}:
        values = spectrum.heldout[:rank]
    if kind == "isotropic":
        values = values.mean().expand(rank).contiguous()
    return Target(
        name=name,
        kind=kind,
        sae=sae,
        mean=spectrum.mean,
        values=values,
        basis=basis,
        forward=(basis.mT / scale) @ basis,
        backward=(basis.mT * scale) @ basis,
        share=spectrum.variance / var_x,
        kept=float(spectrum.values[:rank].sum()) / spectrum.variance,
        effective_rank=float(rank) if kind == "isotropic" else spectrum.effective_rank,
        seed=seed,
    )
