"""Why an SAE fits badly: the same SAE at other sites, on rescaled activations, and without outliers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darkmatter.adapters.preflight.sums import error_of
from darkmatter.adapters.saes.hooks import same_place
from darkmatter.adapters.site_table import KINDS
from darkmatter.adapters.sites import Site, find_blocks, resolve_site
from darkmatter.errors import InputError
from darkmatter.sae.input_norm import normalise
from darkmatter.sae.record_checks import InputNorm

SITE_BETTER = 0.8
"""Another site explains a bad fit if FVU there is below this multiple of the measured one."""

SCALE_BETTER = 0.5
"""So does another preparation of x, below this one: where codes shrink, a larger x alone lowers FVU by a third."""

OFFSET_BETTER = 1.05
"""Where a constant error of at least `OFFSET` is measured, a site or scale that removes three quarters of it explains
it if FVU does not rise beyond this multiple. Where an SAE was trained b_dec removes constant errors; elsewhere one is
left, even where FVU hardly moves. On the tiny model of the tests these rules doubted none of 96 healthy SAEs on 4 kinds
of text each, mostly not that of the training, and found all 288 readings at another layer of the text of the training.
"""

OFFSET = 0.02
"""Least constant error, Σ over coordinates as a share of the variance of x, to be taken for a sign."""

_OFFSET_LEFT = 0.25

OUTLIER = 10.0
"""An activation whose norm exceeds this multiple of the median is an outlier, as in dictionary_learning's filter."""

_NEAR = 2  # layers to look at on either side
_TIE = 1.02  # of explanations that are as good, the first in the list is given

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A change under which an SAE fits.

    Attributes:
        fvu: FVU on the tokens of the diagnosis with the change.
        offset: Its constant part.
        where: The change, to stand behind "FVU would be 0.13".
        advice: What that means.
        far: Multiple of the measured FVU below which it counts.
        settles: Whether the vanishing of a constant error speaks for it; not where it vanishes by construction.
    """

    fvu: float
    offset: float
    where: str
    advice: str
    far: float = SCALE_BETTER
    settles: bool = True

    def sentence(self) -> str:
        """Say it."""
        constant = f" ({self.offset:.2g} of it constant)" if self.offset > OFFSET else ""
        return f"FVU would be {self.fvu:.2g}{constant} {self.where}: {self.advice}"

    def helps(self, fvu: float, offset: float) -> bool:
        """Whether it explains a measured FVU and its constant part."""
        if not self.fvu < 1:
            return False
        if fvu >= 1 or math.isnan(fvu):
            return not self.fvu >= SITE_BETTER * fvu
        constant = self.settles and offset > OFFSET and self.offset < _OFFSET_LEFT * offset
        return self.fvu < self.far * fvu or (constant and self.fvu < OFFSET_BETTER * fvu)


def sites_nearby(model: nn.Module, site: Site) -> tuple[Site, ...]:
    """List the sites that are taken for this one most easily: layers nearby, and other places in the block.

    Args:
        model: The model.
        site: The site; an explicit path has none nearby.

    Returns:
        Those that exist.
    """
    layers = [site.layer + step for distance in range(1, _NEAR + 1) for step in (-distance, distance)]
    named = [Site(site.kind, layer) for layer in layers] + [Site(kind, site.layer) for kind in KINDS]
    return _existing(model, named, [site]) if site.kind in KINDS else ()


def sites_far(model: nn.Module, site: Site) -> tuple[Site, ...]:
    """List the same place in all layers that are not near.

    Args:
        model: The model.
        site: The site; an explicit path has none.

    Returns:
        Those that exist, the nearest first.
    """
    if site.kind not in KINDS:
        return ()
    layers = sorted(range(len(find_blocks(model))), key=lambda layer: abs(layer - site.layer))
    return _existing(model, [Site(site.kind, layer) for layer in layers], [site, *sites_nearby(model, site)])


def _existing(model: nn.Module, candidates: Sequence[Site], known: Sequence[Site]) -> tuple[Site, ...]:
    found: list[Site] = []
    for candidate in candidates:
        if candidate.layer < 0 or any(same_place(str(candidate), str(other)) for other in (*known, *found)):
            continue
        try:
            resolve_site(model, candidate)
        except InputError:
            continue
        found.append(candidate)
    return tuple(found)


def explain(run: Run, x: Tensor, elsewhere: Mapping[Site, Tensor]) -> Explanation | None:
    """Find the change under which an SAE fits far better, if there is one.

    Args:
        run: The SAE.
        x: Some tokens at the site, (n, d).
        elsewhere: The same tokens at other sites of the same width.

    Returns:
        The best change, or None where nothing helps.
    """
    here, offset = error_of(x, run(x))
    tried = [found for found in _tried(run, x, elsewhere) if found.helps(here, offset)]
    best = min((found.fvu for found in tried), default=math.nan)
    return next((found for found in tried if found.fvu <= _TIE * best), None)


def _tried(run: Run, x: Tensor, elsewhere: Mapping[Site, Tensor]) -> Iterator[Explanation]:
    for site, other in elsewhere.items():
        yield Explanation(
            *error_of(other, run(other)),
            f"at {site}",
            "it was trained there, or layers were counted otherwise",
            SITE_BETTER,
        )
    norms = torch.linalg.vector_norm(x, dim=1)
    root, mean, square = math.sqrt(x.shape[1]), float(norms.mean()), float(norms.square().mean())
    folded = "it was trained on rescaled activations and the factor is not folded into its weights: fold it in"
    for words, scale, advice in (
        ("√d_model / mean |x|", root / mean, folded),
        ("1 / root mean |x|²", 1 / math.sqrt(square), folded),
        ("mean |x| / √d_model", mean / root, "the factor of its training was folded into its weights twice"),
    ):
        yield Explanation(*error_of(x, run(x * scale) / scale), f"for {scale:.3g} · x ({words})", advice)
    kinds: tuple[tuple[str, InputNorm], ...] = (
        ("scaled to norm √d_model", "constant_norm"),
        ("layer-normalised", "layer_norm"),
    )
    for words, kind in kinds:
        scaled, spread, shift = normalise(x, kind)
        yield Explanation(
            *error_of(x, run(scaled) * spread + shift),
            f"for each token {words}",
            f"it was trained on such tokens: set input_norm to {kind!r}",
        )
    own, common = x.mean(dim=1, keepdim=True), x.mean(dim=0, keepdim=True)
    yield Explanation(
        *error_of(x, run(x - own) + own),
        "for x minus its mean over coordinates",
        "it was trained on a model with centred weights, as TransformerLens makes them",
    )
    yield Explanation(
        *error_of(x, run(x - common) + common),
        "for x minus the mean of all tokens",
        "it was trained on centred activations: fold the mean into b_pre and b_dec",
        settles=False,
    )
    plain = norms <= OUTLIER * norms.median()
    if not plain.all():
        yield Explanation(
            *error_of(x[plain], run(x[plain])),
            f"without the {int((~plain).sum())} outliers in norm",
            "they carry most of the error: skip more positions, or filter by norm",
            settles=False,
        )
