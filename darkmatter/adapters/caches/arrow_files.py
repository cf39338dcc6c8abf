"""The files of a Hugging Face data set on disk: its description, its list of arrow files, and their record batches."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from darkmatter.adapters.caches.layout import first_line
from darkmatter.errors import FileFormatError, InputError
from darkmatter.files import read_json

INFO, STATE = "dataset_info.json", "state.json"

_SAFE_ARROW = (14, 0, 1)
"""First pyarrow that does not unpickle what a file names as its type (CVE-2023-47248)."""

_END = b"\xff\xff\xff\xff\0\0\0\0"  # of an arrow stream
_NAME = re.compile(r"[\w.-]+\.arrow")


def choose_hook(path: Path, info: Mapping[str, Any], hook: str | None) -> tuple[str, tuple[int, int], str]:
    """Find the column of activations in a data set's description.

    Args:
        path: The description's file, for messages.
        info: What it holds.
        hook: The column; None where there is only one.

    Returns:
        Its name, its shape (context, d_model), its dtype.

    Raises:
        FileFormatError: No column of arrays, not the one asked for, or one of another kind.
    """
    features = info.get("features")
    arrays = {
        name: feature
        for name, feature in (features.items() if isinstance(features, dict) else ())
        if isinstance(feature, dict) and feature.get("_type") == "Array2D"
    }
    if not arrays:
        raise FileFormatError(
            f"{path} describes no column of (context, d_model) arrays, expected a cache of SAELens", path
        )
    if hook is None and len(arrays) > 1:
        raise FileFormatError(f"{path} has the hooks {', '.join(sorted(arrays))}: choose one with `hook`", path)
    chosen = next(iter(arrays)) if hook is None else hook
    if chosen not in arrays:
        raise FileFormatError(f"{path} has no hook {chosen!r}, expected one of {', '.join(sorted(arrays))}", path)
    shape, dtype = arrays[chosen].get("shape"), arrays[chosen].get("dtype")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and 0 < n < 2**31 for n in shape):
        raise FileFormatError(f"{path} gives {chosen} the shape {shape!r}, expected [context, d_model]", path)
    if dtype not in {"float16", "float32", "float64"}:
        raise FileFormatError(f"{path} gives {chosen} the dtype {dtype!r}, expected float16, float32 or float64", path)
    return chosen, (shape[0], shape[1]), dtype


def data_files(place: Path) -> tuple[list[str], str | None]:
    """Read which files make up a data set.

    Args:
        place: Its folder.

    Returns:
        Their names in order, each a whole file in the folder, and the data set's own fingerprint.

    Raises:
        FileFormatError: A list that is damaged, leads out of the folder or selects rows, or a file too few or too many.
    """
    path = place / STATE
    state = read_json(path, "the list of files of a SAELens cache")
    if state.get("_indices_data_files"):
        raise FileFormatError(
            f"{path} selects rows by an index, which is not read: save the data set without one", path
        )
    entries = state.get("_data_files")
    if not isinstance(entries, list) or not entries:
        raise FileFormatError(f"{path} lists no data file, expected a data set saved to disk", path)
    names: list[str] = []
    for entry in entries:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise FileFormatError(
                f"{path} names the file {name!r}, expected a plain .arrow file name in the same folder: do not trust "
                "these files",
                path,
            )
        if not (place / name).is_file():
            raise FileFormatError(f"{place / name} is missing, so the cache is not whole: copy it again", place / name)
        names.append(name)
    if len(set(names)) < len(names):
        raise FileFormatError(f"{path} lists a file twice, expected each once", path)
    extra = sorted(found.name for found in place.glob("*.arrow") if found.name not in names)
    if extra:
        raise FileFormatError(f"{place / extra[0]} is not listed in {STATE}: two caches were mixed", place / extra[0])
    fingerprint = state.get("_fingerprint")
    return names, fingerprint if isinstance(fingerprint, str) else None


def record_blocks(path: Path, columns: Collection[str]) -> Iterator[Any]:
    """Read the record batches of a file; their data are mapped, and looked at when they are used.

    Args:
        path: The file.
        columns: What must be there.

    Yields:
        The record batches.

    Raises:
        FileFormatError: Truncated, foreign, or without one of the columns.
    """
    arrow = _arrow(path)
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - len(_END), 0))
        if file.read() != _END:  # arrow itself takes a file that stops between two blocks for a whole one
            raise FileFormatError(
                f"{path} does not end like an arrow stream: it is truncated or foreign, copy the cache again", path
            )
    try:
        with arrow.memory_map(str(path)) as mapped:
            for block in arrow.ipc.open_stream(mapped):
                missing = [column for column in columns if block.schema.get_field_index(column) < 0]
                if missing:
                    raise FileFormatError(f"{path} has no column {missing[0]}, but {INFO} promises one", path)
                yield block
    except Exception as error:  # damaged bytes are obeyed until something breaks, whatever it is
        if isinstance(error, FileFormatError | MemoryError):
            raise
        raise FileFormatError(
            f"{path} cannot be read as an arrow stream ({first_line(error)}): it is truncated or foreign", path
        ) from None


def matrix(column: Any, n: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Copy a column of nested lists into an array.

    Args:
        column: The column.
        n: Its rows.
        shape: Length of every list, from the outer to the inner.

    Returns:
        (n, *shape), integers or floating.

    Raises:
        ValueError: A list of another length, a missing value, or something else than numbers.
    """
    values = getattr(column, "storage", column)
    for length in shape:
        lengths = values.value_lengths()
        if values.null_count or not all(found == length for found in lengths.unique().to_pylist()):
            raise ValueError(f"lists of {lengths.unique().to_pylist()[:4]} values, expected {length}")
        values = values.flatten()
    if values.null_count:
        raise ValueError("missing values")
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype.kind not in "fi" or len(array) != n * int(np.prod(shape)):
        raise ValueError(f"{len(array)} values of {array.dtype}, expected {n} times {shape}")
    return np.array(array).reshape(n, *shape)  # a copy: the file is closed while the batch lives on


def _arrow(path: Path) -> Any:
    try:
        arrow = import_module("pyarrow")
        import_module("pyarrow.ipc")
    except ImportError as error:
        raise InputError(
            f"{path} needs pyarrow, which cannot be imported ({error}): run `pip install 'darkmatter[datasets]'`"
        ) from None
    version = tuple(int(part) for part in re.findall(r"\d+", arrow.__version__)[:3])
    if version < _SAFE_ARROW:
        raise InputError(f"pyarrow {arrow.__version__} cannot read {path} safely: update it to 14.0.1 or later")
    return arrow
