"""`darkmatter sweep`: a grid of experiments, in one process or in as many as there are, one table and one figure."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from darkmatter.commands.cells import read_cell, run_cell, state_of, unfinished
from darkmatter.commands.console import put, say, show_cells, steps
from darkmatter.commands.gather import gather
from darkmatter.commands.grid import Cell, make_cells, read_axes, read_share, varied
from darkmatter.commands.measure import check_experiment
from darkmatter.commands.settings import overlaid, read_config
from darkmatter.errors import FileFormatError, InputError
from darkmatter.files import read_json, write_json
from darkmatter.report import percent_interval
from darkmatter.results import Decomposition
from darkmatter.sandbox import World
from darkmatter.sandbox.experiment import Experiment
from darkmatter.sandbox.presets import preset

FORMAT = "darkmatter-sweep"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRun:
    """One run of `darkmatter sweep`.

    Attributes:
        preset: Name of the preset that the grid starts from; None for the defaults.
        config: JSON of an experiment, or the `sweep.json` of another sweep, over the preset.
        grid: Axes as ``NAME=V1,V2,…``.
        shorthands: Lists of values of the usual axes by name; None where not given.
        share: Which share of the cells to run, as ``i/N``; None for all.
        list_only: Show the cells and their state, run nothing.
        gather_only: Write table and figure of what is there, run nothing.
        keep_saes: Leave every trained SAE in `saes/`.
        out: Folder to write.
        as_json: Print JSON instead of text.
    """

    preset: str | None
    config: Path | None
    grid: Sequence[str]
    shorthands: Mapping[str, str | None]
    share: str | None
    list_only: bool
    gather_only: bool
    keep_saes: bool
    out: Path
    as_json: bool


def run_sweep(run: SweepRun) -> int:
    """Run the cells of a grid that are not done yet, and gather them once all are.

    Args:
        run: What to do.

    Returns:
        How many cells of this run failed.

    Raises:
        InputError: An impossible grid, cell or option; nothing was done.
    """
    base, axes = _plan(run)
    cells = make_cells(base, axes)
    mine = cells if run.share is None else _share(cells, run.share)
    if run.list_only:
        _show_list(run, mine, varied(axes) or list(axes))
        return 0
    if run.gather_only:
        _finish(run, cells, axes, [])
        return 0
    waiting = unfinished(run.out, mine)
    for cell in waiting:
        try:
            check_experiment(cell.experiment, out=run.out)
        except InputError as error:
            raise InputError(f"cell {cell.title}: {error}") from None
    write_json(run.out / "sweep.json", {"format": FORMAT, "version": VERSION, "base": dict(base), "axes": dict(axes)})
    say(f"{len(cells)} cells, {len(mine)} of them here, {len(mine) - len(waiting)} done before")
    failed = _run_cells(run, waiting)
    _finish(run, cells, axes, mine)
    return failed


def _plan(run: SweepRun) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Take the base experiment and the axes from preset, file and options.

    Args:
        run: The options.

    Returns:
        The base experiment as plain settings, and values by axis.

    Raises:
        FileFormatError: The file is neither an experiment nor a whole sweep.
    """
    base = (Experiment() if run.preset is None else preset(run.preset).experiment).to_dict()
    axes = read_axes(run.grid, run.shorthands)
    if run.config is None:
        return base, axes
    data = read_json(run.config, "the JSON of an experiment or of a sweep")
    if data.get("format") != FORMAT:
        return overlaid(base, read_config(run.config), run.config), axes
    stored = data.get("axes")
    texts = isinstance(stored, dict) and all(
        isinstance(values, list) and all(isinstance(value, str) for value in values) for values in stored.values()
    )
    if data.get("version") != VERSION or not texts or not isinstance(data.get("base"), dict):
        raise FileFormatError(
            f"{run.config} is not a whole sweep of version {VERSION}: write its grid again", run.config
        )
    known = read_axes([f"{name}={','.join(values)}" for name, values in data["axes"].items()], {})
    return overlaid(base, data["base"], run.config), {**known, **axes}


def _share(cells: Sequence[Cell], text: str) -> Sequence[Cell]:
    number, total = read_share(text)
    return cells[number - 1 :: total]


def _run_cells(run: SweepRun, cells: Sequence[Cell]) -> int:
    failed, started = 0, time.monotonic()
    world = World()
    with steps() as bars, bars.cells(len(cells)) as done:
        for number, cell in enumerate(cells, start=1):
            if world != cell.experiment.world:
                world = replace(cell.experiment.world)  # a copy of its own, since the cells would keep what it drew
            record = run_cell(cell, world=world, out=run.out, keep_sae=run.keep_saes, bars=bars)
            done()
            failed += record["state"] == "failed"
            used = time.monotonic() - started
            left = used / number * (len(cells) - number)
            bars.say(
                f"[{number}/{len(cells)}] {cell.title}: {_said(record)}; {_clock(used)} used, {_clock(left)} to go"
            )
    return failed


def _said(record: Mapping[str, Any]) -> str:
    if record["state"] == "failed":
        return f"FAILED: {record['error']}"
    ((_, saved),) = record["report"]["saes"].items()
    result = Decomposition.from_dict(saved)
    return f"FVU {percent_interval(result.fvu)}, nonlinear {percent_interval(result.fvu_nonlinear)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _finish(run: SweepRun, cells: Sequence[Cell], axes: Mapping[str, Sequence[str]], mine: Sequence[Cell]) -> None:
    """Gather if all cells are done or it was asked for, and say what is there.

    Args:
        run: The options.
        cells: All cells of the grid.
        axes: Values by axis.
        mine: Cells of this run; none for all.

    Raises:
        InputError: Nothing to gather.
    """
    records = {cell.identity: read_cell(run.out, cell) for cell in cells}
    done = [cell for cell in cells if (record := records[cell.identity]) and record["state"] == "done"]
    if not done and run.gather_only:
        raise InputError(f"{run.out} has none of the {len(cells)} cells of this grid: run them first")
    written: list[str] = []
    if done and (run.gather_only or len(done) == len(cells)):
        written = gather(run.out, [(cell, records[cell.identity] or {}) for cell in done], axes)
    missing = len(cells) - len(done)
    if run.as_json:
        states = [{**_about(cell), **_result(records[cell.identity])} for cell in mine or cells]
        summary = {"format": FORMAT, "version": VERSION, "cells": states, "missing": missing, "files": written}
        put(json.dumps(summary, indent=2, allow_nan=False))
    if missing:
        say(f"{missing} of {len(cells)} cells are still to be done: run the same command, or the shares of the others")
    if written:
        say(f"Wrote {' and '.join(f'{run.out}/{name}' for name in written)}")


def _show_list(run: SweepRun, cells: Sequence[Cell], names: Sequence[str]) -> None:
    states = [state_of(run.out, cell) for cell in cells]
    if run.as_json:
        listed = [{**_about(cell), "state": state} for cell, state in zip(cells, states, strict=True)]
        put(json.dumps({"format": FORMAT, "version": VERSION, "cells": listed}, indent=2))
        return
    show_cells([(c.identity, {n: c.axes[n] for n in names}, state) for c, state in zip(cells, states, strict=True)])


def _about(cell: Cell) -> dict[str, Any]:
    return {"cell": cell.identity, "axes": dict(cell.axes), "kind": cell.kind}


def _result(record: Mapping[str, Any] | None) -> dict[str, Any]:
    if record is None:
        return {"state": "missing"}
    return {key: record[key] for key in ("state", "report", "error") if key in record}
