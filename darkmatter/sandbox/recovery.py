"""How well an SAE recovers the true features of a world: matching, detection, amplitudes, absorption."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from darkmatter.errors import InputError
from darkmatter.inference import UNDEFINED, Estimate, Link, interval
from darkmatter.sae.record import SAE
from darkmatter.sandbox.config import check_int, check_number, check_stream
from darkmatter.sandbox.matching import Matching, match_latents
from darkmatter.sandbox.recovery_result import KINDS, Features, Latents, Recovery
from darkmatter.sandbox.recovery_sums import RecoverySums, collect_recovery

if TYPE_CHECKING:
    from darkmatter.sae.train import TrainedSAE
    from darkmatter.sandbox.features import Flags, Floats, Integers
    from darkmatter.sandbox.world import World

__all__ = ["Recovery", "fvu_curve", "recover"]

RECOVERY_FOLDS = 20

MATCH_COSINE = 0.8
"""|cosine| from which a latent stands for a feature: 64 % of its decoder's norm², so of no other orthogonal feature."""

NEAR_COSINE = 0.5
"""Cosine above which a latent may absorb a feature: a latent for two to three features at once has 1/√2 to 1/√3."""


def recover(
    world: World,
    sae: SAE,
    *,
    n_tokens: int = 65_536,
    stream: str = "recovery",
    match_cosine: float = MATCH_COSINE,
    near_cosine: float = NEAR_COSINE,
    folds: int = RECOVERY_FOLDS,
    progress: Callable[[int], None] | None = None,
) -> Recovery:
    """Compare the latents of an SAE with the features of a world; every number is defined in `Recovery.definition`.

    Latents are matched to features by `match_latents`, exactly. Then the stream is read once. Only sums are kept,
    about 80 K (m + s) bytes for K folds, and the codes of one chunk of the world. The table of cosines is the largest
    object: 12 to 20 m s bytes while matching.

    Args:
        world: The world.
        sae: The SAE; it is evaluated in its own dtype, on its own device.
        n_tokens: Tokens to compare on.
        stream: Stream to draw them from; keep it apart from the one trained on.
        match_cosine: |cosine| in (0, 1] from which a latent stands for a feature.
        near_cosine: Cosine in [0, 1] above which another latent may absorb a feature.
        folds: Folds of documents, at least 2, for the intervals.
        progress: Called with the number of tokens after every chunk.

    Returns:
        The comparison.

    Raises:
        InputError: Not an `SAE` of the world's width, an impossible option, all documents in one fold, or a
            reconstruction that is not finite.
    """
    if not isinstance(sae, SAE):
        raise InputError(
            f"sae is a {type(sae).__name__}, expected a darkmatter.sae.SAE: only its latents can be matched"
        )
    if sae.d_model != world.d_model:
        raise InputError(f"the SAE has d_model = {sae.d_model}, expected the world's {world.d_model}")
    check_int(n_tokens, "n_tokens", 1)
    check_int(folds, "folds", 2)
    check_stream(stream)
    check_number(match_cosine, "match_cosine", 0.0, 1.0)
    check_number(near_cosine, "near_cosine", 0.0, 1.0)
    decoder = sae.W_dec.float().cpu().numpy()
    matching = match_latents(world.dictionary_matrix, decoder, near=near_cosine)
    sums = collect_recovery(world, sae, matching, n_tokens=n_tokens, folds=folds, stream=stream, progress=progress)
    scale = matching.cosine * np.linalg.norm(decoder.astype(np.float64), axis=1)[matching.latent]  # ⟨decoder row, y⟩
    rates = world.firing_rates
    matched = matching.latent >= 0
    strength = np.abs(np.nan_to_num(matching.cosine))
    recovered = matched & (strength >= match_cosine)
    kind = _kinds(sums.fires.sum(axis=0), matching, recovered, match_cosine)
    return Recovery(
        mcc=float(strength[matched].mean()),
        weighted_mcc=float(strength @ rates / rates.sum()),
        best_cosine=float(matching.best_cosine.mean()),
        recovered_share=float(recovered.mean()),
        **_detection(sums, matched),
        shrinkage=_shrinkage(sums, scale, recovered),
        **_latent_shares(sums, matching, recovered, match_cosine),
        l0=_mean(sums.fires.sum(axis=1), sums.n),
        density=_mean(sums.fires.mean(axis=1), sums.n),
        fvu=_fvu(sums),
        world_l0=float(rates.sum()),
        n_features=world.n_features,
        d_sae=sae.d_sae,
        n_tokens=n_tokens,
        n_groups=sums.n_groups,
        n_folds=len(sums.n),
        stream=stream,
        match_cosine=match_cosine,
        near_cosine=near_cosine,
        features=_features(sums, matching, scale, rates),
        latents=Latents(
            feature=matching.feature,
            best_cosine=matching.latent_cosine,
            rate=sums.fires.sum(axis=0) / sums.n.sum(),
            kind=kind,
        ),
    )


