"""Our own cache format: `cache.json`, and shards `x-00000.safetensors` of consecutive tokens.

A shard holds ``x`` (n, d_model) in the cache's dtype, ``groups`` (n,) and, where they are known, ``positions`` (n,) and
``token_ids`` (n,), all int64. While a cache is being written its index is called `cache.partial.json`, so that what
looks like a cache is a whole one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from darkmatter.errors import FileFormatError
from darkmatter.files import read_json

FORMAT = "darkmatter-cache"
FORMAT_VERSION = 1
INDEX = "cache.json"
PARTIAL = "cache.partial.json"
SHARDS = "x-*.safetensors"
COLUMNS = ("groups", "positions", "token_ids")
DTYPES: Mapping[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}

_NAME = re.compile(r"x-\d{5,8}\.safetensors")  # no separator can match, so no shard lies outside its folder
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_MOST_HEADER = 2**20  # bytes; ours need a few hundred
_READ_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of a cache.

    Attributes:
        file: Its name, beside the index.
        n_tokens: Tokens in it.
        n_batches: Batches of the written stream in it: where a killed write goes on.
        n_bytes: Its size.
        sha256: Digest of its bytes, as `sha256sum` prints it.
    """

    file: str
    n_tokens: int
    n_batches: int
    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheIndex:
    """What `cache.json` says.

    Attributes:
        source: Description of the stream that was written: model, revision, site, text, tokens, positions.
        dtype: Precision of x on disk.
        d_model: Activation width.
        columns: What is kept beside x.
        shards: The files, in order.
    """

    source: Mapping[str, Any]
    dtype: str
    d_model: int
    columns: tuple[str, ...]
    shards: tuple[Shard, ...] = ()

    @property
    def identity(self) -> str:
        """Digest of what decides the content: equal for two runs that would write the same cache."""
        return _digest([self.source, self.dtype, self.d_model])

    @property
    def fingerprint(self) -> str:
        """Digest of the content."""
        return _digest([self.source, self.dtype, self.d_model, self.columns, [asdict(shard) for shard in self.shards]])

    @property
    def n_tokens(self) -> int:
        """Tokens in all shards."""
        return sum(shard.n_tokens for shard in self.shards)

    @property
    def n_batches(self) -> int:
        """Batches of the written stream in all shards."""
        return sum(shard.n_batches for shard in self.shards)

    @property
    def bytes_per_token(self) -> int:
        """Size of one token's data on disk."""
        return self.d_model * DTYPES[self.dtype].itemsize + 8 * len(self.columns)

    def to_dict(self) -> dict[str, Any]:
        """The index as JSON."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "identity": self.identity,
            "source": dict(self.source),
            "dtype": self.dtype,
            "d_model": self.d_model,
            "n_tokens": self.n_tokens,
            "columns": list(self.columns),
            "shards": [asdict(shard) for shard in self.shards],
        }


def read_index(path: Path) -> CacheIndex:
    """Read and check an index; the shards are not looked at.

    Args:
        path: The index file.

    Returns:
        What it says.

    Raises:
        FileFormatError: Not an index of this version, or one that contradicts itself or names a file elsewhere.
    """
    value = read_json(path, "the index of cached activations")
    if value.get("format") != FORMAT:
        raise FileFormatError(
            f"{path} has format {value.get('format')!r}, expected {FORMAT!r}: it is no cache of activations", path
        )
    if value.get("version") != FORMAT_VERSION:
        raise FileFormatError(
            f"{path} has version {value.get('version')!r}, expected {FORMAT_VERSION}: write the cache again, or read "
            "it with the program that wrote it",
            path,
        )
    shards = value.get("shards")
    if not isinstance(shards, list):
        raise FileFormatError(_damaged(path, "it has no list of shards"), path)
    known = tuple(_read_shard(path, entry) for entry in shards)
    if len({shard.file for shard in known}) < len(known):
        raise FileFormatError(_damaged(path, "it lists a shard twice"), path)
    source, dtype, columns = value.get("source"), value.get("dtype"), value.get("columns")
    if not isinstance(source, dict):
        raise FileFormatError(_damaged(path, "it has no description of the source"), path)
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FileFormatError(_damaged(path, f"its dtype is {dtype!r}, expected one of {', '.join(DTYPES)}"), path)
    if not isinstance(columns, list) or not _plain_columns(columns):
        wanted = "expected 'groups' and perhaps 'positions' and 'token_ids'"
        raise FileFormatError(_damaged(path, f"its columns are {columns!r}, {wanted}"), path)
    index = CacheIndex(
        source=source, dtype=dtype, d_model=_count(path, value, "d_model"), columns=tuple(columns), shards=known
    )
    if value.get("n_tokens") != index.n_tokens:
        why = f"it promises {value.get('n_tokens')!r} tokens, its shards hold {index.n_tokens}"
        raise FileFormatError(_damaged(path, why), path)
    return index


def check_shard(folder: Path, shard: Shard, index: CacheIndex) -> None:
    """Check a shard's size, header and tensors against the index; the data are not read.

    Args:
        folder: Folder of the cache.
        shard: Which.
        index: The index.

    Raises:
        FileFormatError: Missing, truncated, or holding something else.
    """
    path = folder / shard.file
    if not path.is_file():
        raise FileFormatError(f"{path} is missing, so the cache is not whole: copy it again, or write it again", path)
    size = path.stat().st_size
    if size != shard.n_bytes:
        state = "truncated" if size < shard.n_bytes else "another file"
        raise FileFormatError(
            f"{path} has {size} bytes, expected {shard.n_bytes}: it is {state}, copy the cache again or write it again",
            path,
        )
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")  # whoever made the file chose it
    if header > _MOST_HEADER:
        raise FileFormatError(_foreign(path, f"its header claims {header} bytes"), path)
    if 8 + header + shard.n_tokens * index.bytes_per_token != size:
        why = f"its data do not have {shard.n_tokens} tokens of {index.bytes_per_token} bytes"
        raise FileFormatError(_foreign(path, why), path)
    expected = {"x": ([shard.n_tokens, index.d_model], _CODES[index.dtype])}
    expected |= {column: ([shard.n_tokens], "I64") for column in index.columns}
    try:
        with safe_open(path, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
            found = {key: (part.get_shape(), part.get_dtype()) for key, part in slices.items()}
    except Exception as error:  # SafetensorError, and torch's own errors on shapes that cannot exist
        raise FileFormatError(_foreign(path, first_line(error)), path) from None
    if found != expected:
        raise FileFormatError(_foreign(path, f"it holds {_listed(found)}, expected {_listed(expected)}"), path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read a few MB at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_READ_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """The first line of an error's text, cut where it is long; its type where it has none."""
    return " ".join((str(error).splitlines() or [""])[0].split())[:200] or type(error).__name__


