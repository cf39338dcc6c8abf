"""The command line. Options live here; what commands do is imported only when one runs, so that --help is instant."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from darkmatter import __version__
from darkmatter.errors import DarkmatterError

P = ParamSpec("P")
_OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory")

app = typer.Typer(
    name="darkmatter",
    help="Where does my sparse autoencoder's reconstruction error come from, and how sure are we?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Introduced(StrEnum):
    """Kinds of introduced error of a surgical SAE."""

    NONE = "none"
    INDEPENDENT = "independent"
    HETEROSCEDASTIC = "heteroscedastic"
    FUNCTION = "function"


def one_clear_line(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a user can cause into one line on stderr and exit code 2; everything else stays a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except DarkmatterError as error:
            message = str(error)
        except (MemoryError, RuntimeError) as error:
            # torch has no type of its own for a failed allocation on the CPU
            if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
                raise
            message = f"out of memory ({error}): use fewer SAEs at a time, fewer folds, or a machine with more"
        except OSError as error:
            message = f"{error.filename or 'file'}: {error.strerror or error}"
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command again uses what was already saved", err=True)
            raise typer.Exit(130) from None
        else:
            return
        typer.echo("error: " + " ".join(message.split()), err=True)
        raise typer.Exit(2)

    return run


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"darkmatter {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


WORLD, SAE, RUN, MODEL = "World", "SAE", "Run", "Model"
Folds = Annotated[int, typer.Option(help="Folds K of documents.", rich_help_panel=RUN)]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON, nothing else.", rich_help_panel=RUN)]
ModelFolder = Annotated[str, typer.Option("--model", help="Model folder or hub id.", rich_help_panel=MODEL)]
Site = Annotated[str, typer.Option(help="Where to read the model, such as resid_post:2.", rich_help_panel=MODEL)]
Text = Annotated[Path, typer.Option(help="Text: .txt, .json list or .jsonl.", rich_help_panel=MODEL)]
Revision = Annotated[str | None, typer.Option(help="Revision on the hub.", rich_help_panel=MODEL)]
Dtype = Annotated[str, typer.Option(help="Precision of the model.", rich_help_panel=MODEL)]
Device = Annotated[str, typer.Option(help="Torch device of model, SAEs and sums.", rich_help_panel=MODEL)]
Context = Annotated[int, typer.Option(help="Longest sequence in tokens, BOS included.", rich_help_panel=MODEL)]
BatchDocs = Annotated[int, typer.Option(help="Documents per forward pass.", rich_help_panel=MODEL)]
SkipFirst = Annotated[int, typer.Option(help="Positions to drop per document; 1 drops BOS.", rich_help_panel=MODEL)]
MaxTokens = Annotated[int | None, typer.Option(help="Use exactly this many tokens.", rich_help_panel=MODEL)]


@app.command()
@one_clear_line
def synth(
    features: Annotated[int, typer.Option(help="Sparse features m.", rich_help_panel=WORLD)] = 4096,
    d_model: Annotated[int, typer.Option(help="Activation width d.", rich_help_panel=WORLD)] = 256,
    dense_dim: Annotated[int, typer.Option(help="Dense dimensions k.", rich_help_panel=WORLD)] = 32,
    dense_share: Annotated[
        float | None,
        typer.Option(help="Variance share of the dense part (default: 0.1, or 0 if k = 0).", rich_help_panel=WORLD),
    ] = None,
    l0: Annotated[float, typer.Option("--l0", help="Mean features firing per token.", rich_help_panel=WORLD)] = 32.0,
    zipf: Annotated[float, typer.Option(help="Exponent of the firing law.", rich_help_panel=WORLD)] = 1.0,
    dictionary: Annotated[str, typer.Option(help="random or orthonormal.", rich_help_panel=WORLD)] = "random",
    topics: Annotated[int, typer.Option(help="Topics of documents.", rich_help_panel=WORLD)] = 16,
    topic_strength: Annotated[
        float, typer.Option(help="0: independent tokens; 1: topics rule.", rich_help_panel=WORLD)
    ] = 0.2,
    doc_tokens: Annotated[int, typer.Option(help="Tokens per document.", rich_help_panel=WORLD)] = 128,
    latents: Annotated[int, typer.Option(help="Latents of the trained SAE.", rich_help_panel=SAE)] = 1024,
    k: Annotated[int, typer.Option("--k", help="Active latents of the TopK SAE.", rich_help_panel=SAE)] = 32,
    train_tokens: Annotated[int, typer.Option(help="Tokens to train on.", rich_help_panel=SAE)] = 700_000,
    surgical: Annotated[
        bool,
        typer.Option("--surgical", help="Build the SAE from the true parts instead of training.", rich_help_panel=SAE),
    ] = False,
    learned: Annotated[
        int, typer.Option(help="Surgical: features learned, most frequent first.", rich_help_panel=SAE)
    ] = 1024,
    shrinkage: Annotated[float, typer.Option(help="Surgical: s in Sae = (1-s) S1 + N.", rich_help_panel=SAE)] = 0.1,
    introduced: Annotated[
        Introduced, typer.Option(help="Surgical: kind of N.", rich_help_panel=SAE)
    ] = Introduced.INDEPENDENT,
    introduced_share: Annotated[
        float | None, typer.Option(help="Surgical: Var N / Var x (default: 0.03, or 0 for none).", rich_help_panel=SAE)
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to decompose.", rich_help_panel=RUN)] = 32_768,
    truth_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens regressed on the true factors (default: 20 per factor).", rich_help_panel=RUN),
    ] = None,
    folds: Folds = 20,
    seed: Annotated[int, typer.Option(help="Seed of world, training and draws.", rich_help_panel=RUN)] = 0,
    out: Annotated[Path, typer.Option(help="Folder to write.", rich_help_panel=RUN)] = Path("runs/synth"),
    as_json: Json = False,
) -> None:
    """Make a world with known truth, train an SAE on it, and set the decomposition beside the truth."""
    from darkmatter.commands.synth import SynthRun, run_synth
    from darkmatter.sae import TrainConfig
    from darkmatter.sandbox import Surgical, World

    default_share = 0.0 if introduced is Introduced.NONE else 0.03
    world = World(
        n_features=features,
        d_model=d_model,
        dense_dim=dense_dim,
        dense_share=(0.1 if dense_dim else 0.0) if dense_share is None else dense_share,
        l0=l0,
        zipf=zipf,
        dictionary=dictionary,  # type: ignore[arg-type]  # World checks it and names the choices
        topics=topics,
        topic_strength=topic_strength,
        doc_tokens=doc_tokens,
        seed=seed,
    )
    run_synth(
        SynthRun(
            world=world,
            surgical=Surgical(
                learned=min(learned, features),
                shrinkage=shrinkage,
                introduced=introduced.value,
                introduced_share=default_share if introduced_share is None else introduced_share,
                seed=seed,
            )
            if surgical
            else None,
            train=TrainConfig(d_sae=latents, k=k, n_tokens=train_tokens, seed=seed),
            n_tokens=tokens,
            folds=folds,
            truth_tokens=truth_tokens,
            out=out,
            as_json=as_json,
        )
    )


@app.command()
@one_clear_line
def decompose(
    acts: Annotated[
        Path | None, typer.Option(help="Activations x, (n, d): .npy or .safetensors.", rich_help_panel="Arrays")
    ] = None,
    recon: Annotated[
        list[str] | None,
        typer.Option(help="Reconstructions Sae(x): PATH or NAME=PATH; repeatable.", rich_help_panel="Arrays"),
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Document id of every row.", rich_help_panel="Arrays")] = None,
    model: Annotated[str | None, typer.Option(help="Model folder or hub id.", rich_help_panel=MODEL)] = None,
    site: Site = "",
    sae: Annotated[
        list[str] | None, typer.Option(help="SAE folder: PATH or NAME=PATH; repeatable.", rich_help_panel=MODEL)
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Text: .txt, .json list or .jsonl.", rich_help_panel=MODEL)] = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    context_length: Context = 128,
    batch_docs: BatchDocs = 16,
    skip_first: SkipFirst = 1,
    max_tokens: MaxTokens = None,
    folds: Folds = 20,
    out: Annotated[Path, typer.Option(help="Folder to write.", rich_help_panel=RUN)] = Path("runs/decompose"),
    checkpoint_seconds: Annotated[
        float, typer.Option(help="Least time between two saves of the sums.", rich_help_panel=RUN)
    ] = 60.0,
    as_json: Json = False,
) -> None:
    """Decompose the error of SAEs: from array files (--acts --recon), or on a model (--model --site --sae --text)."""  # noqa: DOC501 - shown by --help
    from darkmatter.commands.decompose import arrays_source, run_decompose, sae_source
    from darkmatter.commands.model_options import ModelOptions
    from darkmatter.commands.preflight import check_run
    from darkmatter.errors import InputError

    check_run(folds=folds, out=out, device=device, checkpoint_seconds=checkpoint_seconds)
    if (acts is None) == (model is None):
        raise InputError("expected either --acts with --recon, or --model with --site, --sae and --text")
    if acts is not None:
        source = arrays_source(acts, recon or [], docs)
    else:
        if not (model and site and sae and text):
            raise InputError("--model needs --site, --sae and --text")
        options = ModelOptions(
            model=model,
            site=site,
            text=text,
            revision=revision,
            dtype=dtype,
            device=device,
            context_length=context_length,
            batch_docs=batch_docs,
            skip_first=skip_first,
            max_tokens=max_tokens,
        )
        source = sae_source(options, sae)
    run_decompose(source, folds=folds, out=out, checkpoint_seconds=checkpoint_seconds, device=device, as_json=as_json)


@app.command("train-sae")
@one_clear_line
def train_sae(
    model: ModelFolder,
    site: Site,
    text: Text,
    out: Annotated[Path, typer.Option(help="Folder to write the SAE to.", rich_help_panel=RUN)],
    latents: Annotated[int, typer.Option(help="Latents.", rich_help_panel=SAE)] = 512,
    k: Annotated[int, typer.Option("--k", help="Active latents per token.", rich_help_panel=SAE)] = 16,
    tokens: Annotated[
        int, typer.Option(help="Tokens to train on; the text is repeated.", rich_help_panel=SAE)
    ] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Seed.", rich_help_panel=SAE)] = 0,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    context_length: Context = 128,
    batch_docs: BatchDocs = 16,
    skip_first: SkipFirst = 1,
    max_tokens: MaxTokens = None,
) -> None:
    """Train a TopK SAE on one site of a Hugging Face model."""
    from darkmatter.commands.model_options import ModelOptions
    from darkmatter.commands.train_sae import run_train_sae
    from darkmatter.sae import TrainConfig

    options = ModelOptions(
        model=model,
        site=site,
        text=text,
        revision=revision,
        dtype=dtype,
        device=device,
        context_length=context_length,
        batch_docs=batch_docs,
        skip_first=skip_first,
        max_tokens=max_tokens,
    )
    run_train_sae(options, TrainConfig(d_sae=latents, k=k, n_tokens=tokens, seed=seed), out=out)


def main() -> None:
    """Entry point of the ``darkmatter`` command."""
    app()
