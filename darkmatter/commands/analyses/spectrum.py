"""`darkmatter spectrum`: the geometry of the residual, with the true one of a surgical SAE beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from darkmatter.analyses.spectrum import Along, ResidualSpectrum, accumulate_errors, spectrum_of_sums
from darkmatter.analyses.spectrum.active import active_spans
from darkmatter.analyses.spectrum.along import check_folds, check_options
from darkmatter.cli_data import DataOptions
from darkmatter.commands.analyses.data import Data, open_data
from darkmatter.commands.analyses.finish import finish
from darkmatter.commands.console import steps
from darkmatter.inference import Estimate
from darkmatter.report import percent
from darkmatter.sandbox.matching import match_latents
from darkmatter.sandbox.residual_covariance import residual_covariances

_LEARNED = 0.8
"""|cosine| from which a latent stands for a feature, as in `recover`."""


def run_spectrum(options: DataOptions, *, rank: int | None, active_tokens: int) -> None:
    """Measure spectra, and write spectrum.json and spectrum.png.

    Args:
        options: The shared options.
        rank: Directions that count as leading.
        active_tokens: Tokens of the second pass.
    """
    with steps() as bars:
        data = open_data(options, bars)
        source = data.source
        directions = _directions(data)
        check_options(source.d_model, source.names, rank=rank, directions=directions, active_tokens=active_tokens)
        with bars.stage("moments", data.n_tokens) as stage:
            sums = accumulate_errors(source, folds=data.folds, device=data.device, progress=stage)
        known = {name: sae for name, sae in data.saes.items() if name in source.names}
        check_folds(sums.moments)
        spans: dict[str, Along] = {}
        seen = 0
        if active_tokens and known:
            with bars.stage("active latents", active_tokens) as stage:
                spans, seen = active_spans(source, known, sums.moments, n_tokens=active_tokens, progress=stage)
        result = spectrum_of_sums(
            sums, saes=known, rank=rank, directions=directions, active=spans, n_active_tokens=seen
        )
    truth = _truth(data, result)

    def draw(path: Path) -> None:
        from darkmatter.plots_analyses.spectrum import save_spectrum_figure

        save_spectrum_figure(path, result, truth)

    finish(
        "spectrum",
        result,
        data,
        draw=draw,
        show=lambda: _show(result, truth),
        more={"truth": truth} if truth else {},
    )


def _directions(data: Data) -> dict[str, dict[str, torch.Tensor]]:
    """On a world: the features that each SAE has learned, and those absent from it."""
    if data.world is None:
        return {}
    features = torch.from_numpy(np.asarray(data.world.dictionary_matrix, dtype=np.float64))
    found = {}
    learned = {}
    if data.surgical is not None:
        learned["surgical"] = np.isin(np.arange(len(features)), data.surgical.features(len(features)))
    for name, sae in data.saes.items():
        if name in data.source.names:
            matching = match_latents(data.world.dictionary_matrix, sae.W_dec.float().cpu().numpy(), near=_LEARNED)
            learned[name] = matching.best_cosine >= _LEARNED
    for name, mine in learned.items():
        sets = {"learned features": features[mine], "absent features": features[~mine]}
        found[name] = {label: rows for label, rows in sets.items() if len(rows)}
    return found


def _truth(data: Data, result: ResidualSpectrum) -> dict[str, Any]:
    """Closed form of a surgical SAE's spectra: eigenvalues over Var x, participation ratio, effective rank."""
    if data.world is None or data.surgical is None:
        return {}
    covariances = residual_covariances(data.world, data.surgical)
    if covariances is None:
        return {}
    chosen = [i - 1 for i in result.indices]
    found = {}
    for name, covariance in covariances.items():
        values = np.linalg.eigvalsh(covariance)[::-1].clip(min=0.0)
        shares = values[values > 0] / values.sum() if values.sum() > 0 else values[:0]
        found[name] = {
            "share": float(values.sum()) / data.world.variance,
            "participation": float(values.sum() ** 2 / (values**2).sum()) if len(shares) else None,
            "effective_rank": float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else None,
            "eigenvalues": (values[chosen] / data.world.variance).tolist(),
        }
    return {"surgical": found}


def _show(result: ResidualSpectrum, truth: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table(title=f"spectra, d = {result.d_model}", title_justify="left", header_style="bold")
    for column in ("", "share", "participation", "eff. rank", f"in first {result.rank}", "stable"):
        table.add_column(column, justify="right" if column else "left")
    rows = [("x", result.x, False, "x", "")]
    for name, sae in result.saes.items():
        rows += [(f"{name}: {p}", getattr(sae, p), sae.control, p, name) for p in ("error", "linear", "nonlinear")]
    for label, part, control, kind, name in rows:
        stable = "–" if part.stability != part.stability else f"{part.stability:.2f}"
        rank = part.effective_rank.value
        numbers = [_number(part.participation), "–" if rank != rank else f"{rank:.1f}"]
        shown = [percent(part.share.value), *numbers, _percent(part.leading), stable]
        table.add_row(label, *shown, style="dim" if control else None)
        true = truth.get(name or "surgical", {}).get(kind)
        if true and not control:
            known = [percent(true["share"])]
            known += ["" if true[n] is None else f"{true[n]:.1f}" for n in ("participation", "effective_rank")]
            table.add_row("  truth", *known, "", "", style="italic")
    table.caption = f"{result.n_tokens:,} tokens, {result.n_folds} folds; share: of Var x; stable: of halves"
    table.caption_justify = "left"
    console.print(table)
    for title, name, number in (("share inside", "spans", _percent), ("times isotropic, along", "alignments", _times)):
        found = Table(title=title, title_justify="left", header_style="bold")
        for column in ("", "by chance", "x", "error", "linear", "nonlinear"):
            found.add_column(column, justify="right" if column else "left")
        for sae_name, sae in result.saes.items():
            for label, along in getattr(sae, name).items():
                parts = (along.x, along.error, along.linear, along.nonlinear)
                chance = percent(along.chance) if name == "spans" else f"{along.chance:g}"
                found.add_row(f"{sae_name}: {label}", chance, *map(number, parts), style="dim" if sae.control else None)
        if found.row_count:
            console.print(found)
    overlaps = Table(title=f"overlap of leading {result.rank} directions", title_justify="left", header_style="bold")
    for column in ("nonlinear errors of", "overlap [95 %]", "by chance"):
        overlaps.add_column(column, justify="left" if column.startswith("non") else "right")
    for pair in result.overlaps:
        if not any(n != "x" and result.saes[n].control for n in (pair.first, pair.second)):
            overlaps.add_row(f"{pair.first} | {pair.second}", f"{pair.overlap:.2f}", f"{result.chance:.2f}")
    if overlaps.row_count:
        console.print(overlaps)
    for warning in result.warnings:
        console.print(f"Warning: {warning}", style="yellow", markup=False)


def _number(estimate: Estimate) -> str:
    return "–" if estimate.value != estimate.value else f"{estimate:.1f}"


def _percent(estimate: Estimate) -> str:
    return "–" if estimate.value != estimate.value else percent(estimate.value)


def _times(estimate: Estimate) -> str:
    return "–" if estimate.value != estimate.value else f"{estimate.value:.2f}"
