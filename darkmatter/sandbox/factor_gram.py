"""The Gram matrix of the true factors, kept as the sparse factors themselves for as long as they are smaller."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, vstack

from darkmatter.sandbox.features import Floats, Singles

JOINED = 8
"""Batches of tokens joined before they are multiplied or stored."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Codes (n, m) and dense coordinates (n, k) of some tokens; their Gram matrix is Z'Z with Z = (codes, coords)."""

    codes: csr_array
    coords: Singles

    @property
    def nbytes(self) -> int:
        """Memory."""
        codes = self.codes
        return int(codes.data.nbytes + codes.indices.nbytes + codes.indptr.nbytes + self.coords.nbytes)

    def times(self, weight: Floats) -> Floats:
        """Z'Z @ weight, at 2 n · L0 per column."""
        codes, coords = self.codes.astype(np.float64), self.coords.astype(np.float64)
        m = codes.shape[1]
        image = codes @ weight[:m] + coords @ weight[m:]
        return np.vstack([codes.T @ image, coords.T @ image])

    def add_to(self, total: Floats) -> None:
        """Add Z'Z to a matrix in place: L0² per token."""
        codes, coords = self.codes.astype(np.float64), self.coords.astype(np.float64)
        m = codes.shape[1]
        gram = csr_array(codes.T @ codes)
        rows = np.repeat(np.arange(m), np.diff(gram.indptr))
        total[rows, gram.indices] += gram.data  # every entry occurs once in a product, so += is safe
        both = codes.T @ coords
        total[:m, m:] += both
        total[m:, :m] += both.T
        total[m:, m:] += coords.T @ coords


@dataclass(frozen=True, slots=True, eq=False)
class Absorbed:
    """The Gram matrix of many tokens, (m + k, m + k)."""

    gram: Floats

    def times(self, weight: Floats) -> Floats:
        """Gram matrix @ weight."""
        product: Floats = self.gram @ weight
        return product

    def add_to(self, total: Floats) -> None:
        """Add the Gram matrix to another in place."""
        total += self.gram


Part = Tokens | Absorbed


class GramStore:
    """Takes tokens in. Once they would need more memory than their Gram matrix, it is formed and they are dropped."""

    def __init__(self, n_features: int, dense_dim: int) -> None:
        self._size = n_features + dense_dim
        self._waiting: list[Tokens] = []
        self._tokens: list[Tokens] = []
        self._absorbed: Absorbed | None = None

    def add(self, codes: csr_array, coords: Singles) -> None:
        """Add some tokens."""
        self._waiting.append(Tokens(codes, coords))
        if len(self._waiting) == JOINED:
            self._flush()

    def parts(self) -> tuple[Part, ...]:
        """What was gathered: parts whose Gram matrices add up."""
        self._flush()
        return tuple(self._tokens) if self._absorbed is None else (self._absorbed,)

    def _flush(self) -> None:
        if not self._waiting:
            return
        joined = Tokens(
            csr_array(vstack([part.codes for part in self._waiting])),
            np.vstack([part.coords for part in self._waiting]),
        )
        self._waiting = []
        if self._absorbed is not None:
            joined.add_to(self._absorbed.gram)
            return
        self._tokens.append(joined)
        if sum(part.nbytes for part in self._tokens) > 8 * self._size**2:
            self._absorbed = Absorbed(np.zeros((self._size, self._size)))
            for part in self._tokens:
                part.add_to(self._absorbed.gram)
            self._tokens = []
