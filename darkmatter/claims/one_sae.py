"""T5: what one SAE says about the error it introduces, and what it cannot say (proofs/08_one_sae.md)."""

from __future__ import annotations

from darkmatter.claims.claim import AnyClaim
from darkmatter.claims.one_sae_limits import LIMITS
from darkmatter.claims.one_sae_matrices import MATRICES
from darkmatter.claims.one_sae_sandbox import SANDBOX
from darkmatter.claims.one_sae_traces import TRACES

CLAIMS: tuple[AnyClaim, ...] = (*TRACES, *MATRICES, *LIMITS, *SANDBOX)
