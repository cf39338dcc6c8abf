"""Activations of a language model on text, streamed in batches of whole documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.adapters.capture import capture
from darkmatter.adapters.hf import LoadedModel
from darkmatter.adapters.sites import Site, parse_site, resolve_site, text_config
from darkmatter.adapters.tokens import TokenisedText, tokenise
from darkmatter.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class ActivationBatch:
    """The counted tokens of some documents.

    Attributes:
        x: Activations, (n, d_model), float32, on the model's device.
        groups: Index of each token's document in the text, (n,).
        token_ids: Vocabulary ids, (n,).
        positions: Position of each token in its sequence (BOS has 0), (n,).
    """

    x: Tensor
    groups: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ModelActivations:
    """A re-iterable stream of one site's activations; build it with `model_activations`.

    Documents are read in the order of the text, `batch_docs` to a batch, so that the batches are the same every time.

    Attributes:
        loaded: The model.
        site: Where it is read.
        tokens: The tokenised documents.
        batch_docs: Documents per forward pass.
        text: Name of the text, for the report.
    """

    loaded: LoadedModel
    site: Site
    tokens: TokenisedText
    batch_docs: int
    text: str | None

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.loaded.d_model

    @property
    def n_tokens(self) -> int:
        """Tokens in one pass; known from the tokenisation, no forward pass is needed."""
        return self.tokens.n_tokens

    @property
    def description(self) -> Mapping[str, Any]:
        """Everything that decides which tokens these are and how they were computed."""
        loaded, tokens = self.loaded, self.tokens
        bos = "prepended to every document" if tokens.bos else "none"
        return {
            "kind": "model activations",
            "n_tokens": tokens.n_tokens,
            "d_model": loaded.d_model,
            "model": loaded.name,
            "revision": loaded.revision,
            "model_fingerprint": loaded.fingerprint,
            "model_dtype": loaded.dtype,
            "dtype": "float32",
            "site": str(self.site),
            "text": self.text,
            "text_fingerprint": tokens.fingerprint,
            "tokenizer": type(loaded.tokenizer).__name__,
            "context_length": tokens.context_length,
            "bos": bos,
            "skip_first": tokens.skip_first,
            "documents": "ids are document indices in the text",
            "n_documents": len(tokens.documents),
            "n_documents_dropped": tokens.n_dropped,
            "n_documents_truncated": tokens.n_truncated,
            "batch_docs": self.batch_docs,
        }

    def __iter__(self) -> Iterator[ActivationBatch]:
        """Yield every batch, from the first document on."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[ActivationBatch]:
        """Yield batch number `start` and those after it; no forward pass is run for earlier ones."""
        n_docs = len(self.tokens.documents)
        for low in range(start * self.batch_docs, n_docs, self.batch_docs):
            yield self.read(range(low, min(low + self.batch_docs, n_docs)))

    def read(self, rows: Sequence[int]) -> ActivationBatch:
        """Run the model on some of the kept documents.

        Args:
            rows: Which of them, as places in ``tokens.documents``.

        Returns:
            Their counted tokens, document by document.

        Raises:
            InputError: The site has another width than the model, or an activation is not finite.
        """
        ids = [self.tokens.ids[row] for row in rows]
        padded = np.zeros((len(ids), max(map(len, ids))), dtype=np.int64)  # the mask, not the id, marks padding
        mask = np.zeros_like(padded)
        for row, sequence in enumerate(ids):
            padded[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        counted = mask.astype(bool)
        counted[:, : self.tokens.skip_first] = False
        hidden = capture(self.loaded.model, (self.site,), torch.from_numpy(padded), torch.from_numpy(mask))[self.site]
        if hidden.shape[2] != self.d_model:
            raise InputError(f"{self.site} has width {hidden.shape[2]}, expected the model's {self.d_model}")
        x = hidden[torch.from_numpy(counted).to(hidden.device)].float()
        docs, positions = np.nonzero(counted)
        groups = np.array([self.tokens.documents[row] for row in rows], dtype=np.int64)[docs]
        if not bool(torch.isfinite(x).all()):
            first = int((~torch.isfinite(x)).any(dim=1).nonzero()[0])
            remedy = (
                "load the model in bfloat16 or float32"
                if self.loaded.dtype == "float16"
                else "check the model's weights, or drop the document"
            )
            raise InputError(
                f"{self.site} of {self.loaded.name} in {self.loaded.dtype} is NaN or infinite (first in document "
                f"{groups[first]}, position {positions[first]}): {remedy}"
            )
        return ActivationBatch(x=x, groups=groups, token_ids=padded[counted], positions=positions.astype(np.int64))


def model_activations(
    loaded: LoadedModel,
    site: Site | str,
    documents: Sequence[str],
    *,
    context_length: int = 128,
    batch_docs: int = 16,
    skip_first: int = 1,
    max_tokens: int | None = None,
    bos: bool = True,
    text: str | None = None,
) -> ModelActivations:
    """Tokenise a text and check that the model can read it; no forward pass is run yet.

    Args:
        loaded: The model.
        site: Where to read it, such as ``resid_post:2``.
        documents: The texts; a document's index is its id.
        context_length: Longest sequence, in tokens, BOS included.
        batch_docs: Documents per forward pass; it changes the result by rounding only.
        skip_first: Positions to drop at the start of every document; 1 drops BOS.
        max_tokens: Keep exactly this many tokens, if there are as many.
        bos: Whether to prepend BOS.
        text: Name of the text, for the report.

    Returns:
        The stream.

    Raises:
        InputError: An impossible option, a layer that does not exist, a context the model cannot hold, or a tokenizer
            of another model.
    """
    place = parse_site(site) if isinstance(site, str) else site
    resolve_site(loaded.model, place)
    if batch_docs < 1:
        raise InputError(f"batch_docs is {batch_docs}, expected at least 1")
    longest = getattr(text_config(loaded.model), "max_position_embeddings", None)
    if isinstance(longest, int) and context_length > longest:
        raise InputError(f"context_length is {context_length}, expected at most {longest}, what {loaded.name} can hold")
    tokens = tokenise(
        loaded.tokenizer,
        documents,
        context_length=context_length,
        skip_first=skip_first,
        max_tokens=max_tokens,
        bos=bos,
    )
    embedding: Any = loaded.model
    vocabulary = int(embedding.get_input_embeddings().weight.shape[0])
    highest = max(int(ids.max()) for ids in tokens.ids)
    if highest >= vocabulary:
        raise InputError(
            f"the tokenizer gives id {highest}, but {loaded.name} has {vocabulary} embeddings: "
            "it is the tokenizer of another model"
        )
    return ModelActivations(loaded=loaded, site=place, tokens=tokens, batch_docs=batch_docs, text=text)


def training_activations(activations: ModelActivations, *, n_tokens: int, seed: int) -> Iterator[Tensor]:
    """Cycle over the documents, in a new seeded order every epoch, until `n_tokens` tokens were yielded.

    Args:
        activations: The stream to draw from.
        n_tokens: Tokens to yield in all; the last batch is cut to fit.
        seed: Seed of the orders.

    Yields:
        Activations, (n, d_model), float32: the tokens of `batch_docs` documents at a time.

    Raises:
        InputError: `n_tokens` is below 1.
    """
    if n_tokens < 1:
        raise InputError(f"n_tokens is {n_tokens}, expected at least 1")
    left, epoch, size = n_tokens, 0, activations.batch_docs
    while left > 0:
        order = np.random.default_rng([seed, epoch]).permutation(len(activations.tokens.documents)).tolist()
        for low in range(0, len(order), size):
            x = activations.read(order[low : low + size]).x[:left]
            left -= len(x)
            yield x
            if left == 0:
                return
        epoch += 1
