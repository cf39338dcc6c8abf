"""Shapes of the dense coordinates: blocks of a few coordinates with mean 0 and covariance I, drawn and integrated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Real = TypeVar("Real", np.float32, np.float64)

TUBE = 0.5
"""Small radius of a torus whose large radius is 1, before standardisation."""

ROLL = (1.5 * math.pi, 4.5 * math.pi)
"""Range of the angle, which is also the radius, of a swiss roll: one turn and a half."""

PERIOD = 512
"""Points of the trapezoid rule on a circle, exact for trigonometric polynomials of lower degree."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shape:
    """A law of n × k coordinates that consists of k / b alike, uncorrelated blocks of b coordinates.

    Attributes:
        sample: ``sample(rng, n, k)`` gives (n, k) float32 points.
        nodes: Points of a quadrature for one block, (q, b).
        weights: Their weights, (q,), summing to 1.
        symmetric: Whether −g has the law of g.
    """

    sample: Callable[[np.random.Generator, int, int], Singles]
    nodes: Floats
    weights: Floats
    symmetric: bool = True


def gaussian() -> Shape:
    """Independent standard normal coordinates; the trapezoid rule in the coordinate."""
    z = np.arange(-15 * 64, 15 * 64 + 1) / 64.0
    return _shape(_draw_gaussian, z[:, None], np.exp(-(z**2) / 2.0))


def student(df: float) -> Shape:
    """Elliptical t: z √((ν − 2) / χ²_ν) with one χ² for all coordinates of a token; ν > 4.

    A coordinate is a scaled t_ν; the trapezoid rule in s with g = sinh(π/2 sinh s) (Takahasi and Mori 1974), which
    turns the power-law tails into doubly exponential ones.
    """
    s = np.arange(-4 * 96, 4 * 96 + 1) / 96.0
    g = np.sinh(math.pi / 2 * np.sinh(s))
    density = np.exp(-(df + 1) / 2 * np.log1p(g**2 / (df - 2.0)))
    return _shape(partial(_draw_student, df), g[:, None], density * np.cosh(math.pi / 2 * np.sinh(s)) * np.cosh(s))


def sphere(k: int) -> Shape:
    """Uniform on the sphere of radius √k; a coordinate √k tanh s has density ∝ sech^(k−1) s in s."""
    step = 1.0 / (32.0 * math.sqrt(k))
    s = np.arange(-math.ceil(_sphere_reach(k) / step), math.ceil(_sphere_reach(k) / step) + 1) * step
    log_cosh = np.abs(s) + np.log1p(np.exp(-2.0 * np.abs(s))) - math.log(2.0)
    return _shape(_draw_sphere, math.sqrt(k) * np.tanh(s)[:, None], np.exp(-(k - 1) * log_cosh))


def circles() -> Shape:
    """Independent circles √2 (cos u, sin u), u uniform."""
    u = _angles(PERIOD)
    return _shape(_draw_circles, math.sqrt(2.0) * np.stack([np.cos(u), np.sin(u)], axis=1), np.ones(len(u)))


