"""A dense part that is a continuous function of the sparse codes, and so is correlated with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from darkmatter.sandbox.amplitudes import AmplitudeLaw
from darkmatter.sandbox.chunk import sparse_product
from darkmatter.sandbox.factors import FactorMoments
from darkmatter.sandbox.features import Floats, Singles, orthonormal_rows
from darkmatter.sandbox.seeding import generator


@dataclass(frozen=True, slots=True, eq=False)
class CodeDense:
    """Dense coordinates g = Σ_i φ_i(w_i) C_i − E, with φ_i(w) = s_i tanh(w / s_i), s_i the scale of feature i.

    Saturating, so not affine in the codes; continuous, and correlated with them.

    Attributes:
        mixing: C, (m, k), scaled so that the coordinates have unit variance on average.
        scales: s, (m,).
        mean: E Σ_i φ_i(w_i) C_i, (k,).
        dense_map: F, (k, d), orthogonal rows of one length.
    """

    mixing: Floats
    scales: Floats
    mean: Floats
    dense_map: Singles

    def coords(self, codes: csr_array) -> Singles:
        """Dense coordinates of some tokens.

        Args:
            codes: w, (n, m), float32.

        Returns:
            g, (n, k), float32.
        """
        scale = self.scales.astype(np.float32)[codes.indices]
        values = scale * np.tanh(codes.data / scale)
        squashed = csr_array((values, codes.indices, codes.indptr), shape=codes.shape)
        return sparse_product(squashed, self.mixing.astype(np.float32)) - self.mean.astype(np.float32)


def value_moments(law: AmplitudeLaw, scales: Floats, *, squashed: bool) -> tuple[Floats, Floats]:
    """Moments of what a firing feature contributes: its amplitude w = s a, and with `squashed` also φ(w) = s tanh(a).

    Args:
        law: Law of a, of mean one.
        scales: s, (m,).
        squashed: Whether the second channel is there.

    Returns:
        Mean (q, m) and covariance (q, q, m), q = 1 or 2.
    """
    first, second = np.ones(1), np.array([[law.moments[1]]])
    if squashed:
        both = law.expectation(lambda a: a * np.tanh(a))
        first = np.array([1.0, law.expectation(np.tanh)])
        second = np.array([[law.moments[1], both], [both, law.expectation(lambda a: np.tanh(a) ** 2)]])
    covariance = second - np.outer(first, first)
    return first[:, None] * scales, covariance[:, :, None] * scales**2


def make_code_dense(
    moments: FactorMoments, scales: Floats, dictionary: Singles, *, dense_dim: int, share: float, seed: int
) -> CodeDense:
    """Make the coordinates and the map F for which Var D / Var x is exactly the wanted share.

    With D = a D₁ for a frame of unit rows, Var D = a² V₁ and Var x = V_S + 2 a C + a² V₁, C = tr Cov(S, D₁); so a is
    the positive root of (1 − share) V₁ a² − 2 share C a − share V_S = 0.

    Args:
        moments: Moments of the channels w and φ(w).
        scales: s, (m,).
        dictionary: Rows y_i, (m, d).
        dense_dim: k ≥ 1.
        share: Var D / Var x, in [0, 1).
        seed: The world's seed.

    Returns:
        The coordinates, with F.
    """
    m, d = dictionary.shape
    rng = generator("dense codes", seed)
    mixing = rng.standard_normal((m, dense_dim))
    silent = np.zeros((m, dense_dim))
    spread = sum(float((block**2).sum()) for block in moments.rows(np.concatenate([silent, mixing])))
    mixing *= math.sqrt(dense_dim / spread)
    frame = orthonormal_rows(generator("dense map", seed), rows=dense_dim, width=d)
    sparse = np.concatenate([dictionary.astype(np.float64), np.zeros((m, d))])
    dense = np.concatenate([np.zeros((m, d)), mixing @ frame])
    v_s = v_1 = c = 0.0
    for first, second in zip(moments.rows(sparse), moments.rows(dense), strict=True):
        v_s, v_1, c = v_s + (first**2).sum(), v_1 + (second**2).sum(), c + (first * second).sum()
    half = share * c
    a = (half + math.sqrt(half**2 + (1.0 - share) * share * v_1 * v_s)) / ((1.0 - share) * v_1)
    mean: Floats = moments.mean[m:] @ mixing
    return CodeDense(mixing=mixing, scales=scales, mean=mean, dense_map=(a * frame).astype(np.float32))
