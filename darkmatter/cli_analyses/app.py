"""Where the commands of the analyses register."""

from __future__ import annotations

import typer

app = typer.Typer(add_completion=False)
