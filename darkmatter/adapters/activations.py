"""Activations of a language model on text, at one site or several, streamed in batches of whole documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from darkmatter.adapters.backoff import BackOff
from darkmatter.adapters.documents import TextStream, TokenStream
from darkmatter.adapters.forward import ActivationBatch, median_norms, read_sequences, site_widths
from darkmatter.adapters.hf import LoadedModel
from darkmatter.adapters.positions import PositionPolicy
from darkmatter.adapters.sequences import SequenceStream, TokenSequence
from darkmatter.adapters.sites import Site, parse_site, resolve_site, text_config
from darkmatter.adapters.tokens import Bos, tokenise
from darkmatter.errors import InputError

PILOT = 64
"""Sequences whose activations give the median norm, and whose ids identify the tokens."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelActivations:
    """A re-iterable stream of activations at one or more sites; build it with `model_activations`.

    Sequences are read in the order of the text, `batch_docs` to a batch, so that the batches are the same every time.
    Where a batch does not fit in memory it is run in parts, which changes results by rounding only.

    Attributes:
        loaded: The model.
        sites: Where it is read, in one forward pass.
        sequences: What it reads.
        batch_docs: Sequences in a batch.
        widths: Activation width by site.
        limits: Norm above which an activation is dropped, by site; empty without a filter on norms.
        token_fingerprint: Hash of the ids of the first sequences.
        n_tokens: Tokens in one pass, over all shares; None where only a pass would tell.
        parts: Runs a batch in parts where it does not fit in memory.
    """

    loaded: LoadedModel
    sites: tuple[Site, ...]
    sequences: SequenceStream
    batch_docs: int
    widths: Mapping[Site, int]
    limits: Mapping[Site, float]
    token_fingerprint: str
    n_tokens: int | None
    parts: BackOff = field(repr=False)

    @property
    def site(self) -> Site:
        """The site, where there is one.

        Raises:
            InputError: There are several.
        """
        if len(self.sites) != 1:
            raise InputError(f"these activations have {len(self.sites)} sites, expected one: use `site_batches_from`")
        return self.sites[0]

    @property
    def d_model(self) -> int:
        """Activation width at the only site."""
        return self.widths[self.site]

    @property
    def description(self) -> Mapping[str, Any]:
        """Everything that decides which tokens these are and how they were computed; the same for every share."""
        loaded = self.loaded
        facts: dict[str, Any] = {
            "kind": "model activations",
            "model": loaded.name,
            "revision": loaded.revision,
            "model_fingerprint": loaded.fingerprint,
            "model_dtype": loaded.dtype,
            "dtype": "float32",
            "site": ", ".join(map(str, self.sites)),
            "d_model": {str(site): self.widths[site] for site in self.sites},
            **self.sequences.description,
            "token_fingerprint": self.token_fingerprint,
            "batch_docs": self.batch_docs,
        }
        if len(self.sites) == 1:
            facts["d_model"] = self.d_model
        if self.n_tokens is not None:
            facts["n_tokens"] = self.n_tokens
        if self.limits:
            facts["norm_limits"] = {str(site): limit for site, limit in self.limits.items()}
            facts["norm_rule"] = (
                f"an activation is dropped at a site where its norm exceeds norm_filter times the median norm, rounded "
                f"to 3 digits, of the counted positions of the first {PILOT} sequences"
            )
        if self.sequences.size > 1:
            facts["documents_shared_by"] = self.sequences.size
        return facts

    @property
    def outcome(self) -> Mapping[str, int]:
        """Documents and positions kept and dropped in the last whole pass of this share; empty before one.

        What a filter on norms drops is the difference between `n_tokens` here and the tokens that were received.
        """
        return self.sequences.outcome

    def __iter__(self) -> Iterator[ActivationBatch]:
        """Yield every batch of the only site, from the first document on."""
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[ActivationBatch]:
        """Yield batch number `start` of the only site and those after it; no forward pass is run for earlier ones."""
        site = self.site
        return (batches[site] for batches in self.site_batches_from(start))

    def site_batches_from(self, start: int) -> Iterator[dict[Site, ActivationBatch]]:
        """Yield batch number `start` and those after it, every site's; no forward pass is run for earlier ones."""
        rows = islice(iter(self.sequences), start * self.batch_docs, None)
        while batch := list(islice(rows, self.batch_docs)):
            yield self.read(batch)

    def read(self, sequences: Sequence[TokenSequence]) -> dict[Site, ActivationBatch]:
        """Run the model on some sequences.

        Args:
            sequences: Which.

        Returns:
            Their counted tokens at every site, in order.
        """
        return read_sequences(self.loaded, self.sites, sequences, parts=self.parts, limits=self.limits)


