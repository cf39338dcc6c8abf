"""The true factors of a world as one vector (w, g), with the product that their covariance defines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from darkmatter.sandbox.factors import FactorMoments
    from darkmatter.sandbox.features import Floats
    from darkmatter.sandbox.world import World


@dataclass(frozen=True, slots=True, eq=False)
class FactorSpace:
    """The m codes w and k dense coordinates g of a world, f = (w, g), and Cov f, which is never formed.

    An affine function of the factors is a table of coefficients B, (m + k, j), for f B. The dense coordinates have
    covariance I and are independent of w; or they are functions of the codes, g = phi(w) C − mean. Then the world's
    sparse channels are (w, phi(w)), and w B_w + g B_g has the channel coefficients (B_w, C B_g).

    Attributes:
        moments: Moments of the sparse channels.
        n_features: m.
        dense_codes: C, (m, k), where the dense coordinates are functions of the codes.
        true: Coefficients of x itself: rows y_i, then the rows of F, (m + k, d), float64.
    """

    moments: FactorMoments
    n_features: int
    dense_codes: Floats | None
    true: Floats

    @staticmethod
    def of(world: World) -> FactorSpace:
        """The factors of a world."""
        return FactorSpace(
            moments=world.factor_moments,
            n_features=world.n_features,
            dense_codes=world.dense_codes,
            true=np.vstack([world.dictionary_matrix, world.dense_map]).astype(np.float64),
        )

    def rows(self, coefficients: Floats) -> Iterator[Floats]:
        """Blocks of rows R with Σ R'R = Cov(f B): squares, which cannot turn negative by cancellation.

        Args:
            coefficients: B, (m + k, j).

        Yields:
            (rows, j).
        """
        sparse, dense = coefficients[: self.n_features], coefficients[self.n_features :]
        if self.dense_codes is not None:
            yield from self.moments.rows(np.vstack([sparse, self.dense_codes @ dense]))
            return
        yield from self.moments.rows(sparse)
        yield dense

    def apply(self, coefficients: Floats) -> Floats:
        """Multiply by the covariance: Cov(f) @ B.

        Args:
            coefficients: B, (m + k, j).

        Returns:
            (m + k, j).
        """
        m = self.n_features
        sparse, dense = coefficients[:m], coefficients[m:]
        if self.dense_codes is None:
            return np.vstack([self.moments.apply(sparse), dense])
        image = self.moments.apply(np.vstack([sparse, self.dense_codes @ dense]))
        return np.vstack([image[:m], self.dense_codes.T @ image[m:]])

    def variance(self, coefficients: Floats) -> float:
        """Var(f B), the trace of its covariance."""
        return float(sum(float((block**2).sum()) for block in self.rows(coefficients)))

    def covariance(self, coefficients: Floats) -> Floats:
        """Cov(f B), (j, j)."""
        width = coefficients.shape[1]
        total = np.zeros((width, width))
        for block in self.rows(coefficients):
            total += block.T @ block
        return total

    def covariances(self, parts: dict[str, Floats], images: dict[str, Floats]) -> dict[str, float]:
        """Covariances (traces) of sums over disjoint groups of factors: one per group, and "cross" between groups.

        Args:
            parts: Coefficients A by group, (m + k, j), zero outside the group.
            images: Cov(f) B_group by group.

        Returns:
            tr(A_g' Cov(f) B_g) for every group g, and "cross", the sum of tr(A_g' Cov(f) B_h) over g ≠ h.
        """
        found = {name: float((part * images[name]).sum()) for name, part in parts.items()}
        found["cross"] = sum(
            float((part * image).sum())
            for name, part in parts.items()
            for other, image in images.items()
            if other != name
        )
        return found


def groups(learned: np.ndarray[tuple[int], np.dtype[np.bool_]], dense_dim: int) -> dict[str, Floats]:
    """The three groups of factors that the affine error is split among, as columns of zeros and ones.

    Args:
        learned: Which features the SAE has learned, (m,).
        dense_dim: k.

    Returns:
        Masks (m + k, 1) by name: "absent", "linear" (the learned features), "dense".
    """
    off = np.zeros(dense_dim, dtype=bool)
    masks = {
        "absent": np.concatenate([~learned, off]),
        "linear": np.concatenate([learned, off]),
        "dense": np.concatenate([np.zeros_like(learned), ~off]),
    }
    return {name: mask[:, None].astype(np.float64) for name, mask in masks.items()}
