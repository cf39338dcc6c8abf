"""Checks of the tokens: BOS, outliers in norm, precision."""

from __future__ import annotations

import torch
from torch import Tensor

from darkmatter.adapters.activations import ModelActivations
from darkmatter.adapters.hf import LoadedModel
from darkmatter.adapters.next_tokens import Rows, targets
from darkmatter.adapters.preflight.diagnosis import OUTLIER
from darkmatter.adapters.preflight.pilot import Pilot
from darkmatter.adapters.preflight.record import Check, Status
from darkmatter.adapters.sites import text_config

BOS_HELPS = 0.02
"""Nats per token by which BOS in front must lower the loss, beyond three standard errors, to say that it is missed."""

BOS_NEEDED = 0.5
"""Nats per token above which a model without BOS is not the model that the SAEs were made for."""

HALF_HEADROOM = 8.0
"""An entry of x within this factor of float16's largest number is a warning: longer text will find a larger one."""


def bos_of(loaded: LoadedModel) -> int | None:
    """The model's BOS token: the tokenizer's word counts, and the configuration's where there is no tokenizer."""
    place = text_config(loaded.model) if loaded.tokenizer is None else loaded.tokenizer
    found = getattr(place, "bos_token_id", None)
    return found if isinstance(found, int) else None


def bos_check(activations: ModelActivations, pilot: Pilot) -> Check:
    """Check that every document begins with BOS exactly once, or that it was asked to have none.

    Args:
        activations: The stream.
        pilot: Its first documents.

    Returns:
        The check.
    """

    def check(status: Status, measured: str, expected: str, cause: str = "", value: float | None = None) -> Check:
        return Check(
            name="BOS", subject="tokens", status=status, measured=measured, expected=expected, cause=cause, value=value
        )

    bos = bos_of(pilot.loaded)
    if bos is None:
        return check("ok", "the tokenizer has none", "–")
    n = with_bos = twice = 0
    for rows in pilot.batches:
        first = rows.ids == bos
        n += int(rows.starts.sum())
        with_bos += int((rows.starts & first).sum())
        twice += int((rows.starts[:, :-1] & first[:, :-1] & first[:, 1:]).sum())
    at_start = f"at position 0 of {with_bos:,} of {n:,} documents"
    once = "once, at position 0 of every document"
    if twice:
        return check(
            "stop",
            f"twice in {twice:,} of {n:,} documents",
            once,
            f"the token ids have BOS ({bos}) already and something put another in front: drop the first column, or "
            "tokenise with add_special_tokens=False",
        )
    if with_bos == n:
        return check("ok", at_start, once)
    if with_bos:
        cause = "rows cut from a longer stream? give documents that begin with BOS each"
        return check("warn", at_start, once, cause)
    gain, error = bos_gain(pilot, bos)
    helps = gain > max(BOS_HELPS, 3 * error)
    measured = f"{at_start}; in front it would lower the loss by {gain:.2g} ± {2 * error:.1g} nats per token"
    if activations.description.get("bos") == "none":
        cause = "the model was trained with BOS: prepend it, unless the SAEs were trained without" if helps else ""
        return check("warn" if helps else "ok", measured, "none, as asked", cause, gain)
    status: Status = "stop" if helps and gain > BOS_NEEDED else "warn"
    cause = f"the token ids were made without BOS ({bos}): add it as the first column, unless the SAEs were trained so"
    return check(status, measured, once, cause, gain)


def bos_gain(pilot: Pilot, bos: int) -> tuple[float, float]:
    """How much BOS in front lowers the loss of the same next tokens, in nats, with its standard error over documents.

    Args:
        pilot: Documents without BOS; their first batch is used.
        bos: The token.

    Returns:
        The mean and its standard error.
    """
    rows = pilot.batches[0]
    if rows.ids.shape[1] < 3 or not pilot.loaded.has_head:  # no token is left to compare, or no loss
        return 0.0, 0.0
    front = torch.full_like(rows.ids[:, :1], bos)
    shifted = Rows(
        ids=torch.cat([front, rows.ids[:, :-1]], dim=1),  # one token less at the end: the context may be full
        mask=torch.cat([rows.mask[:, :1], rows.mask[:, :-1]], dim=1),
        starts=rows.starts,
        counted=rows.counted,
        groups=rows.groups,
        positions=rows.positions,
    )
    without, with_it = pilot.losses(rows)[:, :-1], pilot.losses(shifted)[:, 1:]
    valid = targets(rows)[:, :-1]
    difference = torch.where(valid, without - with_it, 0.0).double().sum(dim=1)
    n = valid.sum()
    mean = float(difference.sum() / n)
    spread = difference - mean * valid.sum(dim=1)
    return mean, float(spread.square().sum().sqrt() / n)


