"""Margins of the interval theorem about folds: what se² estimates, clustered tokens, degrees of freedom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from darkmatter.claims.claim import Margin, agrees, at_most, equals, worst
from darkmatter.claims.strategies import Floats, seeds
from darkmatter.inference import relative_influence, residual_influence, standard_error
from darkmatter.theory.influence import design_effect, fold_variance, residual_spread

_EPS = float(np.finfo(np.float64).eps)


def fold_sizes() -> st.SearchStrategy[list[int]]:
    """Tokens of two to five folds."""
    return st.lists(st.integers(1, 60), min_size=2, max_size=5)


def _squared_error(influence: Floats, n: Floats, *, wrong: str = "") -> float:
    """The product's se², or a wrong one."""
    if wrong == "unweighted":
        return float(((influence - influence.mean()) ** 2).sum() / (len(n) * (len(n) - 1)))
    error = standard_error(torch.from_numpy(influence), torch.from_numpy(n)) ** 2
    return error * (len(n) - 1) / len(n) if wrong == "divided by K" else error


def _expected(root: Floats, n: Floats) -> float:
    """E se² for fold influences with covariance root root': tr(Q root root'), Q the form of se²."""
    return sum(_squared_error(np.ascontiguousarray(column), n) for column in root.T)


def student(sizes: list[int], *, wrong: str = "") -> Margin:
    """Whether (K − 1) se² / Var ψ̄ is a projection of rank K − 1 that the mean does not see: Cochran's theorem."""
    n = np.array(sizes, dtype=np.float64)
    unit = np.diag(1.0 / np.sqrt(n))  # standard deviations of fold means, τ = 1
    alone = [_squared_error(row, n, wrong=wrong) for row in unit]
    form = np.diag(alone)
    for j in range(len(n)):
        for k in range(j):
            both = _squared_error(unit[j] + unit[k], n, wrong=wrong)
            form[j, k] = form[k, j] = (both - alone[j] - alone[k]) / 2.0
    form *= (len(n) - 1) * n.sum()
    largest = float(np.abs(form).max()) + 1.0
    rounding = 100 * _EPS * len(n) ** 2
    return worst(
        equals(form @ form, form, scale=largest**2, rounding=rounding),
        equals(np.trace(form), len(n) - 1.0, scale=largest, rounding=rounding),
        equals(form @ np.sqrt(n / n.sum()), 0.0, scale=largest, rounding=rounding),
    )


@dataclass(frozen=True, slots=True)
class Folds:
    """Sizes of folds and the variances of their influences."""

    pairs: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return "folds of " + " and ".join(f"{n} tokens with variance {v}" for n, v in self.pairs)


def folds() -> st.SearchStrategy[Folds]:
    """Two or three folds whose variances have nothing to do with their sizes."""
    pairs = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=2, max_size=3)
    return st.builds(Folds, pairs.map(tuple))


def unbiased(case: Folds, *, assumed: str = "") -> Margin:
    """E se² = Var ψ̄, for the variances drawn or for v_k = 1/n_k; the product's se² against the true variance."""
    n, v = np.array(case.pairs, dtype=np.float64).T
    if assumed == "v = 1/n":
        v = 1.0 / n
    true = fold_variance(n, v).true
    expected = _expected(np.diag(np.sqrt(v)), n)
    return equals(expected, true, scale=float(v.max()) + 1.0, rounding=100 * _EPS)


