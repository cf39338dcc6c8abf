"""Second differences of least squares in the weights of a finite law: the first order of E S and E C, exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from darkmatter.claims.strategies import Floats

Losses = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True, slots=True, eq=False)
class Expansion:
    """E S and E C of weighted least squares as functions of the weights, differentiated numerically.

    Tokens that are drawn from a finite law w have random weights ŵ = w + δ, and E S = S(w) + ½ E S''[δ, δ] + … With the
    directions δ_i − w ("more of outcome i") this needs second differences only, and no formula for them.

    Attributes:
        e: Outcomes, (n, q).
        x: Outcomes with a column of ones where an intercept is fitted, (n, p), of full column rank.
    """

    e: Floats
    x: Floats

    @property
    def step(self) -> float:
        """Step h: leverages are at most n, so h n = 1e-3 keeps the relative truncation error near 1e-6."""
        return 1e-3 / len(self.x)

    @property
    def rounding(self) -> float:
        """Truncation (h n)² and rounding ε/(h² n), relative to n σ², which bounds c; with room for constants."""
        n = len(self.x)
        return 10 * (self.step * n) ** 2 + 100 * np.finfo(np.float64).eps / self.step**2 / n

    def losses(self, weights: Floats) -> Floats:
        """Squared residuals of all outcomes under the fit to every row of weights, (m, n) → (m, n)."""
        weighted = weights[:, :, None] * self.x
        maps = np.linalg.solve(weighted.transpose(0, 2, 1) @ self.x, weighted.transpose(0, 2, 1) @ self.e)
        return np.asarray(((self.e - self.x @ maps) ** 2).sum(axis=2))

    def insample(self, directions: Floats) -> Floats:
        """½ S''[δ, δ] along every row, S(w) = Σ w |r(w)|²; (m, n) → (m,)."""
        return self._second(directions, lambda weights, losses: (weights * losses).sum(axis=1))

    def heldout(self, directions: Floats) -> Floats:
        """½ C''[δ, δ] along every row, where the fit moves and the law of new tokens does not."""
        base = self._base(directions)
        return self._second(directions, lambda _, losses: (base * losses).sum(axis=1))

    def mixed(self, directions: Floats) -> Floats:
        """Mixed second derivative of C along every row, once in the fit and once in the tokens that are predicted."""
        h, base = self.step, self._base(directions)
        up, down = self.losses(base + h * directions), self.losses(base - h * directions)
        return np.asarray((directions * (up - down)).sum(axis=1) / (2 * h))

    def _base(self, directions: Floats) -> Floats:
        return np.full_like(directions, 1.0 / len(self.x))

    def _second(self, directions: Floats, value: Losses) -> Floats:
        h, base = self.step, self._base(directions)
        up, middle, down = (value(w, self.losses(w)) for w in (base + h * directions, base, base - h * directions))
        return np.asarray((up - 2 * middle + down) / (2 * h**2))


def towards_outcomes(n: int) -> Floats:
    """Directions δ_i − w of n equally likely outcomes, (n, n)."""
    return np.eye(n) - 1.0 / n
