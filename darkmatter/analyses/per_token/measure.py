"""The two passes of the per-token analysis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from darkmatter.analyses.controls import is_control
from darkmatter.analyses.fold_table import FoldTable
from darkmatter.analyses.id_sums import ID_BYTES, IdSums
from darkmatter.analyses.part_maps import PARTS, PartMaps, part_maps
from darkmatter.analyses.per_token.classes import ClassSums
from darkmatter.analyses.per_token.predict import SQUARES, Norms, predict, slope
from darkmatter.analyses.per_token.results import Breakdown, Pair, PerToken, SaeTokens
from darkmatter.analyses.per_token.top import TopTokens
from darkmatter.analyses.per_token.words import KINDS, TokenText
from darkmatter.batch import Batch, BatchSource, check_batch
from darkmatter.decomposition import decompose_moments
from darkmatter.errors import InputError
from darkmatter.folds import FoldMoments, fold_of
from darkmatter.inference import UNDEFINED
from darkmatter.sae import SAE
from darkmatter.stream import Progress, accumulate

_BINS = 64
"""Bins of positions: 0, 1, 2–3, 4–7, … up to the largest int64."""

_TENTHS = 10


def per_token_errors(
    source: BatchSource,
    *,
    saes: Mapping[str, SAE] | None = None,
    small: str | None = None,
    large: str | None = None,
    text: TokenText | None = None,
    top: int = 10,
    folds: int = 20,
    device: str = "cpu",
    moments: FoldMoments | None = None,
    id_bytes: int = ID_BYTES,
    progress: Progress | None = None,
) -> PerToken:
    """Error of single tokens: a large SAE's from a small one's, by position and class, and where it is largest.

    Two passes: the decomposition, then ‖e‖, ‖linear‖ and ‖r‖ of every token out of fold. Memory beside the moments:
    64 K (2 + 2 S) float64 numbers and `top` windows, and where token ids are known vocabulary × K × (2 + 2 S) more.

    Args:
        source: Batches of activations and reconstructions.
        saes: Weights by name; their widths choose the small and the large SAE.
        small: The SAE whose error norms predict; the one with the fewest latents by default.
        large: The SAE whose error norm is predicted; the one with the most latents by default.
        text: What is known of the tokenizer, for classes and contexts.
        top: Tokens to list.
        folds: Number K of document folds.
        device: Where the sums live; it must support float64.
        moments: Moments of the source, if a first pass was made; `folds` is theirs then.
        id_bytes: Most memory for sums by token id; the breakdown by token is left out beyond.
        progress: Called with the number of tokens after every batch of the second pass.

    Returns:
        The prediction, the breakdowns, and the tokens.

    Raises:
        InputError: A bad source or batch, unknown or equal SAEs, too few tokens or documents.
        DegenerateError: x is constant, or an SAE has no error.
    """
    if top < 0:
        raise InputError(f"top is {top}, expected at least 0")
    pair = choose_pair(source.names, saes or {}, small, large)
    if moments is None:
        moments = accumulate(source, folds=folds, device=device)
    work = _Pass(moments, pair, text, top, id_bytes)
    for batch in source:
        work.add(batch)
        if progress:
            progress(len(batch.groups))
    return work.finish()


def choose_pair(
    names: Sequence[str], saes: Mapping[str, SAE], small: str | None, large: str | None
) -> tuple[str, str] | None:
    """The small and the large SAE.

    Args:
        names: All SAEs and controls.
        saes: Weights by name, where they are known.
        small: The small one, if it is named.
        large: The large one, if it is named.

    Returns:
        (small, large): what is not named is the SAE, controls apart, with the fewest and the most latents; None where
        there are not two or their widths are not known.

    Raises:
        InputError: An unknown name, or one SAE as both.
    """
    for option, name in (("small", small), ("large", large)):
        if name is not None and name not in names:
            raise InputError(f"{option} is {name!r}, expected one of {', '.join(names)}")
    if small is not None and small == large:
        raise InputError(f"small and large are both {small!r}, expected two SAEs: one cannot predict itself")
    sized = {name: saes[name].d_sae for name in names if name in saes and not is_control(name)}
    free = sorted((name for name in sized if name not in {small, large}), key=lambda name: sized[name])
    if small is None and free:
        small = free.pop(0)
    if large is None and free:
        large = free.pop()
    return None if small is None or large is None else (small, large)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What is kept of an SAE."""

    share: TopTokens
    square: TopTokens


