"""Trees and exclusive groups: rates, what is refused, and the algebra against explicit matrices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkmatter.errors import InputError
from darkmatter.sandbox.forest import Forest, build_forest, tree_parents


def forest(*, exclusive: bool = False, exclusion: int = 1, m: int = 30, l0: float = 2.0) -> Forest:
    rates = 1.0 / np.arange(1, m + 1)
    parent = tree_parents(m, roots=2, branching=3, depth=2)
    return build_forest(rates * l0 / rates.sum(), parent, roots=2, exclusive_siblings=exclusive, exclusion=exclusion)


def test_trees_fill_the_features_level_by_level() -> None:
    parent = tree_parents(12, roots=2, branching=2, depth=1)
    assert parent.tolist() == [-1, -1, 0, 0, 1, 1, -1, -1, -1, -1, -1, -1]
    assert tree_parents(7, roots=1, branching=2, depth=2).tolist() == [-1, 0, 0, 1, 1, 2, 2]
    assert (tree_parents(5, roots=0, branching=4, depth=3) == -1).all()


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("exclusion", [1, 2, 5])
def test_every_event_happens_as_often_as_asked(exclusive: bool, exclusion: int) -> None:
    f = forest(exclusive=exclusive, exclusion=exclusion, m=40)
    below = np.flatnonzero(f.parent >= 0)
    assert np.allclose(f.rate[below], f.rate[f.parent[below]] * f.share[below], rtol=1e-12)
    asked = 1.0 / np.arange(1, 41)
    assert np.allclose(f.rate[:40], asked * 2.0 / asked.sum(), rtol=1e-12)
    groups = np.arange(40, f.n_events)
    assert len(groups) == (0 if exclusion == 1 else (40 - 26) // exclusion)
    for group in groups:
        members = np.flatnonzero(f.parent == group)
        assert len(members) == exclusion and np.isclose(f.rate[members].sum(), f.rate[group])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tree_parents(10, roots=2, branching=3, depth=2), "hold 26 features, expected at most n_features = 10"),
        (lambda: forest(exclusion=30, m=60, l0=40.0), "group of exclusive features would fire on"),
    ],
)
def test_impossible_forests_are_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        call()


def test_children_more_frequent_than_their_parent_are_refused() -> None:
    parent = tree_parents(4, roots=1, branching=3, depth=1)
    with pytest.raises(InputError, match=r"feature 2 fires on 0\.2 of the tokens and its parent 0 on 0\.1"):
        build_forest(np.array([0.1, 0.1, 0.2, 0.1]), parent, roots=1, exclusive_siblings=False, exclusion=1)
    with pytest.raises(InputError, match=r"exclusive children of feature 0 fire on 0\.24"):
        build_forest(np.array([0.2, 0.08, 0.08, 0.08]), parent, roots=1, exclusive_siblings=True, exclusion=1)


def _joint(f: Forest) -> tuple[np.ndarray, np.ndarray]:
    """All outcomes of the events and their probabilities, by enumerating every event's choice in a tiny forest."""
    outcomes, probabilities = [], []
    for outcome in itertools.product([0, 1], repeat=f.n_events):
        v = np.array(outcome)
        p = 1.0
        for event in range(f.n_events):
            above = f.parent[event]
            if above < 0:
                p *= f.rate[event] if v[event] else 1 - f.rate[event]
            elif not f.exclusive[above]:
                q = f.share[event] * v[above]
                p *= q if v[event] else 1 - q
        for above in np.flatnonzero(f.exclusive):
            children = np.flatnonzero(f.parent == above)
            if len(children):
                on = children[v[children] == 1]
                if not v[above]:
                    p *= 0.0 if len(on) else 1.0
                else:
                    p *= 0.0 if len(on) > 1 else (f.share[on[0]] if len(on) else 1 - f.share[children].sum())
        outcomes.append(v)
        probabilities.append(p)
    return np.array(outcomes, dtype=float), np.array(probabilities)


@pytest.mark.parametrize(("exclusive", "exclusion"), [(False, 1), (True, 1), (True, 2), (False, 3)])
def test_the_covariance_is_that_of_the_enumerated_forest(exclusive: bool, exclusion: int) -> None:
    m = 10
    rates = 0.4 / np.arange(1, m + 1) ** 1.2
    parent = tree_parents(m, roots=1, branching=2, depth=2)
    f = build_forest(rates, parent, roots=1, exclusive_siblings=exclusive, exclusion=exclusion)
    outcomes, p = _joint(f)
    assert np.isclose(p.sum(), 1.0, atol=1e-12)
    mean = p @ outcomes
    assert np.allclose(mean, f.rate, atol=1e-12)
    features = outcomes[:, :m]
    exact = (features * p[:, None]).T @ features - np.outer(mean[:m], mean[:m])
    gathered = f.gather(np.eye(m))
    below = f.innovation_rows(gathered)
    roots = gathered[f.roots] * np.sqrt(f.rate[f.roots] * (1 - f.rate[f.roots]))[:, None]
    assert np.allclose(below.T @ below + roots.T @ roots, exact, atol=1e-12)
    events = f.innovation_product(gathered)
    events[f.roots] = (f.rate[f.roots] * (1 - f.rate[f.roots]))[:, None] * gathered[f.roots]
    assert np.allclose(f.spread(events), exact, atol=1e-12)
    # the check sees what exclusion does: treating exclusive children as independent is another covariance
    if exclusive:
        wrong = Forest(n_features=m, parent=f.parent, share=f.share, rate=f.rate, exclusive=np.zeros(f.n_events, bool))
        below = wrong.innovation_rows(gathered)
        assert not np.allclose(below.T @ below + roots.T @ roots, exact, atol=1e-4)


@given(st.integers(0, 2**32), st.booleans(), st.integers(1, 4))
def test_spread_is_the_adjoint_of_gather(seed: int, exclusive: bool, exclusion: int) -> None:
    f = forest(exclusive=exclusive, exclusion=exclusion, m=34)
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((34, 3)), rng.standard_normal((f.n_events, 3))
    assert np.isclose((f.gather(a) * b).sum(), (a * f.spread(b)).sum(), rtol=1e-10, atol=1e-10)
