"""Variances at the target, about the means of all tokens, and what must be refused."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.analyses.cross_site.grams import Grams, overall_mean
from darkmatter.errors import DegenerateError
from darkmatter.inference import Estimate, interval, relative_influence

_NO_ERROR = 1e-12


@dataclass(frozen=True, slots=True)
class Traces:
    """Fold sums about the means of all tokens.

    Attributes:
        target: The site.
        names: Its SAEs.
        n: Tokens, (K,).
        x: Σ |x − x̄|², (K,).
        errors: Σ |e − ē|² by SAE, (S, K).
        crossed: Σ ⟨x − x̄, e − ē⟩ by SAE, (S, K).
        mean_square: |x̄|².
    """

    target: str
    names: tuple[str, ...]
    n: Tensor
    x: Tensor
    errors: Tensor
    crossed: Tensor
    mean_square: float

    @classmethod
    def of(cls, folds: list[Grams], target: str) -> Traces:
        """Collect them."""
        mean, plan = overall_mean(folds), folds[0].plan
        key, columns = ("x", target), plan.columns
        off = [[(fold.mean - mean)[columns[error]].square().sum() for fold in folds] for error in plan.targets]
        n = torch.tensor([fold.n for fold in folds], dtype=torch.float64)
        squares = torch.stack([fold.squares for fold in folds], dim=1).cpu()
        crossed = [[fold.trace_about(mean, key, error) for fold in folds] for error in plan.targets]
        return cls(
            target=target,
            names=tuple(name for _, name in plan.targets),
            n=n,
            x=torch.tensor([fold.trace_about(mean, key, key) for fold in folds], dtype=torch.float64),
            errors=squares + n * torch.tensor(off, dtype=torch.float64),
            crossed=torch.tensor(crossed, dtype=torch.float64),
            mean_square=float(mean[columns[key]].square().sum()),
        )

    @property
    def var_x(self) -> float:
        """Var x of the target."""
        return float(self.x.sum() / self.n.sum())

    def fvu(self, i: int) -> Estimate:
        """Var e / Var x of SAE number i."""
        value = float(self.errors[i].sum() / self.x.sum())
        influence = relative_influence(self.errors[i], self.n) - relative_influence(self.x, self.n)
        return interval(value, influence, self.n, link="log")

    def var_recon(self, i: int) -> float:
        """Var Sae = Var x − 2 Cov(x, e) + Var e of SAE number i."""
        return float((self.x - 2 * self.crossed[i] + self.errors[i]).sum() / self.n.sum())

    def check(self) -> None:
        """Refuse what has no error to explain.

        Raises:
            DegenerateError: x is constant, or an SAE makes no error.
        """
        if not self.var_x > (8 * torch.finfo(torch.float64).eps) ** 2 * self.mean_square:
            raise DegenerateError(
                f"{self.target}: x is constant over {int(self.n.sum())} tokens (variance {self.var_x:.3g}), expected "
                "activations that vary: check the hook point and the file",
                {"var_x": self.var_x},
            )
        for name, error in zip(self.names, self.errors, strict=True):
            share = float(error.sum() / self.x.sum())
            if share <= _NO_ERROR:
                raise DegenerateError(
                    f"{self.target}: {name}: Sae(x) equals x to rounding (FVU {share:.1e}), expected a reconstruction "
                    "with an error to explain: check that x was not passed twice",
                    {"fvu": share},
                )
