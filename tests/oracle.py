"""A naive transcription of the estimator: one lstsq with an intercept per fold, residuals written out, no moments.

Intervals come from the same fold influences, but every derivative is taken by complex step instead of by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.stats

from tests.helpers import ListSource, Matrix

Vector = npt.NDArray[np.float64]
Triple = tuple[float, float, float]
_STEP = 1e-30


def fold_numbers(groups: npt.NDArray[np.int64], folds: int) -> npt.NDArray[np.int64]:
    """splitmix64 of the document id, mod K, in Python's own integers."""
    word = (1 << 64) - 1
    numbers = []
    for group in groups.tolist():
        z = (group + 0x9E3779B97F4A7C15) & word
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
        numbers.append((z ^ (z >> 31)) % folds)
    return np.array(numbers)


def squares(rows: Matrix) -> Vector:
    return np.asarray((rows**2).sum(axis=1))


def spread(rows: Matrix) -> Vector:
    """Standard deviation of every column; 1 where a column only repeats its rounding."""
    deviation = rows.std(axis=0)
    return np.where(deviation > 1e-13 * (1 + np.abs(rows).max()), deviation, 1.0)


@dataclass
class Naive:
    """Everything a decomposition says, from arrays."""

    x: Matrix
    recons: dict[str, Matrix]
    fold: npt.NDArray[np.int64]
    cutoff: float = 1e-11

    @classmethod
    def of(cls, source: ListSource, folds: int) -> Naive:
        recons = {name: np.asarray(r, np.float64) for name, r in source.recons.items()}
        return cls(np.asarray(source.x, np.float64), recons, fold_numbers(source.groups, folds))

    def __post_init__(self) -> None:
        self.used = np.unique(self.fold)
        self.n = np.array([(self.fold == k).sum() for k in self.used])
        self.centred = self.x - self.x.mean(axis=0)  # a common shift, which the intercept absorbs, tames lstsq
        self.design = self.centred / spread(self.centred)
        self.rank = int(np.linalg.matrix_rank(self.design, rtol=self.cutoff))
        total = self.n.sum()
        self.widening = np.sqrt(total / (total - self.rank - 1))

    def residual_sums(self, target: Matrix) -> tuple[Vector, Vector]:
        """Residual sums of squares on the training tokens and on the held-out ones, one lstsq per fold."""
        shifted = target - target.mean(axis=0)
        train, heldout = [], []
        for k in self.used:
            inside, out = self.fold != k, self.fold == k
            rows = self.centred - self.centred[inside].mean(axis=0)  # the intercept, kept out of the minimum norm
            rows = rows / spread(rows[inside])
            values = shifted - shifted[inside].mean(axis=0)
            coefficients = np.linalg.lstsq(rows[inside], values[inside], rcond=self.cutoff)[0]
            residual = squares(values - rows @ coefficients)
            train.append(residual[inside].sum())
            heldout.append(residual[out].sum())
        return np.array(train), np.array(heldout)

    def residual(self, target: Matrix) -> tuple[float, Vector, tuple[float, float]]:
        """sqrt(S·C), what each fold adds to it, and (S, C)."""
        train, heldout = self.residual_sums(target)
        s = train.sum() / (self.n.sum() - self.n).sum()
        c = heldout.sum() / self.n.sum()
        value = np.sqrt(s * c)
        return float(value), value * self.widening * (heldout / self.n / c - 1), (float(s), float(c))

    def mean(self, per_token: Vector) -> tuple[float, Vector]:
        """A mean and what each fold adds to it."""
        value = per_token.mean()
        return float(value), np.array([per_token[self.fold == k].mean() - value for k in self.used])

    def estimate(self, of: Callable[..., Any], *parts: tuple[Any, ...], log: bool = False) -> Triple:
        """A smooth function of means and residual variances with its interval."""
        values = [part[0] for part in parts]
        value = of(*values)
        psi = np.array([
            np.imag(of(*(part[0] + 1j * _STEP * part[1][k] for part in parts))) / _STEP for k in range(len(self.used))
        ])
        half = self.half_width(psi / value if log else psi)
        if log:
            return float(value), float(value * np.exp(-half)), float(value * np.exp(half))
        return float(value), float(value - half), float(value + half)

    def half_width(self, psi: Vector) -> float:
        weight = self.n / self.n.sum()
        variance = (weight * (psi - (weight * psi).sum()) ** 2).sum() / (len(self.n) - 1)
        return float(scipy.stats.t(len(self.n) - 1).ppf(0.975) * np.sqrt(variance))

    def one(self, name: str) -> dict[str, Any]:
        """Every number about one SAE."""
        recon = self.recons[name]
        e = self.x - recon
        ec, rc = e - e.mean(axis=0), recon - recon.mean(axis=0)
        vx, ve, vr = (self.mean(squares(v)) for v in (self.centred, ec, rc))
        cov = self.mean((self.centred * rc).sum(axis=1))
        r = self.residual(e)
        g = self.estimate(lambda c, v, x: (c - v) / (v * x) ** 0.5, cov, vr, vx)
        ends = sorted([g[1] ** 2, g[2] ** 2])
        left = self.estimate(lambda v, c, x: (v - c) / x, vr, cov, vx)
        nonlinear = self.estimate(lambda r, x: r / x, r, vx, log=True)
        return {
            "fvu": self.estimate(lambda e, x: e / x, ve, vx, log=True),
            "fvu_nonlinear": nonlinear,
            "r2_error": complement(self.estimate(lambda r, e: r / e, r, ve, log=True)),
            "linear_share": self.estimate(lambda e, r, x: (e - r) / x, ve, r, vx),
            "gain": self.estimate(lambda c, v: c / v, cov, vr),
            "shrinkage": (g[0] ** 2, 0.0 if g[1] <= 0 <= g[2] else ends[0], ends[1]),
            "r2_norm": self.norm(e),
            "r2_norm_x": self.norm(self.x),
            "r2_norm_recon": self.norm(recon),
            "lower_end": tuple(max(0.0, end) for end in left),
            "low": max(0.0, left[1]),
            "high": nonlinear[2],
            "insample": r[2][0] / vx[0],
            "heldout": r[2][1] / vx[0],
            "sensitivity": lambda s: (vr[0] - (1 - s) * cov[0]) / vx[0],
            "max_shrinkage": self.max_shrinkage(rc),
        }

    def norm(self, rows: Matrix) -> Triple:
        norms = squares(rows)[:, None]
        total = self.mean(squares(norms - norms.mean()))
        return complement(self.estimate(lambda r, t: r / t, self.residual(norms), total, log=True))

    def max_shrinkage(self, recon_centred: Matrix) -> float:
        cross = self.centred.T @ recon_centred
        top = scipy.linalg.eigh((cross + cross.T) / 2, self.centred.T @ self.centred, eigvals_only=True)[-1]
        return float(np.clip(1 - top, 0, 1))

    def pair(self, first: str, second: str) -> dict[str, Triple]:
        """T8, by regressing the difference of the two errors; and from the traces of the two reconstructions."""
        e = {name: self.x - self.recons[name] for name in (first, second)}
        private = self.residual((e[first] - e[second]) / np.sqrt(2))
        a, b = self.residual(e[first]), self.residual(e[second])
        vx = self.mean(squares(self.centred))
        one, two = (self.recons[name] - self.recons[name].mean(axis=0) for name in (first, second))
        sign = np.sign((self.centred * (one - two)).sum())
        va, vd = self.mean(squares(one)), self.mean(squares(one - two))
        cd, ab = self.mean(sign * (self.centred * (one - two)).sum(axis=1)), self.mean((one * two).sum(axis=1))
        xa, xb = (self.mean((self.centred * side).sum(axis=1)) for side in (one, two))
        return {
            "corrected": clipped(self.estimate(lambda v, c, x: (v - c) / 2 / x, vd, cd, vx)),
            "instrument": clipped(self.estimate(lambda v, c, a, b, x: (v - a * c / b) / x, va, ab, xa, xb, vx)),
            "unshared": self.estimate(lambda u, x: u / x, private, vx, log=True),
            "shared": self.estimate(lambda u, a, b, x: ((a + b) / 2 - u) / x, private, a, b, vx),
            "correlation": self.estimate(lambda u, a, b: ((a + b) / 2 - u) / (a * b) ** 0.5, private, a, b),
        }

    def leverages(self) -> tuple[Vector, Vector]:
        """Share of the variance of x and entry of the hat matrix, for every token."""
        far = squares(self.centred)
        rows = np.hstack([np.ones((len(self.x), 1)), self.design])
        hat = (rows * np.linalg.pinv(rows, rcond=self.cutoff).T).sum(axis=1)
        return far / far.sum(), hat


def clipped(triple: Triple) -> Triple:
    return max(0.0, triple[0]), max(0.0, triple[1]), max(0.0, triple[2])


def complement(triple: Triple) -> Triple:
    return 1 - triple[0], 1 - triple[2], 1 - triple[1]


def permuted(source: ListSource, order: Any) -> ListSource:
    """The same tokens in another order."""
    recons: Mapping[str, Any] = {name: r[order] for name, r in source.recons.items()}
    return ListSource(source.x[order], recons, source.groups[order], batch_size=source.batch_size)
