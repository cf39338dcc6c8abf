"""One batch of sequences through a model: the counted activations of every site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.adapters.backoff import BackOff
from darkmatter.adapters.hf import LoadedModel
from darkmatter.adapters.reading import capture
from darkmatter.adapters.sequences import TokenSequence
from darkmatter.adapters.sites import Site
from darkmatter.errors import InputError

_PROBE = 8  # tokens of the forward pass that tells widths


@dataclass(frozen=True, slots=True, eq=False)
class ActivationBatch:
    """The counted tokens of some documents at one site.

    Attributes:
        x: Activations, (n, width), float32, on the device of the site's module.
        groups: Index of each token's document in the text, (n,).
        token_ids: Vocabulary ids, (n,).
        positions: Position of each token in its document (BOS has 0), (n,).
    """

    x: Tensor
    groups: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]


def read_sequences(
    loaded: LoadedModel,
    sites: Sequence[Site],
    sequences: Sequence[TokenSequence],
    *,
    parts: BackOff,
    limits: Mapping[Site, float],
) -> dict[Site, ActivationBatch]:
    """Run a model on some sequences.

    Args:
        loaded: The model.
        sites: Where it is read.
        sequences: At least one.
        parts: Runs the sequences in parts where they do not fit in memory together.
        limits: Norm above which an activation is dropped, by site; a site without one keeps all.

    Returns:
        The counted tokens at every site, in order.

    Raises:
        InputError: A token that the model does not know, or an activation that is not finite.
    """
    _check_ids(loaded, sequences)
    found = parts.run(lambda part: _forward(loaded, sites, sequences[part]), len(sequences))
    ids, groups, positions = (
        np.concatenate([getattr(sequence, name)[sequence.counted] for sequence in sequences])
        for name in ("ids", "groups", "positions")
    )
    batches = {}
    for site in sites:
        x = found[0][site] if len(found) == 1 else torch.cat([part[site] for part in found])
        batch = ActivationBatch(x=x, groups=groups, token_ids=ids, positions=positions)
        _check_finite(loaded, site, batch)
        batches[site] = batch if site not in limits else _within(batch, limits[site])
    return batches


def site_widths(loaded: LoadedModel, sites: Sequence[Site], sequence: TokenSequence) -> dict[Site, int]:
    """Find how wide the activations are, by running the model on a few tokens.

    Args:
        loaded: The model.
        sites: Where it is read.
        sequence: Where the tokens come from.

    Returns:
        Width by site.
    """
    _check_ids(loaded, [sequence])
    ids = torch.from_numpy(sequence.ids[:_PROBE])[None]
    return {site: h.shape[2] for site, h in capture(loaded.model, sites, ids, torch.ones_like(ids)).items()}


def median_norms(
    loaded: LoadedModel, sites: Sequence[Site], sequences: Sequence[TokenSequence], *, batch_docs: int, parts: BackOff
) -> dict[Site, float]:
    """Find the median norm of the counted activations, rounded to 3 digits so that it is the same on every device.

    Args:
        loaded: The model.
        sites: Where it is read.
        sequences: The pilot.
        batch_docs: Sequences in a batch.
        parts: Runs a batch in parts where it does not fit in memory.

    Returns:
        The median by site.
    """
    norms: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for low in range(0, len(sequences), batch_docs):
        batches = read_sequences(loaded, sites, sequences[low : low + batch_docs], parts=parts, limits={})
        for site, batch in batches.items():
            norms[site].append(torch.linalg.vector_norm(batch.x, dim=1).cpu())
    return {site: float(f"{torch.cat(found).median():.3g}") for site, found in norms.items()}


def _check_ids(loaded: LoadedModel, sequences: Sequence[TokenSequence]) -> None:
    model: Any = loaded.model
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    for sequence in sequences:
        highest = int(sequence.ids.max())
        if highest >= vocabulary:
            raise InputError(
                f"document {sequence.groups[sequence.ids.argmax()]} holds token id {highest}, but {loaded.name} has "
                f"{vocabulary} embeddings: these are tokens of another model"
            )


def _check_finite(loaded: LoadedModel, site: Site, batch: ActivationBatch) -> None:
    if bool(torch.isfinite(batch.x).all()):
        return
    first = int((~torch.isfinite(batch.x)).any(dim=1).nonzero()[0])
    half = loaded.dtype == "float16"
    remedy = "load the model in bfloat16 or float32" if half else "check the model's weights, or drop the document"
    raise InputError(
        f"{site} of {loaded.name} in {loaded.dtype} is NaN or infinite (first in document {batch.groups[first]}, "
        f"position {batch.positions[first]}): {remedy}"
    )


def _forward(loaded: LoadedModel, sites: Sequence[Site], sequences: Sequence[TokenSequence]) -> dict[Site, Tensor]:
    """Counted activations of some sequences in one forward pass, by site, (n, width), float32."""
    shape = (len(sequences), max(len(sequence.ids) for sequence in sequences))
    padded = np.zeros(shape, dtype=np.int64)  # the mask, not the id, marks padding
    mask, counted = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    for row, sequence in enumerate(sequences):
        length = len(sequence.ids)
        padded[row, :length] = sequence.ids
        mask[row, :length] = 1
        counted[row, :length] = sequence.counted
    hidden = capture(loaded.model, sites, torch.from_numpy(padded), torch.from_numpy(mask))
    where = torch.from_numpy(counted.nonzero()[0] * shape[1] + counted.nonzero()[1])
    return {site: h.flatten(0, 1).index_select(0, where.to(h.device)).float() for site, h in hidden.items()}


def _within(batch: ActivationBatch, limit: float) -> ActivationBatch:
    keep = torch.linalg.vector_norm(batch.x, dim=1) <= limit
    rows = keep.cpu().numpy()
    if rows.all():
        return batch
    return ActivationBatch(
        x=batch.x[keep], groups=batch.groups[rows], token_ids=batch.token_ids[rows], positions=batch.positions[rows]
    )
