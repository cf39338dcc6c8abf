"""Ground truth of any SAE on a world: its reconstruction regressed on the true factors (T3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darkmatter.decomposition import decompose
from darkmatter.errors import InputError
from darkmatter.inference import Estimate, interval, relative_influence
from darkmatter.sandbox.budget import affine_budget
from darkmatter.sandbox.factor_fit import check_memory, residual_variance
from darkmatter.sandbox.factor_sums import FactorSums, collect_sums, merged
from darkmatter.sandbox.population import population_shares
from darkmatter.sandbox.source import Sae, open_pair, recon_chunks
from darkmatter.sandbox.surgical import Surgical

if TYPE_CHECKING:
    from darkmatter.sandbox.world import World

TOKENS_PER_FACTOR = 20
TRUTH_FOLDS = 6


@dataclass(frozen=True, slots=True)
class Truth:
    """What an SAE's error is really made of, shares of Var x. Sae(x) = B f + N, N uncorrelated with every factor f.

    fvu = introduced + absent + dense + linear + cross; nonlinear = introduced + interference (T3).

    Attributes:
        fvu: Var e / Var x.
        nonlinear: Var r / Var x, what `fvu_nonlinear` estimates.
        introduced: Var N / Var x.
        interference: Var((I − P) B f) / Var x: what superposition hides from every linear probe.
        absent: Error on sparse features that the SAE has not learned.
        dense: Error on the dense part.
        linear: Affine error on the learned features (shrinkage, wrong directions).
        cross: Covariance between those parts, which dependent factors make nonzero.
        n_learned: Features with response ⟨B_i, y_i⟩ ≥ ½; in closed form, those that the surgical SAE was given.
        method: "closed form" (no sampling error) or "Monte Carlo" with the tokens used.
    """

    fvu: Estimate
    nonlinear: Estimate
    introduced: Estimate
    interference: Estimate
    absent: Estimate
    dense: Estimate
    linear: Estimate
    cross: Estimate
    n_learned: int
    method: str

    def shares(self) -> dict[str, Estimate]:
        """The estimates by name."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Estimate)}


def true_shares(
    world: World,
    sae: Sae,
    *,
    n_tokens: int | None = None,
    probe_tokens: int | None = None,
    folds: int = TRUTH_FOLDS,
    stream: str = "truth",
    progress: Callable[[int], None] | None = None,
) -> Truth:
    """Measure what an SAE's error is made of, from the world's own factors.

    Most surgical SAEs have a closed form (`Surgical.closed_form`). Otherwise Sae(x) is
    regressed on the m sparse codes and k dense coordinates of an independent stream, leaving one fold of documents out
    at a time, with the same sqrt(S·C) as the estimator; codes are sparse, so their Gram matrix costs L0² per token.

    Args:
        world: The world.
        sae: A surgical SAE or a function from x (n, d) to a reconstruction.
        n_tokens: Tokens of the Monte Carlo; 20 per factor by default.
        probe_tokens: Measure fvu and nonlinear, which need no factors and are cheap, on this many tokens of another
            independent stream instead; a truth that judges an interval should be much sharper than it.
        folds: Folds of the Monte Carlo.
        stream: Stream to draw from; keep it apart from the one being decomposed.
        progress: Called with the number of tokens after every chunk.

    Returns:
        The shares, each with a 95 % interval (of width zero in closed form).

    Raises:
        InputError: Too few tokens for the number of factors, too many factors for this machine's memory, fewer than
            two folds, or an SAE that does not fit.
    """
    if isinstance(sae, Surgical) and sae.closed_form(world):
        return _closed_form(world, sae)
    if folds < 2:
        raise InputError(f"folds is {folds}, expected at least 2: an interval needs two folds that differ")
    n_tokens = truth_tokens(world, n_tokens)
    open_pair(world, sae, n_tokens=n_tokens, batch_size=1, stream=stream, name="sae")  # checks the SAE
    check_memory(world.n_features + world.dense_dim)
    pieces = recon_chunks(world, {"sae": sae}, n_tokens=n_tokens, stream=stream)
    sums = collect_sums(world, ((chunk, recons["sae"]) for chunk, recons in pieces), folds, progress)
    truth = _from_sums(world, sums, f"Monte Carlo, {n_tokens} tokens{_precision(world, sae)}")
    return truth if probe_tokens is None else _sharpened(truth, world, sae, probe_tokens, stream, progress)


