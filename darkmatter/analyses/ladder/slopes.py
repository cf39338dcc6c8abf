"""Regressions with one coefficient, or one per coordinate: from sums per coordinate and fold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.analyses.ladder.residuals import Residuals

_NOTHING = 1e-12
"""A coordinate whose regressor varies less than this, relative to x there, has coefficient zero."""


@dataclass(frozen=True, slots=True, eq=False)
class CoordinateSums:
    """First and second moments of two vectors u and v, coordinate by coordinate, for every fold.

    Attributes:
        n: Tokens, (K,).
        mean_u: Means of u, (K, d).
        mean_v: Means of v, (K, d).
        uu: Σ (u_j − ū_j)², (K, d), about the fold's own mean as the next two.
        uv: Σ (u_j − ū_j)(v_j − v̄_j), (K, d).
        vv: Σ (v_j − v̄_j)², (K, d).
        least: Sums uu of all tokens up to which a coordinate of u is taken as constant, (d,).
    """

    n: Tensor
    mean_u: Tensor
    mean_v: Tensor
    uu: Tensor
    uv: Tensor
    vv: Tensor
    least: Tensor

    def fit(self, *, pooled: bool) -> Residuals:
        """Regress v on u with intercepts, leaving one fold out at a time.

        Args:
            pooled: One coefficient for all coordinates instead of one each.

        Returns:
            The residual sums.
        """
        train, heldout, n_train = [], [], []
        for k in range(len(self.n)):
            rest = torch.arange(len(self.n)) != k
            weight = self.n[rest][:, None]
            mean_u, mean_v = ((weight * m[rest]).sum(dim=0) / weight.sum() for m in (self.mean_u, self.mean_v))
            off_u, off_v = self.mean_u - mean_u, self.mean_v - mean_v
            n = self.n[:, None]
            uu, uv, vv = self.uu + n * off_u**2, self.uv + n * off_u * off_v, self.vv + n * off_v**2
            top, bottom = uv[rest].sum(dim=0), uu[rest].sum(dim=0)
            slope = torch.where(bottom > self.least, top / torch.where(bottom > 0, bottom, 1.0), 0.0)
            if pooled:
                whole = bottom.sum()
                slope = top.sum() / whole if whole > self.least.sum() else torch.zeros(())
            sums = (vv - 2 * slope * uv + slope**2 * uu).sum(dim=1)
            train.append(sums[rest].sum())
            heldout.append(sums[k])
            n_train.append(weight.sum())
        per_target = 1 / self.uu.shape[1] if pooled else 1.0
        return Residuals(torch.stack(train), torch.stack(heldout), torch.stack(n_train), self.n, per_target)


def gain_sums(
    n: Tensor, means: tuple[Tensor, Tensor], xx: Tensor, xe: Tensor, ee: Tensor
) -> tuple[CoordinateSums, CoordinateSums]:
    """Sums for regressing e on Sae(x) and on x, coordinate by coordinate.

    Args:
        n: Tokens of every fold, (K,).
        means: Of x and of e, (K, d) each.
        xx: Σ (x_j − x̄_j)², (K, d), about the fold's own mean as the next two.
        xe: Σ (x_j − x̄_j)(e_j − ē_j), (K, d).
        ee: Σ (e_j − ē_j)², (K, d).

    Returns:
        (on Sae(x), on x).
    """
    mean_x, mean_e = means
    total = (n[:, None] * mean_x).sum(dim=0) / n.sum()
    varies = xx.sum(dim=0) + (n[:, None] * (mean_x - total) ** 2).sum(dim=0)
    rounding = n.sum() * (8 * torch.finfo(torch.float64).eps * total) ** 2
    recon = xx - 2 * xe + ee  # Sae = x − e
    least = _NOTHING * varies + rounding
    on_recon = CoordinateSums(n, mean_x - mean_e, mean_e, recon.clamp_min(0), xe - ee, ee, least)
    return on_recon, CoordinateSums(n, mean_x, mean_e, xx, xe, ee, rounding)
