"""Several SAEs on the same tokens → the bracket of introduced error, one pass (T8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from darkmatter.analyses.controls import is_control
from darkmatter.analyses.replicates.conditions import run_checks
from darkmatter.analyses.replicates.gram import ResidualGram, across_saes, best_lower_end, mean_of
from darkmatter.analyses.replicates.recipes import CONDITIONS, Recipe, Recipes, check_recipes, recipe_of
from darkmatter.analyses.replicates.result import LowerEnd, Pair, RecipeSet, ReplicateBracket, SaeBracket
from darkmatter.batch import BatchSource, check_batch
from darkmatter.decomposition import DEFAULT_FOLDS, decompose_moments
from darkmatter.errors import InputError
from darkmatter.fold_means import FoldMeans
from darkmatter.folds import FoldMoments
from darkmatter.inference import UNDEFINED
from darkmatter.results import Decomposition
from darkmatter.sae import SAE
from darkmatter.solve import cross_fit
from darkmatter.stream import Progress, accumulate

_POINTS = 11


def replicate_bracket(
    source: BatchSource,
    *,
    saes: Mapping[str, SAE] | None = None,
    recipes: Mapping[str, str] | None = None,
    folds: int = DEFAULT_FOLDS,
    device: str = "cpu",
    progress: Progress | None = None,
) -> ReplicateBracket:
    """Bracket introduced error by comparing two or more SAEs on the same tokens, in one pass.

    [lower end, Var r]: the upper end holds always (T3); the lower end is what an SAE's residual does not share with
    replicates of its recipe, Var r_a − mean Cov(r_a, r_b), of which the mean over the recipe is ½ Var(r_a − r_b); or
    its instrument by a narrower SAE. Each holds under the condition that the result names.

    Args:
        source: Batches with the reconstructions of at least two SAEs; controls are shown apart and never compared.
        saes: Weights, where known: width, activation and L0 say which SAEs share a recipe.
        recipes: Labels by SAE name, which decide instead: equal labels are replicates.
        folds: Number K of document folds.
        device: Where the sums live; it must support float64.
        progress: Called with the number of tokens after every batch.

    Returns:
        Brackets of every SAE and of every recipe, every pair, and the tests of conditions.

    Raises:
        InputError: Fewer than two SAEs, a recipe of an unknown SAE, or whatever `decompose_many` refuses.
    """
    check_count(source.names)
    check_recipes(recipes or {}, source.names)
    read = read_recipes(source, saes or {})
    moments = accumulate(source, folds=folds, device=device, progress=progress)
    return bracket_moments(moments, read=read, recipes=recipes)


def check_count(names: Sequence[str]) -> None:
    """Refuse fewer than two SAEs.

    Args:
        names: The SAEs of a source, controls among them.

    Raises:
        InputError: There are fewer than two that are no control.
    """
    real = [name for name in names if not is_control(name)]
    if len(real) < 2:
        raise InputError(
            f"the source holds one SAE, {', '.join(real) or 'controls only'}; expected at least two on the same "
            "tokens: add another seed, width or L0 (or --seeds on a world)"
        )


def read_recipes(source: BatchSource, saes: Mapping[str, SAE]) -> dict[str, Recipe]:
    """Read the recipes of SAEs whose weights are known, from the weights and the first batch.

    Args:
        source: The source.
        saes: Weights by name.

    Returns:
        Recipes by name; controls have none.
    """
    known = {name: sae for name, sae in saes.items() if name in source.names and not is_control(name)}
    first = next(iter(source), None) if known else None
    if first is None:
        return {}
    x, _ = check_batch(first, d_model=source.d_model, names=source.names)
    return {name: recipe_of(sae, x) for name, sae in known.items()}


def bracket_moments(
    moments: FoldMoments,
    *,
    read: Mapping[str, Recipe] | None = None,
    recipes: Mapping[str, str] | None = None,
) -> ReplicateBracket:
    """The same from finished moments; see `replicate_bracket`.

    Args:
        moments: Moments of K folds of at least two SAEs.
        read: Recipes read from weights, see `read_recipes`.
        recipes: Labels by SAE name.

    Returns:
        The brackets.

    Raises:
        InputError: Fewer than two SAEs, a recipe of an unknown SAE, or whatever `decompose_moments` refuses.
    """
    names = moments.layout.names
    check_count(names)
    check_recipes(recipes or {}, names)
    decompositions = decompose_moments(moments)
    total = moments.total()
    gram = ResidualGram.of(names, cross_fit(moments, total), FoldMeans.of(moments, total))
    known = Recipes(read or {}, recipes or {})
    broken = {name for name, found in decompositions.items() if found.degenerate is not None}
    real = [i for i, name in enumerate(names) if not is_control(name) and name not in broken]
    groups = [[i for i in group if i in real] for group in known.groups(names)]
    groups = [group for group in groups if len(group) > 1]
    pairs = _pairs(decompositions, known, broken)
    number = {name: i for i, name in enumerate(names)}
    wider = [
        (number[p.wider], number[p.second if p.wider == p.first else p.first]) for p in pairs if p.wider is not None
    ]
    checks = run_checks(gram, real, groups, wider)
    saes = {name: _one(i, found, gram, known, groups, wider) for i, (name, found) in enumerate(decompositions.items())}
    warnings = [warning for found in decompositions.values() for warning in found.warnings]
    warnings += [
        f"{check.name} ({', '.join(check.worst)}): {check.estimate:.3g} where {check.low:.3g} to {check.high:.3g} is "
        f"allowed. {check.meaning}."
        for check in checks
        if check.violated
    ]
    if any(pair.kind == "unknown" for pair in pairs):
        warnings.append(
            "the recipes of some SAEs are not known, so no lower end is chosen for their pairs: give their weights, or "
            "say which share a recipe (--recipe NAME=LABEL)."
        )
    first = next(iter(decompositions.values()))
    return ReplicateBracket(
        saes=saes,
        sets=tuple(_set(gram, group, known) for group in groups),
        pairs=pairs,
        checks=checks,
        n_tokens=first.n_tokens,
        n_groups=first.n_groups,
        n_folds=first.n_folds,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _pairs(found: Mapping[str, Decomposition], known: Recipes, broken: set[str]) -> tuple[Pair, ...]:
    pairs = []
    for first, second in combinations(found, 2):
        kind, wider = known.kind(first, second)
        if is_control(first) or is_control(second):
            kind, wider = "control", None
        elif first in broken or second in broken:
            kind, wider = "degenerate", None
        there, back = found[first].replicates[second], found[second].replicates[first]
        pairs.append(
            Pair(
                first=first,
                second=second,
                kind=kind,
                wider=wider,
                unshared=there.unshared,
                shared=there.shared,
                correlation=there.correlation,
                corrected=there.corrected,
                instrument_first=there.instrument,
                instrument_second=back.instrument,
                read=CONDITIONS[kind],
            )
        )
    return tuple(pairs)


def _one(
    i: int,
    found: Decomposition,
    gram: ResidualGram,
    known: Recipes,
    groups: Sequence[Sequence[int]],
    wider: Sequence[tuple[int, int]],
) -> SaeBracket:
    group = next((members for members in groups if i in members), None)
    lower, source, others, best = UNDEFINED, "none", [], UNDEFINED
    narrower = [j for wide, j in wider if wide == i]
    if group is not None:
        others = [j for j in group if j != i]
        lower = gram.private(i, others).estimate()
        source, best = "unshared", best_lower_end(gram, i, group)
    elif narrower:
        # the nearest one in size, chosen by its recipe and not by its result
        others = [max(narrower, key=lambda j: (known.read[gram.names[j]].d_sae, known.read[gram.names[j]].l0))]
        lower = found.replicates[gram.names[others[0]]].instrument
        source = "instrument"
    return SaeBracket(
        recipe=known.label(found.name),
        control=is_control(found.name),
        fvu=found.fvu,
        upper_end=found.fvu_nonlinear,
        lower_end=lower,
        lower_from=_lower_from(source),
        with_saes=tuple(gram.names[j] for j in others),
        best=best,
        low=_cut(lower.low),
        high=found.fvu_nonlinear.high,
        one_sae=found.introduced.lower_end,
        sensitivity=found.introduced.sensitivity,
        max_shrinkage=found.introduced.max_shrinkage,
    )


def _lower_from(source: str) -> LowerEnd:
    return "unshared" if source == "unshared" else "instrument" if source == "instrument" else "none"


def _cut(low: float) -> float:
    return max(0.0, low) if low == low else 0.0


def _set(gram: ResidualGram, group: Sequence[int], known: Recipes) -> RecipeSet:
    unshared = gram.between(group).estimate(link="log")
    upper = mean_of([gram.covariance(i, i) for i in group])
    shared = mean_of([gram.covariance(i, j) for i, j in combinations(group, 2)])
    top = upper.estimate(link="log")
    least = max(0.0, shared.value / upper.value)
    return RecipeSet(
        recipe=known.label(gram.names[group[0]]) or "",
        saes=tuple(gram.names[i] for i in group),
        unshared=unshared,
        across_saes=across_saes(gram, group),
        shared=shared.estimate(),
        correlation=shared.over(upper).estimate(),
        upper_end=top,
        by_similarity=tuple(
            (float(kappa), upper.value - shared.value / float(kappa)) for kappa in np.linspace(1.0, least, _POINTS)
        )
        if 0 < least < 1
        else ((1.0, unshared.value),),
        low=_cut(unshared.low),
        high=top.high,
    )
