"""Bias and coverage of the nonlinear share, for our estimator and four customary ones, on worlds with known truth.

Run with ``make calibrate``, or ``python -m benchmarks.calibrate --repeats 400 --json``. Every cell repeats the whole
estimate on fresh tokens: every kind of introduced error, every kind of dense part, every dependence between features,
and strongly clustered documents. Truth is a closed form wherever there is one, else the estimate from a million tokens;
the table says which. Exit code 1 if a bound is missed by more than its Monte Carlo error allows.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from darkmatter import Batch, decompose
from darkmatter.decomposition import decompose_moments
from darkmatter.folds import FoldAccumulator, fold_of
from darkmatter.moments import Layout
from darkmatter.sandbox import Surgical, World, population_shares

D_MODEL = 64
FOLDS = 20
HALVES = 2
CV_FOLDS = 10
Kind = Literal["independent", "heteroscedastic", "dense", "function", "interference", "affine"]
KINDS: tuple[Kind, ...] = ("independent", "heteroscedastic", "dense", "function", "interference", "affine")
DENSE = ("student", "circles", "torus", "sphere", "swiss-roll", "codes")
DEPENDENCE = {
    "rank-4 correlation": {"correlation": 0.4, "factors": 4},
    "trees": {"roots": 16, "branching": 3, "depth": 3},
    "trees, exclusive": {"roots": 16, "branching": 3, "depth": 3, "siblings": "exclusive", "l0": 8.0},
    "exclusive groups": {"exclusion": 8},
}
METHODS = ("in-sample", "50/50 hold-out", "10-fold CV", "adjusted R2", "sqrt(S*C)")
ORACLE_TOKENS = 2**20

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One row of the table: a world, a kind of introduced error, a sample size."""

    label: str
    world: World
    surgical: Surgical
    n_tokens: int
    bias_bound: float | None
    coverage_bounds: tuple[float, float] | None


def residual_variance(x: Matrix, e: Matrix, train: npt.NDArray[np.bool_], test: npt.NDArray[np.bool_]) -> float:
    """Mean squared residual on the test rows of an affine fit to the training rows."""
    mx, me = x[train].mean(axis=0), e[train].mean(axis=0)
    weight = np.linalg.lstsq(x[train] - mx, e[train] - me, rcond=None)[0]
    residual = e[test] - me - (x[test] - mx) @ weight
    return float((residual**2).sum() / test.sum())


def customary(x: Matrix, recon: Matrix, groups: npt.NDArray[np.int64]) -> dict[str, float]:
    """The nonlinear share by the estimators in common use, all with an intercept and folds by document."""
    e, n, d = x - recon, len(x), x.shape[1]
    var_x = float(((x - x.mean(axis=0)) ** 2).sum() / n)
    everything = np.ones(n, dtype=bool)
    half = fold_of(groups, HALVES) == 0
    inside = residual_variance(x, e, everything, everything)
    folds = fold_of(groups, CV_FOLDS)
    cv = sum(residual_variance(x, e, folds != k, folds == k) * (folds == k).sum() for k in np.unique(folds)) / n
    return {
        "in-sample": inside / var_x,
        "50/50 hold-out": residual_variance(x, e, half, ~half) / var_x,
        "10-fold CV": float(cv) / var_x,
        # 1 - R2_adj = (1 - R2)(n - 1)/(n - d - 1), applied to the pooled residual variance
        "adjusted R2": inside * (n - 1) / (n - d - 1) / var_x,
    }


def oracle(cell: Cell) -> tuple[float, str]:
    """Population nonlinear share, and how it was obtained."""
    if cell.surgical.closed_form(cell.world):
        return population_shares(cell.world, cell.surgical).fvu_nonlinear, "closed form"
    big = decompose(cell.world.pair(cell.surgical, n_tokens=ORACLE_TOKENS, stream="oracle"), folds=FOLDS)
    share = big.fvu_nonlinear
    return share.value, f"{ORACLE_TOKENS} tokens, +-{(share.high - share.low) / 2 / share.value:.2%}"


