"""What a world can be: the checks on its options, and their form as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from darkmatter.errors import InputError
from darkmatter.sandbox.config import check_choice, check_int, check_number
from darkmatter.sandbox.dense import DIVISORS
from darkmatter.sandbox.dictionaries import KINDS as DICTIONARIES
from darkmatter.sandbox.features import FIRING_CAP, FIRING_LAWS
from darkmatter.sandbox.table import Table

if TYPE_CHECKING:
    from darkmatter.sandbox.world import World

FORMAT = "darkmatter.world"
VERSION = 2

DENSE_KINDS = (*DIVISORS, "codes")
MAX_CORRELATION = 0.9
"""Beyond, the series behind the closed forms grows long."""

_LOWEST = {
    "n_features": 1,
    "d_model": 1,
    "dense_dim": 0,
    "topics": 1,
    "doc_tokens": 1,
    "clusters": 1,
    "factors": 1,
    "roots": 0,
    "branching": 1,
    "depth": 0,
    "exclusion": 1,
    "seed": 0,
}


def check_world(world: World) -> None:
    """Check every option by itself and against the others; what follows from the rates is checked by the parts.

    Args:
        world: The world.

    Raises:
        InputError: The first option that cannot be, with what was expected.
    """
    for name, low in _LOWEST.items():
        check_int(getattr(world, name), name, low)
    check_number(world.l0, "l0", 0.0, math.inf)
    check_number(world.zipf, "zipf", 0.0, 10.0)  # beyond, the rarest feature's weight underflows
    check_number(world.dense_share, "dense_share", 0.0, 1.0, closed=False)
    check_number(world.topic_strength, "topic_strength", 0.0, 1.0)
    check_number(world.correlation, "correlation", 0.0, MAX_CORRELATION)
    check_number(world.similarity, "similarity", 0.0, 1.0, closed=False)
    for name in ("amplitude_first", "amplitude_last"):
        check_number(getattr(world, name), name, 1e-3, 1e3)
    if not isinstance(world.firing, Table):
        check_choice(world.firing, "firing", FIRING_LAWS)
    if not isinstance(world.dictionary, Table):
        check_choice(world.dictionary, "dictionary", DICTIONARIES)
    check_choice(world.dense, "dense", DENSE_KINDS)
    check_choice(world.siblings, "siblings", ("independent", "exclusive"))
    _check_dense(world)
    _check_features(world)


def _check_dense(world: World) -> None:
    if world.dense_dim > world.d_model:
        raise InputError(f"dense_dim is {world.dense_dim}, expected at most d_model = {world.d_model}")
    if world.dense_dim == 0 and (world.dense_share > 0.0 or world.dense != "gaussian"):
        option = f"dense_share is {world.dense_share:g}" if world.dense_share > 0.0 else f"dense is {world.dense!r}"
        raise InputError(f"{option} with dense_dim = 0: pass dense_share=0 and dense='gaussian', or more dimensions")


def _check_features(world: World) -> None:
    if world.dictionary == "orthonormal" and world.n_features > world.d_model:
        raise InputError(
            f"an orthonormal dictionary holds at most d_model = {world.d_model} features, got "
            f"n_features = {world.n_features}: use dictionary='random' for superposition"
        )
    if isinstance(world.dictionary, Table) and world.dictionary.shape != (world.n_features, world.d_model):
        want = (world.n_features, world.d_model)
        raise InputError(f"dictionary has shape {world.dictionary.shape}, expected (n_features, d_model) = {want}")
    if world.dictionary == "hierarchical" and not (world.roots and world.depth):
        raise InputError("dictionary='hierarchical' needs trees: pass roots and depth of at least 1")
    if (world.roots > 0) != (world.depth > 0):
        raise InputError(
            f"roots is {world.roots} and depth is {world.depth}: a hierarchy needs both above 0, or neither"
        )
    most = FIRING_CAP * world.n_features
    if not 0.0 < world.l0 <= most:
        raise InputError(
            f"l0 is {world.l0:g}, expected above 0 and at most {most:g}: none of the {world.n_features} features "
            f"fires on more than {FIRING_CAP:.0%} of the tokens"
        )


def world_to_dict(world: World) -> dict[str, Any]:
    """A world's options as plain JSON types, with the format's name and version; tables in base64.

    Args:
        world: The world.

    Returns:
        The options.
    """
    values = {field.name: getattr(world, field.name) for field in fields(world)}
    plain = {name: value.to_plain() if isinstance(value, Table) else value for name, value in values.items()}
    return {"format": FORMAT, "version": VERSION, **plain}


def world_options(data: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """Read what `world_to_dict` wrote.

    Args:
        data: The plain form, perhaps through JSON.
        known: Names of the options.

    Returns:
        The options.

    Raises:
        InputError: Another format or version, options missing or unknown, or a table that does not decode.
    """
    values = dict(data)
    got = (values.pop("format", None), values.pop("version", None))
    if got != (FORMAT, VERSION):
        raise InputError(f"world has format {got[0]!r} version {got[1]!r}, expected {FORMAT!r} version {VERSION}")
    if set(values) != known:
        raise InputError(
            f"world lacks {sorted(known - set(values))} and has unknown {sorted(set(values) - known)}: "
            "expected exactly the fields that to_dict writes"
        )
    return {name: Table.from_plain(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def parse_world(text: str) -> dict[str, Any]:
    """Parse a world's JSON text.

    Args:
        text: JSON.

    Returns:
        The plain form.

    Raises:
        InputError: Not JSON, or not an object.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error}), expected what World.to_json wrote") from None
    if not isinstance(data, dict):
        raise InputError(f"a JSON {type(data).__name__}, expected an object written by World.to_json")
    return data
