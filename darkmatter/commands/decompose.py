"""`darkmatter decompose`: arrays, or a model with SAEs, in; report and figure out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from darkmatter.adapters import ModelSource, files_source, load_any_sae
from darkmatter.adapters.saes.hooks import same_place
from darkmatter.batch import BatchSource
from darkmatter.commands.console import put, say, show_results, steps
from darkmatter.commands.model_options import ModelOptions
from darkmatter.decomposition import decompose_many
from darkmatter.errors import InputError
from darkmatter.files import write_json, write_tensors
from darkmatter.plots import save_decomposition_figure
from darkmatter.report import Report
from darkmatter.store import Checkpoint


def named_paths(values: Sequence[str], what: str) -> dict[str, str]:
    """Read ``NAME=PATH`` or ``PATH`` (named by its last part, without a suffix) into a mapping.

    Args:
        values: The option's values.
        what: The option, for the message.

    Returns:
        Paths by name.

    Raises:
        InputError: No value, an empty name or path, or a name that repeats.
    """
    found: dict[str, str] = {}
    for value in values:
        name, mark, path = value.partition("=")
        if not mark:
            name, path = Path(value).name.partition(".")[0], value
        if not name or not path:
            raise InputError(f"{what} {value!r}, expected PATH or NAME=PATH")
        if name in found:
            raise InputError(f"{what} names {name!r} twice: write NAME=PATH with a different NAME for each SAE")
        found[name] = path
    if not found:
        raise InputError(f"no {what} given, expected at least one")
    return found


def arrays_source(acts: Path, recons: Sequence[str], docs: Path | None) -> BatchSource:
    """Source of array files."""
    return files_source(acts, named_paths(recons, "--recon"), docs)


def sae_source(options: ModelOptions, saes: Sequence[str], *, family: str | None = None) -> BatchSource:
    """Source of a model's activations with SAEs of any known family."""
    places = named_paths(saes, "--sae")
    loaded = {name: load_any_sae(place, family=family, device=options.device) for name, place in places.items()}
    source = ModelSource(
        activations=options.activations(),
        saes={name: sae.sae for name, sae in loaded.items()},
        notes={name: sae.describe() for name, sae in loaded.items()},
    )
    for name, sae in loaded.items():  # only now, when all is well: an error is one line
        if sae.site is not None and not same_place(sae.site, options.site):
            say(f"Warning: {name} was made for {sae.site} according to its files, not for {options.site}.")
        if sae.sae.input_norm is not None:
            say(f"Note on {name}: {sae.normalisation}")
    return source


def run_decompose(
    source: BatchSource, *, folds: int, out: Path, checkpoint_seconds: float, device: str, as_json: bool
) -> None:
    """Decompose every SAE of a source, then write report.json, decomposition.png and the linear maps.

    Args:
        source: The source.
        folds: Document folds.
        out: Folder to write; it also holds the checkpoint while the pass runs.
        checkpoint_seconds: Least time between two saves.
        device: Where the sums live.
        as_json: Print the report as JSON instead of tables.
    """
    checkpoint = Checkpoint(out / "checkpoint", every_seconds=checkpoint_seconds)
    total = source.description.get("n_tokens")
    with steps() as bars, bars.stage("decompose", total if isinstance(total, int) else None) as stage:
        results = decompose_many(source, folds=folds, device=device, checkpoint=checkpoint, progress=stage)
    report = Report(saes=results, source=source.description)
    maps = {
        f"{name}.{part}": tensor
        for name, result in results.items()
        if result.linear_map is not None
        for part, tensor in (("weight", result.linear_map.weight), ("bias", result.linear_map.bias))
    }
    write_tensors(out / "linear_maps.safetensors", maps)
    save_decomposition_figure(out / "decomposition.png", results)
    write_json(out / "report.json", report.to_dict())
    checkpoint.clear()
    if as_json:
        put(json.dumps(report.to_dict(), indent=2, allow_nan=False))
        return
    show_results(results)
    say(f"Wrote report.json, decomposition.png and linear_maps.safetensors to {out}")
