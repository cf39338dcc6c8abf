"""Refit of every latent's scale: normal equations of the contributions c_j w_j, collected from sparse codes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg.blas import dspmv
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from darkmatter.analyses.ladder.residuals import Residuals
from darkmatter.sae import SAE, Codes
from darkmatter.sae.input_norm import normalise
from darkmatter.sae.kernels import bag_sum_with_pullback

PARTS = 2
"""Fits: groups are dealt to two parts, each refitted on the other; s coefficients rest on n d / 2 numbers."""

GROUPS = 10
"""Groups of folds, fold k in group k mod 10: intervals are 8 % wider than from twenty folds, at half the memory."""

_CONSTANT = 1e-9
_TOLERANCE, _STEPS = 1e-9, 2000
_DENSE_PAYS = 200
"""Listing a pair of active latents takes as long as this many multiplications of a dense product (measured)."""
_ENTRIES = 2**22
"""Pairs, or entries of dense codes, that are held at a time."""


def latent_bytes(d_sae: int, folds: int) -> int:
    """Memory of the sums of one SAE: a triangle of products of latents in every group of folds.

    Args:
        d_sae: Number s of latents.
        folds: Number K of folds.

    Returns:
        G (s (s + 1) / 2 + 2 s) float64 numbers, in bytes.
    """
    return 8 * min(folds, GROUPS) * (d_sae * (d_sae + 1) // 2 + 2 * d_sae)


def solve_bytes(d_sae: int) -> int:
    """Memory of one solve: three matrices of s × s, once for all SAEs."""
    return 8 * 3 * d_sae * d_sae


@dataclass(slots=True, eq=False)
class LatentSums:
    """Sums over the tokens of every group of folds, c the codes (times the scale, where the SAE rescales its input).

    Attributes:
        sae: The SAE.
        groups: Number G of groups.
        products: Σ c_i c_j for i ≥ j, entry i (i + 1) / 2 + j, (G, s (s + 1) / 2).
        codes: Σ c_j, (G, s).
        errors: Σ c_j ⟨w_j, e⟩, (G, s).
        table: Decoder, float32, for inner products of single tokens; sums are float64.
    """

    sae: SAE
    groups: int
    products: Tensor = field(init=False)
    codes: Tensor = field(init=False)
    errors: Tensor = field(init=False)
    table: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        s, device = self.sae.d_sae, self.sae.device
        self.products = torch.zeros(self.groups, s * (s + 1) // 2, dtype=torch.float64, device=device)
        self.codes = torch.zeros(self.groups, s, dtype=torch.float64, device=device)
        self.errors = torch.zeros_like(self.codes)
        self.table = self.sae.W_dec.float()

    def add(self, x: Tensor, error: Tensor, groups: Tensor) -> None:
        """Take tokens.

        Args:
            x: Activations, (n, d).
            error: x − Sae(x), (n, d), float64.
            groups: Group of every token, (n,).
        """
        device = self.sae.device
        codes = self.sae.encode(x.to(device))
        tokens = torch.arange(len(x), device=device).repeat_interleave(codes.offsets.diff())
        values = codes.values.double()
        if self.sae.input_norm is not None:
            values = values * normalise(x.to(device).to(self.sae.dtype), self.sae.input_norm)[1][tokens, 0].double()
        if not len(values):
            return
        group = groups.to(device)[tokens]
        _, pullback = bag_sum_with_pullback(codes.latents, values.float(), codes.offsets, self.table)
        inner = pullback(error.to(device).float()).double()
        where = group * self.sae.d_sae + codes.latents
        self.codes.view(-1).index_add_(0, where, values)
        self.errors.view(-1).index_add_(0, where, values * inner)
        active = values != 0
        counts = torch.bincount(tokens[active], minlength=len(x))
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        kept = Codes(values[active], codes.latents[active], offsets, self.sae.d_sae)
        self.add_products(kept, groups.to(device))

    def add_products(self, codes: Codes, groups: Tensor, *, dense: bool | None = None) -> None:
        """Add the products of the latents of every token.

        Args:
            codes: Their codes.
            groups: Group of every token, (n,).
            dense: By a product of all latents, or of the active pairs alone; None takes what is faster.
        """
        counts = codes.offsets.diff()
        if dense is None:
            dense = float((counts.double() * (counts + 1)).sum()) * _DENSE_PAYS > codes.n_tokens * codes.d_sae**2
        widest = codes.d_sae if dense else int(counts.max()) ** 2 // 2
        most = max(1, _ENTRIES // max(1, widest))
        for low in range(0, codes.n_tokens, most):
            ends = codes.offsets[low : low + most + 1]
            part = slice(int(ends[0]), int(ends[-1]))
            some = Codes(codes.values[part], codes.latents[part], ends - ends[0], codes.d_sae)
            (self._add_dense if dense else self._add_pairs)(some, groups[low : low + most])

    def _add_pairs(self, codes: Codes, groups: Tensor) -> None:
        """Add the products of every pair of entries of a token, in time proportional to their number."""
        counts = codes.offsets.diff()
        tokens = torch.arange(codes.n_tokens, device=counts.device).repeat_interleave(counts)
        order = (tokens * codes.d_sae + codes.latents).argsort()  # rising latents within a token
        values, latents = codes.values[order], codes.latents[order]
        partners = torch.arange(len(values), device=counts.device) - codes.offsets[tokens] + 1  # itself, those before
        first = torch.arange(len(values), device=counts.device).repeat_interleave(partners)
        shift = partners.cumsum(0) - partners - codes.offsets[tokens]
        second = torch.arange(len(first), device=counts.device) - shift[first]
        weight = values[first] * values[second]
        twice = (latents[1:] == latents[:-1]) & (tokens[1:] == tokens[:-1])
        if bool(twice.any()):  # a latent that a token lists twice
            weight = torch.where((latents[first] == latents[second]) & (first != second), 2 * weight, weight)
        base = groups[tokens] * self.products.shape[1] + (latents * (latents + 1) >> 1)
        self.products.view(-1).index_add_(0, base[first] + latents[second], weight)

    def _add_dense(self, codes: Codes, groups: Tensor) -> None:
        """Add the products of all latents, group by group."""
        mask = torch.ones(codes.d_sae, codes.d_sae, dtype=torch.bool, device=self.products.device).tril_()
        dense = codes.dense()
        for g in torch.unique(groups):
            mine = dense[groups == g]
            self.products[g] += (mine.mT @ mine)[mask]

    def state(self) -> dict[str, Tensor]:
        """The sums by name."""
        return {"products": self.products, "codes": self.codes, "errors": self.errors}

    def fit(self, n: Tensor, mean_e: Tensor, ee: Tensor) -> Residuals | None:
        """Regress e on the contributions of all latents with an intercept, each half of the groups on the other.

        With β = α − 1: minimise Σ |e − ē − Σ_j β_j (c_j − c̄_j) w_j|², so N β = g with N = scatter(c) ∘ (W W') and
        g_j = Σ (c_j − c̄_j) ⟨w_j, e − ē⟩. A latent that never fires in the other part keeps its scale. Uses the sums up.

        Args:
            n: Tokens of every fold, (K,).
            mean_e: Mean error of every fold, (K, d).
            ee: Σ |e − ē|² of every fold about its own mean, (K,).

        Returns:
            The residual sums of the groups that hold tokens; None where no latent ever fires, or there is one group.
        """
        if not bool(self.codes.any()):
            return None
        table = self.sae.W_dec.double().cpu()
        gram = (table @ table.mT)[torch.ones(len(table), len(table), dtype=torch.bool).tril_()]
        parts = []
        for g in range(self.groups):
            mine = [k for k in range(g, len(n), self.groups) if n[k] > 0]
            if mine:
                mean = (n[mine, None] * mean_e[mine]).sum(dim=0) / n[mine].sum()
                squares = ee[mine].sum() + (n[mine] * (mean_e[mine] - mean).square().sum(dim=1)).sum()
                products = self.products[g].mul_(gram.to(self.products.device)).cpu()
                parts.append(
                    _Part(float(n[mine].sum()), self.codes[g].cpu(), self.errors[g].cpu(), mean, squares, products)
                )
        if len(parts) < PARTS:
            return None
        found = []
        for p in range(PARTS):
            rest = _Part.union([part for i, part in enumerate(parts) if i % PARTS != p])
            beta = rest.solve(table)
            inside = rest.residual(beta, rest, table)
            found.append((inside, rest.n, [part.residual(beta, rest, table) for part in parts[p::PARTS]]))
        deal = [(i % PARTS, i // PARTS) for i in range(len(parts))]
        return Residuals(
            train=torch.stack([found[p][0] for p, _ in deal]),
            heldout=torch.stack([found[p][2][i] for p, i in deal]),
            n_train=torch.tensor([found[p][1] for p, _ in deal], dtype=torch.float64),
            n=torch.tensor([part.n for part in parts], dtype=torch.float64),
            per_target=int((self.codes.sum(dim=0) > 0).sum()) / self.sae.d_model,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The sums of some tokens.

    Attributes:
        n: Their number.
        codes: Σ c_j, (s,).
        errors: Σ c_j ⟨w_j, e⟩, (s,).
        mean_e: Mean error, (d,).
        ee: Σ |e − ē|², ().
        products: Σ c_i c_j ⟨w_i, w_j⟩, packed.
    """

    n: float
    codes: Tensor
    errors: Tensor
    mean_e: Tensor
    ee: Tensor
    products: Tensor

    @staticmethod
    def union(parts: list[_Part]) -> _Part:
        """All the tokens of several."""
        n = sum(part.n for part in parts)
        mean = torch.stack([part.n / n * part.mean_e for part in parts]).sum(dim=0)
        products = parts[0].products.clone()
        for part in parts[1:]:
            products += part.products
        return _Part(
            n,
            torch.stack([part.codes for part in parts]).sum(dim=0),
            torch.stack([part.errors for part in parts]).sum(dim=0),
            mean,
            torch.stack([part.ee + part.n * (part.mean_e - mean).square().sum() for part in parts]).sum(),
            products,
        )

    def times(self, v: Tensor) -> Tensor:
        """Multiply by the symmetric matrix that is packed in `products`."""
        return torch.from_numpy(dspmv(len(v), 1.0, self.products.numpy(), v.numpy()))

    def solve(self, table: Tensor) -> Tensor:
        """β by conjugate gradients, in coordinates scaled to unit variance.

        Contributions of different latents are nearly orthogonal, so a few dozen products replace a factorisation; the
        solution has least norm: latents that always act together share what they explain.
        """
        mean = self.codes / self.n
        target = self.errors - self.codes * (table @ self.mean_e)
        step = torch.arange(len(mean))
        squares = self.n * mean.square() * table.square().sum(dim=1)
        diagonal = self.products[step * (step + 3) // 2] - squares
        varies = diagonal > _CONSTANT * squares
        scale = torch.where(varies, diagonal, 1.0).rsqrt() * varies

        def product(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            v = scale * torch.from_numpy(z)
            image: npt.NDArray[np.float64] = (
                scale * (self.times(v) - self.codes * (table @ (mean * v @ table)))
            ).numpy()
            return image

        operator = LinearOperator((len(mean), len(mean)), matvec=product, dtype=np.float64)
        found, _ = cg(operator, (scale * target).numpy(), rtol=_TOLERANCE, maxiter=_STEPS)
        return scale * torch.from_numpy(found)

    def residual(self, beta: Tensor, origin: _Part, table: Tensor) -> Tensor:
        """Σ |e − ē − Σ β_j (c_j − c̄_j) w_j|², ē and c̄ the means of other tokens."""
        shift = (beta * origin.codes / origin.n) @ table
        summed = (beta * self.codes) @ table  # Σ_t Σ_j β_j c_j w_j
        off = self.mean_e - origin.mean_e
        crossed = beta @ self.errors - summed @ origin.mean_e - self.n * shift @ off
        squares = beta @ self.times(beta) - 2 * summed @ shift + self.n * shift @ shift
        return self.ee + self.n * off @ off - 2 * crossed + squares


def fits_memory(d_sae: int, folds: int, left: float) -> bool:
    """Whether one more SAE's sums and a solve fit in what is left of a budget, in bytes."""
    return latent_bytes(d_sae, folds) + solve_bytes(d_sae) <= left


def too_large(d_sae: int, folds: int, budget: int) -> str:
    """The sentence for an SAE whose latents are too many."""
    need = latent_bytes(d_sae, folds) + solve_bytes(d_sae)
    most = int(math.sqrt(2 * budget / (8 * (min(folds, GROUPS) + 6))))
    return (
        f"refitting {d_sae:,} latents takes {need / 1e9:.2g} GB and {budget / 1e9:.2g} GB are allowed: left out; "
        f"allow more (up to about {most:,} latents fit in that)"
    )
