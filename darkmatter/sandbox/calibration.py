"""The introduced error of an added term where it has no closed form: regression on the true factors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from darkmatter.inference import standard_error
from darkmatter.sandbox.added import Term, make_term
from darkmatter.sandbox.chunk import WorldChunk
from darkmatter.sandbox.factor_fit import check_memory, residual_variance
from darkmatter.sandbox.factor_sums import collect_sums

if TYPE_CHECKING:
    from darkmatter.sandbox.world import World

TOKENS = 32_768
"""Fewest tokens of a calibration."""

TOKENS_PER_FACTOR = 16
"""With 8, sqrt(S·C) was 1.1 to 1.5 % too large in a world of 2056 factors; with 16, 0.5 %."""

FOLDS = 6

CACHED = 16
"""Calibrations kept, with their worlds."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Variance of an added term at scale one beyond what is affine in the factors.

    Attributes:
        variance: Var N.
        relative_error: Its error over its value: the standard error, and in quadrature (p/n')² for p factors and n'
            training tokens, which is more than the second-order bias of sqrt(S·C) was wherever it was measured.
    """

    variance: float
    relative_error: float


@lru_cache(maxsize=CACHED)
def calibrated(world: World, kind: str, learned: tuple[int, ...]) -> Calibration:
    """Measure the introduced error of a deterministic term by T3, on independent tokens of a reserved stream.

    Args:
        world: The world.
        kind: "dense", "function" or "interference".
        learned: Indices of the learned features; empty for the other two kinds, which do not depend on them.

    Returns:
        The variance and its precision.
    """
    # One-token documents leave the law of a token as it is, but make the tokens independent: no topic is missed.
    tokens = replace(world, doc_tokens=1)
    factors = world.n_features + world.dense_dim
    check_memory(factors)
    term = make_term(tokens, kind, np.array(learned, dtype=np.int64), 0)
    n_tokens = max(TOKENS, TOKENS_PER_FACTOR * factors)
    folds = collect_sums(tokens, _pieces(tokens, term, n_tokens), FOLDS)
    variance, influence = residual_variance(folds, "f")
    n = torch.tensor([fold.n for fold in folds], dtype=torch.float64)
    bias = (factors / float(n.sum() - n.max())) ** 2
    return Calibration(variance, math.hypot(standard_error(influence, n), bias))


def _pieces(world: World, term: Term, n_tokens: int) -> Iterator[tuple[WorldChunk, Tensor]]:
    for index in range(-(-n_tokens // world.chunk_tokens)):
        chunk = world.chunk(index, stream="surgical calibration")
        yield chunk, torch.from_numpy(term(chunk))
