"""Reading weights without unpickling: .safetensors (sharded or not), .npz, and zipped .pt with weights only."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.errors import FileFormatError
from darkmatter.files import read_json, read_tensors

INDEX = ".index.json"
"""Ending of the file that says which shard holds which tensor."""

_SAFE_TORCH = (2, 6)
"""First torch whose ``weights_only=True`` cannot be made to run code (CVE-2025-32434)."""


_MOST_DEFLATED = 1100
"""Deflate never packs more bytes than this into one; an archive that claims more is lying about its size."""

_READ_AT_ONCE = 2**24


def read_weights(path: Path) -> dict[str, Any]:
    """Read a file of weights by its suffix.

    Args:
        path: A `.safetensors` file (or where one would be, beside its shards' index), `.npz` or `.pt`.

    Returns:
        Tensors by name, on the CPU; a `.pt` file may also hold strings, numbers and nested dictionaries.

    Raises:
        FileFormatError: Missing, truncated, foreign, pickled, or another suffix.
    """
    if path.suffix == ".npz":
        return dict(read_npz(path))
    if path.suffix == ".pt":
        return read_torch(path)
    if path.suffix == ".safetensors":
        return dict(read_safetensors(path))
    raise FileFormatError(
        f"{path} ends in {path.suffix or 'nothing'!r}, expected .safetensors, .npz or .pt: other pickled formats are "
        "never opened, convert the weights to .safetensors",
        path,
    )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file, or of the shards that its index lists.

    Args:
        path: The file; where it does not exist but ``<path>.index.json`` does, the shards are read.

    Returns:
        Tensors by name.

    Raises:
        FileFormatError: Missing, truncated or foreign; an index that is malformed, points outside its folder, or does
            not match its shards.
    """
    index = path.with_name(path.name + INDEX)
    if path.is_file() or not index.is_file():
        return _safetensors(path)
    shards = shard_names(index)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(shards.values())):
        listed = {key for key, shard in shards.items() if shard == name}
        found = _safetensors(index.with_name(name))
        if set(found) != listed:
            raise FileFormatError(
                f"{index.with_name(name)} and {index} disagree about {sorted(set(found) ^ listed)[:3]}: the files "
                "belong to different SAEs, get them again",
                index,
            )
        tensors |= found
    return tensors


def shard_names(index: Path) -> dict[str, str]:
    """Read which shard holds which tensor.

    Args:
        index: The index file.

    Returns:
        File names by tensor name; every one lies beside the index.

    Raises:
        FileFormatError: Not JSON, no `weight_map` of strings, or a name that leads out of the folder.
    """
    shards = read_json(index, "an index of safetensors shards").get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise FileFormatError(
            f"{index} has no weight_map of file names, expected an index of safetensors shards", index
        )
    for name in shards.values():
        if not name.endswith(".safetensors") or set(name) & set("/\\:\0") or name.startswith("."):
            raise FileFormatError(
                f"{index} names the shard {name!r}, expected a plain .safetensors file name in the same folder: do not "
                "trust these files",
                index,
            )
    return dict(shards)


def read_npz(path: Path) -> dict[str, Tensor]:
    """Read every array of an `.npz` file; objects are refused, and no header is believed beyond the file's size.

    Args:
        path: The file.

    Returns:
        Tensors by name.

    Raises:
        FileFormatError: Missing, truncated, foreign, or holding Python objects.
    """
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist, expected the weights of an SAE", path)
    try:
        return _npz(path)
    except Exception as error:  # numpy evaluates a header's text and fails in whatever way it suggests
        if isinstance(error, MemoryError):
            raise
        raise FileFormatError(
            f"{path} cannot be read as .npz ({_first_line(error)}): it is truncated, foreign or holds Python objects",
            path,
        ) from None


def read_torch(path: Path) -> dict[str, Any]:
    """Read a `.pt` file with ``weights_only=True``; the tensors are mapped, not copied.

    Args:
        path: The file, in the zip format of torch 1.6 and later.

    Returns:
        What it holds, which must be a dictionary with string keys.

    Raises:
        FileFormatError: Missing, truncated, in the old format, holding objects, no dictionary, or a torch too old to
            read it safely.
    """
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist, expected the weights of an SAE", path)
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _SAFE_TORCH:
        raise FileFormatError(
            f"{path} is a .pt file, which torch {torch.__version__} cannot read safely: update torch to 2.6, or "
            "convert the weights to .safetensors",
            path,
        )
    if not zipfile.is_zipfile(path):
        raise FileFormatError(
            f"{path} is no zipped .pt file: it is truncated, foreign or a plain pickle, which is never opened", path
        )
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise FileFormatError(
            f"{path} holds more than tensors, numbers and strings, and is not opened: ask for the weights alone, as "
            ".safetensors or a state dict",
            path,
        ) from None
    except Exception as error:  # damaged bytes are obeyed by torch's reader until something breaks, whatever it is
        if isinstance(error, MemoryError):
            raise
        raise FileFormatError(
            f"{path} cannot be read as .pt ({_first_line(error)}): it is truncated or foreign", path
        ) from None
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise FileFormatError(f"{path} holds a {type(value).__name__}, expected a dictionary of tensors by name", path)
    return dict(value)


def _npz(path: Path) -> dict[str, Tensor]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.file_size > _MOST_DEFLATED * path.stat().st_size:
                raise ValueError(f"it claims {entry.file_size} bytes, more than a file of its size can hold")
            with archive.open(entry) as file:
                found[entry.filename.removesuffix(".npy")] = torch.from_numpy(_read_npy(file, entry.file_size))
    return found


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(path, "the weights of an SAE")
    except (RuntimeError, MemoryError, OverflowError) as error:  # torch's own errors on shapes that cannot exist
        raise FileFormatError(
            f"{path} cannot be read as safetensors ({_first_line(error)}): it is truncated or foreign", path
        ) from None


def _read_npy(stream: IO[bytes], size: int) -> npt.NDArray[Any]:
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes != size - stream.tell():
        raise ValueError(f"a header promises {n_bytes} bytes of data, the archive holds {size - stream.tell()}")
    data = bytearray(n_bytes)
    view, filled = memoryview(data), 0
    while filled < n_bytes:
        part = stream.read(min(_READ_AT_ONCE, n_bytes - filled))
        if not part:
            raise ValueError(f"{n_bytes - filled} bytes of data are missing")
        view[filled : filled + len(part)] = part
        filled += len(part)
    array: npt.NDArray[Any] = np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array, dtype=dtype.newbyteorder("="))


def _first_line(error: Exception) -> str:
    return " ".join((str(error).splitlines() or [""])[0].split())[:200] or type(error).__name__
