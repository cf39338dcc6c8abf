"""The one seam: a source yields batches of activations, reconstructions and document ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkmatter.checks import as_float_tensor, check_finite, check_matrix
from darkmatter.errors import InputError

Array = npt.NDArray[Any] | Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Some tokens of one layer, with what each SAE makes of them.

    Attributes:
        x: Activations, (n, d_model), any floating dtype.
        recons: Reconstructions Sae(x) by SAE name, each (n, d_model) — not errors.
        groups: Document id of every token, (n,), int64. A document may span batches.
        positions: Position of every token in its document, (n,), int64; None where it is not known.
        token_ids: Vocabulary id of every token, (n,), int64; None where there is none.
    """

    x: Array
    recons: Mapping[str, Array]
    groups: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64] | None = None
    token_ids: npt.NDArray[np.int64] | None = None


@runtime_checkable
class BatchSource(Protocol):
    """A re-iterable stream of batches; the same batches, in the same order, every time.

    `description` is JSON-serialisable and goes into the report; a source that knows its length puts it there as
    ``n_tokens`` (used for the progress bar only).
    """

    @property
    def d_model(self) -> int:
        """Activation width."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the SAEs, the keys of every batch's `recons`."""
        ...

    @property
    def description(self) -> Mapping[str, Any]:
        """Where the tokens come from and what was dropped."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Start again from the first batch."""
        ...


@runtime_checkable
class ResumableSource(BatchSource, Protocol):
    """A source that can start at a later batch without computing the earlier ones."""

    def batches_from(self, start: int) -> Iterator[Batch]:
        """Yield the batches that iteration would yield from number `start` on."""
        ...


@runtime_checkable
class SitesSource(Protocol):
    """A re-iterable stream that yields a batch of every site at a time, such as one forward pass gives.

    The sites may have different widths and SAEs. A source may also offer `batches_from(start)`, as `ResumableSource`.
    """

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, the keys of what is yielded."""
        ...

    @property
    def widths(self) -> Mapping[str, int]:
        """Activation width by site."""
        ...

    @property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the SAEs by site."""
        ...

    @property
    def description(self) -> Mapping[str, Any]:
        """Where the tokens come from and what was dropped."""
        ...

    def __iter__(self) -> Iterator[Mapping[str, Batch]]:
        """Start again from the first batches."""
        ...


@dataclass(frozen=True, slots=True)
class OneSite:
    """One site of several as a `BatchSource` of its own.

    Attributes:
        source: The sites.
        site: Name of the one.
    """

    source: SitesSource
    site: str

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.source.widths[self.site]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the SAEs."""
        return self.source.names[self.site]

    @property
    def description(self) -> Mapping[str, Any]:
        """The description of all sites, and which one this is."""
        return {**self.source.description, "site": self.site}

    def __iter__(self) -> Iterator[Batch]:
        """Yield this site's batches."""
        return (batches[self.site] for batches in self.source)


@overload
def iterate_from(source: BatchSource, start: int) -> Iterator[Batch]: ...
@overload
def iterate_from(source: SitesSource, start: int) -> Iterator[Mapping[str, Batch]]: ...
def iterate_from(source: BatchSource | SitesSource, start: int) -> Iterator[Any]:
    """Yield what the source yields from number `start` on, skipping cheaply where the source can."""
    skip = getattr(source, "batches_from", None)
    if start and skip is not None:
        found: Iterator[Any] = skip(start)
        return found
    return islice(iter(source), start, None)


