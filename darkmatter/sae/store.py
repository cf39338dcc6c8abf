"""Saving and loading SAEs: `cfg.json` beside `sae.safetensors`, no pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from darkmatter.errors import FileFormatError, InputError
from darkmatter.files import read_json, read_tensors, write_json, write_tensors
from darkmatter.sae.record import SAE

FORMAT = "darkmatter-sae"
FORMAT_VERSION = 1

_REQUIRED = ("W_enc", "b_enc", "W_dec", "b_dec")
_OPTIONAL = ("b_pre", "threshold", "b_gate", "b_mag", "r_mag")
_KEYS = {"format", "format_version", "activation", "k", "d_model", "d_sae", "dtype", "sha256", "metadata"}
_RARE = {"input_norm"}
"""Keys that are written only where they say something, so that other files stay as they were."""


def save_sae(sae: SAE, folder: Path | str, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write an SAE as ``folder/cfg.json`` and ``folder/sae.safetensors``, bit-exact.

    Each file is replaced atomically and `cfg.json`, which holds the weights' SHA-256, comes last: after a crash the
    folder loads as the old SAE, as the new one, or is refused, never as a mixture.

    Args:
        sae: The SAE.
        folder: Created if missing; an SAE already there is replaced.
        metadata: How it was made (for a trained SAE: `TrainedSAE.describe`), as JSON; goes into every report.

    Raises:
        InputError: `metadata` is not JSON, or `folder` is a file.
    """
    folder, described = check_target(folder, metadata)
    # cloned, since safetensors refuses tensors that share memory, as b_pre and b_dec often do
    write_tensors(folder / "sae.safetensors", {name: value.clone() for name, value in sae.tensors().items()})
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "activation": sae.activation,
        "k": sae.k,
        "d_model": sae.d_model,
        "d_sae": sae.d_sae,
        "dtype": _dtype_name(sae.W_enc),
        "sha256": _sha256(folder / "sae.safetensors"),
        "metadata": described,
    }
    if sae.input_norm is not None:
        header["input_norm"] = sae.input_norm
    write_json(folder / "cfg.json", header)


def check_target(folder: Path | str, metadata: Mapping[str, Any] | None) -> tuple[Path, dict[str, Any]]:
    """Check where an SAE goes and what is said about it, before anything is written.

    Args:
        folder: It need not exist.
        metadata: How the SAE was made.

    Returns:
        Both, as a path and a plain dict.

    Raises:
        InputError: `metadata` is not JSON, or `folder` is a file.
    """
    folder, described = Path(folder), dict(metadata or {})
    try:
        json.dumps(described, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"metadata cannot be written as JSON ({error}): use plain numbers, strings and lists"
        ) from None
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder to write the SAE into")
    return folder, described


def load_sae(folder: Path | str) -> SAE:
    """Read an SAE written by `save_sae`, onto the CPU, bit-exact.

    Args:
        folder: Holds `cfg.json` and `sae.safetensors`.

    Returns:
        The SAE.

    Raises:
        FileFormatError: A file is missing, truncated, altered, foreign or of another version; names the cause and the
            remedy.
    """
    header = _read_header(Path(folder))
    path = Path(folder) / "sae.safetensors"
    tensors = read_tensors(path, "the weights of a darkmatter SAE")
    _check_tensors(tensors, header, path)
    try:
        norm = header.get("input_norm")
        sae = SAE(**tensors, activation=header["activation"], k=header["k"], input_norm=norm)
    except InputError as error:
        raise FileFormatError(f"{path} does not hold a valid SAE: {error}", path) from None
    if _sha256(path) != header["sha256"]:
        raise FileFormatError(
            f"{path} does not match the sha256 in cfg.json: it was altered, or a save was interrupted; save it again",
            path,
        )
    return sae


def load_sae_metadata(folder: Path | str) -> dict[str, Any]:
    """Read what `save_sae` was told about the SAE, without its weights.

    Args:
        folder: Holds `cfg.json`.

    Returns:
        The metadata.

    Raises:
        FileFormatError: `cfg.json` is missing, truncated, foreign or of another version.
    """
    metadata: dict[str, Any] = _read_header(Path(folder))["metadata"]
    return metadata


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / "cfg.json"
    header = read_json(path, "the description of a darkmatter SAE")
    if header.get("format") != FORMAT:
        raise FileFormatError(
            f"{path} has format {header.get('format')!r}, expected {FORMAT!r}: read SAEs of other libraries with "
            "darkmatter.adapters",
            path,
        )
    if header.get("format_version") != FORMAT_VERSION:
        raise FileFormatError(
            f"{path} has format_version {header.get('format_version')!r}, expected {FORMAT_VERSION}: update "
            "darkmatter, or use the version that wrote it",
            path,
        )
    odd = sorted((set(header) - _RARE) ^ _KEYS)
    if odd:
        raise FileFormatError(f"{path} has missing or unknown keys {odd}: save the SAE again", path)
    if not isinstance(header["metadata"], dict):
        raise FileFormatError(f"{path} has metadata {type(header['metadata']).__name__}, expected an object", path)
    return header


def _check_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: Path) -> None:
    missing = [name for name in _REQUIRED if name not in tensors]
    extra = sorted(set(tensors) - {*_REQUIRED, *_OPTIONAL})
    if missing or extra:
        raise FileFormatError(
            f"{path} lacks tensors {missing} and has unknown tensors {extra}: save the SAE again", path
        )
    shape = tuple(tensors["W_enc"].shape)
    if shape != (header["d_model"], header["d_sae"]):
        want = f"({header['d_model']}, {header['d_sae']})"
        raise FileFormatError(
            f"{path} has W_enc of shape {shape}, cfg.json says {want}: the two files belong to different SAEs", path
        )
    if _dtype_name(tensors["W_enc"]) != header["dtype"]:
        raise FileFormatError(
            f"{path} has dtype {_dtype_name(tensors['W_enc'])}, cfg.json says {header['dtype']!r}: "
            "the two files belong to different SAEs",
            path,
        )


def _dtype_name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