class NormSums:
    """Norms of the activations at one site, over the pilot.

    Attributes:
        n: Tokens that count.
        largest: Largest entry of x, at any position.
        bad: Document and position of the first activation that is not finite; None where all are.
    """

    def __init__(self) -> None:
        self.n = 0
        self.largest = 0.0
        self.bad: tuple[int, int] | None = None
        self._counted: list[Tensor] = []
        self._bos: list[Tensor] = []
        self._places: list[Tensor] = []  # document, position, whether it is BOS; of every token that counts

    def add(self, rows: Rows, x: Tensor, counts: Tensor, bos: int | None) -> None:
        """Add a part of a batch.

        Args:
            rows: Its rows.
            x: Activations, (rows, pos, width).
            counts: Which positions count, (rows, pos).
            bos: The BOS token.
        """
        norms = torch.linalg.vector_norm(x, dim=2, dtype=torch.float64).cpu()
        broken = rows.mask & ~torch.isfinite(x).all(dim=2).cpu()
        if self.bad is None and bool(broken.any()):
            row, place = broken.nonzero()[0].tolist()
            self.bad = int(rows.groups[row, place]), int(rows.positions[row, place])
        self.largest = max(self.largest, float(x[rows.mask.to(x.device)].abs().max()))
        keep = counts.cpu()
        is_bos = rows.mask & (rows.ids == (-1 if bos is None else bos))
        self.n += int(keep.sum())
        self._counted.append(norms[keep])
        self._bos.append(norms[rows.starts if bos is None else is_bos])
        self._places.append(torch.stack([rows.groups[keep], rows.positions[keep], is_bos[keep].long()], dim=1))

    def check(self, site: str, bos: int | None) -> Check:
        """Judge the norms of the tokens that count."""
        norms, starts, places = (torch.cat(parts) for parts in (self._counted, self._bos, self._places))
        median = float(norms.median()) or float("nan")
        what = "position 0" if bos is None else "BOS"
        ratio = float(starts.median()) / median if len(starts) else float("nan")
        far = norms > OUTLIER * median
        kept = int(places[:, 2].sum())
        lead = f"{what} {ratio:.3g} × the median of what counts; " if len(starts) else ""
        measured = f"{lead}largest that counts {float(norms.max()) / median:.3g} ×"
        causes = []
        if kept:
            causes.append(
                f"BOS counts {kept:,} times, the same activation each time: drop it (skip the first position)"
            )
        if far.any():
            group, position, _ = places[int(far.nonzero()[0])].tolist()
            share = float(norms[far].square().sum() / norms.square().sum())
            causes.append(
                f"{int(far.sum()):,} of {len(norms):,} tokens that count are outliers with {share:.0%} of Σ|x|² (first "
                f"in document {group}, position {position}): attention sinks; skip more positions, or filter by norm"
            )
        return Check(
            name="norms",
            subject=site,
            status="warn" if causes else "ok",
            measured=measured,
            expected=f"no BOS, nothing above {OUTLIER:g} × the median",
            cause="; ".join(causes),
            value=ratio,
        )


def precision_check(loaded: LoadedModel, site: str, norms: NormSums) -> Check:
    """Judge whether the activations are finite, and far from overflow."""

    def check(status: Status, measured: str, cause: str = "") -> Check:
        return Check(
            name="precision",
            subject=site,
            status=status,
            measured=measured,
            expected="finite activations",
            cause=cause,
            value=norms.largest if norms.bad is None else None,
        )

    half = loaded.dtype == "float16"
    if norms.bad is not None:
        document, position = norms.bad
        cause = (
            "float16 overflows: load the model in bfloat16 or float32"
            if half
            else ("the model's weights are damaged, or its precision does not suffice")
        )
        return check("stop", f"NaN or infinite in document {document}, position {position}, in {loaded.dtype}", cause)
    measured = f"model in {loaded.dtype}; largest entry of x {norms.largest:.3g}"
    top = torch.finfo(torch.float16).max
    if half and norms.largest * HALF_HEADROOM > top:
        return check("warn", measured, f"float16 ends at {top:g}: load the model in bfloat16 or float32")
    return check("ok", measured)