def check_batch(batch: Batch, *, d_model: int, names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """Validate one batch completely before anything is accumulated from it.

    Args:
        batch: The batch.
        d_model: Width the source announced.
        names: SAE names the source announced.

    Returns:
        x and the reconstructions as floating tensors, in the order of `names`.

    Raises:
        InputError: Wrong type, shape, dtype, names, document ids, or a value that is not finite.
    """
    if not isinstance(batch, Batch):
        raise InputError(f"the source yields a {type(batch).__name__}, expected a Batch(x, recons, groups)")
    x = as_float_tensor(batch.x, "x")
    check_matrix(x, "x", d=d_model)
    n = x.shape[0]
    if not isinstance(batch.recons, Mapping):
        raise InputError(f"recons is a {type(batch.recons).__name__}, expected a mapping from SAE name to array")
    if set(batch.recons) != set(names):
        raise InputError(
            f"batch has reconstructions {sorted(batch.recons, key=str)}, expected {sorted(names)}: "
            "every batch must hold every SAE the source names"
        )
    _check_numbers(batch.groups, "groups", "document id", n)
    for name, numbers, what in (("positions", batch.positions, "position"), ("token_ids", batch.token_ids, "token id")):
        if numbers is not None:
            _check_numbers(numbers, name, what, n)
    check_finite(x, "x")
    recons = {}
    for name in names:
        recon = as_float_tensor(batch.recons[name], f"recon {name!r}")
        check_matrix(recon, f"recon {name!r}", n=n, d=d_model)
        check_finite(recon, f"recon {name!r}")
        recons[name] = recon
    return x, recons


def _check_numbers(value: Any, name: str, what: str, n: int) -> None:
    """Require one int64 per token.

    Raises:
        InputError: Another type, dtype or shape.
    """
    if not isinstance(value, np.ndarray) or value.dtype != np.int64:
        kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(f"{name} is {kind}, expected a numpy int64 array of {what}s")
    if value.shape != (n,):
        raise InputError(f"{name} has shape {value.shape}, expected ({n},): one {what} per token")


@dataclass(frozen=True, slots=True)
class SourceCheck:
    """What a conformance run over a source saw.

    Attributes:
        n_batches: Batches read.
        n_tokens: Tokens read.
        n_groups: Distinct documents among them.
        dtype: dtype of x in the first batch.
    """

    n_batches: int
    n_tokens: int
    n_groups: int
    dtype: str


def check_source(source: BatchSource, *, max_batches: int = 4) -> SourceCheck:
    """Run a source through the conformance checks of the seam.

    Checked: the protocol's attributes and their types, distinct names, a JSON-serialisable description, every batch
    by `check_batch`, that iterating twice gives the same first batch, and that `batches_from(1)` agrees with skipping.

    Args:
        source: Any `BatchSource`.
        max_batches: How many batches to read.

    Returns:
        Counts of what was read.

    Raises:
        InputError: The first violated rule, with what was expected.
    """
    if not isinstance(source, BatchSource):
        raise InputError(
            f"{type(source).__name__} is not a BatchSource: it needs d_model, names, description and __iter__"
        )
    check_header(source)
    batches = list(islice(iter(source), max_batches))
    if not batches:
        raise InputError("the source yields no batch: check the input files and the token filter")
    checked = [check_batch(b, d_model=source.d_model, names=source.names) for b in batches]
    _same_batch(batches[0], next(iter(source), None), "a second iteration starts with")
    if len(batches) > 1 and isinstance(source, ResumableSource):
        _same_batch(batches[1], next(source.batches_from(1), None), "batches_from(1) starts with")
    return SourceCheck(
        n_batches=len(batches),
        n_tokens=sum(x.shape[0] for x, _ in checked),
        n_groups=len(np.unique(np.concatenate([b.groups for b in batches]))),
        dtype=str(checked[0][0].dtype).removeprefix("torch."),
    )


def check_header(source: BatchSource) -> None:
    """Check what a source announces before its first batch.

    Args:
        source: The source.

    Raises:
        InputError: A width that is not a positive int, missing or repeated names, an unserialisable description.
    """
    if not isinstance(source.d_model, int) or source.d_model < 1:
        raise InputError(f"d_model is {source.d_model!r}, expected a positive int")
    names = source.names
    if not isinstance(names, tuple) or not names or not all(isinstance(n, str) and n for n in names):
        raise InputError(f"names is {names!r}, expected a non-empty tuple of SAE names")
    if len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise InputError(f"SAE names {twice} appear more than once in {names}: give every SAE its own name")
    try:
        json.dumps(dict(source.description), allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"description cannot be written as JSON ({error}): use plain numbers and strings") from error


def _same_batch(first: Batch, second: Batch | None, what: str) -> None:
    same = (
        second is not None
        and np.array_equal(first.groups, second.groups)
        and _same_array(first.x, second.x)
        and all(name in second.recons and _same_array(first.recons[name], second.recons[name]) for name in first.recons)
    )
    if not same:
        raise InputError(f"{what} different tokens: a source must repeat itself, so that a killed run can resume")


def _same_array(first: Array, second: Array) -> bool:
    a, b = as_float_tensor(first, "x"), as_float_tensor(second, "x")
    return a.dtype == b.dtype and torch.equal(a, b)
