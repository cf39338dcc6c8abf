"""The commands on activations of real models: decompose, inspect, tokens, train-sae."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from darkmatter import cli_options as o
from darkmatter.cli_errors import one_clear_line
from darkmatter.cli_given import given

app = typer.Typer(add_completion=False)

_MODEL_OPTIONS = (
    "model",
    "text",
    "revision",
    "dtype",
    "device",
    "context_length",
    "batch_docs",
    "skip_first",
    "max_tokens",
    "protocol",
    "tokens",
    "pad_id",
    "column",
    "subset",
    "split",
    "text_revision",
    "skip_last",
    "keep_special",
    "norm_filter",
    "bos",
    "max_documents",
    "min_length",
    "pack",
)


@app.command()
@one_clear_line
def decompose(
    ctx: typer.Context,
    acts: Annotated[
        Path | None, typer.Option(help="Activations x, (n, d): .npy or .safetensors.", rich_help_panel="Arrays")
    ] = None,
    recon: Annotated[
        list[str] | None,
        typer.Option(help="Reconstructions Sae(x): PATH or NAME=PATH; repeatable.", rich_help_panel="Arrays"),
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Document id of every row.", rich_help_panel="Arrays")] = None,
    model: Annotated[str | None, typer.Option(help="Model folder or hub id.", rich_help_panel=o.MODEL)] = None,
    site: o.Sites = None,
    sae: o.Saes = None,
    sae_glob: o.SaeGlob = None,
    sae_site: o.SaeSites = None,
    family: o.Family = None,
    revision: o.Revision = None,
    dtype: o.Dtype = "float32",
    device: o.Device = "cpu",
    batch_docs: o.BatchDocs = 16,
    preflight: o.Preflight = True,
    force: o.Force = False,
    text: o.Text = None,
    tokens: o.TokenFile = None,
    pad_id: o.PadId = None,
    column: o.Column = "text",
    subset: o.Subset = None,
    split: o.Split = None,
    text_revision: o.TextRevision = None,
    protocol: o.ProtocolName = "default",
    context_length: o.Context = None,
    bos: o.Bos = None,
    skip_first: o.SkipFirst = None,
    skip_last: o.SkipLast = None,
    keep_special: o.KeepSpecial = False,
    norm_filter: o.NormFilter = None,
    min_length: o.MinLength = None,
    max_documents: o.MaxDocuments = None,
    max_tokens: o.MaxTokens = None,
    pack: o.Pack = False,
    memory: o.Memory = None,
    precision: o.Precision = "float64",
    cache: o.CacheFolder = None,
    write_cache: o.WriteCache = None,
    folds: o.Folds = 20,
    out: Annotated[Path, typer.Option(help="Folder to write.", rich_help_panel=o.RUN)] = Path("runs/decompose"),
    checkpoint_seconds: o.CheckpointSeconds = 60.0,
    as_json: o.Json = False,
) -> None:
    """Decompose the error of SAEs: from array files (--acts --recon), on a model (--model --site --sae --text), or on
    stored activations (--cache --sae). Start it with torchrun to use several processes.
    """  # noqa: D205, DOC501 - shown by --help
    from darkmatter.commands.decompose import Run, arrays_source, decompose_source, finish, memory_bytes
    from darkmatter.commands.preflight import check_choice, check_run
    from darkmatter.errors import InputError

    check_run(folds=folds, out=out, device="cpu" if device == "auto" else device, checkpoint_seconds=checkpoint_seconds)
    check_choice("precision", precision, ("float64", "split"))
    run = Run(
        folds=folds,
        out=out,
        checkpoint_seconds=checkpoint_seconds,
        device="cpu" if device == "auto" else device,
        precision=precision,  # type: ignore[arg-type]  # checked above
        memory=memory_bytes(memory),
        as_json=as_json,
    )
    if [acts, model, cache].count(None) != 2:
        raise InputError(
            "expected one of --acts with --recon, --model with --site, --sae and --text, or --cache with --sae"
        )
    if acts is not None:
        _refuse(ctx, "--acts", _ONLY_MODEL + _ONLY_SAES)
        source = arrays_source(acts, recon or [], docs)
        finish(decompose_source(source, run), source.description, run)
        return
    from darkmatter.commands.decompose_model import SaeOptions, run_cache, run_model

    if not (sae or sae_glob):
        raise InputError("no SAE is given, expected --sae or --sae-glob")
    chosen = SaeOptions(
        saes=sae or (),
        pattern=sae_glob,
        sites=sae_site or (),
        family=family,
        preflight=preflight,
        force=force,
        write_cache=write_cache,
    )
    if cache is not None:
        _refuse(ctx, "--cache", (*_ONLY_MODEL, "recon"))
        run_cache(cache, docs, chosen, run)
        return
    _refuse(ctx, "--model", ("recon", "docs"))
    if not site or (text is None and tokens is None):
        raise InputError("--model needs --site, --sae, and --text or --tokens")
    run_model(_model_options(ctx, site[0]), site, chosen, run)


@app.command()
@one_clear_line
def inspect(
    place: Annotated[
        str, typer.Argument(metavar="MODEL|SAE", help="Folder, file or hub id, such as owner/name/folder@rev.")
    ],
    family: o.Family = None,
    revision: o.Revision = None,
    as_json: o.Json = False,
) -> None:
    """Say what an SAE or a model is: sites, shapes, family, advertised site and L0, and what will be applied."""
    from darkmatter.commands.inspect import run_inspect

    run_inspect(place, family=family, revision=revision, as_json=as_json)


@app.command("tokens")
@one_clear_line
def tokens_needed(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="report.json of a pilot run, or its folder.")],
    quantity: Annotated[str, typer.Option(help="Number whose interval is planned for.")] = "fvu_nonlinear",
    half_width: Annotated[
        str, typer.Option(help="Half of the interval: 1% of the pilot's value, or 0.002 of its unit.")
    ] = "1%",
    sae: Annotated[list[str] | None, typer.Option(help="Only this SAE; repeatable.")] = None,
    folds: Annotated[int | None, typer.Option(help="Folds of the planned run; the pilot's by default.")] = None,
    as_json: o.Json = False,
) -> None:
    """Tell, from a pilot run, how many tokens a wanted interval needs."""
    from darkmatter.commands.token_plan import WantedWidth, run_tokens

    wanted = WantedWidth(quantity=quantity, half_width=half_width, saes=tuple(sae or ()), folds=folds)
    run_tokens(report, wanted, as_json=as_json)


@app.command("train-sae")
@one_clear_line
def train_sae(
    ctx: typer.Context,
    model: o.ModelFolder,
    site: o.Site,
    out: Annotated[Path, typer.Option(help="Folder to write the SAE to.", rich_help_panel=o.RUN)],
    architecture: o.Architecture = "topk",
    latents: o.Latents = 512,
    k: o.K = 16,
    target_l0: o.TargetL0 = None,
    l1: o.L1 = None,
    l0_coefficient: o.L0Coefficient = None,
    bandwidth: o.Bandwidth = None,
    groups: o.Groups = None,
    train_tokens: o.TrainTokens = 1_000_000,
    batch_size: o.BatchSize = 2048,
    lr: o.Lr = 8e-3,
    warmup_share: o.WarmupShare = 0.05,
    decay_share: o.DecayShare = 0.5,
    max_grad_norm: o.MaxGradNorm = 0.1,
    standardise: o.Standardise = True,
    normalise_decoder: o.NormaliseDecoder = True,
    rank_by_norm: o.RankByNorm = True,
    decoder_init_norm: o.DecoderInitNorm = 1.0,
    tie_b_dec: o.TieBDec = False,
    encode_dtype: o.EncodeDtype = "float32",
    dead_after: o.DeadAfter = None,
    report_every: o.ReportEvery = 32,
    seed: Annotated[int, typer.Option(help="Seed of weights, revivals and order.", rich_help_panel=o.TRAINED)] = 0,
    text: o.Text = None,
    tokens: o.TokenFile = None,
    pad_id: o.PadId = None,
    column: o.Column = "text",
    subset: o.Subset = None,
    split: o.Split = None,
    text_revision: o.TextRevision = None,
    protocol: o.ProtocolName = "default",
    context_length: o.Context = None,
    bos: o.Bos = None,
    skip_first: o.SkipFirst = None,
    skip_last: o.SkipLast = None,
    keep_special: o.KeepSpecial = False,
    norm_filter: o.NormFilter = None,
    min_length: o.MinLength = None,
    max_documents: o.MaxDocuments = None,
    max_tokens: o.MaxTokens = None,
    pack: o.Pack = False,
    revision: o.Revision = None,
    dtype: o.Dtype = "float32",
    device: o.Device = "cpu",
    batch_docs: o.BatchDocs = 16,
    export: o.Exports = None,
    checkpoint_seconds: o.CheckpointSeconds = 60.0,
    as_json: o.Json = False,
) -> None:
    """Train an SAE of any architecture on one site of a Hugging Face model."""
    from darkmatter.commands.train_sae import run_train_sae, train_config

    settings = given(ctx, *_MODEL_OPTIONS, "site", "out", "export", "checkpoint_seconds", "as_json")
    run_train_sae(
        _model_options(ctx, site),
        train_config(settings),
        out=out,
        exports=tuple(export or ()),
        checkpoint_seconds=checkpoint_seconds,
        as_json=as_json,
    )


_ONLY_MODEL = (*(name for name in _MODEL_OPTIONS if name not in ("model", "device")), "site", "sae_site")
_ONLY_MODEL += ("force", "write_cache")
_ONLY_SAES = ("sae", "sae_glob", "family", "memory")


def _refuse(ctx: typer.Context, mode: str, names: tuple[str, ...]) -> None:
    """Refuse options that would be ignored without a word.

    Raises:
        InputError: One of them was given.
    """
    from darkmatter.errors import InputError

    meaningless = sorted(given(ctx).keys() & {name.replace("_", "-") for name in names})
    if meaningless:
        raise InputError(f"--{meaningless[0]} has no meaning with {mode}: leave it out")


def _model_options(ctx: typer.Context, site: str) -> Any:
    from darkmatter.commands.model_options import ModelOptions
    from darkmatter.commands.preflight import check_choice

    values = {name: ctx.params[name] for name in _MODEL_OPTIONS}
    if values["bos"] is not None:
        check_choice("bos", values["bos"], ("prepend", "auto", "none"))
    values["keep_special"] = values["keep_special"] or None  # the protocol decides where nothing is said
    return ModelOptions(site=site, **values)
