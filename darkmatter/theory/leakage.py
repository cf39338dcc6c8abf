"""Leakage: what held-out errors are when tokens of one document lie on both sides of a split."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from darkmatter.errors import InputError
from darkmatter.theory.optimism import Halves, residuals, weights_of, whitened
from darkmatter.theory.population import Floats


@dataclass(frozen=True, slots=True)
class DocumentLaw:
    """First-order constants of a law of documents of T tokens each.

    Attributes:
        variance: σ², residual variance of a token.
        own: c₁ = E|r|² ℓ, the optimism of independent tokens; squared units of e.
        shared: κ = E⟨r_s, r_t⟩ x_s Σ⁻¹ x_t' over two different tokens of a document, constants among the regressors.
        tokens: T.
    """

    variance: float
    own: float
    shared: float
    tokens: int

    @property
    def optimism(self) -> float:
        """Takeuchi's c = c₁ + (T − 1) κ of whole documents, with the clustered J; never negative."""
        return self.own + (self.tokens - 1) * self.shared

    def document_split(self, n_train: float) -> Halves:
        """E S and E C to order 1/n' of a fit to n' tokens of whole documents, tested on other documents: σ² ∓ c/n'.

        Args:
            n_train: Training tokens n'.

        Returns:
            The two halves.
        """
        gap = self.optimism / n_train
        return Halves(self.variance - gap, self.variance + gap, self.variance)

    def token_split(self, n_tokens: float, n_train: float) -> Halves:
        """E S and E C to order 1/n' of a fit to n' tokens drawn at random from all n, tested on the rest.

        A held-out token has m = (T − 1) n'/(n − 1) training tokens in its document, a training token has
        m' = (T − 1)(n' − 1)/(n − 1): E S = σ² − (c₁ + m'κ)/n', E C = σ² + (c₁ + m'κ − 2mκ)/n'.

        Args:
            n_tokens: All tokens n.
            n_train: Training tokens n'.

        Returns:
            The two halves; the root of their product is σ² − mκ/n' to first order, about σ² − κ/documents.

        Raises:
            InputError: No held-out tokens, or no training tokens.
        """
        if not 1 <= n_train < n_tokens:
            raise InputError(f"{n_train} of {n_tokens} tokens for training, expected at least 1 and not all")
        m = (self.tokens - 1) * n_train / (n_tokens - 1)
        own = self.own + (self.tokens - 1) * (n_train - 1) / (n_tokens - 1) * self.shared
        return Halves(
            self.variance - own / n_train, self.variance + (own - 2 * m * self.shared) / n_train, self.variance
        )


