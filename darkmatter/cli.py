"""The command line. Options live here; what commands do is imported only when one runs, so that --help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from darkmatter import __version__
from darkmatter import cli_options as o
from darkmatter.cli_analyses import app as analyses
from darkmatter.cli_errors import one_clear_line
from darkmatter.cli_given import given
from darkmatter.cli_models import app as models

app = typer.Typer(
    name="darkmatter",
    help="Where does my sparse autoencoder's reconstruction error come from, and how sure are we?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

CELLS_FAILED = 3
"""Exit code of a sweep some of whose cells failed; the others are saved."""

PROOF_FAILED = 1
"""Exit code of `prove` when a claim does not stand as its page says."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"darkmatter {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
@one_clear_line
def synth(
    ctx: typer.Context,
    features: o.Features = 4096,
    d_model: o.DModel = 256,
    l0: o.L0 = 32.0,
    firing: o.Firing = "zipf",
    zipf: o.Zipf = 1.0,
    amplitude: o.Amplitude = "exponential",
    amplitude_shape: o.AmplitudeShape = 1.0,
    amplitude_first: o.AmplitudeFirst = 1.0,
    amplitude_last: o.AmplitudeLast = 1.0,
    dictionary: o.Dictionary = "random",
    clusters: o.Clusters = 64,
    similarity: o.Similarity = 0.5,
    topics: o.Topics = 16,
    topic_strength: o.TopicStrength = 0.2,
    doc_tokens: o.DocTokens = 128,
    correlation: o.Correlation = 0.0,
    factors: o.Factors = 25,
    roots: o.Roots = 0,
    branching: o.Branching = 4,
    depth: o.Depth = 0,
    siblings: o.Siblings = "independent",
    exclusion: o.Exclusion = 1,
    dense_dim: o.DenseDim = 32,
    dense: o.Dense = "gaussian",
    dense_share: o.DenseShare = 0.1,
    dense_df: o.DenseDf = 5.0,
    architecture: o.Architecture = "topk",
    latents: o.Latents = 1024,
    k: o.K = 32,
    target_l0: o.TargetL0 = None,
    l1: o.L1 = None,
    l0_coefficient: o.L0Coefficient = None,
    bandwidth: o.Bandwidth = None,
    groups: o.Groups = None,
    train_tokens: o.TrainTokens = 700_000,
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
    surgical: o.IsSurgical = False,
    learned: o.Learned = "1024",
    shrinkage: o.Shrinkage = 0.1,
    tilt: o.Tilt = 0.0,
    splitting: o.Splitting = 0.0,
    splitting_angle: o.SplittingAngle = 30.0,
    absorption: o.Absorption = 0.0,
    introduced: o.Introduced = "independent",
    introduced_share: o.IntroducedShare = 0.03,
    preset: o.PresetName = None,
    config: o.Config = None,
    tokens: o.Tokens = 32_768,
    folds: o.Folds = 20,
    truth: o.Truth = True,
    truth_tokens: o.TruthTokens = None,
    recovery: o.Recovery = True,
    seed: o.Seed = 0,
    sae_seed: o.SaeSeed = 0,
    export: o.Exports = None,
    out: o.Out = Path("runs/synth"),
    as_json: o.Json = False,
) -> None:
    """Make a world with known truth, train an SAE on it, and set the decomposition beside the truth.

    Options override --config, which overrides --preset, which overrides the defaults shown here.
    """
    from darkmatter.commands.presets import show_presets
    from darkmatter.commands.settings import resolve
    from darkmatter.commands.synth import SynthRun, run_synth

    if preset == "help":
        show_presets(as_json=as_json)
        return
    options = given(ctx, "preset", "config", "export", "out", "as_json")
    experiment = resolve(preset_name=preset, config=config, options=options)
    run_synth(SynthRun(experiment=experiment, exports=tuple(export or ()), out=out, as_json=as_json))


@app.command()
@one_clear_line
def sweep(
    grid: o.Grid = None,
    widths: o.Widths = None,
    k: o.Sparsities = None,
    seeds: o.Seeds = None,
    kinds: o.Kinds = None,
    preset: o.PresetName = None,
    config: o.Config = None,
    cell: o.Share = None,
    list_cells: o.ListCells = False,
    gather: o.Gather = False,
    keep_saes: o.KeepSaes = False,
    out: o.Out = Path("runs/sweep"),
    as_json: o.Json = False,
) -> None:
    """Run a grid of `synth` experiments, resumable and in as many processes as you like; one table, one figure."""  # noqa: DOC501 - the exit code is shown in the docs
    from darkmatter.commands.sweep import SweepRun, run_sweep

    run = SweepRun(
        preset=preset,
        config=config,
        grid=grid or (),
        shorthands={"latents": widths, "k": k, "seed": seeds, "kind": kinds},
        share=cell,
        list_only=list_cells,
        gather_only=gather,
        keep_saes=keep_saes,
        out=out,
        as_json=as_json,
    )
    if run_sweep(run):
        raise typer.Exit(CELLS_FAILED)


@app.command()
@one_clear_line
def presets(as_json: o.Json = False) -> None:
    """List the named experiments."""
    from darkmatter.commands.presets import show_presets

    show_presets(as_json=as_json)


@app.command()
@one_clear_line
def prove(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Theorems (T5b), claims or pages (08); all if none is given."),
    ] = None,
    examples: Annotated[int, typer.Option(help="Cases to try per claim; a costly claim tries fewer.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    twins: Annotated[bool, typer.Option("--twins", help="Also run the wrong twins, which must be caught.")] = False,
    jobs: Annotated[int | None, typer.Option(help="Processes; one per core by default.")] = None,
    list_claims: Annotated[bool, typer.Option("--list", help="List the claims, run nothing.")] = False,
    as_json: o.Json = False,
) -> None:
    """Attack every theorem that the numbers rest on; show what holds, how tightly, and what is false as stated."""  # noqa: DOC501 - the exit code is shown in the docs
    from darkmatter.commands.prove import ProveRun, run_prove

    run = ProveRun(
        names=tuple(names or ()),
        examples=examples,
        seed=seed,
        twins=twins,
        jobs=jobs,
        list_only=list_claims,
        as_json=as_json,
    )
    if not run_prove(run):
        raise typer.Exit(PROOF_FAILED)


@app.command()
@one_clear_line
def bracket(
    fvu: Annotated[float, typer.Option(help="Published FVU, Var e / Var x (a share, not a percentage).")],
    r2: Annotated[float, typer.Option(help="Published R² of the error regressed on x.")],
    as_json: o.Json = False,
) -> None:
    """What a published FVU and R² allow for introduced error (T5a): a calculator for reading papers."""
    from darkmatter.commands.bracket import show_bracket

    show_bracket(fvu, r2, as_json=as_json)


app.add_typer(models)
app.add_typer(analyses)


def main() -> None:
    """Entry point of the ``darkmatter`` command."""
    app()
