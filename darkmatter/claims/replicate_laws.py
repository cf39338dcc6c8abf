"""Cases for T8: finite laws of two or more SAEs on the same tokens, exact in their moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.strategies import Floats, seeds, small_matrices
from darkmatter.theory.population import covariance, predicted, residual, variance
from darkmatter.theory.replicates import Overlap


def rows(a: Floats) -> str:
    """A matrix on one line, without the rounding of zeros."""
    return "[" + "; ".join(" ".join(f"{round(v, 9) + 0.0:.4g}" for v in row) for row in a) + "]"


@st.composite
def _whole_numbers(draw: st.DrawFn, n: int, d: int, readable: bool) -> Floats:
    """Small whole numbers, many of them zero: one draw each where a case is read and shrunk, else by a seed."""
    if readable:
        return draw(small_matrices(n, d))
    rng = np.random.default_rng(draw(seeds()))
    return np.asarray(rng.integers(-3, 4, (n, d)) * (rng.random((n, d)) < rng.uniform(0.2, 1.2)), dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Equally likely outcomes of the factors and of two reconstructions; x = f A.

    Attributes:
        factors: f, (n, m).
        true: A, (m, d).
        a: Sae_a, (n, d), anything at all.
        b: Sae_b.
    """

    factors: Floats
    true: Floats
    a: Floats
    b: Floats

    @property
    def x(self) -> Floats:
        """The activations."""
        return self.factors @ self.true

    @property
    def scale(self) -> float:
        """What rounding is proportional to."""
        return variance(self.x) + variance(self.a) + variance(self.b) + 1.0

    def parts(self, recon: Floats) -> tuple[Floats, Floats, Floats]:
        """The residual r, the interference q and the introduced error N of a reconstruction."""
        affine = predicted(recon, self.factors)
        return residual(self.x - recon, self.x), residual(affine, self.x), residual(recon, self.factors)

    def __str__(self) -> str:
        return (
            f"{len(self.a)} equally likely outcomes: f = {rows(self.factors)}, A = {rows(self.true)}, "
            f"a = {rows(self.a)}, b = {rows(self.b)}"
        )


