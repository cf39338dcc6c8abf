"""A world's stand-in for the rest of a model: a loss that is a known function of what flows through the site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.batch import Batch, BatchSource
from darkmatter.errors import InputError
from darkmatter.sandbox.config import check_int, check_number
from darkmatter.sandbox.factor_space import FactorSpace
from darkmatter.sandbox.population import population_covariance, pseudo_inverse
from darkmatter.sandbox.seeding import generator

if TYPE_CHECKING:
    from darkmatter.sandbox.features import Floats
    from darkmatter.sandbox.surgical import BoundSurgical, Surgical
    from darkmatter.sandbox.world import World

_GAUSSIAN = ("none", "independent", "heteroscedastic", "affine")
"""Kinds of introduced error whose whole covariance, not only its trace, has a closed form."""


@dataclass(frozen=True, kw_only=True)
class Readout:
    """A loss that is quadratic in the error δ = x̃ − x at a token: ℓ(x̃) = clean + n + g·δ + ½ δ'Hδ, in nats.

    n ~ N(0, noise²) is what the loss varies by from token to token, and g ~ N(0, slope² H) the gradient of a token's
    own loss; both have mean zero, so the expected increase is ½ tr(H E δδ'). H weighs the directions of x: its
    eigenvectors are those of Cov x, its eigenvalues `contrast` for the `leading` largest of them and 1 for the others,
    scaled so that mean ablation costs `ablation` nats.

    Attributes:
        world: The world.
        leading: Directions that weigh more (or less).
        contrast: By how much.
        ablation: Increase of the loss when x is replaced by its mean.
        clean: Mean loss with nothing replaced.
        noise: Standard deviation of the clean loss.
        slope: Size of the gradients.
        seed: Seed of noise and gradients.

    Raises:
        InputError: An option out of range.
    """

    world: World
    leading: int = 4
    contrast: float = 8.0
    ablation: float = 2.0
    clean: float = 3.0
    noise: float = 1.0
    slope: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        check_int(self.leading, "leading", 0)
        if self.leading > self.world.d_model:
            raise InputError(f"leading is {self.leading}, expected at most d_model = {self.world.d_model}")
        for name in ("contrast", "ablation", "noise", "slope"):
            check_number(getattr(self, name), name, 0.0, np.inf, closed=False)
        if not self.contrast * self.ablation > 0:
            raise InputError(f"contrast is {self.contrast} and ablation {self.ablation}, expected both above 0")
        check_int(self.seed, "seed", 0)

    @cached_property
    def root(self) -> Floats:
        """W with W W' = H, (d, d)."""
        covariance = population_covariance(self.world)
        _, vectors = np.linalg.eigh(covariance)
        weight = np.ones(len(vectors))
        weight[len(vectors) - self.leading :] = self.contrast
        scaled: Floats = vectors * np.sqrt(weight)
        scaled *= np.sqrt(2.0 * self.ablation / ((covariance @ scaled) * scaled).sum())
        return scaled

    def to_dict(self) -> dict[str, Any]:
        """All options but the world, as plain JSON types."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "world"}

    def losses(self, source: BatchSource) -> ReadoutLosses:
        """The losses of a source of this world with SAEs, controls included."""
        return ReadoutLosses(self, source)

    def increase(self, second_moment: Floats) -> float:
        """Expected increase ½ tr(H E δδ'), in nats."""
        return float(0.5 * ((second_moment @ self.root) * self.root).sum())

    def truth(self, surgical: Surgical) -> ReadoutTruth | None:
        """Population increases of the loss with a surgical SAE.

        With A and B the coefficients of x and Sae on the true factors f (T3), e = f (A − B) − N; the best affine
        predictor of e from x is (x − E x)(I − M) + E e, M that of f B, and the rest is f (A M − B) − N.

        Args:
            surgical: The SAE, on this readout's world.

        Returns:
            The truth; None where the covariance of its error has no closed form.
        """
        if surgical.introduced not in _GAUSSIAN or not surgical.closed_form(self.world):
            return None
        bound, space, d = surgical.bind(self.world), FactorSpace.of(self.world), self.world.d_model
        response = bound.response
        assert response is not None, "closed_form has checked"
        covariance = population_covariance(self.world)
        matrix = pseudo_inverse(covariance) @ space.covariance(np.hstack([space.true, response]))[:d, d:]
        rest = space.covariance(space.true @ matrix - response)
        rest += np.eye(d) * (bound.introduced_share * self.world.variance / d)
        shift, mean = np.eye(d) - matrix, _mean_error(self.world, bound)
        fit = shift.T @ covariance @ shift + np.outer(mean, mean)
        moments = {
            "mean": covariance,
            "zero": covariance + np.outer(self.world.mean, self.world.mean),
            "sae": fit + rest,
            "nonlinear-left": rest,
            "linear-left": fit,
            "random": _isotropic(fit + rest),
            "random-nonlinear": _isotropic(rest),
            "random-linear": _isotropic(fit),
            "shuffled": fit + rest,
        }
        return ReadoutTruth(
            increases={"identity": 0.0} | {name: self.increase(moment) for name, moment in moments.items()},
            nonlinear_share=float(np.trace(rest) / np.trace(fit + rest)),
        )


@dataclass(frozen=True, slots=True)
class ReadoutTruth:
    """Population values of a readout.

    Attributes:
        increases: Increase of the loss by variant, in nats.
        nonlinear_share: Share of the nonlinear part in E |e|².
    """

    increases: Mapping[str, float]
    nonlinear_share: float

    def error_share(self, part: str) -> float:
        """Share of a part, "linear" or "nonlinear", in E |e|²."""
        return self.nonlinear_share if part == "nonlinear" else 1.0 - self.nonlinear_share

    def recovered(self, part: str) -> float:
        """Share of the increase that goes when the part is added back: as the loss is quadratic, its own share."""
        return self.increases[f"{part}-left"] / self.increases["sae"]

    def relative(self, part: str) -> float:
        """`recovered` / `error_share`."""
        return self.recovered(part) / self.error_share(part)

    def to_dict(self) -> dict[str, Any]:
        """All values as plain JSON types."""
        parts = {
            part: {"error_share": self.error_share(part), "recovered": self.recovered(part)}
            | {"relative": self.relative(part)}
            for part in ("linear", "nonlinear")
            if self.error_share(part) > 0
        }
        return {"increases": dict(self.increases), **parts}


@dataclass(frozen=True, slots=True, eq=False)
class ReadoutLosses:
    """A re-iterable stream of batches with the losses that a replacement leads to.

    Attributes:
        readout: The loss.
        source: What each SAE makes of the world's tokens.
    """

    readout: Readout
    source: BatchSource

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.source.d_model

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the SAEs and controls."""
        return self.source.names

    @property
    def description(self) -> Mapping[str, Any]:
        """The source's description."""
        return self.source.description

    def __iter__(self) -> Iterator[ReadoutBatch]:
        """Yield every batch."""
        for number, batch in enumerate(self.source):
            yield ReadoutBatch(self.readout, batch, number)


@dataclass(frozen=True, slots=True, eq=False)
class ReadoutBatch:
    """One batch of `ReadoutLosses`.

    Attributes:
        readout: The loss.
        batch: The tokens, n of them.
        number: Number of the batch.
    """

    readout: Readout
    batch: Batch
    number: int

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Which tokens have a loss: all, (n,)."""
        return np.arange(len(self.batch.groups), dtype=np.int64)

    def clean(self) -> Tensor:
        """Losses with nothing replaced, in nats, (n,)."""
        noise = generator("readout", self.readout.seed, "noise", self.number).standard_normal(len(self.batch.groups))
        return torch.from_numpy(self.readout.clean + self.readout.noise * noise)

    def identity(self) -> Tensor:
        """The same with x put back, (n,)."""
        return self.losses(torch.as_tensor(self.batch.x))

    def losses(self, replacement: Tensor) -> Tensor:
        """The same with other activations, (n, d), at the site; (n,), float64."""
        root = torch.from_numpy(self.readout.root)
        delta = (replacement.double() - torch.as_tensor(self.batch.x).double()).cpu() @ root
        rng = generator("readout", self.readout.seed, "slope", self.number)
        slope = torch.from_numpy(rng.standard_normal(tuple(delta.shape), dtype=np.float32)).double()
        return self.clean() + (delta * (self.readout.slope * slope + 0.5 * delta)).sum(dim=1)


def _mean_error(world: World, bound: BoundSurgical) -> Floats:
    """E e, (d,): added terms of the kinds that are let in have mean zero, whatever their response to the factors."""
    m, true = world.n_features, FactorSpace.of(world).true
    learned = bound.response
    assert learned is not None
    if bound.moments is not None:
        learned = learned - bound.scale * bound.moments.response(true, m)
    mean: Floats = world.factor_moments.mean[:m] @ (true - learned)[:m]
    return mean


def _isotropic(second_moment: Floats) -> Floats:
    """That of random directions with the same norms."""
    found: Floats = np.eye(len(second_moment)) * (np.trace(second_moment) / len(second_moment))
    return found
