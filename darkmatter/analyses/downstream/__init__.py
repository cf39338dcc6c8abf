"""What replacing a site by an SAE, or by parts of its error, costs the model: its loss on the next tokens."""

from darkmatter.analyses.downstream.result import DEFINITION, DownstreamLosses, PartLosses, SaeLosses, VariantLosses
from darkmatter.analyses.downstream.run import downstream_losses
from darkmatter.analyses.downstream.seam import SplicedBatch, SplicedLoss
from darkmatter.analyses.downstream.variants import DEFAULT_VARIANTS, OF_SAE, VARIANTS, check_variants, n_forward

__all__ = [
    "DEFAULT_VARIANTS",
    "DEFINITION",
    "OF_SAE",
    "VARIANTS",
    "DownstreamLosses",
    "PartLosses",
    "SaeLosses",
    "SplicedBatch",
    "SplicedLoss",
    "VariantLosses",
    "check_variants",
    "downstream_losses",
    "n_forward",
]
