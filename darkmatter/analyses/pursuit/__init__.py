"""The decoder's best codes: inference-time sparse coding in place of the encoder, at matched L0."""

from darkmatter.analyses.pursuit.result import DEFINITION, Coding, Pursuit, Removed, SaePursuit
from darkmatter.analyses.pursuit.run import pursue
from darkmatter.analyses.pursuit.shares import Shares, SplitError
from darkmatter.analyses.pursuit.tokens import TokensOnly

__all__ = [
    "DEFINITION",
    "Coding",
    "Pursuit",
    "Removed",
    "SaePursuit",
    "Shares",
    "SplitError",
    "TokensOnly",
    "pursue",
]
