"""One pass over a source: the same decoder with other inference, and what that changes in the error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darkmatter.analyses.fold_table import FoldTable
from darkmatter.analyses.pursuit.dictionary import GRAM_BYTES, Dictionary
from darkmatter.analyses.pursuit.infer import DEFAULT_METHODS, ENCODER, Inference, check_methods, check_steps
from darkmatter.analyses.pursuit.result import Coding, Pursuit, Removed, SaePursuit
from darkmatter.analyses.pursuit.shares import Shares
from darkmatter.batch import Batch, BatchSource, check_batch
from darkmatter.decomposition import DEFAULT_FOLDS
from darkmatter.errors import InputError
from darkmatter.folds import FoldAccumulator
from darkmatter.moments import Layout
from darkmatter.sae import SAE
from darkmatter.stream import Progress

_FOREIGN = 1e-2
"""Var(recon − sae(x)) / Var x above which weights are not those that made the reconstructions (bfloat16 gives 1e-5)."""

_SHORTLIST = 16
_FEW = 512
"""Latents up to which all are candidates by default: no slower than a shortlist."""

_SUM_BYTES = 8 * 2**30


def pursue(
    source: BatchSource,
    saes: Mapping[str, SAE],
    *,
    folds: int = DEFAULT_FOLDS,
    methods: Sequence[str] = DEFAULT_METHODS,
    l0: int | None = None,
    ks: Sequence[int] = (),
    shortlist: int | None = None,
    exact: bool = False,
    device: str = "cpu",
    gram_bytes: int = GRAM_BYTES,
    sum_bytes: int = _SUM_BYTES,
    progress: Progress | None = None,
    announce: Callable[[float], None] | None = None,
) -> Pursuit:
    """Replace each SAE's encoder by sparse coding on its decoder at matched L0, and split the errors.

    For a decoder W (rows of unit norm) and a token y = x − b_dec: greedy approximations of
    min |y − Σ c_j w_j|² over c ≥ 0 with at most as many non-zeros as the encoder gave that token; and the same
    minimum over the encoder's own latents, found exactly.

    Args:
        source: Tokens with the reconstructions of the SAEs; or tokens alone, a source without names: then every SAE
            runs here and only once, which costs less.
        saes: Weights by name; names of the source without weights are left out, and a warning says so.
        folds: Document folds K.
        methods: Which codes beside the encoder's: "refit", "gp", "omp".
        l0: Steps for every token; None for as many as the encoder activates latents on it.
        ks: Further numbers of steps, for the curve of error against L0.
        shortlist: Rows among which each token chooses its first four latents: those most correlated with it. Lists
            of twice as many or more, by what is left of it, follow after 4, 10, 22, 46, … steps. By default 16 for
            an SAE of more than 512 latents, else all.
        exact: Choose among all latents: the same steps, several times as slow for a wide SAE.
        device: Where the sums live.
        gram_bytes: Most memory for the inner products of all rows of the decoders; without them every list, and with
            `exact` every step, costs as much as the encoder.
        sum_bytes: Most memory for the sums of the pass.
        progress: Called with the number of tokens after every batch.
        announce: Called once, after the first batch, with the seconds that inference takes for a token.

    Returns:
        The result.

    Raises:
        InputError: No SAE with weights, weights of other SAEs, impossible options, too few tokens or documents, sums
            that do not fit.
    """
    if exact and shortlist is not None:
        raise InputError(f"shortlist is {shortlist} beside exact, which chooses among all latents: leave one out")
    chosen = check_methods(methods)
    known = check_steps(l0, ks, shortlist)
    found = prepare(
        source, saes, methods=chosen, l0=l0, ks=known, shortlist=shortlist, exact=exact, gram_bytes=gram_bytes
    )
    run = _Pass.start(source, found, folds, device, sum_bytes)
    for batch in source:
        first = not run.started
        run.take(batch)
        if announce and first and run.started:
            announce(run.seconds / len(batch.groups))
        if progress:
            progress(len(batch.groups))
    return run.finish()


def prepare(
    source: BatchSource,
    saes: Mapping[str, SAE],
    *,
    methods: tuple[str, ...],
    l0: int | None,
    ks: tuple[int, ...],
    shortlist: int | None,
    exact: bool,
    gram_bytes: int = GRAM_BYTES,
) -> dict[str, Inference]:
    """Prepare the decoders of all SAEs of a source whose weights are known; see `pursue` for the arguments.

    Returns:
        How to code by each.

    Raises:
        InputError: There is none, or one has another width.
    """
    names = [name for name in source.names or saes if name in saes]
    if not names:
        raise InputError(
            f"no weights of any of {', '.join(source.names) or 'no SAE'}: pursuit needs the decoder, so give SAEs, "
            "not arrays"
        )
    found = {}
    for name in names:
        sae = saes[name]
        if sae.d_model != source.d_model:
            raise InputError(f"{name} has width {sae.d_model}, expected {source.d_model} as the activations")
        every = exact or (shortlist is None and sae.d_sae <= _FEW)
        dictionary = Dictionary.of(sae, gram_bytes=gram_bytes // len(names))
        found[name] = Inference(sae, dictionary, l0, ks, None if every else shortlist or _SHORTLIST, methods)
    return found


@dataclass(slots=True, eq=False)
class _Pass:
    """Sums of one pass."""

    source: BatchSource
    inferences: dict[str, Inference]
    sums: FoldAccumulator
    l0: FoldTable
    left_out: tuple[str, ...]
    started: bool = False
    seconds: float = 0.0

    @classmethod
    def start(
        cls, source: BatchSource, inferences: dict[str, Inference], folds: int, device: str, sum_bytes: int
    ) -> _Pass:
        """Check that the sums fit, and start from nothing.

        Raises:
            InputError: They do not.
        """
        columns = [own for name, inference in inferences.items() for own in _names(name, inference)]
        need = sums_bytes(source.d_model, len(columns), folds)
        if need > sum_bytes:
            raise InputError(
                f"the sums of {len(columns)} reconstructions of width {source.d_model} in {folds} folds take "
                f"{need / 1e9:.3g} GB, more than {sum_bytes / 1e9:.3g} GB: take fewer SAEs, folds or --ks"
            )
        return cls(
            source=source,
            inferences=inferences,
            sums=FoldAccumulator(Layout(source.d_model, tuple(columns)), folds=folds, device=device),
            l0=FoldTable.empty(columns, folds),
            left_out=tuple(name for name in source.names if name not in inferences),
        )

    def take(self, batch: Batch) -> None:
        """Code a batch every way and add it."""
        x, given = check_batch(batch, d_model=self.source.d_model, names=self.source.names)
        recons: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for name, inference in self.inferences.items():
            tokens = x.to(inference.sae.device)
            start = time.perf_counter()
            found = inference(tokens)
            self.seconds += time.perf_counter() - start
            if name in given and not self.started:
                _check_same(name, found.recons[ENCODER], given[name], x)
            recons |= {_name(name, method): recon.to(x.device) for method, recon in found.recons.items()}
            if name in given:
                recons[name] = given[name]
            counts |= {_name(name, method): number.double() for method, number in found.l0.items()}
        self.started = len(x) > 0
        self.sums.update(Batch(x=x, recons=recons, groups=batch.groups))
        self.l0 = self.l0.add(batch.groups, counts)

    def finish(self) -> Pursuit:
        """Read the result from the sums."""
        moments = self.sums.finish()
        shares = Shares.of(moments)
        left_out = tuple(
            f"{name} is left out: its weights are not known, so there is no decoder to pursue."
            for name in self.left_out
        )
        return Pursuit(
            saes={name: self._one(name, inference, shares) for name, inference in self.inferences.items()},
            n_tokens=moments.n_tokens,
            n_groups=moments.n_groups,
            n_folds=len(shares.means.n),
            d_model=moments.layout.d_model,
            warnings=left_out + shares.warnings,
        )

    def _one(self, name: str, inference: Inference, shares: Shares) -> SaePursuit:
        codings = {method: self._coding(name, method, inference, shares) for method in (ENCODER, *inference.chosen)}
        curve = tuple(self._coding(name, label, inference, shares) for label in inference.curve)
        best = min(codings, key=lambda method: codings[method].error.fvu.value)
        encoder, least = shares.fvu(name), shares.fvu(_name(name, best))
        return SaePursuit(
            codings=codings,
            curve=curve,
            best=best,
            encoder_error=(encoder - least).estimate(),
            dictionary_error=codings[best].error.fvu,
            encoder_share=((encoder - least) / encoder).estimate(),
            d_sae=inference.dictionary.n_latents,
            shortlist=inference.shortlist,
            warnings=tuple(_warnings(name, codings, inference, best)),
        )

    def _coding(self, name: str, label: str, inference: Inference, shares: Shares) -> Coding:
        column = _name(name, label)
        method, _, k = label.partition("@")
        steps = int(k) if k else (inference.l0 if method in inference.pursuits else None)
        own = label == ENCODER
        return Coding(
            method=method,
            steps=steps,
            l0=self.l0.average(column),
            error=shares.split(column),
            change=None if own else shares.difference(column, name),
            removed=None if own else _removed(shares, column, name),
        )


def sums_bytes(d_model: int, n_saes: int, folds: int) -> int:
    """Memory of the sums of a pass: K d (1 + S) d numbers of 8 bytes, and half as much again for the fits."""
    return 12 * folds * d_model**2 * (1 + n_saes)


def _name(name: str, method: str) -> str:
    return name if method == ENCODER else f"{name}+{method}"


def _names(name: str, inference: Inference) -> Iterator[str]:
    yield name
    yield from (f"{name}+{method}" for method in inference.methods)


def _removed(shares: Shares, column: str, encoder: str) -> Removed:
    linear, nonlinear, error = (
        (of(column) / of(encoder)).complement() for of in (shares.linear, shares.nonlinear, shares.fvu)
    )
    return Removed(
        error=error.estimate(),
        linear=linear.estimate(),
        nonlinear=nonlinear.estimate(),
        contrast=(nonlinear - linear).estimate(),
    )


def _check_same(name: str, made: Tensor, given: Tensor, x: Tensor) -> None:
    """Require that the weights made the reconstructions.

    Raises:
        InputError: They did not.
    """
    off = made.to(given.device).double() - given.double()
    scale = float((x.double() - x.double().mean(dim=0)).square().sum())
    if float(off.square().sum()) > _FOREIGN * scale:
        raise InputError(
            f"the weights of {name} do not give its reconstructions (they differ by "
            f"{float(off.square().sum()) / max(scale, torch.finfo(torch.float64).tiny):.2g} of the variance of x): "
            "pass the SAE that made them"
        )


def _warnings(name: str, codings: Mapping[str, Coding], inference: Inference, best: str) -> Iterator[str]:
    if codings[ENCODER].l0.value == 0:
        yield f"{name} activates no latent on any token: every code at matched L0 is empty."
    if best == ENCODER:
        yield f"no method codes better than the encoder of {name}: the lower end of its encoder error is 0."
    if inference.l0 is not None:
        yield (
            f"{name}: pursuit takes {inference.l0} steps on every token, the encoder activates "
            f"{codings[ENCODER].l0.value:.3g} latents on average: changes mix inference and L0."
        )
    if inference.shortlist is not None:
        yield (
            f"{name}: each token chooses among the latents most correlated with what is left of it, "
            f"{inference.shortlist} at first and {2 * inference.shortlist} or more after 4, 10, 22, … steps, not among "
            "all: errors of pursuit are a little too large (--exact takes all, at several times the cost)."
        )
