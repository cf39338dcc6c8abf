"""More SAEs than memory holds: one pass per group, resumable group by group.

Every pass forms the scatter of x and its factors anew. For a group of p SAEs that is 1/(1 + p) of the products of the
pass and 1/(1 + 12 p) of those of the solve, and little beside the model that yields x: at d = 3584 it is 3·10⁷
operations a token, against 2·10¹⁰ for a model of 9·10⁹ parameters. Kept, the factors would take as much memory as the
sums of one more SAE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from darkmatter.batch import BatchSource
from darkmatter.decomposition import DEFAULT_FOLDS, decompose_moments
from darkmatter.distributed import agreed, world
from darkmatter.errors import FileFormatError, InputError
from darkmatter.files import read_json, read_tensors, write_json, write_tensors
from darkmatter.moments import Layout
from darkmatter.products import Precision
from darkmatter.results import AffineMap, Decomposition
from darkmatter.store import Checkpoint, run_identity
from darkmatter.stream import Progress, accumulate

FORMAT = "darkmatter-group"
FORMAT_VERSION = 1
_LISTED = 6

MakeSource = Callable[[tuple[str, ...]], BatchSource]
"""Makes a source of the same tokens with the given SAEs only, in the given order."""


def pass_bytes(d_model: int, n_saes: int, folds: int) -> int:
    """Memory that the sums of one pass and the solve after it need at most, without model, SAEs and batches.

    Args:
        d_model: Width d.
        n_saes: Number p of SAEs.
        folds: Number K of folds.

    Returns:
        Bytes: 8 K d w for the sums, and the larger of 8 K (b + 1) w for waiting rows and ⌈log2 K⌉ + 6 arrays of d × w
        for the solve; w the columns of a row, b the rows of a block.
    """
    layout = Layout(d_model, tuple(map(str, range(n_saes))))
    waiting = folds * (layout.block_rows + 1)
    solve = (math.ceil(math.log2(folds)) + 6) * d_model
    return 8 * layout.width * (folds * d_model + max(waiting, solve))


def plan_groups(d_model: int, names: tuple[str, ...], folds: int, memory_bytes: int) -> tuple[tuple[str, ...], ...]:
    """Split SAEs into as few groups as the memory allows, of equal size up to one, in the order given.

    Pairs are compared (T8) within a group: put SAEs that belong together next to each other.

    Args:
        d_model: Width d.
        names: The SAEs.
        folds: Number K of folds.
        memory_bytes: What one group may take, see `pass_bytes`.

    Returns:
        The groups.

    Raises:
        InputError: No SAE, fewer than two folds, or not even one SAE fits.
    """
    if not names or len(set(names)) < len(names):
        raise InputError(f"names is {names!r}, expected at least one SAE, each once")
    if folds < 2:
        raise InputError(f"folds is {folds}, expected at least 2: an interval needs two folds that differ")
    least = pass_bytes(d_model, 1, folds)
    if least > memory_bytes:
        raise InputError(
            f"the memory is {memory_bytes / 1e9:.3g} GB, but the sums of one SAE of width {d_model} in {folds} folds "
            f"take {least / 1e9:.3g} GB: give more memory, or take fewer folds"
        )
    most = max(p for p in range(1, len(names) + 1) if pass_bytes(d_model, p, folds) <= memory_bytes)
    n_groups = math.ceil(len(names) / most)
    edges = [len(names) * i // n_groups for i in range(n_groups + 1)]
    return tuple(names[low:high] for low, high in pairwise(edges))


def decompose_groups(
    make_source: MakeSource,
    names: tuple[str, ...],
    *,
    d_model: int,
    memory: int,
    folder: Path,
    folds: int = DEFAULT_FOLDS,
    device: str = "cpu",
    precision: Precision = "float64",
    checkpoint_seconds: float = 60.0,
    progress: Progress | None = None,
    sharded: bool = False,
) -> dict[str, Decomposition]:
    """Decompose many SAEs in bounded memory: one pass over the tokens for every group that fits.

    The results of a finished group are kept in the folder, and a run that is started again goes on with the group that
    was under way when it was killed. Linear maps are mapped from the files, not held in memory; `clear_groups` removes
    everything.

    Args:
        make_source: Makes the source of a group; all sources must hold the same tokens.
        names: The SAEs.
        d_model: Width of x.
        memory: Bytes that the sums and the solve of one group may take.
        folder: Where finished groups and saves are kept.
        folds: Number K of document folds.
        device: Where the sums live; it must support float64.
        precision: How blocks are multiplied, see `products`.
        checkpoint_seconds: Least time between two saves of a pass.
        progress: Called with the number of tokens after every batch; tokens count once for every group.
        sharded: The source holds this process's share of the documents. Only process 0 writes and gets results.

    Returns:
        A decomposition per SAE, in the order of `names`; its warnings name the SAEs it was not compared with. Empty in
        all processes but the first.

    Raises:
        InputError: A source with other SAEs or another width, tokens that differ between groups, or what `plan_groups`
            and `decompose_many` refuse.
    """
    plan = plan_groups(d_model, names, folds, memory)
    first = not sharded or world()[0] == 0
    found: dict[str, Decomposition] = {}
    for number, group in enumerate(plan):
        source = make_source(group)
        if source.names != group or source.d_model != d_model:
            raise InputError(
                f"the source of group {number} has the SAEs {source.names} of width {source.d_model}, expected {group} "
                f"of width {d_model}"
            )
        store = _Finished(folder, number, run_identity(source, folds, precision))
        done = bool(agreed(first and store.exists())) if sharded else store.exists()
        if not done:
            checkpoint = Checkpoint(folder / f"group-{number}", checkpoint_seconds)
            moments = accumulate(
                source,
                folds=folds,
                device=device,
                precision=precision,
                checkpoint=checkpoint,
                progress=progress,
                sharded=sharded,
            )
            if first:
                store.write(_tell_apart(decompose_moments(moments), names))
                checkpoint.clear()
            del moments
        del source  # before the SAEs of the next group are loaded
        if first:
            results = store.read(group)
            if progress and done:
                progress(results[group[0]].n_tokens)
            found |= results
    tokens = {result.n_tokens: name for name, result in found.items()}
    if len(tokens) > 1:
        raise InputError(f"groups saw different numbers of tokens {tokens}: every source must hold the same tokens")
    return found


def clear_groups(folder: Path) -> None:
    """Remove finished groups and saves, once the report is written."""
    for path in folder.glob("group-*"):
        if path.is_dir():
            Checkpoint(path).clear()
        elif path.suffix in {".json", ".safetensors"}:
            path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _tell_apart(results: Mapping[str, Decomposition], names: tuple[str, ...]) -> dict[str, Decomposition]:
    """Say which SAEs of other groups were not compared with those of this one; the same words for the whole group."""
    others = [name for name in names if name not in results]
    if not others:
        return dict(results)
    listed = ", ".join(others[:_LISTED]) + (f" and {len(others) - _LISTED} more" if len(others) > _LISTED else "")
    sentence = (
        f"{', '.join(results)}: compared with each other (T8) but not with {listed}, which were decomposed in other "
        "groups: give more memory to compare them."
    )
    return {name: replace(result, warnings=(*result.warnings, sentence)) for name, result in results.items()}


@dataclass(frozen=True, slots=True)
class _Finished:
    """The results of one group on disk; the JSON file is written last.

    Attributes:
        folder: Where.
        number: Of the group.
        identity: Of its pass.
    """

    folder: Path
    number: int
    identity: str

    @property
    def index(self) -> Path:
        """The file of everything but the linear maps."""
        return self.folder / f"group-{self.number}.json"

    @property
    def maps(self) -> Path:
        """The file of the linear maps."""
        return self.folder / f"group-{self.number}.safetensors"

    def exists(self) -> bool:
        """Whether this very group was finished before.

        Raises:
            FileFormatError: The folder holds a group of another run.
        """
        if not self.index.exists():
            return False
        index = read_json(self.index, "the results of a group")
        if (index.get("format"), index.get("version")) != (FORMAT, FORMAT_VERSION):
            raise self._damaged("not a group of version 1")
        if index.get("identity") != self.identity:
            raise FileFormatError(
                f"{self.index} holds a group of another run (other data, SAEs, folds or memory): "
                f"delete {self.folder} to start again, or choose another folder",
                self.index,
            )
        return True

    def write(self, results: Mapping[str, Decomposition]) -> None:
        """Save the results."""
        tensors: dict[str, Tensor] = {}
        for i, result in enumerate(results.values()):
            if result.linear_map is not None:
                tensors |= {f"{i}.weight": result.linear_map.weight, f"{i}.bias": result.linear_map.bias}
        write_tensors(self.maps, tensors)
        saes = {name: result.to_dict() for name, result in results.items()}
        write_json(self.index, {"format": FORMAT, "version": FORMAT_VERSION, "identity": self.identity, "saes": saes})

    def read(self, names: tuple[str, ...]) -> dict[str, Decomposition]:
        """Read the results back, so that a resumed run gives what one that was never killed gives.

        Raises:
            FileFormatError: A file is damaged.
        """
        saes = read_json(self.index, "the results of a group").get("saes")
        if not isinstance(saes, dict) or set(saes) != set(names):
            raise self._damaged("other SAEs")
        maps = read_tensors(self.maps, "the linear maps of a group")
        found = {}
        for i, name in enumerate(names):
            try:
                result = Decomposition.from_dict(saes[name])
            except (InputError, AttributeError) as error:
                raise self._damaged(str(error)) from None
            weight, bias = maps.get(f"{i}.weight"), maps.get(f"{i}.bias")
            d = result.d_model
            if weight is None or bias is None or (weight.shape, bias.shape) != ((d, d), (d,)):
                raise self._damaged(f"no linear map of {name}")
            if not weight.dtype == bias.dtype == torch.float64:
                raise self._damaged(f"{name}'s linear map is {weight.dtype}")
            found[name] = replace(result, linear_map=AffineMap(weight=weight, bias=bias))
        return found

    def _damaged(self, what: str) -> FileFormatError:
        return FileFormatError(f"{self.index} is damaged ({what}): delete {self.folder} to start again", self.index)
