"""Options that every analysis shares: where tokens and SAEs come from. Declared once, added to each command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from darkmatter import cli_options as o
from darkmatter.cli_errors import one_clear_line
from darkmatter.cli_given import given

_ARRAYS = "Arrays"
World = Annotated[
    str | None,
    typer.Option(
        help="A world with known truth: the folder or experiment.json of a `synth` run, or the name of a preset.",
        rich_help_panel="World",
    ),
]
Acts = Annotated[Path | None, typer.Option(help="Activations x, (n, d).", rich_help_panel=_ARRAYS)]
Recon = Annotated[
    list[str] | None, typer.Option(help="Sae(x): PATH or NAME=PATH; repeatable.", rich_help_panel=_ARRAYS)
]
Docs = Annotated[Path | None, typer.Option(help="Document id of every row.", rich_help_panel=_ARRAYS)]
Model = Annotated[str | None, typer.Option(help="Model folder or hub id.", rich_help_panel=o.MODEL)]
Controls = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        help="Null control of the first SAE: shuffled, noise, random or all; repeatable.",
        rich_help_panel=o.RUN,
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of whatever this command draws.", rich_help_panel=o.RUN)]

_SHARED: tuple[tuple[str, Any, Any], ...] = (
    ("world", World, None),
    ("model", Model, None),
    ("site", o.Sites, None),
    ("sae", o.Saes, None),
    ("sae_glob", o.SaeGlob, None),
    ("sae_site", o.SaeSites, None),
    ("family", o.Family, None),
    ("revision", o.Revision, None),
    ("dtype", o.Dtype, "float32"),
    ("device", o.Device, "cpu"),
    ("batch_docs", o.BatchDocs, 16),
    ("preflight", o.Preflight, True),
    ("force", o.Force, False),
    ("text", o.Text, None),
    ("tokens", o.TokenFile, None),
    ("pad_id", o.PadId, None),
    ("column", o.Column, "text"),
    ("subset", o.Subset, None),
    ("split", o.Split, None),
    ("text_revision", o.TextRevision, None),
    ("protocol", o.ProtocolName, "default"),
    ("context_length", o.Context, None),
    ("bos", o.Bos, None),
    ("skip_first", o.SkipFirst, None),
    ("skip_last", o.SkipLast, None),
    ("keep_special", o.KeepSpecial, False),
    ("norm_filter", o.NormFilter, None),
    ("min_length", o.MinLength, None),
    ("max_documents", o.MaxDocuments, None),
    ("max_tokens", o.MaxTokens, None),
    ("pack", o.Pack, False),
    ("cache", o.CacheFolder, None),
    ("acts", Acts, None),
    ("recon", Recon, None),
    ("docs", Docs, None),
    ("control", Controls, None),
    ("folds", o.Folds, 20),
    ("seed", Seed, 0),
    ("out", o.Out, None),
    ("as_json", o.Json, False),
)


@dataclass(frozen=True, slots=True)
class DataOptions:
    """What the shared options say.

    Attributes:
        command: The analysis.
        values: Every option by parameter name.
        given: Those that stand on the command line, by option name without dashes.
    """

    command: str
    values: Mapping[str, Any]
    given: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def data_command(
    app: typer.Typer, name: str, *, panel: str = "The paper's analyses"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command that takes the shared options beside its own.

    Args:
        app: Where to register it.
        name: The command.
        panel: Heading under which the main help lists it.

    Returns:
        A decorator for a function whose first parameter receives `DataOptions`; the others are its own options.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = inspect.get_annotations(function, eval_str=True)
        own = list(inspect.signature(function).parameters.values())[1:]
        parameters = [
            inspect.Parameter(p.name, p.KEYWORD_ONLY, default=p.default, annotation=hints[p.name]) for p in own
        ]
        for key, annotation, default in _SHARED:
            value = Path("runs") / name if key == "out" else default
            parameters.append(
                inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=annotation)
            )

        @functools.wraps(function)
        def run(ctx: typer.Context, **values: Any) -> None:
            shared = {key: values.pop(key) for key, _, _ in _SHARED}
            stated = {key: value for key, value in given(ctx).items() if key.replace("-", "_") in shared}
            function(DataOptions(name, shared, stated), **values)

        first = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        wrapped = one_clear_line(run)
        wrapped.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in (first, *parameters)}
        del wrapped.__wrapped__  # type: ignore[attr-defined]  # typer would read the signature of what is wrapped
        app.command(name, rich_help_panel=panel)(wrapped)
        return wrapped

    return register