class _Pass:
    """State of the second pass; columns of class sums are ‖x − x̄‖², then ‖e − ē‖² and ‖r‖² of every SAE."""

    def __init__(
        self, moments: FoldMoments, pair: tuple[str, str] | None, text: TokenText | None, top: int, id_bytes: int
    ) -> None:
        self._moments, self._pair, self._text = moments, pair, text
        self._found = decompose_moments(moments)
        self._names, folds = moments.layout.names, len(moments.folds)
        self._maps: PartMaps = part_maps(moments, parts=min(PARTS, folds))
        total = moments.total()
        self._mean_x, self._mean_e = total.mean_x, dict(zip(self._names, total.mean_e, strict=True))
        self._var_x = float(total.xx.diagonal().sum()) / total.n
        columns = ["place", *(f"r2 {name}" for name in self._names), *(SQUARES if pair else ())]
        self._table = FoldTable.empty([*columns, *(Norms.names() if pair else ())], folds)
        self._sums = torch.zeros(_BINS * folds, 2 + 2 * len(self._names), dtype=torch.float64)
        self._ids = IdSums(1 + 2 * len(self._names), folds, limit=id_bytes)
        self._top = {name: _Tokens(TopTokens(top), TopTokens(top)) for name in self._names}
        self._placed = self._named = True
        self._kinds: Tensor | None = None

    def add(self, batch: Batch) -> None:
        """Add a batch."""
        x, _ = check_batch(batch, d_model=self._moments.layout.d_model, names=self._names)
        if not len(x):
            return
        deviation = _squares(x.double() - self._mean_x.to(x.device))
        columns, norms, rows = [deviation], Norms(_squares(x.double())), {}
        for name in self._names:
            linear, nonlinear = self._maps.split(name, batch)
            error, r = linear + nonlinear, _squares(nonlinear)
            e = _squares(error - self._mean_e[name].to(x.device))
            columns += [e, r]
            rows[f"r2 {name}"] = r
            if self._pair is not None and name in self._pair:
                norms.see(name == self._pair[0], _squares(error), r, _squares(linear))
            self._see(name, batch, e, r)
        if self._pair is not None:
            rows |= norms.columns()
        values = torch.stack(columns, dim=1)
        place = self._place(batch, values)
        self._table = self._table.add(batch.groups, {**rows, "place": place})
        self._named &= batch.token_ids is not None
        if batch.token_ids is not None:
            self._ids.add(batch.groups, batch.token_ids, values)

    def _place(self, batch: Batch, values: Tensor) -> Tensor:
        """Count the tokens by position; log2(1 + position), (n,).

        Raises:
            InputError: A negative position.
        """
        self._placed &= batch.positions is not None
        if batch.positions is None:
            return torch.zeros(len(values), dtype=torch.float64)
        if int(batch.positions.min()) < 0:
            raise InputError(f"positions holds {int(batch.positions.min())}, expected positions from 0 on")
        folds = len(self._moments.folds)
        # frexp gives the number of binary digits: 0 → 0, 1 → 1, 2–3 → 2, …
        bins = np.minimum(np.frexp(batch.positions.astype(np.float64))[1], _BINS - 1).astype(np.int64)
        where = torch.from_numpy(bins * folds + fold_of(batch.groups, folds))
        ones = torch.ones(len(values), 1, dtype=torch.float64)
        self._sums.index_add_(0, where, torch.cat([ones, values], dim=1))
        return (1 + torch.from_numpy(batch.positions).double()).log2()

    def _see(self, name: str, batch: Batch, e: Tensor, r: Tensor) -> None:
        share = r / e.clamp_min(torch.finfo(torch.float64).tiny)
        mean = self._found[name].fvu.value * self._var_x
        self._top[name].share.add(batch, torch.where(e > mean, share, -torch.inf), share, r)
        self._top[name].square.add(batch, r, share, r)

    def finish(self) -> PerToken:
        """Collect.

        Raises:
            InputError: The second pass saw other tokens than the first.
        """
        expected = [float(fold.n) for fold in self._moments.folds]
        if self._table.n.tolist() != expected:
            raise InputError(
                f"the second pass saw {self._table.n_tokens:,} tokens, expected the {self._moments.n_tokens:,} of the "
                "first in the same folds: a source must repeat itself"
            )
        made = {name: self._one(i, name) for i, name in enumerate(self._names)}
        pair = None
        if self._pair is not None:
            pair = Pair(*self._pair, norm=predict(self._table, "norm"), square=predict(self._table, "square"))
        return PerToken(
            pair=pair,
            saes=made,
            n_tokens=self._moments.n_tokens,
            n_folds=len(self._table.used),
            warnings=tuple(self._warnings()),
        )

    def _one(self, i: int, name: str) -> SaeTokens:
        raw = float(self._table.sums(f"r2 {name}").sum()) / self._moments.n_tokens
        scale = self._found[name].fvu_nonlinear.value * self._var_x / raw if raw > 0 else 0.0
        top = self._top[name]
        return SaeTokens(
            by_position=self._by_position(i, scale) if self._placed else None,
            slope=slope(self._table, f"r2 {name}") if self._placed else UNDEFINED,
            by_frequency=self._by_frequency(i, scale) if self._has_ids else None,
            by_class=self._by_class(i, scale) if self._has_ids and self._text is not None else None,
            top_share=top.share.tokens(self._text, raw),
            top_square=top.square.tokens(self._text, raw),
        )

    @property
    def _has_ids(self) -> bool:
        return self._named and not self._ids.over

    def _by_position(self, i: int, scale: float) -> Breakdown:
        n, x, e, r = self._sums.view(_BINS, len(self._moments.folds), -1)[:, :, [0, 1, 2 + 2 * i, 3 + 2 * i]].unbind(2)
        return ClassSums(tuple(map(_bin_name, range(_BINS))), n, x, e, scale * r).breakdown()

    def _by_frequency(self, i: int, scale: float) -> Breakdown:
        """Ids sorted by how often they occur and cut into tenths of the tokens."""
        counts = self._ids.counts.sum(dim=1)
        order = torch.argsort(counts, stable=True)
        middle = counts[order].cumsum(0) - counts[order] / 2
        tenth = torch.empty(len(counts), dtype=torch.int64)
        tenth[order] = (_TENTHS * middle / counts.sum()).long().clamp_max(_TENTHS - 1)
        names = []
        for j in range(_TENTHS):
            own = counts[tenth == j]
            often = f"{int(own.min())}–{int(own.max())}" if len(own) else "0"
            names.append(f"{j + 1}: ids {often}x")
        return self._grouped(i, scale, tenth, names)

    def _by_class(self, i: int, scale: float) -> Breakdown:
        assert self._text is not None
        if self._kinds is None:  # once for all SAEs: a vocabulary is long
            self._kinds = torch.tensor([KINDS.index(self._text.kind(token)) for token in self._ids.seen.tolist()])
        return self._grouped(i, scale, self._kinds, KINDS)

    def _grouped(self, i: int, scale: float, kinds: Tensor, names: Sequence[str]) -> Breakdown:
        def gathered(sums: Tensor) -> Tensor:
            return sums.new_zeros(len(names), sums.shape[1]).index_add_(0, kinds, sums)

        n, x = gathered(self._ids.counts), gathered(self._ids.sums(0))
        e, r = gathered(self._ids.sums(1 + 2 * i)), gathered(self._ids.sums(2 + 2 * i))
        return ClassSums(tuple(names), n, x, e, scale * r).breakdown()

    def _warnings(self) -> Iterator[str]:
        seen: dict[str, None] = {}
        for found in self._found.values():
            seen |= dict.fromkeys(found.warnings)
        yield from seen
        if self._pair is None:
            yield (
                "no prediction of a large SAE's error from a small one's: it needs two SAEs whose widths are known, or "
                "their names (small, large)"
            )
        if not self._placed:
            yield "no positions: the breakdown by position is left out"
        if not self._named:
            yield "no token ids: the breakdown by token and the contexts are left out"
        elif self._ids.over:
            yield "the breakdown by token is left out: vocabulary x folds x SAEs passes its memory (id_bytes)"
        elif self._text is None:
            yield "no tokenizer: the breakdown by class is left out, and contexts are ids"


def _squares(rows: Tensor) -> Tensor:
    """|v|² of every row, on the CPU."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms.square_().cpu()


def _bin_name(i: int) -> str:
    low, high = (1 << i) >> 1, (1 << i) - 1
    return str(low) if high <= low else f"{low}–{high}"
