"""`darkmatter inspect`: what an SAE's files say, and what would be applied."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from darkmatter.adapters import LoadedSae, load_any_sae
from darkmatter.commands.console import put


def run_inspect(location: str, *, family: str | None, revision: str | None, as_json: bool) -> None:
    """Read an SAE and print its description.

    Args:
        location: Folder, file or hub id, for `load_any_sae`.
        family: Its family; None recognises it.
        revision: Revision on the hub.
        as_json: Print JSON instead of a table.
    """
    loaded = load_any_sae(location, family=family, revision=revision)
    if as_json:
        put(json.dumps(loaded.describe(), indent=2, allow_nan=False))
        return
    Console(highlight=False).print(_table(loaded))


def _table(loaded: LoadedSae) -> Table:
    table = Table(title=loaded.location, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    sae = loaded.sae
    stored = loaded.stored_dtype
    computed = str(sae.dtype).removeprefix("torch.")
    rows = (
        ("family", loaded.family),
        ("revision", loaded.revision or "local files"),
        ("architecture", sae.activation if sae.k is None else f"{sae.activation}, k = {sae.k}"),
        ("d_model", f"{sae.d_model:,}"),
        ("d_sae", f"{sae.d_sae:,}"),
        ("dtype", stored if stored == computed else f"{stored}, computed in {computed}"),
        ("made for model", loaded.model or "not said"),
        ("made for site", loaded.site or (f"not certain; hook {loaded.hook}" if loaded.hook else "not said")),
        ("advertised L0", "not said" if loaded.l0 is None else f"{loaded.l0:g}"),
        ("normalisation", loaded.normalisation or "none"),
        ("applied", " ".join(loaded.notes) or "nothing else"),
    )
    for label, value in rows:
        table.add_row(label, value)
    return table
