"""Leave-one-fold-out least squares from moments: factor a Gram matrix once, use it for every SAE and every target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from torch import Tensor

from darkmatter.errors import InputError
from darkmatter.folds import FoldMoments
from darkmatter.inference import residual_influence
from darkmatter.moments import Moments

_SLACK = 100
_POWER_STEPS = 50


@dataclass(frozen=True, slots=True)
class Factor:
    """A factored scatter matrix G = X'X (centred), ready to solve G A = H in the minimum-norm sense.

    Attributes:
        scale: Reciprocal square roots of the diagonal of G, (d,); 0 for a constant coordinate.
        matrix: Lower Cholesky factor of scale·G·scale, (d, d), if `triangular`; else its eigenvectors kept, divided by
            the square roots of their eigenvalues, (d, kept).
        triangular: Which of the two it is.
        rank: Number of directions in which x varies.
    """

    scale: Tensor
    matrix: Tensor
    triangular: bool
    rank: int

    def solve(self, rhs: Tensor) -> Tensor:
        """Return G⁺ H for H of shape (d, q)."""
        return self.root(self.root_transposed(rhs))

    def root(self, columns: Tensor) -> Tensor:
        """Return W C with W W' = G⁺, for C of shape (columns of `matrix`, q)."""
        if self.triangular:
            solution: Tensor = torch.linalg.solve_triangular(self.matrix.mT, columns, upper=True)
        else:
            solution = self.matrix @ columns
        return solution.mul_(self.scale[:, None])

    def root_transposed(self, rhs: Tensor) -> Tensor:
        """Return W' H with W W' = G⁺, for H of shape (d, q)."""
        scaled = rhs * self.scale[:, None]
        if self.triangular:
            half: Tensor = torch.linalg.solve_triangular(self.matrix, scaled, upper=False)
            return half
        return self.matrix.mT @ scaled


def factor(scatter: Tensor, mean: Tensor, n: int) -> Factor:
    """Factor a scatter matrix: Cholesky after scaling to unit diagonal, eigendecomposition where that is singular.

    Where the smallest eigenvalue of the scaled matrix is below 100 d ε it may be rounding, and the eigendecomposition
    with relative cut-off max(d, 100) ε decides the rank. A constant coordinate gets the coefficient zero.

    Args:
        scatter: Centred X'X, (d, d).
        mean: Mean of the rows of X, (d,), by which rounding is told from variance.
        n: Rows of X.

    Returns:
        The factor.
    """
    d, eps = len(scatter), torch.finfo(torch.float64).eps
    diagonal = scatter.diagonal()
    # a coordinate that only repeats the rounding of its own mean is constant
    varies = diagonal > n * (8 * eps * mean) ** 2
    scale = torch.where(varies, diagonal, 1.0).rsqrt() * varies
    lower, info = torch.linalg.cholesky_ex(_scaled(scatter, scale, varies))
    if int(info) == 0 and _least_eigenvalue(lower) > _SLACK * d * eps:
        return Factor(scale=scale, matrix=lower, triangular=True, rank=int(varies.sum()))
    values, vectors = torch.linalg.eigh(_scaled(scatter, scale, varies))
    kept = values > max(d, _SLACK) * eps * values[-1]
    basis = vectors[:, kept] / values[kept].sqrt()
    return Factor(scale=scale, matrix=basis, triangular=False, rank=int(kept.sum()) - int((~varies).sum()))


def _scaled(scatter: Tensor, scale: Tensor, varies: Tensor) -> Tensor:
    """Scale a scatter matrix to unit diagonal, in one copy; made anew when needed again, so that a wide one fits."""
    scaled = scatter * scale[:, None]
    scaled *= scale
    scaled.diagonal().add_((~varies).to(scaled))
    return scaled


def _least_eigenvalue(lower: Tensor) -> float:
    """Smallest eigenvalue of L L' by inverse iteration, never too low; a small pivot alone would miss many."""
    return 1.0 / _rayleigh(lambda v: torch.cholesky_solve(v, lower), _start(lower), steps=3)


