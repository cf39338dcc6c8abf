"""The pass: the moments of the decomposition, and beside them the scatter of every SAE's error, by document fold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from darkmatter.batch import BatchSource, check_batch, check_header
from darkmatter.errors import InputError
from darkmatter.folds import FoldAccumulator, FoldMoments, fold_of
from darkmatter.moments import Layout
from darkmatter.stream import Progress

LEAST_FOLDS = 4
"""Quarters of the documents are compared with each other."""


@dataclass(frozen=True, slots=True, eq=False)
class ErrorMoments:
    """What the spectrum needs, whatever the number of tokens.

    Attributes:
        moments: Moments of K folds, as for a decomposition.
        scatter: By SAE, Σ (e − ē_k)(e − ē_k)' of every fold about its own mean, (K, d, d), float64.
    """

    moments: FoldMoments
    scatter: Mapping[str, Tensor]


def accumulate_errors(
    source: BatchSource, *, folds: int, device: str = "cpu", progress: Progress | None = None
) -> ErrorMoments:
    """Stream a source into moments with the scatter of every error: about 2 + S products of n d² instead of 1 + S.

    Args:
        source: Batches.
        folds: Number K of document folds.
        device: Where the sums live; it must support float64.
        progress: Called with the number of tokens after every batch.

    Returns:
        The sums.

    Raises:
        InputError: Fewer than 4 folds, a bad source or batch, no tokens, or sums that exceed this machine's memory.
    """
    check_header(source)
    if folds < LEAST_FOLDS:
        raise InputError(f"folds is {folds}, expected at least {LEAST_FOLDS}: quarters of the documents are compared")
    d, names = source.d_model, source.names
    check_memory(d, len(names), folds)
    plain = FoldAccumulator(Layout(d, names), folds=folds, device=device)
    place = torch.device(device)
    n = torch.zeros(folds, dtype=torch.float64, device=place)
    mean = {name: torch.zeros(folds, d, dtype=torch.float64, device=place) for name in names}
    scatter = {name: torch.zeros(folds, d, d, dtype=torch.float64, device=place) for name in names}
    for number, batch in enumerate(source, start=1):
        try:
            tokens = plain.update(batch)
        except InputError as error:
            raise InputError(f"batch {number}: {error}") from None
        x, recons = check_batch(batch, d_model=d, names=names)
        fold = fold_of(batch.groups, folds)
        for k in np.unique(fold).tolist():
            mine = torch.from_numpy(np.flatnonzero(fold == k)).to(x.device)
            rows = x[mine].to(place, torch.float64)
            count = n[k] + len(mine)
            for name in names:
                e = rows - recons[name][mine].to(place, torch.float64)
                own = e.mean(dim=0)
                e -= own
                delta = own - mean[name][k]
                # Chan, Golub and LeVeque: the between-means term as one more row of the same product
                e = torch.cat([e, (delta * (n[k] * len(mine) / count).sqrt())[None]])
                scatter[name][k].addmm_(e.T, e)
                mean[name][k] += delta * (len(mine) / count)
            n[k] = count
        if progress:
            progress(tokens)
    moments = plain.finish()
    if not moments.n_tokens:
        raise InputError("the source yields no tokens: check the input files and the token filter")
    return ErrorMoments(moments, scatter)


def check_memory(d_model: int, n_saes: int, folds: int) -> None:
    """Refuse sums that cannot fit: K (6 + 3 S) matrices of d² float64 numbers.

    Args:
        d_model: Width.
        n_saes: SAEs, controls among them.
        folds: Folds K.

    Raises:
        InputError: They exceed the physical memory.
    """
    if not hasattr(os, "sysconf"):
        return
    needed = 8 * folds * (6 + 3 * n_saes) * d_model**2
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise InputError(
            f"the spectra of {n_saes} SAEs of width {d_model} in {folds} folds need {needed / 1e9:.0f} GB and this "
            f"machine has {there / 1e9:.0f} GB: pass fewer --folds (at least 4), or fewer SAEs at a time"
        )
