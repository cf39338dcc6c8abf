"""`darkmatter bracket`: what two published numbers allow for introduced error."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from darkmatter.commands.console import put
from darkmatter.report import percent
from darkmatter.theory.one_sae import published_bracket

ASSUMPTIONS = (
    "Both numbers are pooled over coordinates and centred, with an intercept; the learned sparse part is uncorrelated "
    "with the rest of x, the introduced error with both; no shrinkage."
)
UPPER_ONLY = "The upper end is T3 and needs none of this. A trained SAE shrinks: then the lower end is void (T5e)."


def show_bracket(fvu: float, r2: float, *, as_json: bool) -> None:
    """Print the bracket of introduced error from FVU and R² alone (T5a).

    Args:
        fvu: Var e / Var x.
        r2: R² of e regressed on x.
        as_json: Print JSON only.
    """
    found = published_bracket(fvu, r2)
    if as_json:
        plain = {"theorem": "T5a", "fvu": fvu, "r2": r2, "low": found.low, "high": found.high}
        put(json.dumps(plain | {"assumptions": f"{ASSUMPTIONS} {UPPER_ONLY}"}, indent=2, allow_nan=False))
        return
    table = Table(header_style="bold", title="introduced error, in shares of Var x", title_justify="left")
    table.add_column("from")
    table.add_column("introduced", justify="right")
    table.add_column("see", style="dim")
    table.add_row(f"FVU {fvu:g}, R² {r2:g}", f"in [{percent(found.low)[:-2]}, {percent(found.high)[:-2]}] %", "T5a")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"Assumed: {ASSUMPTIONS} {UPPER_ONLY}", markup=False)
    if found.low == 0.0 and found.high > 0.0:
        message = "R² is at least FVU: the numbers are compatible with no introduced error at all."
        console.print(message, style="bold", markup=False)