@st.composite
def pairs(draw: st.DrawFn, *, response: str = "any", instrument: bool = False, readable: bool = False) -> Pair:
    """Pairs of reconstructions of one law of the factors.

    Args:
        draw: Supplied by hypothesis.
        response: "any"; "shifted": the affine parts of a and b differ by an affine function of x, so that q_a = q_b;
            "proportional": that of b is a multiple of that of a, and Cov(N_a, N_b) ≥ 0.
        instrument: x varies and Cov(x, b) ≥ Var x, for a multiple of x is added to both where it is less.
        readable: For claims that are false: a counterexample shrinks to small numbers.

    Returns:
        The pair.
    """
    n, m, d = draw(st.integers(2, 8)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    numbers = draw(_whole_numbers(n + d, m + 2 * d, readable))
    factors, a, b = np.split(numbers[:n], [m, m + d], axis=1)
    true = numbers[n:, :m].T
    if instrument and not variance(factors @ true) > 0.0:
        factors, true = np.zeros((n, m)), np.zeros((m, d))
        factors[0, 0] = true[0, 0] = 1.0
    x = factors @ true
    if response == "shifted":
        b = predicted(a, factors) + x @ numbers[n:, m : m + d] + residual(b, factors)
    if instrument:
        least = min(covariance(x, a), covariance(x, b))
        steps = max(0.0, np.ceil(1.0 - least / variance(x)))
        a, b = a + steps * x, b + steps * x
    if response == "proportional":
        n_a, n_b = residual(a, factors), residual(b, factors)
        b = draw(st.floats(0.5, 2.0)) * predicted(a, factors) + (n_b if covariance(n_a, n_b) >= 0.0 else -n_b)
    return Pair(factors, true, a, b)


@dataclass(frozen=True, slots=True, eq=False)
class Nested:
    """Equally likely outcomes of Z, E_a, E_b, U, N_a, N_b, all uncorrelated but N_a and N_b with each other.

    x = Z + E_a + E_b + U, a = (1 − s_a)(Z + E_a) + N_a, b = (1 − s_b)(Z + E_b) + N_b.

    Attributes:
        parts: Z, E_a, E_b, U, N_a, N_b, (6, n, d).
        shrinkages: s_a, s_b.
    """

    parts: Floats
    shrinkages: tuple[float, float] = (0.0, 0.0)

    @property
    def x(self) -> Floats:
        """The activations."""
        return np.asarray(self.parts[:4].sum(axis=0))

    @property
    def a(self) -> Floats:
        """Sae_a."""
        return np.asarray((1.0 - self.shrinkages[0]) * (self.parts[0] + self.parts[1]) + self.parts[4])

    @property
    def b(self) -> Floats:
        """Sae_b."""
        return np.asarray((1.0 - self.shrinkages[1]) * (self.parts[0] + self.parts[2]) + self.parts[5])

    @property
    def uneven_b(self) -> Floats:
        """Another b, which shrinks the second coordinate of Z more than the first."""
        kept = np.array([1.0, 0.25])[: self.parts.shape[2]]
        return np.asarray((1.0 - self.shrinkages[1]) * self.parts[0] * kept + self.parts[5])

    @property
    def scale(self) -> float:
        """What rounding is proportional to."""
        return sum(variance(part) for part in self.parts) + 1.0

    @property
    def overlap(self) -> Overlap:
        """The same pair in traces."""
        z, e_a, e_b, _, n_a, n_b = self.parts
        return Overlap(
            common=variance(z),
            only_a=variance(e_a),
            only_b=variance(e_b),
            shrinkage_a=self.shrinkages[0],
            shrinkage_b=self.shrinkages[1],
            introduced_a=variance(n_a),
            introduced_b=variance(n_b),
            introduced_ab=covariance(n_a, n_b),
        )

    def __str__(self) -> str:
        names = ("Z", "E_a", "E_b", "U", "N_a", "N_b")
        shown = [f"{name} = {rows(part)}" for name, part in zip(names, self.parts, strict=True) if part.any()]
        text = f"{self.parts.shape[1]} equally likely outcomes: " + ", ".join(shown)
        return text + (f", s = {self.shrinkages[0]:.3g}, {self.shrinkages[1]:.3g}" if any(self.shrinkages) else "")


@st.composite
def nested(
    draw: st.DrawFn,
    *,
    nested: bool = True,
    shrinkage: str = "none",
    instrument: bool = False,
    readable: bool = False,
) -> Nested:
    """Pairs whose parts are uncorrelated, by projection.

    Args:
        draw: Supplied by hypothesis.
        nested: E_b = 0: a has learned all that b has.
        shrinkage: "none", "any" in [0, 0.9], or "ordered", b shrinking no less than a.
        instrument: Var Z ≥ 1, by a fixed pattern where it would not be, and Cov(N_a, N_b) ≥ 0.
        readable: For claims that are false: a counterexample shrinks to small numbers.

    Returns:
        The pair.
    """
    d = draw(st.integers(1, 2))
    n = draw(st.integers(4 * d + 2, 4 * d + 5))
    parts = draw(_whole_numbers(6 * n, d, readable)).reshape(6, n, d)
    if instrument and variance(parts[0]) < 1.0:
        parts[0, :, 0] = np.where(np.arange(n) % 2, 2.0, -2.0)
    if nested:
        parts[2] = 0.0
    known = parts[0]
    for i in range(1, 6):
        parts[i] = residual(parts[i], known)
        if i < 4:
            known = np.hstack([known, parts[i]])
    if instrument and covariance(parts[4], parts[5]) < 0.0:
        parts[5] = -parts[5]
    pair = (0.0, 0.0)
    if shrinkage != "none":
        first, second = draw(st.floats(0.0, 0.9)), draw(st.floats(0.0, 0.9))
        pair = (min(first, second), max(first, second)) if shrinkage == "ordered" else (first, second)
    return Nested(parts, pair)


@dataclass(frozen=True, slots=True)
class Replicates:
    """J SAEs with one interference q and introduced errors whose covariances are not negative, in traces.

    Attributes:
        interference: Var q.
        loadings: Introduced error j is a sum of uncorrelated parts with these weights ≥ 0, (J, parts).
    """

    interference: float
    loadings: tuple[tuple[float, ...], ...]

    @property
    def introduced(self) -> Floats:
        """Cov(N_i, N_j), (J, J)."""
        weights = np.array(self.loadings)
        return np.asarray(weights @ weights.T)

    @property
    def residuals(self) -> Floats:
        """Cov(r_i, r_j), (J, J)."""
        return np.asarray(self.introduced + self.interference)


@st.composite
def replicates(draw: st.DrawFn) -> Replicates:
    """Two to six replicates."""
    count, parts = draw(st.integers(2, 6)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(seeds()))
    # quarters: two loadings are equal or differ clearly, which bounds the weights of the best combination
    weights = rng.integers(0, 5, (count, parts)) / 4.0 * (rng.random((count, parts)) < draw(st.floats(0.1, 1.0)))
    loadings = tuple(tuple(float(w) for w in row) for row in weights)
    return Replicates(draw(st.floats(0.0, 2.0)), loadings)


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Equally likely outcomes of the nonlinear residuals of J SAEs, (J, n, d)."""

    r: Floats

    def __str__(self) -> str:
        return "; ".join(f"r_{j} = {rows(r)}" for j, r in enumerate(self.r, start=1))


@st.composite
def families(draw: st.DrawFn) -> Family:
    """Two to five residuals without any structure."""
    count, n, d = draw(st.integers(2, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    return Family(draw(_whole_numbers(count * n, d, False)).reshape(count, n, d))


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One law of (x, a, b), and how often in four, at random, a list of factors holds the residuals beside x."""

    pair: Pair
    known: int

    def __str__(self) -> str:
        return f"{self.pair}; the factors hold r_a and r_b {self.known} times in 4"


def readings() -> st.SearchStrategy[Reading]:
    """Pairs with lists of factors from x alone to x and both residuals."""
    return st.builds(Reading, pairs(), st.integers(0, 4))
