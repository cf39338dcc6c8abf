"""Explanation and detection of latents, with intervals clustered by latent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from darkmatter.analyses.fold_table import ratio
from darkmatter.analyses.interp.cache import Ask
from darkmatter.analyses.interp.prompts import (
    detection_messages,
    explanation_messages,
    read_explanation,
    read_scores,
)
from darkmatter.errors import InputError
from darkmatter.inference import UNDEFINED, Estimate, interval

DEFINITION = (
    "The judge sees contexts of largest activation and explains the latent; it then sees other contexts, shuffled, "
    "some where the latent is active and some where it is not, and gives the probability that it is active in each. "
    "accuracy: share of contexts called right at 1/2 (1/2 itself counts as half right); balanced: mean of the share "
    "among active and among inactive contexts; auc: mean over latents of the probability that an active context gets "
    "the higher score, ties half. control: the same contexts judged by the explanation of another latent of the same "
    "SAE, drawn at random. gain: accuracy - control, paired by latent. Latents with a malformed answer are counted "
    "in `malformed` and left out of the scores. Intervals are clustered by latent; differences between SAEs pair "
    "latents of the same rank of density."
)


@dataclass(frozen=True, slots=True)
class LatentTask:
    """What the judge is shown of one latent.

    Attributes:
        latent: Its number.
        shown: Contexts with the active token marked, for the explanation.
        active: Other contexts in which it is active.
        inactive: Contexts in which it is not.
    """

    latent: int
    shown: tuple[str, ...]
    active: tuple[str, ...]
    inactive: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LatentScore:
    """What came of one latent; NaN where an answer was malformed.

    Attributes:
        latent: Its number.
        explanation: The judge's words; None where it gave none.
        n: Contexts judged.
        accuracy: Share called right.
        balanced: Mean of the shares among active and inactive contexts.
        auc: Probability that an active context gets the higher score.
        control: Accuracy with the explanation of another latent.
    """

    latent: int
    explanation: str | None
    n: int
    accuracy: float
    balanced: float
    auc: float
    control: float


@dataclass(frozen=True, slots=True)
class Interpretability:
    """Detection scores of one SAE's latents.

    Attributes:
        n_latents: Latents asked about.
        malformed: Share of latents with a malformed answer.
        accuracy: See `DEFINITION`.
        balanced: See `DEFINITION`.
        auc: See `DEFINITION`.
        control: See `DEFINITION`.
        gain: See `DEFINITION`.
        latents: One by one.
    """

    n_latents: int
    malformed: Estimate
    accuracy: Estimate
    balanced: Estimate
    auc: Estimate
    control: Estimate
    gain: Estimate
    latents: tuple[LatentScore, ...]


@dataclass(frozen=True, slots=True)
class Interpretation:
    """Detection scores of several SAEs.

    Attributes:
        model: The judge.
        saes: By SAE.
        differences: Difference of accuracy, "a - b", paired by rank of density.
        warnings: What stands in doubt.
        definition: How the numbers are defined.
    """

    model: str
    saes: Mapping[str, Interpretability]
    differences: Mapping[str, Estimate]
    warnings: tuple[str, ...]
    definition: str = DEFINITION


def interpret(
    tasks: Mapping[str, Sequence[LatentTask]],
    ask: Ask,
    *,
    model: str,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Interpretation:
    """Explain latents and score the explanations by detection: three questions for every latent.

    Args:
        tasks: By SAE, in order of density, so that the i-th of one SAE is compared with the i-th of another.
        ask: The judge, such as `Answers` around `Endpoint.complete`.
        model: Its name, for the report.
        seed: Seed of the order of contexts and of the control's partners.
        progress: Called with 1 after every latent.

    Returns:
        The scores.

    Raises:
        InputError: Fewer than two latents of an SAE, or one without active and inactive contexts.
    """
    saes, warnings = {}, []
    for number, (name, members) in enumerate(tasks.items()):
        if len(members) < 2:
            raise InputError(
                f"{name} has {len(members)} latents with enough contexts, expected at least 2: more tokens"
            )
        rng = np.random.default_rng([seed, number])
        found = _scores(members, ask, rng, progress)
        saes[name] = summarise(found)
        if saes[name].malformed.value > 0.1:
            warnings.append(f"{name}: {saes[name].malformed.value:.0%} of the latents had a malformed answer")
        if saes[name].accuracy.low == saes[name].accuracy.high:
            warnings.append(f"{name}: all latents score alike, so that the interval has no width: ask about more")
    names = list(saes)
    differences = {
        f"{a} - {b}": paired(saes[a].latents, saes[b].latents) for i, a in enumerate(names) for b in names[i + 1 :]
    }
    return Interpretation(model, saes, differences, tuple(warnings))


def _scores(
    members: Sequence[LatentTask], ask: Ask, rng: np.random.Generator, progress: Callable[[int], None]
) -> list[LatentScore]:
    """Ask about every latent, its partner in the control being another one.

    Raises:
        InputError: A latent without active or without inactive contexts.
    """
    explanations = [read_explanation(ask(explanation_messages(task.shown))) for task in members]
    turn = int(rng.integers(1, len(members)))
    shuffled = rng.permutation(len(members))
    partner = {int(shuffled[i]): int(shuffled[(i + turn) % len(members)]) for i in range(len(members))}
    found = []
    for i, task in enumerate(members):
        contexts = (*task.active, *task.inactive)
        if not task.active or not task.inactive:
            raise InputError(f"latent {task.latent} has no active or no inactive context, expected both")
        order = rng.permutation(len(contexts))
        truth = (np.arange(len(contexts)) < len(task.active))[order]
        texts = [contexts[j] for j in order]
        own, other = (_judged(ask, explanations[j], texts) for j in (i, partner[i]))
        found.append(
            LatentScore(
                latent=task.latent,
                explanation=explanations[i],
                n=len(contexts),
                **score(own, truth),
                control=score(other, truth)["accuracy"],
            )
        )
        progress(1)
    return found


def _judged(ask: Ask, explanation: str | None, texts: Sequence[str]) -> tuple[float, ...] | None:
    if explanation is None:
        return None
    return read_scores(ask(detection_messages(explanation, texts)), len(texts))


def score(scores: Sequence[float] | None, truth: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy and AUC of one latent; NaN where the answer was malformed.

    Args:
        scores: Probabilities, in the order of the contexts; None for a malformed answer.
        truth: Whether the latent is active in each, (n,), both values present.
    """
    if scores is None:
        return dict.fromkeys(("accuracy", "balanced", "auc"), math.nan)
    given = np.asarray(scores)
    right = np.where(given == 0.5, 0.5, (given > 0.5) == truth)
    n_active, ranks = int(truth.sum()), stats.rankdata(given)  # Mann and Whitney's statistic, ties half
    auc = (ranks[truth].sum() - n_active * (n_active + 1) / 2) / (n_active * (len(truth) - n_active))
    return {
        "accuracy": float(right.mean()),
        "balanced": float((right[truth].mean() + right[~truth].mean()) / 2),
        "auc": float(auc),
    }


