"""Shares of x and of an error's parts along directions that are known beforehand: the decoder's, or a world's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from darkmatter.analyses.spectrum.estimates import inside
from darkmatter.analyses.spectrum.parts import ErrorParts, PartSums
from darkmatter.analyses.spectrum.result import Along
from darkmatter.analyses.spectrum.sums import LEAST_FOLDS
from darkmatter.batch import Array
from darkmatter.checks import as_float_tensor, check_finite, check_matrix
from darkmatter.errors import InputError
from darkmatter.folds import FoldMoments
from darkmatter.inference import UNDEFINED, Estimate, interval
from darkmatter.sae import SAE

Directions = Mapping[str, Mapping[str, Array]]
"""By SAE and name, (m, d) each."""


def check_options(
    d_model: int, names: tuple[str, ...], *, rank: int | None, directions: Directions, active_tokens: int
) -> None:
    """Check what can be checked before a pass.

    Args:
        d_model: Width.
        names: The SAEs.
        rank: Directions that count as leading.
        directions: Further directions.
        active_tokens: Tokens of the second pass.

    Raises:
        InputError: A rank outside 1 … d − 1, a negative number of tokens, or directions of unknown SAEs or wrong shape.
    """
    if d_model < 2 or (rank is not None and not 1 <= rank < d_model):
        raise InputError(
            f"rank is {rank} and d_model {d_model}, expected 1 to {max(1, d_model - 1)} leading directions"
        )
    if active_tokens < 0:
        raise InputError(f"active_tokens is {active_tokens}, expected 0 or more")
    unknown = sorted(set(directions) - set(names))
    if unknown:
        raise InputError(f"directions are given for {unknown[0]!r}, expected some of {', '.join(names)}")
    for name, sets in directions.items():
        for label, rows in sets.items():
            tensor = as_float_tensor(rows, f"directions {label!r} of {name!r}")
            check_matrix(tensor, f"directions {label!r} of {name!r}", d=d_model)
            check_finite(tensor, f"directions {label!r} of {name!r}")


def check_folds(moments: FoldMoments) -> int:
    """Refuse too few folds for quarters of the documents.

    Args:
        moments: Moments of K folds.

    Returns:
        Folds that hold tokens.

    Raises:
        InputError: Fewer than four.
    """
    filled = sum(fold.n > 0 for fold in moments.folds)
    if filled < LEAST_FOLDS:
        raise InputError(
            f"{moments.n_groups} document(s) fill {filled} fold(s), expected at least {LEAST_FOLDS}: subspaces are "
            "compared between quarters of the documents; pass more documents, or more folds"
        )
    return filled


def alignments(sae: SAE | None, directions: Mapping[str, Array], parts: ErrorParts, x: PartSums) -> dict[str, Along]:
    """How much of x and of the error's parts lies along decoder rows and along given directions, 1 if isotropic.

    Args:
        sae: Weights, if known.
        directions: Sets of directions by name.
        parts: The error's parts.
        x: x.

    Returns:
        By name of the set.
    """
    rows = {} if sae is None else {"decoder": sae.W_dec}
    rows |= {label: as_float_tensor(value, label) for label, value in directions.items()}
    return {label: _alignment(value, parts, x) for label, value in rows.items()}


def decoder_span(sae: SAE | None, parts: ErrorParts, x: PartSums, k: int) -> dict[str, Along]:
    """The span of all decoder rows where they leave something out; else of the leading k of their directions.

    Args:
        sae: Weights, if known.
        parts: The error's parts.
        x: x.
        k: Directions that count as leading.

    Returns:
        One span under its name; none without weights.
    """
    if sae is None:
        return {}
    rows = sae.W_dec.to(x.sums.device, torch.float64)
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    rank = int((values > len(values) * torch.finfo(values.dtype).eps * values[-1]).sum()) if values[-1] > 0 else 0
    if rank == 0:
        return {}
    name, dims = ("decoder", rank) if rank < len(values) else ("leading decoder directions", k)
    lead = vectors[:, -dims:]
    return {name: _along(lead @ lead.T, parts, x, dims=dims, chance=dims / len(values))}


def _alignment(rows: Tensor, parts: ErrorParts, x: PartSums) -> Along:
    rows = rows.to(x.sums.device, torch.float64)
    norms = rows.norm(dim=1)
    unit = rows[norms > 0] / norms[norms > 0, None]
    count, d = len(unit), rows.shape[1]
    return _along(unit.T @ unit * (d / max(1, count)), parts, x, dims=count, chance=1.0 if count else 0.0)


def _along(matrix: Tensor, parts: ErrorParts, x: PartSums, *, dims: float, chance: float) -> Along:
    def of(part: PartSums) -> Estimate:
        # below its own noise a part has no direction to speak of
        return inside(part, matrix) if part.trace > 0 and _clear(part) else UNDEFINED

    return Along(
        dims=dims,
        chance=chance,
        x=inside(x, matrix),
        error=of(parts.error),
        linear=of(parts.linear),
        nonlinear=of(parts.nonlinear),
    )


def _clear(part: PartSums) -> bool:
    return interval(part.trace, part.trace * part.influence, part.n).low > 0
