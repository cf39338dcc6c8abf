"""What a surgical SAE makes of the features that it has learned: exact, tilted, split by amplitude, or absorbed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from darkmatter.errors import InputError
from darkmatter.sandbox.chunk import sparse_product
from darkmatter.sandbox.features import row_norms
from darkmatter.sandbox.seeding import generator

if TYPE_CHECKING:
    from darkmatter.sandbox.amplitudes import AmplitudeLaw
    from darkmatter.sandbox.chunk import WorldChunk
    from darkmatter.sandbox.features import Floats, Integers, Singles
    from darkmatter.sandbox.surgical import Surgical
    from darkmatter.sandbox.world import World


@dataclass(frozen=True, slots=True, eq=False)
class Absorption:
    """Some features whose latents fall silent when a partner fires, whose own latent then stands in for them.

    Attributes:
        partner: (m,) partner of every feature, −1 for one that is not absorbed.
        carried: (m, d) what the latent of a partner adds to x for every unit of its own amplitude.
    """

    partner: Integers
    carried: Singles


@dataclass(frozen=True, slots=True, eq=False)
class Splitting:
    """Some features held by two latents, one for amplitudes below the median and one above.

    Attributes:
        threshold: (m,) the median amplitude.
        offset: (m, d) half the difference of the two directions; zero for a feature that is not split.
    """

    threshold: Singles
    offset: Singles


@dataclass(frozen=True, slots=True, eq=False)
class Distorted:
    """The learned part with distortions: Σ_i w_i d_i, less what is silenced, plus what stands in for it.

    Attributes:
        decoder: (m, d) directions d_i; zero for a feature that is not learned.
        splitting: Splits, if any.
        absorption: Absorbed features, if any.
    """

    decoder: Singles
    splitting: Splitting | None
    absorption: Absorption | None

    @property
    def is_linear(self) -> bool:
        """Whether the part is linear in the codes, with `decoder` as coefficients."""
        return self.splitting is None and self.absorption is None

    def __call__(self, chunk: WorldChunk) -> Singles:
        """The part of some tokens, (n, d)."""
        kept = chunk.codes
        if self.absorption is not None:
            kept = _silenced(kept, self.absorption.partner)
        part = sparse_product(kept, self.decoder)
        if self.absorption is not None:
            part += sparse_product(chunk.codes, self.absorption.carried)
        if self.splitting is not None:
            above = chunk.codes.data >= self.splitting.threshold[chunk.codes.indices]
            signed = csr_array((np.where(above, kept.data, -kept.data), kept.indices, kept.indptr), shape=kept.shape)
            part += sparse_product(signed, self.splitting.offset)
        return part


def distorted(world: World, surgical: Surgical, features: Integers) -> Distorted | None:
    """Choose what happens to the learned features.

    Args:
        world: The world.
        surgical: The SAE.
        features: Indices of the learned features.

    Returns:
        The distorted part, or None where the SAE has no distortion.

    Raises:
        InputError: A distortion that the world or the learned set leaves no room for.
    """
    if not (surgical.tilt or surgical.splitting or surgical.absorption) or not len(features):
        return None
    if (surgical.tilt or surgical.splitting) and world.d_model == 1:
        raise InputError("d_model is 1, where no direction can turn: pass tilt=0 and splitting=0")
    decoder = np.zeros((world.n_features, world.d_model))
    decoder[features] = world.dictionary_matrix[features]
    if surgical.tilt:
        decoder[features] = _turned(decoder[features], surgical.tilt, features, "surgical tilt", surgical.seed)
    absorption = _absorption(world, surgical, features, decoder) if surgical.absorption else None
    splitting = _splitting(world, surgical, features, decoder) if surgical.splitting else None
    return Distorted(decoder.astype(np.float32), splitting, absorption)


def _turned(rows: Floats, degrees: float, features: Integers, purpose: str, seed: int) -> Floats:
    """Rows turned by an angle towards random directions at right angles to them."""
    # a direction belongs to its feature: a larger learned set leaves the others' as they were
    draws = generator(purpose, seed).standard_normal((int(features.max()) + 1, rows.shape[1]))[features]
    draws -= ((draws * rows).sum(axis=1) / row_norms(rows) ** 2)[:, None] * rows
    draws *= (row_norms(rows) / row_norms(draws))[:, None]
    angle = np.deg2rad(degrees)
    turned: Floats = np.cos(angle) * rows + np.sin(angle) * draws
    return turned


def _splitting(world: World, surgical: Surgical, features: Integers, decoder: Floats) -> Splitting:
    # the mean of a feature's two directions replaces the one in `decoder`
    law = world.amplitude_law
    if law.moments[1] == law.moments[0] ** 2:
        raise InputError("splitting is by amplitude, and all amplitudes of a feature are equal: choose another law")
    count = max(1, round(surgical.splitting * len(features)))
    split = np.sort(generator("surgical splitting", surgical.seed).choice(features, size=count, replace=False))
    whole = decoder[split]
    above = _turned(whole, surgical.splitting_angle, split, "surgical splitting directions", surgical.seed)
    decoder[split] = np.cos(np.deg2rad(surgical.splitting_angle)) * whole
    offset = np.zeros(decoder.shape, dtype=np.float32)
    offset[split] = above - decoder[split]
    return Splitting((law_median(law) * world.amplitude_scales).astype(np.float32), offset)


def _absorption(world: World, surgical: Surgical, features: Integers, decoder: Floats) -> Absorption:
    # a partner j carries E[w_i | j fires] / E[w_j | j fires] of the direction of i
    rng = generator("surgical absorption", surgical.seed)
    learned = np.zeros(world.n_features, dtype=bool)
    learned[features] = True
    partner = np.full(world.n_features, -1, dtype=np.int64)
    amount = world.amplitude_scales.copy()  # a parent fires whenever its child does
    parent = world.parent
    if (parent >= 0).any():
        children = np.flatnonzero(learned & (parent >= 0) & learned[parent])
        candidates = np.unique(parent[children])
        if not len(candidates):
            raise InputError("absorption needs a learned feature with a learned child: pass more learned features")
        absorbed = _share_of(rng.permutation(candidates), surgical.absorption)
        for i in absorbed:
            partner[i] = rng.choice(children[parent[children] == i])
    else:
        if len(features) < 2:
            raise InputError(f"absorption needs two learned features, got {len(features)}: pass more, or absorption=0")
        amount *= world.firing_rates
        often = features[np.argsort(-world.firing_rates[features], kind="stable")]
        absorbed = _share_of(often, surgical.absorption)
        shift = rng.integers(1, len(features), size=len(absorbed))  # any learned feature but itself
        place = np.argsort(features, kind="stable")
        position = place[np.searchsorted(features[place], absorbed)]
        partner[absorbed] = features[(position + shift) % len(features)]
    carried = np.zeros_like(decoder)
    owner = partner[absorbed]
    np.add.at(carried, owner, (amount[absorbed] / world.amplitude_scales[owner])[:, None] * decoder[absorbed])
    return Absorption(partner, carried.astype(np.float32))


def _share_of(items: Integers, share: float) -> Integers:
    return items[: max(1, round(share * len(items)))]


def _silenced(codes: csr_array, partner: Integers) -> csr_array:
    """The codes with zeros where the partner of a feature fires on the same token."""
    n, m = codes.shape
    token = np.repeat(np.arange(n, dtype=np.int64), np.diff(codes.indptr))
    keys = token * m + codes.indices  # sorted, since columns are sorted in every row
    wanted = partner[codes.indices]
    places = np.searchsorted(keys, token * m + wanted)
    found = keys[np.minimum(places, len(keys) - 1)] == token * m + wanted
    silent = (wanted >= 0) & found
    return csr_array((np.where(silent, np.float32(0.0), codes.data), codes.indices, codes.indptr), shape=codes.shape)


def law_median(law: AmplitudeLaw) -> float:
    """Median of an amplitude, from the law's quadrature."""
    order = np.argsort(law.nodes)
    weights = law.weights[order]
    return float(np.interp(0.5, np.cumsum(weights) - weights / 2.0, law.nodes[order]))