def _read_shard(path: Path, entry: Any) -> Shard:
    if not isinstance(entry, dict):
        raise FileFormatError(_damaged(path, f"a shard is a {type(entry).__name__}, expected an object"), path)
    name, digest = entry.get("file"), entry.get("sha256")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise FileFormatError(
            f"{path} names the shard {name!r}, expected a name such as 'x-00000.safetensors' in the same folder: do "
            "not trust these files",
            path,
        )
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise FileFormatError(_damaged(path, f"shard {name} has no SHA-256"), path)
    counts = {key: _count(path, entry, key) for key in ("n_tokens", "n_batches", "n_bytes")}
    return Shard(file=name, sha256=digest, **counts)


def _count(path: Path, value: Mapping[str, Any], key: str) -> int:
    found = value.get(key)
    if type(found) is not int or not 0 < found < 2**53:
        raise FileFormatError(_damaged(path, f"{key} is {found!r}, expected a positive integer"), path)
    return found


def _plain_columns(columns: list[Any]) -> bool:
    return columns == [column for column in COLUMNS if column in columns] and "groups" in columns


def _listed(tensors: Mapping[str, tuple[list[int], str]]) -> str:
    return ", ".join(f"{name} {code} {tuple(shape)}" for name, (shape, code) in sorted(tensors.items()))


def _digest(value: Any) -> str:
    text = json.dumps([FORMAT, FORMAT_VERSION, value], sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _damaged(path: Path, why: str) -> str:
    return f"{path} is damaged ({why}): write the cache again"


def _foreign(path: Path, why: str) -> str:
    return f"{path} is not the shard that the index describes ({why}): write the cache again"
