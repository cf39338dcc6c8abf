"""Source and SAEs → the geometry of x and of every error: one pass, and a short second one for active latents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from darkmatter.analyses.controls import is_control
from darkmatter.analyses.spectrum.active import ACTIVE_TOKENS, active_spans
from darkmatter.analyses.spectrum.along import Directions, alignments, check_folds, check_options, decoder_span
from darkmatter.analyses.spectrum.estimates import (
    Eigen,
    Subspaces,
    between,
    overlap,
    participation_ratio,
    spectrum,
)
from darkmatter.analyses.spectrum.parts import ErrorParts, PartSums, error_parts, x_sums
from darkmatter.analyses.spectrum.result import Along, Overlap, PartSpectrum, ResidualSpectrum, SaeSpectrum
from darkmatter.analyses.spectrum.sums import ErrorMoments, accumulate_errors
from darkmatter.batch import BatchSource
from darkmatter.decomposition import DEFAULT_FOLDS
from darkmatter.errors import DegenerateError
from darkmatter.guards import FEW_GROUPS_PER_FOLD, LOW_TOKENS_PER_DIRECTION, degenerate_kind
from darkmatter.inference import UNDEFINED, Estimate, interval
from darkmatter.moments import Moments
from darkmatter.sae import SAE
from darkmatter.stream import Progress

_POINTS = 24
_UNRESOLVED = 0.5
"""Stability below which the k-th leading direction is not told from the next."""


def residual_spectrum(
    source: BatchSource,
    *,
    saes: Mapping[str, SAE] | None = None,
    rank: int | None = None,
    directions: Directions | None = None,
    active_tokens: int = ACTIVE_TOKENS,
    folds: int = DEFAULT_FOLDS,
    device: str = "cpu",
    progress: Progress | None = None,
) -> ResidualSpectrum:
    """Say how many directions an SAE's error occupies, which ones, and how much of it the SAE's own directions hold.

    Args:
        source: Batches with the reconstructions of some SAEs.
        saes: Weights, where known, for the shares along the decoder.
        rank: k, directions that count as leading; d/8 by default.
        directions: Further directions by SAE and name, (m, d) each, of any norm: absent features of a world, say.
        active_tokens: Tokens on which spans of active latents are measured, in a second pass; 0 for none.
        folds: Number K of document folds, at least 4 of them with tokens.
        device: Where the sums live; it must support float64.
        progress: Called with the number of tokens after every batch of the first pass.

    Returns:
        Spectra, overlaps and shares.

    Raises:
        InputError: Bad options, too few documents or tokens, or a bad source.
    """
    check_options(source.d_model, source.names, rank=rank, directions=directions or {}, active_tokens=active_tokens)
    sums = accumulate_errors(source, folds=folds, device=device, progress=progress)
    check_folds(sums.moments)
    known = {name: sae for name, sae in (saes or {}).items() if name in source.names}
    spans, seen = active_spans(source, known, sums.moments, n_tokens=active_tokens) if active_tokens else ({}, 0)
    return spectrum_of_sums(sums, saes=known, rank=rank, directions=directions, active=spans, n_active_tokens=seen)


def spectrum_of_sums(
    sums: ErrorMoments,
    *,
    saes: Mapping[str, SAE] | None = None,
    rank: int | None = None,
    directions: Directions | None = None,
    active: Mapping[str, Along] | None = None,
    n_active_tokens: int = 0,
) -> ResidualSpectrum:
    """The same from finished sums; see `residual_spectrum`.

    Args:
        sums: What `accumulate_errors` collected.
        saes: Weights, where known.
        rank: k.
        directions: Further directions by SAE and name.
        active: Shares inside spans of active latents, by SAE.
        n_active_tokens: Tokens that they rest on.

    Returns:
        The geometry.

    Raises:
        InputError: Fewer than 4 folds with tokens, or too few tokens.
        DegenerateError: x is constant.
    """
    moments = sums.moments
    d, names = moments.layout.d_model, moments.layout.names
    filled = check_folds(moments)
    k = max(1, d // 8) if rank is None else rank
    check_options(d, names, rank=k, directions=directions or {}, active_tokens=n_active_tokens)
    indices = _indices(d)
    total = moments.total()
    x = x_sums(sums, total)
    if not x.trace > 0:
        raise DegenerateError(f"x is constant over {moments.n_tokens} tokens, expected activations that vary", {})
    whole = Eigen(x)
    view = _View(indices=indices, k=k, x=x)
    x_spectrum = _part(whole, view)
    warnings = _token_warnings(sums, filled)
    found: dict[str, SaeSpectrum] = {}
    leading: dict[str, Subspaces] = {}
    for parts in error_parts(sums, total):
        name = parts.name
        degenerate = _degenerate(total, parts)
        if degenerate:
            warnings.append(degenerate)
        eigen = Eigen(parts.nonlinear)
        alive = not degenerate
        found[name] = SaeSpectrum(
            control=is_control(name),
            error=_part(Eigen(parts.error), view),
            linear=_part(Eigen(parts.linear), view),
            nonlinear=_part(eigen, view) if alive else _nothing(Estimate(0.0, 0.0, 0.0)),
            spans={
                **decoder_span((saes or {}).get(name), parts, x, k),
                **({"active latents": active[name]} if active and name in active else {}),
            },
            alignments=alignments((saes or {}).get(name), (directions or {}).get(name, {}), parts, x),
        )
        if alive:
            leading[name] = eigen.subspaces(k)
            stability = found[name].nonlinear.stability
            if stability < _UNRESOLVED and not is_control(name):
                warnings.append(
                    f"{name}: the {k} leading directions of its nonlinear error agree between halves of the documents "
                    f"by {stability:.2f} only: overlaps with them are uncertain; pass more tokens or a smaller rank."
                )
    return ResidualSpectrum(
        x=x_spectrum,
        saes=found,
        overlaps=_overlaps({**leading, "x": whole.subspaces(k)}),
        rank=k,
        chance=k / d,
        indices=tuple(i + 1 for i in indices),
        n_tokens=moments.n_tokens,
        n_active_tokens=n_active_tokens,
        n_groups=moments.n_groups,
        n_folds=filled,
        d_model=d,
        warnings=tuple(warnings),
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _View:
    """What is read from every spectrum."""

    indices: tuple[int, ...]
    k: int
    x: PartSums


def _nothing(share: Estimate) -> PartSpectrum:
    """What has no variance has no directions."""
    return PartSpectrum(share, UNDEFINED, UNDEFINED, UNDEFINED, (), (), (), math.nan)


def _indices(d: int) -> tuple[int, ...]:
    """Ranks from 0, evenly spaced on a logarithmic scale, the first and the last among them."""
    return tuple(sorted({round(i) - 1 for i in np.geomspace(1, d, min(d, _POINTS)).tolist()}))


def _part(eigen: Eigen, view: _View) -> PartSpectrum:
    part, x = eigen.part, view.x
    share = part.trace / x.trace
    estimate = interval(share, share * (part.influence - x.influence), part.n)
    if not estimate.low > 0:
        return _nothing(estimate)
    lead = [vectors[:, : view.k] for _, vectors in eigen.halves]
    found = spectrum(eigen, view.indices, view.k, of=x.trace, of_influence=x.influence)
    return PartSpectrum(
        share=Estimate(1.0, 1.0, 1.0)
        if part is x
        else interval(share, part.influence - x.influence, part.n, link="log"),
        participation=participation_ratio(part),
        effective_rank=found.effective_rank,
        leading=found.leading,
        eigenvalues=found.eigenvalues,
        insample=found.insample,
        heldout=found.heldout,
        stability=between(lead, lead),
    )


def _overlaps(leading: Mapping[str, Subspaces]) -> tuple[Overlap, ...]:
    return tuple(
        Overlap(
            first=first,
            second=second,
            overlap=overlap(leading[first], leading[second]),
            halves=between(leading[first].halves, leading[second].halves),
        )
        for first, second in combinations(leading, 2)
    )


def _degenerate(total: Moments, parts: ErrorParts) -> str:
    """A sentence where the nonlinear error is none, by construction."""
    d, i = total.layout.d_model, total.layout.names.index(parts.name)
    cross = float(total.xe[:, d * i : d * (i + 1)].diagonal().sum()) / total.n
    var_x = float(total.xx.diagonal().sum()) / total.n
    kind = degenerate_kind(var_x - 2 * cross + parts.error.trace, parts.nonlinear.trace, var_x)
    if kind == "dead":
        return f"{parts.name} is dead: Sae(x) is constant, so its nonlinear error is zero and has no spectrum."
    if kind == "affine":
        return f"{parts.name} is affine in x on these tokens: its nonlinear error is zero and has no spectrum."
    return ""


def _token_warnings(sums: ErrorMoments, filled: int) -> list[str]:
    moments = sums.moments
    found = []
    if moments.n_groups < FEW_GROUPS_PER_FOLD * filled:
        found.append(
            f"only {moments.n_groups} documents for {filled} folds: intervals rest on documents, not tokens; pass more "
            "documents, or fewer folds."
        )
    per_direction = moments.n_tokens / moments.layout.d_model
    if per_direction < 4 * LOW_TOKENS_PER_DIRECTION:
        found.append(
            f"only {per_direction:.1f} tokens per direction of x: eigenvalues of quarters of them are not calibrated; "
            "pass more tokens."
        )
    return found
