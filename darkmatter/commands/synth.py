"""`darkmatter synth`: a world with known truth, an SAE on it, the decomposition beside the truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from darkmatter.commands.console import put, say, show_recovery, show_results, show_theory, steps
from darkmatter.commands.exports import check_exports, write_exports
from darkmatter.commands.measure import Outcome, check_experiment, measure
from darkmatter.errors import InputError
from darkmatter.files import write_json
from darkmatter.inference import Estimate
from darkmatter.plots import save_decomposition_figure
from darkmatter.plots_world import save_world_figure
from darkmatter.sandbox import Surgical
from darkmatter.sandbox.experiment import Experiment
from darkmatter.store import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthRun:
    """One run of `darkmatter synth`.

    Attributes:
        experiment: What to do.
        exports: Formats of other libraries to write the trained SAE in.
        out: Folder to write.
        as_json: Print the report as JSON instead of a table.
    """

    experiment: Experiment
    exports: Sequence[str]
    out: Path
    as_json: bool


def run_synth(run: SynthRun) -> None:
    """Carry out the experiment, and write everything to the folder.

    Args:
        run: What to do, and where.
    """
    _check_exports(run)
    check_experiment(run.experiment, out=run.out)
    with steps() as bars:
        outcome = measure(run.experiment, folder=run.out, bars=bars)
    written = _write(run, outcome)
    Checkpoint(run.out / "checkpoint").clear()
    if run.as_json:
        put(json.dumps(outcome.to_dict(), indent=2, allow_nan=False))
        return
    truth = {} if outcome.truth is None else {outcome.name: outcome.truth}
    show_results({outcome.name: outcome.decomposition}, truth)
    if outcome.theory is not None:
        show_theory(outcome.decomposition, outcome.theory)
    if outcome.recovery is not None:
        show_recovery(outcome.recovery.summary())
    if outcome.truth is not None:
        inside = outcome.decomposition.fvu_nonlinear.contains(outcome.truth.nonlinear.value)
        verdict = "inside" if inside else "OUTSIDE"
        put(f"True nonlinear share (introduced + interference): {verdict} the 95 % interval.")
    say(f"Wrote {', '.join(written)} to {run.out}")


def _write(run: SynthRun, outcome: Outcome) -> list[str]:
    """Write figures, exports and records, the report last; give their names."""
    out = run.out
    shares: Mapping[str, Mapping[str, Estimate]] = (
        {} if outcome.truth is None else {outcome.name: outcome.truth.shares()}
    )
    save_decomposition_figure(out / "decomposition.png", {outcome.name: outcome.decomposition}, shares)
    history = outcome.report.training[outcome.name].get("history")
    save_world_figure(out / "world.png", run.experiment.world, recovery=outcome.recovery, history=history)
    written = ["decomposition.png", "world.png"]
    if outcome.sae is not None:
        written.append("sae/")
        written += write_exports(outcome.sae, out, run.exports)
    if outcome.recovery is not None:
        write_json(out / "recovery.json", outcome.recovery.to_dict())
        written.append("recovery.json")
    write_json(out / "experiment.json", run.experiment.to_dict())
    write_json(out / "report.json", outcome.to_dict())
    return ["report.json", "experiment.json", *written]


def _check_exports(run: SynthRun) -> None:
    sae = run.experiment.sae
    if not isinstance(sae, Surgical):
        check_exports(run.exports, sae.architecture)
    elif run.exports:
        check_exports(run.exports, "relu")  # an unknown format is said first
        raise InputError(f"--export {run.exports[0]} needs a trained SAE, and this one is surgical: leave it out")
