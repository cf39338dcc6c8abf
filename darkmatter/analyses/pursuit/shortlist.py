"""The rows that a token may choose from: all, or a short list that is renewed by what a first code leaves over."""

from __future__ import annotations

import torch
from torch import Tensor

from darkmatter.analyses.pursuit.dictionary import Candidates, Dictionary, decode
from darkmatter.analyses.pursuit.greedy import gradient_pursuit
from darkmatter.sae.kernels import top_k

ROUNDS = 3
"""How often candidates are added."""


def all_candidates(dictionary: Dictionary, target: Tensor, support: Tensor) -> Candidates:
    """Let every token choose among all rows.

    Args:
        dictionary: The rows.
        target: What is to be coded, (n, d).
        support: Latents that the encoder activated, padded, (n, k).

    Returns:
        The candidates.
    """
    every = target @ dictionary.rows.T
    return Candidates(
        dictionary=dictionary,
        latents=None,
        inner=None,
        correlations=every,
        floor=_floor(target),
        support_inner=dictionary.inner(support),
        support_correlations=every.gather(1, support),
    )


def list_candidates(
    dictionary: Dictionary, target: Tensor, support: Tensor, mask: Tensor, steps: Tensor, shortlist: int
) -> Candidates:
    """List the encoder's latents, the rows most correlated with the token, then those with what a code leaves over.

    After each of all rounds but the last a gradient pursuit on the list so far says what is left. What a token may
    choose from depends on that token alone.

    Args:
        dictionary: The rows.
        target: What is to be coded, (n, d).
        support: Latents that the encoder activated, padded, (n, k).
        mask: Which of them are none of the padding, (n, k).
        steps: Most steps of every token, (n,).
        shortlist: Rows added per round; more where so few would not allow all steps.

    Returns:
        The candidates.
    """
    every = target @ dictionary.rows.T
    own, k = every.gather(1, support), support.shape[1]
    share = ((steps + ROUNDS - 1) // ROUNDS).clamp_min(shortlist).clamp_max(dictionary.n_latents)
    # the padding names latent 0, which stays a candidate where the encoder did not activate it
    latents, correlations = support, own.masked_fill(~mask, -torch.inf)
    floor = _floor(target)
    found: Candidates | None = None
    for _ in range(ROUNDS):
        left = every
        if found is not None:
            code = gradient_pursuit(found, steps[:, None])
            left = (target - decode(dictionary, found.latent(code.positions), code.amplitudes[0])) @ dictionary.rows.T
        taken = torch.where(correlations > -torch.inf, -torch.inf, torch.inf).to(every)
        best, more = _top(left.scatter_reduce(1, latents, taken, "amin"), share)
        # a row that is not to be chosen names a latent that may be listed elsewhere
        added = every.gather(1, more).masked_fill(best == -torch.inf, -torch.inf)
        latents, correlations = torch.cat([latents, more], dim=1), torch.cat([correlations, added], dim=1)
        inner = dictionary.inner(latents)
        found = Candidates(dictionary, latents, inner, correlations, floor, inner[:, :k, :k], own)
    assert found is not None
    return found


def _top(scores: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The largest entries of every row, `count` of them: as many columns as the largest count, -inf beyond a row's."""
    most = int(count.max())
    best, where = top_k(scores, most)
    if int(count.min()) < most:
        best, order = best.sort(dim=1, descending=True)
        best = best.masked_fill(torch.arange(most, device=best.device) >= count[:, None], -torch.inf)
        where = where.gather(1, order)
    return best, where


def _floor(target: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(target, dim=1)
    return norms * 30 * torch.finfo(target.dtype).eps
