"""`darkmatter inspect`: what the files of an SAE or a model say, and what would be applied."""

from __future__ import annotations

import json
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from darkmatter.adapters import LoadedSae, load_any_sae
from darkmatter.adapters.model_facts import ModelFacts, is_model, model_facts
from darkmatter.commands.console import put


def run_inspect(location: str, *, family: str | None, revision: str | None, as_json: bool) -> None:
    """Read an SAE, or the outside of a model, and print its description.

    Args:
        location: Folder, file or hub id. It is a model if its config.json has a `model_type`.
        family: Family of an SAE; None recognises it, and a model.
        revision: Revision on the hub.
        as_json: Print JSON instead of a table.
    """
    if family is None and is_model(location, revision):
        facts = model_facts(location, revision=revision)
        if as_json:
            put(json.dumps(facts.to_dict(), indent=2, allow_nan=False))
        else:
            Console(highlight=False).print(_model_table(facts))
        return
    loaded = load_any_sae(location, family=family, revision=revision)
    if as_json:
        put(json.dumps(loaded.describe(), indent=2, allow_nan=False))
        return
    Console(highlight=False).print(_table(loaded))


def _table(loaded: LoadedSae) -> Table:
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
    return _two_columns(loaded.location, rows)


def _model_table(facts: ModelFacts) -> Table:
    stored = ", ".join(f"{dtype} ({count:,} numbers)" for dtype, count in facts.weights.items())
    bos = "none" if facts.bos_id is None else f"{facts.bos_id} ({facts.bos_token})"
    rows = [
        ("model type", facts.model_type + ("" if facts.causal else ", not a causal language model")),
        ("architecture", facts.architecture),
        ("revision", facts.revision or "local files"),
        ("layers", str(facts.n_layers)),
        ("d_model", f"{facts.d_model:,}"),
        ("parameters", f"{facts.n_parameters:,}"),
        ("stored as", stored or "not read: no safetensors weights, or the hub cannot be reached"),
        ("vocabulary", f"{facts.vocabulary:,}"),
        ("max positions", "not limited" if facts.max_positions is None else f"{facts.max_positions:,}"),
        ("tokenizer", facts.tokenizer or "none"),
        ("BOS", bos),
    ]
    for site in facts.sites:
        known = site.width is not None
        place = f"{site.module}.{site.side}, {site.width:,} wide" if known else "not known here: give a module's path"
        rows.append((site.site, place))
    rows.append(("applied", " ".join(facts.applied)))
    return _two_columns(facts.location, rows)


def _two_columns(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(label, value)
    return table
