"""Grids of experiments: axes from text, cells with an identity of their own, and shares of them for schedulers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

from darkmatter.commands.settings import OPTIONS, with_options
from darkmatter.errors import InputError
from darkmatter.sae.config import SELECTING, Architecture
from darkmatter.sandbox.added import KINDS
from darkmatter.sandbox.experiment import Experiment
from darkmatter.sandbox.surgical import Surgical

MAX_CELLS = 100_000
KIND = "kind"
"""The axis over architectures of trained SAEs and kinds of introduced error of surgical ones."""


PRICED = frozenset(get_args(Architecture)) - frozenset(SELECTING)
"""Architectures whose sparsity has a price; on the axis "k" they are steered to that L0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One experiment of a grid.

    Attributes:
        axes: Its value on every axis, as it stands on the command line.
        experiment: The experiment, complete.
        title: Its values on the axes that vary, in one line.
        identity: 16 hexadecimal digits of the hash of `experiment`; equal experiments are one cell, in any grid.
    """

    axes: Mapping[str, str]
    experiment: Experiment
    title: str
    identity: str

    @property
    def kind(self) -> str:
        """Architecture of a trained SAE, or kind of introduced error of a surgical one."""
        sae = self.experiment.sae
        return sae.introduced if isinstance(sae, Surgical) else sae.architecture


def identity_of(experiment: Mapping[str, Any]) -> str:
    """Hash an experiment's plain form; the order of its keys does not matter."""
    text = json.dumps(experiment, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_axes(grid: Sequence[str], shorthands: Mapping[str, str | None]) -> dict[str, list[str]]:
    """Read ``NAME=V1,V2,…`` texts and the shorthands for the usual axes.

    Args:
        grid: Texts; a name is an option of `darkmatter synth` without its dashes, or "kind". A value that is a range
            of whole numbers, such as ``0..4``, stands for all of them.
        shorthands: Lists of values by name; None where not given.

    Returns:
        Values by axis, shorthands first.

    Raises:
        InputError: Not of this form, an unknown name, no value, or a name or value that repeats.
    """
    axes: dict[str, list[str]] = {}
    texts = [f"{name}={values}" for name, values in shorthands.items() if values is not None]
    for text in [*texts, *grid]:
        name, mark, values = text.partition("=")
        name = name.strip().removeprefix("--").replace("_", "-")
        if not (name and mark):
            raise InputError(f"grid has {text!r}, expected NAME=V1,V2,… such as latents=256,512")
        if name not in OPTIONS and name != KIND:
            raise InputError(
                f"grid has no axis {name!r}: take an option of `darkmatter synth` without its dashes, or '{KIND}'"
            )
        if name in axes:
            raise InputError(f"grid has the axis {name!r} twice, expected every axis once")
        axes[name] = _values(name, values)
    return axes


def make_cells(base: Mapping[str, Any], axes: Mapping[str, Sequence[str]]) -> list[Cell]:
    """Take every combination of the axes' values; the last axis changes fastest.

    Args:
        base: The experiment that the axes change, as `Experiment.to_dict` gives it.
        axes: Values by axis.

    Returns:
        The cells, every value checked.

    Raises:
        InputError: No axis, too many cells, a combination that cannot be, or two that are the same experiment.
    """
    if not axes:
        raise InputError("no axis to sweep over: give --widths, --k, --seeds, --kinds or --grid NAME=V1,V2,…")
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MAX_CELLS:
        raise InputError(f"the grid has {count:,} cells, expected at most {MAX_CELLS:,}: split it into several sweeps")
    cells: dict[str, Cell] = {}
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        title = " ".join(f"{name}={chosen[name]}" for name in varied(axes) or axes)
        try:
            experiment = Experiment.from_dict(with_options(dict(base), _options(chosen, base)))
        except InputError as error:
            raise InputError(f"cell {title}: {error}") from None
        cell = Cell(axes=chosen, experiment=experiment, title=title, identity=identity_of(experiment.to_dict()))
        if cell.identity in cells:
            raise InputError(f"cells {cells[cell.identity].title} and {title} are the same experiment: drop one")
        cells[cell.identity] = cell
    return list(cells.values())


def varied(axes: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of the axes with more than one value."""
    return [name for name, values in axes.items() if len(values) > 1]


def read_share(text: str) -> tuple[int, int]:
    """Read ``i/N``: the i-th of N shares.

    Args:
        text: Such as ``3/16``.

    Returns:
        i and N.

    Raises:
        InputError: Not of this form, or i is not from 1 to N.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"cell is {text!r}, expected i/N with i from 1 to N, such as 3/16")
    return int(found[1]), int(found[2])


def _values(name: str, text: str) -> list[str]:
    values: list[str] = []
    for value in (part.strip() for part in text.split(",")):
        span = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", value)
        if not value or (span and not 0 <= int(span[2]) - int(span[1]) < MAX_CELLS):
            raise InputError(f"grid has {name}={text!r}, expected values with commas between, or ranges such as 0..4")
        values.extend(map(str, range(int(span[1]), int(span[2]) + 1)) if span else [value])
    if len(set(values)) < len(values):
        raise InputError(f"grid has {name}={text!r}, expected every value once")
    return values


def _options(chosen: Mapping[str, str], base: Mapping[str, Any]) -> dict[str, Any]:
    """Values by option name: the kind replaced by what it stands for, k by a target where sparsity has a price."""
    options: dict[str, Any] = {name: value for name, value in chosen.items() if name != KIND}
    kind = chosen.get(KIND)
    if kind is not None:
        surgical = kind in KINDS
        options |= {"surgical": surgical, "introduced" if surgical else "architecture": kind}
    architecture = options.get("architecture", base["sae"].get("architecture", "topk"))
    if "k" in options and architecture in PRICED:
        options["target-l0"] = options.pop("k")
    return options
