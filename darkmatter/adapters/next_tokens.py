"""Sequences as a model takes them, with every position, and its loss on the next tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from darkmatter.adapters.backoff import BackOff
from darkmatter.adapters.hf import LoadedModel
from darkmatter.adapters.sequences import TokenSequence

_LOGITS = 2**28
"""Most logits computed at once, 1 GiB in float32: a row of 1024 tokens at a vocabulary of 256k."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Sequences as the model takes them; all arrays are (rows, pos).

    Attributes:
        ids: Token ids; 0 where there is none.
        mask: Whether there is a token.
        starts: Whether a document begins here.
        counted: Whether the position counts.
        groups: Index of the document; -1 where there is none.
        positions: Position in the document; -1 where there is none.
    """

    ids: Tensor
    mask: Tensor
    starts: Tensor
    counted: Tensor
    groups: Tensor
    positions: Tensor

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence]) -> Rows:
        """Fill sequences up to one length."""
        ids = _filled([sequence.ids for sequence in sequences], 0)
        positions = _filled([sequence.positions for sequence in sequences], -1)
        return cls(
            ids=ids,
            mask=positions >= 0,
            starts=positions == 0,
            counted=_filled([sequence.counted for sequence in sequences], fill=False),
            groups=_filled([sequence.groups for sequence in sequences], -1),
            positions=positions,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Rows:
        """Some of the rows."""
        return Rows(
            ids=self.ids[part],
            mask=self.mask[part],
            starts=self.starts[part],
            counted=self.counted[part],
            groups=self.groups[part],
            positions=self.positions[part],
        )


def targets(rows: Rows) -> Tensor:
    """Where a loss of `next_token_losses` is one of predicting text: a token of the same document follows.

    Args:
        rows: Rows.

    Returns:
        (rows, pos − 1).
    """
    return rows.mask[:, 1:] & ~rows.starts[:, 1:]


def loss_parts(loaded: LoadedModel, context_length: int, *, remedy: str) -> BackOff:
    """How many sequences go through the whole model at once: as many as logits fit, fewer where memory runs out.

    Args:
        loaded: The model.
        context_length: Longest sequence, in tokens.
        remedy: What to do where a single sequence does not fit.

    Returns:
        What runs them in parts.
    """
    model: Any = loaded.model
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    return BackOff(
        what=f"a whole forward pass of {loaded.name} on one sequence",
        remedy=remedy,
        limit=max(1, _LOGITS // (context_length * vocabulary)),
    )


def next_token_losses(
    loaded: LoadedModel, rows: Rows, hook: Callable[[slice], AbstractContextManager[Any]], parts: BackOff
) -> Tensor:
    """Cross-entropy of every next token, in nats, whatever it is worth: `targets` says where it means something.

    Args:
        loaded: The model, with a head.
        rows: Rows.
        hook: What is open while some of the rows run, such as a splice.
        parts: Runs the rows in parts that fit in memory.

    Returns:
        (rows, pos − 1), float32, on the CPU.
    """
    model: Any = loaded.model
    device = next(model.parameters()).device

    def run(part: slice) -> Tensor:
        some = rows[part]
        with torch.inference_mode(), hook(part):
            logits = model(
                input_ids=some.ids.to(device), attention_mask=some.mask.long().to(device), use_cache=False
            ).logits
            labels = some.ids[:, 1:].to(logits.device)
            # row by row: the float32 copy of the logits is what takes memory
            losses = [cross_entropy(z[:-1].float(), y, reduction="none") for z, y in zip(logits, labels, strict=True)]
        return torch.stack(losses).cpu()

    return torch.cat(parts.run(run, len(rows)))


def _filled(parts: Sequence[npt.NDArray[Any]], fill: int) -> Tensor:
    out = np.full((len(parts), max(map(len, parts))), fill, dtype=parts[0].dtype)
    for row, part in enumerate(parts):
        out[row, : len(part)] = part
    return torch.from_numpy(out)
