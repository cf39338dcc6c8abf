"""Reading an SAE of any known family, from a local folder or file or from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darkmatter.adapters.hf import DTYPES, torch_device
from darkmatter.adapters.saes.dictionary_learning import read_dictionary_learning
from darkmatter.adapters.saes.gemmascope import read_gemmascope
from darkmatter.adapters.saes.gemmascope2 import read_gemmascope2
from darkmatter.adapters.saes.hub import fetch
from darkmatter.adapters.saes.loaded import FAMILIES, Family, LoadedSae, Parts, SaeFiles
from darkmatter.adapters.saes.openai import read_openai
from darkmatter.adapters.saes.pieces import text
from darkmatter.adapters.saes.recognise import CONFIGS, choose_weights, family_of, is_ours
from darkmatter.adapters.saes.saelens import read_saelens
from darkmatter.adapters.saes.sparsify import read_sparsify
from darkmatter.adapters.saes.tensor_files import read_weights
from darkmatter.errors import FileFormatError, InputError
from darkmatter.files import read_json
from darkmatter.sae import SAE, load_sae, load_sae_metadata

_Reader = Callable[[Mapping[str, Any], Mapping[str, Any], SaeFiles], Parts]
_READERS: dict[str, _Reader] = {
    "saelens": read_saelens,
    "sparsify": read_sparsify,
    "dictionary_learning": read_dictionary_learning,
    "openai": read_openai,
}


def load_any_sae(
    location: Path | str,
    *,
    family: str | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    input_scale: float | None = None,
) -> LoadedSae:
    """Read an SAE; its family is recognised from the files, and nothing is ever unpickled or executed.

    Args:
        location: A folder, a file of weights, or on the hub ``owner/name``, ``owner/name/folder`` or
            ``owner/name/folder/file``, each with ``@revision`` behind it if wanted.
        family: One of `FAMILIES`, where a folder holds several; None recognises it.
        revision: Branch, tag or commit on the hub; must be None for local files.
        dtype: Precision to compute in, "float32", "bfloat16", "float16" or "float64". None is float32, or float64
            where the file has it, and as stored for our own format.
        device: Torch device.
        input_scale: The constant c that x was multiplied by in training, for an SAE whose files say that it is not
            folded in and do not give it.

    Returns:
        The SAE, and what its files say about it.

    Raises:
        InputError: An unknown option, a hub location that cannot be read, a scale that is missing or superfluous, or
            weights that overflow in `dtype`.
        FileFormatError: Files that are missing, damaged, of no known family, or of a kind that has no place here.
    """
    asked = _family(family)
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    place = torch_device(device)
    files = _find(str(location), asked, revision)
    if files.weights.name == "sae.safetensors" and is_ours(files.folder):
        if asked not in {None, "darkmatter"}:
            raise FileFormatError(
                f"{files.folder} is an SAE of our own format, not of {asked}: leave the family out", files.weights
            )
        return _ours(files, str(location), dtype, place)
    weights = read_weights(files.weights)
    found = family_of(weights, files.weights, asked)
    stored, weights = _cast(weights, dtype, files.weights)
    config = _config(found, files)
    reader = _READERS.get(found) or (read_gemmascope2 if files.weights.suffix == ".safetensors" else read_gemmascope)
    parts = reader(weights, config, files)
    fields, normalisation = _scaled(parts, input_scale, files)
    try:
        sae = SAE(**fields)
    except (InputError, TypeError) as error:
        raise FileFormatError(f"{files.weights} does not hold a valid SAE: {error}", files.weights) from None
    return LoadedSae(
        sae=sae.to(device=place),
        family=found,
        location=str(location),
        revision=files.revision,
        stored_dtype=stored,
        site=parts.site,
        hook=parts.hook,
        l0=parts.l0,
        model=parts.model,
        normalisation=normalisation,
        notes=parts.notes,
    )


def _family(family: str | None) -> Family | None:
    for known in FAMILIES:
        if family == known:
            return known
    if family is not None:
        raise InputError(f"family is {family!r}, expected one of {', '.join(FAMILIES)}")
    return None


def _find(location: str, family: Family | None, revision: str | None) -> SaeFiles:
    path = Path(location)
    if not path.exists():
        if path.is_absolute() or location.startswith((".", "~")) or len(path.parts) < 2:
            raise FileFormatError(
                f"{location} does not exist, expected an SAE's folder or file, or a hub id such as owner/name/folder",
                path,
            )
        return fetch(location, family, revision)
    if revision is not None:
        raise InputError(f"revision {revision!r} was given for the local {location}: leave it out")
    if path.suffix == ".json":
        raise FileFormatError(f"{location} is a configuration, expected an SAE's folder or its weights", path)
    if not path.is_dir():
        return SaeFiles(weights=path, path=path.resolve().as_posix())
    if is_ours(path):
        weights = "sae.safetensors"
    else:
        weights = choose_weights([entry.name for entry in path.iterdir()], family, location)
    return SaeFiles(weights=path / weights, path=(path.resolve() / weights).as_posix())


def _ours(files: SaeFiles, location: str, dtype: str | None, place: torch.device) -> LoadedSae:
    sae = load_sae(files.folder)
    training = load_sae_metadata(files.folder)
    source = training.get("source")
    said: Mapping[str, Any] = source if isinstance(source, Mapping) else {}
    return LoadedSae(
        sae=sae.to(device=place, dtype=None if dtype is None else DTYPES[dtype]),
        family="darkmatter",
        location=location,
        revision=files.revision,
        stored_dtype=_name(sae.dtype),
        site=text(said.get("site")),
        l0=None if sae.k is None else float(sae.k),
        model=text(said.get("model")),
        training=training,
    )


def _config(family: Family, files: SaeFiles) -> dict[str, Any]:
    name = CONFIGS.get(family)
    if name is None:
        return {}
    path = files.folder / name
    if not path.is_file() and family == "dictionary_learning" and files.folder.name == "checkpoints":
        path = files.folder.parent / name
    if path.is_file() or family in {"saelens", "sparsify"}:
        return read_json(path, f"the configuration of a {family} SAE")
    return {}


def _cast(weights: Mapping[str, Any], dtype: str | None, path: Path) -> tuple[str, dict[str, Any]]:
    """Name the stored precision, and convert every floating tensor to the one that is computed in.

    Raises:
        InputError: A weight that overflows there.
        FileFormatError: A weight that is not finite in the file.
    """
    floating = {name: v for name, v in weights.items() if isinstance(v, Tensor) and v.is_floating_point()}
    largest = max(floating.values(), key=Tensor.numel).dtype if floating else torch.float32
    wanted = DTYPES[dtype] if dtype is not None else torch.float64 if largest == torch.float64 else torch.float32
    converted = {name: value.to(wanted) for name, value in floating.items()}
    for name, value in converted.items():
        if _finite(value):
            continue
        if _finite(floating[name].to(torch.float64)):
            raise InputError(f"{name} of {path} overflows {_name(wanted)}: load it in float32 or bfloat16")
        raise FileFormatError(
            f"{path} holds NaN or infinity in {name}: it is damaged or training diverged; get it again, or in another "
            "precision",
            path,
        )
    return _name(largest), {**weights, **converted}


def _finite(value: Tensor) -> bool:
    return value.numel() == 0 or all(bool(end.isfinite()) for end in torch.aminmax(value))  # NaN reaches both ends


def _scaled(parts: Parts, given: float | None, files: SaeFiles) -> tuple[dict[str, Any], str | None]:
    """Fold the input scale: an SAE of c·x has W_enc·c, b_pre/c, W_dec/c and b_dec/c as an SAE of x, exactly.

    Raises:
        InputError: A scale that is missing, superfluous or impossible.
    """
    fields = dict(parts.fields)
    if not parts.scaled:
        if given is not None:
            raise InputError(
                f"input_scale is {given}, but {files.weights} holds weights for x as it is: leave input_scale out"
            )
        return fields, parts.normalisation
    scale = parts.input_scale if given is None else given
    if scale is None:
        raise InputError(
            f"{files.folder} holds weights for rescaled activations and does not say the factor: load it in Python "
            "with input_scale=√d_model / (mean norm of x in training), or save it with the factor folded in"
        )
    if not 0 < scale < float("inf"):
        raise InputError(f"input_scale is {scale}, expected a positive number")
    fields["W_enc"] = fields["W_enc"] * scale
    for name in ("W_dec", "b_dec", "b_pre"):
        if name in fields:
            fields[name] = fields[name] / scale
    return fields, f"It was trained on {scale:.6g} · x; the factor was folded into the weights."


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
