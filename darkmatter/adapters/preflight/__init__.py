"""Checks on a few batches before a long run: is this the right site, text and SAE, read in the right way?"""

from darkmatter.adapters.preflight.record import Check, Preflight
from darkmatter.adapters.preflight.run import preflight

__all__ = ["Check", "Preflight", "preflight"]
