"""Inference of one SAE's codes without its encoder: reconstructions of a batch by every method, at matched L0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from darkmatter.analyses.pursuit.dictionary import Dictionary, decode
from darkmatter.analyses.pursuit.greedy import gradient_pursuit, orthogonal_matching_pursuit
from darkmatter.analyses.pursuit.least_squares import Chosen
from darkmatter.analyses.pursuit.shortlist import Candidates, widest
from darkmatter.errors import InputError
from darkmatter.sae import SAE, Codes
from darkmatter.sae.input_norm import normalise

ENCODER, REFIT = "encoder", "refit"
PURSUITS = {"gp": gradient_pursuit, "omp": orthogonal_matching_pursuit}
METHODS = (REFIT, *PURSUITS)
DEFAULT_METHODS = ("gp",)
_CHUNK_BYTES = 2**26
_CHUNK_ROWS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Inferred:
    """Reconstructions of n tokens, and how many latents each has above zero.

    Attributes:
        recons: By method, that of the encoder included, (n, d).
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
        shortlist: Rows of a token's first list of candidates, see `renewals`; None for all latents.
        chosen: Which of `METHODS`, in their order.
    """

    sae: SAE
    dictionary: Dictionary
    l0: int | None = None
    ks: tuple[int, ...] = ()
    shortlist: int | None = None
    chosen: tuple[str, ...] = METHODS

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of all codes but the encoder's own: refit, gp, omp, and gp@k, omp@k of every k."""
        return (*self.chosen, *self.curve)

    @property
    def pursuits(self) -> tuple[str, ...]:
        """The chosen methods that take steps."""
        return tuple(name for name in self.chosen if name in PURSUITS)

    @property
    def curve(self) -> tuple[str, ...]:
        """Names of the codes after further numbers of steps."""
        return tuple(f"{method}@{k}" for k in self.ks for method in self.pursuits)

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
        return Inferred({ENCODER: self._encoded(x, codes), **recons}, {ENCODER: counts, **l0})

    def _encoded(self, x: Tensor, codes: Codes) -> Tensor:
        """What the SAE itself makes of x, from its codes."""
        if self.sae.input_norm is None:
            return self.sae.decode(codes)
        _, scale, shift = normalise(x.to(self.sae.dtype), self.sae.input_norm)
        return replace(self.sae, input_norm=None).decode(codes) * scale + shift

    def _chunks(self, order: Tensor, stops: Tensor, counts: Tensor) -> Iterator[Tensor]:
        """Cut tokens, in their order, so that the largest arrays of one cut stay small.

        Yields:
            Numbers of tokens.
        """
        first, s = 0, self.dictionary.n_latents
        most, active = stops.amax(dim=1)[order], counts[order]
        while first < len(order):
            size, width = int(most[first]), int(active[first : first + _CHUNK_ROWS].max())
            columns = s if self.shortlist is None else size + widest(self.shortlist, size)
            numbers = 4 * s + columns * (size + 4) + 3 * size**2 + 6 * width**2
            if self.shortlist is not None and self.dictionary.gram is None:
                numbers += columns**2
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
        candidates = Candidates.of(dictionary, y - bias, self.shortlist)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        if REFIT in self.chosen:
            usable = mask & (dictionary.norms[support] > 0)
            own, floor = candidates.every.gather(1, support), candidates.floor
            refit = Chosen.of_support(dictionary.inner(support), own, usable, start, floor)
            found[REFIT] = (support, refit.amplitudes)
        for name in self.pursuits:
            greedy = PURSUITS[name](candidates, stops)
            for suffix, amplitudes in zip(("", *(f"@{k}" for k in self.ks)), greedy.amplitudes, strict=True):
                found[name + suffix] = (greedy.latents, amplitudes)
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


def check_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """Check names of codes.

    Args:
        methods: The names.

    Returns:
        The names in the order of `METHODS`.

    Raises:
        InputError: None, or one that is unknown or given twice.
    """
    if not methods or len(set(methods)) < len(methods) or set(methods) - set(METHODS):
        raise InputError(f"methods is {','.join(methods)!r}, expected some of {', '.join(METHODS)}, each once")
    return tuple(name for name in METHODS if name in methods)
