"""What the estimator adds to a model and an SAE: the share of its sums, and the cost of every further SAE.

``python -m benchmarks.gpu_pipeline`` runs Gemma-2-9B's shapes (42 blocks, d = 3584, random weights in bfloat16, site
resid_post:20) on a GPU. Without one it runs a small model of the same kind on the processor, to show that the script
works: that run says nothing about a GPU. ``--json`` prints the numbers instead of a table.

All stages use the product's own pieces on the same tokens, and take turns, so that a change of load hits all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch

from benchmarks.random_model import SETTINGS, Setting, open_tokens, random_model, random_sae
from darkmatter.adapters import ModelActivations
from darkmatter.adapters.run_saes import SaeRunner
from darkmatter.adapters.sequences import TokenSequence
from darkmatter.batch import Batch
from darkmatter.decomposition import decompose_moments
from darkmatter.folds import FoldAccumulator
from darkmatter.moments import Layout
from darkmatter.products import Precision, add_product

MORE = 2
"""Further SAEs whose cost is measured."""
BOUNDS = {"overhead": 0.05, "further SAE, in products": 1.2}
"""Most that a GPU run may show: sums over model and SAE; a further SAE less its encode and decode, over n·d²."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """How the sums are formed: document folds, and the precision of the products."""

    folds: int
    precision: Precision


class Clock:
    """Times work on a device, waiting for it to finish."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, work: Callable[[], object]) -> float:
        """Seconds that some work takes."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Wait for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def products(size: int, device: torch.device, clock: Clock) -> dict[str, float]:
    """TFLOP/s of a square matrix product, by precision."""
    rates = {}
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        a = torch.randn(size, size, device=device, dtype=dtype)
        clock(lambda a=a: a @ a)
        rates[str(dtype).removeprefix("torch.")] = (
            2 * size**3 / median(clock(lambda a=a: a @ a) for _ in range(3)) / 1e12
        )
    return rates


class Stages:
    """The stages of one width: model alone; with one SAE; with its sums; with the sums of several."""

    def __init__(self, setting: Setting, activations: ModelActivations, latents: int, sums: Sums) -> None:
        self._activations, self._clock = activations, Clock(self._device(activations))
        sequences = list(activations.sequences)
        size = setting.batch_docs
        self._batches = [sequences[low : low + size] for low in range(0, len(sequences), size)]
        first = activations.read(self._batches[0])[activations.site]
        self._x, self._groups = first.x, first.groups
        self.saes = {f"sae{i}": random_sae(first.x, latents, i) for i in range(1 + MORE)}
        self._sums = sums
        self._seconds: dict[str, list[float]] = {}

    @staticmethod
    def _device(activations: ModelActivations) -> torch.device:
        return next(activations.loaded.model.parameters()).device

    @property
    def n_tokens(self) -> int:
        """Counted tokens of a round."""
        return sum(int(sequence.counted.sum()) for batch in self._batches for sequence in batch)

    @property
    def l0(self) -> float:
        """Active latents per token of the first SAE."""
        return self.saes["sae0"].encode(self._x[:512]).l0

    def run(self, rounds: int) -> dict[str, float]:
        """Time every stage once a round, after a round that does not count; median seconds per token.

        Args:
            rounds: How many.

        Returns:
            Seconds per token, by stage.
        """
        accumulators = {count: self._accumulator(count) for count in (1, 1 + MORE)}
        stages: dict[str, tuple[Callable[[], object], int]] = {
            "model": (lambda: self._pass(0, None), self.n_tokens),
            "model, SAE": (lambda: self._pass(1, None), self.n_tokens),
            "model, SAE, sums": (lambda: self._pass(1, accumulators[1]), self.n_tokens),
            "model, SAEs, sums": (lambda: self._pass(1 + MORE, accumulators[1 + MORE]), self.n_tokens),
            "SAE alone": (lambda: self._runner(1).recons(self._x), len(self._x)),
            "n d^2 product": (self._product(), len(self._x)),
        }
        for number in range(rounds + 1):
            for name, (work, tokens) in stages.items():
                seconds = self._clock(work) / tokens
                if number:
                    self._seconds.setdefault(name, []).append(seconds)
        typical = {name: median(times) for name, times in self._seconds.items()}
        typical["solve, seconds"] = self._clock(lambda: decompose_moments(accumulators[1].freeze()))
        return typical

    def _runner(self, count: int) -> SaeRunner:
        return SaeRunner({name: self.saes[name] for name in list(self.saes)[:count]})

    def _accumulator(self, count: int) -> FoldAccumulator:
        layout = Layout(self._x.shape[1], tuple(self.saes)[:count])
        return FoldAccumulator(layout, folds=self._sums.folds, device=self._x.device, precision=self._sums.precision)

    def _pass(self, count: int, accumulator: FoldAccumulator | None) -> None:
        runner = self._runner(count)
        for sequences in self._batches:
            self._step(sequences, runner if count else None, accumulator)

    def _step(
        self, sequences: Sequence[TokenSequence], runner: SaeRunner | None, accumulator: FoldAccumulator | None
    ) -> None:
        batch = self._activations.read(sequences)[self._activations.site]
        recons = {} if runner is None else runner.recons(batch.x)
        if accumulator is not None:
            accumulator.update(Batch(batch.x, recons, batch.groups))

    def _product(self) -> Callable[[], object]:
        """One n·d² product in the precision of the sums."""
        x = self._x.double()
        out = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device)
        return lambda: add_product(out, x, x, self._sums.precision)


def measure(setting: Setting, device: torch.device, *, rounds: int, sums: Sums) -> dict[str, Any]:
    """Run every width.

    Args:
        setting: The sizes.
        device: Where.
        rounds: Timed rounds.
        sums: How the sums are formed.

    Returns:
        Facts about the machine, and one record per width.
    """
    clock = Clock(device)
    with tempfile.TemporaryDirectory() as name:
        activations = open_tokens(setting, random_model(setting, device), Path(name))
        widths = [_record(Stages(setting, activations, latents, sums), latents, rounds) for latents in setting.latents]
    on_gpu = device.type == "cuda"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(device) if on_gpu else f"processor, threads: {torch.get_num_threads()}",
        "gpu": on_gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "setting": asdict(setting),
        **asdict(sums),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "rounds": rounds,
        "matrix_product_tflops": products(setting.product, device, clock),
        "widths": widths,
    }


def _record(stages: Stages, latents: int, rounds: int) -> dict[str, Any]:
    device = next(iter(stages.saes.values())).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = stages.run(rounds)
    sums = times["model, SAE, sums"] - times["model, SAE"]
    further = (times["model, SAEs, sums"] - times["model, SAE, sums"]) / MORE
    # bytes on a GPU; on the processor the whole process's peak, in KiB on Linux
    peak = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "latents": latents,
        "l0": stages.l0,
        "tokens_per_round": stages.n_tokens,
        "tokens_per_second": {name: 1 / seconds for name, seconds in times.items() if name.startswith("model")},
        "seconds_per_token": times,
        "overhead": sums / times["model, SAE"],
        "further_sae_over_its_encode_and_decode": further / times["SAE alone"],
        "further_sae_in_products": (further - times["SAE alone"]) / times["n d^2 product"],
        "peak_memory_gb": peak / 1e9,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table that is committed."""
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in result["matrix_product_tflops"].items())
    setting = result["setting"]
    print(
        f"{result['date']}, {result['device']}, torch {result['torch']}; matrix product in TFLOP/s: {rates}. "
        f"{setting['name']}, {setting['config']['num_hidden_layers']} blocks, d = {setting['config']['hidden_size']}, "
        f"resid_post:{setting['layer']}, documents of {setting['context']} tokens, {result['folds']} folds, "
        f"sums in {result['precision']} (float32 products: {result['float32_matmul']}), "
        f"median of {result['rounds']} rounds.\n"
    )
    header = ("", *(f"{record['latents']:,} latents" for record in result["widths"]))
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        *(
            (f"tokens/s: {stage}", lambda record, stage=stage: f"{record['tokens_per_second'][stage]:,.0f}")
            for stage in result["widths"][0]["tokens_per_second"]
        ),
        ("sums over model and SAE", lambda record: f"{100 * record['overhead']:.1f} %"),
        ("further SAE / encode, decode", lambda record: f"{record['further_sae_over_its_encode_and_decode']:.2f}"),
        ("further SAE less that / n d² product", lambda record: f"{record['further_sae_in_products']:.2f}"),
        ("solve, s", lambda record: f"{record['seconds_per_token']['solve, seconds']:.2f}"),
        ("active latents per token", lambda record: f"{record['l0']:.0f}"),
        ("peak memory, GB", lambda record: f"{record['peak_memory_gb']:.1f}"),
    ]
    lines = [header, ("---", *("---:" for _ in result["widths"]))]
    lines += [(name, *(cell(record) for record in result["widths"])) for name, cell in rows]
    print("\n".join("| " + " | ".join(line) + " |" for line in lines))
    if not result["gpu"]:
        print("\nOn the processor, at a reduced shape: this shows that the script runs, and nothing about a GPU.")


