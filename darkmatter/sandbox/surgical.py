"""Surgical SAEs: built from a world's true parts, so that every part of their error is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from darkmatter.errors import InputError
from darkmatter.sandbox.chunk import WorldChunk, check_features
from darkmatter.sandbox.config import check_int, check_number
from darkmatter.sandbox.features import row_norms
from darkmatter.sandbox.population import population_covariance
from darkmatter.sandbox.seeding import generator

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Floats, Integers, Singles
    from darkmatter.sandbox.world import World

KINDS = ("none", "independent", "heteroscedastic", "function")

GAIN = 3.0
"""Slope of the tanh of kind "function", per standard deviation of its argument."""

CALIBRATION_CHUNKS = 8
"""Chunks of the reserved stream that fix the scale of kind "function": about 32,000 independent tokens."""


@dataclass(frozen=True, kw_only=True)
class Surgical:
    """Sae(x) = (1 − s) S1 + N: it knows some features exactly, shrinks them, and adds error of a chosen kind.

    Kinds of N, each scaled so that Var N = introduced_share · Var x in the population:
    "none";
    "independent": σ g, with g ~ N(0, I_d);
    "heteroscedastic": c ‖x‖ g, for which Var N = c² d E‖x‖² exactly;
    "function": c Σ_j tanh(3 y_j·(x − E x) / sd(y_j·x)) y_j over the min(m, d) most frequent features: continuous and
    deterministic, hence correlated with x. Its c alone is numerical, from 32,768 tokens of a reserved stream.

    Attributes:
        learned: Features that S1 holds: an int takes that many of the most frequent, a float in (0, 1] that share
            of them, a sequence these indices. 0 is a dead SAE.
        shrinkage: s in [0, 1).
        introduced: Kind of N.
        introduced_share: Var N / Var x, ≥ 0.
        seed: Seeds the Gaussian draws, together with stream and chunk; two seeds give independent N.
    """

    learned: int | float | Sequence[int]
    shrinkage: float = 0.0
    introduced: Literal["none", "independent", "heteroscedastic", "function"] = "none"
    introduced_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.learned, int | float):  # a tuple, so that equal SAEs compare and hash equal
            index = check_features(self.learned, None)
            object.__setattr__(self, "learned", tuple(index.tolist()))
        elif isinstance(self.learned, float):
            if not 0.0 < self.learned <= 1.0:
                raise InputError(
                    f"learned is the float {self.learned!r}, expected a share in (0, 1]: pass an int for a number"
                )
        else:
            check_int(self.learned, "learned", 0)
        check_number(self.shrinkage, "shrinkage", 0.0, 1.0, closed=False)
        if self.introduced not in KINDS:
            raise InputError(f"introduced is {self.introduced!r}, expected one of {', '.join(KINDS)}")
        check_number(self.introduced_share, "introduced_share", 0.0, np.inf)
        if self.introduced == "none" and self.introduced_share > 0.0:
            raise InputError(
                f"introduced_share is {self.introduced_share:g} with introduced='none': choose a kind of introduced "
                f"error ({', '.join(KINDS[1:])})"
            )
        check_int(self.seed, "seed", 0)

    def features(self, n_features: int) -> Integers:
        """Indices of the learned features in a world of m features.

        Args:
            n_features: m.

        Returns:
            int64 indices.

        Raises:
            InputError: More features, or a higher index, than the world has.
        """
        if isinstance(self.learned, float):
            return np.arange(max(1, round(self.learned * n_features)), dtype=np.int64)
        if isinstance(self.learned, int):
            if self.learned > n_features:
                raise InputError(f"learned is {self.learned}, expected at most the world's {n_features} features")
            return np.arange(self.learned, dtype=np.int64)
        return check_features(self.learned, n_features)

    def bind(self, world: World) -> BoundSurgical:
        """Fit this SAE to a world: resolve its features and the scale of its introduced error.

        Args:
            world: The world.

        Returns:
            The SAE, ready to reconstruct the world's chunks.

        Raises:
            InputError: More features, or a higher index, than the world has.
        """
        features = self.features(world.n_features)
        wanted = self.introduced_share * world.variance
        squash = None
        unit = float(world.d_model)  # Var N at scale 1
        if self.introduced == "heteroscedastic":
            unit *= world.variance + float(world.mean @ world.mean)
        elif self.introduced == "function":
            squash = _squash(world)
            unit = _calibration_variance(world, squash)
        return BoundSurgical(
            config=self,
            features=features,
            scale=float(np.sqrt(wanted / unit)),
            squash=squash,
            chunk_tokens=world.chunk_tokens,
        )

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON types."""
        return {"kind": "surgical", **asdict(self)}


