"""Arrays and document ids in files: `.npy`, `.safetensors`, and for ids also `.json` and `.txt`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from darkmatter.adapters.arrays import ArraySource, from_arrays
from darkmatter.adapters.group_ids import as_group_ids
from darkmatter.batch import Array
from darkmatter.errors import FileFormatError, InputError

_KEY_MARK = ".safetensors:"


def load_array(path: Path | str, *, key: str | None = None) -> Array:
    """Open a matrix of activations or reconstructions without reading it into memory.

    Args:
        path: A `.npy` file, or a `.safetensors` file, which may be followed by a colon and the tensor's name
            (`cache.safetensors:x`).
        key: Name of the tensor in a `.safetensors` file with several, instead of the colon.

    Returns:
        (n_tokens, d_model), floating: a read-only memory map for `.npy`, a mapped tensor for `.safetensors`.

    Raises:
        FileFormatError: Missing, truncated, foreign, pickled, in Fortran order, or not a floating matrix.
    """
    value, file = _open(path, key)
    floating = value.is_floating_point() if isinstance(value, Tensor) else value.dtype.kind == "f"
    if not floating or value.dtype.itemsize not in {2, 4, 8}:
        raise FileFormatError(
            f"{file} holds {str(value.dtype).removeprefix('torch.')}, expected float16, bfloat16, float32 or float64: "
            "save activations in one of these",
            file,
        )
    if value.ndim != 2 or 0 in value.shape:
        raise FileFormatError(
            f"{file} holds an array of shape {tuple(value.shape)}, expected (n_tokens, d_model) with at least one "
            "token: flatten batch and position before saving",
            file,
        )
    return value


def load_groups(path: Path | str, *, key: str | None = None) -> npt.NDArray[np.int64]:
    """Read document ids, one per token.

    Args:
        path: `.npy` or `.safetensors` (integers; `.npy` may hold strings), `.json` (a list of integers or of
            strings), or `.txt` (one id per line, always taken as a string).
        key: Name of the tensor in a `.safetensors` file with several.

    Returns:
        Ids, (n_tokens,), as `from_arrays` would make them.

    Raises:
        FileFormatError: Missing, unreadable, or not a list of document ids.
    """
    file = Path(path)
    labels: Any
    if file.suffix == ".json":
        labels = _json_labels(file)
    elif file.suffix == ".txt":
        labels = _text_labels(file)
    else:
        labels, file = _open(path, key)
    try:
        ids = as_group_ids(labels)
    except InputError as error:
        raise FileFormatError(f"{file}: {error}", file) from None
    if not len(ids):
        raise FileFormatError(f"{file} holds no document id, expected one per token", file)
    return ids


def files_source(
    acts: Path | str,
    recons: Mapping[str, Path | str],
    docs: Path | str | None = None,
    *,
    batch_size: int = 4096,
    description: Mapping[str, Any] | None = None,
) -> ArraySource:
    """Make a source of files with activations, reconstructions and document ids.

    Args:
        acts: File of the activations x, see `load_array`.
        recons: File of the reconstructions Sae(x) for each SAE name.
        docs: File of the document ids, see `load_groups`; None makes each token its own document.
        batch_size: Rows per batch.
        description: Facts to add to the description.

    Returns:
        The source; the files are mapped, not read.

    Raises:
        InputError: A reconstruction is the activations' own file, or the arrays do not fit together.
    """
    for name, path in recons.items():
        if Path(path).resolve() == Path(acts).resolve():
            raise InputError(f"recon {name!r} is the file of x ({path}): did you pass x twice? Expected Sae(x)")
    files = {
        "acts": Path(acts).name,
        "docs": None if docs is None else Path(docs).name,
        "recons": {name: Path(path).name for name, path in recons.items()},
    }
    return from_arrays(
        load_array(acts),
        {name: load_array(path) for name, path in recons.items()},
        None if docs is None else load_groups(docs),
        batch_size=batch_size,
        description={"files": files, **(description or {})},
    )


def _open(path: Path | str, key: str | None) -> tuple[Array, Path]:
    text = str(path)
    if key is None and _KEY_MARK in text and not Path(text).exists():
        text, _, key = text.partition(_KEY_MARK)
        text += _KEY_MARK[:-1]
    file = Path(text)
    if not file.is_file():
        raise FileFormatError(f"{file} is not a file, expected a .npy or .safetensors array", file)
    if file.suffix == ".safetensors":
        return _open_safetensors(file, key), file
    if file.suffix != ".npy":
        raise FileFormatError(
            f"{file} ends in {file.suffix or 'nothing'!r}, expected .npy or .safetensors: a raw float file has no "
            "shape, open it with `numpy.memmap` and pass it to `from_arrays`; pickled formats are never opened",
            file,
        )
    if key is not None:
        raise FileFormatError(f"{file} holds one array, so the key {key!r} has no meaning: leave it out", file)
    return _open_npy(file), file


def _open_npy(file: Path) -> npt.NDArray[Any]:
    try:
        value = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # a damaged header is evaluated by numpy and fails in whatever way its text suggests
        raise FileFormatError(
            f"{file} cannot be opened as .npy ({_first_line(error)}): it is truncated, foreign or holds Python "
            "objects; write it with `numpy.save(path, x.astype('float32'))`",
            file,
        ) from None
    if value.ndim > 1 and not value.flags.c_contiguous:
        raise FileFormatError(
            f"{file} is in Fortran order, where a row is scattered over the whole file: "
            "rewrite it with `numpy.save(path, numpy.ascontiguousarray(x))`",
            file,
        )
    extra = file.stat().st_size - (getattr(value, "offset", 0) + value.nbytes)
    if value.size and extra:
        raise FileFormatError(
            f"{file} has {extra} bytes after its array of shape {value.shape}: save one array per file", file
        )
    return value


def _open_safetensors(file: Path, key: str | None) -> Tensor:
    try:
        with safe_open(file, framework="pt") as opened:
            keys = sorted(opened.keys())
            chosen = keys[0] if key is None and len(keys) == 1 else key
            if chosen in keys:
                return torch.as_tensor(opened.get_tensor(chosen))  # mapped: pages are read when they are used
    except Exception as error:  # SafetensorError, and torch's own errors on shapes that cannot exist
        kind = "" if isinstance(error, SafetensorError) else f"{type(error).__name__}: "
        raise FileFormatError(
            f"{file} cannot be opened as safetensors ({kind}{_first_line(error)}): it is truncated or foreign", file
        ) from None
    asked = "no key was given" if key is None else f"not {key!r}"
    raise FileFormatError(f"{file} holds {keys}, {asked}: choose one with `{file.name}:KEY`", file)


def _json_labels(file: Path) -> list[Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{file} cannot be read as JSON ({_first_line(error)})", file) from None
    if not isinstance(value, list):
        raise FileFormatError(f"{file} holds a JSON {type(value).__name__}, expected a list of document ids", file)
    for index, label in enumerate(value):
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise FileFormatError(
                f"{file} entry {index} is {json.dumps(label)[:40]}, expected an integer or a string", file
            )
    return value


def _text_labels(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{file} cannot be read as UTF-8 text ({_first_line(error)})", file) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise FileFormatError(f"{file} line {number} is blank, expected one document id per line", file)
    return [line.strip() for line in lines]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
