"""From a preset, a file and options to one experiment: each overrides what stands before it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from darkmatter.errors import FileFormatError, InputError
from darkmatter.files import read_json
from darkmatter.sae import TrainConfig
from darkmatter.sae.config import SELECTING
from darkmatter.sandbox import Surgical, World
from darkmatter.sandbox.experiment import DEFAULT_SAE, DEFAULT_SURGICAL, FORMAT, RUN_FIELDS, VERSION, Experiment
from darkmatter.sandbox.presets import preset
from darkmatter.sandbox.table import Table

Plain = dict[str, Any]

TYPES: Mapping[str, Mapping[str, str]] = {
    "world": {field.name: str(field.type) for field in fields(World)},
    "trained": {field.name: str(field.type) for field in fields(TrainConfig)},
    "surgical": {field.name: str(field.type) for field in fields(Surgical)},
    "run": {field.name: str(field.type) for field in fields(Experiment) if field.name in RUN_FIELDS},
}
"""Every setting with its type, by part of an experiment."""

OPTION_OF = {
    ("world", "n_features"): "features",
    ("trained", "d_sae"): "latents",
    ("trained", "n_tokens"): "train-tokens",
    ("run", "n_tokens"): "tokens",
    ("trained", "l0"): "target-l0",
    ("trained", "seed"): "sae-seed",
    ("surgical", "seed"): "sae-seed",
}
"""Options that are not called as their setting is."""

_ARRAYS = {"firing": (1, "rates"), "dictionary": (2, "directions")}
_OTHER_KIND = {"trained": "surgical", "surgical": "trained"}


def option_name(part: str, field: str) -> str:
    """The option that sets a field, without its dashes in front."""
    return OPTION_OF.get((part, field), field.replace("_", "-"))


OPTIONS: Mapping[str, tuple[tuple[str, str], ...]] = {
    name: tuple((part, field) for part in TYPES for field in TYPES[part] if option_name(part, field) == name)
    for name in sorted({option_name(part, field) for part in TYPES for field in TYPES[part]})
}
"""Where an option's value goes: several places for the seed of either kind of SAE."""


def resolve(*, preset_name: str | None, config: Path | None, options: Mapping[str, Any]) -> Experiment:
    """Build the experiment that a user asked for.

    Args:
        preset_name: Name of the preset to start from; None for the defaults.
        config: JSON of an experiment, whole or in part, which overrides the preset.
        options: What was given explicitly, by option name without dashes in front; overrides both.

    Returns:
        The experiment, every value checked.

    Raises:
        InputError: Unknown names, values out of range, or settings that contradict each other.
    """
    plain = (Experiment() if preset_name is None else preset(preset_name).experiment).to_dict()
    if config is not None:
        plain = overlaid(plain, read_config(config), config)
    return Experiment.from_dict(with_options(plain, options))


def read_config(path: Path) -> Plain:
    """Read an experiment's JSON, whole or in part.

    Args:
        path: The file.

    Returns:
        The object, its format checked and its settings not yet.

    Raises:
        FileFormatError: Missing, unreadable, or of another format.
    """
    data = read_json(path, "the JSON of an experiment, such as runs/synth/experiment.json")
    got = (data.get("format"), data.get("version"))
    if got != (FORMAT, VERSION):
        raise FileFormatError(
            f"{path} has format {got[0]!r} version {got[1]!r}, expected {FORMAT!r} version {VERSION}", path
        )
    return data


def overlaid(base: Plain, config: Plain, path: Path) -> Plain:
    """Put a file's settings over others; a whole file leaves nothing of them.

    Args:
        base: The settings below.
        config: What the file says.
        path: The file, for messages.

    Returns:
        All settings.

    Raises:
        FileFormatError: The file holds a part or a setting that experiments do not have.
    """
    merged = dict(base)
    for part, values in config.items():
        if part in {"format", "version"}:
            continue
        if part not in {"world", "sae", "run"} or not isinstance(values, dict):
            raise FileFormatError(f"{path} holds {part!r}, expected objects 'world', 'sae' and 'run'", path)
        below = merged[part]
        if part == "sae" and values.get("kind", below["kind"]) != below["kind"]:
            below = _default_sae(values["kind"])
        unknown = sorted(set(values) - set(below))
        if unknown:
            raise FileFormatError(f"{path} has unknown settings of {part}: {', '.join(unknown)}", path)
        merged[part] = {**below, **values}
    return merged


def with_options(plain: Plain, options: Mapping[str, Any]) -> Plain:
    """Set options over plain settings, then the values that follow from them where they were not given.

    Args:
        plain: The settings of an experiment.
        options: Values by option name. "surgical" (true or false) chooses the kind of SAE; "seed" seeds everything.

    Returns:
        All settings; nothing given is changed.

    Raises:
        InputError: An option of the other kind of SAE, or a value that its setting cannot hold.
    """
    settings = {part: dict(value) if isinstance(value, dict) else value for part, value in plain.items()}
    given = dict(options)
    surgical = given.pop("surgical", None)
    kind: str = settings["sae"]["kind"] if surgical is None else "surgical" if surgical else "trained"
    if kind != settings["sae"]["kind"]:
        settings["sae"] = {**_default_sae(kind), "seed": settings["sae"]["seed"]}
    if "seed" in given:
        given.setdefault("sae-seed", given["seed"])
    base = dict(settings["sae"])
    for name, value in given.items():
        part, field = _place(name, kind)
        settings["sae" if part == kind else part][field] = _value(name, value, TYPES[part][field])
    _follow(settings, base, set(given))
    return settings


