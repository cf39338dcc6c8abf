"""Checks of each SAE: does it belong here, and does it fit?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from darkmatter.adapters.hf import LoadedModel
from darkmatter.adapters.preflight.diagnosis import OFFSET, Explanation
from darkmatter.adapters.preflight.record import Check, Status
from darkmatter.adapters.preflight.sums import ErrorSums, finite
from darkmatter.adapters.run_saes import Sae, SaeRunner
from darkmatter.adapters.saes import LoadedSae
from darkmatter.adapters.saes.hooks import same_place
from darkmatter.adapters.sites import Site
from darkmatter.errors import DarkmatterError
from darkmatter.sae import SAE

L0_FACTOR = 2.0
"""An L0 further from the advertised one than by this factor either way is a warning: text alone moves it by less."""

EXACT = 1e-10
"""An FVU below this is that of a copy: rounding alone makes about 1e-6 in bfloat16 and 1e-14 in float32."""

_OTHER_NAMES = {"gpt2-small": "gpt2"}  # TransformerLens' name and the hub's


@dataclass(slots=True, kw_only=True)
class Subject:
    """One SAE under test, and what was measured so far.

    Attributes:
        name: Its name.
        call: The SAE.
        said: What its files say: "model", "site", "l0", "training", as `LoadedSae.describe` writes them.
        sums: Of its error on the pilot.
        n_active: Latents above zero, over all tokens.
        fired: Whether each latent was ever above zero; None where the codes cannot be seen.
        finite: Whether every reconstruction was.
    """

    name: str
    call: Sae
    said: Mapping[str, Any]
    sums: ErrorSums = field(default_factory=ErrorSums)
    n_active: int = 0
    fired: Tensor | None = None
    finite: bool = True

    @property
    def record(self) -> SAE | None:
        """The canonical record, where there is one."""
        inner = self.call.sae if isinstance(self.call, LoadedSae) else self.call
        return inner if isinstance(inner, SAE) else None

    @property
    def dtype(self) -> str:
        """Precision of its arithmetic, as far as it is known."""
        return "own precision" if self.record is None else str(self.record.dtype).removeprefix("torch.")

    def __call__(self, x: Tensor) -> Tensor:
        """Reconstruct tokens, (n, d), any floating dtype."""
        return SaeRunner({self.name: self.call}).recons(x.float())[self.name]

    def add(self, x: Tensor) -> None:
        """Measure tokens, (n, d)."""
        if not len(x):
            return
        recon = self(x)
        self.finite = self.finite and finite(recon)
        self.sums.add(x, recon)
        record = self.record
        if record is None:
            return
        codes = record.encode(x.to(record.device))
        active = codes.latents[codes.values > 0]
        self.n_active += len(active)
        fired = torch.zeros(record.d_sae, dtype=torch.bool)
        fired[active.cpu()] = True
        self.fired = fired if self.fired is None else self.fired | fired


def what_is_said(sae: Sae, notes: object) -> Mapping[str, Any]:
    """Collect what an SAE's files say, from the SAE itself or from the notes of a source."""
    if isinstance(sae, LoadedSae):
        return {"model": sae.model, "site": sae.site, "l0": sae.l0, "training": sae.training}
    return notes if isinstance(notes, Mapping) else {}