def expectation(case: Folds, *, wrong: str = "") -> Margin:
    """The closed form of E se² against the product's."""
    n, v = np.array(case.pairs, dtype=np.float64).T
    closed = fold_variance(n, v)
    value = closed.true if wrong == "as if unbiased" else closed.expected
    return equals(_expected(np.diag(np.sqrt(v)), n), value, scale=float(v.max()) + 1.0, rounding=100 * _EPS)


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents of equal length, dealt to folds as a whole; two tokens of one document correlate by quarters / 4."""

    per_fold: tuple[int, ...]
    tokens: int
    quarters: int

    def __str__(self) -> str:
        return f"{sum(self.per_fold)} documents of {self.tokens} tokens, correlation {self.quarters / 4:g}"


def documents() -> st.SearchStrategy[Documents]:
    """A few short documents."""
    per_fold = st.lists(st.integers(1, 3), min_size=2, max_size=4).map(tuple)
    return st.builds(Documents, per_fold, st.integers(1, 4), st.integers(0, 4))


def token_errors(case: Documents, *, unit: str = "token") -> Margin:
    """Var of the mean ≤ E se², with every token a fold of its own or with folds of whole documents."""
    count, t = sum(case.per_fold), case.tokens
    rho, total = case.quarters / 4.0, count * t
    # influences of unit variance: a common part per document and a part of every token's own
    common = np.repeat(np.eye(count), t, axis=0)
    root = np.hstack([np.sqrt(rho) * common, np.sqrt(1.0 - rho) * np.eye(total)])
    true = design_effect(np.full(count, t), rho) / total
    if unit == "token":
        return at_most(true, _expected(root, np.ones(total)), scale=1.0, rounding=100 * _EPS)
    n = np.array(case.per_fold, dtype=np.float64) * t
    means = np.repeat(np.eye(len(n)), n.astype(int), axis=0).T / n[:, None]
    return at_most(true, _expected(means @ root, n), scale=1.0, rounding=100 * _EPS)


@dataclass(frozen=True, slots=True)
class Sums:
    """Var e and Var x of equally large folds."""

    pairs: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        e, x = (" ".join(map(str, values)) for values in zip(*self.pairs, strict=True))
        return f"equal folds with Var e = {e} and Var x = {x}"


def fold_sums() -> st.SearchStrategy[Sums]:
    """Two to four folds."""
    pairs = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=4)
    return st.builds(Sums, pairs.map(tuple))


def known_denominator(case: Sums, *, assumed: str = "") -> Margin:
    """The standard error of log FVU changes by at most a tenth when Var x is taken as known."""
    e, x = torch.tensor(case.pairs, dtype=torch.float64).T
    if assumed == "equal":
        x = torch.ones_like(x)
    n = torch.ones_like(e)
    top = relative_influence(e, n)
    right, short = standard_error(top - relative_influence(x, n), n), standard_error(top, n)
    return at_most(abs(right - short), 0.1 * right, scale=1.0, rounding=100 * _EPS)


@dataclass(frozen=True, slots=True)
class Noise:
    """Gaussian noise on q targets beside a fixed design, many times."""

    n: int
    rank: int
    targets: int
    seed: int

    def variances(self, repeats: int) -> Floats:
        """Unbiased residual variances of noise of variance 1, (repeats,)."""
        rng = np.random.default_rng(self.seed)
        design = np.hstack([np.ones((self.n, 1)), rng.exponential(1.0, (self.n, self.rank))])
        basis = np.linalg.qr(design)[0]
        noise = rng.standard_normal((self.n, repeats * self.targets))
        left = (noise**2).sum(axis=0) - ((basis.T @ noise) ** 2).sum(axis=0)
        return np.asarray(left.reshape(repeats, -1).mean(axis=1) / (self.n - self.rank - 1))


@st.composite
def noises(draw: st.DrawFn) -> Noise:
    """Designs that use up a quarter to two thirds of the tokens."""
    n = draw(st.integers(24, 48))
    return Noise(n, draw(st.integers(n // 4, 2 * n // 3)), draw(st.integers(1, 2)), draw(seeds()))


def degrees(case: Noise, *, widened: bool = True) -> Margin:
    """Var σ̂²/σ⁴ of many draws against 2 / (n q) times the square of the product's widening."""
    squares = (case.variances(1500) - 1.0) ** 2
    n, sums = torch.tensor([1.0 * case.n - 1.0, 1.0]), torch.tensor([2.0 * case.n, 1.0])
    factor = float((residual_influence(sums, n, case.rank) / relative_influence(sums, n))[0]) ** 2
    truth = 2.0 / (case.n * case.targets) * (factor if widened else 1.0)
    if widened and abs(truth / residual_spread(case.n, case.rank, case.targets) - 1.0) > 1e-6:
        return Margin(-1.0)  # the product's factor is not the page's
    return agrees(squares.mean(), truth, squares.std(ddof=1) / np.sqrt(len(squares)), limit=6.0)
