"""`darkmatter train-on-error`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from darkmatter.cli_analyses.app import app
from darkmatter.cli_data import DataOptions, data_command

_SAE, _PARTS, _INTERP = "SAEs to train", "Analysis", "Automated interpretation"


def _option(text: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


@data_command(app, "train-on-error")
def train_on_error(
    options: DataOptions,
    of: Annotated[str | None, _option("SAE whose error is meant (default: the first).", _PARTS)] = None,
    target: Annotated[
        list[str] | None,
        _option(
            "linear, nonlinear, x, linear-gaussian, nonlinear-gaussian or isotropic; repeatable (default: all but the "
            "last).",
            _PARTS,
        ),
    ] = None,
    rank: Annotated[
        int | None, _option("Leading directions kept of every target (default: as many as the least has).", _PARTS)
    ] = None,
    whiten: Annotated[bool, _option("Give all kept directions equal variance.", _PARTS, "--whiten")] = False,
    export_latents: Annotated[int, _option("Latents per SAE whose contexts are written.", _PARTS)] = 1024,
    contexts: Annotated[int, _option("Contexts kept per latent: strongest, and as many by lot.", _PARTS)] = 10,
    latents: Annotated[int | None, _option("Latents (default: 512).", _SAE)] = None,
    k: Annotated[int | None, _option("Active latents per token (default: 16).", _SAE, "--k")] = None,
    architecture: Annotated[
        str | None, _option("topk, batchtopk, matryoshka, relu, jumprelu or gated (default: topk).", _SAE)
    ] = None,
    target_l0: Annotated[
        float | None, _option("Active latents per token to steer to: relu, jumprelu, gated.", _SAE)
    ] = None,
    train_tokens: Annotated[
        int | None, _option("Tokens for every SAE (default: the training documents once; 1,000,000 if unknown).", _SAE)
    ] = None,
    batch_size: Annotated[int | None, _option("Tokens per step (default: 2048).", _SAE)] = None,
    lr: Annotated[float | None, _option("Peak learning rate (default: 0.008).", _SAE)] = None,
    endpoint: Annotated[
        str | None,
        _option("Base address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1.", _INTERP),
    ] = None,
    interp_model: Annotated[str | None, _option("The judge: name of a model on that server.", _INTERP)] = None,
    api_key_env: Annotated[
        str | None, _option("Environment variable that holds the key (default: OPENAI_API_KEY, if set).", _INTERP)
    ] = None,
    interp_latents: Annotated[int, _option("Latents per SAE that the judge is asked about.", _INTERP)] = 50,
    interp_contexts: Annotated[int, _option("Active and inactive contexts each to detect.", _INTERP)] = 5,
    timeout: Annotated[float, _option("Seconds for one request.", _INTERP)] = 60.0,
    retries: Annotated[int, _option("Repeats of a failed request.", _INTERP)] = 4,
) -> None:
    """Train SAEs on the linear and nonlinear parts of an SAE's error, at equal variance, rank and settings.

    Are nonlinear errors harder to learn sparsely than linear ones? The same SAE is trained on the linear error, the
    nonlinear error, x, and Gaussian noise of equal covariance; FVU is compared on held-out documents. Latents are
    written with the contexts in which they are active; --endpoint lets a language model explain and detect them.

    It TRAINS, five SAEs by default, and every one reads the data again: the expected time is printed first. For a
    model, store activations once (`darkmatter decompose --write-cache`) and pass --cache.
    """
    from darkmatter.commands.analyses.train_on_error import Judge, Plan, run_train_on_error

    chosen = {
        "latents": latents,
        "k": k,
        "architecture": architecture,
        "target-l0": target_l0,
        "train-tokens": train_tokens,
        "batch-size": batch_size,
        "lr": lr,
    }
    judge = Judge(
        endpoint=endpoint,
        model=interp_model,
        key_variable=api_key_env,
        latents=interp_latents,
        contexts=interp_contexts,
        timeout=timeout,
        retries=retries,
    )
    plan = Plan(
        of=of,
        targets=tuple(target or ()),
        rank=rank,
        whiten=whiten,
        export_latents=export_latents,
        contexts=contexts,
        training={name: value for name, value in chosen.items() if value is not None},
    )
    run_train_on_error(options, plan, judge)
