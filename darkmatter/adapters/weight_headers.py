"""What the headers of a model's weights say, without reading the weights."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path

from safetensors import SafetensorError, safe_open

from darkmatter.adapters.saes.tensor_files import INDEX, shard_names
from darkmatter.errors import FileFormatError

_WHOLE = "model.safetensors"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def stored_numbers(folder: Path) -> dict[str, int]:
    """Count stored numbers by precision.

    Args:
        folder: A model's folder.

    Returns:
        The counts; empty without safetensors weights.

    Raises:
        FileFormatError: A file that is truncated or foreign.
    """
    index = folder / (_WHOLE + INDEX)
    if (folder / _WHOLE).is_file():
        files = [folder / _WHOLE]
    elif index.is_file():
        files = [folder / name for name in sorted(set(shard_names(index).values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    counts: Counter[str] = Counter()
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    entry = file.get_slice(name)
                    size = 1
                    for length in entry.get_shape():
                        size *= length
                    counts[_precision(entry.get_dtype())] += size
        except (SafetensorError, OSError, ValueError) as error:
            raise FileFormatError(
                f"{path} cannot be read as safetensors ({error}): it is missing, truncated or foreign", path
            ) from None
    return dict(counts)


def stored_on_hub(repo: str, revision: str | None) -> dict[str, int]:
    """Count stored numbers by precision, of weights on the hub; nothing but their headers is fetched.

    Args:
        repo: The repository.
        revision: Its branch, tag or commit.

    Returns:
        The counts; empty where the hub cannot be asked, or has other weights.
    """
    try:
        metadata = import_module("huggingface_hub").get_safetensors_metadata(repo, revision=revision)
    except Exception:  # offline, or weights of another kind: then the table says that they were not read
        return {}
    return {_precision(name): int(count) for name, count in metadata.parameter_count.items()}


def _precision(name: str) -> str:
    return _DTYPES.get(name, name.lower())
