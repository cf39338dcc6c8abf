"""First two moments of the true factors, with a covariance that is never a dense m × m matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from darkmatter.sandbox.features import AmplitudeLaw, Floats, Singles
from darkmatter.sandbox.sampling import FiringLaw

ROWS = 8192
"""Dictionary rows converted to float64 at a time."""


@dataclass(frozen=True, slots=True)
class FactorMoments:
    """Mean and covariance of the sparse factors w: E w = mean, Cov w = diag(diagonal) + low_rank low_rank'.

    Attributes:
        mean: (m,).
        diagonal: (m,) mean over topics of the variance given the topic.
        low_rank: (m, T) deviation of E[w | topic] from E w, divided by √T.
    """

    mean: Floats
    diagonal: Floats
    low_rank: Floats


def factor_moments(law: FiringLaw, amplitude: AmplitudeLaw) -> FactorMoments:
    """Moments of w_i = (fires) · (amplitude) with a topic drawn uniformly from T.

    By the law of total covariance, with p_i(t) the firing probability and M1, M2 raw moments of the amplitude:
    diagonal_i = E_t[p_i(t) M2 − p_i(t)² M1²], low_rank_it = M1 (p_i(t) − p_i) / √T.

    Args:
        law: Firing probabilities by topic.
        amplitude: Law of the amplitudes.

    Returns:
        The moments, float64.
    """
    first, second, _, _ = amplitude.moments
    total = law.n_topics
    mean = (law.own + (total - 1) * law.other) / total
    square = (law.own**2 + (total - 1) * law.other**2) / total
    at_topic = np.repeat(law.other[:, None], total, axis=1)
    np.put_along_axis(at_topic, law.topic[:, None], law.own[:, None], axis=1)
    return FactorMoments(
        mean=first * mean,
        diagonal=second * mean - first**2 * square,
        low_rank=first * (at_topic - mean[:, None]) / np.sqrt(total),
    )


def row_blocks(dictionary: Singles) -> Iterator[tuple[slice, Floats]]:
    """Yield the dictionary in float64, some rows at a time, with the slice they come from.

    Args:
        dictionary: (m, d), float32.

    Yields:
        (slice, rows as float64).
    """
    for start in range(0, len(dictionary), ROWS):
        rows = slice(start, start + ROWS)
        yield rows, dictionary[rows].astype(np.float64)


def combine_rows(weights: Floats, dictionary: Singles) -> Floats:
    """Weighted sums of dictionary rows, weights' @ dictionary, in float64.

    Args:
        weights: (m, j).
        dictionary: (m, d), float32.

    Returns:
        (j, d).
    """
    total = np.zeros((weights.shape[1], dictionary.shape[1]))
    for rows, y in row_blocks(dictionary):
        total += weights[rows].T @ y
    return total
