"""Whatever activations lie at a place on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from darkmatter.adapters.caches.array_stream import ArrayActivations, array_activations
from darkmatter.adapters.caches.arrow_files import INFO
from darkmatter.adapters.caches.layout import INDEX
from darkmatter.adapters.caches.rows import is_pattern
from darkmatter.adapters.caches.saelens import SaelensActivations, saelens_activations
from darkmatter.adapters.caches.shards import CachedActivations, cached_activations
from darkmatter.adapters.positions import PositionPolicy
from darkmatter.errors import FileFormatError, InputError


def open_activations(
    place: Path | str,
    *,
    hook: str | None = None,
    docs: Any = None,
    positions: PositionPolicy | None = None,
    batch_size: int = 4096,
    verify: bool = False,
) -> CachedActivations | SaelensActivations | ArrayActivations:
    """Open stored activations of any kind that says what it is.

    Args:
        place: The folder of a cache, ours or SAELens', or array files: one, or a pattern such as ``acts-*.npy``.
        hook: The column of a SAELens cache.
        docs: Document ids of array files.
        positions: Which positions of a SAELens cache count.
        batch_size: Tokens in a batch.
        verify: Compare the digests of our own cache.

    Returns:
        The stream.

    Raises:
        InputError: An option that this kind does not have.
        FileFormatError: Nothing that is known.
    """
    path = Path(place)
    ours = path.is_dir() and not (path / INFO).exists()
    lens = path.is_dir() and not ours
    for name, value, fits in (
        ("hook", hook, lens),
        ("positions", positions, lens),
        ("docs", docs, not path.is_dir()),
        ("verify", verify or None, ours),
    ):
        if value is not None and not fits:
            kind = "a darkmatter cache" if ours else "a SAELens cache" if lens else "array files"
            raise InputError(f"{name} has no meaning for {kind} ({place}): leave it out")
    if lens:
        return saelens_activations(path, hook=hook, positions=positions, batch_size=batch_size)
    if ours:
        return cached_activations(path, batch_size=batch_size, verify=verify)
    if path.suffix in {".npy", ".safetensors"} or ".safetensors:" in str(place) or is_pattern(str(place)):
        return array_activations(place, docs, batch_size=batch_size)
    raise FileFormatError(
        f"{place} holds no known activations, expected a folder with {INDEX} (ours) or {INFO} (SAELens), or .npy or "
        ".safetensors files",
        path,
    )
