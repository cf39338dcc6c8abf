"""Signs that the conditions of T8 do not hold, each a test with a stated rate of false alarms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from darkmatter.analyses.replicates.gram import ResidualGram, Share, mean_of
from darkmatter.inference import Estimate

LEVEL = 0.01
"""False alarms of one condition in one report, whatever the number of pairs it is tested on (Bonferroni)."""

TOLERANCE = 0.1
"""Relative difference below which a condition counts as met: with enough tokens any two seeds differ significantly."""


LOW_CORRELATION = 0.25
"""Correlation of two residuals below which lower ends were seen to be too high (docs/analyses/replicates.md)."""


@dataclass(frozen=True, slots=True)
class Check:
    """One condition, tested on every SAE, pair or quadruple that it is about.

    Attributes:
        name: The condition.
        worst: The instance farthest from what the condition allows.
        estimate: What was tested there, with its interval at 1 − 1 % / instances.
        low: The condition allows values from here …
        high: … to here.
        n_tests: Instances.
        violated: Some whole interval lies outside.
        meaning: What is tested, and what a violation means.
    """

    name: str
    worst: tuple[str, ...]
    estimate: Estimate
    low: float
    high: float
    n_tests: int
    violated: bool
    meaning: str


@dataclass(frozen=True, slots=True)
class _Case:
    names: tuple[str, ...]
    share: Share


_ALLOWED = math.log1p(TOLERANCE)
_MEANINGS = {
    "equal error": (
        "log of the ratio of the FVU of two SAEs of one recipe, within 10 %: else they have not learned equally much, "
        "and their interferences differ"
    ),
    "equal nonlinear error": (
        "log of the ratio of Var r of two SAEs of one recipe, within 10 %: else interference or introduced error "
        "differ, and a mean over the pair says little about either"
    ),
    "instruments agree": (
        "difference of the two instruments of one recipe over the mean Var r, within 10 %: else one SAE has learned "
        "what the other has not, and both instruments are too high"
    ),
    "instrument within the upper end": (
        "instrument - Var r, at most 0: else its condition fails, since introduced error is at most Var r (T3)"
    ),
    "unshared within the upper end": (
        "unshared - Var r of either SAE of one recipe, at most 0: else it is no lower end for that SAE"
    ),
    "enough in common": (
        "correlation of the residuals of a pair that gives a lower end, at least 0.25: unshared is too high exactly if "
        "Cov(r_a, r_b) is below the variance of the interference (T8a), so a low one leaves no room for interferences "
        "that differ; in the sandbox lower ends were then up to 10 % above the truth"
    ),
    "positive covariance": (
        "Cov(r_a, r_b), at least 0: a negative one refutes equal interference with introduced errors that are not "
        "opposed (T8e)"
    ),
    "corrected above zero": (
        "corrected of a wider and a narrower SAE before it is cut, at least 0: below, the narrower shrinks more and "
        "the lower end is empty"
    ),
    "equal covariances": (
        "Cov(r_a, r_b) of two replicates over the mean of all pairs of the recipe, minus 1, within 10 %: with equal "
        "interference, and introduced errors correlated all alike, these covariances are equal (T8e)"
    ),
    "one factor": (
        "log of Cov_ab Cov_cd / (Cov_ac Cov_bd), within 10 %: tetrads vanish if interferences are proportional and "
        "introduced errors private, at any width"
    ),
}


def run_checks(
    gram: ResidualGram, real: Sequence[int], groups: Sequence[Sequence[int]], wider: Sequence[tuple[int, int]]
) -> tuple[Check, ...]:
    """Test every condition.

    Args:
        gram: The covariances.
        real: SAEs that are neither controls nor degenerate.
        groups: SAEs of one recipe, at least two each.
        wider: Pairs (wider, narrower).

    Returns:
        One check for every condition that is about some SAE here.
    """
    same = [pair for group in groups for pair in combinations(group, 2)]
    found = [
        _check("equal error", _logs(gram, same, "error"), -_ALLOWED, _ALLOWED),
        _check("equal nonlinear error", _logs(gram, same, "nonlinear"), -_ALLOWED, _ALLOWED),
        _check("instruments agree", _instrument_gaps(gram, same), -TOLERANCE, TOLERANCE),
        _check("instrument within the upper end", _instruments(gram, same, wider), -math.inf, 0.0),
        _check("unshared within the upper end", _unshared(gram, same), -math.inf, 0.0),
        _check("enough in common", _correlations(gram, [*same, *wider]), LOW_CORRELATION, math.inf),
        _check("positive covariance", _covariances(gram, real), 0.0, math.inf),
        _check("corrected above zero", _corrected(gram, wider), 0.0, math.inf),
        _check("equal covariances", _spread(gram, groups), -TOLERANCE, TOLERANCE),
        _check("one factor", _tetrads(gram, real), -_ALLOWED, _ALLOWED),
    ]
    return tuple(check for check in found if check is not None)


def _check(name: str, cases: Iterator[_Case], low: float, high: float) -> Check | None:
    tested = list(cases)
    if not tested:
        return None
    level = 1 - LEVEL / len(tested)
    estimates = [case.share.estimate(level=level) for case in tested]
    # how far the whole interval lies outside; the farthest one is shown
    outside = [max(low - e.high, e.low - high) for e in estimates]
    worst = max(range(len(tested)), key=outside.__getitem__)
    return Check(
        name=name,
        worst=tested[worst].names,
        estimate=estimates[worst],
        low=low,
        high=high,
        n_tests=len(tested),
        violated=outside[worst] > 0,
        meaning=_MEANINGS[name],
    )


def _named(gram: ResidualGram, *members: int) -> tuple[str, ...]:
    return tuple(gram.names[i] for i in members)


def _logs(gram: ResidualGram, pairs: Sequence[tuple[int, int]], what: str) -> Iterator[_Case]:
    for i, j in pairs:
        first, second = (gram.error(k) if what == "error" else gram.covariance(k, k) for k in (i, j))
        if first.value > 0 and second.value > 0:
            yield _Case(_named(gram, i, j), first.log().plus(second.log(), -1.0))


def _instrument_gaps(gram: ResidualGram, pairs: Sequence[tuple[int, int]]) -> Iterator[_Case]:
    for i, j in pairs:
        first, second = gram.instrument(i, j), gram.instrument(j, i)
        scale = mean_of([gram.covariance(i, i), gram.covariance(j, j)])
        if first is not None and second is not None and scale.value > 0:
            yield _Case(_named(gram, i, j), first.plus(second, -1.0).over(scale))


def _instruments(
    gram: ResidualGram, same: Sequence[tuple[int, int]], wider: Sequence[tuple[int, int]]
) -> Iterator[_Case]:
    for i, j in [*same, *((j, i) for i, j in same), *wider]:
        found = gram.instrument(i, j)
        if found is not None:
            yield _Case(_named(gram, i, j), found.plus(gram.covariance(i, i), -1.0))


def _unshared(gram: ResidualGram, same: Sequence[tuple[int, int]]) -> Iterator[_Case]:
    for i, j in same:
        for k in (i, j):
            yield _Case(_named(gram, i, j), gram.unshared(i, j).plus(gram.covariance(k, k), -1.0))


def _covariances(gram: ResidualGram, real: Sequence[int]) -> Iterator[_Case]:
    for i, j in combinations(real, 2):
        yield _Case(_named(gram, i, j), gram.covariance(i, j))


def _correlations(gram: ResidualGram, same: Sequence[tuple[int, int]]) -> Iterator[_Case]:
    for i, j in same:
        scale = mean_of([gram.covariance(i, i), gram.covariance(j, j)])
        if scale.value > 0:
            yield _Case(_named(gram, i, j), gram.covariance(i, j).over(scale))


def _corrected(gram: ResidualGram, wider: Sequence[tuple[int, int]]) -> Iterator[_Case]:
    for i, j in wider:
        yield _Case(_named(gram, i, j), gram.corrected(i, j))


def _spread(gram: ResidualGram, groups: Sequence[Sequence[int]]) -> Iterator[_Case]:
    for group in groups:
        pairs = list(combinations(group, 2))
        mean = mean_of([gram.covariance(i, j) for i, j in pairs])
        if len(pairs) > 1 and mean.value > 0:
            for i, j in pairs:
                ratio = gram.covariance(i, j).over(mean)
                yield _Case(_named(gram, i, j), Share(ratio.value - 1, ratio.influence, ratio.n))


def _tetrads(gram: ResidualGram, real: Sequence[int]) -> Iterator[_Case]:
    for a, b, c, d in combinations(real, 4):
        products = [
            gram.covariance(i, j).log().plus(gram.covariance(k, h).log())
            for i, j, k, h in ((a, b, c, d), (a, c, b, d), (a, d, b, c))
            if gram.covariance(i, j).value > 0 and gram.covariance(k, h).value > 0
        ]
        for first, second in combinations(products, 2):
            yield _Case(_named(gram, a, b, c, d), first.plus(second, -1.0))
