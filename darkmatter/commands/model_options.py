"""How a command reads a model: the options that `decompose` and `train-sae` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from darkmatter.adapters import ModelActivations, load_model, model_activations, parse_site
from darkmatter.adapters.documents import TextStream, TokenStream, names_data_set, open_text
from darkmatter.adapters.positions import PositionPolicy
from darkmatter.adapters.protocol import DEFAULT, PAPER, Protocol
from darkmatter.adapters.token_files import token_file
from darkmatter.adapters.tokens import Bos
from darkmatter.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How to read a model, as `darkmatter.adapters.model_activations` takes it.

    What is None is taken from the protocol; the text comes from `text` or, as token ids, from `tokens`.
    """

    model: str
    site: str
    text: Path | str | None
    revision: str | None
    dtype: str
    device: str
    context_length: int | None
    batch_docs: int
    skip_first: int | None
    max_tokens: int | None
    protocol: str = "default"
    tokens: Path | None = None
    pad_id: int | None = None
    column: str = "text"
    subset: str | None = None
    split: str | None = None
    text_revision: str | None = None
    skip_last: int | None = None
    keep_special: bool | None = None
    norm_filter: float | None = None
    bos: Bos | None = None
    max_documents: int | None = None
    min_length: int | None = None
    pack: bool = False

    def activations(self, sites: Sequence[str] | None = None, *, rank: int = 0, size: int = 1) -> ModelActivations:
        """Load the model and open the text; a bad site or path is found before the model is loaded.

        Args:
            sites: Where to read the model, instead of `site`.
            rank: Share of the documents to read.
            size: Number of shares.

        Returns:
            The stream.
        """
        places = [parse_site(site) for site in sites or [self.site]]
        protocol = self.settings()
        documents = self._documents(protocol)
        given = protocol.positions
        positions = PositionPolicy(
            skip_first=_first(self.skip_first, given.skip_first),
            skip_last=_first(self.skip_last, given.skip_last),
            drop_special=given.drop_special if self.keep_special is None else not self.keep_special,
            norm_filter=given.norm_filter if self.norm_filter is None else self.norm_filter,
        )
        return model_activations(
            load_model(
                self.model,
                revision=self.revision,
                dtype=self.dtype,
                device=self.device,
                tokenizer=self.tokens is None,
            ),
            places,
            documents,
            context_length=None if self.tokens else _first(self.context_length, protocol.context_length),
            batch_docs=self.batch_docs,
            positions=positions,
            max_tokens=self.max_tokens,
            max_documents=protocol.max_documents if self.max_documents is None else self.max_documents,
            min_length=_first(self.min_length, protocol.min_length),
            bos=self.bos or protocol.bos,
            pack=self.pack,
            rank=rank,
            size=size,
        )

    def settings(self) -> Protocol:
        """Find the protocol.

        Returns:
            The protocol, as it stands before the options that are given change it.

        Raises:
            InputError: There is none of that name.
        """
        protocols = {known.name: known for known in (DEFAULT, PAPER)}
        if self.protocol not in protocols:
            raise InputError(f"protocol is {self.protocol!r}, expected one of {', '.join(protocols)}")
        return protocols[self.protocol]

    def _documents(self, protocol: Protocol) -> TextStream | TokenStream:
        if (self.text is None) == (self.tokens is None):
            raise InputError("expected either a text (--text) or token ids (--tokens)")
        if self.tokens is not None:
            length = (
                self.context_length if protocol is DEFAULT else _first(self.context_length, protocol.context_length)
            )
            return token_file(self.tokens, pad_id=self.pad_id, context_length=length)
        assert self.text is not None
        return open_text(
            self.text,
            column=self.column,
            subset=self.subset,
            split=self.split,
            revision=self.text_revision,
            shuffle=protocol.shuffle if names_data_set(self.text) else None,
        )


def _first(given: int | None, default: int) -> int:
    return default if given is None else given
