"""`darkmatter train-on-error`: SAEs on the parts of an error, their latents, and what a judge makes of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from darkmatter.analyses.error_saes import (
    DEFAULT,
    ContextPlan,
    TrainOnError,
    chosen,
    estimate_training,
    train_on_error,
)
from darkmatter.analyses.interp import Answers, Endpoint, Interpretation, LatentTask, interpret
from darkmatter.cli_data import DataOptions
from darkmatter.commands.analyses.data import Data, open_data
from darkmatter.commands.analyses.error_latents import latent_file, latent_tasks, renderer
from darkmatter.commands.analyses.error_table import show_interpretation, show_training
from darkmatter.commands.analyses.finish import finish
from darkmatter.commands.console import Steps, steps
from darkmatter.commands.train_sae import train_config
from darkmatter.errors import InputError
from darkmatter.files import write_json
from darkmatter.plots_analyses.train_on_error import save_error_saes_figure
from darkmatter.sae import TrainConfig
from darkmatter.sandbox.matching import match_latents

NAME = "train-on-error"
JUDGED = ("linear", "nonlinear", "nonlinear-gaussian")
"""SAEs whose latents a judge is asked about, where they were trained: the last has nothing to say about any text."""

_LEARNED = 0.8
_POINTS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to train; see the command's options.

    Attributes:
        of: The SAE whose error is meant.
        targets: Targets; none is the default.
        rank: Directions kept.
        whiten: Equal variance of all directions.
        export_latents: Latents written per SAE.
        contexts: Contexts per latent.
        training: Settings of `train_config` by option name.
    """

    of: str | None
    targets: tuple[str, ...]
    rank: int | None
    whiten: bool
    export_latents: int
    contexts: int
    training: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """How to interpret latents; see the command's options.

    Attributes:
        endpoint: Base address; None interprets nothing.
        model: The judge.
        key_variable: Environment variable of the key.
        latents: Latents per SAE.
        contexts: Active and inactive contexts each.
        timeout: Seconds for one request.
        retries: Repeats.
    """

    endpoint: str | None
    model: str | None
    key_variable: str | None = field(repr=False)
    latents: int
    contexts: int
    timeout: float
    retries: int

    def open(self) -> Endpoint | None:
        """The endpoint, with the key from the environment; None without --endpoint.

        Raises:
            InputError: Options that do not go together, or a variable that is not set.
        """
        if self.endpoint is None:
            if self.model is not None or self.key_variable is not None:
                raise InputError("--interp-model and --api-key-env have no meaning without --endpoint: give it, too")
            return None
        if self.model is None:
            raise InputError("--endpoint needs --interp-model: the judge's name on that server")
        if self.latents < 2 or self.contexts < 1 or self.retries < 0 or not self.timeout > 0:
            raise InputError("expected --interp-latents ≥ 2, --interp-contexts ≥ 1, --retries ≥ 0 and --timeout > 0")
        key = os.environ.get(self.key_variable or "OPENAI_API_KEY")
        if key is None and self.key_variable is not None:
            raise InputError(f"the environment variable {self.key_variable} is not set, expected the API key")
        return Endpoint(self.endpoint, self.model, api_key=key, timeout=self.timeout, retries=self.retries)


def run_train_on_error(options: DataOptions, plan: Plan, judge: Judge) -> None:
    """Train, evaluate, write, and then ask the judge: what is trained is on disk before.

    Args:
        options: The shared options.
        plan: What to train.
        judge: How to interpret.

    Raises:
        InputError: Options that contradict each other, or data that cannot be used.
    """
    endpoint = judge.open()
    if plan.export_latents < 1 or plan.contexts < 1:
        raise InputError("expected --export-latents and --contexts of at least 1")
    with steps() as bars:
        data = open_data(options, bars)
        chosen(data.source, plan.of, plan.targets or DEFAULT)
        config = _config(plan, data)
        if endpoint is not None:
            if data.activations is None or data.activations.loaded.tokenizer is None:
                raise InputError("--endpoint needs the words of the tokens, expected --model with --text")
            endpoint.complete([{"role": "user", "content": "Answer with: ready"}])  # before hours of training
        result = _train(plan, judge, data, config, bars)
        directions_truth = _truth(result)
        _write_latents(result, data)
        more: dict[str, Any] = {"truth": directions_truth} if data.world is not None else {}
        found = None
        if endpoint is not None:
            _finish(result, replace(data, as_json=False), more, None, quiet=True)
            found = _interpret(result, judge, endpoint, data, bars)
            more["interpretation"] = found
    _finish(result, data, more, found)


