"""A training run on disk: a killed run goes on from its last save, to the same bits."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from darkmatter.errors import FileFormatError, InputError
from darkmatter.files import read_json, read_tensors, write_json, write_tensors
from darkmatter.sae.config import TrainConfig

FORMAT = "darkmatter-training"
FORMAT_VERSION = 1
_INDEX = "training.json"
_TENSORS = "training-*.safetensors"


@dataclass(slots=True)
class TrainCheckpoint:
    """Where and how often training saves itself.

    The index file is replaced last, so a crash while saving leaves the previous save in force.

    Attributes:
        folder: Folder of the save; created when first needed, removed by `clear`.
        every_seconds: Least time between two saves.
        source: What describes the stream, as JSON: a save made from another source or with other settings is refused.
    """

    folder: Path
    every_seconds: float = 60.0
    source: Mapping[str, Any] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic, repr=False)

    def load(self, config: TrainConfig) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read the last save.

        Args:
            config: The present settings.

        Returns:
            Tensors and numbers as they were given to `save`, or None if there is no save.

        Raises:
            FileFormatError: The save is damaged or of another version.
            InputError: The save belongs to other settings or another source; names the first difference.
        """
        path = self.folder / _INDEX
        if not path.exists():
            return None
        remedy = f"delete {self.folder} to start again"
        index = read_json(path, "the index of a saved training run")
        if (index.get("format"), index.get("version")) != (FORMAT, FORMAT_VERSION):
            raise FileFormatError(
                f"{path} is not the index of a training run of version {FORMAT_VERSION}: {remedy}", path
            )
        name, numbers, recipe = index.get("tensors"), index.get("numbers"), index.get("recipe")
        if not isinstance(name, str) or Path(name).name != name or not isinstance(numbers, dict):
            raise FileFormatError(f"{path} is damaged: {remedy}", path)
        if index.get("digest") != _digest(numbers):
            raise FileFormatError(f"{path} is damaged, its numbers do not match their digest: {remedy}", path)
        wanted = self._recipe(config)
        if recipe != wanted:
            held = recipe if isinstance(recipe, dict) else {}
            odd = next(key for key in sorted({*held, *wanted}) if held.get(key) != wanted.get(key))
            raise InputError(
                f"{path} holds a run with {odd} = {held.get(odd)!r}, expected {wanted.get(odd)!r}: {remedy}, "
                "or choose another folder"
            )
        try:
            return read_tensors(self.folder / name, "a saved training run"), numbers
        except FileFormatError as error:
            raise FileFormatError(f"{error}; {remedy}", error.path) from None

    def due(self) -> bool:
        """Tell whether the last save is old enough for another."""
        return time.monotonic() - self._last >= self.every_seconds

    def save(self, config: TrainConfig, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], step: int) -> None:
        """Save a run, then drop older saves.

        Args:
            config: Its settings.
            tensors: Its tensors.
            numbers: The rest of its state, as JSON.
            step: How many steps it has taken; names the file.
        """
        name = _TENSORS.replace("*", str(step))
        write_tensors(self.folder / name, tensors)
        write_json(
            self.folder / _INDEX,
            {
                "format": FORMAT,
                "version": FORMAT_VERSION,
                "recipe": self._recipe(config),
                "tensors": name,
                "numbers": dict(numbers),
                "digest": _digest(numbers),
            },
        )
        self._drop(keep=name)
        self._last = time.monotonic()

    def clear(self) -> None:
        """Remove the save, once the trained SAE is written."""
        (self.folder / _INDEX).unlink(missing_ok=True)
        self._drop(keep=None)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _drop(self, keep: str | None) -> None:
        for old in self.folder.glob(_TENSORS):
            if old.name != keep:
                old.unlink(missing_ok=True)

    def _recipe(self, config: TrainConfig) -> dict[str, Any]:
        recipe: dict[str, Any] = json.loads(json.dumps({**asdict(config), "source": dict(self.source)}))
        return recipe


def _digest(numbers: Mapping[str, Any]) -> str:
    """Hash the numbers of a save, so that an edited or incomplete one is recognised before it is used."""
    return hashlib.sha256(json.dumps(dict(numbers), sort_keys=True).encode()).hexdigest()
