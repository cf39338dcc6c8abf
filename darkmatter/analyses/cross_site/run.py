"""One pass over several sites, and what it says about the error at one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch

from darkmatter.analyses.cross_site.fits import Fits, fit_sets
from darkmatter.analyses.cross_site.grams import GramAccumulator, Grams
from darkmatter.analyses.cross_site.plan import check_memory
from darkmatter.analyses.cross_site.regressors import (
    ALL,
    KINDS,
    Beside,
    Kind,
    Regressors,
    earlier_saes,
    make_plan,
    random_features,
)
from darkmatter.analyses.cross_site.result import CrossSite, ErrorExplained, Reader
from darkmatter.analyses.cross_site.traces import Traces
from darkmatter.batch import SitesSource
from darkmatter.decomposition import DEFAULT_FOLDS
from darkmatter.errors import InputError
from darkmatter.folds import FoldMoments, Keys, document_hash, merge_keys
from darkmatter.guards import FEW_GROUPS_PER_FOLD, LOW_TOKENS_PER_DIRECTION, degenerate_kind
from darkmatter.moments import Layout
from darkmatter.sae import SAE
from darkmatter.stream import Progress

DEFAULT_CONTROLS: tuple[Kind, ...] = ("raw", "random", "shuffled")
"""Noise is left out: it answers what shuffled documents answer, and costs as much."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """Sums of a pass: the folds that hold tokens, and the number of documents."""

    folds: list[Grams]
    n_groups: int
    n_empty: int


def cross_site_errors(
    source: SitesSource,
    *,
    target: str | None = None,
    saes: Mapping[str, Mapping[str, SAE]] | None = None,
    controls: Sequence[Kind] = DEFAULT_CONTROLS,
    beside: Beside = "x",
    folds: int = DEFAULT_FOLDS,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    fitted: Callable[[int], None] | None = None,
) -> CrossSite:
    """Measure how much of the error at one site is linear in SAE outputs of earlier sites, against matched controls.

    With e the error and x the activation at the target and B the outputs Sae_p(x_p) of earlier sites: R²(e | B),
    R²(e | x, B) and the share of the nonlinear error, (R²(e | x, B) − R²(e | x)) / (1 − R²(e | x)); for each earlier
    SAE alone, for all together, and for each control in place of B. One pass; memory does not depend on its length.

    Args:
        source: The sites; all hold the same tokens in the same order.
        target: Site whose error is explained; the last by default. All others explain it.
        saes: Weights by site and name, where they are known; random features are as wide and as sparse as these, else
            4 d latents with d/8 active.
        controls: Some of "raw", "random", "shuffled", "noise".
        beside: "x" to explain what is not linear in the target's x; "all" for what is not linear in the activations of
            all sites together, so that only what the SAEs do nonlinearly can explain it ("raw" is no control then).
        folds: Number K of document folds.
        seed: Seed of random features and noise.
        device: Where the sums live; it must support float64.
        progress: Called with the number of tokens after every batch.
        fitted: Called with the number of folds done after every fit.

    Returns:
        The result.

    Raises:
        InputError: One site only, an unknown target or control, a bad batch, other tokens at another site, too few
            tokens or documents, sums that do not fit in memory.
    """
    place, kinds = _checked(source, target, controls, beside, folds)
    check_memory(make_plan(source, place, kinds, beside), folds)
    random = random_features(source, place, saes or {}, seed=seed) if "random" in kinds else {}
    regressors = Regressors(source, place, kinds, beside, seed, random)
    sums = _accumulate(regressors, n_folds=folds, device=device, progress=progress)
    return _read(sums, regressors, folds, fitted)


def _checked(
    source: SitesSource, target: str | None, controls: Sequence[Kind], beside: Beside, folds: int
) -> tuple[str, tuple[Kind, ...]]:
    """The target and the kinds of regressors, outputs first.

    Raises:
        InputError: Something cannot be.
    """
    sites = source.sites
    if len(sites) < 2:
        raise InputError(f"the source has the site {', '.join(sites)} only, expected the target and an earlier one")
    if target is not None and target not in sites:
        raise InputError(f"target is {target!r}, expected one of {', '.join(sites)}")
    for name in sites:
        if not source.names[name]:
            raise InputError(f"{name} has no SAE, expected at least one at every site")
    known = KINDS[1:]
    if any(kind not in known for kind in controls) or len(set(controls)) < len(controls):
        raise InputError(f"controls are {list(controls)}, expected some of {', '.join(known)}, each once")
    if beside not in get_args(Beside):
        raise InputError(f"beside is {beside!r}, expected one of {', '.join(get_args(Beside))}")
    if folds < 2:
        raise InputError(f"folds is {folds}, expected at least 2: an interval needs two folds that differ")
    kinds = [kind for kind in known if kind in controls and not (kind == "raw" and beside == "all")]
    return sites[-1] if target is None else target, ("sae", *kinds)


def _accumulate(regressors: Regressors, *, n_folds: int, device: str, progress: Progress | None) -> _Pass:
    """The pass.

    Raises:
        InputError: All documents fall into one fold.
    """
    plan = regressors.plan
    folds = [GramAccumulator(plan, torch.device(device)) for _ in range(n_folds)]
    documents: list[Keys] = [np.empty(0, dtype=np.uint64) for _ in folds]
    for groups, blocks in regressors:
        hashes = document_hash(groups)
        number = (hashes % np.uint64(n_folds)).astype(np.int64)
        for k in np.unique(number):
            mine = np.flatnonzero(number == k)
            folds[k].add(blocks, torch.from_numpy(mine))
            documents[k] = merge_keys(documents[k], np.unique(hashes[mine]))
        if progress:
            progress(len(groups))
    used = [fold.finish() for fold in folds if fold.n]
    # the documents alone: what counts them belongs to the moments of folds
    n_groups = FoldMoments(Layout(1, ()), (), tuple(documents)).n_groups
    if len(used) < 2:
        raise InputError(
            f"all {n_groups} document(s) fall into one fold, expected at least 2 folds with tokens: pass more documents"
        )
    return _Pass(used, n_groups, n_folds - len(used))


def _read(sums: _Pass, regressors: Regressors, folds: int, fitted: Callable[[int], None] | None) -> CrossSite:
    """Everything after the pass."""
    source, target = regressors.source, regressors.target
    traces = Traces.of(sums.folds, target)
    traces.check()
    fits = fit_sets(sums.folds, progress=fitted)
    earlier = earlier_saes(source, target)
    names = (*(one.name for one in earlier), *((ALL,) if len(earlier) > 1 else ()))
    found, warnings = {}, []
    for i, sae in enumerate(source.names[target]):
        kind = degenerate_kind(traces.var_recon(i), fits.sets["base"][i].variance, traces.var_x)
        if kind is not None:
            warnings.append(f"{sae} is {kind} on these tokens: it has no nonlinear error to explain.")
        reader = Reader(fits, i, degenerate=kind is not None)
        rows = [
            reader.explained(name, of, regressors.kinds[1:] if of == "sae" else ())
            for of in regressors.kinds
            for name in names
        ]
        found[sae] = ErrorExplained(sae, traces.fvu(i), reader.r2("x"), reader.r2("base"), tuple(rows))
    warnings += [
        f"{one.name} is dead on these tokens: its SAE's output is constant and explains nothing."
        for one in earlier
        if fits.sets[f"sae {one.name}"][0].rank == 0
    ]
    return CrossSite(
        target=target,
        earlier=tuple(one.name for one in earlier),
        kinds=regressors.kinds,
        beside=regressors.beside,
        saes=found,
        n_tokens=int(fits.n.sum()),
        n_groups=sums.n_groups,
        n_folds=len(fits.n),
        seed=regressors.seed,
        warnings=(*warnings, *_token_warnings(sums, fits, folds)),
    )


def _token_warnings(sums: _Pass, fits: Fits, folds: int) -> list[str]:
    """Sentences about the tokens."""
    found = []
    if sums.n_empty or sums.n_groups < FEW_GROUPS_PER_FOLD * folds:
        found.append(
            f"only {sums.n_groups} documents for {folds} folds ({sums.n_empty} of them empty): intervals rest on "
            f"documents, not tokens; pass at least {FEW_GROUPS_PER_FOLD * folds} documents, or fewer folds."
        )
    rank = max(fit.rank for fitted in fits.sets.values() for fit in fitted)
    per_direction = float(fits.n.sum()) / max(1, rank)
    if per_direction < LOW_TOKENS_PER_DIRECTION:
        found.append(
            f"only {per_direction:.1f} tokens per direction of the widest set of regressors ({rank}): below "
            f"{LOW_TOKENS_PER_DIRECTION} the correction for optimism is not calibrated; pass more tokens."
        )
    return found
