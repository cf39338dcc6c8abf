"""A: the norm probe's R² when the directions of the features are random, in expectation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError
from darkmatter.theory.amplitudes import CodeMoments


@dataclass(frozen=True, slots=True)
class RandomDirections:
    """Expectations over m independent directions that are uniform on the unit sphere of R^d, for equal code laws.

    Attributes:
        explained: E[q Cov(x)⁺ q'], exact.
        total: E[Var ‖x‖²], exact.
        deviation: Standard deviation of Var ‖x‖² from dictionary to dictionary, exact.
    """

    explained: float
    total: float
    deviation: float

    @property
    def ratio(self) -> float:
        """Explained / total, an approximation of E R² for which `error` is a bound."""
        return self.explained / self.total

    @property
    def error(self) -> float:
        """Deviation / total: |E R² − ratio| is at most this."""
        return self.deviation / self.total


def random_directions(moments: npt.ArrayLike, *, n_features: int, d_model: int) -> RandomDirections:
    """What a norm probe explains on average over random dictionaries.

    With μ, v, k, t of the common law of the codes and r = (m − 1) / d:
        E[q Cov(x)⁺ q'] = m ((k − 2μv)² min(d, m)/m + 4μv (k − 2μv) + 4μ²v² (1 + r)) / v,
        E[Var ‖x‖²] = m (t + (4μ²v + 2v²) r).
    For codes that fire seldom (L0 ≪ d) and m ≥ d the ratio is near (d/m) M3² / (M2 M4).

    Args:
        moments: E w^r for r = 1 … 4 of the codes, after their gate, (4,).
        n_features: m ≥ 1.
        d_model: d ≥ 1.

    Returns:
        The expectations.

    Raises:
        InputError: Moments that no law has, a code that does not vary, or sizes below 1.

    Source: proofs/12_norm_probe.md.
    """
    raw = np.asarray(moments, dtype=np.float64)
    if raw.shape != (4,):
        raise InputError(f"moments have shape {raw.shape}, expected (4,): E w, E w², E w³, E w⁴")
    if n_features < 1 or d_model < 1:
        raise InputError(f"n_features and d_model are {n_features} and {d_model}, expected at least 1")
    code = CodeMoments.of(raw[:, None])
    mu, v, k, t = (float(value[0]) for value in (code.mean, code.variance, code.k, code.t))
    if v == 0.0:
        raise InputError("the code does not vary: pass the moments of a law with a variance")
    m, d = float(n_features), float(d_model)
    r, own, through = (m - 1.0) / d, k - 2.0 * mu * v, 2.0 * mu * v
    explained = (own**2 * min(d, m) / m + 2.0 * own * through + through**2 * (1.0 + r)) / v
    # Var‖x‖² = m t + one·ΣG_ij + (two + 2v²)·ΣG_ij² + two·ΣG_ij G_il, sums over different indices
    one, two = 4.0 * k * mu, 4.0 * v * mu**2
    pairs, triples = m * (m - 1.0), m * (m - 1.0) * (m - 2.0)
    single = 2.0 * pairs / d
    squares = 4.0 * pairs * (d - 1.0) / (d**2 * (d + 2.0))
    chains = 2.0 * triples / d**2 + 2.0 * triples * (m - 3.0) / d**3
    both = 2.0 * triples / d**2
    spread = one**2 * single + (two + 2.0 * v**2) ** 2 * squares + two**2 * chains + 2.0 * one * two * both
    total = m * (t + (two + 2.0 * v**2) * r)
    return RandomDirections(m * explained, total, math.sqrt(max(spread, 0.0)))
