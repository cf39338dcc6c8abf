"""Carry out one experiment: get the SAE, decompose its error, and set the truth and the recovery beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from darkmatter.commands.closed_form import closed_form
from darkmatter.commands.console import Steps
from darkmatter.commands.preflight import check_run
from darkmatter.commands.training import trained_sae
from darkmatter.decomposition import decompose_many
from darkmatter.report import Report
from darkmatter.results import Decomposition, to_plain
from darkmatter.sae import SAE
from darkmatter.sandbox import Surgical
from darkmatter.sandbox.experiment import Experiment
from darkmatter.sandbox.factor_fit import check_memory
from darkmatter.sandbox.recovery import Recovery, recover
from darkmatter.sandbox.truth import Truth, truth_tokens
from darkmatter.solve import check_enough_tokens
from darkmatter.store import Checkpoint
from darkmatter.theory import SyntheticTest

PROBE_RATIO = 8
"""Tokens of the true nonlinear share, in multiples of those decomposed."""

RECOVERY_TOKENS = 65_536
"""Tokens on which latents are compared with features."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What one experiment found.

    Attributes:
        name: Name of the SAE in the report: "sae" or "surgical".
        sae: The trained SAE; None for a surgical one.
        decomposition: Its error, decomposed.
        truth: What the error is really made of; None if it was not asked for.
        recovery: Latents against true features; None for a surgical SAE, or if it was not asked for.
        theory: Closed form of the paper's synthetic test; None where the experiment is not that test.
        report: Everything, as one report.
    """

    name: str
    sae: SAE | None
    decomposition: Decomposition
    truth: Truth | None
    recovery: Recovery | None
    theory: SyntheticTest | None
    report: Report

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types; equal experiments give the same text."""
        plain = self.report.to_dict()
        if self.recovery is not None:
            plain["recovery"] = {self.name: to_plain(self.recovery.summary())}
        if self.theory is not None:
            plain["theory"] = {self.name: {"theorem": "T7", **to_plain(self.theory)}}
        return plain


def check_experiment(experiment: Experiment, *, out: Path) -> None:
    """Check all that can be checked before any work is done.

    Args:
        experiment: The experiment.
        out: Folder to write.

    Raises:
        InputError: A value that cannot be, or too few tokens.
    """
    world = experiment.world
    check_run(folds=experiment.folds, out=out)
    closed = False
    if isinstance(experiment.sae, Surgical):
        experiment.sae.features(world.n_features)
        closed = experiment.sae.closed_form(world)
    if experiment.truth and not closed:
        truth_tokens(world, experiment.truth_tokens)
        check_memory(world.n_features + world.dense_dim)
    world.pair(_nothing, n_tokens=experiment.n_tokens)
    check_enough_tokens(experiment.n_tokens * (experiment.folds - 1) // experiment.folds, world.d_model)


def measure(experiment: Experiment, *, folder: Path, bars: Steps) -> Outcome:
    """Carry out an experiment; what is in its folder from an interrupted run of the same one is used.

    Args:
        experiment: The experiment.
        folder: Where a trained SAE goes (`sae/`), and the sums while they grow (`checkpoint/`, removed at the end).
        bars: Progress.

    Returns:
        The outcome.
    """
    world, trained = experiment.world, None
    sae: Surgical | SAE
    if isinstance(experiment.sae, Surgical):
        name, sae, training = "surgical", experiment.sae, experiment.sae.to_dict()
    else:
        name = "sae"
        sae, training = trained_sae(world, experiment.sae, folder=folder, bars=bars)
        trained = sae
    source = world.pair({name: sae}, n_tokens=experiment.n_tokens)
    checkpoint = Checkpoint(folder / "checkpoint")
    with bars.stage("decompose", experiment.n_tokens) as stage:
        result = decompose_many(source, folds=experiment.folds, checkpoint=checkpoint, progress=stage)[name]
    truth = recovery = None
    if experiment.truth:
        with bars.stage("truth", None) as stage:
            # the truth must be much sharper than the interval that it judges
            probe = PROBE_RATIO * experiment.n_tokens
            truth = world.truth(sae, n_tokens=experiment.truth_tokens, probe_tokens=probe, progress=stage)
    if experiment.recovery and trained is not None:
        with bars.stage("recovery", RECOVERY_TOKENS) as stage:
            recovery = recover(world, trained, n_tokens=RECOVERY_TOKENS, progress=stage)
    return Outcome(
        name=name,
        sae=trained,
        decomposition=result,
        truth=truth,
        recovery=recovery,
        theory=closed_form(experiment),
        report=Report(
            saes={name: result},
            source=source.description,
            truth={} if truth is None else {name: truth},
            training={name: training},
        ),
    )


def _nothing(x: Tensor) -> Tensor:
    """Stand in for the SAE while the other options are checked."""
    return x
