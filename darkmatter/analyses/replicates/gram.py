"""Covariances of the nonlinear residuals of several SAEs, with the influence of every fold on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from scipy import stats
from torch import Tensor

from darkmatter.fold_means import FoldMeans
from darkmatter.inference import LEVEL, UNDEFINED, Estimate, Link, interval, standard_error
from darkmatter.solve import CrossFit

_NO_INSTRUMENT = 1e-6
"""Cov(x, b) / Var x below which b is dead and no instrument, as in `bounds`."""


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A share of Var x (or another smooth number) with the influence of every fold on it.

    Attributes:
        value: The number.
        influence: (K,), on the number itself.
        n: Tokens per fold, (K,).
    """

    value: float
    influence: Tensor
    n: Tensor

    def estimate(self, *, link: Link = "identity", level: float = LEVEL) -> Estimate:
        """With its interval: Student t on the folds, symmetric on the scale of `link`.

        Args:
            link: The scale.
            level: Confidence; 95 % unless a test asks for another.
        """
        if link == "log" and self.value > 0:
            return interval(self.value, self.influence / self.value, self.n, link="log")
        if level == LEVEL:
            return interval(self.value, self.influence, self.n)
        half = float(stats.t.ppf((1 + level) / 2, len(self.n) - 1)) * standard_error(self.influence, self.n)
        return Estimate(self.value, self.value - half, self.value + half)

    def plus(self, other: Share, weight: float = 1.0) -> Share:
        """This number plus a multiple of another."""
        return Share(self.value + weight * other.value, self.influence + weight * other.influence, self.n)

    def over(self, other: Share) -> Share:
        """Ratio to a positive number."""
        value = self.value / other.value
        return Share(value, (self.influence - value * other.influence) / other.value, self.n)

    def log(self) -> Share:
        """Natural logarithm of a positive number."""
        return Share(float(torch.tensor(self.value, dtype=torch.float64).log()), self.influence / self.value, self.n)


def mean_of(shares: Sequence[Share]) -> Share:
    """Mean of several numbers of the same folds, with its joint influence."""
    value = sum(share.value for share in shares) / len(shares)
    return Share(value, torch.stack([share.influence for share in shares]).mean(dim=0), shares[0].n)


