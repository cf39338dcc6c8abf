"""Surgical SAEs: built from a world's true parts, so that every part of their error is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from darkmatter.errors import InputError
from darkmatter.sandbox.added import KINDS, Term, make_term
from darkmatter.sandbox.added_moments import AddedMoments, added_moments, has_moments
from darkmatter.sandbox.calibration import calibrated
from darkmatter.sandbox.chunk import WorldChunk, check_features
from darkmatter.sandbox.config import check_int, check_number
from darkmatter.sandbox.factor_space import FactorSpace
from darkmatter.sandbox.learned import Distorted, distorted

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Floats, Integers, Singles
    from darkmatter.sandbox.world import World

NO_TERM = 1e-12
"""An added term whose introduced variance at scale one is below this share of Var x is none at all."""


@dataclass(frozen=True, kw_only=True)
class Surgical:
    """Sae(x) = (1 − s) S1 + A: it knows some features, perhaps imperfectly, and adds a term of a chosen kind.

    Kinds of A:
    "none";
    "independent": σ g, with g ~ N(0, I_d);
    "heteroscedastic": c ‖x‖ g;
    "dense": c Σ_j tanh(2 g_j) u_j over the dense coordinates g and the unit rows u of F;
    "function": c Σ_j tanh(3 y_j·(x − E x) / sd(y_j·x)) y_j over the first min(m, d) features: continuous in x;
    "interference": c Σ_i (y_i·x − w_i) y_i over the active learned features: reading without inhibition;
    "affine": c (x − E x) M with a random matrix M: linear error, not introduced error.
    A = f B + N with N uncorrelated with the true factors f (T3). The scale is such that N, the introduced error, has
    the asked share of Var x; for "affine", where N = 0, that A has it. Splitting and absorption introduce error of
    their own on top.

    Attributes:
        learned: Features that S1 holds: an int takes that many of the first, which are the most frequent unless firing
            rates come from a table; a float in (0, 1] that share of them; a sequence these indices. 0 is a dead SAE.
        shrinkage: s in [0, 1).
        tilt: Degrees by which every learned direction is off, towards a random direction; 0 to 90. Linear error.
        splitting: Share of the learned features that two latents hold, one for amplitudes below the law's median and
            one above, with different directions; 0 to 1.
        splitting_angle: Degrees between each of the two directions and the feature's own; 0 to 90.
        absorption: Share of the features that can be absorbed, most frequent first, which are: such a latent is silent
            on tokens where a partner fires, and the partner's latent has a piece of its direction instead, so that the
            mean over those tokens is kept. In a hierarchy, learned features with a learned child can be absorbed, by
            one of these, and are chosen at random; else any feature, by a random other one; 0 to 1.
        introduced: Kind of A.
        introduced_share: Var N / Var x (for "affine" Var A / Var x), ≥ 0.
        seed: Seeds all random choices and, together with stream and chunk, the Gaussian draws.
    """

    learned: int | float | Sequence[int]
    shrinkage: float = 0.0
    tilt: float = 0.0
    splitting: float = 0.0
    splitting_angle: float = 30.0
    absorption: float = 0.0
    introduced: Literal["none", "independent", "heteroscedastic", "dense", "function", "interference", "affine"] = (
        "none"
    )
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
        for name, high in {"tilt": 90.0, "splitting": 1.0, "splitting_angle": 90.0, "absorption": 1.0}.items():
            check_number(getattr(self, name), name, 0.0, high)
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

    def closed_form(self, world: World) -> bool:
        """Whether the population shares have a closed form: a response to the factors and a Var N that are known.

        True without splitting and absorption, and for every kind but "function"; "dense" needs dense coordinates that
        are independent of the codes, "interference" moreover features that are independent of each other.

        Args:
            world: The world.

        Returns:
            Whether `population_shares` gives them.
        """
        return not self._bends(world) and (not self.introduced_share or has_moments(world, self.introduced))

    def bind(self, world: World) -> BoundSurgical:
        """Fit this SAE to a world: resolve its features and the scale of its added term.

        Args:
            world: The world.

        Returns:
            The SAE, ready to reconstruct the world's chunks.

        Raises:
            InputError: More features, or a higher index, than the world has; a distortion or kind that it leaves no
                room for.
        """
        features = self.features(world.n_features)
        part = distorted(world, self, features)
        if self.introduced_share == 0.0:
            return BoundSurgical(config=self, world=world, features=features, part=part)
        term = make_term(world, self.introduced, features, self.seed)
        moments, relative_error = None, 0.0
        if has_moments(world, self.introduced):
            moments = added_moments(world, self.introduced, features, self.seed)
            unit = moments.variance
        else:
            named = tuple(features.tolist()) if self.introduced == "interference" else ()
            found = calibrated(world, self.introduced, named)
            unit, relative_error = found.variance, found.relative_error
        if unit <= NO_TERM * world.variance:
            raise InputError(
                f"introduced={self.introduced!r} introduces no error in this world, whatever its scale: choose another "
                "kind, or a world in superposition"
            )
        return BoundSurgical(
            config=self,
            world=world,
            features=features,
            part=part,
            term=term,
            moments=moments,
            scale=float(np.sqrt(self.introduced_share * world.variance / unit)),
            relative_error=relative_error,
        )

    def describe(self, world: World) -> dict[str, Any]:
        """The configuration as plain JSON types, with how precisely the introduced share is met in a world.

        Args:
            world: The world.

        Returns:
            `to_dict`, and under "share_error" the relative error of the introduced share where its scale is numerical:
            one digit, so that the same SAE reads the same on every machine.
        """
        error = self.bind(world).relative_error
        return {**self.to_dict(), **({"share_error": float(f"{error:.0e}")} if error else {})}

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON types."""
        return {"kind": "surgical", **asdict(self)}

    def _bends(self, world: World) -> bool:
        """Whether the learned part is not linear in the codes."""
        return bool(self.splitting or self.absorption) and len(self.features(world.n_features)) > 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoundSurgical:
    """A surgical SAE bound to one world.

    Attributes:
        config: The configuration.
        world: The world.
        features: Indices of the learned features.
        part: The learned part where it is distorted; None where it is S1 itself.
        term: The added term at scale one, if any.
        moments: Its moments, where they have a closed form.
        scale: σ or c, the factor on the added term.
        relative_error: Relative error (one standard error) of the introduced share: 0 in closed form.
    """

    config: Surgical
    world: World
    features: Integers
    part: Distorted | None = None
    term: Term | None = None
    moments: AddedMoments | None = None
    scale: float = 0.0
    relative_error: float = 0.0

    @property
    def introduced_share(self) -> float:
        """Var N / Var x of the added term: 0 for kind "affine"."""
        return 0.0 if self.config.introduced == "affine" else self.config.introduced_share

    @property
    def response(self) -> Floats | None:
        """B of Sae = f B + N, N uncorrelated with the factors, (m + k, d); None where it has no closed form."""
        if not self.config.closed_form(self.world):
            return None
        m, true = self.world.n_features, FactorSpace.of(self.world).true
        found = np.zeros_like(true)
        directions = true[:m] if self.part is None else self.part.decoder.astype(np.float64)
        found[self.features] = (1.0 - self.config.shrinkage) * directions[self.features]
        if self.moments is not None:
            found += self.scale * self.moments.response(true, m)
        return found

    def learned_part(self, chunk: WorldChunk) -> Singles:
        """What the SAE makes of the learned features before shrinkage: S1 where nothing is distorted, (n, d)."""
        return chunk.sparse_part(self.features) if self.part is None else self.part(chunk)

    def introduced(self, chunk: WorldChunk) -> Singles:
        """The added term A, (n, d); of a cut chunk, the same rows that the whole chunk has."""
        if self.term is None:
            return np.zeros_like(chunk.x)
        added = self.term(chunk)
        added *= np.float32(self.scale)
        return added

    def recon(self, chunk: WorldChunk) -> Singles:
        """The reconstruction (1 − s) S1 + A, (n, d), float32."""
        recon = self.learned_part(chunk)
        recon *= np.float32(1.0 - self.config.shrinkage)
        recon += self.introduced(chunk)
        return recon