def _follow(settings: Plain, base: Plain, given: set[str]) -> None:
    """What is not given adapts to what is: no dense part has no share, no introduced error neither."""
    world, sae = settings["world"], settings["sae"]
    if "dense-dim" in given and world["dense_dim"] == 0:
        none = {"dense_share": 0.0, "dense": "gaussian"}
        world.update({name: value for name, value in none.items() if option_name("world", name) not in given})
    if sae["kind"] == "trained":
        if sae["architecture"] != base["architecture"]:
            _follow_architecture(sae, base, given)
        return
    if "introduced-share" not in given and "introduced" in given:
        if sae["introduced"] == "none":
            sae["introduced_share"] = 0.0
        elif sae["introduced_share"] == 0.0:
            sae["introduced_share"] = DEFAULT_SURGICAL.introduced_share
    if "learned" not in given and type(sae["learned"]) is int:
        sae["learned"] = min(sae["learned"], max(world["n_features"], 0))


def _follow_architecture(sae: Plain, base: Plain, given: set[str]) -> None:
    """Another architecture keeps the sparsity, as k or as the L0 that a price is steered to, and no other setting."""
    for field in ("k", "l1", "l0_coefficient", "l0", "bandwidth", "groups"):
        if option_name("trained", field) not in given:
            sae[field] = None
    sparsity = float(base["k"] or base["l0"] or DEFAULT_SAE.k or 1)
    if sae["architecture"] in SELECTING:
        sae["k"] = max(1, round(sparsity)) if sae["k"] is None else sae["k"]
    elif not given & {"target-l0", "l1", "l0-coefficient"}:
        sae["l0"] = sparsity


def _default_sae(kind: str) -> Plain:
    if kind not in _OTHER_KIND:
        raise InputError(f"sae has kind {kind!r}, expected 'trained' or 'surgical'")
    sae: Plain = Experiment(sae=DEFAULT_SURGICAL if kind == "surgical" else DEFAULT_SAE).to_dict()["sae"]
    return sae


def _place(name: str, kind: str) -> tuple[str, str]:
    if name not in OPTIONS:
        raise InputError(f"there is no setting {name!r}: `darkmatter synth --help` lists them, without the dashes")
    for part, field in OPTIONS[name]:
        if part in {"world", "run", kind}:
            return part, field
    other = _OTHER_KIND[kind]
    raise InputError(f"--{name} is an option of {other} SAEs, and this one is {kind}: add --{other}, or leave it out")


def _value(name: str, value: Any, annotation: str) -> Any:
    """Turn text into what a field holds; typed values only change from int to float where the field says so."""
    if name in _ARRAYS and isinstance(value, str) and value.endswith(".npy"):
        return _table(name, Path(value)).to_plain()
    if name == "learned" and isinstance(value, str) and value.endswith(".npy"):
        return _indices(Path(value))
    if name == "groups" and isinstance(value, str):
        return [_parsed(name, part, "int") for part in re.split("[+,]", value)]
    if isinstance(value, str):
        value = _parsed(name, value, annotation)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and re.search(r"\bfloat\b", annotation) and not _holds(annotation, "int") else value


def _parsed(name: str, text: str, annotation: str) -> Any:
    if _holds(annotation, "None") and text in {"none", "None"}:
        return None
    if annotation == "bool":
        if text not in {"true", "false"}:
            raise InputError(f"{name} is {text!r}, expected true or false")
        return text == "true"
    for type_name, convert in (("int", int), ("float", float)):
        if _holds(annotation, type_name):
            try:
                return convert(text)
            except ValueError:
                continue
    if _holds(annotation, "int") or _holds(annotation, "float"):
        wanted = "a whole number" if not _holds(annotation, "float") else "a number"
        raise InputError(f"{name} is {text!r}, expected {wanted}")
    return text


def _holds(annotation: str, type_name: str) -> bool:
    return re.search(rf"\b{type_name}\b", annotation) is not None


def _table(name: str, path: Path) -> Table:
    dimensions, what = _ARRAYS[name]
    array = _load(path, what)
    shape = "(n_features, d_model)" if dimensions == 2 else "(n_features,)"
    if array.dtype.kind not in "fiu" or array.ndim != dimensions:
        raise FileFormatError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected numbers of shape {shape} for --{name}", path
        )
    try:
        return Table(array)
    except InputError as error:
        raise FileFormatError(f"{path}: {error}", path) from None


def _indices(path: Path) -> list[int]:
    array = _load(path, "indices of features")
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise FileFormatError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected whole numbers of one dimension for --learned",
            path,
        )
    return [int(index) for index in array]


def _load(path: Path, what: str) -> np.ndarray[Any, np.dtype[Any]]:
    if not path.is_file():
        raise FileFormatError(f"{path} is not a file, expected {what} as .npy", path)
    try:
        with path.open("rb") as file:  # np.load would also open archives
            array: np.ndarray[Any, np.dtype[Any]] = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise FileFormatError(f"{path} cannot be read as .npy ({error}), expected {what}", path) from None
    return array
