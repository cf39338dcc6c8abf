"""Worlds with known truth: activations, surgical SAEs on them, and what a perfect analysis would report."""

from darkmatter.sandbox.chunk import WorldChunk
from darkmatter.sandbox.factors import FactorMoments
from darkmatter.sandbox.population import PopulationShares, population_covariance, population_shares
from darkmatter.sandbox.source import PairSource, recon_chunks
from darkmatter.sandbox.surgical import BoundSurgical, Surgical
from darkmatter.sandbox.truth import Truth, true_shares
from darkmatter.sandbox.world import World

__all__ = [
    "BoundSurgical",
    "FactorMoments",
    "PairSource",
    "PopulationShares",
    "Surgical",
    "Truth",
    "World",
    "WorldChunk",
    "population_covariance",
    "population_shares",
    "recon_chunks",
    "true_shares",
]
