"""What every analysis costs, in units of the plain decomposition of the same tokens and SAEs, in one run.

`python -m benchmarks.analysis_cost [NAME …]`. Activations are random and in memory; SAEs run on them as they would on a
model's, whose forward pass would make every ratio smaller.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from darkmatter import decompose_many
from darkmatter.batch import Batch
from darkmatter.sae import SAE

FOLDS = 20
Case = Callable[["Tokens", Mapping[str, SAE]], Any]


@dataclass(frozen=True)
class Tokens:
    """Random activations with SAEs that run on every pass."""

    x: torch.Tensor
    saes: Mapping[str, SAE]
    batch_size: int = 4096
    doc_tokens: int = 128

    @property
    def d_model(self) -> int:
        """Activation width."""
        return self.x.shape[1]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the SAEs."""
        return tuple(self.saes)

    @property
    def description(self) -> Mapping[str, Any]:
        """What these tokens are."""
        return {"kind": "benchmark", "n_tokens": len(self.x)}

    def __iter__(self) -> Iterator[Batch]:
        for low in range(0, len(self.x), self.batch_size):
            x = self.x[low : low + self.batch_size]
            rows = np.arange(low, low + len(x), dtype=np.int64)
            yield Batch(
                x=x,
                recons={name: sae(x) for name, sae in self.saes.items()},
                groups=rows // self.doc_tokens,
                positions=rows % self.doc_tokens,
                token_ids=(rows * 7919) % 1000,
            )


def plain(source: Tokens, saes: Mapping[str, SAE]) -> Any:
    """The plain decomposition."""
    return decompose_many(source, folds=FOLDS)


CASES: dict[str, Case] = {}
"""Analyses by name; each takes the source and the weights of its SAEs."""


def make(n: int, d: int, latents: int, k: int, n_saes: int) -> Tokens:
    """Random activations with a decaying spectrum and TopK SAEs with tied random directions."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.arange(1, d + 1) ** -0.25
    x = torch.randn(n, d, generator=generator) * scales
    saes = {}
    for i in range(n_saes):
        rows = torch.nn.functional.normalize(torch.randn(latents, d, generator=generator), dim=1)
        saes[f"sae{i}"] = SAE(
            W_enc=rows.T.contiguous(),
            b_enc=torch.zeros(latents),
            W_dec=0.5 * rows,
            b_dec=torch.zeros(d),
            activation="topk",
            k=k,
        )
    return Tokens(x, saes)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="analyses; all by default")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--latents", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--saes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    source = make(given.tokens, given.d_model, given.latents, given.k, given.saes)
    chosen = {name: CASES[name] for name in given.names or CASES}
    best: dict[str, float] = {}
    for _ in range(given.rounds):  # in turn, so that a slow spell of the machine meets all
        for name, case in {"plain": plain, **chosen}.items():
            start = time.perf_counter()
            case(source, source.saes)
            best[name] = min(best.get(name, float("inf")), time.perf_counter() - start)
    a = torch.randn(2048, 2048)
    start = time.perf_counter()
    a @ a
    speed = 2 * 2048**3 / (time.perf_counter() - start) / 1e9
    print(f"{given.tokens:,} tokens, d {given.d_model}, {given.saes} SAEs of {given.latents} latents, k {given.k}; ")
    print(f"float32 product {speed:.0f} GFLOP/s; plain decomposition = 1")
    for name, seconds in best.items():
        print(f"{name:16} {seconds / best['plain']:.2f}")


if __name__ == "__main__":
    main()
