"""SAEs of other libraries, read into the one inference record: see `load_any_sae`."""

from darkmatter.adapters.saes.load import load_any_sae
from darkmatter.adapters.saes.loaded import FAMILIES, Family, LoadedSae

__all__ = ["FAMILIES", "Family", "LoadedSae", "load_any_sae"]
