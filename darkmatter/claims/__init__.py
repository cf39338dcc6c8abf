"""Every theorem of proofs/ as something that can be run, attacked and refuted: `darkmatter prove`."""

from __future__ import annotations

from importlib import import_module

from darkmatter.claims.claim import AnyClaim, Claim, Margin, agrees, at_most, equals, worst
from darkmatter.claims.run import Outcome, Verdict, attack, twin_is_caught

__all__ = [
    "AnyClaim",
    "Claim",
    "Margin",
    "Outcome",
    "Verdict",
    "agrees",
    "all_claims",
    "at_most",
    "attack",
    "equals",
    "twin_is_caught",
    "worst",
]

_MODULES = (
    "moments",
    "optimism",
    "intervals",
    "residual_identity",
    "upper_bound",
    "introduced",
    "always_valid",
    "one_sae",
    "shrinkage",
    "synthetic_test",
    "replicates",
    "norm_probe",
    "definitions",
    "leakage",
    "sandbox_moments",
)
"""Modules with claims, in the order of their pages."""


def all_claims() -> tuple[AnyClaim, ...]:
    """Every claim, in the order of the pages.

    Returns:
        The claims.
    """
    found = [claim for name in _MODULES for claim in import_module(f"darkmatter.claims.{name}").CLAIMS]
    return tuple(sorted(found, key=lambda claim: claim.page))
