"""Greedy non-negative sparse coding, many tokens at a time: orthogonal matching pursuit and gradient pursuit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from darkmatter.analyses.pursuit.least_squares import Chosen
from darkmatter.analyses.pursuit.shortlist import Candidates, renewals

_RUNS = 32
"""Runs of neighbouring candidates among which the largest is looked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Greedy:
    """Codes of n tokens after each of Q numbers of steps.

    Attributes:
        latents: Chosen latents in their order, (n, T); one that was not needed may be named again.
        amplitudes: Of unit rows, (Q, n, T), ≥ 0.
    """

    latents: Tensor
    amplitudes: Tensor


def orthogonal_matching_pursuit(candidates: Candidates, stops: Tensor) -> Greedy:
    """Choose the row most correlated with what is left, re-fit all amplitudes (≥ 0) by least squares, repeat.

    Bruckstein, Elad and Zibulevsky's (2008) non-negative form of Pati, Rezaiifar and Krishnaprasad (1993): after step t
    the amplitudes minimise |y − Σ_{j ≤ t} c_j w_j|² over c ≥ 0. Rows whose amplitude is zero stay chosen, so L0 ≤ t.

    Args:
        candidates: What n tokens may choose from; tokens in falling order of the largest of their `stops`.
        stops: Numbers of steps after which codes are wanted, (n, Q).

    Returns:
        The codes.
    """
    run = _Run(candidates, stops)
    chosen = Chosen(len(stops), run.size, candidates.every)

    def step(t: int, m: int, rest: Tensor, best: Tensor, row: Tensor) -> Tensor:
        positions = run.positions[:m, : t + 1]
        target = candidates.correlations[:m].gather(1, positions[:, t:])[:, 0]
        chosen.add(t, row.gather(1, positions), target, best, candidates.floor[:m])
        weights, rows = chosen.amplitudes[:m, None, : t + 1], run.rows[:m, : t + 1]
        return torch.baddbmm(candidates.correlations[:m, None], weights, rows, alpha=-1)[:, 0]

    return run.go(step, chosen.amplitudes)


def gradient_pursuit(candidates: Candidates, stops: Tensor) -> Greedy:
    """Choose the row most correlated with what is left, then one step along the gradient of all chosen amplitudes.

    Blumensath and Davies (2008), with c ≥ 0: a chosen amplitude at zero moves only up; the step has the length of least
    error, amplitudes that it takes below zero are cut there, and where any was cut the way to that point is shortened
    to the length of least error. So the error never grows.

    Args:
        candidates: What n tokens may choose from; tokens in falling order of the largest of their `stops`.
        stops: Numbers of steps after which codes are wanted, (n, Q).

    Returns:
        The codes.
    """
    run = _Run(candidates, stops)
    amplitudes = candidates.every.new_zeros(len(stops), run.size)
    usable = torch.zeros_like(amplitudes, dtype=torch.bool)

    def move(direction: Tensor, rest: Tensor, tokens: Tensor | slice, t: int, most: float) -> tuple[Tensor, Tensor]:
        image = torch.bmm(direction[:, None], run.rows[tokens, : t + 1])[:, 0]
        positions = run.positions[tokens, : t + 1]
        down = (direction * rest.gather(1, positions)).sum(dim=1, keepdim=True)
        curve = (direction * image.gather(1, positions)).sum(dim=1, keepdim=True)
        length = torch.where((curve > 0) & (down > 0), down / curve, 0.0).clamp_max(most)
        return length, image

    def step(t: int, m: int, rest: Tensor, best: Tensor, row: Tensor) -> Tensor:
        usable[:m, t] = best > candidates.floor[:m]
        # where no row is left that would help, none is chosen: it may help after a later step
        run.positions[:m, t] = torch.where(usable[:m, t], run.positions[:m, t], run.positions[:m, 0])
        now = amplitudes[:m, : t + 1]
        gradient = rest.gather(1, run.positions[:m, : t + 1])
        gradient = torch.where(usable[:m, : t + 1] & ((now > 0) | (gradient > 0)), gradient, 0.0)
        length, image = move(gradient, rest, slice(m), t, torch.inf)
        goal = now + length * gradient
        new = rest - length * image
        cut = (goal < 0).any(dim=1).nonzero()[:, 0]
        if len(cut):
            way = goal[cut].clamp_min(0) - now[cut]
            length, image = move(way, rest[cut], cut, t, 1.0)
            goal[cut] = (now[cut] + length * way).clamp_min(0)
            new[cut] = rest[cut] - length * image
        amplitudes[:m, : t + 1] = goal
        return new

    return run.go(step, amplitudes)


