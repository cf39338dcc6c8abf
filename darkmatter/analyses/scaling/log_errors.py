"""Errors of logarithms: sampling, correlated since the tokens are the same, and the scatter of training runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from darkmatter.inference import LEVEL, Estimate

Floats = npt.NDArray[np.float64]

POOLED = 0.25
"""Level of the test before residuals and replicated runs are pooled."""


@dataclass(frozen=True, slots=True)
class LogErrors:
    """What is known of the errors of n logarithms: Cov = Φ'Φ + τ² D, τ² the relative variance between training runs.

    Attributes:
        folds: Φ, one row per fold: sqrt(n_k / n / (K − 1)) (ψ_k − ψ̄), (K, n). Φ'Φ has K − 1 degrees of freedom.
        runs: D, (n, n): the identity for single SAEs, 1/r for means of r runs, B D B' after interpolation.
    """

    folds: Floats
    runs: Floats

    @classmethod
    def of(cls, influence: Floats, n: Floats) -> LogErrors:
        """Errors of single SAEs.

        Args:
            influence: Influence of every fold on every logarithm, (K, n).
            n: Tokens of every fold, (K,).

        Returns:
            The errors.
        """
        weight = n / n.sum()
        centred = influence - weight @ influence
        return cls(centred * np.sqrt(weight / (len(n) - 1))[:, None], np.eye(influence.shape[1]))

    @property
    def dof(self) -> int:
        """Degrees of freedom of the sampling part, K − 1."""
        return len(self.folds) - 1

    @property
    def sampling(self) -> Floats:
        """Φ'Φ, (n, n); singular where K − 1 < n."""
        return self.folds.T @ self.folds

    def mapped(self, b: Floats) -> LogErrors:
        """Errors of B y."""
        return LogErrors(self.folds @ b.T, b @ self.runs @ b.T)

    def shrunk(self) -> Floats:
        """The sampling covariance, shrunk to equal variances and equal correlations (Ledoit and Wolf 2004), (n, n).

        The intensity is Σ Var(Σ̂_ij) / Σ (Σ̂_ij − T_ij)², estimated from the folds. It only chooses weights: errors of
        estimates are computed from the plain matrix.
        """
        raw, k = self.sampling, len(self.folds)
        n = len(raw)
        variance = float(np.trace(raw)) / n
        shared = (float(raw.sum()) - n * variance) / (n * (n - 1)) if n > 1 else 0.0
        target = np.full((n, n), shared) + (variance - shared) * np.eye(n)
        products = self.folds[:, :, None] * self.folds[:, None, :]
        noise = k / (k - 1) * float(np.square(products - raw / k).sum())
        distance = float(np.square(raw - target).sum())
        intensity = min(1.0, noise / distance) if distance > 0 else 1.0
        ridge = 1e-9 * variance + 1e-24  # SAEs that are the same leave no difference to weigh
        found: Floats = (1 - intensity) * raw + intensity * target + ridge * np.eye(n)
        return found

    def runs_variance(self, residual: Floats, weight: Floats, tangent: Floats) -> RunsVariance:
        """τ² from the residuals of a fit, by moments: r'Pr = tr(P Φ'Φ) + τ² tr(P D) in expectation.

        Args:
            residual: y less the fitted curve, (n,).
            weight: W, (n, n).
            tangent: Derivatives of the curve by its p parameters, (n, p).

        Returns:
            The variance with its n − p degrees of freedom.
        """
        x = weight @ tangent
        p = weight - x @ np.linalg.pinv(tangent.T @ x, hermitian=True) @ x.T
        scale = float(np.trace(p @ self.runs))
        return RunsVariance(
            total=float(residual @ p @ residual) / scale,
            sampling=float(np.trace(p @ self.sampling)) / scale,
            dof=len(residual) - tangent.shape[1],
        )

    def along(self, contrast: Floats, runs: RunsVariance) -> tuple[float, float]:
        """Variance of h'y, and its degrees of freedom.

        Satterthwaite's: the sampling part has K − 1, and what the residuals say has their own. Where τ² is cut at 0 the
        residuals still count with their whole size.

        Args:
            contrast: h, (n,).
            runs: τ².

        Returns:
            (variance, degrees of freedom).
        """
        sampling = float(np.square(self.folds @ contrast).sum())
        spread = float(contrast @ self.runs @ contrast)
        whole = sampling + runs.value * spread
        if whole == 0.0:
            return 0.0, float(self.dof)
        parts = sampling**2 / self.dof + (runs.total * spread) ** 2 / runs.dof
        return whole, whole**2 / parts


@dataclass(frozen=True, slots=True)
class RunsVariance:
    """Relative variance between training runs, estimated from a mean square.

    Attributes:
        total: The mean square, in which sampling errors are contained.
        sampling: Their part.
        dof: Degrees of freedom of the mean square.
    """

    total: float
    sampling: float
    dof: int

    @property
    def value(self) -> float:
        """τ², at least 0."""
        return max(0.0, self.total - self.sampling)

    @property
    def deviation(self) -> Estimate:
        """τ, with the interval of a mean square of normal errors; both ends cut at 0."""
        tail = (1 - LEVEL) / 2
        low, high = (self.total * self.dof / float(stats.chi2.ppf(q, self.dof)) for q in (1 - tail, tail))
        return Estimate(
            math.sqrt(self.value),
            math.sqrt(max(0.0, low - self.sampling)),
            math.sqrt(max(0.0, high - self.sampling)),
        )

    def excess(self, other: RunsVariance) -> float:
        """p-value of "this mean square, of residuals, is no larger than another, of replicated runs"."""
        return float(stats.f.sf(self.total / other.total, self.dof, other.dof)) if other.total > 0 else 0.0

    def pooled(self, other: RunsVariance | None) -> RunsVariance:
        """The mean of two by degrees of freedom, unless this one is larger: the line misses something then.

        Pooled where a test at `POOLED` does not tell them apart (Bancroft 1964); else this one alone, with its few
        degrees of freedom.
        """
        if other is None or self.excess(other) < POOLED:
            return self
        dof = self.dof + other.dof
        first, second = self.dof / dof, other.dof / dof
        return RunsVariance(
            first * self.total + second * other.total, first * self.sampling + second * other.sampling, dof
        )
