"""From a source to SAEs trained on the parts of an SAE's error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from darkmatter.analyses.controls import is_control
from darkmatter.analyses.error_saes.alignment import align
from darkmatter.analyses.error_saes.contexts import ContextPlan
from darkmatter.analyses.error_saes.evaluation import Measured, evaluate
from darkmatter.analyses.error_saes.parts import NOTHING, Kind, Maps, Spectrum, Split, Target, target
from darkmatter.analyses.error_saes.result import TargetResult, TrainOnError
from darkmatter.analyses.error_saes.stream import TargetStream, residual_scatters
from darkmatter.analyses.error_saes.training import (
    ErrorSae,
    Stages,
    check_memory,
    described,
    digest,
    silent,
    train_target,
)
from darkmatter.batch import BatchSource
from darkmatter.errors import DegenerateError, InputError
from darkmatter.folds import FoldMoments
from darkmatter.inference import Estimate, interval
from darkmatter.results import to_plain
from darkmatter.sae import TrainConfig
from darkmatter.stream import accumulate

NAMED = ("linear", "nonlinear", "x", "linear-gaussian", "nonlinear-gaussian", "isotropic")
"""Targets of one SAE; "isotropic" is left out unless it is asked for."""

DEFAULT = NAMED[:5]
_FEW_BINS = 10
_EPOCHS = 1.1


def train_on_error(
    source: BatchSource,
    config: TrainConfig,
    *,
    of: str | None = None,
    targets: Sequence[str] = DEFAULT,
    rank: int | None = None,
    whiten: bool = False,
    folds: int = 20,
    seed: int = 0,
    moments: FoldMoments | None = None,
    directions: Mapping[str, Tensor] | None = None,
    plan: ContextPlan | None = None,
    folder: Path | None = None,
    stages: Stages = silent,
    device: str = "cpu",
    checkpoint_seconds: float = 60.0,
) -> TrainOnError:
    """Train SAEs on the linear and the nonlinear part of an SAE's error, at equal variance, rank and settings.

    e ≈ L(x) + r with L affine, fitted to the documents trained on. Passes: moments (unless given), covariance of r, one
    pass or more for every target, and one over held-out documents. Nothing stores activations. Numbers are defined in
    `TrainOnError.definition`.

    Args:
        source: Tokens with reconstructions; what null controls it holds are trained on as well, their nonlinear part.
        config: Settings of every training, `config.seed` included.
        of: The SAE; the first by default.
        targets: Some of `NAMED`. A Gaussian needs no other target, `structure` needs both.
        rank: Directions kept of every target; None is the least rank among the parts.
        whiten: Give all kept directions equal variance.
        folds: Document folds.
        seed: Seed of noise and samples.
        moments: Moments of the source in as many folds, where they are known.
        directions: Directions to compare latents with, (f, d) by name.
        plan: Contexts to keep of every SAE; None keeps none.
        folder: Keeps trained SAEs, and training while it lasts, so that a killed run goes on; None keeps nothing.
        stages: Progress.
        device: Where sums live.
        checkpoint_seconds: Least time between two saves of training.

    Returns:
        The result, with SAEs in the units of their parts.

    Raises:
        InputError: An unknown SAE or target, an impossible rank, too few documents or tokens.
        DegenerateError: The error has neither a linear nor a nonlinear part that varies.
    """
    name, wanted = chosen(source, of, targets)
    split = Split(folds)
    check_memory(
        len(wanted) + len([other for other in source.names if is_control(other)]), source.d_model, config.d_sae
    )
    total = source.description.get("n_tokens")
    total = total if isinstance(total, int) else None
    if moments is None:
        with stages("moments", total) as advance:
            moments = accumulate(source, folds=folds, device=device, progress=advance)
    controls = [other for other in source.names if is_control(other) and other.startswith(f"{name}~")]
    maps = Maps.fit(moments, [name, *controls], split)
    with stages("covariance", total) as advance:
        scatters, heldout, counts = residual_scatters(source, maps, [name, *controls], split, progress=advance)
    prepared, warnings = _targets(maps, scatters, heldout, name, wanted, rank=rank, whiten=whiten, seed=seed)
    recipe = {
        "source": digest(to_plain(dict(source.description))),
        "config": described(config),
        "of": name,
        "folds": folds,
        "rank": prepared[0].rank,
        "whiten": whiten,
        "seed": seed,
    }
    trained = {
        t.name: train_target(
            TargetStream(source, maps, t, split, counts, config.n_tokens),
            config,
            folder=folder,
            recipe=recipe,
            stages=stages,
            checkpoint_seconds=checkpoint_seconds,
        )
        for t in prepared
    }
    saes = {key: made.sae for key, made in trained.items()}
    with stages("evaluation", total) as advance:
        measured = evaluate(source, maps, prepared, saes, split, plan=plan, seed=seed, progress=advance)
    any_ = next(iter(measured.values()))
    if len(any_.n) < _FEW_BINS:
        warnings.append(
            f"held-out documents fill {len(any_.n)} of 20 bins: intervals are unreliable, pass more documents"
        )
    epochs = config.n_steps * config.batch_size / int(counts.sum())
    if epochs > _EPOCHS:
        warnings.append(
            f"every training token is seen {epochs:.3g} times: training FVU is optimistic, see held-out FVU"
        )
    return TrainOnError(
        name=name,
        targets={t.name: _result(t, trained[t.name], measured, directions or {}, seed=seed) for t in prepared},
        differences=_differences(measured),
        structure_gap=_gap(measured),
        n_train=int(counts.sum()),
        n_heldout=int(any_.n.sum()),
        epochs=epochs,
        whitened=whiten,
        config=described(config),
        warnings=tuple(warnings),
        saes=saes,
        measured=measured,
        prepared={t.name: t for t in prepared},
        maps=maps,
    )


def chosen(source: BatchSource, of: str | None, targets: Sequence[str]) -> tuple[str, list[str]]:
    """The SAE and the targets, checked before anything is read.

    Args:
        source: The source.
        of: The SAE; None is the first.
        targets: Some of `NAMED`.

    Returns:
        Both.

    Raises:
        InputError: One that there is not, or one twice.
    """
    name = source.names[0] if of is None else of
    if name not in source.names:
        raise InputError(f"of is {name!r}, expected one of {', '.join(source.names)}")
    for wanted in targets:
        if wanted not in NAMED or list(targets).count(wanted) > 1:
            raise InputError(f"targets are {list(targets)}, expected some of {', '.join(NAMED)}, each once")
    if not targets:
        raise InputError(f"no target, expected some of {', '.join(NAMED)}")
    return name, list(targets)


def _targets(
    maps: Maps,
    scatters: Mapping[str, Tensor],
    heldout: Mapping[str, Tensor],
    name: str,
    wanted: Sequence[str],
    *,
    rank: int | None,
    **how: Any,
) -> tuple[list[Target], list[str]]:
    """Spectra of all parts, one common rank, and the targets that vary.

    Raises:
        InputError: The rank is above that of a part.
        DegenerateError: No part varies.
    """
    var_x = float(maps.scatter.diagonal().sum())
    zero = torch.zeros_like(maps.mean_x)
    weight = maps.weight[name]
    spectra = {
        "linear": Spectrum.of(maps.mean_e[name], *(weight.mT @ c @ weight for c in (maps.scatter, maps.heldout))),
        "nonlinear": Spectrum.of(zero, scatters[name], heldout[name]),
        "x": Spectrum.of(maps.mean_x, maps.scatter, maps.heldout),
    }
    used = {"nonlinear" if kind == "isotropic" else kind.removesuffix("-gaussian") for kind in wanted}
    plan = [(kind, kind.removesuffix("-gaussian"), name) for kind in wanted]
    for other, scatter in scatters.items():
        if other != name:
            label = f"nonlinear~{other.rpartition('~')[2]}"
            spectra[label] = Spectrum.of(zero, scatter, heldout[other])
            used.add(label)
            plan.append((label, label, other))
    empty = {part for part in used if not spectra[part].variance > NOTHING * var_x}
    warnings = [f"the {part} part does not vary, so that nothing is trained on it" for part in sorted(empty)]
    if not used - empty - {"x"}:
        raise DegenerateError(
            f"none of {', '.join(sorted(used))} varies in the error of {name!r}: there is nothing to train on"
        )
    ranks = {part: spectra[part].rank for part in sorted(used - empty)}
    least = min(ranks, key=ranks.__getitem__)
    if rank is not None and not 1 <= rank <= ranks[least]:
        raise InputError(f"rank is {rank}, expected 1 … {ranks[least]}, the rank of the {least} part")
    found = []
    for label, part, sae in plan:
        part = "nonlinear" if label == "isotropic" else part
        if part in empty:
            continue
        kind: Kind = next(
            (k for k in get_args(Kind) if k == label), "gaussian" if label.endswith("gaussian") else "nonlinear"
        )
        made = target(
            label,
            kind,
            "" if label == "x" else sae,
            spectra[part],
            var_x=var_x,
            rank=ranks[least] if rank is None else rank,
            **how,
        )
        found.append(made)
    return found, warnings


def _result(
    t: Target, made: ErrorSae, measured: Mapping[str, Measured], directions: Mapping[str, Tensor], *, seed: int
) -> TargetResult:
    own, gaussian = measured[t.name], measured.get(f"{t.name}-gaussian")
    return TargetResult(
        kind=t.kind,
        sae=t.sae,
        share=t.share,
        rank=t.rank,
        kept=t.kept,
        effective_rank=t.effective_rank,
        fvu=own.fvu,
        structure=None if gaussian is None else own.structure(gaussian),
        l0=own.l0,
        dead=own.dead,
        train_dead=made.dead_share,
        n_tokens=made.n_tokens,
        history=made.history,
        alignment={
            label: align(made.sae.W_dec, rows, t, seed=seed) for label, rows in directions.items() if len(rows) > 1
        },
    )


def _differences(measured: Mapping[str, Measured]) -> dict[str, Estimate]:
    """The nonlinear part against everything, the linear part against its Gaussian and x."""
    pairs = [("nonlinear", other) for other in measured if other != "nonlinear"]
    pairs += [("linear", other) for other in ("linear-gaussian", "x")]
    return {f"{a} - {b}": measured[a].minus(measured[b]) for a, b in pairs if a in measured and b in measured}


def _gap(measured: Mapping[str, Measured]) -> Estimate | None:
    """Structure of the linear part less that of the nonlinear one, (FVU_r / FVU_gr) − (FVU_L / FVU_gL)."""
    names = ("nonlinear", "nonlinear-gaussian", "linear", "linear-gaussian")
    if not all(name in measured for name in names):
        return None
    r, gr, line, gl = (measured[name] for name in names)
    if not (gr.value > 0 and gl.value > 0):
        return None
    first, second = r.value / gr.value, line.value / gl.value
    influence = first * (r.influence - gr.influence) - second * (line.influence - gl.influence)
    return interval(first - second, influence, r.n)
