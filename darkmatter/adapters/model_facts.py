"""What a model's files say, without its weights: the architecture is built on torch's meta device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from darkmatter.adapters.hf import TOKENIZER_FILES, hub_commit, quiet, transformers_module
from darkmatter.adapters.saes.recognise import WEIGHTS
from darkmatter.adapters.site_table import KINDS, RESIDUAL
from darkmatter.adapters.sites import Site, find_blocks, resolve_site, text_config
from darkmatter.adapters.weight_headers import stored_numbers, stored_on_hub
from darkmatter.errors import DarkmatterError, FileFormatError, InputError
from darkmatter.files import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """One site of a model.

    Attributes:
        site: The site, as options spell it.
        module: Path of its module; None where the place is not known.
        side: The module's first input or its output.
        width: Width of the activation.
    """

    site: str
    module: str | None
    side: str | None
    width: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model, as far as it is known without its weights.

    Attributes:
        location: Folder or hub id, as it was given.
        revision: Commit of the hub repository; None for a local folder.
        model_type: `model_type` of its configuration.
        architecture: Class that is built for it.
        causal: Whether it is a causal language model, which is what can be run.
        n_layers: Blocks.
        d_model: Width of the residual stream.
        n_parameters: Parameters, tied ones counted once.
        vocabulary: Rows of the embedding.
        max_positions: Longest sequence, in tokens; None where nothing limits it.
        weights: Stored numbers by precision, from the headers of the weights; empty where they could not be read.
        tokenizer: Class of the tokenizer; None without one.
        bos_id: Its BOS token.
        bos_token: The same as text.
        sites: Sites of the first, the middle and the last block.
        applied: What is done on loading and reading, in sentences.
    """

    location: str
    revision: str | None
    model_type: str
    architecture: str
    causal: bool
    n_layers: int
    d_model: int
    n_parameters: int
    vocabulary: int
    max_positions: int | None
    weights: Mapping[str, int]
    tokenizer: str | None
    bos_id: int | None
    bos_token: str | None
    sites: tuple[SiteFacts, ...]
    applied: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Spell the facts out as JSON."""
        return {"kind": "model", **asdict(self), "sites": [asdict(site) for site in self.sites]}


def is_model(location: str, revision: str | None = None) -> bool:
    """Say whether a place holds a model rather than an SAE: its config.json has a `model_type`.

    Args:
        location: Folder, file or hub id.
        revision: Revision on the hub.

    Returns:
        Whether it does; False also where it cannot be told, so that the readers of SAEs say what is wrong.
    """
    folder = Path(location)
    if folder.exists():
        if not (folder / "config.json").is_file() or any((folder / name).exists() for name in WEIGHTS):
            return False
        config = read_json(folder / "config.json", "a model's configuration")
    else:
        repo, _, behind = location.partition("@")
        if len(repo.split("/")) != 2 or location.startswith((".", "~", "/")):  # an SAE lies in a folder of its own
            return False
        try:
            hub = import_module("huggingface_hub")
            path = hub.hf_hub_download(repo, "config.json", revision=behind or revision)
            config = read_json(Path(path), "a model's configuration")
        except Exception:  # no network, no such repository or file, a strange answer
            return False
    return isinstance(config.get("model_type"), str)


def model_facts(location: str, *, revision: str | None = None) -> ModelFacts:
    """Describe a model from its configuration and the headers of its weights; nothing large is read or built.

    Args:
        location: Folder, or hub id, which may end in ``@revision``.
        revision: Branch, tag or commit on the hub; must be None for a folder.

    Returns:
        The facts.

    Raises:
        InputError: transformers is missing, a revision of a local folder, or a model that cannot be built.
        FileFormatError: A folder whose files are damaged.
    """
    folder = Path(location) if Path(location).is_dir() else None
    repo, _, behind = (location, "", "") if folder is not None else location.partition("@")
    if folder is not None and revision is not None:
        raise InputError(f"revision {revision!r} was given for the local folder {folder}: leave it out")
    if behind and revision is not None:
        raise InputError(f"{location} names a revision and revision is {revision!r}, expected one of the two")
    transformers = transformers_module()
    with quiet(transformers), _one_line(location, folder):
        commit = None if folder is not None else hub_commit(repo, behind or revision)
        common = {"revision": commit or "main", "local_files_only": folder is not None}
        config = transformers.AutoConfig.from_pretrained(repo, trust_remote_code=False, **common)
        model, causal = _skeleton(transformers, config)
        tokenizer = _tokenizer(transformers, repo, folder, common)
    text = text_config(model)
    embeddings: Any = model
    positions = getattr(text, "max_position_embeddings", None)
    return ModelFacts(
        location=location,
        revision=commit,
        model_type=config.model_type,
        architecture=type(model).__name__,
        causal=causal,
        n_layers=len(find_blocks(model)),
        d_model=int(text.hidden_size),
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=int(embeddings.get_input_embeddings().weight.shape[0]),
        max_positions=positions if isinstance(positions, int) else None,
        weights=stored_numbers(folder) if folder is not None else stored_on_hub(repo, commit),
        tokenizer=None if tokenizer is None else type(tokenizer).__name__,
        bos_id=getattr(tokenizer, "bos_token_id", None),
        bos_token=None if getattr(tokenizer, "bos_token", None) is None else str(tokenizer.bos_token),
        sites=_sites(model),
        applied=_applied(config, causal=causal, bos=getattr(tokenizer, "bos_token_id", None)),
    )


@contextmanager
def _one_line(location: str, folder: Path | None) -> Iterator[None]:
    try:
        yield
    except DarkmatterError:
        raise
    except Exception as error:  # whatever a library raises on a damaged or foreign repository
        reason = " ".join((str(error).strip().splitlines() or [""])[0].split())[:200]
        message = f"{location} cannot be inspected as a model ({type(error).__name__}: {reason})"
        if folder is not None:
            raise FileFormatError(
                f"{message}: its files are damaged, foreign, or need a newer transformers", folder
            ) from error
        raise InputError(f"{message}: check the id and revision, and that you may read it") from error


def _skeleton(transformers: Any, config: Any) -> tuple[nn.Module, bool]:
    """The model without weights, and whether it is a causal language model according to its own files."""
    mapping = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    named = getattr(config, "architectures", None)
    causal = type(config) in mapping
    if causal and named:  # an encoder's configuration may also have a head for language modelling, untrained
        classes = mapping[type(config)]
        known = {found.__name__ for found in (classes if isinstance(classes, tuple | list) else [classes])}
        causal = bool(known & set(named))
    factory = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    with torch.device("meta"):
        model: nn.Module = factory.from_config(config, trust_remote_code=False)
    return model, causal


def _tokenizer(transformers: Any, repo: str, folder: Path | None, common: Mapping[str, Any]) -> Any:
    if folder is not None and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None  # transformers would make one up
    try:
        return transformers.AutoTokenizer.from_pretrained(repo, trust_remote_code=False, **common)
    except Exception:  # a model can be inspected without one
        return None


def _sites(model: nn.Module) -> tuple[SiteFacts, ...]:
    n_layers = len(find_blocks(model))
    found = []
    for layer in sorted({0, n_layers // 2, n_layers - 1}):
        for kind in KINDS:
            site = Site(kind=kind, layer=layer)
            try:
                hook = resolve_site(model, site)
            except InputError:
                found.append(SiteFacts(site=str(site), module=None, side=None, width=None))
                continue
            width = int(text_config(model).hidden_size)
            if kind not in RESIDUAL and hook.side == "input":
                width = _inputs(hook.module)
            found.append(SiteFacts(site=str(site), module=hook.name, side=hook.side, width=width))
    return tuple(found)


def _inputs(module: nn.Module) -> int:
    """Inputs of a linear layer: torch's, or GPT-2's, which stores its matrix the other way round."""
    if isinstance(module, nn.Linear):
        return module.in_features
    weight: Any = module.weight
    return int(weight.shape[0])


def _applied(config: Any, *, causal: bool, bos: int | None) -> tuple[str, ...]:
    if not causal:
        return (
            "Only this inspection: it is not a causal language model, which --model needs; activations that were "
            "saved elsewhere can be given as arrays.",
        )
    found = []
    if config.model_type == "gemma2":
        found.append("Attention is run eagerly, since fused kernels skip the cap on its logits.")
    found.append("A forward pass ends after the last site that is read.")
    if bos is None:
        found.append("It has no BOS token, so none is put in front: say so (bos 'none').")
    else:
        found.append(f"BOS ({bos}) is put in front of every document once, and its position is dropped.")
    found.append("Weights are run in float32 unless another dtype is asked for.")
    if getattr(config, "auto_map", None):
        found.append("Code in its repository is not run.")
    return tuple(found)