def model_activations(
    loaded: LoadedModel,
    site: Site | str | Sequence[Site | str],
    documents: TextStream | TokenStream | Sequence[str],
    *,
    context_length: int | None = None,
    batch_docs: int = 16,
    skip_first: int | None = None,
    positions: PositionPolicy | None = None,
    max_tokens: int | None = None,
    max_documents: int | None = None,
    min_length: int = 0,
    bos: Bos = "prepend",
    pack: bool = False,
    rank: int = 0,
    size: int = 1,
    text: str | None = None,
) -> ModelActivations:
    """Set up the stream and check on the first documents that the model can read it.

    Args:
        loaded: The model.
        site: Where to read it, such as ``resid_post:2``; several are read in one forward pass.
        documents: The texts, or token ids (`token_file`); a document's index is its id.
        context_length: Longest sequence, in tokens, BOS included; None is 128 for text. Token ids bring their own.
        batch_docs: Sequences in a batch.
        skip_first: Short for ``positions=PositionPolicy(skip_first=…)``.
        positions: Which positions count.
        max_tokens: Keep exactly this many tokens, if there are as many (before a filter on norms).
        max_documents: Keep this many documents that count.
        min_length: Drop documents with fewer tokens, BOS included.
        bos: Of text only, see `tokenise`.
        pack: Put several documents into one sequence as long as they fit.
        rank: Share of the documents to read, where several processes read one text.
        size: Number of shares.
        text: Name of the text, for the report, where it is a list.

    Returns:
        The stream.

    Raises:
        InputError: An impossible option, a site that does not exist, a context that the model cannot hold, tokens of
            another model, or no document that counts.
    """
    places = [site] if isinstance(site, Site | str) else list(site)
    sites = tuple(dict.fromkeys(parse_site(place) if isinstance(place, str) else place for place in places))
    if not sites:
        raise InputError("no site, expected at least one such as 'resid_post:2'")
    for place in sites:
        resolve_site(loaded.model, place)
    if batch_docs < 1:
        raise InputError(f"batch_docs is {batch_docs}, expected at least 1")
    if positions is not None and skip_first is not None:
        raise InputError("skip_first and positions were given, expected one of the two")
    policy = positions or (PositionPolicy() if skip_first is None else PositionPolicy(skip_first=skip_first))
    if isinstance(documents, TokenStream):
        tokens = documents
        if context_length not in {None, tokens.context_length}:
            raise InputError(
                f"context_length is {context_length}, but the token ids are cut at {tokens.context_length}: give it "
                "where they are opened"
            )
    else:
        tokens = tokenise(loaded.tokenizer, documents, context_length=context_length or 128, bos=bos, name=text)
    longest = getattr(text_config(loaded.model), "max_position_embeddings", None)
    if isinstance(longest, int) and tokens.context_length > longest:
        raise InputError(
            f"context_length is {tokens.context_length}, expected at most {longest}, what {loaded.name} can hold"
        )
    whole = SequenceStream(
        tokens=tokens,
        policy=policy,
        special_ids=_special_ids(loaded),
        max_tokens=max_tokens,
        max_documents=max_documents,
        min_length=min_length,
        pack=pack,
    )
    first = list(islice(whole, PILOT))
    parts = BackOff(
        what=f"a forward pass of {loaded.name} on one sequence",
        remedy="lower the context length, load the model in bfloat16, or spread it over several devices",
    )
    widths = site_widths(loaded, sites, first[0])
    limits: dict[Site, float] = {}
    if policy.norm_filter is not None:
        medians = median_norms(loaded, sites, first, batch_docs=batch_docs, parts=parts)
        limits = {place: policy.norm_filter * median for place, median in medians.items()}
    return ModelActivations(
        loaded=loaded,
        sites=sites,
        sequences=whole.share(rank, size),
        batch_docs=batch_docs,
        widths=widths,
        limits=limits,
        token_fingerprint=_fingerprint(first),
        n_tokens=None if limits else whole.n_tokens,
        parts=parts,
    )


def _special_ids(loaded: LoadedModel) -> frozenset[int]:
    found = getattr(loaded.tokenizer, "all_special_ids", None)
    if found is None:  # token ids without a tokenizer: the model's configuration names some of them
        config = text_config(loaded.model)
        named = [getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
        found = [token for entry in named for token in (entry if isinstance(entry, list) else [entry])]
    return frozenset(token for token in found if isinstance(token, int))


def _fingerprint(sequences: Sequence[TokenSequence]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for sequence in sequences:
        digest.update(np.array([len(sequence.ids)], dtype="<i8").tobytes())
        for part in (sequence.groups, sequence.ids, sequence.counted):
            digest.update(part.astype("<i8").tobytes())
    return digest.hexdigest()
