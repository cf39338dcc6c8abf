"""The one pass: a source in, the moments of its folds out, resumable at any batch."""

from __future__ import annotations

from typing import Protocol

from darkmatter.batch import BatchSource, check_header, iterate_from
from darkmatter.errors import InputError
from darkmatter.folds import FoldAccumulator, FoldMoments
from darkmatter.moments import Layout
from darkmatter.store import Checkpoint, run_identity


class Progress(Protocol):
    """Anything that wants to know how far a pass is."""

    def __call__(self, tokens: int, /) -> None:
        """Take notice of some more tokens."""
        ...


def accumulate(
    source: BatchSource,
    *,
    folds: int,
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> FoldMoments:
    """Stream a source into the moments of K folds.

    With a checkpoint, a run that was killed goes on from the last save; the result is the same, bit for bit, because
    rows that wait to be multiplied are saved as well.

    Args:
        source: Batches.
        folds: Number K of document folds.
        device: Where the sums live; it must support float64.
        checkpoint: Where and how often to save.
        progress: Called with the number of tokens after every batch (and once for what a checkpoint held).

    Returns:
        The moments.

    Raises:
        InputError: A bad source or batch, or a source without tokens.
    """
    check_header(source)
    accumulator = FoldAccumulator(Layout(source.d_model, source.names), folds=folds, device=device)
    identity = run_identity(source, folds)
    done = checkpoint.resume(accumulator, identity) if checkpoint else 0
    if progress and done:
        progress(accumulator.n_tokens)
    for number, batch in enumerate(iterate_from(source, done), start=done + 1):
        try:
            tokens = accumulator.update(batch)
        except InputError as error:
            raise InputError(f"batch {number}: {error}") from None
        if progress:
            progress(tokens)
        if checkpoint:
            checkpoint.maybe_save(accumulator, identity, number)
    if not accumulator.n_tokens:
        raise InputError("the source yields no tokens: check the input files and the token filter")
    return accumulator.finish()
