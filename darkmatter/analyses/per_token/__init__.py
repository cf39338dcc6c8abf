"""Errors token by token: a large SAE's from a small one's, by position and class, and where they are largest."""

from darkmatter.analyses.per_token.measure import per_token_errors
from darkmatter.analyses.per_token.results import (
    FEATURES,
    Breakdown,
    Constancy,
    ErrorPrediction,
    Pair,
    PerToken,
    SaeTokens,
    Share,
    TopToken,
)
from darkmatter.analyses.per_token.words import KINDS, TokenText, kind_of_piece

__all__ = [
    "FEATURES",
    "KINDS",
    "Breakdown",
    "Constancy",
    "ErrorPrediction",
    "Pair",
    "PerToken",
    "SaeTokens",
    "Share",
    "TokenText",
    "TopToken",
    "kind_of_piece",
    "per_token_errors",
]
