"""Peak memory is that of the sums and one batch: ten times the tokens cost nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

D = 64
N = 20_000
SCRIPT = f"""
import sys
from pathlib import Path
import numpy as np
from darkmatter import Batch, decompose_many

n, keep = int(sys.argv[1]), sys.argv[2] == "keep"
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

result = decompose_many(Source(), folds=8)["a"]
assert result.n_tokens == n
status = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""

# getrusage would count what the parent held when it forked; the high-water mark of /proc starts afresh
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, as Linux has it")


def peak(n: int, mode: str = "stream") -> int:
    """Highest resident set of a fresh process that decomposes n tokens, in kB."""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(n), mode], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_peak_memory_does_not_depend_on_the_number_of_tokens() -> None:
    few = peak(N)  # 10 batches and every fold's block filled several times: all buffers are warm
    assert peak(10 * N) < 1.05 * few
    # it would fail: a source that holds on to x alone, 10 N d float32 numbers
    assert peak(10 * N, "keep") > 1.05 * few
