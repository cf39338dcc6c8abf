"""How well a squared norm can be read off the activation linearly, and what else predicts it."""

from darkmatter.analyses.norms.probe import norm_probes
from darkmatter.analyses.norms.results import LABELS, VECTORS, BothProbes, NormProbe, NormProbes
from darkmatter.analyses.norms.values import TokenValues

__all__ = ["LABELS", "VECTORS", "BothProbes", "NormProbe", "NormProbes", "TokenValues", "norm_probes"]
