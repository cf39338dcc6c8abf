"""How a command reads a model: the options that `decompose` and `train-sae` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from darkmatter.adapters import ModelActivations, load_model, model_activations, parse_site, read_documents


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How to read a model, as `darkmatter.adapters.model_source` takes it."""

    model: str
    site: str
    text: Path
    revision: str | None
    dtype: str
    device: str
    context_length: int
    batch_docs: int
    skip_first: int
    max_tokens: int | None

    def activations(self) -> ModelActivations:
        """Load the model and tokenise the text; a bad site or path is found before the model is loaded."""
        site = parse_site(self.site)
        documents = read_documents(self.text)
        return model_activations(
            load_model(self.model, revision=self.revision, dtype=self.dtype, device=self.device),
            site,
            documents,
            context_length=self.context_length,
            batch_docs=self.batch_docs,
            skip_first=self.skip_first,
            max_tokens=self.max_tokens,
            text=self.text.name,
        )