def width_check(subject: Subject, x: Tensor, site: Site, model: str) -> Check:
    """Compare the SAE's width with the site's, by its own word and on two tokens."""
    width = x.shape[1]

    def bad(measured: str, cause: str) -> Check:
        return Check(
            name="width",
            subject=subject.name,
            status="stop",
            measured=measured,
            expected=f"{width}, the width of {site} in {model}",
            cause=cause,
        )

    own = getattr(subject.call, "d_model", None)
    if isinstance(own, int) and own != width:
        return bad(str(own), "it is an SAE of another model or kind of site: choose the one made for this site")
    try:
        shape = tuple(subject(x[:2]).shape)
    except (DarkmatterError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join((str(error).strip().splitlines() or [""])[0].split())[:160]
        return bad("not known", f"calling it on (2, {width}) failed ({type(error).__name__}: {reason})")
    if shape != (2, width):
        return bad(f"{shape} for (2, {width})", "an SAE must return its reconstruction, one row per token")
    return Check(name="width", subject=subject.name, status="ok", measured=str(width), expected=str(width), value=width)


def origin_checks(subject: Subject, site: Site, loaded: LoadedModel) -> list[Check]:
    """Compare the site and the model that the SAE's files name with those that are read."""
    checks = []
    made_for = subject.said.get("site")
    if isinstance(made_for, str):
        same = same_place(made_for, str(site))
        checks.append(
            Check(
                name="site",
                subject=subject.name,
                status="ok" if same else "warn",
                measured=f"made for {made_for}",
                expected=str(site),
                cause="" if same else f"its files say {made_for}: give that site, unless the change is meant",
            )
        )
    advertised = subject.said.get("model")
    if isinstance(advertised, str) and advertised:
        checks.append(_model_check(subject, advertised, loaded))
    return checks


def _model_check(subject: Subject, advertised: str, loaded: LoadedModel) -> Check:
    training = subject.said.get("training")
    source = training.get("source") if isinstance(training, Mapping) else None
    trained: Mapping[str, Any] = source if isinstance(source, Mapping) else {}
    status: Status = "ok"
    expected, cause = loaded.name, ""
    if trained.get("model_fingerprint") and trained.get("model_dtype") == loaded.dtype:
        expected = f"{loaded.name} with the weights it was trained on"
        if trained["model_fingerprint"] != loaded.fingerprint:
            status, cause = "warn", "the model's weights are not those of its training: another model or revision"
    elif not on_hub(loaded):
        expected = f"a local folder, {loaded.name}"  # whose name may be anything
    elif _plain(advertised) != _plain(loaded.name):
        status = "warn"
        cause = f"its files name {advertised}: read that model, unless the change is meant (base or tuned, other size)"
    return Check(
        name="model",
        subject=subject.name,
        status=status,
        measured=f"made for {advertised}",
        expected=expected,
        cause=cause,
    )


def on_hub(loaded: LoadedModel) -> bool:
    """Whether a model came from the hub: a folder's name has no slash."""
    return loaded.revision is not None or "/" in loaded.name


def _plain(name: str) -> str:
    last = name.rstrip("/").split("/")[-1].lower()
    return _OTHER_NAMES.get(last, last)


def fit_checks(subject: Subject, found: Explanation | None) -> list[Check]:
    """Judge FVU and L0.

    Args:
        subject: The SAE, measured on the pilot.
        found: A change under which it would fit far better, if there is one.

    Returns:
        The checks.
    """
    name = subject.name
    if not subject.finite:
        return [
            Check(
                name="reconstruction",
                subject=name,
                status="stop",
                measured="NaN or infinite",
                expected="finite numbers",
                cause=f"its weights are damaged, or overflow in {subject.dtype}: load it again, in float32",
            )
        ]
    checks = [_fvu_check(subject, found)]
    if subject.fired is not None:
        checks.append(_l0_check(subject, found))
    return checks


def _fvu_check(subject: Subject, found: Explanation | None) -> Check:
    fvu, offset = subject.sums.fvu, subject.sums.offset
    reason = "" if found is None else found.sentence()
    status: Status = "ok" if found is None else "warn"
    if subject.sums.constant:
        status = "stop"
        reason = reason or "Sae(x) is the same for every token: no latent ever switches; a dead or damaged SAE"
    elif not fvu > EXACT:
        status, reason = "stop", "it returns x itself: this is no reconstruction, or x is constant"
    elif fvu >= 1:
        status = "stop"
        reason = reason or (
            "it is worse than predicting the mean, and none of the sites and scalings that were tried explains it: "
            "another model, a damaged file, or another order of operations"
        )
    shown = f"{fvu:.4g}" + (f" ({offset:.2g} of it constant)" if offset > OFFSET else "")
    return Check(
        name="FVU",
        subject=subject.name,
        status=status,
        measured=shown,
        expected="above 0, below 1",
        cause=reason,
        value=fvu,
    )


def _l0_check(subject: Subject, found: Explanation | None) -> Check:
    assert subject.fired is not None
    l0 = subject.n_active / subject.sums.n
    given = subject.said.get("l0")
    advertised = float(given) if isinstance(given, int | float) and 0 < given < math.inf else None
    status: Status = "ok"
    cause = ""
    if l0 == 0:
        status, cause = "stop", "no latent ever fires: a dead or damaged SAE, or x is scaled otherwise than in training"
    elif advertised is not None and not 1 / L0_FACTOR <= l0 / advertised <= L0_FACTOR:
        status = "warn"
        cause = "likely the wrong site, a scale of x that is not folded in, or BOS and outliers among the tokens"
    if cause and found is not None:
        cause = f"see FVU: it fits {found.where}"
    return Check(
        name="L0",
        subject=subject.name,
        status=status,
        measured=f"{l0:.3g} ({int(subject.fired.sum()):,} of {len(subject.fired):,} latents fired)",
        expected=f"near {advertised:g}, as advertised" if advertised is not None else "–",
        cause=cause,
        value=l0,
    )
