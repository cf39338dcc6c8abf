"""Leakage, attacked; its first order by enumeration and Monte Carlo; the world of the page; what a split cannot fix."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest

from darkmatter import InputError
from darkmatter.claims import AnyClaim
from darkmatter.claims.leakage import CLAIMS
from darkmatter.theory.leakage import (
    DocumentEffects,
    DocumentLaw,
    document_law,
    group_effect_error,
    offset_kappa,
)
from proofs.checks import check_claim, check_twin

__all__ = ["CLAIMS"]


def test_claim(claim: AnyClaim) -> None:
    check_claim(claim)


def test_twin(claim: AnyClaim, twin: str) -> None:
    check_twin(claim, twin)


@pytest.mark.parametrize("n_train", [1, 3, 4, 5])
def test_without_regressors_the_first_order_is_exact(n_train: int) -> None:
    kinds = np.array([[0.0, 1.0], [3.0, 7.0], [2.0, -4.0]])  # kinds of documents of two tokens
    law = document_law(kinds[:, :, None], np.zeros((3, 2, 1)))
    mean, s, c = kinds.mean(), [], []
    for drawn in product(range(3), repeat=3):  # every corpus of three documents, every split of its six tokens
        tokens = kinds[list(drawn)].ravel()
        for chosen in combinations(range(6), n_train):
            train, test = tokens[list(chosen)], np.delete(tokens, chosen)
            s.append(train.var())
            c.append(((test - train.mean()) ** 2).mean())
    theory = law.token_split(6, n_train)
    assert law.variance == pytest.approx(((kinds - mean) ** 2).mean())
    assert np.mean(s) == pytest.approx(theory.insample, rel=1e-12, abs=1e-12)
    assert np.mean(c) == pytest.approx(theory.heldout, rel=1e-12)
    # it would fail: with the c of whole documents in the place of a training token's own neighbours
    others = (n_train - 1) / 5
    wrong = theory.heldout + (law.optimism - law.own - others * law.shared) / n_train
    assert np.mean(c) != pytest.approx(wrong, rel=1e-3)


def draw(rng: np.random.Generator, law: DocumentEffects, documents: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """A design with a column of ones (documents, T, d + 1), and errors (documents, T)."""
    offset = rng.standard_normal((documents, 1, law.d)) * np.sqrt(law.offset_x)
    x = offset + rng.standard_normal((documents, tokens, law.d)) * np.sqrt(law.token_x)
    g = rng.standard_normal((documents, 1)) * np.sqrt(law.offset_e)
    e = g + rng.standard_normal((documents, tokens)) * np.sqrt(law.token_e)
    return np.concatenate([np.ones((documents, tokens, 1)), x], axis=2), e


def simulate(law: DocumentEffects, documents: int, tokens: int, share: float, draws: int) -> np.ndarray:
    """S and C of a split inside documents, S and C of a split between them; means and standard errors, (2, 4)."""
    rng, found = np.random.default_rng(3), []
    inside, between = round(tokens * share), round(documents * share)
    for _ in range(draws):
        x, e = draw(rng, law, documents, tokens)
        row = []
        for train, test in (
            ((slice(None), slice(None, inside)), (slice(None), slice(inside, None))),
            ((slice(None, between),), (slice(between, None),)),
        ):
            known, target = x[train].reshape(-1, law.d + 1), e[train].ravel()
            fit = np.linalg.solve(known.T @ known, known.T @ target)
            row += [((target - known @ fit) ** 2).mean(), ((e[test] - x[test] @ fit) ** 2).mean()]
        found.append(row)
    values = np.array(found)
    return np.array([values.mean(axis=0), values.std(axis=0) / np.sqrt(draws)])


@pytest.mark.parametrize("draws", [300, pytest.param(4000, marks=pytest.mark.slow)])
def test_the_first_order_by_monte_carlo(draws: int) -> None:
    law = DocumentEffects(d=3, offset_x=1.0, token_x=1.0, offset_e=1.0, token_e=1.0)
    documents, tokens, share = 200, 10, 0.5
    (s_in, c_in, s_out, c_out), error = simulate(law, documents, tokens, share, draws)
    kappa = offset_kappa(np.eye(3), 2 * np.eye(3), offset_e=1.0)
    assert kappa == pytest.approx(1 + 3 / 2)
    first = DocumentLaw(law.variance, law.variance * (law.d + 1), kappa, tokens)
    n_train = documents * tokens * share
    whole = first.document_split(n_train)
    # exactly half of each document is in training: m = 5 and m' = 4
    own = (first.own + 4 * kappa) / n_train
    theory = [2 - own, 2 + own - 2 * 5 * kappa / n_train, whole.insample, whole.heldout]
    second = 3 * (first.optimism / n_train) ** 2  # order 1/n'², with room for its constant
    assert (np.abs(np.array([s_in, c_in, s_out, c_out]) - theory) < 4 * error + second).all()


@pytest.mark.slow
def test_the_leak_is_seen_by_monte_carlo() -> None:
    law = DocumentEffects(d=3, offset_x=1.0, token_x=1.0, offset_e=1.0, token_e=1.0)
    (_, c_in, _, c_out), error = simulate(law, 200, 10, 0.5, 4000)
    no_leak = 2 + (8 + 4 * 2.5) / 1000
    assert no_leak - c_in > 4 * error[1]
    assert c_out - c_in > 4 * float(np.hypot(error[1], error[3]))


@pytest.mark.parametrize(
    ("d", "documents", "tokens", "draws"),
    [(40, 30, 60, 150), (20, 60, 20, 150), pytest.param(40, 30, 60, 3000, marks=pytest.mark.slow)],
)
def test_many_tokens_and_few_documents_by_monte_carlo(d: int, documents: int, tokens: int, draws: int) -> None:
    law = DocumentEffects(d=d, offset_x=0.3, token_x=1.0, offset_e=1.0, token_e=1.0)
    found, error = simulate(law, documents, tokens, 0.5, draws)
    inside = law.split(documents, tokens / 2, same_documents=True)
    between = law.split(documents // 2, tokens, same_documents=False)
    theory = np.array([inside.insample, inside.heldout, between.insample, between.heldout])
    # relative order d/n' of the scatter within documents, and 1/M² of the limit law
    allowed = 2 * d / (documents * tokens / 2) + 4 / documents**2
    assert (np.abs(found - theory) < 4 * error + allowed).all()
    # it would fail: the first order alone is further off where documents are fewer than directions
    if d > documents:
        kappa = offset_kappa(0.3 * np.eye(d), 1.3 * np.eye(d), offset_e=1.0)
        first = DocumentLaw(2.0, 2.0 * (d + 1), kappa, tokens).document_split(documents * tokens / 2)
        assert abs(found[3] - first.heldout) > 4 * error[3] + allowed


def test_the_world_of_the_page() -> None:
    law = DocumentEffects(d=400, offset_x=0.09, token_x=1.0, offset_e=1.0, token_e=1.0)
    inside = law.split(300, 121.5, same_documents=True)
    between = law.split(182, 200, same_documents=False)
    total = 0.218 + law.variance
    r2 = [1 - v / total for v in (inside.heldout, between.heldout, law.variance)]
    assert r2 == pytest.approx([0.136, 0.028, 0.098], abs=5e-4)
    assert (inside.root_bias, between.root_bias) == pytest.approx((-0.052, -0.009), abs=5e-4)
    for token_x, bias in ((0.1, -0.25), (1e-3, -0.87), (1e-6, -1.0)):  # few documents, and little but offsets
        bare = DocumentEffects(d=400, offset_x=0.09, token_x=token_x, offset_e=1.0, token_e=0.0)
        few = bare.split(182, 200, same_documents=False)
        assert few.root_bias == pytest.approx(bias, abs=5e-3)
        assert few.heldout > few.variance
    kappa = offset_kappa(0.09 * np.eye(400), 1.09 * np.eye(400), offset_e=1.0)
    first = DocumentLaw(law.variance, 802.0, kappa, 200)
    token, whole = first.token_split(60_000, 36_450), first.document_split(36_450)
    assert kappa == pytest.approx(34.0, abs=0.05)
    assert [1 - v.heldout / total for v in (token, whole)] == pytest.approx([0.139, 0.005], abs=5e-4)


def test_with_as_many_directions_as_documents_a_token_split_predicts_noise() -> None:
    documents, tokens = 5, 4
    x = np.repeat(np.eye(documents), tokens, axis=0)
    document, place = np.repeat(np.arange(documents), tokens), np.tile(np.arange(tokens), documents)
    assert group_effect_error(x, document, place) == pytest.approx(0.0, abs=1e-12)
    # an unseen unit vector is predicted by the mean of the other four
    assert group_effect_error(x, document, document) == pytest.approx(1 + 1 / 4)
    rng = np.random.default_rng(0)
    spread = group_effect_error(rng.standard_normal((20, 2)), document, document)
    assert spread.min() >= 1 + 1 / 4 - 1e-12


def test_errors_of_input() -> None:
    law = DocumentEffects(d=4, offset_x=1.0, token_x=1.0, offset_e=1.0, token_e=1.0)
    bad = DocumentEffects(d=4, offset_x=1.0, token_x=0.0, offset_e=1.0, token_e=1.0)
    calls: list[Callable[[], object]] = [
        lambda: document_law(np.zeros((3, 2)), np.zeros((3, 2, 1))),
        lambda: document_law(np.zeros((3, 1, 1)), np.zeros((3, 1, 1))),
        lambda: offset_kappa(np.eye(2), np.eye(3), offset_e=1.0),
        lambda: offset_kappa(np.eye(2), np.zeros((2, 2)), offset_e=1.0),
        lambda: offset_kappa(np.eye(2), np.eye(2), offset_e=-1.0),
        lambda: law.split(1, 10, same_documents=True),
        lambda: law.split(2, 2, same_documents=True),
        lambda: bad.split(5, 10, same_documents=False),
        lambda: DocumentLaw(1.0, 1.0, 0.0, 2).token_split(10, 10),
        lambda: group_effect_error(np.zeros((4, 1)), np.arange(4), np.zeros(4)),
        lambda: group_effect_error(np.zeros((4, 1)), np.arange(3), np.arange(4)),
    ]
    for call in calls:
        with pytest.raises(InputError, match="expected") as caught:
            call()
        assert "\n" not in str(caught.value)
