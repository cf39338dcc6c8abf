"""Inference of one SAE's codes without its encoder: reconstructions of a batch by every method, at matched L0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.analyses.pursuit.dictionary import Dictionary, decode
from darkmatter.analyses.pursuit.greedy import gradient_pursuit, orthogonal_matching_pursuit
from darkmatter.analyses.pursuit.least_squares import Chosen
from darkmatter.analyses.pursuit.shortlist import ROUNDS, all_candidates, list_candidates
from darkmatter.errors import InputError
from darkmatter.sae import SAE, Codes
from darkmatter.sae.input_norm import normalise

METHODS = {"gp": gradient_pursuit, "omp": orthogonal_matching_pursuit}
ENCODER, REFIT = "encoder", "refit"
_CHUNK_BYTES = 2**26
_CHUNK_ROWS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Inferred:
    """Reconstructions of n tokens, and how many latents each has above zero.

    Attributes:
        recons: By method, (n, d).
        l0: By method, that of the encoder included, (n,).
    """

    recons: dict[str, Tensor]
    l0: dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Inference:
    """Everything needed to code tokens by pursuit on one SAE's decoder.

    Attributes:
        sae: The SAE.
        dictionary: Its decoder.
        l0: Steps for every token; None for as many as the encoder activates latents on it.
        ks: Further numbers of steps, rising.
        shortlist: Candidates added per round and token, see `list_candidates`; None for all latents.
    """

    sae: SAE
    dictionary: Dictionary
    l0: int | None = None
    ks: tuple[int, ...] = ()
    shortlist: int | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of all codes but the encoder's own: refit, gp, omp, and gp@k, omp@k of every k."""
        return (REFIT, *METHODS, *(f"{method}@{k}" for k in self.ks for method in METHODS))

    def __call__(self, x: Tensor) -> Inferred:
        """Code tokens by every method.

        Args:
            x: Activations, (n, d), on the SAE's device.

        Returns:
            Reconstructions in units of x, and L0.
        """
        codes = self.sae.encode(x)
        support, start, mask = _padded(codes)
        counts = mask.sum(dim=1)
        steps = counts if self.l0 is None else torch.full_like(counts, self.l0)
        stops = torch.stack([steps, *(torch.full_like(steps, k) for k in self.ks)], dim=1)
        stops = stops.clamp_max(self.dictionary.n_latents)
        order = torch.argsort(stops.amax(dim=1), descending=True, stable=True)
        recons = {name: torch.empty_like(x, dtype=self.dictionary.rows.dtype) for name in self.methods}
        l0 = {name: torch.empty_like(counts) for name in self.methods}
        for some in self._chunks(order, stops, counts):
            done = self._code(x[some], support[some], start[some], mask[some], stops[some])
            for name in self.methods:
                recons[name][some], l0[name][some] = done.recons[name], done.l0[name]
        return Inferred(recons, {ENCODER: counts, **l0})

    def _chunks(self, order: Tensor, stops: Tensor, counts: Tensor) -> Iterator[Tensor]:
        """Cut tokens, in their order, so that the largest arrays of one cut stay small.

        Yields:
            Numbers of tokens.
        """
        first, s = 0, self.dictionary.n_latents
        most, active = stops.amax(dim=1)[order], counts[order]
        while first < len(order):
            size, width = int(most[first]), int(active[first : first + _CHUNK_ROWS].max())
            candidates = s if self.shortlist is None else width + ROUNDS * max(self.shortlist, -(-size // ROUNDS))
            numbers = 3 * s + candidates * (size + 4) + 3 * size**2 + 6 * width**2
            numbers += 0 if self.shortlist is None else 2 * candidates**2
            rows = _CHUNK_BYTES // (self.dictionary.rows.element_size() * numbers)
            last = first + min(_CHUNK_ROWS, max(1, rows))
            yield order[first:last]
            first = last

    def _code(self, x: Tensor, support: Tensor, start: Tensor, mask: Tensor, stops: Tensor) -> Inferred:
        sae, dictionary = self.sae, self.dictionary
        y = x.to(dictionary.rows.dtype)
        scale: Tensor | float = 1.0
        shift: Tensor | float = 0.0
        if sae.input_norm is not None:
            y, scale, shift = normalise(y, sae.input_norm)
        bias = sae.b_dec.to(y)
        width = max(1, int(mask.sum(dim=1).max()))
        support, mask = support[:, :width], mask[:, :width]
        start = start[:, :width].to(y) * dictionary.norms[support]
        if self.shortlist is None:
            candidates = all_candidates(dictionary, y - bias, support)
        else:
            steps = stops.amax(dim=1)
            candidates = list_candidates(dictionary, y - bias, support, mask, steps, self.shortlist)
        usable = mask & (dictionary.norms[support] > 0)
        refit = Chosen.of_support(
            candidates.support_inner, candidates.support_correlations, usable, start, candidates.floor
        )
        found = {REFIT: (support, refit.amplitudes)}
        for name, method in METHODS.items():
            greedy = method(candidates, stops)
            latents = candidates.latent(greedy.positions)
            for suffix, amplitudes in zip(("", *(f"@{k}" for k in self.ks)), greedy.amplitudes, strict=True):
                found[name + suffix] = (latents, amplitudes)
        return Inferred(
            {name: (decode(dictionary, *code) + bias) * scale + shift for name, code in found.items()},
            {name: (amplitudes > 0).sum(dim=1) for name, (_, amplitudes) in found.items()},
        )


def _padded(codes: Codes) -> tuple[Tensor, Tensor, Tensor]:
    """Latents above zero of every token as rows of equal length: latents, values and which are no padding, (n, k)."""
    tokens = torch.arange(codes.n_tokens, device=codes.latents.device).repeat_interleave(codes.offsets.diff())
    active = codes.values > 0
    tokens, latents, values = tokens[active], codes.latents[active], codes.values[active]
    counts = torch.bincount(tokens, minlength=codes.n_tokens)
    firsts = counts.cumsum(0) - counts
    place = torch.arange(len(tokens), device=tokens.device) - firsts[tokens]
    width = max(1, int(counts.max())) if len(counts) else 1  # one column of padding where nothing is active
    padded = latents.new_zeros(codes.n_tokens, width)
    padded[tokens, place] = latents
    amplitudes = values.new_zeros(codes.n_tokens, width)
    amplitudes[tokens, place] = values
    return padded, amplitudes, torch.arange(width, device=tokens.device) < counts[:, None]


def check_steps(l0: int | None, ks: Sequence[int], shortlist: int | None) -> tuple[int, ...]:
    """Check numbers of steps and candidates.

    Args:
        l0: Steps for every token.
        ks: Further numbers of steps.
        shortlist: Candidates per token.

    Returns:
        The further numbers, rising.

    Raises:
        InputError: One of them is below 1, or a number of steps is given twice.
    """
    if l0 is not None and l0 < 1:
        raise InputError(f"l0 is {l0}, expected at least 1 latent per token")
    if any(k < 1 for k in ks) or len(set(ks)) < len(ks):
        raise InputError(f"ks is {list(ks)}, expected different numbers of latents, each at least 1")
    if shortlist is not None and shortlist < 1:
        raise InputError(f"shortlist is {shortlist}, expected at least 1 candidate")
    return tuple(sorted(ks))
