"""Scaling with width and L0: laws with asymptotes, the test that nonlinear error is constant, the surface."""

from darkmatter.analyses.scaling.analyse import DRAWS, MARGIN, scaling_law
from darkmatter.analyses.scaling.law import Law
from darkmatter.analyses.scaling.linear import Slope, Surface
from darkmatter.analyses.scaling.passes import CountingSource, SomeSaes, measure_scaling
from darkmatter.analyses.scaling.points import Points, points_of
from darkmatter.analyses.scaling.result import DEFINITION, Level, ScaledSae, ScalingLaw, WidthShares

__all__ = [
    "DEFINITION",
    "DRAWS",
    "MARGIN",
    "CountingSource",
    "Law",
    "Level",
    "Points",
    "ScaledSae",
    "ScalingLaw",
    "Slope",
    "SomeSaes",
    "Surface",
    "WidthShares",
    "measure_scaling",
    "points_of",
    "scaling_law",
]
