"""The preflight of one site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from darkmatter.adapters.activations import ModelActivations
from darkmatter.adapters.hf import LoadedModel
from darkmatter.adapters.next_tokens import Rows
from darkmatter.adapters.preflight.diagnosis import OFFSET, Explanation, explain, sites_far, sites_nearby
from darkmatter.adapters.preflight.losses import Losses
from darkmatter.adapters.preflight.pilot import Pilot, read_pilot
from darkmatter.adapters.preflight.record import Check, Preflight
from darkmatter.adapters.preflight.saes import Subject, fit_checks, on_hub, origin_checks, what_is_said, width_check
from darkmatter.adapters.preflight.tokens import NormSums, bos_check, bos_of, precision_check
from darkmatter.adapters.run_saes import Sae
from darkmatter.adapters.sites import Site
from darkmatter.errors import InputError

DIAGNOSED = 2048
"""Tokens on which an SAE is tried at other sites and scales."""

_LAYERS_AT_ONCE = 4  # of all layers of a deep model, no more than this are held together


def preflight(
    activations: ModelActivations,
    saes: Mapping[str, Sae],
    *,
    site: Site | None = None,
    notes: Mapping[str, Any] | None = None,
    batches: int = 4,
) -> Preflight:
    """Check on the first batches that model, text, site and SAEs belong together.

    Args:
        activations: The stream that a run would read.
        saes: SAEs by name: a `LoadedSae`, an `SAE`, or any function from x (n, d) to its reconstruction.
        site: Which of the stream's sites the SAEs belong to; None where it has one.
        notes: What the SAEs' files say, by name, as a `ModelSource` carries it: "site", "model" and "l0" are used. A
            `LoadedSae` says it itself.
        batches: Batches to read. What needs the whole model (losses), or many sites, reads the first one only.

    Returns:
        The checks. It never changes anything, and raises only where there is nothing to check.

    Raises:
        InputError: No SAE, something that cannot be called, fewer than one batch, or no document.
    """
    place = activations.site if site is None else site
    if not saes or not all(map(callable, saes.values())):
        raise InputError(f"saes is {dict(saes)!r}, expected at least one name with a callable x -> reconstruction")
    pilot = read_pilot(activations, place, batches)
    subjects = [
        Subject(name=name, call=sae, said=what_is_said(sae, (notes or {}).get(name))) for name, sae in saes.items()
    ]
    bos = bos_of(pilot.loaded)
    reading = _Reading(pilot, subjects, bos)
    for number, rows in enumerate(pilot.batches):
        reading.add(rows, () if number else sites_nearby(pilot.loaded.model, place))
    if not reading.norms.n:
        raise InputError("no token of the first documents counts: give longer documents, or drop fewer positions")
    checks = [bos_check(activations, pilot), _revision_check(pilot.loaded)]
    precision = precision_check(pilot.loaded, str(place), reading.norms)
    if precision.status == "stop":  # nothing that follows would mean anything
        checks.append(precision)
    else:
        losses = Losses(pilot)
        checks += [*losses.of_model(), precision, reading.norms.check(str(place), bos), *losses.of_identity()]
        checks += reading.sae_checks(losses)
    return Preflight(checks=tuple(checks), n_documents=pilot.n_documents, n_tokens=reading.norms.n)


class _Reading:
    """The pass over the pilot."""

    def __init__(self, pilot: Pilot, subjects: Sequence[Subject], bos: int | None) -> None:
        self.norms = NormSums()
        self._pilot, self._subjects, self._bos = pilot, subjects, bos
        self._widths: dict[str, Check] = {}
        self._samples: dict[Site, Tensor] = {}
        self._far = False

    def add(self, rows: Rows, nearby: Sequence[Site]) -> None:
        """Read one batch; of the first keep some tokens, at the sites nearby too."""
        site = self._pilot.site
        sample = _Sample()
        for part, found in self._pilot.activations(rows, (site, *nearby)):
            counts = self._pilot.counts(part, found[site])
            self.norms.add(part, found[site], counts, self._bos)
            x = found[site][counts]
            if self.norms.bad is None and len(x):
                self._measure(x)
                sample.add(found, counts)
        if not self._samples:
            self._samples = sample.taken()

    def _measure(self, x: Tensor) -> None:
        for subject in self._subjects:
            if subject.name not in self._widths:
                self._widths[subject.name] = width_check(subject, x, self._pilot.site, self._pilot.loaded.name)
            if self._fits(subject):
                subject.add(x)

    def _fits(self, subject: Subject) -> bool:
        return self._widths[subject.name].status == "ok"

    def sae_checks(self, losses: Losses) -> list[Check]:
        """Judge every SAE.

        Args:
            losses: Of the pilot.

        Returns:
            The checks.
        """
        checks: list[Check] = []
        for subject in self._subjects:
            checks += [self._widths[subject.name], *origin_checks(subject, self._pilot.site, self._pilot.loaded)]
            if self._fits(subject):
                checks += fit_checks(subject, self._explain(subject) if subject.finite else None)
                checks += losses.of_sae(subject) if subject.finite else []
        return checks

    def _explain(self, subject: Subject) -> Explanation | None:
        x = self._samples[self._pilot.site]
        found = explain(subject, x, self._elsewhere())
        away = subject.sums.fvu >= 1 or subject.sums.offset > OFFSET
        if away and not subject.sums.constant and (found is None or found.offset > OFFSET):
            self._read_far()  # it is at home nowhere near
            found = explain(subject, x, self._elsewhere())
        return found

    def _elsewhere(self) -> dict[Site, Tensor]:
        site = self._pilot.site
        width = self._samples[site].shape[1]
        return {
            other: h
            for other, h in self._samples.items()
            if other != site and h.shape[1] == width and bool(torch.isfinite(h).all())
        }

    def _read_far(self) -> None:
        """Take the same tokens in all other layers, a few layers at a time."""
        if self._far:
            return
        self._far = True
        site = self._pilot.site
        layers = sites_far(self._pilot.loaded.model, site)
        for low in range(0, len(layers), _LAYERS_AT_ONCE):
            sample = _Sample()
            for part, found in self._pilot.activations(
                self._pilot.batches[0], (site, *layers[low : low + _LAYERS_AT_ONCE])
            ):
                sample.add(found, self._pilot.counts(part, found[site]))
            self._samples |= {other: h for other, h in sample.taken().items() if other != site}


class _Sample:
    """Some tokens of one batch, the same at every site."""

    def __init__(self) -> None:
        self._parts: dict[Site, list[Tensor]] = {}

    def add(self, found: Mapping[Site, Tensor], counts: Tensor) -> None:
        for site, h in found.items():
            self._parts.setdefault(site, []).append(h[counts.to(h.device)].to(counts.device))

    def taken(self) -> dict[Site, Tensor]:
        whole = {site: torch.cat(parts) for site, parts in self._parts.items()}
        return {site: h[:: 1 + (len(h) - 1) // DIAGNOSED].clone() for site, h in whole.items()}


def _revision_check(loaded: LoadedModel) -> Check:
    weights = f"weights {loaded.fingerprint[:12]}"
    if loaded.revision is not None:
        measured = f"{loaded.name} at {loaded.revision[:12]}"
    elif on_hub(loaded):
        measured = f"{loaded.name}, commit not known; {weights}"
    else:
        measured = f"local folder {loaded.name}, {weights}"
    return Check(name="revision", subject="model", status="ok", measured=measured)