def fvu_curve(runs: Mapping[str, TrainedSAE]) -> dict[str, list[str] | list[int] | list[float]]:
    """Join the training histories of several SAEs into one tidy table.

    Args:
        runs: Trained SAEs by name.

    Returns:
        Columns "sae", "n_tokens" (seen so far) and "fvu" (of the tokens since the row before), one row per point.
    """
    rows = [(name, tokens, fvu) for name, run in runs.items() for tokens, fvu in run.history]
    return {
        "sae": [name for name, _, _ in rows],
        "n_tokens": [tokens for _, tokens, _ in rows],
        "fvu": [fvu for _, _, fvu in rows],
    }


def _features(sums: RecoverySums, matching: Matching, scale: Floats, rates: Floats) -> Features:
    matched, n = matching.latent >= 0, sums.n.sum()
    on, latent_on, both, absorbed = (
        value.sum(axis=0) for value in (sums.feature_on, sums.latent_on, sums.both_on, sums.absorbed)
    )
    aa, bb, ab = (value.sum(axis=0) for value in _scatter(sums))
    return Features(
        latent=matching.latent,
        cosine=matching.cosine,
        best_cosine=matching.best_cosine,
        rate=rates,
        measured_rate=on / n,
        latent_rate=np.where(matched, latent_on / n, np.nan),
        precision=_divide(both, latent_on),
        recall=_divide(both, np.where(matched, on, 0.0)),
        f1=_divide(2 * both, np.where(matched, on + latent_on, 0.0)),
        absorption=_divide(absorbed, np.where(matched, on, 0.0)),
        correlation=_divide(ab, np.sqrt(aa * bb)),
        gain=_divide(scale * ab, aa),
    )


def _scatter(sums: RecoverySums) -> tuple[Floats, Floats, Floats]:
    """Fold sums of (a − ā)², (b − b̄)² and (a − ā)(b − b̄) about the means of all tokens, (K, m) each."""
    n = sums.n[:, None]
    a, b = (value.sum(axis=0) / n.sum() for value in (sums.a, sums.b))
    return (
        sums.aa - 2 * a * sums.a + n * a**2,
        sums.bb - 2 * b * sums.b + n * b**2,
        sums.ab - a * sums.b - b * sums.a + n * a * b,
    )


def _detection(sums: RecoverySums, matched: Flags) -> dict[str, Any]:
    on, latent_on, both, absorbed = (
        value[:, matched] for value in (sums.feature_on, sums.latent_on, sums.both_on, sums.absorbed)
    )
    ratios = {"precision": (both, latent_on), "recall": (both, on), "f1": (2 * both, on + latent_on)}
    pooled = {name: _ratio(top.sum(axis=1), bottom.sum(axis=1), sums.n) for name, (top, bottom) in ratios.items()}
    macro = {f"macro_{name}": _mean_ratio(top, bottom, sums.n) for name, (top, bottom) in ratios.items()}
    return {
        name: _clipped(value)
        for name, value in {
            **pooled,
            **macro,
            "absorption": _ratio(absorbed.sum(axis=1), on.sum(axis=1), sums.n),
        }.items()
    }


