"""Writing a trained SAE for other libraries: what can be written, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from darkmatter.errors import InputError
from darkmatter.sae import SAE, Architecture
from darkmatter.sae.export import export_gemmascope, export_saelens


class _Export(Protocol):
    def __call__(self, sae: SAE, out: Path, metadata: Mapping[str, Any]) -> None: ...


def _saelens(sae: SAE, out: Path, metadata: Mapping[str, Any]) -> None:
    export_saelens(sae, out / "saelens", metadata=metadata)


def _gemmascope(sae: SAE, out: Path, metadata: Mapping[str, Any]) -> None:
    export_gemmascope(sae, out / "gemmascope" / "params.npz")  # the format has no place for metadata


EXPORTS: Mapping[str, _Export] = {"saelens": _saelens, "gemmascope": _gemmascope}
"""Formats of other libraries, each written into a folder of its name."""


def check_exports(names: Sequence[str], architecture: Architecture) -> None:
    """Check that an SAE of an architecture can be written in some formats.

    Args:
        names: The formats.
        architecture: What will be trained.

    Raises:
        InputError: An unknown format, or one that cannot hold the SAE.
    """
    unknown = [name for name in names if name not in EXPORTS]
    if unknown:
        raise InputError(f"export is {unknown[0]!r}, expected one of {', '.join(EXPORTS)}")
    if "gemmascope" in names and architecture == "topk":
        raise InputError("a topk SAE has no threshold for --export gemmascope: use saelens, or another architecture")


def write_exports(sae: SAE, out: Path, names: Sequence[str], metadata: Mapping[str, Any] | None = None) -> list[str]:
    """Write an SAE in some formats.

    Args:
        sae: The SAE.
        out: Folder in which each format gets its own.
        names: The formats, checked before.
        metadata: What a format with room for it says about model and hook, in its own words.

    Returns:
        The folders written, such as "saelens/".
    """
    for name in names:
        EXPORTS[name](sae, out, metadata or {})
    return [f"{name}/" for name in names]