class _Run:
    """What both share: lists of candidates, the choice of the next row, and codes kept at every stop."""

    def __init__(self, candidates: Candidates, stops: Tensor) -> None:
        n, self.stops = len(stops), stops
        most = stops.amax(dim=1)
        self.size = int(most.amax()) if n else 0
        self.candidates = candidates
        self.rows = candidates.every.new_empty(n, self.size, candidates.every.shape[1] if self.whole else 0)
        self.positions = torch.zeros(n, self.size, dtype=torch.int64, device=stops.device)
        self.latents = torch.zeros_like(self.positions)
        steps = torch.arange(self.size, device=stops.device)
        self.alive = (most[:, None] > steps).sum(dim=0).tolist()
        self.ends = (stops[:, :, None] == steps + 1).any(dim=0).tolist()

    @property
    def whole(self) -> bool:
        """Whether all rows are candidates."""
        return self.candidates.shortlist is None

    def go(self, step: Callable[[int, int, Tensor, Tensor, Tensor], Tensor], amplitudes: Tensor) -> Greedy:
        kept = amplitudes.new_zeros(self.stops.shape[1], *amplitudes.shape)
        shortlist = self.candidates.shortlist
        lists = renewals(shortlist) if shortlist is not None else iter(())
        renewal = next(lists, None)
        rest = self.candidates.every
        for t, m in enumerate(self.alive):
            rest = rest[:m]
            if renewal is not None and renewal[0] == t:
                rest = self._renew(t, m, renewal[1], amplitudes)
                renewal = next(lists, None)
            best, position = _largest(rest.scatter(1, self.positions[:m, :t], -torch.inf))
            row = self.candidates.row(position)
            self.rows[:m, t], self.positions[:m, t] = row, position
            rest = step(t, m, rest, best, row)
            self.latents[:m, t] = self.candidates.latent(self.positions[:m, t])
            for q, ends in enumerate(self.ends):
                if ends[t]:
                    tokens = (self.stops[:m, q] == t + 1).nonzero()[:, 0]
                    kept[q, tokens] = amplitudes[tokens]
        return Greedy(self.latents, kept)

    def _renew(self, t: int, m: int, size: int, amplitudes: Tensor) -> Tensor:
        """Make a list whose first columns are the chosen, and return what is left of the target along it."""
        rows, rest = self.candidates.renew(size, self.latents[:m, :t], amplitudes[:m, :t])
        self.rows = rows.new_empty(m, self.size, rest.shape[1])
        self.rows[:, :t] = rows
        self.positions[:m, :t] = torch.arange(t, device=rows.device)
        return rest


def _largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Largest entry of every row and where it is: first the run of neighbours that holds it, many times as fast."""
    n, width = scores.shape
    size = width // _RUNS
    if size < _RUNS:
        found = scores.max(dim=1)
        return found.values, found.indices
    runs = rearrange(scores[:, : _RUNS * size], "n (run size) -> n run size", run=_RUNS)
    which = runs.amax(dim=2).argmax(dim=1)
    within = runs[torch.arange(n, device=scores.device), which].max(dim=1)
    best, position = within.values, which * size + within.indices
    if width > _RUNS * size:
        rest = scores[:, _RUNS * size :].max(dim=1)
        position = torch.where(rest.values > best, rest.indices + _RUNS * size, position)
        best = torch.maximum(best, rest.values)
    return best, position