@dataclass(frozen=True, slots=True)
class Squash:
    """A bounded continuous function of x: Σ_j tanh(slope_j y_j·(x − mean)) y_j.

    Attributes:
        mean: (d,).
        directions: Rows y_j, (j, d).
        slopes: (j,).
    """

    mean: Singles
    directions: Singles
    slopes: Singles

    def __call__(self, x: Singles) -> Singles:
        """Apply to (n, d) activations."""
        return np.tanh((x - self.mean) @ self.directions.T * self.slopes) @ self.directions


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundSurgical:
    """A surgical SAE bound to one world.

    Attributes:
        config: The configuration.
        features: Indices of the learned features.
        scale: σ or c, the factor on the introduced error.
        squash: The function, for kind "function".
        chunk_tokens: Tokens of a whole chunk of the world, for which Gaussian error is drawn at once.
    """

    config: Surgical
    features: Integers
    scale: float
    squash: Squash | None
    chunk_tokens: int

    def learned_part(self, chunk: WorldChunk) -> Singles:
        """The learned sparse part S1, (n, d)."""
        return chunk.sparse_part(self.features)

    def introduced(self, chunk: WorldChunk) -> Singles:
        """The introduced error N, (n, d); of a cut chunk, the same rows that the whole chunk has."""
        scale = np.float32(self.scale)
        if scale == 0.0:
            return np.zeros_like(chunk.x)
        if self.squash is not None:
            return scale * self.squash(chunk.x)
        rng = generator("surgical", self.config.seed, chunk.stream, chunk.index)
        noise = rng.standard_normal((self.chunk_tokens, chunk.x.shape[1]), dtype=np.float32)
        noise = noise[chunk.first_row : chunk.first_row + len(chunk)]
        if self.config.introduced == "heteroscedastic":
            noise *= row_norms(chunk.x)[:, None].astype(np.float32)
        noise *= scale
        return noise

    def recon(self, chunk: WorldChunk) -> Singles:
        """The reconstruction (1 − s) S1 + N, (n, d), float32."""
        recon = self.learned_part(chunk)
        recon *= np.float32(1.0 - self.config.shrinkage)
        recon += self.introduced(chunk)
        return recon


def _squash(world: World) -> Squash:
    directions = world.dictionary_matrix[: world.d_model]
    wide: Floats = directions.astype(np.float64)
    deviation = np.sqrt(np.einsum("jd,jd->j", wide @ population_covariance(world), wide))
    return Squash(world.mean.astype(np.float32), directions, (GAIN / deviation).astype(np.float32))


def _calibration_variance(world: World, squash: Squash) -> float:
    # One-token documents leave the law of a token as it is, but make the tokens independent: no topic is missed.
    tokens = replace(world, doc_tokens=1)
    n, total, square = 0, np.zeros(world.d_model), 0.0
    for index in range(CALIBRATION_CHUNKS):
        value = squash(tokens.chunk(index, stream="surgical calibration").x).astype(np.float64)
        n, total, square = n + len(value), total + value.sum(axis=0), square + float((value**2).sum())
    mean = total / n
    return square / n - float(mean @ mean)