def _finish(
    result: TrainOnError, data: Data, more: Mapping[str, Any], found: Interpretation | None, *, quiet: bool = False
) -> None:
    def show() -> None:
        if not quiet:
            show_training(result)
            if found is not None:
                show_interpretation(found)

    finish(NAME, result, data, draw=lambda path: save_error_saes_figure(path, result, found), show=show, more=more)


def _config(plan: Plan, data: Data) -> TrainConfig:
    given = {**plan.training, "seed": data.seed}
    if "train-tokens" not in given and data.n_tokens is not None:
        tokens = max(1, data.n_tokens * 4 // 5)
        given = {"batch-size": max(1, min(2048, tokens // 8)), **given, "train-tokens": tokens}
    config = train_config(given)
    return replace(config, report_every=max(1, config.n_steps // _POINTS))


def _train(plan: Plan, judge: Judge, data: Data, config: TrainConfig, bars: Steps) -> TrainOnError:
    targets = plan.targets or DEFAULT
    name, _ = chosen(data.source, plan.of, targets)
    controls = [f"nonlinear{other.removeprefix(name)}" for other in data.source.names if other.startswith(f"{name}~")]
    left = [target for target in (*targets, *controls) if not (data.out / "saes" / target / "cfg.json").exists()]
    if left:
        bars.say(str(estimate_training(data.source, config, len(left))))
    judged = judge.endpoint is not None
    contexts = ContextPlan(
        latents=plan.export_latents,
        top=plan.contexts,
        sample=max(plan.contexts, 4 * judge.contexts) if judged else plan.contexts,
        others=max(200, 20 * judge.contexts) if judged else 200,
    )
    return train_on_error(
        data.source,
        config,
        of=plan.of,
        targets=targets,
        rank=plan.rank,
        whiten=plan.whiten,
        folds=data.folds,
        seed=data.seed,
        moments=data.moments(bars),
        directions=_directions(plan, data),
        plan=contexts,
        folder=data.out,
        stages=bars.stage,
        device=data.device,
    )


def _directions(plan: Plan, data: Data) -> dict[str, torch.Tensor]:
    """Latents of the SAE, and in a world the features that it has and has not learned."""
    name = data.source.names[0] if plan.of is None else plan.of
    sae = data.saes.get(name)
    found = {} if sae is None else {"original": sae.W_dec}
    if data.world is None or (sae is None and data.surgical is None):
        return found
    features = data.world.dictionary_matrix
    if data.surgical is not None and name == "surgical":
        learned = np.zeros(len(features), dtype=bool)
        learned[data.surgical.features(len(features))] = True
    elif sae is not None:
        learned = match_latents(features, sae.W_dec.float().cpu().numpy(), near=0.5).best_cosine >= _LEARNED
    else:
        return found
    rows = torch.from_numpy(features).float()
    return {**found, "absent": rows[torch.from_numpy(~learned)], "learned": rows[torch.from_numpy(learned)]}


def _truth(result: TrainOnError) -> dict[str, Any]:
    """What a world says: how many features there are to find."""
    first = next(iter(result.targets.values()))
    return {
        f"n_{name}": first.alignment[name].n_directions for name in ("absent", "learned") if name in first.alignment
    }


def _write_latents(result: TrainOnError, data: Data) -> None:
    render = renderer(None if data.activations is None else data.activations.loaded.tokenizer)
    original = data.saes.get(result.name)
    for target in result.targets:
        about = latent_file(result, target, original=original, render=render)
        write_json(data.out / "latents" / f"{target}.json", about)


def _interpret(result: TrainOnError, judge: Judge, endpoint: Endpoint, data: Data, bars: Steps) -> Interpretation:
    assert data.activations is not None
    render = renderer(data.activations.loaded.tokenizer)
    tasks: dict[str, list[LatentTask]] = {}
    for number, target in enumerate(name for name in JUDGED if name in result.targets):
        rng = np.random.default_rng([data.seed, number])
        tasks[target] = latent_tasks(
            result.measured[target], render, n_latents=judge.latents, n_contexts=judge.contexts, rng=rng
        )
    if not tasks:
        raise InputError(f"no SAE to interpret, expected one of the targets {', '.join(JUDGED)}")
    answers = Answers(endpoint.complete, endpoint.model, data.out / "interpretation.jsonl")
    with bars.stage("interpret", sum(len(members) for members in tasks.values()), unit="latents") as stage:
        return interpret(tasks, answers, model=endpoint.model, seed=data.seed, progress=stage)
