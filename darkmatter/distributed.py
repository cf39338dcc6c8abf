"""Several processes, each with a share of the documents: their moments united into those of all tokens.

Started by ``torchrun``, every process streams the documents whose index is its rank modulo the number of processes, and
`reduce_moments` adds up. Nothing but numbers travels: no objects, so nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from darkmatter.errors import InputError
from darkmatter.folds import SKETCH_SIZE, FoldMoments, Keys, merge_keys
from darkmatter.moments import Moments, error_outer, farther

Backend = Literal["gloo", "nccl"]

PATIENCE = timedelta(days=7)
"""How long a process waits for the slowest one: shares differ in length, and torchrun ends all if one fails."""


def world() -> tuple[int, int]:
    """Number of this process and how many there are, from the process group or the environment of ``torchrun``.

    Returns:
        (rank, size); (0, 1) for a process on its own.

    Raises:
        InputError: The environment holds only one of RANK and WORLD_SIZE, or numbers that make no sense.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    texts = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if texts == (None, None):
        return 0, 1
    try:
        rank, size = (int(text or "") for text in texts)
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        raise InputError(
            f"the environment has RANK={texts[0]} and WORLD_SIZE={texts[1]}, expected 0 <= RANK < WORLD_SIZE: "
            "start with torchrun, or unset both"
        )
    return rank, size


@contextmanager
def start(backend: Backend | None = None) -> Iterator[tuple[int, int]]:
    """Connect the processes that ``torchrun`` has started; a process on its own needs no connection.

    With "nccl" the GPU whose number is LOCAL_RANK becomes the current one.

    Args:
        backend: What connects them; None takes "nccl" where there is a GPU, else "gloo".

    Yields:
        (rank, size), as `world`.

    Raises:
        InputError: An address is missing, the backend is not available, or the processes cannot reach each other.
    """
    rank, size = world()
    if size == 1:
        yield rank, size
        return
    chosen = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(
            f"{size} processes, but the environment has no {' and no '.join(missing)}: start with torchrun"
        )
    if not dist.is_available() or not dist.is_backend_available(chosen):
        raise InputError(
            f"this torch has no {chosen}, expected a build with it: choose another backend, or one process"
        )
    try:
        if chosen == "nccl":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(chosen, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"process {rank} of {size} cannot join the others through {chosen} ({reason}): check MASTER_ADDR, "
            "MASTER_PORT and the firewall"
        ) from None
    try:
        yield rank, size
        dist.barrier()  # torchrun ends all processes with the first that does not end well: not before all are done
    finally:
        dist.destroy_process_group()


def reduce_moments(moments: FoldMoments) -> FoldMoments:
    """Unite the moments of all processes: the means first, then one sum of what is left after a shift to them.

    With c the mean of all tokens of a fold, every process adds n_r (x̄_r − c)(z̄_r − c)' to its sums, which makes them
    sums of deviations from c; those simply add up. Nothing large is subtracted, and no second set of sums is needed.

    Args:
        moments: This process's moments; they are used up, since the sums are added in place. May hold no tokens.

    Returns:
        The moments of all tokens, the same in every process; `moments` itself for a process on its own.

    Raises:
        InputError: Processes are not connected, or accumulated different SAEs, widths or numbers of folds.
    """
    rank, size = world()
    if size == 1:
        return moments
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError(f"process {rank} of {size} is not connected to the others: call distributed.start() first")
    _check_alike(moments)
    counts = torch.tensor([fold.n for fold in moments.folds])
    n = _sum(counts.clone()).tolist()
    means = torch.stack([fold.mean for fold in moments.folds])
    filled = torch.tensor(n, dtype=means.dtype).clamp_min(1).to(means.device)[:, None]
    # means of means lose digits where the mean is large; a second round takes off what the first one left
    common = _sum(means * counts.to(means)[:, None]) / filled
    common += _sum((means - common) * counts.to(means)[:, None]) / filled
    far = _gather(torch.stack([fold.far_x for fold in moments.folds]))
    held = _gather(counts)
    folds = []
    for k, fold in enumerate(moments.folds):
        candidates = [far[r][k] for r in range(size) if held[r][k]]
        folds.append(_shifted_sum(fold, common[k], n[k], candidates))
    return FoldMoments(layout=moments.layout, folds=tuple(folds), documents=_documents(moments.documents))


def _shifted_sum(fold: Moments, mean: Tensor, n: int, far: list[Tensor]) -> Moments:
    """Sum one fold's deviations from the common mean over all processes; overwrites the fold's sums."""
    layout = fold.layout
    delta = (fold.mean - mean).mul_(bool(fold.n))
    return Moments(
        layout=layout,
        n=n,
        mean=mean,
        cross=_sum(fold.cross.addr_(delta[layout.x] * fold.n, delta)),
        error_gram=_sum(fold.error_gram + error_outer(layout, delta, fold.n)),
        target_ss=_sum(fold.target_ss + fold.n * delta[layout.targets].square()),
        far_x=reduce(lambda a, b: farther(a, b, mean[layout.x]), far or [fold.far_x]),
    )


def _documents(documents: tuple[Keys, ...]) -> tuple[Keys, ...]:
    """Smallest hashes of every fold's documents in all processes."""
    padded = np.zeros((len(documents), SKETCH_SIZE), dtype=np.uint64)
    for row, keys in zip(padded, documents, strict=True):
        row[: len(keys)] = keys
    lengths = _gather(torch.tensor([len(keys) for keys in documents]))
    everyone = [keys.numpy().view(np.uint64) for keys in _gather(torch.from_numpy(padded.view(np.int64)))]
    return tuple(
        reduce(merge_keys, [keys[k, : int(count[k])] for keys, count in zip(everyone, lengths, strict=True)])
        for k in range(len(documents))
    )


def _check_alike(moments: FoldMoments) -> None:
    facts = repr((moments.layout, len(moments.folds))).encode()
    digest = torch.from_numpy(np.frombuffer(hashlib.blake2b(facts, digest_size=8).digest(), dtype=np.int64).copy())
    others = _gather(digest)
    if any(not torch.equal(other, digest) for other in others):
        raise InputError(
            f"the {len(others)} processes accumulated different SAEs, widths or numbers of folds: "
            "start all of them with the same command"
        )


def total(counts: Mapping[str, int]) -> dict[str, int]:
    """Add up counts over all processes.

    Args:
        counts: This process's, by name; every process has the same names.

    Returns:
        The sums, the same in every process.
    """
    if world()[1] == 1:
        return dict(counts)
    return dict(zip(counts, _sum(torch.tensor(list(counts.values()))).tolist(), strict=True))


def agreed(value: int) -> int:
    """Take over what process 0 says, so that all processes take the same way."""
    return int(_gather(torch.tensor([value]))[0][0]) if world()[1] > 1 else value


def _there(tensor: Tensor) -> Tensor:
    """The tensor where the backend can reach it."""
    return tensor.to("cuda" if dist.get_backend() == "nccl" else "cpu").contiguous()


def _sum(tensor: Tensor) -> Tensor:
    """Sum over all processes, in place."""
    there = _there(tensor)
    dist.all_reduce(there)
    return tensor if there is tensor else tensor.copy_(there)


def _gather(tensor: Tensor) -> list[Tensor]:
    """What every process holds, by rank, where `tensor` is."""
    there = _there(tensor)
    parts = [torch.empty_like(there) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, there)
    return [part.to(tensor.device) for part in parts]
