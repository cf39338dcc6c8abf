"""Leakage: a split by tokens flatters, a split by documents does not (proofs/14_leakage.md)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from darkmatter.batch import Batch
from darkmatter.claims.claim import AnyClaim, Claim, Margin, at_most, equals
from darkmatter.claims.expansion import Expansion, towards_outcomes
from darkmatter.claims.leakage_cases import (
    Corpus,
    Documents,
    Nested,
    Offsets,
    corpora,
    document_laws,
    exchangeable,
    nested_documents,
    offset_laws,
)
from darkmatter.claims.strategies import Floats
from darkmatter.folds import FoldAccumulator
from darkmatter.moments import Layout
from darkmatter.theory.leakage import document_law, group_effect_error, offset_kappa

_PAGE = "14_leakage"
_ROUNDING = 1e-12  # laws of at most 100 outcomes with leverages of at most 100: a few thousand roundings of 1e-16


@dataclass(frozen=True, slots=True)
class _Differences:
    """Mean second differences of S and C: along tokens, and along pairs of tokens of one document."""

    own: Floats
    pairs: Floats
    mixed: float
    rounding: float
    scale: float


def _differences(documents: Documents) -> _Differences:
    e, x = (a.reshape(-1, a.shape[2]) for a in documents.arrays())
    n, t = len(x), documents.tokens
    expansion = Expansion(e, np.hstack([np.ones((n, 1)), x]))
    single = towards_outcomes(n)
    whole = single.reshape(-1, t, n).mean(axis=1)

    def pair(of_documents: float, of_tokens: float) -> float:
        # Σ_{s,t} = T² at the document's mean direction; less the T terms s = t, over T (T − 1) pairs
        return (t * of_documents - of_tokens) / (t - 1)

    forms = (expansion.insample, expansion.heldout, expansion.mixed)
    tokens, means = (np.array([form(rows).mean() for form in forms]) for rows in (single, whole))
    pairs = [pair(a, b) for a, b in zip(means, tokens, strict=True)]
    law = document_law(*documents.arrays())
    return _Differences(tokens[:2], np.array(pairs[:2]), pairs[2], 4 * expansion.rounding, n * law.variance)


def _clustered(documents: Documents, *, wrong: str = "") -> Margin:
    found, law = _differences(documents), document_law(*documents.arrays())
    c = {"tokens": law.own, "all": law.own + law.tokens * law.shared}.get(wrong, law.optimism)
    whole = found.own + (documents.tokens - 1) * found.pairs
    # the scale grows with the number of terms that are added
    return equals(whole, [-c, c], scale=documents.tokens * found.scale, rounding=found.rounding)


def _leaks(documents: Documents, *, wrong: str = "") -> Margin:
    found, law = _differences(documents), document_law(*documents.arrays())
    corpus, folds = 40, 4
    n = corpus * law.tokens
    n_train = n * (1 - 1 / folds)
    m = (law.tokens - 1) * n_train / (n - 1)
    others = (law.tokens - 1) * (n_train - 1) / (n - 1)
    split = law.token_split(n, n_train)
    theory = np.array([split.insample, split.heldout])
    if wrong == "documents":  # the clustered c of whole documents, although a training token has fewer neighbours
        theory += np.array([-1, 1]) * (law.optimism - law.own - others * law.shared) / n_train
    elif wrong == "factor":
        theory[1] += m * law.shared / n_train
    elif wrong == "none":
        theory[1] += 2 * m * law.shared / n_train
    slope = found.own + others * found.pairs + np.array([0.0, m * found.mixed])
    return equals(
        slope, n_train * (theory - law.variance), scale=documents.tokens * found.scale, rounding=found.rounding
    )


def _offset_kappa(offsets: Offsets, *, wrong: str = "") -> Margin:
    law = document_law(*offsets.documents())
    total = offsets.cov_u + offsets.token**2 * np.eye(len(offsets.cov_u))
    kappa = offset_kappa(offsets.cov_u, total, offset_e=offsets.g**2)
    if wrong == "intercept":
        kappa -= offsets.g**2
    elif wrong == "token":
        kappa = offsets.g**2 * (1 + np.trace(offsets.cov_u) / offsets.token**2)
    return equals(law.shared, kappa, scale=len(total) * offsets.g**2, rounding=100 * _ROUNDING)


def _not_negative(case: tuple[Floats, Floats], *, replacement: bool = True) -> Margin:
    e, x = case
    if replacement:  # two tokens drawn independently from the document's law: every ordered pair
        v = range(e.shape[1])
        e, x = (np.concatenate([a[:, [s, t]] for s in v for t in v]) for a in (e, x))
    law = document_law(e, x)
    return at_most(0.0, law.shared, scale=1.0 + law.own, rounding=_ROUNDING)


def _honest(nested: Nested, *, split: str) -> Margin:
    # an error that is one independent draw per source (per document where a source has one), independent of x
    error = group_effect_error(nested.x, nested.level("source"), nested.level(split))
    return at_most(1.0, float(error.mean()), scale=1.0, rounding=_ROUNDING)


def _one_fold(corpus: Corpus, *, wrong: str = "") -> Margin:
    rng = np.random.default_rng(corpus.seed)
    owner = rng.permutation(np.repeat(np.arange(len(corpus.ids)), 5))
    ids = np.array(corpus.ids, dtype=np.int64)[owner]
    x = np.eye(len(corpus.ids))[owner]  # the mean of x over a fold tells which documents are in it
    layout = Layout(d_model=x.shape[1], names=("sae",))
    machines = [FoldAccumulator(layout, folds=corpus.folds) for _ in range(2)]
    for number, start in enumerate(range(0, len(x), corpus.batch)):
        rows = slice(start, start + corpus.batch)
        groups = {"token": np.arange(len(x))[rows], "batch": ids[rows] ^ number}.get(wrong, ids[rows])
        machines[number % 2].update(Batch(x[rows], {"sae": 0.5 * x[rows]}, groups))
    merged = machines[0].finish().merge(machines[1].finish())
    counts = np.array([fold.n * fold.mean_x.numpy() for fold in merged.folds if fold.n])
    return at_most(float((counts > 0.5).sum(axis=0).max()), 1.0, scale=1.0)


CLAIMS: tuple[AnyClaim, ...] = (
    Claim(
        theorem="leakage",
        name="clustered-optimism",
        page=_PAGE,
        statement="split by documents: S and C are sigma^2 -+ c/n' up to 1/n'^2, c = c1 + (T-1) kappa",
        assumptions="independent documents of T tokens; any law within a document",
        cases=document_laws,
        margin=_clustered,
        twins={
            "tokens taken as independent": partial(_clustered, wrong="tokens"),
            "T kappa instead of (T-1) kappa": partial(_clustered, wrong="all"),
        },
    ),
    Claim(
        theorem="leakage",
        name="token-split-leaks",
        page=_PAGE,
        statement="split by tokens: S = sigma^2 - (c1 + m' kappa)/n', C = sigma^2 + (c1 + m' kappa - 2 m kappa)/n'",
        assumptions="as above; n' of n tokens for training at random, m = (T-1) n'/(n-1), m' = (T-1)(n'-1)/(n-1)",
        cases=document_laws,
        margin=_leaks,
        twins={
            "c of whole documents": partial(_leaks, wrong="documents"),
            "m kappa instead of 2 m kappa": partial(_leaks, wrong="factor"),
            "no leak": partial(_leaks, wrong="none"),
        },
    ),
    Claim(
        theorem="leakage",
        name="kappa-of-offsets",
        page=_PAGE,
        statement="kappa = tau^2 (1 + tr Sigma_u Sigma^-1)",
        assumptions="x = u + z, e = g + noise; document offsets u, g independent of each other and of the tokens'",
        cases=offset_laws(),
        margin=_offset_kappa,
        twins={
            "no intercept": partial(_offset_kappa, wrong="intercept"),
            "covariance of z instead of x": partial(_offset_kappa, wrong="token"),
        },
    ),
    Claim(
        theorem="leakage",
        name="kappa-is-not-negative",
        page=_PAGE,
        statement="kappa >= 0: to first order a split by tokens never errs upwards of a split by documents",
        assumptions="given its document, a token is drawn independently of the document's other tokens",
        cases=exchangeable(),
        margin=_not_negative,
        twins={"each token of a document exactly once": partial(_not_negative, replacement=False)},
    ),
    Claim(
        theorem="leakage",
        name="no-document-on-both-sides",
        page=_PAGE,
        statement="all tokens of a document lie in one fold, in any order, batches and machines",
        assumptions="none; the product's folds, any 64-bit ids",
        cases=corpora,
        margin=_one_fold,
        every=3,
        twins={
            "fold by token": partial(_one_fold, wrong="token"),
            "fold by document and batch": partial(_one_fold, wrong="batch"),
        },
    ),
    Claim(
        theorem="leakage",
        name="a-token-split-is-as-good",
        page=_PAGE,
        statement="split by tokens, the mean held-out error is not below the residual variance",
        assumptions="error = one draw per document, independent of x; fold = place in the document",
        cases=nested_documents(shared=False),
        margin=partial(_honest, split="token"),
        false=True,
        known=Nested(np.zeros((4, 1)), sources=2, documents=1, tokens=2),
        twins={"split by documents": partial(_honest, split="source")},
    ),
    Claim(
        theorem="leakage",
        name="document-ids-are-enough",
        page=_PAGE,
        statement="split by documents, the mean held-out error is not below the residual variance",
        assumptions="error = one draw per source, independent of x; a source has several documents",
        cases=nested_documents(shared=True),
        margin=partial(_honest, split="document"),
        false=True,
        known=Nested(np.zeros((4, 1)), sources=2, documents=2, tokens=1),
        twins={"split by sources": partial(_honest, split="source")},
    ),
)
