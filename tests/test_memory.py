"""Peak memory is that of the sums and one batch: ten times the tokens cost nothing, ten times the SAEs little."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from darkmatter.groups import pass_bytes

D = 64
N = 20_000
WIDTH, FOLDS = 384, 8
SCRIPT = f"""
import sys
from pathlib import Path
import numpy as np
from darkmatter import Batch, decompose_many
from darkmatter.decomposition import decompose_sites

n, mode = int(sys.argv[1]), sys.argv[2]
keep = mode == "keep"
kept = []

class Source:
    d_model, names, description = {D}, ("a", "b"), {{"seed": 0}}

    def __iter__(self):
        rng = np.random.default_rng(0)
        for start in range(0, n, 2000):
            x = rng.standard_normal((2000, {D}), dtype=np.float32)
            recons = {{"a": np.maximum(x, 0), "b": np.maximum(x, 0.3)}}
            if keep:
                kept.append(x)
            yield Batch(x, recons, (start + np.arange(2000)) // 100)

class Sites(Source):
    sites = ("one", "two")
    widths = {{site: {D} for site in sites}}
    names = {{site: ("a", "b") for site in sites}}

    def __iter__(self):
        return ({{"one": batch, "two": Batch(-batch.x, batch.recons, batch.groups)}}
                for batch in super().__iter__())

result = decompose_sites(Sites(), folds=8)["two"]["b"] if mode == "sites" else decompose_many(Source(), folds=8)["a"]
assert result.n_tokens == n
status = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""

GROUPS = f"""
import sys
from pathlib import Path
import numpy as np
from darkmatter import Batch, decompose_many
from darkmatter.groups import decompose_groups, pass_bytes

def memory(what):
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith(what)))

n_saes, d, folds = int(sys.argv[1]), {WIDTH}, {FOLDS}
names = tuple(f"s{{i}}" for i in range(n_saes))

class Source:
    d_model, description = d, {{}}

    def __init__(self, names):
        self.names = names

    def __iter__(self):
        rng = np.random.default_rng(0)
        for start in range(0, 6000, 500):
            x = rng.standard_normal((500, d), dtype=np.float32)
            recons = {{name: np.maximum(x, 0.1 * int(name[1:])) for name in self.names}}
            yield Batch(x, recons, (start + np.arange(500)) // 20)

decompose_groups(Source, names[:1], d_model=d, memory=10**9, folder=Path(sys.argv[3]) / "warm", folds=folds)
before = memory("VmRSS")
if sys.argv[2] == "one pass":
    results = decompose_many(Source(names), folds=folds)
else:
    results = decompose_groups(
        Source, names, d_model=d, memory=pass_bytes(d, 2, folds), folder=Path(sys.argv[3]) / "g", folds=folds
    )
assert len(results) == n_saes
print(memory("VmHWM") - before)
"""

# getrusage would count what the parent held when it forked; the high-water mark of /proc starts afresh
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, as Linux has it")


def run(script: str, *arguments: str) -> int:
    """Run a fresh process and read the kB it prints."""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    # the C library keeps what is freed of blocks below a threshold that grows: with it the peak is that of the history
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def peak(n: int, mode: str = "stream") -> int:
    """Highest resident set of a fresh process that decomposes n tokens, in kB."""
    return run(SCRIPT, str(n), mode)


def test_peak_memory_does_not_depend_on_the_number_of_tokens() -> None:
    few = peak(N)  # 10 batches and every fold's block filled several times: all buffers are warm
    assert peak(10 * N) < 1.05 * few
    # it would fail: a source that holds on to x alone, 10 N d float32 numbers
    assert peak(10 * N, "keep") > 1.05 * few


def test_nor_with_several_sites() -> None:
    assert peak(10 * N, "sites") < 1.05 * peak(N, "sites")


def test_groups_take_the_memory_of_one_group_and_as_much_as_planned(tmp_path: Path) -> None:
    two, eight, whole = (
        run(GROUPS, str(n), mode, str(tmp_path / f"{n}{mode}"))
        for n, mode in ((2, "groups"), (8, "groups"), (8, "one pass"))
    )
    planned = {p: pass_bytes(WIDTH, p, FOLDS) / 1e3 for p in (2, 8)}
    assert eight < 1.1 * two  # four groups, the peak of one; 384² numbers of a linear map are 1.2 MB
    # the plan holds up to a batch and its float64 copy, and is not far above what is needed
    assert 0.8 * planned[2] < two < 1.1 * planned[2] + 10_000
    assert 0.8 * planned[8] < whole < 1.1 * planned[8] + 20_000
