"""Cases for the claims about optimism: finite laws, Gaussian designs and token streams."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from darkmatter.claims.strategies import Floats, seeds, small_matrices
from darkmatter.theory.population import residual, variance

REPLICATES = 800
"""Replicates of a Gaussian design that are averaged."""

TARGETS = 4
"""Independent targets of every replicate."""


@dataclass(frozen=True, slots=True)
class Law:
    """Equally likely outcomes: a misspecified, heteroscedastic regression of q targets on d regressors."""

    d: int
    q: int
    extra: int
    curve: float
    seed: int

    def arrays(self) -> tuple[Floats, Floats]:
        """Errors and activations; the error depends on x beyond a line and its size grows with |x|."""
        rng = np.random.default_rng(self.seed)
        x = rng.standard_normal((self.d + 3 + self.extra, self.d)) + 0.5
        noise = rng.standard_normal((len(x), self.q))
        size = (x**2).sum(axis=1, keepdims=True)
        return noise * np.sqrt(0.2 + size) + self.curve * size, x


laws = st.builds(
    Law, d=st.integers(1, 3), q=st.integers(1, 3), extra=st.integers(0, 6), curve=st.floats(-1, 1), seed=seeds()
)


@dataclass(frozen=True, slots=True)
class Design:
    """Replicates of a Gaussian design with noise of variance a + b xΣ⁻¹x'."""

    d: int
    n: int
    a: float
    b: float
    mean: float
    seed: int

    def halves(self) -> Floats:
        """S and C of every replicate, C in its conditional expectation given the fit, (replicates, 2)."""
        rng = np.random.default_rng(self.seed)
        z = rng.standard_normal((REPLICATES, self.n, self.d))
        size = np.sqrt(self.a + self.b * (z**2).sum(axis=2, keepdims=True))
        e = rng.standard_normal((REPLICATES, self.n, TARGETS)) * size
        # least squares does not see an affine change of x, so the mean is moved and Σ = I kept
        x = z + self.mean
        middle, level = x.mean(axis=1, keepdims=True), e.mean(axis=1, keepdims=True)
        x, e = x - middle, e - level
        h = x.transpose(0, 2, 1) @ e
        maps = np.linalg.solve(x.transpose(0, 2, 1) @ x, h)
        s = ((e**2).sum(axis=(1, 2)) - (h * maps).sum(axis=(1, 2))) / self.n
        offset = level + (self.mean - middle) @ maps  # prediction at the population mean, where 0 is right
        c = TARGETS * (self.a + self.b * self.d) + (offset**2).sum(axis=(1, 2)) + (maps**2).sum(axis=(1, 2))
        return np.column_stack([s, c]) / TARGETS


@st.composite
def designs(draw: st.DrawFn, *, constant: bool) -> Design:
    """Gaussian designs with so many tokens that C has the moments which a standard error needs.

    Args:
        draw: Supplied by hypothesis.
        constant: Noise of variance one, else one that grows with |x|².

    Returns:
        The design.
    """
    d = draw(st.integers(1, 5))
    n = d + draw(st.integers(16, 36))
    b = 0.0 if constant else draw(st.floats(0.1, 2.0))
    return Design(d, n, 1.0 if constant else draw(st.floats(0.0, 1.0)), b, draw(st.floats(-3, 3)), draw(seeds()))


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a skewed design with a thresholded reconstruction, each its own document."""

    d: int
    folds: int
    extra: int
    offset: float
    seed: int

    def arrays(self) -> tuple[Floats, Floats]:
        """The activations and their reconstructions."""
        rng = np.random.default_rng(self.seed)
        x = rng.standard_exponential((16 * self.d + 8 + self.extra, self.d)) * rng.exponential(size=self.d)
        return x + self.offset, np.maximum(x - 0.5, 0.0) + 0.3 * rng.standard_normal(x.shape)


tokens = st.builds(
    Tokens,
    d=st.integers(1, 3),
    folds=st.integers(2, 6),
    extra=st.integers(0, 20),
    offset=st.floats(0, 2),
    seed=seeds(),
)


@st.composite
def small_laws(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """A few equally likely outcomes of (x, e), whole numbers, whose e is not affine in x.

    Args:
        draw: Supplied by hypothesis.

    Returns:
        x and e, (n, 1) each.
    """
    n = draw(st.integers(2, 6))
    both = draw(small_matrices(n, 2, most=2).filter(lambda a: variance(residual(a[:, 1:], a[:, :1])) > 0.01))
    return both[:, :1], both[:, 1:]


def show_law(law: tuple[Floats, Floats]) -> str:
    """Write a law of `small_laws` for people."""
    outcomes = ", ".join(f"({x:g}, {e:g})" for x, e in zip(law[0][:, 0], law[1][:, 0], strict=True))
    return f"{len(law[0])} equally likely outcomes (x, e): {outcomes}"
