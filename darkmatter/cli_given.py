"""Which options stand on the command line, as against those that keep their default."""

from __future__ import annotations

from typing import Any

import typer


def given(ctx: typer.Context, *others: str) -> dict[str, Any]:
    """Collect the settings that stand on the command line.

    Args:
        ctx: The command's context.
        others: Parameters that set nothing.

    Returns:
        Values by option name, without its dashes in front.
    """
    return {
        name.replace("_", "-"): value
        for name, value in ctx.params.items()
        if name not in others and getattr(ctx.get_parameter_source(name), "name", "DEFAULT") != "DEFAULT"
    }
