"""Worlds with known truth: activations, SAEs on them, and what a perfect analysis would report."""

from darkmatter.sandbox.chunk import WorldChunk
from darkmatter.sandbox.experiment import Experiment
from darkmatter.sandbox.factors import FactorMoments
from darkmatter.sandbox.norm_probe import NormProbe, norm_probe
from darkmatter.sandbox.population import PopulationShares, population_covariance, population_shares
from darkmatter.sandbox.presets import PRESETS, Preset, preset
from darkmatter.sandbox.recovery import Recovery, fvu_curve, recover
from darkmatter.sandbox.source import PairSource, recon_chunks
from darkmatter.sandbox.surgical import BoundSurgical, Surgical
from darkmatter.sandbox.table import Table
from darkmatter.sandbox.truth import Truth, true_shares
from darkmatter.sandbox.world import World

__all__ = [
    "PRESETS",
    "BoundSurgical",
    "Experiment",
    "FactorMoments",
    "NormProbe",
    "PairSource",
    "PopulationShares",
    "Preset",
    "Recovery",
    "Surgical",
    "Table",
    "Truth",
    "World",
    "WorldChunk",
    "fvu_curve",
    "norm_probe",
    "population_covariance",
    "population_shares",
    "preset",
    "recon_chunks",
    "recover",
    "true_shares",
]
