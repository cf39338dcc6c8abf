"""Fetching the few files of one SAE from the Hugging Face hub, or from its local cache when offline.

`huggingface_hub` is imported inside the functions, so that everything else works without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from darkmatter.adapters.saes.loaded import Family, SaeFiles
from darkmatter.adapters.saes.recognise import SIDECARS, WEIGHTS, choose_weights
from darkmatter.adapters.saes.tensor_files import INDEX, shard_names
from darkmatter.errors import DarkmatterError, InputError

_SUFFIXES = (".safetensors", ".npz", ".pt")
_NAME = r"[\w][\w.-]{0,95}"


def fetch(location: str, family: Family | None, revision: str | None) -> SaeFiles:
    """Download what one SAE needs, and nothing else, into the hub's cache.

    Args:
        location: ``owner/name``, with a folder and a file behind it if wanted, and ``@revision``.
        family: The family that is asked for, where a folder holds several.
        revision: Branch, tag or commit; None takes what `location` says, or the main branch.

    Returns:
        Where the files are now.

    Raises:
        InputError: A malformed location, huggingface_hub is missing, or the hub refuses or cannot be reached.
    """
    path, _, behind = location.partition("@")
    if behind and revision is not None:
        raise InputError(f"{location} names a revision and revision is {revision!r}, expected one of the two")
    parts = path.rstrip("/").split("/")
    if not all(re.fullmatch(_NAME, part) for part in parts[:2]) or any(p in {"", ".", ".."} for p in parts):
        raise InputError(f"{location!r} is neither a local path nor a hub id, expected owner/name/folder")
    repo, inside = "/".join(parts[:2]), parts[2:]
    named = inside.pop() if inside and inside[-1].endswith(_SUFFIXES) else None
    with _one_line(location) as hub:
        return _Repository(hub, repo, "/".join(inside), behind or revision).files(named, family, path)


def list_files(repo: str, revision: str | None) -> list[str]:
    """List the files of a repository.

    Args:
        repo: ``owner/name``.
        revision: Branch, tag or commit; None takes the main branch.

    Returns:
        Paths in the repository.

    Raises:
        InputError: Offline mode is on, huggingface_hub is missing, or the hub refuses or cannot be reached.
    """
    with _one_line(repo) as hub:
        if import_module("huggingface_hub.constants").HF_HUB_OFFLINE:
            raise InputError(f"{repo}: a repository cannot be listed offline: name the SAEs one by one with --sae")
        return list(hub.HfApi().list_repo_files(repo, revision=revision))


class _Repository:
    """One folder of a repository."""

    def __init__(self, hub: Any, repo: str, folder: str, revision: str | None) -> None:
        self._hub, self._repo, self._folder, self._revision = hub, repo, folder, revision
        self._offline = bool(import_module("huggingface_hub.constants").HF_HUB_OFFLINE)

    def files(self, named: str | None, family: Family | None, path: str) -> SaeFiles:
        names = self._names(named)
        if named is None and "cfg.json" in names and "sae.safetensors" in names:
            chosen = "sae.safetensors"  # ours or sparsify's: cfg.json will tell
        else:
            chosen = named or choose_weights(names, family, path)
        wanted = [name for name in SIDECARS if name in names]
        if chosen not in names and chosen + INDEX in names:
            index = self._get(chosen + INDEX)
            wanted += sorted(set(shard_names(index).values()))
        else:
            wanted.append(chosen)
        folders = {self._get(name).parent for name in wanted}
        if len(folders) != 1:
            raise InputError(f"{path} changed on the hub while it was read: run the command again")
        weights = folders.pop() / chosen
        return SaeFiles(
            weights=weights, path=path if named is not None else f"{path}/{chosen}", revision=_commit(weights)
        )

    def _names(self, named: str | None) -> set[str]:
        if not self._offline:
            api = self._hub.HfApi()
            # without a network this fails at once, while list_repo_tree would try for half a minute
            commit = api.repo_info(self._repo, revision=self._revision).sha
            tree = api.list_repo_tree(self._repo, path_in_repo=self._folder or None, revision=commit)
            return {Path(entry.path).name for entry in tree}
        found = set()
        for name in {*WEIGHTS, *(weights + INDEX for weights in WEIGHTS), *SIDECARS, *([named] if named else [])}:
            try:
                self._get(name)
            except import_module("huggingface_hub.errors").EntryNotFoundError:  # not in the cache
                continue
            found.add(name)
        if not found:
            raise InputError(
                f"{self._repo}/{self._folder} is no local path and not in the hub's cache, and HF_HUB_OFFLINE is set: "
                "download it once online, or unset HF_HUB_OFFLINE"
            )
        return found

    def _get(self, name: str) -> Path:
        filename = f"{self._folder}/{name}" if self._folder else name
        local = self._hub.hf_hub_download(self._repo, filename, revision=self._revision, local_files_only=self._offline)
        return Path(local)


def _commit(local: Path) -> str | None:
    parts = local.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


@contextmanager
def _one_line(location: str) -> Iterator[Any]:
    try:
        hub = import_module("huggingface_hub")
        errors = import_module("huggingface_hub.errors")
    except ImportError as error:
        raise InputError(
            f"{location} is no local path, and huggingface_hub cannot be imported ({error}): run "
            "`pip install 'darkmatter[models]'`"
        ) from None
    try:
        yield hub
    except DarkmatterError:
        raise
    except errors.GatedRepoError:
        remedy = "it is gated: accept its terms on the hub, then run `hf auth login`"
    except errors.RevisionNotFoundError:
        remedy = "the revision does not exist: check branch, tag or commit"
    except errors.RepositoryNotFoundError:
        remedy = "the repository does not exist or is private: check owner/name, or run `hf auth login`"
    except errors.LocalEntryNotFoundError:
        remedy = "the hub cannot be reached: check the network, or give a local folder"
    except errors.EntryNotFoundError:
        remedy = "the repository has no such folder or file: check the path behind owner/name"
    except Exception as error:  # whatever a library raises on a broken connection or a strange answer
        reason = " ".join((str(error).strip().splitlines() or [""])[0].split())[:160]
        remedy = f"{type(error).__name__}: {reason}: check the network, or set HF_HUB_OFFLINE=1 to use the local cache"
    else:
        return
    raise InputError(f"{location} is no local path and cannot be read from the hub: {remedy}")
