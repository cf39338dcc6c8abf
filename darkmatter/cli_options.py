"""How options are spelled: one annotated type each, in the panels of the help. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

FEATURES, DEPENDENCE, DENSE = "World: features", "World: dependence", "World: dense part"
TRAINED, SURGICAL, RUN, MODEL, GRID = "SAE: trained", "SAE: surgical", "Run", "Model", "Grid"


def _option(text: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


Features = Annotated[int, _option("Sparse features m.", FEATURES)]
DModel = Annotated[int, _option("Activation width d.", FEATURES)]
L0 = Annotated[float, _option("Mean features firing per token.", FEATURES, "--l0")]
Firing = Annotated[str, _option("Firing law: zipf, constant, linear, or a .npy file of m rates.", FEATURES)]
Zipf = Annotated[float, _option("Exponent of the firing law zipf.", FEATURES)]
Amplitude = Annotated[
    str, _option("Amplitude law: exponential, constant, uniform, half-normal, gamma, lognormal.", FEATURES)
]
AmplitudeShape = Annotated[float, _option("k of gamma, σ of lognormal.", FEATURES)]
AmplitudeFirst = Annotated[float, _option("Amplitude scale of the first feature.", FEATURES)]
AmplitudeLast = Annotated[float, _option("… and of the last, linear between.", FEATURES)]
Dictionary = Annotated[
    str,
    _option(
        "Directions: random, orthonormal, low-coherence, clustered, hierarchical, or a .npy file of m unit rows.",
        FEATURES,
    ),
]
Clusters = Annotated[int, _option("Clusters of a clustered dictionary.", FEATURES)]
Similarity = Annotated[float, _option("Cosine with the cluster's centre, or the parent.", FEATURES)]
Topics = Annotated[int, _option("Topics of documents.", DEPENDENCE)]
TopicStrength = Annotated[float, _option("0: independent tokens; 1: topics rule.", DEPENDENCE)]
DocTokens = Annotated[int, _option("Tokens per document.", DEPENDENCE)]
Correlation = Annotated[float, _option("Latent correlation ρ of two features of one factor.", DEPENDENCE)]
Factors = Annotated[int, _option("Latent factors: rank of the correlation.", DEPENDENCE)]
Roots = Annotated[int, _option("Trees of features: a child fires only with its parent.", DEPENDENCE)]
Branching = Annotated[int, _option("Children per parent.", DEPENDENCE)]
Depth = Annotated[int, _option("Levels below the roots.", DEPENDENCE)]
Siblings = Annotated[str, _option("Children of one parent: independent or exclusive.", DEPENDENCE)]
Exclusion = Annotated[int, _option("Size of groups of which at most one fires; 1: none.", DEPENDENCE)]
DenseDim = Annotated[int, _option("Dense dimensions k.", DENSE)]
Dense = Annotated[str, _option("Law: gaussian, student, circles, torus, sphere, swiss-roll, codes.", DENSE)]
DenseShare = Annotated[float, _option("Variance share of the dense part; 0 if k = 0.", DENSE)]
DenseDf = Annotated[float, _option("Degrees of freedom of student.", DENSE)]

Architecture = Annotated[str, _option("topk, batchtopk, matryoshka, relu, jumprelu or gated.", TRAINED)]
Latents = Annotated[int, _option("Latents.", TRAINED)]
K = Annotated[int | None, _option("Active latents per token: topk, batchtopk, matryoshka.", TRAINED, "--k")]
TargetL0 = Annotated[
    float | None, _option("Active latents per token to steer to: relu, jumprelu, gated (default: --k's).", TRAINED)
]
L1 = Annotated[float | None, _option("Price of activation: relu (default: 0.1), gated (0.2).", TRAINED, "--l1")]
L0Coefficient = Annotated[
    float | None, _option("Price of an active latent: jumprelu (default: 0.01).", TRAINED, "--l0-coefficient")
]
Bandwidth = Annotated[float | None, _option("Straight-through kernel: jumprelu (default: 0.05).", TRAINED)]
Groups = Annotated[str | None, _option("Nested prefixes 64+128+…: matryoshka (default: four halvings).", TRAINED)]
TrainTokens = Annotated[int, _option("Tokens to train on.", TRAINED)]
BatchSize = Annotated[int, _option("Tokens per step.", TRAINED)]
Lr = Annotated[float, _option("Peak learning rate.", TRAINED)]
WarmupShare = Annotated[float, _option("Share of the steps with a rising rate.", TRAINED)]
DecayShare = Annotated[float, _option("Share of the steps with a falling rate.", TRAINED)]
MaxGradNorm = Annotated[float, _option("Gradient norm above which steps are scaled down.", TRAINED)]
Standardise = Annotated[bool, _option("Centre and scale activations first.", TRAINED, "--standardise/--no-standardise")]
NormaliseDecoder = Annotated[
    bool, _option("Unit decoder rows while training.", TRAINED, "--normalise-decoder/--no-normalise-decoder")
]
RankByNorm = Annotated[bool, _option("Select by code times decoder norm.", TRAINED, "--rank-by-norm/--no-rank-by-norm")]
DecoderInitNorm = Annotated[float, _option("Norm of decoder rows at the start.", TRAINED)]
TieBDec = Annotated[bool, _option("Subtract b_dec from x.", TRAINED, "--tie-b-dec/--no-tie-b-dec")]
EncodeDtype = Annotated[str, _option("Arithmetic of the encoder: float32 or bfloat16.", TRAINED)]
DeadAfter = Annotated[
    int | None, _option("Silent tokens until a latent is revived (default: 1/15 of the run).", TRAINED)
]
ReportEvery = Annotated[int, _option("Steps between points of the history.", TRAINED)]
SaeSeed = Annotated[int, _option("Seed of the SAE, where it differs from --seed.", RUN)]

IsSurgical = Annotated[
    bool, _option("Build the SAE from the true parts instead of training one.", SURGICAL, "--surgical/--trained")
]
Learned = Annotated[
    str,
    _option("Features learned: a number (most frequent first), a share such as 0.5, or a .npy of indices.", SURGICAL),
]
Shrinkage = Annotated[float, _option("s in Sae = (1-s) S1 + N.", SURGICAL)]
Tilt = Annotated[float, _option("Degrees by which learned directions are off.", SURGICAL)]
Splitting = Annotated[float, _option("Share of the learned features that two latents hold.", SURGICAL)]
SplittingAngle = Annotated[float, _option("Degrees between each of the two and the feature.", SURGICAL)]
Absorption = Annotated[float, _option("Share of the features that a partner can absorb.", SURGICAL)]
Introduced = Annotated[
    str,
    _option("Kind of N: none, independent, heteroscedastic, dense, function, interference or affine.", SURGICAL),
]
IntroducedShare = Annotated[float, _option("Var N / Var x; 0 for none.", SURGICAL)]

PresetName = Annotated[
    str | None, _option("Start from a named experiment; `darkmatter presets` lists them.", RUN, "--preset")
]
Config = Annotated[Path | None, _option("Start from the experiment.json of an earlier run; over --preset.", RUN)]
Tokens = Annotated[int, _option("Tokens to decompose.", RUN)]
Folds = Annotated[int, _option("Folds K of documents.", RUN)]
Truth = Annotated[bool, _option("Measure what the error is made of.", RUN, "--truth/--no-truth")]
TruthTokens = Annotated[int | None, _option("Tokens regressed on the true factors (default: 20 per factor).", RUN)]
Recovery = Annotated[bool, _option("Match latents with true features.", RUN, "--recovery/--no-recovery")]
Seed = Annotated[int, _option("Seed of world, SAE and draws.", RUN)]
Exports = Annotated[
    list[str] | None, _option("Also write the trained SAE for saelens or gemmascope; repeatable.", RUN, "--export")
]
Out = Annotated[Path, _option("Folder to write.", RUN)]
Json = Annotated[bool, _option("Print the result as JSON, nothing else.", RUN, "--json")]

Grid = Annotated[
    list[str] | None,
    _option("Axis NAME=V1,V2,… over any option of `synth`, without its dashes; repeatable.", GRID),
]
Widths = Annotated[str | None, _option("Axis of latents, such as 256,512,1024.", GRID)]
Sparsities = Annotated[
    str | None, _option("Axis of active latents per token: k, or the target L0 where there is a price.", GRID, "--k")
]
Seeds = Annotated[str | None, _option("Axis of seeds, such as 0,1,2 or 0..4.", GRID)]
Kinds = Annotated[str | None, _option("Axis of architectures and kinds of introduced error, such as topk,relu.", GRID)]
Share = Annotated[str | None, _option("Run only share i of N of the cells, such as 3/16.", RUN, "--cell")]
ListCells = Annotated[bool, _option("List the cells and their state, run nothing.", RUN, "--list")]
Gather = Annotated[bool, _option("Write table and figure of what is done, run nothing.", RUN, "--gather")]
KeepSaes = Annotated[bool, _option("Keep every trained SAE, in OUT/saes.", RUN, "--keep-saes")]

TEXT, MANY = "Text and positions", "Many SAEs and processes"

ModelFolder = Annotated[str, _option("Model folder or hub id.", MODEL, "--model")]
Site = Annotated[
    str, _option("Where to read the model: resid_post:2, resid_pre:2, mlp_out:2, attn_z:2, or a path.", MODEL)
]
Sites = Annotated[
    list[str] | None,
    _option(
        "Where to read the model: resid_post:2, resid_pre:2, mlp_out:2, attn_z:2, or a module's path with .input or "
        ".output; repeatable, all in one forward pass.",
        MODEL,
        "--site",
    ),
]
Saes = Annotated[
    list[str] | None,
    _option(
        "SAE folder, file or hub id (owner/name/folder@revision): PLACE or NAME=PLACE; repeatable.", MODEL, "--sae"
    ),
]
SaeGlob = Annotated[
    str | None,
    _option("SAEs by a pattern, local or on the hub, such as 'layer_20/width_*/average_l0_*'.", MODEL, "--sae-glob"),
]
SaeSites = Annotated[
    list[str] | None,
    _option(
        "NAME=SITE for an SAE whose files do not say its site, where there are several; repeatable.",
        MODEL,
        "--sae-site",
    ),
]
Family = Annotated[
    str | None,
    _option(
        "Family of the SAEs, where it is not recognised: gemmascope, saelens, sparsify, dictionary_learning, openai or "
        "darkmatter.",
        MODEL,
    ),
]
Revision = Annotated[str | None, _option("Revision on the hub.", MODEL)]
Dtype = Annotated[str, _option("Precision of the model.", MODEL)]
Device = Annotated[str, _option("Torch device of model, SAEs and sums; auto spreads the model over all GPUs.", MODEL)]
BatchDocs = Annotated[int, _option("Documents per batch; fewer per forward pass where memory is short.", MODEL)]
Preflight = Annotated[bool, _option("Check a few batches first.", MODEL, "--preflight/--no-preflight")]
Force = Annotated[bool, _option("Go on where a check of the preflight says stop.", MODEL, "--force")]

Text = Annotated[
    str | None, _option("Text: .txt, .json, .jsonl or .parquet, or a data set on the hub (owner/name).", TEXT, "--text")
]
TokenFile = Annotated[
    Path | None, _option("Token ids instead of text: .npy, one row per document; needs no tokenizer.", TEXT, "--tokens")
]
PadId = Annotated[int | None, _option("Id that fills up short rows of --tokens.", TEXT)]
Column = Annotated[str, _option("Field or column that holds the text.", TEXT)]
Subset = Annotated[str | None, _option("Subset (configuration) of the data set.", TEXT)]
Split = Annotated[str | None, _option("Split of the data set; train by default.", TEXT)]
TextRevision = Annotated[str | None, _option("Revision of the data set.", TEXT)]
ProtocolName = Annotated[
    str, _option("default, or paper: the authors' documents, positions and definitions.", TEXT, "--protocol")
]
Context = Annotated[int | None, _option("Longest sequence in tokens, BOS included; 128 by default.", TEXT)]
Bos = Annotated[str | None, _option("BOS: prepend (default), auto (as the tokenizer does), none.", TEXT, "--bos")]
SkipFirst = Annotated[int | None, _option("Positions to drop at the start of a document; 1 (default) drops BOS.", TEXT)]
SkipLast = Annotated[int | None, _option("Positions to drop at its end.", TEXT)]
KeepSpecial = Annotated[bool, _option("Keep special tokens wherever they stand.", TEXT, "--keep-special")]
NormFilter = Annotated[float | None, _option("Drop activations with a norm above this many medians.", TEXT)]
MinLength = Annotated[int | None, _option("Drop documents with fewer tokens.", TEXT)]
MaxDocuments = Annotated[int | None, _option("Use this many documents.", TEXT)]
MaxTokens = Annotated[int | None, _option("Use exactly this many tokens.", TEXT)]
Pack = Annotated[bool, _option("Put several short documents into one sequence.", TEXT, "--pack")]

Memory = Annotated[
    str | None, _option("Memory for sums, such as 57GB: SAEs that do not fit get passes of their own.", MANY)
]
Precision = Annotated[str, _option("How blocks are multiplied: float64, or split.", MANY)]
WriteCache = Annotated[
    Path | None, _option("Write x to this folder (bfloat16) first, and read it from there.", MANY, "--write-cache")
]
CacheFolder = Annotated[
    str | None,
    _option("Stored activations instead of a model: a cache of ours or of SAELens, or array files.", MANY, "--cache"),
]
CheckpointSeconds = Annotated[float, _option("Least time between two saves.", RUN)]