def condition_number(moments: Moments, fit: Factor) -> float:
    """Ratio of the extreme non-zero eigenvalues of Cov x, by power and inverse iteration (never too high).

    Where x is singular the factor inverts in scaled coordinates, whose eigenvalues are others; there they are computed.

    Args:
        moments: Moments whose scatter was factored.
        fit: Its factor.

    Returns:
        The condition number; 1 for a single direction.
    """
    if not fit.triangular:
        values = torch.linalg.eigvalsh(moments.xx)[-fit.rank :]
        floor = len(moments.xx) * torch.finfo(values.dtype).eps * values[-1]
        return float(values[-1] / values[0].clamp_min(floor))
    start = _start(moments.xx)
    top = _rayleigh(lambda v: moments.xx @ v, start)
    bottom = _rayleigh(fit.solve, start)
    return max(1.0, top * bottom)


def _start(like: Tensor) -> Tensor:
    """A fixed direction, generic for every matrix, (d, 1)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(like), 1, dtype=torch.float64, generator=generator).to(like.device)


def _rayleigh(apply: Callable[[Tensor], Tensor], start: Tensor, steps: int = _POWER_STEPS) -> float:
    v = start / start.norm()
    value = 0.0
    for _ in range(steps):
        w = apply(v)
        value = float((v * w).sum())
        v = w / w.norm().clamp_min(torch.finfo(w.dtype).tiny)
    return value


@dataclass(frozen=True, slots=True)
class CrossFit:
    """Residual sums of squares of every leave-one-fold-out fit, and the fit to all tokens.

    Only folds that hold tokens appear; K is their number.

    Attributes:
        n: Held-out tokens per fold, (K,).
        n_train: Training tokens per fold, (K,).
        train: Σ ⟨r_a, r_b⟩ over the training tokens of fold k's fit, (K, S, S).
        heldout: The same over fold k, (K, S, S).
        train_targets: Residual sums of squares of the scalar targets on the training tokens, (K, 1 + 2 S).
        heldout_targets: The same over fold k.
        weight: Map of every error on x fitted to all tokens, (S, d, d): e ≈ ē + (x − x̄) weight.
        factor: Factor of the scatter of all tokens.
        min_train_rank: The smallest rank among the training sets.
        condition: Condition number of Cov x.
        far_share: Share of Σ |x − x̄|² that the farthest token carries.
        far_leverage: Leverage of that token, 1/n + (x − x̄)'G⁺(x − x̄).
    """

    n: Tensor
    n_train: Tensor
    train: Tensor
    heldout: Tensor
    train_targets: Tensor
    heldout_targets: Tensor
    weight: Tensor
    factor: Factor
    min_train_rank: int
    condition: float
    far_share: float
    far_leverage: float

    def influence(self, heldout: Tensor) -> Tensor:
        """Influence of every fold on the logarithm of a residual variance, from its held-out sums, (K,)."""
        return residual_influence(heldout, self.n, self.factor.rank)


def cross_fit(moments: FoldMoments, total: Moments) -> CrossFit:
    """Regress every error and every scalar target on x with an intercept, leaving one fold out at a time.

    Args:
        moments: The folds.
        total: Their union.

    Returns:
        The sums of squares.

    Raises:
        InputError: Fewer than two folds hold tokens, or too few tokens for the rank of x.
    """
    used = [fold for fold in moments.folds if fold.n]
    if len(used) < 2:
        raise InputError(
            f"all {moments.n_groups} document(s) fall into one fold, expected at least 2 folds with tokens: "
            "pass more documents (20 folds want at least 100)"
        )
    whole = factor(total.xx, total.mean_x, total.n)
    check_enough_tokens(min(total.n - fold.n for fold in used), whole.rank)
    fits = [_leave_out(fold, rest) for fold, rest in zip(used, rests(used), strict=True)]
    far_share, far_leverage = _farthest(used, total, whole)
    return CrossFit(
        n=torch.tensor([fold.n for fold in used], dtype=torch.float64),
        n_train=torch.tensor([total.n - fold.n for fold in used], dtype=torch.float64),
        train=torch.stack([fit.train for fit in fits]).cpu(),
        heldout=torch.stack([fit.heldout for fit in fits]).cpu(),
        train_targets=torch.stack([fit.train_targets for fit in fits]).cpu(),
        heldout_targets=torch.stack([fit.heldout_targets for fit in fits]).cpu(),
        weight=rearrange(whole.solve(total.xe), "i (s j) -> s i j", s=total.layout.n_saes).contiguous(),
        factor=whole,
        min_train_rank=min(fit.rank for fit in fits),
        condition=condition_number(total, whole),
        far_share=far_share,
        far_leverage=far_leverage,
    )


def _farthest(used: list[Moments], total: Moments, whole: Factor) -> tuple[float, float]:
    """Variance share and leverage of the token farthest from the mean."""
    deviations = torch.stack([fold.far_x for fold in used]) - total.mean_x
    squares = deviations.square().sum(dim=1)
    whitened = whole.root_transposed(deviations[squares.argmax()][:, None])
    return float(squares.max() / total.xx.diagonal().sum()), 1 / total.n + float(whitened.square().sum())


def check_enough_tokens(n_train: int, rank: int) -> None:
    """Refuse a fit whose residuals are zero by construction.

    Args:
        n_train: Tokens in the smallest training set.
        rank: Directions in which x varies there.

    Raises:
        InputError: n_train ≤ rank + 1.
    """
    if n_train <= rank + 1:
        raise InputError(
            f"{n_train} training tokens for {rank} directions of x, expected more than {rank + 1} "
            f"(at least {4 * rank} for a trustworthy estimate): pass more tokens, or check that x is not transposed"
        )


@dataclass(frozen=True, slots=True)
class _LeftOut:
    """Residual sums of one leave-one-fold-out fit, as `CrossFit` stacks them."""

    train: Tensor
    heldout: Tensor
    train_targets: Tensor
    heldout_targets: Tensor
    rank: int


def _leave_out(fold: Moments, rest: Moments) -> _LeftOut:
    """Fit to the rest, then sum squares over the rest and over the fold.

    With A = G⁺H from the rest: training sum E − A'H; over the fold E_k − A'H_k − H_k'A + A'G_k A, all centred on the
    fold's own mean, plus n_k times the square of how far that mean lies off the fitted plane.
    """
    layout = rest.layout
    columns = slice(layout.d_model, layout.width)
    fit = factor(rest.xx, rest.mean_x, rest.n)
    check_enough_tokens(rest.n, fit.rank)
    solution = fit.solve(rest.cross[:, columns])
    image = fold.xx @ solution
    off = (fold.mean - rest.mean)[columns] - (fold.mean_x - rest.mean_x) @ solution

    def errors(block: Tensor) -> Tensor:
        return rearrange(block[..., : -layout.n_targets], "... (s j) -> s ... j", s=layout.n_saes)

    def targets(block: Tensor) -> Tensor:
        return block[..., -layout.n_targets :]

    crossed = _pairs(errors(solution), errors(fold.cross[:, columns]))
    return _LeftOut(
        train=rest.error_gram - _pairs(errors(solution), errors(rest.cross[:, columns])),
        heldout=fold.error_gram
        - crossed
        - crossed.mT
        + _pairs(errors(solution), errors(image))
        + fold.n * errors(off) @ errors(off).mT,
        train_targets=rest.target_ss - (targets(solution) * rest.xt).sum(dim=0),
        heldout_targets=fold.target_ss
        + (targets(solution) * (targets(image) - 2 * fold.xt)).sum(dim=0)
        + fold.n * targets(off).square(),
        rank=fit.rank,
    )


def rests(folds: list[Moments], others: Moments | None = None) -> Iterator[Moments]:
    """Unite, for every fold in turn, all the others: by halving, K log2 K merges.

    Args:
        folds: At least two folds that hold tokens.
        others: What is united with all of them; none at the start.

    Yields:
        The moments of the others, in the order of `folds`.
    """
    # total minus fold would be cheaper, but what only the fold holds leaves rounding behind that looks like variance
    if len(folds) == 1 and others is not None:
        yield others
        return
    left, right = folds[: len(folds) // 2], folds[len(folds) // 2 :]
    for part, rest in ((left, right), (right, left)):
        yield from rests(part, Moments.union(rest if others is None else [others, *rest]))


def _pairs(first: Tensor, second: Tensor) -> Tensor:
    """tr(A_a' B_b) for every pair, (S, S)."""
    if len(first) == 1:  # a matrix product would copy both blocks first
        return (first[0] * second[0]).sum()[None, None]
    return einsum(first, second, "a i j, b i j -> a b")
