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
from darkmatter.analyses.cross_site import cross_site_errors
from darkmatter.analyses.ladder import predictor_ladder
from darkmatter.analyses.norms import norm_probes
from darkmatter.analyses.per_token import per_token_errors
from darkmatter.analyses.pursuit import pursue
from darkmatter.analyses.replicates import replicate_bracket
from darkmatter.analyses.scaling import measure_scaling
from darkmatter.analyses.spectrum import residual_spectrum
from darkmatter.batch import Batch
from darkmatter.decomposition import decompose_sites
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


@dataclass(frozen=True)
class TwoSites:
    """The tokens at an earlier and a later site, each with one of the SAEs."""

    tokens: Tokens

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return ("early", "late")

    @property
    def widths(self) -> Mapping[str, int]:
        """Activation width by site."""
        return dict.fromkeys(self.sites, self.tokens.d_model)

    @property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the SAEs by site."""
        return {site: (name,) for site, name in zip(self.sites, self.tokens.names, strict=False)}

    @property
    def description(self) -> Mapping[str, Any]:
        """What these tokens are."""
        return self.tokens.description

    def __iter__(self) -> Iterator[Mapping[str, Batch]]:
        n, size = len(self.tokens.x), self.tokens.batch_size
        for low in range(0, n, size):
            x = self.tokens.x[low : low + size]
            groups = np.arange(low, low + len(x), dtype=np.int64) // self.tokens.doc_tokens
            found = {}
            for site, place in {"early": x, "late": x + 0.5 * x.flip(1)}.items():
                (name,) = self.names[site]
                found[site] = Batch(x=place, recons={name: self.tokens.saes[name](place)}, groups=groups)
            yield found


def two_sites(source: Tokens, saes: Mapping[str, SAE]) -> Any:
    """The plain decomposition of two sites, what "cross-site" is to be compared with."""
    return decompose_sites(TwoSites(source), folds=FOLDS)


def cross_site(source: Tokens, saes: Mapping[str, SAE]) -> Any:
    """The error at the later of two sites explained by the earlier one."""
    sites = TwoSites(source)
    weights = {site: {name: saes[name] for name in names} for site, names in sites.names.items()}
    return cross_site_errors(sites, saes=weights, folds=FOLDS)


def norms(source: Tokens, saes: Mapping[str, SAE]) -> Any:
    """Squared norms regressed on x."""
    return norm_probes(source, saes=saes, folds=FOLDS)


def per_token(source: Tokens, saes: Mapping[str, SAE]) -> Any:
    """Errors token by token."""
    small, large, *_ = saes
    return per_token_errors(source, small=small, large=large, folds=FOLDS)


def pursuit(source: Tokens, saes: Mapping[str, SAE]) -> Any:
    """Gradient pursuit in place of the encoder; it runs the SAEs itself."""
    return pursue(Tokens(source.x, {}), saes, folds=FOLDS)


def pursuit_all(source: Tokens, saes: Mapping[str, SAE]) -> Any:
    """All its codes."""
    return pursue(Tokens(source.x, {}), saes, folds=FOLDS, methods=("refit", "gp", "omp"))


def pursuit_exact(source: Tokens, saes: Mapping[str, SAE]) -> Any:
    """Gradient pursuit with all latents as candidates."""
    return pursue(Tokens(source.x, {}), saes, folds=FOLDS, exact=True)


def ladder(source: Tokens, saes: Mapping[str, SAE]) -> Any:
    """Gains, ranks and the affine map."""
    return predictor_ladder(source, saes, folds=FOLDS)


def replicates(source: Tokens, saes: Mapping[str, SAE]) -> Any:
    """Brackets from all SAEs."""
    return replicate_bracket(source, saes=saes, folds=FOLDS)


def spectrum(source: Tokens, saes: Mapping[str, SAE]) -> Any:
    """Spectra, overlaps and spans."""
    return residual_spectrum(source, saes=saes, folds=FOLDS)


def four_widths(source: Tokens) -> Tokens:
    """The tokens with SAEs of four widths."""
    d, latents = source.d_model, next(iter(source.saes.values())).d_sae
    saes = {}
    for part in (8, 4, 2, 1):
        (sae,) = make(1, d, latents // part, 32, 1).saes.values()
        saes[f"w{latents // part}"] = sae
    return Tokens(source.x, saes)


def four_saes(source: Tokens, saes: Mapping[str, SAE]) -> Any:
    """The plain decomposition of SAEs of four widths, what "scale" is to be compared with."""
    return decompose_many(four_widths(source), folds=FOLDS)


def scale(source: Tokens, saes: Mapping[str, SAE]) -> Any:
    """Laws over width from SAEs of four widths."""
    four = four_widths(source)
    return measure_scaling(four, four.saes, folds=FOLDS)


@dataclass(frozen=True)
class FreeLosses:
    """Losses that cost nothing: what `downstream` itself takes; a model's whole forward passes come on top."""

    source: Tokens

    d_model = property(lambda self: self.source.d_model)
    names = property(lambda self: self.source.names)
    description = property(lambda self: self.source.description)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.source:
            yield FreeBatch(batch)


@dataclass(frozen=True)
class FreeBatch:
    """One batch of `FreeLosses`."""

    batch: Batch

    @property
    def rows(self) -> Any:
        """All tokens."""
        return np.arange(len(self.batch.groups))

    def clean(self) -> torch.Tensor:
        """One nat each."""
        return torch.ones(len(self.batch.groups))

    def identity(self) -> torch.Tensor:
        """The same."""
        return self.clean()

    def losses(self, replacement: torch.Tensor) -> torch.Tensor:
        """A little more where x is gone."""
        return 1 + (replacement[:, 0] - torch.as_tensor(self.batch.x)[:, 0]).square().float()


def downstream(source: Tokens, saes: Mapping[str, SAE]) -> Any:
    """Downstream losses without the model's forward passes, moments included."""
    from darkmatter.analyses.downstream import downstream_losses
    from darkmatter.stream import accumulate

    return downstream_losses(FreeLosses(source), accumulate(source, folds=FOLDS))


def train_on_error(source: Tokens, saes: Mapping[str, SAE]) -> Any:
    """Two SAEs as wide as the first, trained once through the documents on its linear and nonlinear error."""
    from darkmatter.analyses.error_saes import train_on_error as run
    from darkmatter.sae import TrainConfig

    sae = next(iter(saes.values()))
    config = TrainConfig(d_sae=sae.d_sae, k=sae.k, n_tokens=len(source.x) * 4 // 5, batch_size=1024)
    return run(source, config, targets=("linear", "nonlinear"), folds=FOLDS)


CASES: dict[str, Case] = {
    "downstream": downstream,
    "ladder": ladder,
    "cross-site": cross_site,
    "two-sites": two_sites,
    "norms": norms,
    "per-token": per_token,
    "pursuit": pursuit,
    "pursuit-all": pursuit_all,
    "pursuit-exact": pursuit_exact,
    "replicates": replicates,
    "spectrum": spectrum,
    "four-saes": four_saes,
    "scale": scale,
    "train-on-error": train_on_error,
}
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
    unknown = sorted(set(given.names) - set(CASES))
    if unknown:
        parser.error(f"no case {unknown[0]!r}, expected some of {', '.join(CASES)}")
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