def _shrinkage(sums: RecoverySums, scale: Floats, recovered: Flags) -> Estimate:
    aa, _, ab = _scatter(sums)
    slopes = _ratio((ab * scale)[:, recovered].sum(axis=1), aa[:, recovered].sum(axis=1), sums.n)
    return slopes.complement()


def _kinds(fires: Floats, matching: Matching, recovered: Flags, match_cosine: float) -> Integers:
    """Position in KINDS of every latent, (s,), given how often each fired."""
    stands = np.zeros(len(fires), dtype=bool)
    stands[matching.latent[recovered]] = True
    names = {
        "dead": fires == 0,
        "matched": stands,
        "duplicate": matching.latent_cosine >= match_cosine,
        "false": np.ones(len(fires), dtype=bool),
    }
    kinds: Integers = np.argmax([names[kind] for kind in KINDS], axis=0).astype(np.int64)  # the first that holds
    return kinds


def _latent_shares(sums: RecoverySums, matching: Matching, recovered: Flags, match_cosine: float) -> dict[str, Any]:
    """Shares of latents by kind, with jackknife influences ψ_k = (n − n_k)/n_k · (θ − θ without fold k)."""
    fires, n = sums.fires.sum(axis=0), sums.n

    def shares(counts: Floats) -> Floats:
        kinds = _kinds(counts, matching, recovered, match_cosine)
        return np.bincount(kinds, minlength=len(KINDS)) / len(kinds)

    whole = shares(fires)
    influence = ((n.sum() - n) / n)[:, None] * (whole - np.array([shares(fires - fold) for fold in sums.fires]))
    return {
        f"{kind}_share": _clipped(_interval(float(value), psi, n))
        for kind, value, psi in zip(KINDS, whole, influence.T, strict=True)
    }


def _fvu(sums: RecoverySums) -> Estimate:
    x, e = (
        square - 2 * linear @ mean + sums.n * (mean @ mean)
        for square, linear, mean in (
            (sums.xx, sums.x, sums.x.sum(axis=0) / sums.n.sum()),
            (sums.ee, sums.e, sums.e.sum(axis=0) / sums.n.sum()),
        )
    )
    return _ratio(e, x, sums.n, link="log")


def _ratio(top: Floats, bottom: Floats, n: Floats, *, link: Link = "identity") -> Estimate:
    """Ratio θ = Σ top / Σ bottom of fold sums (K,), with influences (top_k − θ bottom_k) / n_k · n / Σ bottom."""
    total = float(bottom.sum())
    if total <= 0:
        return UNDEFINED
    value = float(top.sum()) / total
    influence = (top - value * bottom) / n * (n.sum() / total)
    if link == "log":
        influence = influence / value if value > 0 else np.zeros_like(influence)
    return _interval(value, influence, n, link=link)


def _mean_ratio(top: Floats, bottom: Floats, n: Floats) -> Estimate:
    """Mean over columns of the ratio of (K, q) fold sums, columns without a denominator left out."""
    total = bottom.sum(axis=0)
    there = total > 0
    if not there.any():
        return UNDEFINED
    top, bottom, total = top[:, there], bottom[:, there], total[there]
    values = top.sum(axis=0) / total
    influence = ((top - values * bottom) / n[:, None] * (n.sum() / total)).mean(axis=1)
    return _interval(float(values.mean()), influence, n)


def _mean(sums: Floats, n: Floats) -> Estimate:
    """Mean per token of fold sums (K,)."""
    return _ratio(sums, n, n)


def _interval(value: float, influence: Floats, n: Floats, *, link: Link = "identity") -> Estimate:
    return interval(value, torch.from_numpy(np.ascontiguousarray(influence)), torch.from_numpy(n), link=link)


def _clipped(share: Estimate) -> Estimate:
    """Cut an interval to [0, 1], where the truth lies."""
    return Estimate(share.value, max(share.low, 0.0), min(share.high, 1.0)) if share.value == share.value else share


def _divide(top: Floats, bottom: Floats) -> Floats:
    """Divide elementwise, NaN where the denominator is not above zero."""
    return np.divide(top, bottom, out=np.full_like(bottom, np.nan, dtype=np.float64), where=bottom > 0)
