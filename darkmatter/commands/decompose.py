"""`darkmatter decompose`: arrays, stored activations, or a model with SAEs, in; report and figure out."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from darkmatter.adapters import files_source
from darkmatter.batch import BatchSource, SitesSource
from darkmatter.commands.console import Stage, put, say, show_results, steps
from darkmatter.commands.named_paths import named_paths
from darkmatter.commands.paper_table import show_paper
from darkmatter.decomposition import decompose_many, decompose_sites
from darkmatter.distributed import start, world
from darkmatter.errors import InputError
from darkmatter.files import write_json, write_tensors
from darkmatter.groups import MakeSource, clear_groups, decompose_groups
from darkmatter.plots import save_decomposition_figure
from darkmatter.plots_sites import save_sites_figure
from darkmatter.products import Precision
from darkmatter.report import Report
from darkmatter.results import Decomposition, to_plain
from darkmatter.store import Checkpoint

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How a decomposition is carried out.

    Attributes:
        folds: Document folds.
        out: Folder to write; it also holds the checkpoint while the pass runs.
        checkpoint_seconds: Least time between two saves.
        device: Where the sums live.
        precision: How blocks are multiplied.
        memory: Bytes that the sums of one group of SAEs may take; None takes all SAEs in one pass.
        as_json: Print the report as JSON instead of tables.
        total: Tokens of one pass, if known.
    """

    folds: int
    out: Path
    checkpoint_seconds: float
    device: str
    precision: Precision = "float64"
    memory: int | None = None
    as_json: bool = False
    total: int | None = None

    def checkpoint(self) -> Checkpoint:
        """Where the pass is saved."""
        return Checkpoint(self.out / "checkpoint", every_seconds=self.checkpoint_seconds)


def memory_bytes(text: str | None) -> int | None:
    """Read ``57GB``, ``800M`` or a number of bytes.

    Args:
        text: The option's value.

    Returns:
        Bytes; None for None.

    Raises:
        InputError: Another form.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)b?\s*", text.lower())
    if match is None or float(match[1]) == 0.0:
        raise InputError(f"memory is {text!r}, expected a size such as 57GB or 800MB")
    return int(float(match[1]) * _UNITS[match[2]])


def alone(option: str) -> None:
    """Refuse what several processes would do, and write, once each.

    Args:
        option: What is for one process.

    Raises:
        InputError: There are several.
    """
    size = world()[1]
    if size > 1:
        raise InputError(f"{option} is for one process, but there are {size}: start without torchrun")


def arrays_source(acts: Path, recons: Sequence[str], docs: Path | None) -> BatchSource:
    """Source of array files."""
    alone("--acts")
    return files_source(acts, named_paths(recons, "--recon"), docs)


@contextmanager
def processes(device: str) -> Iterator[tuple[int, int, str]]:
    """Join the processes that torchrun started; a process on its own is alone.

    Args:
        device: As given; "cuda" becomes the GPU of this process.

    Yields:
        (rank, size, device).
    """
    with start("gloo" if device == "cpu" else None) as (rank, size):
        if size > 1 and device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        yield rank, size, device
    if size > 1:
        # everything is written, and threads of the process group now and then abort a process that ends the usual way
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def decompose_source(source: BatchSource | SitesSource, run: Run, *, sharded: bool = False) -> dict[str, Decomposition]:
    """Decompose every SAE of a source, of one site or of several, in one pass.

    Args:
        source: The source.
        run: How.
        sharded: It holds this process's share of the documents.

    Returns:
        Decompositions by SAE; of several sites by ``SITE/NAME``.
    """
    known = source.description.get("n_tokens")
    with _bar(replace(run, total=run.total or (known if isinstance(known, int) else None))) as stage:
        options: dict[str, Any] = {
            "folds": run.folds,
            "device": run.device,
            "precision": run.precision,
            "checkpoint": run.checkpoint(),
            "progress": stage,
            "sharded": sharded,
        }
        if isinstance(source, SitesSource):
            found = decompose_sites(source, **options)
            return {name: result for site, results in found.items() for name, result in _at(site, results).items()}
        return decompose_many(source, **options)


def decompose_in_groups(
    make_source: MakeSource, names: tuple[str, ...], d_model: int, run: Run, *, sharded: bool = False
) -> dict[str, Decomposition]:
    """Decompose many SAEs of one site in several passes, each within the memory; see `groups`.

    Args:
        make_source: Makes the source of some of the SAEs.
        names: All SAEs.
        d_model: Width of the site.
        run: How.
        sharded: Sources hold this process's share of the documents; only process 0 gets results.

    Returns:
        Decompositions by SAE.
    """
    assert run.memory is not None
    with _bar(run) as stage:
        return decompose_groups(
            make_source,
            names,
            d_model=d_model,
            memory=run.memory,
            folder=run.out / "checkpoint",
            folds=run.folds,
            device=run.device,
            precision=run.precision,
            checkpoint_seconds=run.checkpoint_seconds,
            progress=stage,
            sharded=sharded,
        )


def finish(
    results: Mapping[str, Decomposition], source: Mapping[str, Any], run: Run, *, more: Mapping[str, Any] | None = None
) -> None:
    """Write report.json, decomposition.png and the linear maps, and print the report.

    Args:
        results: Decompositions by SAE.
        source: Where the tokens came from.
        run: Where to write, and what to print.
        more: Further keys of the report, such as ``preflight`` and ``paper``.
    """
    extra = dict(more or {})
    plain = Report(saes=results, source=source).to_dict() | to_plain(extra)
    maps = {
        f"{name}.{part}": tensor
        for name, result in results.items()
        if result.linear_map is not None
        for part, tensor in (("weight", result.linear_map.weight), ("bias", result.linear_map.bias))
    }
    write_tensors(run.out / "linear_maps.safetensors", maps)
    save_decomposition_figure(run.out / "decomposition.png", results)
    by_site = _by_site(results, source)
    if len(by_site) > 1:
        save_sites_figure(run.out / "sites.png", by_site)
    write_json(run.out / "report.json", plain)
    run.checkpoint().clear()
    clear_groups(run.out / "checkpoint")
    if run.as_json:
        put(json.dumps(plain, indent=2, allow_nan=False))
        return
    show_results(results)
    if "paper" in extra:
        show_paper(extra["paper"])
    drawn = "decomposition.png" if len(by_site) < 2 else "decomposition.png, sites.png"
    say(f"Wrote report.json, {drawn} and linear_maps.safetensors to {run.out}")


@contextmanager
def _bar(run: Run) -> Iterator[Stage]:
    with steps() as bars, bars.stage("decompose", run.total) as stage:
        yield stage


def _at(site: str, results: Mapping[str, Decomposition]) -> dict[str, Decomposition]:
    """Give the results of one of several sites names that say so."""
    return {
        f"{site}/{name}": replace(
            result,
            name=f"{site}/{name}",
            replicates={f"{site}/{other}": pair for other, pair in result.replicates.items()},
        )
        for name, result in results.items()
    }


def _by_site(results: Mapping[str, Decomposition], source: Mapping[str, Any]) -> dict[str, dict[str, Decomposition]]:
    """Sort the results of several sites, which `_at` named; empty where there is one."""
    sites = source.get("d_model")
    if not isinstance(sites, Mapping):
        return {}
    return {site: {name: result for name, result in results.items() if name.startswith(f"{site}/")} for site in sites}
