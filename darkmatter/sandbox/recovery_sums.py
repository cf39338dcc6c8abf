"""Sums over a world's stream that compare latents with features, by fold of documents, without keeping any codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_array

from darkmatter.checks import check_finite
from darkmatter.errors import InputError
from darkmatter.folds import fold_of
from darkmatter.sandbox.matching import Matching

if TYPE_CHECKING:
    from darkmatter.sae.codes import Codes
    from darkmatter.sae.record import SAE
    from darkmatter.sandbox.features import Floats, Integers
    from darkmatter.sandbox.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverySums:
    """Sums by fold, K rows. a_i is the amplitude of feature i, b_i the value of its latent (0 where it has none).

    Attributes:
        n: Tokens, (K,).
        n_groups: Documents in all folds.
        feature_on: Tokens with a_i > 0, (K, m).
        latent_on: Tokens with b_i > 0, (K, m).
        both_on: Tokens with both, (K, m).
        absorbed: Tokens with a_i > 0, b_i = 0 and some near latent above zero, (K, m).
        a: Σ a_i, (K, m).
        b: Σ b_i, (K, m).
        aa: Σ a_i², (K, m).
        bb: Σ b_i², (K, m).
        ab: Σ a_i b_i, (K, m).
        fires: Tokens on which each latent is above zero, (K, s).
        x: Σ (x − E x), (K, d), with the population's mean E x.
        xx: Σ |x − E x|², (K,).
        e: Σ (x − Sae(x)), (K, d).
        ee: Σ |x − Sae(x)|², (K,).
    """

    n: Floats
    n_groups: int
    feature_on: Floats
    latent_on: Floats
    both_on: Floats
    absorbed: Floats
    a: Floats
    b: Floats
    aa: Floats
    bb: Floats
    ab: Floats
    fires: Floats
    x: Floats
    xx: Floats
    e: Floats
    ee: Floats


def collect_recovery(
    world: World,
    sae: SAE,
    matching: Matching,
    *,
    n_tokens: int,
    folds: int,
    stream: str,
    progress: Callable[[int], None] | None,
) -> RecoverySums:
    """Stream a world through an SAE once; each chunk's codes are dropped when their sums are taken.

    Args:
        world: The world.
        sae: The SAE.
        matching: Its latents' features.
        n_tokens: Tokens to draw.
        folds: Folds of documents.
        stream: Stream to draw from.
        progress: Called with the number of tokens after every chunk.

    Returns:
        The sums of the folds that hold tokens.

    Raises:
        InputError: All documents fall into one fold, or Sae(x) is not finite.
    """
    total: dict[str, Floats] = {}
    feature_of, n_groups = matching.feature, 0
    for index in range(-(-n_tokens // world.chunk_tokens)):
        chunk = world.chunk(index, stream=stream)
        chunk = chunk.rows(0, min(len(chunk), n_tokens - index * world.chunk_tokens))
        codes = sae.encode(torch.from_numpy(chunk.x).to(sae.device))
        recon = sae.decode(codes)
        check_finite(recon, "Sae(x)")
        x = chunk.x.astype(np.float64)
        pool = csr_array(
            (np.ones(len(chunk)), (fold_of(chunk.groups, folds), np.arange(len(chunk)))), shape=(folds, len(chunk))
        )
        sums = {
            **_code_sums(pool, _canonical(chunk.codes), _to_sparse(codes), feature_of, matching.near),
            **_error_sums(pool, x - world.mean, x - recon.double().cpu().numpy()),
        }
        total = {name: value + total[name] for name, value in sums.items()} if total else sums
        n_groups += len(np.unique(chunk.groups))  # a chunk is made of whole documents
        if progress:
            progress(len(chunk))
    used = total["n"] > 0
    if used.sum() < 2:
        raise InputError(
            f"the {n_tokens} tokens lie in {n_groups} document(s) of one fold: pass more tokens (documents have "
            f"{world.doc_tokens}), since an interval needs documents that differ"
        )
    return RecoverySums(n_groups=n_groups, **{name: value[used] for name, value in total.items()})


def _code_sums(
    pool: csr_array, a: csr_array, latents: csr_array, feature_of: Integers, near: csr_array
) -> dict[str, Floats]:
    b = _relabelled(latents, feature_of, a.shape[1])
    feature_on, latents_on = _on(a), _on(latents)
    ab = csr_array(a.multiply(b))
    both_on = _on(ab)
    close = csr_array(feature_on.multiply(_on(csr_array(latents_on @ near))))  # feature and some near latent above zero
    sums = {
        "feature_on": feature_on,
        "latent_on": _on(b),
        "both_on": both_on,
        "absorbed": close - close.multiply(both_on),
        "a": a,
        "b": b,
        "aa": a.multiply(a),
        "bb": b.multiply(b),
        "ab": ab,
        "fires": latents_on,
    }
    return {name: (pool @ csr_array(value)).toarray() for name, value in sums.items()}


def _error_sums(pool: csr_array, x: Floats, e: Floats) -> dict[str, Floats]:
    return {
        "n": np.asarray(pool.sum(axis=1)),
        "x": pool @ x,
        "xx": pool @ np.einsum("nd,nd->n", x, x),
        "e": pool @ e,
        "ee": pool @ np.einsum("nd,nd->n", e, e),
    }


def _canonical(codes: csr_array) -> csr_array:
    """Float64 codes in order, repeated entries added up, without stored zeros; the given codes stay as they are."""
    own: csr_array = csr_array(codes.astype(np.float64))  # a copy even of float64
    own.sum_duplicates()
    own.eliminate_zeros()
    return own


def _to_sparse(codes: Codes) -> csr_array:
    parts = (part.cpu().numpy() for part in (codes.values.double(), codes.latents, codes.offsets))
    return _canonical(csr_array(tuple(parts), shape=(codes.n_tokens, codes.d_sae)))


def _relabelled(codes: csr_array, column_of: Integers, n_columns: int) -> csr_array:
    """Move every column to its new number, dropping those with −1."""
    column = column_of[codes.indices]
    keep = column >= 0
    ends = np.concatenate([[0], np.cumsum(keep)])[codes.indptr]
    moved = csr_array((codes.data[keep], column[keep], ends), shape=(codes.shape[0], n_columns))
    moved.sort_indices()
    return moved


def _on(codes: csr_array) -> csr_array:
    """Ones where codes are above zero; nothing else is stored in them."""
    return csr_array((np.ones(codes.nnz), codes.indices, codes.indptr), shape=codes.shape)
