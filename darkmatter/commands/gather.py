"""The cells of a sweep as one tidy table and one figure."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from darkmatter.commands.grid import KIND, Cell
from darkmatter.files import replacing, write_text
from darkmatter.plots_sweep import Point, save_sweep_figure

MEASURED = ("fvu", "linear_share", "fvu_nonlinear", "r2_error", "shrinkage", "gain", "r2_norm")
"""Estimates of a decomposition that go into the table, in this order."""

RECOVERED = (
    "mcc",
    "weighted_mcc",
    "best_cosine",
    "recovered_share",
    "precision",
    "recall",
    "f1",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "absorption",
    "matched_share",
    "duplicate_share",
    "false_share",
    "dead_share",
    "l0",
)
"""Numbers of a recovery that go into the table, in this order."""

TRUTH_OF = {"fvu": "fvu", "fvu_nonlinear": "nonlinear"}
"""Truth beside a measured quantity; every other true share gets a row of its own."""

VALUES = ("value", "low", "high", "truth", "truth_low", "truth_high")

Row = dict[str, str | float | None]
Records = Sequence[tuple[Cell, Mapping[str, Any]]]


def gather(out: Path, records: Records, axes: Mapping[str, Sequence[str]]) -> list[str]:
    """Write `sweep.csv` and `sweep.png`, and `sweep.parquet` where pyarrow is installed.

    Args:
        out: The sweep's folder.
        records: Cells that are done, with what their files say.
        axes: Values by axis.

    Returns:
        Names of the files written.
    """
    rows = [row for cell, record in records for row in _rows(cell, record)]
    columns = ["cell", KIND, *(name for name in axes if name != KIND), "quantity", *VALUES]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "sweep.csv", text.getvalue())
    written = ["sweep.csv"]
    if importlib.util.find_spec("pyarrow"):
        _write_parquet(out / "sweep.parquet", rows, columns)
        written.append("sweep.parquet")
    save_sweep_figure(out / "sweep.png", [_point(cell, record) for cell, record in records], axes)
    return [*written, "sweep.png"]


def _rows(cell: Cell, record: Mapping[str, Any]) -> Iterator[Row]:
    """Give the rows of one cell.

    Args:
        cell: The cell.
        record: What its file says.

    Yields:
        One row per quantity: its estimate, the truth, or both.
    """
    about: Row = {"cell": cell.identity, KIND: cell.kind, **{k: v for k, v in cell.axes.items() if k != KIND}}
    ((name, measured),) = record["report"]["saes"].items()
    truth: Mapping[str, Any] = record["report"].get("truth", {}).get(name, {})
    for quantity in MEASURED:
        true = truth.get(TRUTH_OF.get(quantity, ""))
        yield {**about, "quantity": quantity, **_ends("", measured[quantity]), **_ends("truth", true)}
    bounds = measured["introduced"]
    row: Row = {**about, "quantity": "introduced", "low": bounds["low"], "high": bounds["high"]}
    yield {**row, **_ends("truth", truth.get("introduced"))}
    for quantity, true in truth.items():
        if isinstance(true, Mapping) and quantity not in {*TRUTH_OF.values(), "introduced"}:
            yield {**about, "quantity": quantity, **_ends("truth", true)}
    recovery = record["report"].get("recovery", {}).get(name, {})
    for quantity in RECOVERED:
        if quantity in recovery:
            ends = {end: recovery.get(f"{quantity}_{end}") for end in ("low", "high")}
            yield {**about, "quantity": quantity, "value": recovery[quantity], **ends}


def _ends(prefix: str, estimate: Mapping[str, Any] | None) -> Row:
    if estimate is None:
        return {}
    names = (prefix or "value", f"{prefix}_low".lstrip("_"), f"{prefix}_high".lstrip("_"))
    return {name: estimate[end] for name, end in zip(names, ("value", "low", "high"), strict=True)}


def _point(cell: Cell, record: Mapping[str, Any]) -> Point:
    ((name, measured),) = record["report"]["saes"].items()
    truth: Mapping[str, Any] = record["report"].get("truth", {}).get(name, {})

    def ends(estimate: Mapping[str, Any]) -> tuple[float, float, float]:
        return estimate["value"], estimate["low"], estimate["high"]

    return Point(
        kind=cell.kind,
        axes=cell.axes,
        measured={quantity: ends(measured[quantity]) for quantity in ("fvu", "fvu_nonlinear")},
        truth={quantity: ends(truth[quantity]) for quantity in ("fvu", "nonlinear", "introduced") if quantity in truth},
    )


def _write_parquet(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    pyarrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    numbers = set(VALUES)
    table = pyarrow.table({
        column: pyarrow.array(
            [row.get(column) for row in rows], type=pyarrow.float64() if column in numbers else pyarrow.string()
        )
        for column in columns
    })
    with replacing(path) as temporary:
        parquet.write_table(table, temporary)
