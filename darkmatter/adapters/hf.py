"""Hugging Face language models: loading one safely.

`transformers` is imported inside the functions, so that everything else works without it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from darkmatter.adapters.sites import find_blocks, text_config
from darkmatter.errors import DarkmatterError, FileFormatError, InputError
from darkmatter.files import read_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
"""Precisions a model can be run in, by name."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Files of which a folder with a tokenizer has at least one."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A causal language model in evaluation mode, with its tokenizer.

    Attributes:
        model: The model; its parameters take no gradient.
        tokenizer: Its tokenizer; None where none was asked for.
        name: The folder's name or the hub id.
        revision: Commit of the hub repository; None for a local folder.
        dtype: Name of the precision it runs in.
        d_model: Width of the residual stream.
        n_layers: Number of blocks.
        fingerprint: Hash of a few entries of every parameter.
        has_head: Whether it predicts tokens; an encoder such as MiniLM is read as it is, and has no loss.
    """

    model: nn.Module = field(repr=False)
    tokenizer: Any = field(repr=False)
    name: str
    revision: str | None
    dtype: str
    d_model: int
    n_layers: int
    fingerprint: str
    has_head: bool = True


def load_model(
    folder_or_id: Path | str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    tokenizer: bool = True,
) -> LoadedModel:
    """Load a causal language model, or a model without a head, from a folder, else from the Hugging Face hub.

    Only safetensors weights are read and no code from the repository is ever run.

    Args:
        folder_or_id: Folder with config.json, safetensors weights and tokenizer files, or a hub id.
        revision: Branch, tag or commit on the hub; must be None for a folder.
        dtype: Precision to run in, one of `DTYPES`.
        device: Torch device, such as "cpu" or "cuda:0"; "auto" spreads a model over all GPUs (needs accelerate).
        tokenizer: Whether the tokenizer is needed; False for a text that is token ids already.

    Returns:
        The model and what the report needs to know of it.

    Raises:
        InputError: transformers is missing, an unknown dtype or device, or a model that cannot be found or needs
            code of its own.
        FileFormatError: A folder that lacks config.json, safetensors weights or tokenizer files, or whose weights are
            truncated or incomplete.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    spread = device == "auto"
    place = torch_device("cpu" if spread else device)
    transformers = transformers_module()
    folder = Path(folder_or_id)
    local = folder.is_dir()
    if local and revision is not None:
        raise InputError(f"revision {revision!r} was given for the local folder {folder}: leave it out")
    if not local and (folder.exists() or folder.is_absolute() or str(folder_or_id).startswith((".", "~"))):
        raise InputError(f"{folder} is not a folder: expected a model folder with config.json, or a hub id")
    if local:
        _check_folder(folder, transformers, tokenizer=tokenizer)
    source = str(folder_or_id)
    with quiet(transformers), _one_line(source, folder if local else None):
        commit = None if local else hub_commit(source, revision)
        common = {"revision": commit or "main", "local_files_only": local}
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **common)
        bare = _is_bare(transformers, config)
        if not bare and type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            raise InputError(f"{source} is a {config.model_type!r} model, expected a causal language model")
        # Gemma 2 caps its attention logits; fused kernels skip the cap, which changes every activation.
        eager = {"attn_implementation": "eager"} if config.model_type == "gemma2" else {}
        key = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
        kind = transformers.AutoModel if bare else transformers.AutoModelForCausalLM
        model, info = kind.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **{key: DTYPES[dtype]},
            **eager,
            **({"device_map": "auto"} if spread else {}),
            **common,
        )
        words = None
        if tokenizer:
            words = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False, **common)
    missing = sorted(info["missing_keys"])
    if missing:
        raise FileFormatError(
            f"{source} lacks {len(missing)} weights of {type(model).__name__} (first {missing[0]!r}), which would be "
            "random: expected a complete causal language model",
            folder,
        )
    model.requires_grad_(False).eval()
    if not spread:
        model.to(place)
    return LoadedModel(
        model=model,
        tokenizer=words,
        name=folder.resolve().name if local else source,
        revision=commit,
        dtype=dtype,
        d_model=int(text_config(model).hidden_size),
        n_layers=len(find_blocks(model)),
        fingerprint=_fingerprint(model),
        has_head=not bare,
    )


def _is_bare(transformers: Any, config: Any) -> bool:
    """Whether the weights are those of a model without a head, by the class that saved them."""
    known = type(config) in transformers.MODEL_MAPPING
    base = transformers.MODEL_MAPPING[type(config)] if known else ()
    classes = base if isinstance(base, tuple) else (base,)
    return any(kind.__name__ in (config.architectures or ()) for kind in classes)


def hub_commit(repo: str, revision: str | None) -> str | None:
    """Find the commit that a revision of a hub repository means now.

    Args:
        repo: ``owner/name``.
        revision: Branch, tag or commit; None is the main branch.

    Returns:
        The commit, which as a folder of the hub's cache is part of a file's path; the revision where it is not.
    """
    # asked for by its name first: that is what makes the same command work offline later
    parts = Path(import_module("huggingface_hub").hf_hub_download(repo, "config.json", revision=revision)).parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else revision


def transformers_module() -> Any:
    """Import transformers.

    Returns:
        The module.

    Raises:
        InputError: It cannot be imported.
    """
    try:
        return import_module("transformers")
    except ImportError as error:
        raise InputError(f"transformers cannot be imported ({error}): run `pip install 'darkmatter[models]'`") from None


def torch_device(device: str) -> torch.device:
    """Find a torch device and check that it can hold something.

    Args:
        device: Such as "cpu" or "cuda:0".

    Returns:
        The device.

    Raises:
        InputError: There is none of that name, or it cannot be used.
    """
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise InputError(f"device {device!r} cannot be used ({reason}): try 'cpu'") from None
    return place


def _check_folder(folder: Path, transformers: Any, *, tokenizer: bool) -> None:
    config = read_json(folder / "config.json", "a model's configuration")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        remedy = (
            "it brings its own code, which is never run"
            if "auto_map" in config
            else f"transformers {transformers.__version__} does not know it, a newer version may"
        )
        raise InputError(f"{folder} has model type {kind!r}: {remedy}")
    if not any(folder.glob("*.safetensors")):
        raise FileFormatError(
            f"{folder} has no *.safetensors weights: convert them (pickled .bin weights are never opened)", folder
        )
    # Without these files transformers makes up an empty tokenizer and says nothing.
    if tokenizer and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise FileFormatError(f"{folder} has no tokenizer, expected one of {', '.join(TOKENIZER_FILES)}", folder)


@contextmanager
def _one_line(source: str, folder: Path | None) -> Iterator[None]:
    try:
        yield
    except DarkmatterError:
        raise
    except Exception as error:  # whatever a library raises on a damaged or foreign repository
        reason = " ".join((str(error).strip().splitlines() or [""])[0].split())[:200]
        message = f"{source} cannot be loaded as a causal language model ({type(error).__name__}: {reason})"
        if folder is not None:
            raise FileFormatError(f"{message}: its files are damaged, incomplete or foreign", folder) from error
        raise InputError(
            f"{message}: check the id and revision, that you may read it, and that it has safetensors weights"
        ) from error


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Silence progress bars, log lines and warnings, and restore them as they were."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error()
        if bars:
            logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        digest.update(repr((name, tuple(parameter.shape))).encode())
        digest.update(parameter.detach().flatten()[:16].to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()