def truth_tokens(world: World, n_tokens: int | None) -> int:
    """Fill in and check the tokens of the regression on the true factors.

    Args:
        world: The world.
        n_tokens: What a user wants; None for 20 per factor.

    Returns:
        The number of tokens.

    Raises:
        InputError: Fewer than 4 per factor.
    """
    factors = world.n_features + world.dense_dim
    wanted = TOKENS_PER_FACTOR * factors if n_tokens is None else n_tokens
    if wanted < 4 * factors:
        raise InputError(f"n_tokens is {wanted} for {factors} true factors, expected at least {4 * factors}")
    return wanted


def _sharpened(
    truth: Truth, world: World, sae: Sae, n_tokens: int, stream: str, progress: Callable[[int], None] | None
) -> Truth:
    """Take fvu and nonlinear from an independent sample of their own."""
    probe = decompose(world.pair(sae, n_tokens=n_tokens, stream=f"{stream}-probe", name="sae"), progress=progress)
    first, second = probe.fvu_nonlinear, truth.introduced
    value = first.value - second.value
    half = math.hypot(first.high - first.low, second.high - second.low) / 2  # two independent samples
    return replace(
        truth,
        fvu=probe.fvu,
        nonlinear=first,
        interference=Estimate(value, value - half, value + half),
        method=f"{truth.method}; {n_tokens} for fvu and nonlinear",
    )


def _closed_form(world: World, sae: Surgical) -> Truth:
    exact = population_shares(world, sae)
    return Truth(
        **{
            name: Estimate(value, value, value)
            for name, value in {
                "fvu": exact.fvu,
                "nonlinear": exact.fvu_nonlinear,
                "introduced": exact.introduced,
                "interference": exact.interference,
                "absent": exact.absent,
                "dense": exact.dense,
                "linear": exact.linear,
                "cross": exact.cross,
            }.items()
        },
        n_learned=len(sae.features(world.n_features)),
        method="closed form",
    )


def _precision(world: World, sae: Sae) -> str:
    """What to say of a surgical SAE whose introduced share was set numerically."""
    error = sae.bind(world).relative_error if isinstance(sae, Surgical) else 0.0
    return f"; introduced_share set to ± {error:.1%}" if error else ""


def _from_sums(world: World, folds: list[FactorSums], method: str) -> Truth:
    """Cross-fit Sae on the factors and on x with the same folds, then read the shares."""
    total = merged(folds)
    n = torch.tensor([fold.n for fold in folds], dtype=torch.float64)
    var_x = _fold_means(folds, total, "x")
    var_e = _fold_means(folds, total, "e")
    v = float(var_x.sum() / n.sum())
    psi_x = relative_influence(var_x, n)
    (introduced, psi_f), (nonlinear, psi_r) = (residual_variance(folds, key) for key in ("f", "x"))
    shares = {"f": introduced / v, "x": nonlinear / v}
    psi = {"f": psi_f - psi_x, "x": psi_r - psi_x}
    budget, n_learned = affine_budget(world, folds, total)
    return Truth(
        fvu=interval(float(var_e.sum() / n.sum()) / v, relative_influence(var_e, n) - psi_x, n, link="log"),
        nonlinear=interval(shares["x"], psi["x"], n, link="log"),
        introduced=interval(shares["f"], psi["f"], n, link="log"),
        interference=interval(shares["x"] - shares["f"], shares["x"] * psi["x"] - shares["f"] * psi["f"], n),
        **budget,
        n_learned=n_learned,
        method=method,
    )


def _fold_means(folds: list[FactorSums], total: FactorSums, key: str) -> Tensor:
    """Σ|x − x̄|² or Σ|e − ē|² of every fold about the means of all tokens, (K,)."""
    found = []
    for fold in folds:
        delta = fold.mean["x"] - total.mean["x"]
        if key == "e":
            delta = delta - (fold.mean["s"] - total.mean["s"])
        inside = fold.ee if key == "e" else float(fold.xx.diagonal().sum())
        found.append(inside + fold.n * float(delta.square().sum()))
    return torch.tensor(found, dtype=torch.float64)
