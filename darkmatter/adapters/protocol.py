"""Two protocols: the paper's, reproduced with its own definitions, and ours.

The paper's numbers (Engels et al., "Decomposing the Dark Matter of Sparse Autoencoders") are not the ones that
`decompose` reports. With x an activation, x̂ = Sae(x), e = x − x̂, and W the least-squares map of e on x:

| | the paper's | ours |
|---|---|---|
| split | tokens at random, once: 150 000 to fit, up to 150 000 others to test | documents, K folds |
| intercept | none: e ≈ x W | e ≈ x W + b |
| R² of the error | per coordinate, then the plain mean over coordinates | all coordinates pooled, cross-fitted |
| nonlinear FVU | Σ|x − x̂ − x W|² / Σ|x − x̄|² over all tokens, those of the fit included | √(S C), see `decompose` |
| FVU | Σ|x − x̂|² / Σ|x − x̄|²: a constant error counts | variance of e over variance of x |
| interval | none | 95 %, over documents |

Neighbouring tokens of one document fall on both sides of the paper's split, and coordinates with little variance count
as much as those with most of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from darkmatter.adapters.paper_sums import TRAIN_TOKENS, PaperResult, PaperSums, paper_split
from darkmatter.adapters.positions import PositionPolicy
from darkmatter.adapters.tokens import Bos
from darkmatter.batch import Array, BatchSource, check_batch
from darkmatter.checks import as_float_tensor, check_matrix

_ROWS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Which documents and positions a run uses.

    Attributes:
        name: What it is called.
        context_length: Longest sequence, in tokens, BOS included.
        min_length: Documents shorter than this are dropped.
        max_documents: Documents kept; None keeps all.
        positions: Which positions count.
        bos: Whether BOS is put in front.
        shuffle: Seed of the shuffle of a streamed data set; None keeps its order.
        definition: What is done with the tokens, for the report.
    """

    name: str
    context_length: int
    min_length: int
    max_documents: int | None
    positions: PositionPolicy
    bos: Bos
    shuffle: int | None
    definition: str

    @property
    def description(self) -> Mapping[str, Any]:
        """The protocol, for the report."""
        return {"protocol": asdict(self)}


DEFAULT = Protocol(
    name="default",
    context_length=128,
    min_length=0,
    max_documents=None,
    positions=PositionPolicy(),
    bos="prepend",
    shuffle=None,
    definition="every document, cut at the context length; BOS and special tokens dropped; the estimator of decompose",
)
"""Ours."""

PAPER = Protocol(
    name="paper",
    context_length=1024,
    min_length=1024,
    max_documents=300,
    positions=PositionPolicy(skip_first=200, skip_last=1, drop_special=False),
    bos="prepend",
    shuffle=42,
    definition=(
        "the authors' definitions: documents of at least 1024 tokens cut to 1024 with BOS, 300 of them (of "
        "monology/pile-uncopyrighted, shuffled with seed 42), positions 200 to 1022; error on x without intercept, "
        "fitted on 150000 random tokens and tested on the rest, at most 150000; R2 averaged over coordinates; FVU "
        "sum|x-recon|^2 / sum|x-mean|^2, nonlinear FVU with the fitted error added to recon, over all tokens"
    ),
)
"""The authors'; for their power laws in width they use positions 1 to 1022 instead."""


def paper_protocol(x: Array, recon: Array, *, seed: int, train_tokens: int = TRAIN_TOKENS) -> PaperResult:
    """Compute the paper's numbers from arrays; memory maps are read block by block.

    Args:
        x: Activations, (n, d).
        recon: Reconstructions Sae(x), (n, d).
        seed: Seed of the split of tokens.
        train_tokens: Tokens to fit on.

    Returns:
        The numbers, by the authors' definitions.
    """
    n, d = x.shape
    sums = PaperSums(paper_split(n, seed=seed, train_tokens=train_tokens), seed)
    for low in range(0, n, _ROWS):
        block = as_float_tensor(x[low : low + _ROWS], "x")
        other = as_float_tensor(recon[low : low + _ROWS], "recon")
        check_matrix(other, "recon", n=len(block), d=d)
        sums.update(block, {"sae": other})
    return sums.finish()["sae"]


def paper_protocol_source(
    source: BatchSource, *, n_tokens: int, seed: int, train_tokens: int = TRAIN_TOKENS
) -> dict[str, PaperResult]:
    """Compute the paper's numbers for every SAE of a source, in one pass.

    Args:
        source: The source.
        n_tokens: Tokens that it yields; 300 documents under `PAPER` have 300 × 823.
        seed: Seed of the split of tokens.
        train_tokens: Tokens to fit on.

    Returns:
        The numbers by SAE.
    """
    sums = PaperSums(paper_split(n_tokens, seed=seed, train_tokens=train_tokens), seed)
    for batch in source:
        sums.update(*check_batch(batch, d_model=source.d_model, names=source.names))
    return sums.finish()