def torus() -> Shape:
    """Independent tori (ρ cos u, ρ sin u, r sin v), ρ = 1 + r cos v, u and v uniform, each axis over its deviation."""
    u, v = (grid.ravel() for grid in np.meshgrid(_angles(PERIOD // 2), _angles(PERIOD // 2), indexing="ij"))
    return _shape(_draw_torus, _torus_points(u, v), np.ones(len(u)))


def swiss_roll() -> Shape:
    """Independent rolls (t cos t, h, t sin t) less their mean, whitened; t uniform on [3π/2, 9π/2], h uniform."""
    x, w = np.polynomial.legendre.leggauss(128)
    y, v = np.polynomial.legendre.leggauss(64)
    t = ROLL[0] + (ROLL[1] - ROLL[0]) * (1.0 + np.repeat(x, len(y))) / 2.0
    points, weights = _roll_points(t, np.tile(y, len(x))), np.outer(w, v).ravel() / 4.0
    return Shape(sample=_draw_swiss_roll, nodes=points, weights=weights, symmetric=False)


def roll_whitening() -> tuple[Floats, Floats]:
    """Mean and whitening matrix of (t cos t, t sin t), t uniform on [a, b].

    The integrals over t are ∫ t e^{it} = (1 − it) e^{it} and ∫ t² e^{2it} = (−i t²/2 + t/2 + i/4) e^{2it}, so the mean
    and the covariance are exact; the matrix is the inverse of the covariance's lower Cholesky factor.

    Returns:
        (2,) mean and (2, 2) matrix W, with W (x − mean) of covariance I.
    """
    low, high = ROLL
    first = (_spiral(high) - _spiral(low)) / (high - low)
    twice = (_double_spiral(high) - _double_spiral(low)) / (high - low)
    square = (high**3 - low**3) / (3.0 * (high - low))  # E t²
    mean = np.array([first.real, first.imag])
    second = 0.5 * np.array([[square + twice.real, twice.imag], [twice.imag, square - twice.real]])
    return mean, np.linalg.inv(np.linalg.cholesky(second - np.outer(mean, mean)))


def _shape(sample: Callable[[np.random.Generator, int, int], Singles], nodes: Floats, weights: Floats) -> Shape:
    return Shape(sample=sample, nodes=nodes, weights=weights / weights.sum())


def _angles(n: int) -> Floats:
    return 2.0 * math.pi / n * np.arange(n, dtype=np.float64)


def _sphere_reach(k: int) -> float:
    """Where sech^(k−1) has fallen to e^-80."""
    return 80.0 / (k - 1) + 1.0 if k < 64 else 16.0 / math.sqrt(k - 1)


def _torus_points(u: npt.NDArray[Real], v: npt.NDArray[Real]) -> npt.NDArray[Real]:
    """(n, 3) standardised points: E ρ² cos² u = (1 + r²/2) / 2 and E r² sin² v = r²/2."""
    wide = math.sqrt(2.0 / (1.0 + TUBE**2 / 2.0))
    rho = wide * (1.0 + TUBE * np.cos(v))
    return np.stack([rho * np.cos(u), rho * np.sin(u), math.sqrt(2.0) * np.sin(v)], axis=1)


def _roll_points(t: npt.NDArray[Real], h: npt.NDArray[Real]) -> npt.NDArray[Real]:
    """(n, 3) standardised points for h uniform on [−1, 1]."""
    mean, whiten = (values.tolist() for values in roll_whitening())  # plain floats keep float32 points float32
    x, z = t * np.cos(t) - mean[0], t * np.sin(t) - mean[1]
    return np.stack([whiten[0][0] * x, math.sqrt(3.0) * h, whiten[1][0] * x + whiten[1][1] * z], axis=1)


def _spiral(t: float) -> complex:
    return complex(1.0, -t) * complex(math.cos(t), math.sin(t))


def _double_spiral(t: float) -> complex:
    return complex(t / 2.0, 0.25 - t**2 / 2.0) * complex(math.cos(2.0 * t), math.sin(2.0 * t))


def _draw_gaussian(rng: np.random.Generator, n: int, k: int) -> Singles:
    return rng.standard_normal((n, k), dtype=np.float32)


def _draw_student(df: float, rng: np.random.Generator, n: int, k: int) -> Singles:
    points = rng.standard_normal((n, k), dtype=np.float32)
    half_square = rng.standard_gamma(df / 2.0, (n, 1), dtype=np.float32)  # χ²_ν / 2
    points *= np.sqrt(np.float32(df / 2.0 - 1.0) / half_square)
    return points


def _draw_sphere(rng: np.random.Generator, n: int, k: int) -> Singles:
    points = rng.standard_normal((n, k), dtype=np.float32)
    points *= np.sqrt(np.float32(k) / np.einsum("ij,ij->i", points, points))[:, None]
    return points


def _draw_circles(rng: np.random.Generator, n: int, k: int) -> Singles:
    u = _draw_angles(rng, (n, k // 2))
    points = np.stack([np.cos(u), np.sin(u)], axis=2).reshape(n, k)
    points *= np.float32(math.sqrt(2.0))
    return points


def _draw_torus(rng: np.random.Generator, n: int, k: int) -> Singles:
    angles = _draw_angles(rng, (2, n * (k // 3)))
    return _torus_points(angles[0], angles[1]).reshape(n, k)


def _draw_swiss_roll(rng: np.random.Generator, n: int, k: int) -> Singles:
    t, h = rng.random((2, n * (k // 3)), dtype=np.float32)
    t *= np.float32(ROLL[1] - ROLL[0])
    t += np.float32(ROLL[0])
    return _roll_points(t, 2.0 * h - 1.0).reshape(n, k)


def _draw_angles(rng: np.random.Generator, shape: tuple[int, int]) -> Singles:
    angles = rng.random(shape, dtype=np.float32)
    angles *= np.float32(2.0 * math.pi)
    return angles
