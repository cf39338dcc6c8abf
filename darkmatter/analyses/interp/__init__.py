"""Automated interpretation of latents: explanations by a language model, scored by detection."""

from darkmatter.analyses.interp.cache import Answers
from darkmatter.analyses.interp.endpoint import Endpoint, EndpointError
from darkmatter.analyses.interp.scoring import (
    Interpretability,
    Interpretation,
    LatentScore,
    LatentTask,
    interpret,
)

__all__ = [
    "Answers",
    "Endpoint",
    "EndpointError",
    "Interpretability",
    "Interpretation",
    "LatentScore",
    "LatentTask",
    "interpret",
]