def summarise(latents: Sequence[LatentScore]) -> Interpretability:
    """Means over latents, which are the clusters: a latent's contexts stand and fall together.

    Args:
        latents: At least two.

    Returns:
        The summary; undefined where fewer than two latents had answers.
    """

    def mean(values: list[float], n: list[int] | None = None) -> Estimate:
        known = [(v, 1 if n is None else n[i]) for i, v in enumerate(values) if v == v]
        if len(known) < 2:
            return UNDEFINED
        numbers, weight = (torch.tensor(part, dtype=torch.float64) for part in zip(*known, strict=True))
        return ratio(numbers * weight, weight, weight)

    sizes = [latent.n for latent in latents]
    malformed = [float(math.isnan(latent.accuracy)) for latent in latents]
    return Interpretability(
        n_latents=len(latents),
        malformed=_clipped(mean(malformed)),
        accuracy=_clipped(mean([latent.accuracy for latent in latents], sizes)),
        balanced=_clipped(mean([latent.balanced for latent in latents])),
        auc=_clipped(mean([latent.auc for latent in latents])),
        control=_clipped(mean([latent.control for latent in latents], sizes)),
        gain=mean([latent.accuracy - latent.control for latent in latents], sizes),
        latents=tuple(latents),
    )


def paired(first: Sequence[LatentScore], second: Sequence[LatentScore]) -> Estimate:
    """Mean difference of accuracy between the i-th latents of two SAEs.

    Args:
        first: Scores in order of density.
        second: The same of the other SAE.

    Returns:
        The difference; undefined where fewer than two pairs had answers.
    """
    gaps = [a.accuracy - b.accuracy for a, b in zip(first, second, strict=False)]
    known: Tensor = torch.tensor([gap for gap in gaps if gap == gap], dtype=torch.float64)
    if len(known) < 2:
        return UNDEFINED
    mean = known.mean()
    return interval(float(mean), known - mean, torch.ones_like(known))


def _clipped(share: Estimate) -> Estimate:
    """Cut to [0, 1], where the truth lies."""
    return Estimate(share.value, max(share.low, 0.0), min(share.high, 1.0)) if share.value == share.value else share
