"""How much of the error at one site is linear in SAE outputs of earlier sites, against matched controls."""

from darkmatter.analyses.cross_site.regressors import ALL, KINDS, Beside, Kind
from darkmatter.analyses.cross_site.result import Contrast, CrossSite, ErrorExplained, Explained
from darkmatter.analyses.cross_site.run import DEFAULT_CONTROLS, cross_site_errors

__all__ = [
    "ALL",
    "DEFAULT_CONTROLS",
    "KINDS",
    "Beside",
    "Contrast",
    "CrossSite",
    "ErrorExplained",
    "Explained",
    "Kind",
    "cross_site_errors",
]
