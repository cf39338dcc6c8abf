"""What explains an error: SAE outputs of earlier sites and their controls, as blocks of columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.analyses.controls import elsewhere, random_sae
from darkmatter.analyses.cross_site.plan import Key, Plan
from darkmatter.batch import Batch, SitesSource, check_batch
from darkmatter.errors import InputError
from darkmatter.sae import SAE

Kind = Literal["sae", "raw", "random", "shuffled", "noise"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Beside = Literal["x", "all"]
"""What the regressors stand beside: the target's activation, or the activations of all sites."""

ALL = "all"
"""Name of all earlier sites together."""

_OF_X = ("raw", "random", "noise")
"""Kinds that are made from the earlier activation, not from its SAE's output."""

_LATENTS_PER_DIMENSION, _ACTIVE = 4, 1 / 32
"""Width and share of active latents of random features where no SAE says how many there should be."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """One SAE of an earlier site.

    Attributes:
        name: What the report calls it: the site, or SITE/SAE where a site has several.
        site: The site.
        sae: The SAE.
    """

    name: str
    site: str
    sae: str


def earlier_saes(source: SitesSource, target: str) -> tuple[Earlier, ...]:
    """List the SAEs of all sites but the target.

    Args:
        source: The sites.
        target: The site whose error is explained.

    Returns:
        The SAEs, in the order of the source.
    """
    return tuple(
        Earlier(site if len(source.names[site]) == 1 else f"{site}/{sae}", site, sae)
        for site in source.sites
        if site != target
        for sae in source.names[site]
    )


def key_of(kind: Kind, earlier: Earlier) -> Key:
    """Block of a kind: activations belong to the site, everything else to the SAE."""
    return (kind, earlier.site if kind == "raw" else earlier.name)


def make_plan(source: SitesSource, target: str, kinds: Sequence[Kind], beside: Beside) -> Plan:
    """Lay out the columns, and name the sets: "mean", "x", "base", "KIND NAME", and "base KIND NAME".

    Args:
        source: The sites.
        target: The site whose error is explained.
        kinds: What explains it.
        beside: What the base holds.

    Returns:
        The plan.
    """
    earlier, width, at = earlier_saes(source, target), source.widths, ("x", target)
    raw = {key_of("raw", one): width[one.site] for one in earlier} if beside == "all" else {}
    widths: dict[Key, int] = {at: width[target], **raw}
    base = tuple(widths)
    sets: dict[str, tuple[Key, ...]] = {"mean": (), "x": (at,), "base": base}
    for kind in kinds:
        keys = {one.name: key_of(kind, one) for one in earlier}
        widths |= {key: width[one.site] for one, key in zip(earlier, keys.values(), strict=True)}
        chosen: dict[str, tuple[Key, ...]] = {name: (key,) for name, key in keys.items()}
        if len(earlier) > 1:
            chosen[ALL] = tuple(dict.fromkeys(keys.values()))
        for name, blocks in chosen.items():
            sets[f"{kind} {name}"] = blocks
            sets[f"base {kind} {name}"] = (*base, *blocks)
    errors = tuple(("error", sae) for sae in source.names[target])
    return Plan(widths={**widths, **dict.fromkeys(errors, width[target])}, targets=errors, sets=sets)


@dataclass(frozen=True, slots=True, eq=False)
class Regressors:
    """Turns batches of several sites into blocks of columns.

    Attributes:
        source: The sites.
        target: The site whose error is explained.
        kinds: What explains it.
        beside: What the base holds.
        seed: Seed of noise.
        random: Random features by the name of the SAE that they stand in for.
    """

    source: SitesSource
    target: str
    kinds: tuple[Kind, ...]
    beside: Beside
    seed: int
    random: Mapping[str, SAE]

    @property
    def plan(self) -> Plan:
        """Columns and sets."""
        return make_plan(self.source, self.target, self.kinds, self.beside)

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.int64], dict[Key, Tensor]]]:
        """Yield the document ids and the blocks of every batch, each checked completely before.

        Yields:
            (groups, blocks by key).

        Raises:
            InputError: A bad batch, or sites that do not hold the same tokens.
        """
        earlier = earlier_saes(self.source, self.target)
        kinds = (*(("raw",) if self.beside == "all" else ()), *self.kinds)
        before: _Outputs | None = None
        for number, batches in enumerate(self.source, start=1):
            checked = checked_sites(self.source, batches, number)
            outputs = _Outputs(batches[self.target].groups, {one: checked[one.site][1][one.sae] for one in earlier})
            x, recons = checked[self.target]
            blocks: dict[Key, Tensor] = {("x", self.target): x}
            for kind in kinds:
                found = outputs.shuffled(before) if kind == "shuffled" else outputs.recons
                for one in earlier:
                    own = checked[one.site][0]
                    blocks[key_of(kind, one)] = self._from_x(kind, one, own, number) if kind in _OF_X else found[one]
            blocks |= {("error", sae): x.double() - recon.double() for sae, recon in recons.items()}
            yield outputs.groups, blocks
            before = outputs

    def _from_x(self, kind: Kind, one: Earlier, x: Tensor, number: int) -> Tensor:
        if kind == "raw":
            return x
        if kind == "random":
            features = self.random[one.name]
            return features(x.to(features.device))
        return torch.randn(x.shape, generator=_generator(self.seed, f"{one.name} {number}")).to(x.device)


@dataclass(frozen=True, slots=True, eq=False)
class _Outputs:
    """What the earlier SAEs made of one batch.

    Attributes:
        groups: Document ids, (n,).
        recons: Outputs by SAE.
    """

    groups: npt.NDArray[np.int64]
    recons: Mapping[Earlier, Tensor]

    def shuffled(self, before: _Outputs | None) -> Mapping[Earlier, Tensor]:
        """Outputs of other documents: of this batch, or of the one before where this holds one document only.

        Raises:
            InputError: Neither holds another document.
        """
        if len(self.groups) == 0:
            return self.recons
        others = np.empty(0) if before is None else np.flatnonzero(before.groups != self.groups[0])
        if before is None or not len(others) or (self.groups != self.groups[0]).any():
            partner, pool = elsewhere(self.groups), self.recons
        else:
            partner, pool = torch.from_numpy(others[np.arange(len(self.groups)) % len(others)]), before.recons
        return {one: recon[partner.to(recon.device)] for one, recon in pool.items()}


def checked_sites(
    source: SitesSource, batches: Mapping[str, Batch], number: int
) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    """Check what a source yields at a time.

    Args:
        source: The sites.
        batches: Their batches.
        number: Number of the batch, for messages.

    Returns:
        Activations and reconstructions by site.

    Raises:
        InputError: A site is missing, a batch is bad, or the sites hold other tokens.
    """
    if not isinstance(batches, Mapping) or set(batches) != set(source.sites):
        found = sorted(batches, key=str) if isinstance(batches, Mapping) else type(batches).__name__
        raise InputError(f"batch {number}: found {found}, expected one batch for each of {sorted(source.sites)}")
    found_sites = {}
    for site in source.sites:
        try:
            found_sites[site] = check_batch(batches[site], d_model=source.widths[site], names=source.names[site])
        except InputError as error:
            raise InputError(f"batch {number}: {site}: {error}") from None
    first = batches[source.sites[0]].groups
    other = next((site for site in source.sites if not np.array_equal(batches[site].groups, first)), None)
    if other is not None:
        raise InputError(
            f"batch {number}: the documents of {other} are not those of {source.sites[0]}, expected the same tokens in "
            "the same order at every site"
        )
    return found_sites


def random_features(
    source: SitesSource, target: str, saes: Mapping[str, Mapping[str, SAE]], *, seed: int
) -> dict[str, SAE]:
    """A random TopK SAE for every SAE of an earlier site, as wide and as sparse where its weights are known.

    Args:
        source: The sites.
        target: The site whose error is explained.
        saes: Weights by site and name, where they are known.
        seed: Seed of the directions.

    Returns:
        Random SAEs by the name of the SAE that they stand in for.

    Raises:
        InputError: The source yields no tokens.
    """
    batches = (checked_sites(source, found, number) for number, found in enumerate(source, start=1))
    checked = next((found for found in batches if len(found[target][0])), None)
    if checked is None:
        raise InputError("the source yields no tokens: check the input files and the token filter")
    found = {}
    for number, one in enumerate(earlier_saes(source, target)):
        x, _ = checked[one.site]
        own = _digest(seed, f"{number} {one.name}")
        like = saes.get(one.site, {}).get(one.sae)
        found[one.name] = random_sae(_plain(x) if like is None else like, x, seed=own)
    return found


def _plain(x: Tensor) -> SAE:
    """A TopK SAE of a usual shape, to be imitated where there is no other."""
    d = x.shape[1]
    latents = _LATENTS_PER_DIMENSION * d
    zeros = torch.zeros(latents, d, device=x.device)
    k = max(1, round(_ACTIVE * latents))
    bias = torch.ones(latents, device=x.device)  # all pre-activations positive: exactly k latents are active
    return SAE(W_enc=zeros.T.contiguous(), b_enc=bias, W_dec=zeros, b_dec=zeros[0], activation="topk", k=k)


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(_digest(seed, purpose))


def _digest(seed: int, purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"cross-site {seed} {purpose}".encode(), digest_size=7).digest(), "little")
