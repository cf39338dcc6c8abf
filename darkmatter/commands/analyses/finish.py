"""The end of every analysis: one JSON report, one figure, and a table or the JSON on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from darkmatter.commands.analyses.data import Data, SitesData
from darkmatter.commands.console import put, say
from darkmatter.files import write_json
from darkmatter.results import to_plain
from darkmatter.store import Checkpoint

VERSION = 1


def finish(
    name: str,
    result: Any,
    data: Data | SitesData,
    *,
    draw: Callable[[Path], None],
    show: Callable[[], None],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write NAME.png and NAME.json (last, so that it stands for a finished run), and print.

    Args:
        name: The analysis, such as "ladder".
        result: Its frozen result.
        data: What it worked on.
        draw: Draws the figure to a path.
        show: Prints tables on stdout.
        more: Further keys of the report, such as ``truth``.
    """
    plain = {
        "format": f"darkmatter-{name}",
        "version": VERSION,
        "result": to_plain(result),
        "source": to_plain(dict(data.source.description)),
        "folds": data.folds,
        "seed": data.seed,
        **to_plain(dict(data.notes)),
        **to_plain(dict(more or {})),
    }
    draw(data.out / f"{name}.png")
    write_json(data.out / f"{name}.json", plain)
    Checkpoint(data.out / "checkpoint").clear()
    if data.as_json:
        put(json.dumps(plain, indent=2, allow_nan=False))
        return
    show()
    say(f"Wrote {name}.json and {name}.png to {data.out}")
