"""Cells of a sweep on disk: one atomic JSON file each, which says all about it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from darkmatter.commands.console import Steps
from darkmatter.commands.grid import Cell
from darkmatter.commands.measure import measure
from darkmatter.errors import DarkmatterError, FileFormatError
from darkmatter.files import read_json, write_json
from darkmatter.sandbox import World

FORMAT = "darkmatter-cell"
VERSION = 1

State = Literal["done", "failed", "missing"]


def cell_path(out: Path, cell: Cell) -> Path:
    """The file of a cell."""
    return out / "cells" / f"{cell.identity}.json"


def work_folder(out: Path, cell: Cell) -> Path:
    """Where a cell keeps its SAE and its sums while it runs."""
    return out / "saes" / cell.identity


def read_cell(out: Path, cell: Cell) -> dict[str, Any] | None:
    """Read the file of a cell.

    Args:
        out: The sweep's folder.
        cell: The cell.

    Returns:
        The record with `state`, and `report` or `error`; None if there is none.

    Raises:
        FileFormatError: It is damaged, or not the file of this cell.
    """
    path = cell_path(out, cell)
    if not path.exists():
        return None
    record = read_json(path, "the result of one cell of a sweep")
    got = (record.get("format"), record.get("version"), record.get("cell"))
    if got != (FORMAT, VERSION, cell.identity) or record.get("state") not in {"done", "failed"}:
        raise FileFormatError(
            f"{path} is not the result of cell {cell.identity}: delete it, and run the cell again", path
        )
    return record


def state_of(out: Path, cell: Cell) -> State:
    """Whether a cell is done, failed, or was never finished."""
    record = read_cell(out, cell)
    return "missing" if record is None else record["state"]


def unfinished(out: Path, cells: Sequence[Cell]) -> list[Cell]:
    """The cells that are not done; those that failed are to be tried again."""
    return [cell for cell in cells if state_of(out, cell) != "done"]


def run_cell(cell: Cell, *, world: World, out: Path, keep_sae: bool, bars: Steps) -> dict[str, Any]:
    """Carry out one cell and write its file, whatever happens to it.

    Args:
        cell: The cell.
        world: Its world; the same object for cells that share it, so that its parts are built once.
        out: The sweep's folder.
        keep_sae: Leave a trained SAE in `saes/`.
        bars: Progress.

    Returns:
        What was written.
    """
    record: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "cell": cell.identity,
        "kind": cell.kind,
        "experiment": cell.experiment.to_dict(),
    }
    folder = work_folder(out, cell)
    try:
        outcome = measure(replace(cell.experiment, world=world), folder=folder, bars=bars)
    except Exception as error:  # whatever it was, it must not cost the other cells
        known = isinstance(error, DarkmatterError)
        message = " ".join(str(error).split()) if known else f"{type(error).__name__}: {' '.join(str(error).split())}"
        record |= {"state": "failed", "error": message}
        if state_of(out, cell) != "done":  # another process may have been luckier
            write_json(cell_path(out, cell), record)
        return record
    record |= {"state": "done", "report": outcome.to_dict()}
    write_json(cell_path(out, cell), record)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    if not keep_sae:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # other cells are at work in there
            folder.parent.rmdir()
    return record
