"""`darkmatter synth`: a world with known truth, an SAE on it, the decomposition beside the truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from darkmatter.commands.console import Steps, put, say, show_results, steps
from darkmatter.commands.preflight import check_run
from darkmatter.decomposition import decompose_many
from darkmatter.errors import FileFormatError, InputError
from darkmatter.files import write_json
from darkmatter.inference import Estimate
from darkmatter.plots import save_decomposition_figure
from darkmatter.report import Report
from darkmatter.sae import SAE, TrainConfig, load_sae, load_sae_metadata, save_sae, train_topk
from darkmatter.sandbox import Surgical, World
from darkmatter.sandbox.truth import truth_tokens
from darkmatter.solve import check_enough_tokens
from darkmatter.store import Checkpoint

PROBE_RATIO = 8
"""Tokens of the true nonlinear share, in multiples of those decomposed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthRun:
    """One run of `darkmatter synth`.

    Attributes:
        world: The world.
        surgical: Take this surgical SAE instead of training one.
        train: How to train an SAE otherwise.
        n_tokens: Tokens to decompose.
        folds: Document folds.
        truth_tokens: Tokens of the regression on the true factors, or None for 20 per factor.
        out: Folder to write.
        as_json: Print the report as JSON instead of a table.
    """

    world: World
    surgical: Surgical | None
    train: TrainConfig
    n_tokens: int
    folds: int
    truth_tokens: int | None
    out: Path
    as_json: bool


def run_synth(run: SynthRun) -> None:
    """Build the world, get the SAE, decompose, compare with the truth, and write everything to the folder."""
    check_run(folds=run.folds, out=run.out)
    truth_tokens(run.world, run.truth_tokens)
    run.world.pair(_nothing, n_tokens=run.n_tokens)
    check_enough_tokens(run.n_tokens * (run.folds - 1) // run.folds, run.world.d_model)
    with steps() as bars:
        sae, training = _sae(run, bars)
        name = "surgical" if run.surgical else "sae"
        source = run.world.pair({name: sae}, n_tokens=run.n_tokens)
        checkpoint = Checkpoint(run.out / "checkpoint")
        with bars.stage("decompose", run.n_tokens) as stage:
            results = decompose_many(source, folds=run.folds, checkpoint=checkpoint, progress=stage)
        # the truth must be much sharper than the interval that it judges
        with bars.stage("truth", None) as stage:
            truth = run.world.truth(
                sae, n_tokens=run.truth_tokens, probe_tokens=PROBE_RATIO * run.n_tokens, progress=stage
            )
    report = Report(saes=results, source=source.description, truth={name: truth}, training={name: training})
    shares: Mapping[str, Mapping[str, Estimate]] = {name: truth.shares()}
    save_decomposition_figure(run.out / "decomposition.png", results, shares)
    write_json(run.out / "report.json", report.to_dict())
    checkpoint.clear()
    if run.as_json:
        put(json.dumps(report.to_dict(), indent=2, allow_nan=False))
        return
    show_results(results, {name: truth})
    inside = results[name].fvu_nonlinear.contains(truth.nonlinear.value)
    put(f"True nonlinear share (introduced + interference): {'inside' if inside else 'OUTSIDE'} the 95 % interval.")
    say(f"Wrote {run.out}/report.json and decomposition.png" + ("" if run.surgical else " and the SAE in sae/"))


def _nothing(x: Tensor) -> Tensor:
    """Stand in for the SAE while the other options are checked."""
    return x


def _sae(run: SynthRun, bars: Steps) -> tuple[Surgical | SAE | Callable[[Tensor], Tensor], dict[str, Any]]:
    """The surgical SAE, the one an earlier run of the same command trained, or a freshly trained one."""
    if run.surgical:
        run.surgical.features(run.world.n_features)
        return run.surgical, run.surgical.to_dict()
    folder = run.out / "sae"
    recipe = {"world": run.world.to_dict(), "config": asdict(run.train)}
    if (folder / "cfg.json").exists():
        known = _recipe_of(folder)
        if {key: known.get(key) for key in recipe} == recipe:
            say(f"Using the SAE that this same command trained before, in {folder}")
            return load_sae(folder), known
    with bars.stage("train SAE", run.train.n_tokens) as stage:
        trained = train_topk(run.world.activations(run.train.n_tokens, stream="train"), run.train, progress=stage.loss)
    training = {**recipe, **trained.describe()}
    save_sae(trained.sae, folder, metadata=training)  # before anything else can fail
    return trained.sae, training


def _recipe_of(folder: Path) -> dict[str, Any]:
    try:
        return load_sae_metadata(folder)
    except FileFormatError as error:
        raise InputError(f"{error}; or choose another --out, or delete {folder}") from None
