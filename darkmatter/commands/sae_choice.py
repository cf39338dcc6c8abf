"""Which SAEs a run decomposes, and at which site each of them belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from darkmatter.adapters import LoadedSae, load_any_sae, parse_site
from darkmatter.adapters.saes.hooks import same_place
from darkmatter.adapters.saes.pattern import expand_pattern
from darkmatter.commands.named_paths import named_paths
from darkmatter.errors import InputError


def choose_saes(saes: Sequence[str], pattern: str | None) -> dict[str, str]:
    """Collect SAEs from ``--sae`` and ``--sae-glob``.

    Args:
        saes: ``NAME=LOCATION`` or ``LOCATION``.
        pattern: A pattern of locations; None for none.

    Returns:
        Locations by name.

    Raises:
        InputError: None at all, or one name twice.
    """
    found = named_paths(saes, "--sae") if saes or pattern is None else {}
    for name, place in (expand_pattern(pattern) if pattern is not None else {}).items():
        if name in found:
            raise InputError(f"--sae and --sae-glob both name {name!r}: give it another NAME with --sae NAME=LOCATION")
        found[name] = place
    return found


def load_saes(places: Mapping[str, str], *, family: str | None, device: str) -> dict[str, LoadedSae]:
    """Load SAEs by name."""
    return {name: load_any_sae(place, family=family, device=device) for name, place in places.items()}


def notes_of(saes: Mapping[str, LoadedSae]) -> dict[str, Any]:
    """What the report says about SAEs."""
    return {name: sae.describe() for name, sae in saes.items()}


Sorted = dict[str, dict[str, LoadedSae]]
"""SAEs by site and name."""


def by_site(saes: Mapping[str, LoadedSae], sites: Sequence[str], said: Sequence[str]) -> Sorted:
    """Sort SAEs by the site they read.

    Args:
        saes: The SAEs.
        sites: The sites of the run.
        said: ``NAME=SITE`` where a site is to be said; else, of several sites, the one that an SAE's files advertise.

    Returns:
        SAEs by site and name; every site has at least one.

    Raises:
        InputError: An unknown name or site, an SAE without a site, or a site without an SAE.
    """
    places = [str(parse_site(site)) for site in sites]
    told = {}
    for text in said:
        name, mark, site = text.partition("=")
        place = str(parse_site(site)) if mark else ""
        if name not in saes or place not in places:
            raise InputError(
                f"--sae-site {text!r}, expected NAME=SITE with one of {', '.join(saes)} and one of {', '.join(places)}"
            )
        told[name] = place
    found: Sorted = {place: {} for place in places}
    for name, sae in saes.items():
        where = told.get(name, places[0] if len(places) == 1 else _advertised(sae, places))
        if where is None:
            advertised = "say no site" if sae.site is None else f"say {sae.site}"
            raise InputError(
                f"{name}: its files {advertised}, expected one of {', '.join(places)}: add --sae-site {name}=SITE"
            )
        found[where][name] = sae
    for place, members in found.items():
        if not members:
            raise InputError(f"no SAE is for {place}: leave the site out, or add --sae-site NAME={place}")
    return found


def _advertised(sae: LoadedSae, places: Sequence[str]) -> str | None:
    """Which of the sites the files of an SAE name, in whatever spelling."""
    return next((place for place in places if sae.site is not None and same_place(sae.site, place)), None)
