"""Which family's files these are: by their names first, then by what they hold, never by a guess."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from darkmatter.adapters.saes.loaded import Family
from darkmatter.adapters.saes.tensor_files import INDEX
from darkmatter.errors import FileFormatError
from darkmatter.files import read_json
from darkmatter.sae.store import FORMAT

WEIGHTS: dict[str, tuple[Family, ...]] = {
    "params.npz": ("gemmascope",),
    "params.safetensors": ("gemmascope",),
    "sae_weights.safetensors": ("saelens",),
    "sae.safetensors": ("sparsify", "darkmatter"),
    "ae.pt": ("dictionary_learning", "openai"),
}
"""Names of the weights, and whose they may be."""

CONFIGS: dict[Family, str] = {
    "gemmascope": "config.json",
    "saelens": "cfg.json",
    "sparsify": "cfg.json",
    "dictionary_learning": "config.json",
    "darkmatter": "cfg.json",
}
SIDECARS = ("cfg.json", "config.json", "activation_scaler.json")
"""Small files beside the weights that may be read."""

_BY_SUFFIX: dict[str, tuple[Family, ...]] = {".npz": ("gemmascope",), ".pt": ("dictionary_learning", "openai")}
_NEEDS = (
    "gemmascope (params.npz, or params.safetensors with config.json), saelens (sae_weights.safetensors with cfg.json), "
    "sparsify or darkmatter (sae.safetensors with cfg.json), dictionary_learning (ae.pt with config.json), openai (one "
    ".pt file)"
)


def choose_weights(names: Collection[str], family: Family | None, where: str) -> str:
    """Choose the file of weights among the names in a folder.

    Args:
        names: Names of files and folders.
        family: The family that is asked for; None takes any.
        where: The folder, for the message.

    Returns:
        Its name; for shards the name that the whole file would have.

    Raises:
        FileFormatError: None, or several.
    """
    plain = {name.removesuffix(INDEX) for name in names}
    found = sorted(name for name in plain & set(WEIGHTS) if family is None or family in WEIGHTS[name])
    if not found:
        others = sorted(name for name in plain if Path(name).suffix in _BY_SUFFIX)
        found = [name for name in others if family is None or family in _BY_SUFFIX[Path(name).suffix]]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(sorted(names)[:12]) or "nothing"
    if found:
        raise FileFormatError(
            f"{where} holds several files of weights ({', '.join(found[:6])}), expected one: name the file itself, or "
            "the family",
            Path(where),
        )
    asked = "no SAE of a known family" if family is None else f"no SAE of the family {family}"
    raise FileFormatError(
        f"{where} holds {asked} (found: {listed}), expected one of {_NEEDS}: name the SAE's own folder or file",
        Path(where),
    )


def is_ours(folder: Path) -> bool:
    """Whether a folder's `cfg.json` says that it is of our own format."""
    path = folder / "cfg.json"
    return path.is_file() and read_json(path, "the configuration of an SAE").get("format") == FORMAT


def family_of(weights: Mapping[str, Any], path: Path, asked: Family | None) -> Family:
    """Recognise a family by the names of its tensors.

    Args:
        weights: What the file holds.
        path: The file.
        asked: The family that is asked for; None takes any.

    Returns:
        The family.

    Raises:
        FileFormatError: Unknown names, or those of another family than the one asked for.
    """
    found = _by_names(set(weights), path.suffix)
    if found is None:
        raise FileFormatError(
            f"{path} holds {sorted(weights)[:8]}, which no known family writes, expected one of {_NEEDS}", path
        )
    if asked is not None and asked != found:
        raise FileFormatError(
            f"{path} holds the tensors of {found}, not of {asked}, which would be read wrongly: leave the family out",
            path,
        )
    return found


def _by_names(names: set[str], suffix: str) -> Family | None:
    if {"pre_bias", "latent_bias"} <= names:
        return "openai"
    if suffix == ".pt":
        return "dictionary_learning"
    if "w_enc" in names or (suffix == ".npz" and "W_enc" in names):
        return "gemmascope"
    if "encoder.weight" in names:
        return "sparsify"
    return "saelens" if "W_enc" in names else None
