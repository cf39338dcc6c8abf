"""Laws of a feature's amplitude given that it fires: mean one, exact moments, exact expectations, fast draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError
from darkmatter.sandbox.config import check_choice, check_number
from darkmatter.theory.amplitudes import Moments, mean_one_moments

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

LAWS = ("exponential", "constant", "uniform", "half-normal", "gamma", "lognormal")
"""Laws by name."""

GAMMA_SHAPES = (0.1, 1e3)
"""Allowed shapes of the gamma law: at 0.1 one draw in 10^4 underflows in float32, at 10^3 it is nearly constant."""

LOGNORMAL_SHAPES = (1e-3, 3.0)
"""Allowed sigmas of the lognormal law; at 3 the fourth moment is already 3e23."""

POWER = 8
"""Highest power of the amplitude that the quadratures resolve."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AmplitudeLaw:
    """Law of an amplitude a > 0 with E a = 1.

    Attributes:
        name: What the configuration and reports call it.
        shape: Shape of the gamma law, sigma of the lognormal law; 1 for the others.
        moments: Raw moments (M1, M2, M3, M4), M_k = E[a^k], in closed form.
        sample: ``sample(rng, size)`` gives independent amplitudes ≥ 0, float32.
        nodes: Points of the quadrature, (q,).
        weights: Their weights, (q,), summing to 1.
    """

    name: str
    shape: float
    moments: Moments
    sample: Callable[[np.random.Generator, int], Singles]
    nodes: Floats
    weights: Floats

    def draw(self, rng: np.random.Generator, size: int) -> Singles:
        """Draw independent amplitudes.

        Args:
            rng: The generator.
            size: How many.

        Returns:
            (size,) float32, above zero: what rounds to zero becomes the smallest normal number, so that a feature
            that fires is never mistaken for one that does not.
        """
        values = self.sample(rng, size)
        return np.maximum(values, np.finfo(np.float32).tiny, out=values)

    def expectation(self, function: Callable[[Floats], Floats]) -> float:
        """E[function(a)] by quadrature.

        Relative to E|function(a)| the error is below 1e-10 for functions that are analytic around the positive axis
        and grow no faster than a^8, if they do not oscillate faster than the law is smooth (for the lognormal law with
        sigma above 1, bounded monotone functions and powers). A kink costs accuracy: about 1e-4 for |a − 1|.

        Args:
            function: Maps a float64 array to one of the same shape, entry by entry.

        Returns:
            The expectation.
        """
        return float(np.dot(self.weights, function(self.nodes)))


def amplitude_law(name: str, shape: float = 1.0) -> AmplitudeLaw:
    """Make the law of a name.

    Args:
        name: "constant", "exponential", "uniform" (on [0, 2]), "half-normal" (√(π/2) |z|), "gamma" (shape k, scale
            1/k) or "lognormal" (exp(σ z − σ²/2)).
        shape: k of the gamma law or σ of the lognormal law; the others take none, so leave it at 1.

    Returns:
        The law.

    Raises:
        InputError: An unknown name, a shape out of range, or a shape for a law that has none.
    """
    check_choice(name, "amplitude", LAWS)
    if name == "gamma":
        check_number(shape, "amplitude_shape", *GAMMA_SHAPES)
        return _gamma(name, float(shape))
    if name == "lognormal":
        check_number(shape, "amplitude_shape", *LOGNORMAL_SHAPES)
        return _lognormal(float(shape))
    if shape != 1.0:
        raise InputError(f"amplitude_shape is {shape!r}, but amplitude {name!r} has no shape: leave it at 1")
    plain = {"exponential": _exponential, "constant": _constant, "uniform": _uniform, "half-normal": _half_normal}
    return plain[name]()


def _constant() -> AmplitudeLaw:
    one = np.ones(1)
    return AmplitudeLaw(
        name="constant",
        shape=1.0,
        moments=mean_one_moments("constant"),
        sample=_draw_constant,
        nodes=one,
        weights=one,
    )


def _exponential() -> AmplitudeLaw:
    law = _gamma("exponential", 1.0)
    return AmplitudeLaw(
        name=law.name,
        shape=1.0,
        moments=mean_one_moments("exponential"),
        sample=_draw_exponential,
        nodes=law.nodes,
        weights=law.weights,
    )


