"""The paper's analyses as commands, one module each; what they do is imported when one runs."""

from darkmatter.cli_analyses import (  # noqa: F401 - each module registers its command
    cross_site,
    downstream,
    ladder,
    norms,
    per_token,
    pursuit,
    replicates,
    scale,
    spectrum,
    train_on_error,
)
from darkmatter.cli_analyses.app import app

__all__ = ["app"]