def missed(result: dict[str, Any]) -> list[str]:
    """Bounds that a GPU run misses; none apply to the processor."""
    found = []
    for record in result["widths"] if result["gpu"] else []:
        got = {"overhead": record["overhead"], "further SAE, in products": record["further_sae_in_products"]}
        found += [
            f"{record['latents']} latents: {name} is {got[name]:.3g}, expected at most {bound:g}"
            for name, bound in BOUNDS.items()
            if got[name] > bound
        ]
    return found


def main() -> None:
    """Run, print, and fail where a bound is missed."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SETTINGS), default="gemma-2-9b" if gpu else "tiny")
    parser.add_argument("--device", default="cuda:0" if gpu else "cpu")
    parser.add_argument("--rounds", type=int, default=5 if gpu else 3)
    parser.add_argument("--folds", type=int, default=20)
    parser.add_argument("--precision", choices=get_args(Precision), default="float64")
    parser.add_argument(
        "--float32-matmul",
        choices=("highest", "high", "medium"),
        default="highest",
        help="medium lets split sums use bfloat16 units, which is exact for them; SAEs in float32 then lose digits",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_float32_matmul_precision(options.float32_matmul)
    sums = Sums(folds=options.folds, precision=options.precision)
    result = measure(SETTINGS[options.shape], torch.device(options.device), rounds=options.rounds, sums=sums)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
    else:
        show(result)
    failures = missed(result)
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
