"""Many SAEs by one pattern: folders or files on disk, or folders of a repository on the hub."""

from __future__ import annotations

import glob
import re
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from darkmatter.adapters.saes.hub import list_files
from darkmatter.errors import InputError

_WILD = re.compile(r"[*?\[]")


def expand_pattern(pattern: str) -> dict[str, str]:
    """Find the SAEs that a pattern such as ``layer_20/width_*/average_l0_*`` means.

    Args:
        pattern: A local path with ``*``, ``?`` or ``[…]``; or the same behind ``owner/name/`` on the hub, with
            ``@revision`` at the end if wanted, where nothing local fits.

    Returns:
        Locations for `load_any_sae` by name: the parts of the path that the wildcards stand in, joined by slashes.

    Raises:
        InputError: No wildcard, or nothing that fits.
    """
    path, _, revision = pattern.partition("@")
    parts = path.rstrip("/").split("/")
    wild = [i for i, part in enumerate(parts) if _WILD.search(part)]
    if not wild:
        raise InputError(f"{pattern!r} has no wildcard, expected a pattern such as layer_20/width_*/average_l0_*")
    local = [] if revision else sorted(glob.glob(path.rstrip("/")))  # noqa: PTH207 - the pattern may be absolute
    found = [Path(place).as_posix().split("/") for place in local]
    behind = ""
    if not found and wild[0] >= 2 and not path.startswith((".", "/", "~")):
        found = [[*parts[:2], *folder] for folder in _folders(parts, revision)]
        behind = f"@{revision}" if revision else ""
    if not found:
        raise InputError(f"nothing fits {pattern!r}, expected at least one SAE: check the path (quote it in a shell)")
    return {"/".join(place[i] for i in wild): "/".join(place) + behind for place in found}


def _folders(parts: list[str], revision: str) -> list[list[str]]:
    """Folders of a repository that the rest of a pattern fits, part by part."""
    repo, inside = "/".join(parts[:2]), parts[2:]
    seen: dict[tuple[str, ...], None] = {}
    for name in sorted(list_files(repo, revision or None)):
        folder = PurePosixPath(name).parts[:-1][: len(inside)]
        if len(folder) == len(inside) and all(map(fnmatchcase, folder, inside)):
            seen[folder] = None
    return [list(folder) for folder in seen]
