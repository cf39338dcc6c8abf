"""Tables of training on error."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from darkmatter.analyses.error_saes import TrainOnError
from darkmatter.analyses.interp import Interpretation
from darkmatter.report import percent, percent_interval


def show_training(result: TrainOnError) -> None:
    """Print targets, differences, recovery, warnings and a sentence."""
    console = Console(highlight=False)
    table = Table(
        title=f"{result.name}: SAEs trained on its error, held out", title_justify="left", header_style="bold"
    )
    for heading in ("target", "Var x", "FVU [95 %]", "structure"):
        table.add_column(heading, justify="left" if heading == "target" else "right", no_wrap=True)
    for name, target in result.targets.items():
        table.add_row(
            name,
            percent(target.share),
            f"{target.fvu:.3f}",
            "" if target.structure is None else f"{target.structure:.2f}",
        )
    console.print(table)
    table = Table(title="differences of FVU on the same documents", title_justify="left", header_style="bold")
    table.add_column("pair")
    table.add_column("difference [95 %]", justify="right")
    for pair, gap in result.differences.items():
        table.add_row(pair, f"{gap:+.3f}")
    console.print(table)
    _alignments(console, result)
    for warning in result.warnings:
        console.print(f"Warning: {warning}", style="yellow", markup=False)
    console.print(sentence(result), style="bold", markup=False)


def _alignments(console: Console, result: TrainOnError) -> None:
    if not any(target.alignment for target in result.targets.values()):
        return
    table = Table(title="best |cosine| of a latent to given directions", title_justify="left", header_style="bold")
    for heading in ("target", "to", "best", "rand.", "gain [95 %]", "≥ 0.8"):
        table.add_column(heading, justify="left" if heading in {"target", "to"} else "right", no_wrap=True)
    for name, target in result.targets.items():
        for label, found in target.alignment.items():
            table.add_row(
                name,
                label,
                f"{found.best.value:.2f}",
                f"{found.control.value:.2f}",
                f"{found.gain:+.2f}",
                percent(found.found.value),
            )
    console.print(table)


def sentence(result: TrainOnError) -> str:
    """What the comparison says, hedged: it is about these SAEs and these documents."""
    gap = result.differences.get("nonlinear - linear")
    if gap is None:
        return "Linear and nonlinear parts were not both trained on."
    if gap.low > 0:
        said = "The nonlinear part is harder to reconstruct sparsely than the linear part"
    elif gap.high < 0:
        said = "The nonlinear part is easier to reconstruct sparsely than the linear part"
    else:
        said = "No difference between the parts can be told from these documents"
    said += f" (held-out FVU {gap:+.3f}, equal variance, rank and settings)."
    if result.structure_gap is not None:
        said += (
            f" Beside Gaussian rows of equal covariance, sparsity saves {result.structure_gap:+.3f} more of the FVU of "
            "the linear part."
        )
    return said


def show_interpretation(found: Interpretation) -> None:
    """Print detection scores."""
    console = Console(highlight=False)
    title = f"detection of latents, judged by {found.model}"
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in ("SAE on", "latents", "accuracy [95 %]", "other latent's words", "gain [95 %]", "AUC", "malformed"):
        table.add_column(heading, justify="left" if heading == "SAE on" else "right", no_wrap=True)
    for name, sae in found.saes.items():
        table.add_row(
            name,
            str(sae.n_latents),
            percent_interval(sae.accuracy),
            percent_interval(sae.control),
            f"{sae.gain:+.3f}",
            f"{sae.auc.value:.3f}",
            percent(sae.malformed.value),
        )
    console.print(table)
    for pair, gap in found.differences.items():
        console.print(f"accuracy, {pair}: {gap:+.3f}", markup=False)
    for warning in found.warnings:
        console.print(f"Warning: {warning}", style="yellow", markup=False)