@dataclass(frozen=True, slots=True, eq=False)
class ResidualGram:
    """Shares of Var x: G_aa = Var r_a, G_ab = Cov(r_a, r_b), U_ab = ½ Var(r_a − r_b) = ½ (G_aa + G_bb) − G_ab.

    Every variance is sqrt(S·C) as in the decomposition, of e_a or of e_a − e_b.

    Attributes:
        names: The SAEs, S of them.
        n: Tokens per fold, (K,).
        value: G, (S, S).
        influence: Of every fold on G, (K, S, S).
        fvu: Var e / Var x, (S,).
        fvu_influence: (K, S).
        recon: Cov(a, b) over Var x by fold, about the means of all tokens, (K, S, S).
        along_x: Cov(x, a) over Var x by fold, (K, S).
        x: Var x by fold over that of all tokens, (K,).
    """

    names: tuple[str, ...]
    n: Tensor
    value: Tensor
    influence: Tensor
    fvu: Tensor
    fvu_influence: Tensor
    recon: Tensor
    along_x: Tensor
    x: Tensor

    @classmethod
    def of(cls, names: tuple[str, ...], fit: CrossFit, means: FoldMeans) -> ResidualGram:
        """Read everything from one cross-fit and the fold sums."""
        n, var_x = fit.n, means.var_x
        psi_x = means.log_influence(means.x)[:, None, None]

        def pairs(sums: Tensor) -> Tensor:
            own = sums.diagonal(dim1=1, dim2=2)
            half = (own[:, :, None] + own[:, None, :]) / 2 - sums
            return half + torch.diag_embed(own)

        heldout, train = pairs(fit.heldout), pairs(fit.train)
        inside = train.sum(dim=0).clamp_min(0) / fit.n_train.sum()
        outside = heldout.sum(dim=0).clamp_min(0) / n.sum()
        variance = (inside * outside).sqrt() / var_x
        widening = (float(n.sum()) / (float(n.sum()) - fit.factor.rank - 1)) ** 0.5
        relative = heldout / n[:, None, None] / outside.where(outside > 0, 1.0) - 1
        moved = variance * relative.where(outside > 0, 0.0) * widening
        value, influence = _covariances(variance), _covariances(moved)
        e = means.ee.diagonal(dim1=1, dim2=2)
        per_token = n[:, None] * var_x
        xa = (means.x[:, None] - means.xe) / per_token
        ab = (means.x[:, None, None] - means.xe[:, :, None] - means.xe[:, None, :] + means.ee) / per_token[:, :, None]
        fvu = e.sum(dim=0) / means.x.sum()
        return cls(
            names=names,
            n=n,
            value=value,
            influence=influence - value * psi_x,
            fvu=fvu,
            fvu_influence=e / per_token - fvu * means.x[:, None] / per_token,
            recon=ab,
            along_x=xa,
            x=means.x / per_token[:, 0],
        )

    def covariance(self, i: int, j: int) -> Share:
        """Cov(r_i, r_j) / Var x; Var r_i / Var x where i = j."""
        return Share(float(self.value[i, j]), self.influence[:, i, j], self.n)

    def error(self, i: int) -> Share:
        """FVU of SAE i."""
        return Share(float(self.fvu[i]), self.fvu_influence[:, i], self.n)

    def unshared(self, i: int, j: int) -> Share:
        """½ Var(r_i − r_j) / Var x."""
        own = self.covariance(i, i).plus(self.covariance(j, j))
        return Share(own.value / 2, own.influence / 2, self.n).plus(self.covariance(i, j), -1.0)

    def private(self, i: int, others: Sequence[int]) -> Share:
        """Var r_i − mean over some others of Cov(r_i, r_j); over all members of a set its mean is `between`."""
        shared = mean_of([self.covariance(i, j) for j in others])
        return self.covariance(i, i).plus(shared, -1.0)

    def between(self, members: Sequence[int]) -> Share:
        """W = 1/(J−1) Σ_j Var(r_j − r̄), the mean of `unshared` over all pairs (T8e)."""
        return mean_of([self.unshared(i, j) for i, j in combinations(members, 2)])

    def corrected(self, i: int, j: int) -> Share:
        """½ [Var(a − b) − |Cov(x, a − b)|] / Var x, not cut at 0."""
        difference = self.recon[:, i, i] + self.recon[:, j, j] - 2 * self.recon[:, i, j]
        along = self.along_x[:, i] - self.along_x[:, j]
        sign = -1.0 if float((along * self.n).sum()) < 0 else 1.0
        return self._ratio((difference - sign * along) / 2)

    def instrument(self, i: int, j: int) -> Share | None:
        """[Var a − Cov(x, a) Cov(a, b) / Cov(x, b)] / Var x, not cut at 0; None where b is no instrument."""

        def mean(values: Tensor) -> float:
            return float((values * self.n).sum() / self.n.sum())

        xb = mean(self.along_x[:, j])
        if not xb > _NO_INSTRUMENT:
            return None
        gain, relative = mean(self.recon[:, i, j]) / xb, mean(self.along_x[:, i]) / xb
        return self._ratio(
            self.recon[:, i, i]
            - relative * self.recon[:, i, j]
            - gain * self.along_x[:, i]
            + gain * relative * self.along_x[:, j]
        )

    def _ratio(self, per_token: Tensor) -> Share:
        """A trace over Var x from its fold means (already over Var x)."""
        value = float((per_token * self.n).sum() / self.n.sum())
        return Share(value, per_token - value * self.x, self.n)


def _covariances(variance: Tensor) -> Tensor:
    """G from a table with Var r_a on the diagonal and ½ Var(r_a − r_b) off it."""
    own = variance.diagonal(dim1=-2, dim2=-1)
    found = (own[..., :, None] + own[..., None, :]) / 2 - variance
    return found + torch.diag_embed(own)


def across_saes(gram: ResidualGram, members: Sequence[int]) -> Estimate:
    """W of a recipe, with an interval for other SAEs of it instead of other tokens: jackknife over J ≥ 3 SAEs.

    se² = (J−1)/J Σ_j (W_{−j} − W̄)², Student t with J − 1 degrees of freedom: W is a mean over pairs, a U-statistic.

    Args:
        gram: The covariances.
        members: SAEs of one recipe.

    Returns:
        The estimate; undefined for fewer than three.
    """
    count = len(members)
    if count < 3:
        return UNDEFINED
    left = torch.tensor([gram.between([i for i in members if i != j]).value for j in members], dtype=torch.float64)
    error = float(((count - 1) / count * (left - left.mean()).square().sum()).sqrt())
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * error
    value = gram.between(members).value
    return Estimate(value, max(0.0, value - half), value + half)


def best_lower_end(gram: ResidualGram, i: int, members: Sequence[int]) -> Estimate:
    """T8e: Var r_i − min over pairs of Cov(r_j, r_k), all of one recipe; the best that the conditions give.

    A minimum picks errors in its favour, so every pair gets its own interval at 1 − 5 %/pairs and the ends are the
    largest of theirs: the lower one is above the truth in at most 2.5 % of samples.

    Args:
        gram: The covariances.
        i: The SAE.
        members: SAEs of its recipe, at least two.

    Returns:
        The lower end, not cut at 0.
    """
    pairs = list(combinations(members, 2))
    own = gram.covariance(i, i)
    ends = [own.plus(gram.covariance(j, k), -1.0).estimate(level=1 - (1 - LEVEL) / len(pairs)) for j, k in pairs]
    return Estimate(max(e.value for e in ends), max(e.low for e in ends), max(e.high for e in ends))