def document_law(e: npt.ArrayLike, x: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> DocumentLaw:
    """σ², c₁ and κ of a finite law of documents.

    κ = E Σ_{s≠t} ⟨r_s, r_t⟩ z_s z_t' / (T(T − 1)) with whitened z = (1, x): per document |Σ_t z_t' r_t|² less the
    squares of its own terms.

    Args:
        e: Errors of the tokens of every kind of document, (documents, T, q).
        x: Their activations, (documents, T, d).
        weights: Probabilities of the kinds of documents, (documents,); equal by default.

    Returns:
        The constants (proofs/14).

    Raises:
        InputError: Arrays that are not (documents, T, ·), or one token per document.
    """
    errors, known = np.asarray(e, dtype=np.float64), np.asarray(x, dtype=np.float64)
    if errors.ndim != 3 or known.ndim != 3 or errors.shape[:2] != known.shape[:2] or known.shape[1] < 2:
        raise InputError(
            f"shapes are {errors.shape} and {known.shape}, expected (documents, T, q) and (documents, T, d) with at "
            "least 2 tokens: reshape the tokens by document"
        )
    documents, tokens = known.shape[:2]
    w = weights_of(documents, weights)
    each = np.repeat(w / tokens, tokens)
    z = whitened(known.reshape(documents * tokens, -1), each)
    r = residuals(errors.reshape(documents * tokens, -1), z, each)
    squares = (r**2).sum(axis=1)
    own = squares * (z**2).sum(axis=1)
    gradients = np.einsum("itp,itq->ipq", z.reshape(documents, tokens, -1), r.reshape(documents, tokens, -1))
    pairs = (gradients**2).sum(axis=(1, 2)) - own.reshape(documents, tokens).sum(axis=1)
    return DocumentLaw(
        variance=float(each @ squares),
        own=float(each @ own),
        shared=float(w @ pairs) / (tokens * (tokens - 1)),
        tokens=tokens,
    )


def offset_kappa(offset_x: npt.ArrayLike, cov_x: npt.ArrayLike, *, offset_e: float) -> float:
    """κ = τ² (1 + tr Σ_u Σ⁻¹) where every document adds independent offsets u to its activations and g to its errors.

    Args:
        offset_x: Covariance Σ_u of u, (d, d).
        cov_x: Covariance Σ of x, offsets included, (d, d), not singular.
        offset_e: Variance τ² of g, summed over output coordinates, ≥ 0.

    Returns:
        κ, in units of τ² (proofs/14).

    Raises:
        InputError: Matrices of unequal shape, a singular Σ or a negative τ².
    """
    offset, total = (np.atleast_2d(np.asarray(a, dtype=np.float64)) for a in (offset_x, cov_x))
    if offset.shape != total.shape or total.ndim != 2 or total.shape[0] != total.shape[1]:
        raise InputError(f"covariances have shapes {offset.shape} and {total.shape}, expected two of (d, d)")
    if not offset_e >= 0.0 or np.linalg.matrix_rank(total) < len(total):
        raise InputError(f"offset_e is {offset_e!r}, expected at least 0, and Σ not singular: drop constant directions")
    return float(offset_e * (1.0 + np.trace(np.linalg.solve(total, offset))))


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentEffects:
    """Gaussian documents: x = u + z, e = g + ε, with document offsets u, g and token parts z, ε, all independent.

    The best affine predictor of e is constant, so σ² = offset_e + token_e, in squared units of e.

    Attributes:
        d: Width of x.
        offset_x: Variance of u per coordinate, ≥ 0.
        token_x: Variance of z per coordinate, > 0.
        offset_e: Variance of g, ≥ 0.
        token_e: Variance of ε, ≥ 0.
    """

    d: int
    offset_x: float
    token_x: float
    offset_e: float
    token_e: float

    @property
    def variance(self) -> float:
        """σ²."""
        return self.offset_e + self.token_e

    def split(self, documents: int, tokens: float, *, same_documents: bool) -> Halves:
        """E S and E C with many tokens and any number of documents, fewer than d among them.

        Given the document means, the scatter within documents is replaced by its expectation; the regression on x is
        then a ridge regression of g on the means ū with penalty λ = M(T' − 1)/T'·(variance of z), and its expectation
        follows from the Marchenko–Pastur law. Relative error of order d/(M T') and 1/M².

        Args:
            documents: Documents M of the training tokens, at least 2.
            tokens: Training tokens T' of each, more than 1.
            same_documents: Held-out tokens are other tokens of the same documents; else of new documents.

        Returns:
            The two halves (proofs/14).

        Raises:
            InputError: Sizes or variances out of range, or no more tokens than parameters.
        """
        self._check(documents, tokens)
        n, k = documents * tokens, documents - 1
        mean_x = self.offset_x + self.token_x / tokens  # variance of a document's mean
        penalty = documents * (tokens - 1) / tokens * self.token_x
        one, two = _resolvent(k, self.d, scale=mean_x, penalty=penalty)
        shrunk = k * penalty**2 * two  # Σ (1 − h)², h_j = s_j/(s_j + λ)
        map_g = k * (one - penalty * two)  # E|Δ|² per unit of offset_e
        map_e = (k * one + (self.d - k) / penalty) / tokens  # tr (X'X)⁻¹
        insample = self.token_e * (1 - (self.d + 1) / n) + self.offset_e * (shrunk + penalty * map_g) / documents
        if same_documents:
            known = self.offset_x / mean_x  # share of a mean that the document's other tokens have too
            width = self.token_x + (1 - known) * self.offset_x
            fitted = k * (1 - penalty * one) / documents
            missed = (k * ((1 - known) ** 2 + 2 * known * (1 - known) * penalty * one) + known**2 * shrunk) / documents
            noise = 1 / n + width * map_e + known**2 * fitted / tokens
        else:
            width = self.token_x + self.offset_x * (1 + 1 / documents)
            missed = 1 + 1 / documents
            noise = 1 / n + width * map_e
        heldout = self.token_e * (1 + noise) + self.offset_e * (missed + width * map_g)
        return Halves(insample, heldout, self.variance)

    def _check(self, documents: int, tokens: float) -> None:
        values = (self.offset_x, self.offset_e, self.token_e)
        if not (min(values) >= 0.0 and self.token_x > 0.0 and math.isfinite(sum(values) + self.token_x)):
            raise InputError(f"variances are {values} and token_x {self.token_x}, expected ≥ 0, and token_x above 0")
        if documents < 2 or not tokens > 1 or not documents * tokens > self.d + 1:
            raise InputError(
                f"{documents} documents of {tokens} training tokens for d = {self.d}, expected at least 2 of more than "
                "1, and more tokens than d + 1"
            )


def _resolvent(k: int, d: int, *, scale: float, penalty: float) -> tuple[float, float]:
    """(1/k) E tr (W + λ)⁻¹ and (1/k) E tr (W + λ)⁻², W = Z Z' with Z of shape (k, d) and variance `scale`, k, d large.

    The first, m, solves λ s k m² + (λ + s(d − k)) m − 1 = 0; the second is −dm/dλ.
    """
    square, linear = penalty * scale * k, penalty + scale * (d - k)
    root = math.sqrt(linear**2 + 4 * square)
    m = 2 / (linear + root) if linear > 0 else (root - linear) / (2 * square)
    return m, (scale * k * m**2 + m) / (2 * square * m + linear)


def group_effect_error(x: npt.ArrayLike, groups: npt.ArrayLike, folds: npt.ArrayLike) -> Floats:
    """Held-out squared error of every token in units of Var g, where e = g is one independent draw per group.

    A prediction is a weighted sum of training errors, so its mistake is Σ_j a_j g_j with a_j = [own group] − Σ of the
    weights of group j, and for draws with equal variance and no correlation its mean square is Var g · Σ_j a_j². With
    an intercept Σ_j a_j = 0. The truth is 1, for g is independent of x.

    Args:
        x: Activations, (n, d).
        groups: Group of every token, whole numbers, (n,).
        folds: Fold of every token, whole numbers, (n,), at least two different ones.

    Returns:
        Σ_j a_j² of every token, (n,) (proofs/14).

    Raises:
        InputError: Lengths differ, or there is a single fold.
    """
    known, group, fold = np.asarray(x, dtype=np.float64), np.asarray(groups), np.asarray(folds)
    if known.ndim != 2 or group.shape != (len(known),) or fold.shape != (len(known),) or len(np.unique(fold)) < 2:
        raise InputError(
            f"shapes are {known.shape}, {group.shape} and {fold.shape}, expected (n, d), (n,) and (n,) in two folds"
        )
    member = (group[:, None] == np.unique(group)).astype(np.float64)
    mistakes = member.copy()
    for k in np.unique(fold):
        train, test = fold != k, fold == k
        middle, level = known[train].mean(axis=0), member[train].mean(axis=0)
        maps = np.linalg.pinv(known[train] - middle, rcond=1e-10) @ (member[train] - level)
        mistakes[test] -= level + (known[test] - middle) @ maps
    return np.asarray((mistakes**2).sum(axis=1))
