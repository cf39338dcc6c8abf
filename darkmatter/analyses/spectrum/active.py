"""How much of every token's error lies in the span of the decoder rows that are active on it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from darkmatter.analyses.fold_table import FoldTable, ratio
from darkmatter.analyses.part_maps import PARTS, part_maps
from darkmatter.analyses.spectrum.result import Along
from darkmatter.batch import BatchSource, check_batch
from darkmatter.folds import FoldMoments
from darkmatter.inference import Estimate
from darkmatter.sae import SAE, Codes
from darkmatter.solve import factor
from darkmatter.stream import Progress

ACTIVE_TOKENS = 4096
"""Tokens on which spans of active latents are measured by default; a projection costs L0² d per token."""

_RIDGE = 1e-12
_CHUNK = 2**22
_VECTORS = ("x", "e", "out", "in", "linear")


def active_spans(
    source: BatchSource,
    saes: Mapping[str, SAE],
    moments: FoldMoments,
    *,
    n_tokens: int = ACTIVE_TOKENS,
    progress: Progress | None = None,
) -> tuple[dict[str, Along], int]:
    """Project x, e and its parts on the span of each token's active decoder rows, in a second, short pass.

    Args:
        source: The source of the first pass.
        saes: Weights.
        moments: Moments of the first pass, for the maps.
        n_tokens: Stop after the batch that reaches this number.
        progress: Called with the number of tokens after every batch.

    Returns:
        Shares by SAE, and the tokens they rest on. Those of r are means of residuals in sample and out of fold, whose
        optimism cancels; x is taken from its mean.
    """
    if not set(saes) & set(moments.layout.names):
        return {}, 0
    total = moments.total()
    maps = part_maps(moments, parts=max(p for p in range(2, PARTS + 1) if _filled(moments, p)))
    whole = factor(total.xx, total.mean_x, total.n)
    d = moments.layout.d_model
    weights = {
        n: whole.solve(total.xe[:, d * i : d * (i + 1)]) for i, n in enumerate(moments.layout.names) if n in saes
    }
    means = dict(zip(moments.layout.names, total.mean_e, strict=True))
    columns = [f"{kind} {name}" for kind in ("all", "in span") for name in _VECTORS] + ["dims"]
    tables = {name: FoldTable.empty(columns, len(moments.folds)) for name in weights}
    seen = 0
    for batch in source:
        x, recons = check_batch(batch, d_model=d, names=source.names)
        centred = x.double() - total.mean_x.to(x.device)
        for name, weight in weights.items():
            e = x.double() - recons[name].double()
            e -= means[name].to(x.device)
            fitted = centred @ weight.to(x.device)
            outside = maps.linear(name, x, batch.groups) - means[name].to(x.device)
            vectors = torch.stack([centred, e, e - outside, e - fitted, (outside + fitted) / 2])
            norms, projected, dims = projections(saes[name], x, vectors)
            found = {f"all {v}": row for v, row in zip(_VECTORS, norms, strict=True)}
            found |= {f"in span {v}": row for v, row in zip(_VECTORS, projected, strict=True)}
            tables[name] = tables[name].add(batch.groups, {**found, "dims": dims})
        seen += len(x)
        if progress:
            progress(len(x))
        if seen >= n_tokens:
            break
    return {name: _along(table, d) for name, table in tables.items()}, seen


def _filled(moments: FoldMoments, parts: int) -> bool:
    return parts <= len(moments.folds) and all(sum(f.n for f in moments.folds[p::parts]) for p in range(parts))


def _along(table: FoldTable, d: int) -> Along:
    def share(*names: str) -> Estimate:
        tops, bottoms = (
            torch.stack([table.sums(f"{kind} {name}") for name in names]).sum(dim=0) for kind in ("in span", "all")
        )
        return ratio(tops, bottoms, table.used)

    dims = table.average("dims").value
    return Along(
        dims=dims,
        chance=dims / d,
        x=share("x"),
        error=share("e"),
        linear=share("linear"),
        nonlinear=share("out", "in"),
    )


def projections(sae: SAE, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared norms of vectors, and of their projections on the span of each token's active decoder rows.

    |P v|² = b'(A A')⁻¹ b with b = A v, A the active rows; a ridge of 1e-12 of the largest row stands for the
    pseudo-inverse where rows depend on each other.

    Args:
        sae: The SAE.
        x: Tokens, (n, d).
        vectors: q vectors per token, (q, n, d), float64.

    Returns:
        (q, n), (q, n), and active latents per token, at most d, (n,).
    """
    codes = sae.encode(x.to(sae.device))
    rows = sae.W_dec.to(x.device, torch.float64)
    n, d = x.shape
    latents, counts = _active(codes)
    latents, counts = latents.to(x.device), counts.to(x.device)
    starts = counts.cumsum(0) - counts
    projected = torch.zeros(vectors.shape[:2], dtype=torch.float64, device=x.device)
    order = torch.argsort(counts, descending=True)  # tokens of like L0 together: the first of a chunk is its widest
    start = 0
    while start < n and int(counts[order[start]]) > 0:
        width = int(counts[order[start]])
        mine = order[start : start + max(1, _CHUNK // (width * max(d, width)))]
        slots = torch.arange(width, device=x.device)
        held = slots < counts[mine][:, None]
        chosen = latents[(starts[mine][:, None] + slots).clamp_max(len(latents) - 1)]
        a = rows[chosen] * held[..., None]
        gram = a @ a.mT
        diagonal = gram.diagonal(dim1=1, dim2=2)
        diagonal.add_(_RIDGE * diagonal.amax(dim=1, keepdim=True).clamp_min(torch.finfo(gram.dtype).tiny))
        b = a @ vectors[:, mine].permute(1, 2, 0)
        half = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), b, upper=False)
        projected[:, mine] = half.square().sum(dim=1).T
        start += len(mine)
    return vectors.square().sum(dim=2), projected, counts.clamp_max(d).double()


def _active(codes: Codes) -> tuple[Tensor, Tensor]:
    """Latents above zero, token by token, (nnz,), and how many every token has, (n,)."""
    tokens = torch.arange(codes.n_tokens, device=codes.values.device).repeat_interleave(codes.offsets.diff())
    on = codes.values > 0
    return codes.latents[on], torch.bincount(tokens[on], minlength=codes.n_tokens)
