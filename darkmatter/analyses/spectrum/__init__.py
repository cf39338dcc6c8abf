"""The geometry of the residual: spectra, leading subspaces, and the directions of the SAE that they share."""

from darkmatter.analyses.spectrum.analysis import residual_spectrum, spectrum_of_sums
from darkmatter.analyses.spectrum.result import Along, Overlap, PartSpectrum, ResidualSpectrum, SaeSpectrum
from darkmatter.analyses.spectrum.sums import ErrorMoments, accumulate_errors

__all__ = [
    "Along",
    "ErrorMoments",
    "Overlap",
    "PartSpectrum",
    "ResidualSpectrum",
    "SaeSpectrum",
    "accumulate_errors",
    "residual_spectrum",
    "spectrum_of_sums",
]