def run_cell(cell: Cell, repeats: int, customary_repeats: int) -> dict[str, object]:
    """Repeat the estimate and compare with the oracle."""
    truth, how = oracle(cell)
    ours: list[float] = []
    others: dict[str, list[float]] = {name: [] for name in METHODS[:-1]}
    covered = 0
    source = cell.world.pair(cell.surgical, n_tokens=cell.n_tokens * repeats, batch_size=cell.n_tokens, stream="repeat")
    layout = Layout(cell.world.d_model, source.names)
    for number, batch in enumerate(source):
        accumulator = FoldAccumulator(layout, folds=FOLDS)
        accumulator.update(Batch(batch.x, batch.recons, batch.groups))
        share = decompose_moments(accumulator.finish())[source.names[0]].fvu_nonlinear
        ours.append(share.value / truth - 1)
        covered += share.contains(truth)
        if number < customary_repeats:
            x, recon = (np.asarray(v, dtype=np.float64) for v in (batch.x, batch.recons[source.names[0]]))
            for name, value in customary(x, recon, batch.groups).items():
                others[name].append(value / truth - 1)
    coverage = covered / repeats
    bias = {name: (float(np.mean(v)), float(np.std(v) / math.sqrt(len(v)))) for name, v in others.items()}
    bias["sqrt(S*C)"] = (float(np.mean(ours)), float(np.std(ours) / math.sqrt(repeats)))
    return {
        "cell": cell.label,
        "n_tokens": cell.n_tokens,
        "n_over_d": cell.n_tokens / cell.world.d_model,
        "documents": cell.n_tokens // cell.world.doc_tokens,
        "truth": truth,
        "oracle": how,
        "bias": {name: value for name, (value, _) in bias.items()},
        "bias_se": {name: se for name, (_, se) in bias.items()},
        "coverage": coverage,
        "coverage_se": math.sqrt(coverage * (1 - coverage) / repeats),
        "repeats": repeats,
        "bias_bound": cell.bias_bound,
        "coverage_bounds": cell.coverage_bounds,
        "within": _within(cell, bias["sqrt(S*C)"], coverage, repeats),
    }


def _within(cell: Cell, bias: tuple[float, float], coverage: float, repeats: int) -> bool:
    """Whether the bounds hold, allowing two Monte Carlo standard errors beyond them."""
    fine = cell.bias_bound is None or abs(bias[0]) <= cell.bias_bound + 2 * bias[1]
    if cell.coverage_bounds is None:
        return fine
    low, high = cell.coverage_bounds
    slack = 2 * math.sqrt(0.95 * 0.05 / repeats)
    return fine and low - slack <= coverage <= high + slack


def cells(sizes: tuple[int, ...]) -> list[Cell]:
    """Every kind of introduced error at every size; every dense part and dependence at one; clustered documents."""
    base = {"n_features": 1024, "d_model": D_MODEL, "dense_dim": 6, "l0": 16.0, "dense_share": 0.1}
    alone = {**base, "topic_strength": 0.0, "doc_tokens": 1}
    independent = World(**alone)
    clustered = World(**base, topic_strength=1.0, doc_tokens=50)

    def cell(label: str, kind: Kind, world: World = independent, size: int = 10) -> Cell:
        return Cell(
            label=label,
            world=world,
            surgical=Surgical(learned=512, shrinkage=0.1, introduced=kind, introduced_share=0.04),
            n_tokens=size * D_MODEL,
            bias_bound=0.03 if size < 10 else 0.01,
            coverage_bounds=None if size < 10 else (0.92, 0.98),
        )

    return [
        *(cell(kind, kind, size=size) for kind in KINDS for size in sizes),
        *(cell(f"dense part: {kind}", "heteroscedastic", World(**alone, dense=kind)) for kind in DENSE),
        *(cell(name, "heteroscedastic", World(**{**alone, **options})) for name, options in DEPENDENCE.items()),
        *(
            Cell(
                label="clustered documents",
                world=clustered,
                surgical=Surgical(learned=512, shrinkage=0.1, introduced="heteroscedastic", introduced_share=0.04),
                n_tokens=50 * documents,
                bias_bound=None,
                coverage_bounds=(0.90, 1.0),
            )
            for documents in (100, 200, 400)
        ),
    ]


def main() -> None:
    """Print the table; exit with 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--customary-repeats", type=int, default=100, help="repeats of the other four estimators")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 10, 40], help="tokens per dimension")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    records = []
    if not options.json:
        print(f"relative bias of FVU_nl, d = {D_MODEL}, {options.repeats} repeats (others {options.customary_repeats})")
        print(f"{'introduced error':<24}{'n/d':>5}{'docs':>6}" + "".join(f"{m:>16}" for m in METHODS) + "  coverage")
    start = time.perf_counter()
    for cell in cells(tuple(options.sizes)):
        record = run_cell(cell, options.repeats, options.customary_repeats)
        records.append(record)
        if not options.json:
            bias, se = record["bias"], record["bias_se"]
            shown = "".join(f"{100 * bias[m]:+9.1f} ±{100 * se[m]:4.1f} " for m in METHODS)
            print(
                f"{record['cell']:<24}{record['n_over_d']:>5.0f}{record['documents']:>6}{shown}"
                f"  {100 * record['coverage']:.1f} % {'ok' if record['within'] else 'MISSED'}",
                flush=True,
            )
    if options.json:
        json.dump(records, sys.stdout, indent=2)
    else:
        print(f"{time.perf_counter() - start:.0f} s, {torch.get_num_threads()} threads")
    sys.exit(0 if all(record["within"] for record in records) else 1)


if __name__ == "__main__":
    main()
