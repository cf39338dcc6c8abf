"""Moments on disk: a killed pass goes on from its last save."""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darkmatter.batch import BatchSource
from darkmatter.errors import FileFormatError, InputError
from darkmatter.files import read_json, read_tensors, write_json, write_tensors
from darkmatter.folds import FoldAccumulator
from darkmatter.products import Precision

FORMAT = "darkmatter-moments"
FORMAT_VERSION = 1
_INDEX = "checkpoint.json"
_PART = "part-"


def run_identity(
    source: BatchSource, folds: int, precision: Precision = "float64", share: tuple[int, int] = (0, 1)
) -> str:
    """Digest of everything that decides a pass: width, SAE names, folds, arithmetic and the source's description.

    Args:
        source: The source.
        folds: Number of folds.
        precision: How blocks are multiplied.
        share: Number of this process and how many there are, where each has a share of the documents.

    Returns:
        A hexadecimal digest; two runs with the same one accumulate the same batches.
    """
    facts = [FORMAT_VERSION, source.d_model, source.names, folds, precision, share, dict(source.description)]
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(slots=True)
class Checkpoint:
    """Where and how often a pass saves its sums.

    The index file is replaced last, so a crash while saving leaves the previous save in force.

    Attributes:
        folder: Folder of the saved sums; created when first needed, removed by `clear`.
        every_seconds: Least time between two saves.
    """

    folder: Path
    every_seconds: float = 60.0
    _last: float = field(default_factory=time.monotonic, repr=False)

    def part(self, name: str) -> Checkpoint:
        """A checkpoint inside this one, for one of several sets of sums that belong together (a site, a process)."""
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
        return Checkpoint(self.folder / f"{_PART}{safe}", self.every_seconds)

    @property
    def due(self) -> bool:
        """Whether the last save is old enough for another."""
        return time.monotonic() - self._last >= self.every_seconds

    def resume(self, accumulator: FoldAccumulator, identity: str) -> int:
        """Load the last save into a fresh accumulator.

        Args:
            accumulator: Empty accumulator of the same layout.
            identity: `run_identity` of the present run.

        Returns:
            The number of batches that the save holds, 0 if there is none.

        Raises:
            FileFormatError: The save is damaged or belongs to another run.
        """
        path = self.folder / _INDEX
        if not path.exists():
            return 0
        index = read_json(path, "the index of saved moments")
        remedy = f"delete {self.folder} to start again"
        if (index.get("format"), index.get("version")) != (FORMAT, FORMAT_VERSION):
            raise FileFormatError(
                f"{path} is not an index of saved moments of version {FORMAT_VERSION}: {remedy}", path
            )
        if index.get("identity") != identity:
            raise FileFormatError(
                f"{path} holds the sums of another run (other data, SAEs, folds or processes): {remedy}, or choose "
                "another folder",
                path,
            )
        batches, tensors = self._read(index, path, remedy)
        try:
            accumulator.restore(tensors)
        except InputError as error:
            raise FileFormatError(f"{path}: {error}: {remedy}", path) from None
        return batches

    def _read(self, index: dict[str, Any], path: Path, remedy: str) -> tuple[int, dict[str, Any]]:
        name, batches = index.get("tensors"), index.get("batches")
        if not isinstance(name, str) or Path(name).name != name or type(batches) is not int or batches < 1:
            raise FileFormatError(f"{path} is damaged: {remedy}", path)
        try:
            return batches, read_tensors(self.folder / name, "saved moments")
        except FileFormatError as error:
            raise FileFormatError(f"{error}; {remedy}", error.path) from None

    def save(self, accumulator: FoldAccumulator, identity: str, batches: int) -> None:
        """Save the sums of the first `batches` batches, then drop older saves."""
        name = f"moments-{batches}.safetensors"
        write_tensors(self.folder / name, accumulator.state())
        index = {"format": FORMAT, "version": FORMAT_VERSION, "identity": identity, "batches": batches, "tensors": name}
        write_json(self.folder / _INDEX, index)
        for old in self.folder.glob("moments-*.safetensors"):
            if old.name != name:
                old.unlink(missing_ok=True)
        self._last = time.monotonic()

    def clear(self) -> None:
        """Remove the saved sums, those of parts included, once the report is written."""
        for part in self.folder.glob(f"{_PART}*"):
            Checkpoint(part).clear()
        (self.folder / _INDEX).unlink(missing_ok=True)
        for old in self.folder.glob("moments-*.safetensors"):
            old.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