def _uniform() -> AmplitudeLaw:
    x, w = np.polynomial.legendre.leggauss(200)
    return AmplitudeLaw(
        name="uniform",
        shape=1.0,
        moments=mean_one_moments("uniform"),
        sample=_draw_uniform,
        nodes=1.0 + x,
        weights=w / 2.0,
    )


def _half_normal() -> AmplitudeLaw:
    x, w = np.polynomial.legendre.leggauss(200)
    z = 8.0 * (1.0 + x)  # on [0, 16]: the tail beyond is 1e-57, times 16^8 still nothing
    weights = w * np.exp(-(z**2) / 2.0)
    return AmplitudeLaw(
        name="half-normal",
        shape=1.0,
        moments=mean_one_moments("half-normal"),
        sample=_draw_half_normal,
        nodes=math.sqrt(math.pi / 2) * z,
        weights=weights / weights.sum(),
    )


def _gamma(name: str, k: float) -> AmplitudeLaw:
    """Gamma law; the trapezoid rule in t with a = exp(t − exp(−t)), which decays doubly exponentially at both ends.

    Source: Takahasi and Mori, "Double exponential formulas for numerical integration", 1974.
    """
    t = _grid(-9.5, 12.0, 1.0 / (48.0 * max(1.0, math.sqrt(k))))
    log_a = t - np.exp(-t)
    nodes, weights = _trimmed(log_a, k * (log_a - np.exp(log_a)) + np.log1p(np.exp(-t)))
    return AmplitudeLaw(
        name=name,
        shape=k,
        moments=mean_one_moments("gamma", k),
        sample=partial(_draw_gamma, k),
        nodes=nodes,
        weights=weights,
    )


def _lognormal(sigma: float) -> AmplitudeLaw:
    """Lognormal law; the trapezoid rule in z, out to where a^8 has its mass (8 sigma)."""
    z = _grid(-14.0, 14.0 + POWER * sigma, 1.0 / 96.0)
    nodes, weights = _trimmed(sigma * z - sigma**2 / 2.0, -(z**2) / 2.0)
    return AmplitudeLaw(
        name="lognormal",
        shape=sigma,
        moments=mean_one_moments("lognormal", sigma),
        sample=partial(_draw_lognormal, sigma),
        nodes=nodes,
        weights=weights,
    )


def _grid(low: float, high: float, step: float) -> Floats:
    ticks = np.arange(math.floor(low / step), math.ceil(high / step) + 1, dtype=np.float64)
    return ticks * step


def _trimmed(log_nodes: Floats, log_weights: Floats) -> tuple[Floats, Floats]:
    """Keep the nodes that matter for 1 or for a^8, and normalise the weights."""
    matter = [size > size.max() - 80.0 for size in (log_weights, log_weights + POWER * log_nodes)]
    found = np.flatnonzero(matter[0] | matter[1])
    keep = slice(found[0], found[-1] + 1)
    nodes: Floats = np.exp(log_nodes[keep])
    weights: Floats = np.exp(log_weights[keep] - log_weights.max())
    weights /= weights.sum()
    return nodes, weights


def _draw_constant(rng: np.random.Generator, size: int) -> Singles:
    return np.ones(size, dtype=np.float32)


def _draw_exponential(rng: np.random.Generator, size: int) -> Singles:
    return rng.standard_exponential(size, dtype=np.float32)


def _draw_uniform(rng: np.random.Generator, size: int) -> Singles:
    values = rng.random(size, dtype=np.float32)
    values *= 2.0
    return values


def _draw_half_normal(rng: np.random.Generator, size: int) -> Singles:
    values = rng.standard_normal(size, dtype=np.float32)
    np.abs(values, out=values)
    values *= np.float32(math.sqrt(math.pi / 2))
    return values


def _draw_gamma(k: float, rng: np.random.Generator, size: int) -> Singles:
    values = rng.standard_gamma(k, size, dtype=np.float32)
    values /= np.float32(k)
    return values


def _draw_lognormal(sigma: float, rng: np.random.Generator, size: int) -> Singles:
    values = rng.standard_normal(size, dtype=np.float32)
    values *= np.float32(sigma)
    values -= np.float32(sigma**2 / 2.0)
    return np.exp(values, out=values)
